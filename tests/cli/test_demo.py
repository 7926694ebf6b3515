"""`walrus-hf demo` refuses before it simulates; what it shows is tested by running it."""

import subprocess
import sys

import pytest

from walrus_hf.cli import demo
from walrus_hf.training.records import read_metrics


def test_a_folder_with_something_in_it_is_kept(refused, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "run.hdf5").write_text("mine")
    message = refused("demo", "--output", tmp_path)
    assert "is not empty; choose another folder, or replace a former demo with --overwrite" in message


def test_overwrite_replaces_a_former_demo_and_nothing_else(refused, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    assert "found 'notes.txt' in it; choose another folder" in refused("demo", "--output", tmp_path, "--overwrite")
    (tmp_path / "notes.txt").unlink()
    demo._clear(tmp_path, overwrite=True)
    assert list(tmp_path.iterdir()) == []


def test_a_file_as_output_is_refused(refused, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "expected a folder, found a file" in refused("demo", "--output", tmp_path / "file")


def test_missing_packages_are_named_with_the_command_that_installs_them(refused, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    assert "pip install 'walrus-hf[plot,sim,train]'" in refused("demo", "--output", tmp_path / "out")


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


def test_the_demo_simulates_trains_forecasts_and_draws(tmp_path):
    pytest.importorskip("exponax")
    program = "from walrus_hf.cli import demo, main; demo.TRAIN_TRAJECTORIES = 3; main()"
    command = [sys.executable, "-c", program, "demo"]
    command += ["--output", str(tmp_path / "demo"), "--minutes", "0.05"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("shear_flow.gif", "gray_scott.gif", "error_growth.png", "model/model.safetensors"):
        assert (tmp_path / "demo" / name).stat().st_size > 1000
    rows = read_metrics(tmp_path / "demo")
    assert {name for row in rows for name in row["losses"]} <= {"shear_flow", "gray_scott"}
    assert "pretrain: 100%" in done.stderr  # the progress bar
    assert "scenario=" in done.stderr
    assert "VRMSE of unseen trajectories by lead time" in done.stdout
    assert "shear flow, persistence" in done.stdout
    assert "beats persistence at every lead time" in done.stdout or "does NOT beat persistence" in done.stdout
    demo._clear(tmp_path / "demo", overwrite=True)
    assert list((tmp_path / "demo").iterdir()) == []
