"""Metrics arrive on dashboards, and trackers that are not there are refused instead of passed over."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("datasets")

from walrus_hf.training import loop, trackers
from walrus_hf.training.records import read_metrics

from .small_runs import cpu_environment, settings

pytestmark = pytest.mark.usefixtures("on_the_cpu")


def run_with(folder, output, log_with):
    """Two steps; the rows of metrics.jsonl as trackers get them."""
    quick = {"max_steps": 2, "save_steps": 2, "validation_steps": 0}
    loop.pretrain(settings(folder / "data", output, log_with=log_with, **quick))
    rows = [trackers.flat(row) for row in read_metrics(output)]
    assert rows[0].keys() >= {"loss", "losses/plane", "field_losses/pressure", "grad_norm", "measured_utilisation"}
    return rows


def test_nothing_named_is_trackio_where_it_is_installed_and_else_the_file_alone(monkeypatch, capsys, folder, tmp_path):
    monkeypatch.setattr(trackers, "find_spec", lambda name: name)
    assert trackers.chosen_trackers(None) == ["trackio"]
    assert trackers.chosen_trackers(["none"]) == []
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    run_with(folder, tmp_path / "run", None)
    assert capsys.readouterr().out.count("pip install trackio") == 1
    run_with(folder, tmp_path / "other", ["none"])
    assert "pip install" not in capsys.readouterr().out


def test_a_tracker_that_is_unknown_or_not_installed_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"log_with: expected none, or some of .*tensorboard.*, found 'tensorbord'"):
        trackers.chosen_trackers(["tensorbord"])
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: [])
    with pytest.raises(ValueError, match=r"found 'wandb'; pip install wandb"):
        trackers.chosen_trackers(["wandb"])


def test_tensorboard_gets_the_numbers_of_the_file(folder, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = run_with(folder, tmp_path, ["tensorboard"])
    events = EventAccumulator(str(tmp_path / "walrus_hf"))
    events.Reload()
    for name in rows[0]:
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(step, pytest.approx(row[name], rel=1e-6)) for step, row in enumerate(rows, 1)]


IN_A_PROCESS_OF_ITS_OWN = """
import sys
from pathlib import Path
from tests.training.small_runs import cpu_environment, settings
from trackio.cli import main
from walrus_hf.training.loop import pretrain

data, output = map(Path, sys.argv[1:])
quick = {"log_with": None, "max_steps": 3, "save_steps": 2, "validation_steps": 0}
pretrain(settings(data, output, **quick))
pretrain(settings(data, output, resume_from_checkpoint=str(output / "step-00000002"), **quick))
print("found")
sys.argv = "trackio get metric --project walrus_hf --run output --metric losses/plane --json".split()
main()
"""


@pytest.mark.slow
def test_trackio_gets_the_numbers_of_the_file_and_goes_on_after_a_resume(folder, tmp_path):
    pytest.importorskip("trackio")
    output = tmp_path / "output"
    command = [sys.executable, "-c", IN_A_PROCESS_OF_ITS_OWN, str(folder / "data"), str(output)]
    environment = {**cpu_environment(), "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    found, _ = json.JSONDecoder().raw_decode(done.stdout.partition("\nfound\n")[2])  # it says more when it ends
    expected = [(row["step"], row["losses"]["plane"]) for row in read_metrics(output)]
    # The third step came twice.
    assert [(value["step"], value["value"]) for value in found["values"]] == [*expected, expected[-1]]


@pytest.mark.slow
def test_wandb_gets_the_numbers_of_the_file_without_a_network(folder, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    rows = run_with(folder, tmp_path, ["wandb"])
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    written = file.read_bytes()  # numbers are in there as JSON
    for row in rows:
        for name in ("losses/plane", "grad_norm", "field_losses/pressure"):
            assert name.encode() in written
            assert json.dumps(row[name]).encode() in written
