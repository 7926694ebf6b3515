"""A checkpoint can bring its own code: it loads in a process that does not have the package."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import walrus_hf

from .small_model import VOLUME, WALL_OPEN, small_inputs, small_model

PACKAGE = Path(walrus_hf.__file__).parent
TRAVELLING = (
    "configuration_walrus",
    "processing_walrus",
    "convolutions",
    "input_checks",
    "modeling_walrus",
    "patching",
    "layers",
    "caching",
    "jitter",
    "strides",
    "normalization",
    "fields",
)

# Registering marks the classes for the rest of the process, so it happens in one of its own.
SAVE = """
import sys
from walrus_hf import WalrusConfig, WalrusForPrediction, WalrusProcessor
WalrusConfig.register_for_auto_class()
WalrusForPrediction.register_for_auto_class("AutoModel")
WalrusProcessor.register_for_auto_class("AutoProcessor")
WalrusForPrediction.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])
WalrusProcessor(tokens_per_axis=8, field_names={"rho": "density"}).save_pretrained(sys.argv[2])
"""
LOAD = """
import sys
sys.modules["walrus_hf"] = None  # importing it fails from now on
import torch
from transformers import AutoConfig, AutoModel
folder, inputs, output = sys.argv[1:]
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
model, info = AutoModel.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"]
assert type(model).__module__.startswith("transformers_modules."), type(model)
assert type(model.config) is type(config)
with torch.no_grad():
    forecasts = [model(**batch).prediction for batch in torch.load(inputs)]
    forecasts.append(model.predict(num_steps=2, **torch.load(inputs)[0]))
torch.save(forecasts, output)

from importlib import import_module
from transformers import AutoProcessor
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
Trajectory = import_module(type(processor).__module__.rpartition(".")[0] + ".fields").Trajectory
density = torch.rand(3, 16, 24).numpy()
trajectory = Trajectory({"rho": density}, {"x": "periodic", "y": "wall"})
inputs = processor(trajectory, plan=processor.plan(trajectory.grid, trajectory.boundary_conditions))
assert inputs["plan"].tokens[:2] == (8, 9), inputs["plan"]
assert (processor.postprocess(inputs["field_values"], trajectory).fields["rho"] == density).all()
"""


def run(code: str, *arguments: Path, home: Path) -> None:
    environment = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PATH": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


def test_a_checkpoint_with_code_forecasts_the_same_without_the_package(tmp_path):
    model = small_model(rope_learnable="shared")
    batches = [small_inputs(sides=WALL_OPEN), small_inputs(VOLUME)]
    model.save_pretrained(tmp_path / "plain")
    torch.save(batches, tmp_path / "inputs.pt")
    run(SAVE, tmp_path / "plain", tmp_path / "with code", home=tmp_path / "home")
    assert {path.stem for path in (tmp_path / "with code").glob("*.py")} >= set(TRAVELLING)
    auto_map = json.loads((tmp_path / "with code" / "config.json").read_text())["auto_map"]
    assert auto_map == {
        "AutoConfig": "configuration_walrus.WalrusConfig",
        "AutoModel": "modeling_walrus.WalrusForPrediction",
    }
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / "with code").rename(tmp_path / "elsewhere" / "checkpoint")
    run(LOAD, moved, tmp_path / "inputs.pt", tmp_path / "forecasts.pt", home=tmp_path / "home")
    *forecasts, rollout = torch.load(tmp_path / "forecasts.pt")
    for batch, forecast in zip(batches, forecasts):
        torch.testing.assert_close(forecast, model(**batch).prediction)
    torch.testing.assert_close(rollout, model.predict(num_steps=2, **batches[0]))


def test_an_ordinary_checkpoint_brings_no_code(tmp_path):
    small_model().save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())


@pytest.mark.parametrize("module", TRAVELLING)
def test_travelling_files_import_their_siblings_flatly_and_little_else(module):
    """Every import statement in them, lazy ones too, becomes a requirement of whoever loads the checkpoint."""
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1, ast.unparse(node)
            assert node.module in TRAVELLING, ast.unparse(node)
            continue
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            root = name.partition(".")[0]
            allowed = {"torch", "numpy", "transformers", "huggingface_hub"} | sys.stdlib_module_names
            assert root in allowed, ast.unparse(node)
