"""The examples about fine-tuning run with `--tiny`, one of them on two processes."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from walrus_hf import Trajectory, WalrusPipeline, save_well

from .small_model import small_model
from .training.small_runs import assert_finished, launch, run_processes

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")
EXAMPLES = Path(__file__).parents[1] / "examples"


def run(monkeypatch, name, *arguments):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", [name, "--tiny", *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_an_adapter_is_trained_under_accelerate_launch_by_two_processes(tmp_path):
    command = launch("ddp", 2, str(EXAMPLES / "finetune_lora.py"), "--tiny", "--output", str(tmp_path / "adapter"))
    done = run_processes(command)
    assert_finished(done)
    assert done.stdout.count("finds the base by itself") == 1
    assert WalrusPipeline.from_pretrained(tmp_path / "adapter").model.peft_config


def test_the_trainer_of_transformers_trains_an_adapter(monkeypatch, tmp_path, capsys):
    run(monkeypatch, "finetune_trainer.py", "--output", tmp_path / "out")
    assert "held-out loss" in capsys.readouterr().out
    assert WalrusPipeline.from_pretrained(tmp_path / "out" / "adapter").model.peft_config


def test_what_the_trainer_made_of_volumes_is_given_as_many_frames_as_in_training(monkeypatch, tmp_path):
    WalrusPipeline(small_model()).save_pretrained(tmp_path / "model")
    values = np.random.default_rng(0).normal(size=(2, 8, 8, 8, 8)).cumsum(axis=1)
    runs = [Trajectory({"a": run}, dict.fromkeys("xyz", "periodic"), axes=("x", "y", "z")) for run in values]
    save_well(runs, tmp_path / "runs.hdf5")
    given = ("--model", tmp_path / "model", "--data", tmp_path / "runs.hdf5", "--max-steps", 1, "--frames", 5)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", ["finetune_trainer.py", "--output", str(tmp_path / "out"), *map(str, given)])
    runpy.run_path(str(EXAMPLES / "finetune_trainer.py"), run_name="__main__")
    processor = WalrusPipeline.from_pretrained(tmp_path / "out" / "adapter").processor
    assert processor.most_frames((8, 8, 8)) == 5
    assert processor.most_frames((16, 16)) == 6


def test_a_new_field_is_taught_and_known_again(monkeypatch, tmp_path, capsys):
    run(monkeypatch, "new_field.py", "--output", tmp_path / "out")
    assert "which is rounding" in capsys.readouterr().out
    assert "smoke" in WalrusPipeline.from_pretrained(tmp_path / "out").processor.field2id


@pytest.mark.slow
def test_the_transfer_experiment_runs(monkeypatch, tmp_path, capsys):
    pytest.importorskip("exponax")
    monkeypatch.syspath_prepend(str(EXAMPLES / "experiments"))
    monkeypatch.setattr(sys, "argv", ["transfer.py", "--tiny", "--output", str(tmp_path)])
    runpy.run_path(str(EXAMPLES / "experiments" / "transfer.py"), run_name="__main__")
    assert "| scratch (" in capsys.readouterr().out
