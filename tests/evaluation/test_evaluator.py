"""An evaluation gives the errors of the pipeline's own forecasts, however it is batched, read, stopped or repeated."""

import dataclasses
import json
import os
import shutil
import types
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

from walrus_hf import WalrusPipeline, load_well, save_well
from walrus_hf.evaluation import Protocol, compare, evaluate
from walrus_hf.evaluation import evaluator as module
from walrus_hf.evaluation import folder as folder_module
from walrus_hf.evaluation.baselines import DynamicModeDecomposition
from walrus_hf.evaluation.evaluator import read_ahead
from walrus_hf.evaluation.sources import EvaluatedScenario
from walrus_hf.metrics import every_frame, nrmse, persistence, score
from walrus_hf.modeling_walrus import WalrusForPrediction

from ..data.http_server import RangeServer
from ..small_model import small_model
from ..test_parity import parity_model
from .conftest import QUICK, WINDOWS, Named, noise


def run(pipe, data, output=None, protocol=QUICK, **kwargs):
    return evaluate(pipe, data, output, protocol, progress=False, **kwargs)


def table_of(folder):
    return pandas.read_parquet(folder / "trajectories.parquet")


def errors_of(folder, forecaster="model", field="pressure", trajectory=0, kind="vrmse"):
    table = table_of(folder)
    rows = (table.forecaster == forecaster) & (table.field == field) & (table.trajectory == trajectory)
    return table[rows].sort_values("lead_time")[kind].to_numpy()


@pytest.mark.parametrize("hold_scales", [False, True])
def test_errors_are_those_of_the_pipelines_forecasts(pipe, runs, tmp_path, monkeypatch, hold_scales):
    monkeypatch.setattr(pipe.processor, "hold_scales", hold_scales)
    results = run(pipe, runs, tmp_path / "out", dataclasses.replace(QUICK, seed=3))
    means = []
    for i in range(3):
        truth = load_well(runs, i)
        forecast = pipe.predict(truth.frames(0, 6), 6, seed=3, progress=False)
        expected = score(forecast, truth.frames(6))
        still = score(persistence(truth.frames(0, 6), 6), truth.frames(6))
        for field in ("pressure", "velocity"):
            np.testing.assert_allclose(
                errors_of(tmp_path / "out", field=field, trajectory=i), expected[field], rtol=1e-5
            )
            found = errors_of(tmp_path / "out", "persistence", field, i)
            np.testing.assert_allclose(found, still[field], rtol=1e-5)
        norm = nrmse(forecast.fields["pressure"], truth.fields["pressure"][6:], (1, 2))
        np.testing.assert_allclose(errors_of(tmp_path / "out", trajectory=i, kind="nrmse"), norm, rtol=1e-5)
        means.append(np.mean([expected["pressure"], expected["velocity"]], axis=0))
    found = results["scenarios"]["runs"]["forecasters"]["model"]
    for name, (first, last) in WINDOWS.items():
        of_windows = np.mean(means, axis=0)[first - 1 : last].mean(), np.array(means)[:, first - 1 : last].mean(axis=1)
        assert found["windows"][name]["mean of fields"]["mean"] == pytest.approx(of_windows[0], rel=1e-5)
        assert found["windows"][name]["mean of fields"]["median"] == pytest.approx(np.median(of_windows[1]), rel=1e-5)
        assert found["windows"][name]["mean of fields"]["count"] == 3
    assert found["lead_time"]["mean of fields"]["median"] == pytest.approx(np.median(means, axis=0).tolist(), rel=1e-5)


def test_errors_are_the_wells_of_the_forecasts_that_are_kept(pipe, runs, tmp_path):
    well = pytest.importorskip("the_well.benchmark.metrics.spatial")
    results = run(pipe, runs, tmp_path / "out", kept_forecasts=2)
    meta = types.SimpleNamespace(n_spatial_dims=2)
    assert [entry["trajectory"] for entry in results["forecast_files"]] == [0, 1]
    for entry in results["forecast_files"]:
        forecast, truth = (load_well(tmp_path / "out" / entry[kind]) for kind in ("forecast", "truth"))
        assert truth.time == forecast.time == pytest.approx(3.0)
        for field, rank in (("pressure", 0), ("velocity", 1)):
            both = [torch.tensor(x.fields[field], dtype=torch.float64) for x in (forecast, truth)]
            both = [x if rank else x[..., None] for x in both]
            expected = well.VRMSE()(*both, meta).mean(-1).numpy()
            found = errors_of(tmp_path / "out", field=field, trajectory=entry["trajectory"])
            np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_no_digit_depends_on_workers_and_one_step_hardly_on_the_batch(pipe, runs, tmp_path):
    files = [runs, save_well([noise(seed=7, grid=(8, 16, 8))], tmp_path / "volume.hdf5")]
    for name, settings in {"plain": {}, "threads": {"workers": 3}, "batch": {"batch_size": 3}}.items():
        run(pipe, files, tmp_path / name, **settings)
    for file in ("results.json", "table.md"):
        assert (tmp_path / "plain" / file).read_text() == (tmp_path / "threads" / file).read_text()
    assert table_of(tmp_path / "plain").equals(table_of(tmp_path / "threads"))
    one, batched = (table_of(tmp_path / name) for name in ("plain", "batch"))
    first = one.lead_time == 1
    np.testing.assert_allclose(batched.vrmse[first], one.vrmse[first], rtol=1e-5)
    np.testing.assert_allclose(batched.vrmse, one.vrmse, rtol=0.05)


