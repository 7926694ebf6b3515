"""`walrus-hf evaluate`: a table on the screen, and a folder with every value."""

import json
from pathlib import Path

import numpy as np
import pandas
import pytest

from walrus_hf import WalrusPipeline, load_well, save_well
from walrus_hf.metrics import persistence, score

from .conftest import simulation

WINDOWS = ["--window", "1", "--window", "1:6"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("WALRUS_HF_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def evaluate(file, model):
    return ["evaluate", "--model", model, "--data", file, "--from", "6", *WINDOWS]


def test_the_table_is_that_of_the_forecasts_and_needs_no_folder(run, evaluate, file, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*evaluate, "--seed", "4")
    assert result.code == 0, result.err
    assert "simulation: Median VRMSE over 2 trajectories" in result.out
    assert list(tmp_path.iterdir()) == []
    pipe = WalrusPipeline.from_pretrained(model)
    errors, still = [], []
    for index in range(2):
        truth = load_well(file, index)
        forecast = pipe.predict(truth.frames(0, 6), 6, seed=4, progress=False)
        errors.append(score(forecast, truth.frames(6))["pressure"].mean())
        still.append(score(persistence(truth.frames(0, 6), 6), truth.frames(6))["pressure"].mean())
    (row,) = [line for line in result.out.splitlines() if "pressure" in line and "model" in line]
    assert f" {np.median(errors):.4f} " in row
    (row,) = [line for line in result.out.splitlines() if "pressure" in line and "persistence" in line]
    assert f" {np.median(still):.4f} " in row


def test_frames_further_apart_are_asked_for_by_their_stride(run, evaluate, tmp_path):
    output = tmp_path / "results"
    done = run(*evaluate[:-6], "--from", "3", "--window", "1", "--frame-stride", "2", "--output", output)
    assert done.code == 0, done.err
    content = json.loads((output / "results.json").read_text())
    assert content["protocol"]["frame_stride"] == content["scenarios"]["simulation"]["transforms"]["time_stride"] == 2


def test_the_folder_holds_table_json_and_parquet(run, evaluate, model, tmp_path):
    output = tmp_path / "results"
    result = run(*evaluate, "--output", output, "--baseline", "linear_extrapolation", "--keep", "1")
    assert result.code == 0, result.err
    assert f"wrote {output}" in result.out
    assert {str(p.relative_to(output)) for p in output.rglob("*") if p.is_file()} == {
        "results.json", "table.md", "trajectories.parquet", "forecasts/simulation-0-forecast.hdf5",
        "forecasts/simulation-0-truth.hdf5",
    }  # fmt: skip
    content = json.loads((output / "results.json").read_text())
    assert content["format"] == "walrus_hf.evaluation/1"
    assert content["model"]["name"] == model
    assert content["protocol"]["start"] == 6
    assert content["protocol"]["windows"] == {"1": [1, 1], "1:6": [1, 6]}
    assert content["protocol"]["jitter"] is True
    found = content["scenarios"]["simulation"]["forecasters"]
    assert list(found) == ["model", "persistence", "linear_extrapolation"]
    table = pandas.read_parquet(output / "trajectories.parquet")
    assert len(table) == 3 * 2 * 2 * 6  # forecasters, trajectories, fields, steps
    mine = table[(table.forecaster == "model") & (table.field == "velocity")]
    mean = mine.groupby("trajectory").vrmse.mean().mean()
    assert found["model"]["windows"]["1:6"]["velocity"]["mean"] == pytest.approx(mean)
    assert f"{mean:.4f}" in (output / "table.md").read_text()
    assert load_well(output / "forecasts" / "simulation-0-forecast.hdf5").num_frames == 6


def test_several_data_may_follow_and_names_are_kept_apart(run, evaluate, tmp_path):
    other = tmp_path / "simulation.hdf5"
    save_well(simulation(9, seed=5), other)
    result = run(*evaluate, other, "--data", save_well(simulation(2), tmp_path / "short.hdf5"), "--trajectories", "1")
    assert result.code == 0, result.err
    assert "simulation: Median VRMSE over 1 trajectory" in result.out
    assert "simulation-2: Median VRMSE over 1 trajectory" in result.out
    assert "short: No forecast" in result.out
    assert "note: short: 1 of 1 trajectories are too short to forecast" in result.out
    assert "note: simulation-2: window 1:6: covered by 0 of 1 trajectories, the shortest of which" in result.out
    assert "note: simulation-2: --steps 6 would begin earlier and cover 1:6" in result.out


def test_data_are_named_without_their_option_too_and_must_be_named(run, refused, file, model):
    rest = ["--model", model, "--from", "6", *WINDOWS]
    assert run("evaluate", *rest, file).out == run("evaluate", *rest, "--data", file).out
    assert "expected data to forecast, found none; name files or folders" in refused("evaluate", *rest)


def test_the_published_windows_and_start_are_the_default(run, file, model):
    result = run("evaluate", "--model", model, "--data", file, "--protocol", "walrus")
    assert result.code == 0, result.err
    assert "1:20" in result.out
    assert "note: simulation: start moved from frame 17 to 11 in 2 of 2 trajectories" in result.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--from", "1"), "Invalid value for '--from'"),
        (("--batch-size", "9"), "Invalid value for '--batch-size'"),
        (("--window", "20:1"), "window '20:1': expected 1 <= first step <= last step"),
        (("--window", "x"), "expected a lead time or two, such as 1 or 11:30"),
        (("--protocol", "mine"), "--protocol: expected 'walrus'"),
        (("--baseline", "gone"), "expected the folder of a trained baseline or one of persistence"),
        (("--baseline", "dmd", "--baseline", "dmd"), "--baseline: expected different names, found 'dmd' twice"),
        (("--ensemble", "2", "--no-jitter"), "without jitter all members are equal"),
        (("--split", "all"), "split: expected one of train, valid, test"),
        (("--field-name", "="), "--field-name: expected OWN=KNOWN"),
        (("--data", "gone"), "unknown scenario 'gone'"),
        (("--model", "./gone"), "expected the folder of a checkpoint, found none"),
    ],
)
def test_options_that_make_no_sense_are_refused(run, evaluate, options, message, tmp_path):
    result = run(*evaluate, *options, "--output", tmp_path / "results")
    assert result.code == 2
    assert message in " ".join(result.err.replace("│", " ").split())
    assert "Traceback" not in result.err
    assert list(tmp_path.iterdir()) == []


