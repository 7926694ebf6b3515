"""`walrus-hf evaluate`: scores of all trajectories beside persistence, as a table and as JSON."""

import json
from pathlib import Path

import numpy as np
import pytest

from walrus_hf import WalrusPipeline, load_well, save_well
from walrus_hf.metrics import persistence

from .conftest import simulation


@pytest.fixture
def evaluate(file, model):
    return ["evaluate", "--model", model, "--data", file, "--from", "6"]


def test_the_scores_are_those_of_the_forecasts(run, evaluate, file, model, tmp_path):
    result = run(*evaluate, "--json", tmp_path / "scores.json", "--seed", "4")
    assert result.code == 0, result.err
    assert "VRMSE, median over 2 trajectories (persistence in brackets)" in result.out
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]
    content = json.loads((tmp_path / "scores.json").read_text())
    assert content["settings"] == {
        "model": model, "revision": None, "data": file, "from": 6, "steps": 6, "seed": 4, "jitter": True,
        "tokens_per_axis": None,
    }  # fmt: skip
    pipe = WalrusPipeline.from_pretrained(model)
    expected = []
    for index, found in enumerate(content["trajectories"]):
        truth = load_well(file, index)
        predicted = pipe.predict(truth.frames(0, 6), 6, seed=4 + index, progress=False)
        scores = pipe.evaluate(predicted, truth)
        assert found["model"]["pressure"] == pytest.approx(scores["pressure"], rel=1e-5)
        still = pipe.evaluate(persistence(truth.frames(0, 6), 6), truth)
        assert found["persistence"]["velocity"] == pytest.approx(still["velocity"], rel=1e-5)
        expected.append(scores["pressure"]["1:6"])
    median = content["median_vrmse"]["model"]["pressure"]["1:6"]
    assert median == pytest.approx(np.median(expected), rel=1e-5)
    assert f"{median:.4f}" in result.out


def test_steps_and_trajectories_can_be_limited(run, evaluate, tmp_path):
    result = run(*evaluate, "--steps", "2", "--trajectories", "1", "--json", tmp_path / "scores.json")
    assert result.code == 0, result.err
    assert "median over 1 trajectories" in result.out
    content = json.loads((tmp_path / "scores.json").read_text())
    assert list(content["median_vrmse"]["model"]["all fields"]) == ["1:1", "1:2"]
    assert len(content["trajectories"]) == 1


def test_a_forecast_that_blows_up_is_null_in_the_json(run, evaluate, tmp_path, monkeypatch):
    predict = WalrusPipeline.predict

    def blown_up(self, *arguments, **kwargs):
        forecast = predict(self, *arguments, **kwargs)
        forecast.fields["pressure"][2:] = np.nan
        return forecast

    monkeypatch.setattr(WalrusPipeline, "predict", blown_up)
    assert run(*evaluate, "--json", tmp_path / "scores.json").code == 0
    text = (tmp_path / "scores.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["median_vrmse"]["model"]["pressure"]["1:6"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--from", "1"), "--from 1: expected a frame from 2 to 11, with 2 frames before it to forecast from"),
        (("--from", "12"), "--from 12: expected a frame from 2 to 11"),
        (("--steps", "7"), "--steps 7: expected at most 6, the frames of the file from frame 6 on"),
        (("--field-name", "="), "--field-name: expected OWN=KNOWN"),
        (("--json", "scores.txt"), "expected a file name ending in .json"),
        (("--json", "gone/scores.json"), "create it first"),
        (("--data", "gone.hdf5"), "expected an HDF5 file, found none"),
        (("--model", "./gone"), "expected the folder of a checkpoint, found none"),
        (("--tokens-per-axis", "0"), "at least one token"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_one_line(refused, evaluate, options, message):
    assert message in refused(*evaluate, *options)


def test_a_file_that_is_too_short_is_refused(refused, model, tmp_path):
    short = save_well(simulation(2), tmp_path / "short.hdf5")
    assert "found a file of 2 frames" in refused("evaluate", "--model", model, "--data", short, "--from", "2")


def test_existing_scores_are_kept_unless_they_may_be_overwritten(refused, run, evaluate, tmp_path):
    scores = tmp_path / "scores.json"
    scores.write_text("old")
    assert "scores.json exists" in refused(*evaluate, "--json", scores)
    assert run(*evaluate, "--steps", "1", "--json", scores, "--overwrite").code == 0
    assert json.loads(scores.read_text())["settings"]["steps"] == 1


@pytest.mark.parametrize("old", [False, True])
def test_a_full_disk_leaves_no_half_written_scores(run, evaluate, tmp_path, monkeypatch, old):
    scores = tmp_path / "scores.json"
    if old:
        scores.write_text("old")
    write = Path.write_text

    def half(self, text, **kwargs):
        write(self, text[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    result = run(*evaluate, "--steps", "1", "--json", scores, *["--overwrite"] * old)
    assert result.code == 1
    assert "scores.json: expected to write the file, found No space left on device" in result.err.splitlines()[-1]
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == ({"scores.json": "old"} if old else {})
