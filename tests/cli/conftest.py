"""A small model, a simulation file, and the command line as a function."""

import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.utils import logging as transformers_logging

from walrus_hf import Trajectory, WalrusPipeline, cli, save_well
from walrus_hf.bench.prediction import Rates

from ..test_parity import parity_model


def simulation(frames=12, seed=0, grid=(16, 16), sides=("wall", "open"), **fields):
    rng = np.random.default_rng(seed)
    fields = fields or {
        "pressure": 5 + rng.normal(size=(frames, *grid)).cumsum(0),
        "velocity": rng.normal(size=(frames, *grid, 2)).cumsum(0),
    }
    return Trajectory(fields, {"x": "periodic", "y": sides}, dt=0.5, name=f"run_{seed}")


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("cli") / "model"
    WalrusPipeline(parity_model(torch.float32, tokens_per_axis=4, tokens_per_axis_3d=2)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def file(tmp_path_factory) -> str:
    """Two trajectories of 12 frames."""
    return str(save_well([simulation(seed=0), simulation(seed=1)], tmp_path_factory.mktemp("cli") / "simulation.hdf5"))


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch, capsys):
    """`walrus-hf ARGUMENTS` in this process, with the error handling of the entry point."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no waiting for a network
    verbosity = transformers_logging.get_verbosity()

    def call(*arguments) -> Result:
        monkeypatch.setattr(sys, "argv", ["walrus-hf", *map(str, arguments)])
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # the entry point replaces it
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return Result(int(stop.value.code or 0), captured.out, captured.err)

    yield call
    transformers_logging.set_verbosity(verbosity)
    transformers_logging.enable_progress_bar()


@pytest.fixture
def known_rates(monkeypatch):
    """Nothing is measured: 100 GFLOP/s and 10 GB/s."""
    monkeypatch.setattr("walrus_hf.bench.prediction.measure_rates", lambda device: Rates(1e11, 1e10))


@pytest.fixture
def refused(run, tmp_path):
    """Runs a command that must fail with one line on stderr, and leave the files of `tmp_path` as they are."""

    def call(*arguments, code=2) -> str:
        before = _contents(tmp_path)
        result = run(*arguments)
        assert result.code == code, result
        lines = result.err.splitlines()
        assert len(lines) == 1, result.err
        assert lines[0].startswith("error: ")
        assert _contents(tmp_path) == before
        return lines[0]

    return call


def _contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def program(*arguments, **kwargs) -> subprocess.CompletedProcess:
    """The real program in a process of its own."""
    command = [sys.executable, "-c", "from walrus_hf.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **kwargs)