def test_batches_hold_alike_trajectories_of_one_group_of_seeds(pipe, tmp_path, monkeypatch):
    long, short = noise(frames=9), noise(frames=8)
    files = tmp_path / "mixed"
    files.mkdir()
    save_well([dataclasses.replace(long, name=f"a_{i}") for i in range(10)], files / "a.hdf5")
    save_well([dataclasses.replace(short, name="b_0")], files / "b.hdf5")
    sizes, rollout = [], WalrusForPrediction.rollout

    def counted(self, *args, **kwargs):
        sizes.append(len(kwargs["field_values"]))
        return rollout(self, *args, **kwargs)

    monkeypatch.setattr(WalrusForPrediction, "rollout", counted)
    results = run(pipe, files, tmp_path / "out", batch_size=5, kept_forecasts=0)
    assert sizes == [5, 3, 2, 1]  # eight share a seed
    assert results["scenarios"]["mixed"]["frames"] == [8, 9]
    windows = results["scenarios"]["mixed"]["forecasters"]["model"]["windows"]
    assert windows["1"]["pressure"]["count"] == 11
    assert "1:4" not in windows
    errors = [errors_of(tmp_path / "out", trajectory=i) for i in range(10)]
    np.testing.assert_allclose(errors[0], errors[7], rtol=1e-5)
    assert not np.allclose(errors[0], errors[8], rtol=1e-5)


def test_reading_ahead_keeps_the_order_and_begins_no_more_than_asked():
    begun = []

    def reads():
        for i in range(10):
            begun.append(i)
            yield lambda i=i: i

    found = read_ahead(reads(), workers=2)
    assert next(found) == 0
    assert begun == [0, 1, 2]
    assert list(found) == list(range(1, 10))


# --- stopping and going on ------------------------------------------------------------------------------------------


class KilledError(Exception):
    pass


@pytest.fixture
def counted(monkeypatch):
    """The trajectories that are forecast; the one after `stop_after` kills the evaluation."""
    forecast, state = module._Run._batch, {"numbers": [], "stop_after": 99}

    def batch(self, data, walrus, trajectories, stream):
        if len(state["numbers"]) >= state["stop_after"]:
            raise KilledError
        state["numbers"] += [t.number for t in trajectories]
        return forecast(self, data, walrus, trajectories, stream)

    monkeypatch.setattr(module._Run, "_batch", batch)
    return state


def test_an_evaluation_that_was_killed_goes_on_without_repeating_anything(pipe, runs, tmp_path, counted):
    run(pipe, runs, tmp_path / "whole")
    counted.update(numbers=[], stop_after=2)
    with pytest.raises(KilledError):
        run(pipe, runs, tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["partial"]
    counted.update(numbers=[], stop_after=99)
    run(pipe, runs, tmp_path / "out")
    assert counted["numbers"] == [2]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "forecasts", "results.json", "table.md", "trajectories.parquet",
    ]  # fmt: skip
    for file in ("results.json", "table.md"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_an_evaluation_that_was_killed_while_it_wrote_its_results_can_finish(
    pipe, runs, tmp_path, counted, monkeypatch
):
    run(pipe, runs, tmp_path / "whole")
    replace = os.replace

    def killed(source, target):
        if Path(target) == tmp_path / "out" / "table.md":
            raise KilledError
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KilledError):
            run(pipe, runs, tmp_path / "out")
    counted["numbers"] = []
    run(pipe, runs, tmp_path / "out")
    assert counted["numbers"] == []
    for name in ("whole", "out"):
        files = sorted(str(f.relative_to(tmp_path / name)) for f in (tmp_path / name).rglob("*") if f.is_file())
        assert len(files) == 3 + 4
    for file in files:
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_data_on_a_server_are_measured_like_those_at_hand(pipe, runs, tmp_path):
    run(pipe, runs, tmp_path / "here")
    with RangeServer({"runs.hdf5": Path(runs).read_bytes()}) as server:
        run(pipe, server.url("runs.hdf5"), tmp_path / "there", workers=2)
    here, there = (table_of(tmp_path / name).drop(columns="source") for name in ("here", "there"))
    assert here.equals(there)


def test_an_evaluation_goes_on_after_the_network_has_failed(pipe, runs, tmp_path, counted, monkeypatch):
    read = EvaluatedScenario.truth

    def broken(self, trajectory, first, stop):
        if trajectory.number == 1:
            raise ConnectionError("connection reset")
        return read(self, trajectory, first, stop)

    with monkeypatch.context() as patch:
        patch.setattr(EvaluatedScenario, "truth", broken)
        with pytest.raises(OSError, match="connection reset"):
            run(pipe, runs, tmp_path / "out", workers=2)
    counted["numbers"] = []
    assert run(pipe, runs, tmp_path / "out")["scenarios"]["runs"]["trajectories"] == 3
    assert counted["numbers"] == [1, 2]


class Trained(Named):
    """A baseline that has learnt something."""

    def __init__(self, learnt):
        super().__init__(persistence)
        self.learnt = learnt

    def fingerprint(self):
        return self.learnt


def test_a_baseline_that_was_trained_anew_is_another_evaluation(pipe, runs, tmp_path, counted):
    counted["stop_after"] = 1
    with pytest.raises(KilledError):
        run(pipe, runs, tmp_path / "out", baselines={"mine": Trained("a")})
    counted["stop_after"] = 99
    with pytest.raises(FileExistsError, match="another evaluation"):
        run(pipe, runs, tmp_path / "out", baselines={"mine": Trained("b")})
    run(pipe, runs, tmp_path / "out", baselines={"mine": Trained("a")})


