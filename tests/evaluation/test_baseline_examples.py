"""The examples run as they stand, and what they write is what `walrus-hf evaluate` reads."""

import ast
import importlib.util
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedConfig
from typer.testing import CliRunner

pytest.importorskip("neuralop")

from walrus_hf import Trajectory, WalrusProcessor
from walrus_hf.cli import app
from walrus_hf.evaluation.neural_baselines import train

EXAMPLES = Path(__file__).parents[2] / "examples"


def load_example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_example(monkeypatch, module, *arguments):
    monkeypatch.setattr(sys, "argv", ["example", *map(str, arguments)])
    module.main()


@pytest.mark.filterwarnings("ignore:grid:UserWarning")
def test_the_comparison_at_equal_size_and_seconds_runs_and_its_folders_are_evaluated(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WALRUS_HF_CACHE", str(tmp_path / "manifests"))
    output = tmp_path / "out"
    run_example(monkeypatch, load_example("baselines"), "--tiny", "--output", output)
    printed = capsys.readouterr().out
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in printed.splitlines() if "parameters" in line}
    assert set(sizes) == {"walrus", "unet", "fno", "ufno"}
    assert all(abs(size - sizes["walrus"]) <= 0.1 * sizes["walrus"] for size in sizes.values())
    trained = {"unet", "fno", "ufno", "pca"}
    results = json.loads((output / "results" / "results.json").read_text())
    forecasters = results["scenarios"]["wave"]["forecasters"]
    assert set(forecasters) == {"model", "persistence", "linear_extrapolation", "dmd", *trained}
    assert not any(found["failures"] for found in forecasters.values())

    folders = itertools.chain(*(["--baseline", output / name] for name in trained))
    command = [
        "evaluate", "--model", output / "walrus", "--data", output / "wave", "--split", "valid", "--window", "1",
        "--output", output / "again", "--baseline", "dmd", *folders,
    ]  # fmt: skip
    run = CliRunner().invoke(app, list(map(str, command)))
    assert run.exit_code == 0, run.output
    again = json.loads((output / "again" / "results.json").read_text())["scenarios"]["wave"]["forecasters"]
    for name in ("dmd", *trained):
        first, second = (found[name]["windows"]["1"]["pressure"]["median"] for found in (forecasters, again))
        assert first == pytest.approx(second, rel=1e-6), name
    assert again["dmd"]["windows"]["1"]["pressure"]["median"] < 0.1

    run_example(
        monkeypatch, load_example("baselines"), "--tiny", "--output", output, "--model", "walrus-nano", "--networks"
    )
    results = json.loads((output / "results" / "results.json").read_text())
    assert results["model"]["name"] == "walrus-nano"
    assert set(results["scenarios"]["wave"]["forecasters"]) == set(forecasters) - {"unet", "fno", "ufno"}


class TestPoseidon:
    poseidon = load_example("wrap_poseidon")

    @pytest.fixture
    def wrapped(self):
        torch.manual_seed(0)
        model = self.poseidon.StandIn(PreTrainedConfig(num_channels=4))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        return self.poseidon.PoseidonForecaster(model, self.poseidon.MEAN, self.poseidon.STD)

    def flow(self, frames=3):
        rng = np.random.default_rng(0)
        fields = {  # in another order than the model wants
            "pressure": rng.uniform(1, 2, size=(frames, 16, 16)).astype(np.float32),
            "velocity": rng.normal(size=(frames, 16, 16, 2)).astype(np.float32),
            "density": rng.uniform(1, 2, size=(frames, 16, 16)).astype(np.float32),
        }
        return Trajectory(fields, {"x": "periodic", "y": "periodic"}, dt=0.05)

    def test_its_wrapper_has_fewer_than_thirty_lines(self):
        tree = ast.parse((EXAMPLES / "wrap_poseidon.py").read_text(encoding="utf-8"))
        found = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}["PoseidonForecaster"]
        assert found.end_lineno - found.lineno + 1 < 30

    def test_the_example_runs(self, monkeypatch, capsys):
        run_example(monkeypatch, self.poseidon, "--tiny")
        assert "persistence" in capsys.readouterr().out

    def test_its_forecasts_are_those_of_the_model_on_normalised_channels(self, wrapped):
        whole = self.flow()
        found = wrapped.predict(whole, 2)
        last = {name: torch.from_numpy(values[-1]) for name, values in whole.fields.items()}
        x = torch.stack([last["density"], last["velocity"][..., 0], last["velocity"][..., 1], last["pressure"]])
        mean, std = (torch.tensor(v).reshape(4, 1, 1) for v in (self.poseidon.MEAN, self.poseidon.STD))
        for step in range(2):
            with torch.no_grad():
                x = wrapped.model((x - mean)[None] / std, torch.tensor([0.05])).output[0] * std + mean
            np.testing.assert_allclose(found.fields["density"][step], x[0], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(found.fields["velocity"][step, ..., 1], x[2], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(found.fields["pressure"][step], x[3], rtol=1e-5, atol=1e-6)
        assert found.time == pytest.approx(3 * 0.05)

    def test_it_is_trained_on_the_same_batches(self, wrapped):
        inputs = dict(WalrusProcessor()(self.flow(4)))
        values = inputs.pop("field_values")
        batch = {"field_values": values[:, :-1], "labels": values[:, 1:], **inputs}
        rows = train(wrapped, itertools.repeat(batch), steps=30, learning_rate=1e-1)
        assert rows[-1]["loss"] < rows[0]["loss"]
