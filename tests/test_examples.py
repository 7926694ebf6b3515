"""The examples about forecasts run with `--tiny`, and open with the commands that run them."""

import ast
import json
import runpy
import sys
from pathlib import Path

import pytest

from walrus_hf import WalrusForPrediction, load_well
from walrus_hf.training.arguments import PretrainingArguments, read_recipe

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(monkeypatch, name, *arguments):
    monkeypatch.setattr(sys, "argv", [name, "--tiny", *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_a_file_is_forecast_compared_and_drawn(monkeypatch, tmp_path, capsys):
    run(monkeypatch, "forecast.py", "--output", tmp_path, "--steps", "3")
    assert load_well(tmp_path / "forecast.hdf5").num_frames == 3
    assert (tmp_path / "forecast.gif").stat().st_size > 1000
    assert "persistence" in capsys.readouterr().out


def test_own_arrays_are_forecast_under_their_own_names(monkeypatch, capsys):
    run(monkeypatch, "own_arrays.py")
    out = capsys.readouterr().out
    assert "velocity of the forecast: (4, 24, 16, 2)" in out
    assert "every third frame: (2, 24, 16) frames 0.06 apart" in out


def test_an_xarray_data_set_is_forecast_into_another(monkeypatch, tmp_path):
    xarray = pytest.importorskip("xarray")
    run(monkeypatch, "own_xarray.py", "--output", tmp_path / "f" / "forecast.nc", "--steps", "2")
    with xarray.open_dataset(tmp_path / "f" / "forecast.nc") as found:
        assert found["pressure"].shape == (2, 24, 16)
        assert found["time"].values.tolist() == pytest.approx([0.4, 0.45])


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_every_example_is_short_and_opens_with_its_commands(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    assert f"examples/{path.name}" in (ast.get_docstring(ast.parse(text)) or "")


def test_simulations_of_a_recipe_are_written_once(monkeypatch, tmp_path):
    run(monkeypatch, "simulate.py", tmp_path)
    (file,) = (tmp_path / "wave" / "data" / "train").iterdir()
    written = file.stat().st_mtime_ns
    run(monkeypatch, "simulate.py", tmp_path)
    assert file.stat().st_mtime_ns == written


def test_a_model_is_pretrained_for_a_few_steps(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    run(monkeypatch, "pretrain.py", "--output_dir", "runs/try", "--max_steps", "2")
    steps = [json.loads(line) for line in (tmp_path / "runs" / "try" / "metrics.jsonl").read_text().splitlines()]
    assert [(step["step"], list(step["losses"])) for step in steps] == [(1, ["wave"]), (2, ["wave"])]
    WalrusForPrediction.from_pretrained(tmp_path / "runs" / "try" / "model")


def test_the_recipe_of_walrus_nano_reads_what_is_simulated_for_it():
    recipe = read_recipe(EXAMPLES / "configs" / "nano.yaml")
    simulated = runpy.run_path(str(EXAMPLES / "simulate.py"))["nano_variants"]()
    assert recipe["sources"] == [f"runs/nano/data/{n}/{name}" for name, n, _ in simulated]
    model = WalrusForPrediction(PretrainingArguments(**recipe).config())
    assert 2e6 < sum(parameter.numel() for parameter in model.parameters()) < 6e6
