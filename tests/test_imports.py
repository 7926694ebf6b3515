"""Imports point downward only, and the modules that travel with a checkpoint need nothing but what everybody has."""

import ast
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "walrus_hf"
# Flat siblings that are copied to the Hub with a checkpoint: each import in them binds whoever loads it.
GROUND = (
    "fields", "strides", "jitter", "normalization", "configuration_walrus", "processing_walrus", "caching", "layers",
    "convolutions", "patching", "input_checks", "modeling_walrus",
)  # fmt: skip
# From the ground up: a module imports those before it, and others of its own folder.
ORDER = (
    *GROUND, "safe_files", "allocator", "metrics", "data", "panels", "films", "curves", "plotting", "checkpoints",
    "adapters", "adapter_files", "model_card", "hub", "rollouts", "loading", "pipeline_walrus", "exporting", "convert",
    "training", "finetuning_arrays", "finetuning_data", "finetuning_loop", "finetuning_arguments",
    "finetuning_results", "finetuning", "finetuning_memory", "evaluation", "bench", "cli",
)  # fmt: skip
ALLOWED_ON_THE_GROUND = {"torch", "numpy", "transformers", "huggingface_hub"} | set(sys.stdlib_module_names)
MODEL = {"caching", "layers", "patching", "modeling_walrus", "pipeline_walrus"}
DRAWING = {"panels", "films", "curves", "plotting"}
PICTURES = {"matplotlib", "imageio", "imageio_ffmpeg", "PIL"}


def part_of(path: Path) -> str:
    """`data` for data/well.py, `fields` for fields.py."""
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imports(path: Path) -> list[tuple[str, ast.stmt]]:
    """Every import statement, lazy ones too: the part of this package as `.fields`, or the top of another one."""
    found: list[tuple[str, ast.stmt]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, node) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.append((node.module or "", node))
        elif isinstance(node, ast.ImportFrom):
            folder = list(path.relative_to(SRC).parts[:-1])
            base = folder[: len(folder) - (node.level - 1)]
            modules = [node.module] if node.module else [alias.name for alias in node.names]
            found += [(".".join(["walrus_hf", *base, module]), node) for module in modules]
    return [(f".{name.split('.')[1]}" if name.startswith("walrus_hf.") else name.split(".")[0], n) for name, n in found]


MODULES = sorted(path for path in SRC.rglob("*.py") if path != SRC / "__init__.py")
IDS = [str(path.relative_to(SRC)) for path in MODULES]


def test_the_parser_of_this_test_sees_all_kinds_of_imports():
    found = {name for name, _ in imports(SRC / "cli" / "demo.py")}
    assert {".plotting", ".data", ".cli", "typer", "numpy"} <= found


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_imports_point_downward(path):
    own = part_of(path)
    assert own in ORDER, f"{own}: give the new module its place in ORDER"
    for name, node in imports(path):
        assert name != "walrus_hf", f"{path}:{node.lineno} imports the package itself, which stands above its modules"
        if name.startswith("."):
            below = ORDER.index(name[1:]) <= ORDER.index(own)
            assert below, f"{path}:{node.lineno} imports {name[1:]}, which stands above it"


@pytest.mark.parametrize("name", GROUND)
def test_what_travels_with_a_checkpoint_needs_no_other_package(name):
    for found, node in imports(SRC / f"{name}.py"):
        if found.startswith("."):
            assert found[1:] in GROUND, f"{name}.py:{node.lineno} imports {found[1:]}, which does not travel along"
            assert isinstance(node, ast.ImportFrom), f"{name}.py:{node.lineno}: write `from .x import y`"
            assert (node.level, node.module) == (1, found[1:]), f"{name}.py:{node.lineno}: write `from .x import y`"
        else:
            assert found in ALLOWED_ON_THE_GROUND, f"{name}.py:{node.lineno} imports {found}"


@pytest.mark.parametrize("path", [p for p in MODULES if part_of(p) == "data"], ids=lambda p: p.name)
def test_data_never_imports_the_model(path):
    assert not {name[1:] for name, _ in imports(path) if name.startswith(".")} & MODEL


@pytest.mark.parametrize("path", [p for p in MODULES if part_of(p) not in DRAWING], ids=lambda p: p.name)
def test_only_the_modules_of_pictures_draw(path):
    assert not {name for name, _ in imports(path)} & PICTURES


def test_the_model_knows_no_files():
    for module in ("layers", "modeling_walrus", "normalization", "strides", "jitter"):
        assert not {name for name, _ in imports(SRC / f"{module}.py")} & {"os", "pathlib", "io", "json"}
