"""The examples about fine-tuning run with `--tiny`, one of them under `accelerate launch`."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from walrus_hf import WalrusPipeline

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")
EXAMPLES = Path(__file__).parents[1] / "examples"


def run(monkeypatch, name, *arguments):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", [name, "--tiny", *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_an_adapter_is_trained_under_accelerate_launch(tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    command += [str(EXAMPLES / "accelerate_configs" / "cpu.yaml"), str(EXAMPLES / "finetune_lora.py")]
    done = subprocess.run(
        [*command, "--tiny", "--output", str(tmp_path / "adapter")], capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "finds the base by itself" in done.stdout
    assert WalrusPipeline.from_pretrained(tmp_path / "adapter").model.peft_config


def test_the_trainer_of_transformers_trains_an_adapter(monkeypatch, tmp_path, capsys):
    run(monkeypatch, "finetune_trainer.py", "--output", tmp_path / "out")
    assert "held-out loss" in capsys.readouterr().out
    assert WalrusPipeline.from_pretrained(tmp_path / "out" / "adapter").model.peft_config


def test_a_new_field_is_taught_and_known_again(monkeypatch, tmp_path, capsys):
    run(monkeypatch, "new_field.py", "--output", tmp_path / "out")
    assert "which is rounding" in capsys.readouterr().out
    assert "smoke" in WalrusPipeline.from_pretrained(tmp_path / "out").processor.field2id


@pytest.mark.slow
def test_the_transfer_experiment_runs(monkeypatch, tmp_path, capsys):
    pytest.importorskip("exponax")
    monkeypatch.setattr(sys, "argv", ["transfer.py", "--tiny", "--output", str(tmp_path)])
    runpy.run_path(str(EXAMPLES / "experiments" / "transfer.py"), run_name="__main__")
    assert "| scratch (" in capsys.readouterr().out