def test_a_decomposition_with_another_bound_of_growth_is_another_evaluation(pipe, runs, tmp_path, counted):
    counted["stop_after"] = 1
    with pytest.raises(KilledError):
        run(pipe, runs, tmp_path / "out", baselines={"dmd": DynamicModeDecomposition()})
    counted["stop_after"] = 99
    with pytest.raises(FileExistsError, match=r"\(baselines\.dmd: .*max_growth=1\.0, now .*max_growth=None\)"):
        run(pipe, runs, tmp_path / "out", baselines={"dmd": DynamicModeDecomposition(max_growth=None)})
    run(pipe, runs, tmp_path / "out", baselines={"dmd": DynamicModeDecomposition(1.0)})
    assert counted["numbers"] == [0, 1, 2]


def test_a_part_of_another_evaluation_is_not_continued(pipe, runs, tmp_path, counted):
    counted["stop_after"] = 1
    with pytest.raises(KilledError):
        run(pipe, runs, tmp_path / "out")
    counted["stop_after"] = 99
    other = dataclasses.replace(QUICK, seed=1)
    with pytest.raises(FileExistsError, match=r"another evaluation \(protocol.seed: 0, now 1\).*--overwrite"):
        run(pipe, runs, tmp_path / "out", other)
    with pytest.raises(FileExistsError, match=r"another evaluation \(protocol.frame_stride: 1, now 2\)"):
        run(pipe, runs, tmp_path / "out", dataclasses.replace(QUICK, frame_stride=2))
    model = WalrusPipeline(small_model(field2id=None))
    with pytest.raises(FileExistsError, match="another evaluation"):
        run(model, runs, tmp_path / "out")
    with pytest.raises(FileExistsError, match="another evaluation"):
        run(pipe, save_well([noise(seed=9)], tmp_path / "runs.hdf5"), tmp_path / "out")
    with pytest.raises(FileExistsError, match="another evaluation"):
        run(pipe, runs, tmp_path / "out", baselines={"mine": Named(persistence)})
    counted["numbers"] = []
    run(pipe, runs, tmp_path / "out", other, overwrite=True)
    assert counted["numbers"] == [0, 1, 2]


def test_an_evaluation_that_was_killed_before_its_settings_were_written_begins(pipe, runs, tmp_path, counted):
    (tmp_path / "out" / "partial").mkdir(parents=True)
    (tmp_path / "out" / "partial" / ".settings.json.0123abcd.tmp").write_text('{"format"')
    run(pipe, runs, tmp_path / "out")
    assert counted["numbers"] == [0, 1, 2]
    assert not (tmp_path / "out" / "partial").exists()


def test_an_evaluation_that_was_killed_while_its_parts_were_removed_can_be_replaced(pipe, runs, tmp_path, monkeypatch):
    rmtree = shutil.rmtree

    def killed(path, *args, **kwargs):
        if "partial" in Path(path).name and Path(path).is_dir():
            rmtree(Path(path) / "forecasts")
            raise KilledError
        rmtree(path, *args, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KilledError):
        run(pipe, runs, tmp_path / "out")
    monkeypatch.undo()
    expected = run(pipe, runs, tmp_path / "out", overwrite=True)["forecast_files"]
    assert len(expected) == 2
    for entry in expected:
        assert {(tmp_path / "out" / entry[what]).is_file() for what in ("forecast", "truth")} == {True}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "results.json", "trajectories.parquet", "table.md", "forecasts"
    }  # fmt: skip


def test_results_are_kept_until_new_ones_replace_them(pipe, runs, tmp_path, counted):
    run(pipe, runs, tmp_path / "out")
    old = {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()}
    with pytest.raises(FileExistsError, match="holds results already"):
        run(pipe, runs, tmp_path / "out")
    other = dataclasses.replace(QUICK, seed=1)
    counted.update(numbers=[], stop_after=2)
    with pytest.raises(KilledError):
        run(pipe, runs, tmp_path / "out", other, overwrite=True, kept_forecasts=1)
    assert {file: file.read_bytes() for file in old} == old
    counted.update(numbers=[], stop_after=99)
    (tmp_path / "out" / "mine.txt").write_text("kept")
    run(pipe, runs, tmp_path / "out", other, overwrite=True, kept_forecasts=1)
    assert counted["numbers"] == [2]
    assert (tmp_path / "out" / "mine.txt").read_text() == "kept"
    assert len(list((tmp_path / "out" / "forecasts").iterdir())) == 2
    assert json.loads((tmp_path / "out" / "results.json").read_text())["protocol"]["seed"] == 1


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_ones_own_that_is_called_partial_is_left_alone(pipe, runs, tmp_path, counted, overwrite):
    mine = tmp_path / "out" / "partial" / "thesis.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(FileExistsError, match=r"expected nothing but parts of an evaluation, found thesis\.txt"):
        run(pipe, runs, tmp_path / "out", overwrite=overwrite)
    assert mine.read_text() == "mine"
    assert counted["numbers"] == []