def test_data_of_which_the_model_can_forecast_nothing_are_no_success(run, evaluate):
    result = run(*evaluate, "--tokens-per-axis", "0")
    assert result.code == 2
    assert "note: simulation: the model cannot forecast this" in result.out
    assert "persistence" in result.out
    assert result.err.splitlines()[-1] == (
        "error: data: expected something that the model can forecast, found nothing; the notes say why"
    )


def test_a_field_name_that_no_data_have_is_told(run, evaluate):
    result = run(*evaluate, "--steps", "1", "--field-name", "Pressure=density")
    assert result.code == 0
    assert "note: --field-name Pressure: no field that is scored has this name" in result.out


def test_a_path_where_nothing_is_no_misspelt_scenario(refused, evaluate, tmp_path):
    for data in (tmp_path / "gone.hdf5", "./gone", "gone.hdf5"):
        given = [*evaluate[:4], str(data), *evaluate[5:]]
        assert f"{data}: expected a file or a folder, found none; check the path" in refused(*given)


def test_existing_results_are_kept_unless_they_may_be_overwritten(refused, run, evaluate, tmp_path):
    output = tmp_path / "results"
    assert run(*evaluate, "--output", output, "--steps", "1").code == 0
    assert "holds results already" in refused(*evaluate, "--output", output)
    assert run(*evaluate, "--output", output, "--steps", "2", "--overwrite").code == 0
    assert json.loads((output / "results.json").read_text())["protocol"]["steps"] == 2
    file = tmp_path / "file"
    file.write_text("mine")
    assert "expected a folder for the results, found a file" in refused(*evaluate, "--output", file)


def test_a_full_disk_stops_with_one_line_and_leaves_the_old_results(run, evaluate, tmp_path, monkeypatch):
    output = tmp_path / "results"
    assert run(*evaluate, "--output", output, "--steps", "1").code == 0
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    write = Path.write_text

    def half(self, text, **kwargs):
        write(self, text[:100])
        if "simulation-1" in self.name:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    result = run(*evaluate, "--output", output, "--steps", "2", "--overwrite")
    assert result.code == 1
    last = result.err.splitlines()[-1]
    assert "simulation-1.json: expected to write the file, found No space left on device" in last
    assert {path: path.read_bytes() for path in before} == before
    assert not list((output / "partial").glob("*simulation-1*"))
