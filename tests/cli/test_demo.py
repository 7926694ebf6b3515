"""`walrus-hf demo` refuses before it simulates; what it shows is tested by running it."""

import subprocess
import sys

import pytest

from walrus_hf import WalrusPipeline
from walrus_hf.cli import demo
from walrus_hf.training.arguments import PretrainingArguments, read_recipe
from walrus_hf.training.checkpoints import TEMPORARY
from walrus_hf.training.records import read_metrics

from ..small_model import small_model


def test_a_folder_with_something_in_it_is_kept(refused, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "run.hdf5").write_text("mine")
    message = refused("demo", "--output", tmp_path)
    assert "is not empty; choose another folder, or replace a former demo with --overwrite" in message


def test_overwrite_replaces_a_former_demo_and_nothing_else(refused, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "unseen").mkdir()
    (tmp_path / "unseen" / "shear_flow.hdf5").write_text("of a demo")
    (tmp_path / ".shear_flow.gif.ec2aaa1b.gif").write_text("half of a film, of one that was killed")
    for half in ("tmp-00000080", "tmp-pruned-step-00000040", "tmp-replaced-step-00000080"):
        assert TEMPORARY.fullmatch(half)  # of pretraining
        (tmp_path / half / "model").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("mine")
    assert "found 'notes.txt' in it; choose another folder" in refused("demo", "--output", tmp_path, "--overwrite")
    (tmp_path / "notes.txt").rename(tmp_path / "tmp-notes.txt")
    assert "found 'tmp-notes.txt' in it" in refused("demo", "--output", tmp_path, "--overwrite")
    (tmp_path / "tmp-notes.txt").unlink()
    demo._clear(tmp_path, overwrite=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["data/train/a.hdf5", "unseen/mine.hdf5", "model/config.json"])
def test_overwrite_leaves_folders_alone_that_only_have_the_names_of_a_demos(refused, tmp_path, place):
    if place.startswith("data"):
        (tmp_path / "unseen").mkdir()
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_text("mine")
    message = refused("demo", "--output", tmp_path, "--overwrite")
    assert "expected a former demo to replace" in message
    assert (tmp_path / place).read_text() == "mine"


def test_a_file_as_output_is_refused(refused, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "expected a folder, found a file" in refused("demo", "--output", tmp_path / "file")


def test_missing_packages_are_named_with_the_command_that_installs_them(refused, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    assert "pip install 'walrus-hf[plot,sim]'" in refused("demo", "--output", tmp_path / "out")
    assert "pip install 'walrus-hf[plot,sim,train]'" in refused("demo", "--train", "--output", tmp_path / "out")


def test_minutes_of_a_training_that_nobody_asked_for_are_refused(refused, tmp_path):
    assert "expected together with --train" in refused("demo", "--minutes", "1", "--output", tmp_path / "out")


@pytest.mark.parametrize(
    ("walrus", "verdict"),
    [
        ([0.1] * 24, "The forecast beats persistence at every lead time shown."),
        ([0.1] * 7 + [0.9] * 17, "The forecast does NOT beat persistence for shear flow at lead time 8,"),
        ([0.1] * 23 + [float("nan")], "The forecast does NOT beat persistence for shear flow at lead time 24."),
    ],
)
def test_the_verdict_is_honest(capsys, walrus, verdict):
    demo._verdict({"Walrus": {"shear flow": walrus}, "persistence": {"shear flow": [0.5] * 24}})
    assert verdict in capsys.readouterr().out


@pytest.fixture
def short(monkeypatch):
    """Eight steps of forecast, and two trajectories to train on."""
    pytest.importorskip("exponax")
    monkeypatch.setattr(demo, "STEPS", 8)
    monkeypatch.setattr(demo, "LEAD_TIMES", (1, 2, 8))
    monkeypatch.setattr(demo, "TRAIN_TRAJECTORIES", 2)


def shown(folder, result):
    assert result.code == 0, result.err
    for name in ("shear_flow.gif", "gray_scott.gif", "error_growth.png", "unseen/gray_scott.hdf5"):
        assert (folder / name).stat().st_size > 1000
    assert "VRMSE of unseen trajectories from frame 16 on (the first is 0), by lead time" in result.out
    assert "shear flow, persistence" in result.out
    assert "beats persistence at every lead time" in result.out or "does NOT beat persistence" in result.out
    demo._clear(folder, overwrite=True)
    assert list(folder.iterdir()) == []


def test_the_demo_simulates_forecasts_with_walrus_nano_and_draws(run, short, tmp_path):
    result = run("demo", "--output", tmp_path / "demo")
    assert "WalrusPipeline.from_pretrained('walrus-nano')" in result.out
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {
        "unseen", "shear_flow.gif", "gray_scott.gif", "error_growth.png",
    }  # fmt: skip
    shown(tmp_path / "demo", result)


def test_the_demo_forecasts_with_the_model_that_it_has_trained(run, short, tmp_path, monkeypatch):
    def train(output, minutes):
        assert minutes == 0.5
        assert (output / "data" / "shear_flow.hdf5").is_file()
        WalrusPipeline(small_model(field2id=None)).save_pretrained(output / "model")

    monkeypatch.setattr(demo, "_train", train)
    result = run("demo", "--train", "--minutes", "0.5", "--output", tmp_path / "demo")
    assert f"WalrusPipeline.from_pretrained('{tmp_path / 'demo' / 'model'}')" in result.out
    shown(tmp_path / "demo", result)


def test_the_recipe_of_the_training_is_one_that_pretraining_takes(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(
        subprocess, "run", lambda command, check: commands.append(command) or subprocess.CompletedProcess(command, 0)
    )
    demo._train(tmp_path, 0.5)
    recipe = PretrainingArguments(**read_recipe(tmp_path / "recipe.yaml"))
    assert (recipe.max_seconds, recipe.output_dir) == (30, str(tmp_path))
    assert recipe.config().tokens_per_axis == 8
    assert commands[0][-2:] == ["--config", str(tmp_path / "recipe.yaml")]
    assert "walrus_hf.training" in commands[0]


@pytest.mark.slow
def test_the_demo_trains_from_scratch(tmp_path):
    pytest.importorskip("exponax")
    program = "from walrus_hf.cli import demo, main; demo.TRAIN_TRAJECTORIES = 3; main()"
    command = [sys.executable, "-c", program, "demo", "--train"]
    command += ["--output", str(tmp_path / "demo"), "--minutes", "0.05"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = read_metrics(tmp_path / "demo")
    assert {name for row in rows for name in row["losses"]} <= {"shear_flow", "gray_scott"}
    assert (tmp_path / "demo" / "model" / "model.safetensors").stat().st_size > 1000
    assert "pretrain: 100%" in done.stderr  # the progress bar
    assert "scenario=" in done.stderr
    demo._clear(tmp_path / "demo", overwrite=True)
    assert list((tmp_path / "demo").iterdir()) == []