def test_without_a_folder_nothing_is_written(pipe, runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = run(pipe, runs)
    assert results["scenarios"]["runs"]["trajectories"] == 3
    assert not [file for file in tmp_path.iterdir() if file.name != "cache"]


# --- what can go wrong ----------------------------------------------------------------------------------------------


def test_a_forecast_that_overflows_is_a_failure_with_its_step_and_nobody_elses(pipe, runs, tmp_path, monkeypatch):
    rollout = WalrusForPrediction.rollout

    def blown_up(self, *args, **kwargs):
        for step, state in enumerate(rollout(self, *args, **kwargs), 1):
            state = state.clone()
            if step >= 3:
                state[1, 0] = torch.inf  # the second trajectory of the batch
            yield state

    whole = run(pipe, runs, tmp_path / "whole", batch_size=3)
    monkeypatch.setattr(WalrusForPrediction, "rollout", blown_up)
    results = run(pipe, runs, tmp_path / "out", batch_size=3)
    found = results["scenarios"]["runs"]
    assert found["forecasters"]["model"]["failures"] == [
        {"trajectory": 1, "step": 3, "reason": "field 'pressure' is not finite"}
    ]
    assert found["forecasters"]["persistence"]["failures"] == []
    assert "model: 1 of 3 forecasts failed, the first at step 3" in found["notes"]
    window = found["forecasters"]["model"]["windows"]["1:4"]["mean of fields"]
    assert (window["failed"], window["count"], window["mean"]) == (1, 3, np.inf)
    before = whole["scenarios"]["runs"]["forecasters"]["model"]["windows"]
    assert found["forecasters"]["model"]["windows"]["1"] == before["1"]
    np.testing.assert_array_equal(np.isinf(errors_of(tmp_path / "out", trajectory=1)), [False] * 2 + [True] * 4)
    for other in (0, 2):
        expected = errors_of(tmp_path / "whole", trajectory=other)
        np.testing.assert_array_equal(errors_of(tmp_path / "out", trajectory=other), expected)
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert stored["scenarios"]["runs"]["forecasters"]["model"]["windows"]["1:4"]["pressure"]["mean"] is None
    assert "1 of 3 failed" in (tmp_path / "out" / "table.md").read_text()
    assert load_well(tmp_path / "out" / "forecasts" / "runs-1-forecast.hdf5").num_frames == 2


def test_a_model_that_gives_nan_fails_everywhere_and_the_baselines_stand(runs):
    model = parity_model(torch.float32, tokens_per_axis=4, tokens_per_axis_3d=2)
    model.model.layers[0].space_mixing.down_proj.weight.data.fill_(torch.nan)
    found = run(WalrusPipeline(model), runs, batch_size=2)["scenarios"]["runs"]["forecasters"]
    assert [(f["trajectory"], f["step"]) for f in found["model"]["failures"]] == [(0, 1), (1, 1), (2, 1)]
    assert found["model"]["windows"]["1"]["pressure"]["median"] == np.inf
    assert found["model"]["physics"]["correlation_time"]["pressure"]["median"] == 1
    assert found["persistence"]["windows"]["1"]["pressure"]["median"] < np.inf


def test_values_that_are_not_finite_do_not_matter_in_fields_that_are_left_out(pipe, tmp_path):
    fields = noise().fields
    own = noise(**fields, vorticity=np.full((12, 16, 12), np.nan))
    found = run(pipe, save_well(own, tmp_path / "own.hdf5"))["scenarios"]["own"]
    assert found["trajectories"] == 1
    assert found["fields"] == ["pressure", "velocity"]


def test_fields_that_the_model_does_not_know_are_left_out_and_noted(pipe, tmp_path):
    fields = noise().fields
    own = noise(**fields, vorticity=fields["pressure"] ** 2)
    own.constant_fields["porosity"] = np.ones((16, 12))
    results = run(pipe, save_well(own, tmp_path / "own.hdf5"), tmp_path / "out")
    found = results["scenarios"]["own"]
    assert found["fields"] == ["pressure", "velocity"]
    for name in ("vorticity", "porosity"):
        assert f"field '{name}' is not in the model's vocabulary: left out and not scored" in found["notes"]
    alone = run(pipe, save_well(noise(), tmp_path / "alone.hdf5"))["scenarios"]["alone"]["forecasters"]["model"]
    assert found["forecasters"]["model"]["windows"] == alone["windows"]


def test_other_grids_than_the_checkpoint_saw_are_noted(pipe, runs):
    for _ in range(2):
        notes = run(pipe, runs)["scenarios"]["runs"]["notes"]
        assert sum("(16, 12, 1) is outside the published stride table" in note for note in notes) == 1


def test_changes_that_the_model_takes_for_noise_are_noted(pipe, tmp_path):
    fields = {name: values.astype(np.float32) for name, values in noise().fields.items()}
    fields["pressure"] *= 1e-7
    notes = run(pipe, save_well(noise(**fields), tmp_path / "small.hdf5"))["scenarios"]["small"]["notes"]
    small = [note for note in notes if "smallest scale" in note]
    assert len(small) == 1
    assert small[0].startswith("field 'pressure' changes by less than the model's smallest scale of 1e-05 a frame")


def test_truths_whose_variance_eps_hides_are_noted(pipe, tmp_path):
    fields = {name: values.astype(np.float32) for name, values in noise().fields.items()}
    fields["pressure"] *= 1e-5
    notes = run(pipe, save_well(noise(**fields), tmp_path / "hidden.hdf5"))["scenarios"]["hidden"]["notes"]
    (hidden,) = [note for note in notes if "scores too well" in note]
    assert hidden.startswith("field 'pressure' varies in space by less than 1e-03 of its units")


def test_data_that_the_model_cannot_forecast_leave_the_baselines(pipe, tmp_path):
    strange = noise(vorticity=np.random.default_rng(0).normal(size=(12, 16, 12)).cumsum(0))
    narrow = noise(grid=(16, 4))
    files = [
        save_well(data, tmp_path / f"{name}.hdf5") for name, data in {"strange": strange, "narrow": narrow}.items()
    ]
    results = run(pipe, files, tmp_path / "out")["scenarios"]
    for name, why in {"strange": "vocabulary has none of the fields vorticity", "narrow": "cells"}.items():
        assert list(results[name]["forecasters"]) == ["persistence"]
        assert any("the model cannot forecast this" in note and why in note for note in results[name]["notes"])


def test_grids_that_the_model_cannot_forecast_do_not_spoil_the_others(pipe, tmp_path):
    for name, grid in {"a": (16, 4), "b": (16, 12)}.items():
        fields = {field: np.random.default_rng(0).normal(size=(12, *grid)).cumsum(0) for field in ("own", "pressure")}
        (tmp_path / "data").mkdir(exist_ok=True)
        save_well(noise(grid=grid, **fields), tmp_path / "data" / f"{name}.hdf5")
    (found,) = run(pipe, tmp_path / "data", tmp_path / "out")["scenarios"].values()
    assert found["fields"] == ["pressure"]
    counts = {who: scores["windows"]["1"]["pressure"]["count"] for who, scores in found["forecasters"].items()}
    assert counts == {"persistence": 2, "model": 1}
    assert any("files on 2 grids, 16 x 4, 16 x 12" in note for note in found["notes"])


def test_trajectories_that_are_too_short_or_damaged_are_left_out_and_noted(pipe, tmp_path):
    spoiled = [noise(frames=20, seed=i) for i in range(3)]
    spoiled[1].fields["pressure"][8, 2, 2] = np.nan
    spoiled[2].fields["velocity"][3, 2, 2] = np.inf
    files = tmp_path / "mixed"
    files.mkdir()
    save_well(spoiled, files / "a.hdf5")
    save_well(noise(frames=2), files / "b.hdf5")
    save_well(noise(frames=5), files / "c.hdf5")
    found = run(pipe, files, tmp_path / "out", batch_size=3)["scenarios"]["mixed"]
    assert found["trajectories"] == 2
    notes = "\n".join(found["notes"])
    assert "1 of 5 trajectories are too short to forecast: expected at least 3 frames, found 2" in notes
    assert "start moved from frame 6 to 4 in 1 of 5 trajectories, which have 5 frames" in notes
    assert "windows 1:4, 3:6: covered by 3 of 4 trajectories, the shortest of which have 1 steps" in notes
    assert "trajectory 1 was left out: its truth is not finite: field 'pressure', frame 8" in notes
    assert "trajectory 2 was left out: of the 6 frames before the start, field 'velocity', frame 3: expected" in notes
    assert "trajectory 1 was left out" in (tmp_path / "out" / "table.md").read_text()


def test_a_source_without_a_usable_trajectory_is_a_line_in_the_table(pipe, tmp_path):
    results = run(pipe, save_well(noise(frames=2), tmp_path / "short.hdf5"), tmp_path / "out")
    assert results["scenarios"]["short"]["trajectories"] == 0
    assert results["scenarios"]["short"]["forecasters"] == {}
    assert "too short to forecast" in (tmp_path / "out" / "table.md").read_text()
    assert table_of(tmp_path / "out").empty


def test_a_baseline_that_cannot_forecast_has_failed_and_a_wrong_one_stops_the_evaluation(pipe, runs, tmp_path):
    def refuse(context, steps):
        raise ValueError("expected 9 frames,\nfound 6")

    found = run(pipe, runs, tmp_path / "out", baselines={"mine": Named(refuse)})["scenarios"]["runs"]["forecasters"]
    assert found["mine"]["failures"][0] == {"trajectory": 0, "step": 1, "reason": "expected 9 frames, found 6"}
    assert found["mine"]["windows"]["1"]["pressure"]["median"] == np.inf
    assert "/ failed | " in (tmp_path / "out" / "table.md").read_text()
    with pytest.raises(TypeError, match="expected a forecast of fields and shapes"):
        run(pipe, runs, baselines={"mine": Named(lambda context, steps: persistence(context, steps + 1))})
    with pytest.raises(ValueError, match="other names than 'model'"):
        run(pipe, runs, baselines={"model": Named(persistence)})


def test_a_baselines_members_are_scored_as_an_ensemble(pipe, runs):
    def members(context, steps):
        still = persistence(context, steps)
        spread = np.random.default_rng(0).normal(size=(5, steps, 16, 12))
        members = {"pressure": still.fields["pressure"] + spread, "velocity": np.stack([still.fields["velocity"]] * 5)}
        return dataclasses.replace(still, fields={n: m.mean(0) for n, m in members.items()}, ensemble=members)

    found = run(pipe, runs, baselines={"mine": Named(members)})["scenarios"]["runs"]["forecasters"]
    assert found["model"]["ensemble"] is None
    assert found["mine"]["ensemble"]["members"] == 5
    assert found["mine"]["ensemble"]["fields"]["pressure"]["spread"][0] > 0.1
    assert found["mine"]["ensemble"]["fields"]["velocity"]["spread_skill"] == [0] * 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 9}, "batch_size: expected 1 to 8"),
        ({"workers": -1}, "expected 0 or more"),
        ({"protocol": Protocol(ensemble_size=2, jitter=False)}, "without jitter all members are equal"),
        ({"data": "gone"}, "unknown scenario 'gone'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_before_anything_is_written(pipe, runs, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        run(pipe, **{"data": runs, "output": tmp_path / "out", **settings})
    assert not (tmp_path / "out").exists()


def test_missing_packages_are_named_before_anything_is_computed(pipe, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "find_spec", lambda name: None)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'walrus-hf\[eval\]'"):
        run(pipe, runs, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ImportError, match="scores of ensembles need"):
        run(pipe, runs, protocol=dataclasses.replace(QUICK, ensemble_size=2))
    assert run(pipe, runs)["scenarios"]["runs"]["trajectories"] == 3  # a table alone needs none of them


# --- what is measured -----------------------------------------------------------------------------------------------


def test_the_error_of_an_ensemble_is_that_of_its_mean_and_its_members_are_scored(pipe, runs, tmp_path):
    protocol = dataclasses.replace(QUICK, ensemble_size=3, max_trajectories=1)
    found = run(pipe, runs, tmp_path / "out", protocol)["scenarios"]["runs"]["forecasters"]["model"]
    truth = load_well(runs)
    forecast = pipe.predict(truth.frames(0, 6), 6, ensemble_size=3, seed=0, progress=False)
    np.testing.assert_allclose(errors_of(tmp_path / "out"), score(forecast, truth.frames(6))["pressure"], rtol=1e-4)
    members = found["ensemble"]["fields"]["pressure"]
    deviation = truth.fields["pressure"][6:].reshape(6, -1).std(axis=1, ddof=1)
    spread = np.sqrt(forecast.ensemble["pressure"].reshape(3, 6, -1).var(axis=0, ddof=1).mean(axis=1)) / deviation
    np.testing.assert_allclose(members["spread"], spread, rtol=1e-4)
    assert len(members["crps"]) == 6
    histogram = members["rank_histogram"]["1:4"]
    assert len(histogram) == 4
    assert sum(histogram) == pytest.approx(1)


def test_fields_that_are_read_as_logarithms_are_scored_as_logarithms(pipe, tmp_path):
    pressure = np.exp(np.random.default_rng(0).normal(size=(12, 16, 12)).cumsum(0) / 3)
    data = save_well(noise(pressure=pressure), tmp_path / "own.hdf5")
    logarithms = WalrusPipeline(pipe.model)
    logarithms.processor.log_fields = ["pressure"]
    results = run(logarithms, data, tmp_path / "out")
    assert results["scenarios"]["own"]["transforms"]["log_fields"] == ["pressure"]
    truth = np.log10(load_well(data).fields["pressure"])
    expected = score(*(noise(pressure=x) for x in (np.repeat(truth[5:6], 6, axis=0), truth[6:])))["pressure"]
    np.testing.assert_allclose(errors_of(tmp_path / "out", "persistence"), expected, rtol=1e-5)
    forecast = logarithms.predict(load_well(data).frames(0, 6), 6, seed=0, progress=False)
    expected = score(*(noise(pressure=x) for x in (np.log10(forecast.fields["pressure"]), truth[6:])))["pressure"]
    np.testing.assert_allclose(errors_of(tmp_path / "out"), expected, rtol=1e-3)
    negative = run(logarithms, data, baselines={"mine": Named(lambda c, s: _minus(persistence(c, s)))})
    failure = negative["scenarios"]["own"]["forecasters"]["mine"]["failures"][0]
    assert failure["reason"] == "field 'pressure' is not positive, and has no logarithm"


def _minus(trajectory):
    return dataclasses.replace(trajectory, fields={name: -values for name, values in trajectory.fields.items()})


@pytest.mark.parametrize("grid", [(32,), (8, 16, 8)])
def test_lines_and_volumes_are_measured_too(pipe, tmp_path, grid):
    truth = noise(grid=grid, pressure=np.random.default_rng(0).normal(size=(12, *grid)).cumsum(0))
    found = run(pipe, save_well(truth, tmp_path / "own.hdf5"), tmp_path / "out")["scenarios"]["own"]
    forecast = pipe.predict(truth.frames(0, 6), 6, seed=0, progress=False)
    np.testing.assert_allclose(errors_of(tmp_path / "out"), score(forecast, truth.frames(6))["pressure"], rtol=1e-5)
    assert found["grid"] == list(grid)
    last = found["forecasters"]["model"]["spectra"]["fields"]["pressure"]["6"]
    assert sum(last["truth"]) == pytest.approx((truth.fields["pressure"][11] ** 2).mean(), rel=1e-5)


def test_cells_inside_obstacles_do_not_count(pipe, tmp_path):
    mask = np.zeros((16, 12), dtype=bool)
    mask[4:8, 3:6] = True
    truth = dataclasses.replace(noise(), obstacle_mask=mask)
    results = run(pipe, save_well(truth, tmp_path / "own.hdf5"), tmp_path / "out")
    assert results["scenarios"]["own"]["obstacle_cells"] == pytest.approx(12 / 192)
    expected = score(persistence(truth.frames(0, 6), 6), truth.frames(6))["velocity"]
    np.testing.assert_allclose(errors_of(tmp_path / "out", "persistence", "velocity"), expected, rtol=1e-5)


def test_cells_inside_obstacles_may_be_nan(pipe, tmp_path):
    mask = np.zeros((16, 12), dtype=bool)
    mask[4:8, 3:6] = True
    clean = dataclasses.replace(noise(), obstacle_mask=mask)
    holes = {name: values.copy() for name, values in clean.fields.items()}
    for values in holes.values():
        values[:, mask] = np.nan
    dirty = dataclasses.replace(clean, fields=holes)
    for name, truth in (("clean", clean), ("dirty", dirty)):
        run(pipe, save_well(truth, tmp_path / f"{name}.hdf5"), tmp_path / name)
    for forecaster in ("model", "persistence"):
        expected, found = (errors_of(tmp_path / name, forecaster, "velocity") for name in ("clean", "dirty"))
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_mask_that_leaves_no_cells_and_a_file_without_moving_fields_are_noted_and_the_rest_is_scored(pipe, tmp_path):
    whole = noise()
    files = [save_well(whole, tmp_path / "good.hdf5")]
    full = dataclasses.replace(whole, obstacle_mask=np.ones((16, 12), dtype=bool))
    files.append(save_well(full, tmp_path / "full.hdf5"))
    results = run(pipe, files, tmp_path / "out")
    assert "model" in results["scenarios"]["good"]["forecasters"]
    (note,) = [note for note in results["scenarios"]["full"]["notes"] if "obstacles" in note]
    assert "fewer than two cells lie outside obstacles (the mask is True inside)" in note


def test_results_inside_the_data_are_refused_since_they_would_be_read_as_data(pipe, tmp_path):
    mine = tmp_path / "mine"  # apart from the cache of manifests
    mine.mkdir()
    save_well(noise(), mine / "own.hdf5")
    with pytest.raises(ValueError, match=r"output: expected a folder outside the data, found .*results"):
        run(pipe, mine, mine / "results")
    assert [path.name for path in mine.iterdir()] == ["own.hdf5"]


@pytest.mark.parametrize("place", ["data/test/out", "data/out"])
def test_results_among_the_splits_of_the_data_are_refused_and_beside_them_welcome(pipe, tmp_path, place):
    (tmp_path / "data" / QUICK.split).mkdir(parents=True)
    save_well(noise(), tmp_path / "data" / QUICK.split / "own.hdf5")
    with pytest.raises(ValueError, match=r"output: expected a folder outside the data, found .*out"):
        run(pipe, tmp_path.as_uri(), tmp_path / place)
    assert not (tmp_path / place).exists()
    assert run(pipe, tmp_path, tmp_path / "results")["scenarios"]


def test_diagnostics_of_a_perfect_forecast_are_those_of_the_truth(pipe, runs, tmp_path):
    truth = [load_well(runs, i) for i in range(3)]

    def know(context, steps):
        match = next(t for t in truth if np.array_equal(t.fields["pressure"][5], context.fields["pressure"][-1]))
        return match.frames(6, 6 + steps)

    run(pipe, runs, tmp_path / "out", baselines={"perfect": Named(know)})
    found = json.loads((tmp_path / "out" / "results.json").read_text())["scenarios"]["runs"]["forecasters"]
    perfect, still = found["perfect"], found["persistence"]
    assert perfect["windows"]["3:6"]["mean of fields"]["median"] == 0
    assert perfect["physics"]["correlation_time"]["pressure"]["not_reached"] == 3
    assert still["physics"]["correlation_time"]["pressure"]["median"] < 7
    for kind in ("totals", "divergence"):
        curves = perfect["physics"][kind]["velocity"]
        assert curves["forecast"] == curves["truth"]
        assert curves["truth"] == still["physics"][kind]["velocity"]["truth"]
    assert still["physics"]["totals"]["pressure"]["forecast"] == [0] * 6
    last = f"{perfect['physics']['totals']['pressure']['truth'][-1]:.3g}"
    assert f"| pressure | perfect | {last} / {last} |  | the end |" in (tmp_path / "out" / "table.md").read_text()
    spectra = perfect["spectra"]
    assert spectra["bands"][:3] == [[0, 1], [1, 2], [2, 4]]
    assert sorted(spectra["fields"]["pressure"]) == ["1", "4", "6"]
    last = spectra["fields"]["pressure"]["6"]
    assert last["error"] == [0] * len(spectra["bands"])
    assert last["forecast"] == last["truth"]
    mean = np.median([(t.fields["pressure"][11] ** 2).mean() for t in truth])
    assert sum(last["truth"]) == pytest.approx(mean, rel=0.05)


def test_correlation_times_are_of_the_trajectories_whose_truth_varies(pipe, tmp_path):
    def trajectory(seed, constant):
        values = np.random.default_rng(seed).normal(size=(12, 16, 12)).cumsum(0)
        if constant:
            values = np.broadcast_to(values[:, :1, :1], values.shape).copy()
        return noise(seed=seed, pressure=values, density=np.broadcast_to(values[:, :1, :1], values.shape).copy())

    def lost(context, steps):
        raise ValueError("no forecast")

    own = save_well([trajectory(0, False), trajectory(1, True)], tmp_path / "own.hdf5")
    # The truth of the second trajectory is constant: no forecast correlates with it, or fails to.
    run(pipe, own, tmp_path / "out", baselines={"lost": Named(lost)})
    found = json.loads((tmp_path / "out" / "results.json").read_text())["scenarios"]["own"]["forecasters"]
    alone = run(pipe, save_well([trajectory(0, False)], tmp_path / "one.hdf5"))["scenarios"]["one"]["forecasters"]
    for who in ("model", "persistence", "lost"):
        times = found[who]["physics"]["correlation_time"]
        expected = 1 if who == "lost" else alone[who]["physics"]["correlation_time"]["pressure"]["median"]
        assert (times["pressure"]["median"], times["pressure"]["count"]) == (expected, 1)
        none = {"threshold": 0.8, "median": None, "low": None, "high": None, "not_reached": 0, "count": 0}
        assert times["density"] == none
    table = (tmp_path / "out" / "table.md").read_text()
    lines = [line.split("|") for line in table.splitlines() if line.startswith("| density |")]
    assert [cells[5].strip() for cells in lines if len(cells) == 8] == ["-"] * 3


def test_with_a_frame_stride_an_evaluation_is_that_of_every_so_many_frames(pipe, tmp_path):
    whole = [noise(frames=25, seed=i) for i in range(2)]
    thinned = [every_frame(one, 2) for one in whole]  # 13 frames
    run(pipe, save_well(thinned, tmp_path / "thinned.hdf5"), tmp_path / "expected")
    protocol = dataclasses.replace(QUICK, frame_stride=2)
    results = run(pipe, save_well(whole, tmp_path / "whole.hdf5"), tmp_path / "out", protocol)
    assert (results["scenarios"]["whole"]["frames"], results["scenarios"]["whole"]["steps"]) == ([13, 13], 6)
    assert results["scenarios"]["whole"]["dt"] == thinned[0].dt
    expected, found = (table_of(tmp_path / name).drop(columns=["scenario", "source"]) for name in ("expected", "out"))
    pandas.testing.assert_frame_equal(found, expected)
    with pytest.raises(ValueError, match="expected two evaluations by the same protocol, found frame_stride 1 and 2"):
        compare(tmp_path / "expected", tmp_path / "out")


def test_a_model_of_another_frame_stride_is_noted(pipe, runs, monkeypatch):
    monkeypatch.setattr(pipe.processor, "trained_stride", 2)
    notes = {
        stride: " ".join(run(pipe, runs, protocol=Protocol(frame_stride=stride))["scenarios"]["runs"]["notes"])
        for stride in (1, 2, 3)
    }
    assert "fine-tuned on frames 2 apart and is given consecutive ones" in notes[1]
    assert "fine-tuned on frames" not in notes[2]
    assert "fine-tuned on frames 2 apart and is given some 3 apart" in notes[3]


def test_grids_whose_cells_differ_in_size_have_no_totals_and_no_divergence(pipe, tmp_path):
    curved = dataclasses.replace(noise(), grid_type="spherical")
    found = run(pipe, save_well(curved, tmp_path / "own.hdf5"))["scenarios"]["own"]["forecasters"]["model"]
    assert found["physics"]["totals"] == found["physics"]["divergence"] == {}
    assert set(found["physics"]["correlation_time"]) == {"pressure", "velocity"}


def test_the_published_numbers_stand_beside_those_of_the_same_scenario(pipe, tmp_path):
    rng = np.random.default_rng(0)
    fields = {name: rng.normal(size=(20, 128, 128)).cumsum(0) for name in ("A", "B")}
    data = noise(grid=(128, 128), sides="periodic", name="gray_scott_reaction_diffusion", **fields)
    results = run(pipe, save_well(data, tmp_path / "mine.hdf5"), tmp_path / "out", Protocol(resamples=10))
    found = results["scenarios"]["gray_scott_reaction_diffusion"]
    assert found["title"] == "Gray-Scott"
    assert {"table": "Table 1", "data_set": "Gray-Scott", "model": "Walrus", "window": "1:20", "value": 0.0278,
            "note": None} in found["published"]  # fmt: skip
    assert "| published | Walrus (Table 1) | 0.0001 |" in (tmp_path / "out" / "table.md").read_text()
    cut = dataclasses.replace(data, fields={name: values[:, :64] for name, values in data.fields.items()})
    other = run(pipe, save_well(cut, tmp_path / "other.hdf5"), protocol=Protocol(resamples=10))
    assert other["scenarios"]["other"]["published"] == []


@pytest.mark.filterwarnings("ignore:grid:UserWarning")
def test_scenarios_by_name_are_read_with_their_names_and_transforms(tmp_path):
    model = small_model(field2id=None, jitter=True)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.2, generator=generator)
    pipe = WalrusPipeline(model)
    fields = {"pressure": noise().fields["pressure"], "velocity": noise().fields["velocity"]}
    data = noise(name="acoustic_scattering_maze", **fields)
    data.constant_fields |= {"density": np.full((16, 12), 7.0), "speed_of_sound": np.ones((16, 12))}
    folder = tmp_path / "acoustic_scattering_maze" / "data" / "valid"
    folder.mkdir(parents=True)
    save_well(data, folder / "one.hdf5")
    protocol = dataclasses.replace(QUICK, split="valid")
    results = run(pipe, "acoustic_scattering_maze", tmp_path / "out", protocol, base_path=tmp_path)
    found = results["scenarios"]["acoustic_scattering_maze"]
    assert found["transforms"]["zero_fields"] == ["density"]
    assert found["transforms"]["field_names"] == {"density": "zeros_like_density"}
    assert found["title"] == "Maze"
    zeroed = dataclasses.replace(data, constant_fields=data.constant_fields | {"density": np.zeros((16, 12))})
    by_hand = WalrusPipeline(pipe.model)
    by_hand.processor.field_names = {"density": "zeros_like_density"}
    expected = score(by_hand.predict(zeroed.frames(0, 6), 6, seed=0, progress=False), zeroed.frames(6))
    np.testing.assert_allclose(errors_of(tmp_path / "out"), expected["pressure"], rtol=2e-5)
    as_it_is = score(by_hand.predict(data.frames(0, 6), 6, seed=0, progress=False), data.frames(6))
    assert not np.allclose(as_it_is["pressure"], expected["pressure"], rtol=1e-4)
