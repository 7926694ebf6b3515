"""What the README shows runs, and what it names exists."""

import re
from pathlib import Path

import pytest
import typer

from walrus_hf import save_well

ROOT = Path(__file__).parents[1]
PLACES = ("src", "examples", "model_cards", "docs", "tests")
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def demo_has_run(tmp_path, monkeypatch):
    """A small stand-in for what `make demo` and examples/simulate.py leave behind."""
    simulate = pytest.importorskip("walrus_hf.data.simulate")
    pytest.importorskip("exponax")
    unseen = tmp_path / "demo-output" / "unseen"
    unseen.mkdir(parents=True)
    save_well(simulate.shear_flow(0, (16, 24), frames=26), unseen / "shear_flow.hdf5")
    for name in ("shear_flow", "wave"):
        simulate.write_simulations(name, tmp_path / "runs" / "simulated", 1, grid=(16, 24), frames=26)
    monkeypatch.chdir(tmp_path)


PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_example_runs_where_the_demo_has_run(demo_has_run, capsys):
    assert len(PYTHON[0].splitlines()) <= 10
    exec(compile(PYTHON[0], "README.md", "exec"), {})
    assert Path("forecast.hdf5").is_file()
    printed = capsys.readouterr().out
    assert "16 frames of x=16 x y=24" in printed
    assert "velocity" in printed
    assert "1:10" in printed


def test_the_example_of_a_stream_gives_inputs_that_the_model_takes(demo_has_run, monkeypatch):
    monkeypatch.setenv("WALRUS_HF_CACHE", "manifests")
    names: dict = {}
    exec(compile(PYTHON[1], "README.md", "exec"), names)
    assert len(PYTHON) == 2
    assert names["inputs"]["field_values"].shape[:2] == (2, 6)
    assert names["loss"] > 0


def test_every_file_of_the_tree_and_every_link_exists():
    tree = README.split("## Files")[1].split("```")[1]
    names = re.findall(r"\b([a-z_]+(?:\.py|/))", tree)
    assert len(names) > 20
    for name in names:
        assert any(list((ROOT / top).rglob(name.rstrip("/"))) for top in PLACES) or (ROOT / name).exists(), name
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_the_commands_of_the_readme_are_commands_of_the_program():
    from walrus_hf.cli import app

    known = set(typer.main.get_command(app).commands)
    used = set(re.findall(r"walrus-hf ([a-z]+)", README)) - {"hf"}
    assert used
    assert used <= known, used - known
