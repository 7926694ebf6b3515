"""Pretraining runs: what they write, how they go on after a stop, and what stops them. In one process."""

import dataclasses
import itertools
import json
import math
import os
import runpy
import shutil
import signal
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file

pytest.importorskip("accelerate")
pytest.importorskip("datasets")

from tests.data.wells import write_source
from walrus_hf import WalrusPipeline, load_well
from walrus_hf.data.reader import BatchReader
from walrus_hf.hub import Upload
from walrus_hf.training import loop, objective, saving
from walrus_hf.training.batches import open_validation
from walrus_hf.training.guards import SpikeWatch, TooManyReaderErrors, TrainingDiverged
from walrus_hf.training.optim import published_schedule
from walrus_hf.training.records import read_metrics
from walrus_hf.training.validation import Validation, prepare_inputs

from ..small_model import small_inputs, small_model
from .small_runs import GRIDS, MODEL, STEPS, plane_and_volume, settings, without_times

pytestmark = pytest.mark.usefixtures("on_the_cpu")


def weights(checkpoint):
    return load_file(checkpoint / "model.safetensors")


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_metrics_hold_one_object_a_step(folder):
    rows = read_metrics(folder / "straight")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["learning_rate"] for row in rows] == [1e-3 * published_schedule(step, STEPS) for step in range(STEPS)]
    for row in rows:
        # Four slots of four equal sources, drawn in strata: one each, so the loss is the mean of theirs.
        assert set(row["losses"]) == set(GRIDS)
        assert row["loss"] == pytest.approx(np.mean(list(row["losses"].values())))
        assert set(row["field_losses"]) == {"pressure", "velocity_x", "velocity_y", "velocity_z"}
        # Planes 2 windows of 4 frames, volumes 1 of 2.
        assert row["samples_per_second"] * row["seconds"] == pytest.approx(2 * 2 + 2 * 1)
        assert row["frames_per_second"] * row["seconds"] == pytest.approx(2 * 8 + 2 * 2)
        assert row["predicted_utilisation"] == row["measured_utilisation"] == 1.0
        assert 0 < row["grad_norm"] < math.inf
        assert row["skipped"] == row["reader_errors"] == 0
    assert [row["step"] for row in rows if "validation" in row] == [3, 6]
    assert names(folder / "straight") == ["metrics.jsonl", "model", "step-00000003", "step-00000006"]


def test_the_trained_model_is_a_pipeline_with_the_context_it_was_trained_on(folder):
    pipe = WalrusPipeline.from_pretrained(folder / "straight" / "model", device="cpu")
    assert (pipe.processor.context_frames, pipe.processor.context_frames_3d) == (4, 2)
    context = load_well(folder / "data" / "plane" / "data" / "valid" / "0.hdf5", frames=4)
    assert np.isfinite(pipe.predict(context, 1, seed=0, progress=False).fields["pressure"]).all()
    averages = loop.Run(loop.make_accelerator(last(folder)), last(folder), indexes(folder))
    averages.resume()
    for name, average in averages.average.averages.items():
        assert torch.equal(pipe.model.get_parameter(name.removeprefix("model.")), average)
    card = (folder / "straight" / "model" / "README.md").read_text()
    assert "6 optimiser steps" in card
    assert "| plane |" in card


def last(folder):
    return settings(folder / "data", folder / "straight", resume_from_checkpoint="latest")


def indexes(folder):
    return loop.open_indexes(last(folder), last(folder).config())


def test_the_error_of_persistence_is_that_of_the_last_frame(folder):
    arguments = settings(folder / "data", folder / "straight")
    found = open_validation(arguments, arguments.config())
    assert [index.name for index in found] == ["plane", "wide", "volume"]
    validation = Validation(found, [2, 2, 1], 3, 2**20)
    errors = []
    whole = load_well(folder / "data" / "plane" / "data" / "valid" / "0.hdf5")
    fields = np.concatenate([whole.fields["pressure"][..., None], whole.fields["velocity"]], axis=-1)
    for _, _, start, stride in (window for batch in validation.windows[0] for window in batch):
        assert stride == 1
        before, after = fields[start + 3].astype(np.float64), fields[start + 4].astype(np.float64)
        errors.append(np.sqrt(((after - before) ** 2).mean((0, 1)) / (after.var((0, 1), ddof=1) + 1e-7)))
    for row in read_metrics(folder / "straight"):
        if "validation" in row:
            assert row["validation"]["plane"]["persistence"] == pytest.approx(np.mean(errors), rel=1e-6)
            assert row["validation"]["plane"]["vrmse"] != row["validation"]["plane"]["persistence"]


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(folder, tmp_path, monkeypatch):
    train_step = loop.train_step

    def signalled(run, plan, batches, step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGUSR1)
        return train_step(run, plan, batches, step)

    monkeypatch.setattr(loop, "train_step", signalled)
    arguments = settings(folder / "data", tmp_path)
    assert loop.pretrain(arguments) == tmp_path / "step-00000004"
    monkeypatch.setattr(loop, "train_step", train_step)
    with (tmp_path / "metrics.jsonl").open("a") as file:  # steps after the checkpoint, the last one cut short
        file.write('{"step": 5, "loss": 1e9}\n{"step": 6, "lo')
    resumed = loop.pretrain(dataclasses.replace(arguments, resume_from_checkpoint="latest"))
    assert resumed == tmp_path / "model"
    assert without_times(read_metrics(tmp_path)) == without_times(read_metrics(folder / "straight"))
    assert_same(weights(tmp_path / "step-00000006"), weights(folder / "straight" / "step-00000006"))
    assert_same(weights(tmp_path / "model"), weights(folder / "straight" / "model"))


def test_a_run_with_a_time_limit_ends_cooled_down_when_the_time_is_over(folder, tmp_path, monkeypatch):
    clock = itertools.count()  # a second passes whenever somebody looks: twice or more a step
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    quick = {
        "max_steps": 1_000_000,
        "max_seconds": 60.0,
        "validation_steps": 0,
        "save_steps": 10,
        "keep_checkpoints": 9,
        **plane_and_volume(folder / "data"),
    }
    assert loop.pretrain(settings(folder / "data", tmp_path, **quick)) == tmp_path / "model"
    rows = read_metrics(tmp_path)
    assert 12 < len(rows) < 30
    rates = [row["learning_rate"] for row in rows]
    assert rates[0] == 1e-3 * published_schedule(0, 100)
    assert 5 * rates[0] < max(rates) <= 1e-3
    assert rates[-1] < 0.25 * max(rates)
    (last,) = (tmp_path / "metrics.jsonl").read_text().splitlines()[-1:]
    assert json.loads(last)["step"] == len(rows)
    assert f"{len(rows)} optimiser steps" in (tmp_path / "model" / "README.md").read_text()
    # Time goes on where the checkpoint stood, not at zero.
    earlier = tmp_path / "step-00000010"
    seconds = json.loads((earlier / "training_state.json").read_text())["state"]["seconds"]
    resumed = settings(folder / "data", tmp_path / "resumed", resume_from_checkpoint=str(earlier), **quick)
    loop.pretrain(resumed)
    first = read_metrics(tmp_path / "resumed")[0]
    assert 0 < seconds < 60
    assert first["learning_rate"] == pytest.approx(rates[10], rel=0.2)


def test_each_step_draws_its_tokens_from_those_of_the_recipe(folder, tmp_path, monkeypatch):
    plans = []

    def recorded(*given):
        inputs = prepare_inputs(*given)
        plans.append(inputs["plan"])
        return inputs

    monkeypatch.setattr(loop, "prepare_inputs", recorded)
    model = {**MODEL, "tokens_per_axis": 4, "tokens_per_axis_3d": 2}
    changes = {"model": model, "tokens": [2, 4], "max_steps": 6, "validation_steps": 0, "save_steps": 3}
    loop.pretrain(settings(folder / "data", tmp_path / "all", **changes))
    assert len(plans) == 6 * 4
    # Rotations turn the grids. A volume aims at half of the tokens of a plane, as in the configuration.
    seen = {(tuple(sorted(plan.grid)), tuple(sorted(plan.tokens))) for plan in plans}
    assert {tokens for grid, tokens in seen if grid == (1, 8, 12)} == {(1, 2, 3), (1, 4, 5)}
    assert {tokens for grid, tokens in seen if grid == (8, 8, 12)} == {(1, 2, 2), (2, 3, 3)}
    # They follow from the step, so a run that was stopped draws the same ones.
    first, plans[:] = [plan.tokens for plan in plans], []
    checkpoint = str(tmp_path / "all" / "step-00000003")
    loop.pretrain(settings(folder / "data", tmp_path / "more", resume_from_checkpoint=checkpoint, **changes))
    assert [plan.tokens for plan in plans] == first[3 * 4 :]


def test_drawn_tokens_give_the_plan_that_a_model_with_this_target_makes():
    inputs = small_inputs((25, 16, 1), labels=True, sides=[[2, 2], [0, 1], [2, 2]])
    model = small_model(tokens_per_axis=4, tokens_per_axis_3d=2, jitter=True)
    drawn = prepare_inputs(inputs, model, torch.device("cpu"), torch.Generator().manual_seed(1), 8)["plan"]
    other = small_model(tokens_per_axis=8, tokens_per_axis_3d=4, jitter=True)
    assert drawn == prepare_inputs(inputs, other, torch.device("cpu"), torch.Generator().manual_seed(1))["plan"]


def test_a_run_goes_on_when_the_weights_that_it_started_from_are_gone(folder, tmp_path):
    start = tmp_path / "start"
    shutil.copytree(folder / "straight" / "model", start)
    given = {"model_name_or_path": str(start), "max_steps": 2, "save_steps": 1, "validation_steps": 0}
    straight = loop.pretrain(settings(folder / "data", tmp_path / "straight", **given, keep_checkpoints=2))
    (start / "model.safetensors").unlink()
    checkpoint = str(tmp_path / "straight" / "step-00000001")
    more = settings(folder / "data", tmp_path / "more", **given, resume_from_checkpoint=checkpoint)
    assert_same(weights(loop.pretrain(more)), weights(straight))
    with pytest.raises(ValueError, match="expected a whole checkpoint of safetensors"):
        loop.pretrain(dataclasses.replace(more, resume_from_checkpoint=None, output_dir=str(tmp_path / "anew")))


def test_a_share_of_the_steps_is_trained_after_own_steps(folder, tmp_path, monkeypatch):
    given = []
    forward = objective.TrainingModel.forward

    def recorded(self, own_steps=0, generator=None, **inputs):
        if self.training:
            given.append((own_steps, inputs["field_values"].shape[1], inputs["labels"].shape[1]))
        return forward(self, own_steps, generator, **inputs)

    monkeypatch.setattr(objective.TrainingModel, "forward", recorded)
    found = {}
    for share in (0.0, 0.5, 1.0):
        given.clear()
        changes = {
            "own_forecasts": share,
            "own_steps": 2 if share else 1,
            "max_steps": 6,
            **plane_and_volume(folder / "data"),
        }
        loop.pretrain(settings(folder / "data", tmp_path / str(share), **changes))
        found[share] = [own for own, *_ in given]
        # Planes have four frames, volumes two, and as many more as the model forecasts before the loss.
        assert {frames - own for own, frames, _ in given} == {2, 4}
        assert all(frames == labels for _, frames, labels in given)
    assert set(found[0.0]) == {0}
    assert set(found[0.5]) == {0, 1, 2}
    assert set(found[1.0]) == {1, 2}


def test_losses_after_own_forecasts_are_no_spikes(folder, tmp_path, monkeypatch):
    given, judged, observe = [], [], SpikeWatch.observe
    forward = objective.TrainingModel.forward

    def recorded(self, own_steps=0, generator=None, **inputs):
        loss, *rest = forward(self, own_steps, generator, **inputs)
        if self.training:
            given.append((own_steps, loss.item()))
        return loss, *rest

    def judging(self, scenario, loss, *others):
        judged.append(loss)
        return observe(self, scenario, loss, *others)

    monkeypatch.setattr(objective.TrainingModel, "forward", recorded)
    monkeypatch.setattr(SpikeWatch, "observe", judging)
    one = {"sources": [str(folder / "data" / "plane")], "gradient_accumulation_steps": 1}
    loop.pretrain(settings(folder / "data", tmp_path, own_forecasts=0.5, own_steps=2, max_steps=8, **one))
    plain = [loss for own, loss in given if own == 0]
    assert 0 < len(plain) < len(given) == 8
    assert judged == pytest.approx(plain)


def test_training_goes_on_from_the_weights_of_another_run_with_its_processor(folder, tmp_path):
    started = WalrusPipeline.from_pretrained(folder / "straight" / "model", device="cpu")
    started.processor.field_names, started.processor.hold_scales = {"p": "pressure"}, True
    started.save_pretrained(tmp_path / "first")
    changes = {"model_name_or_path": str(tmp_path / "first"), "learning_rate": 0.0, "max_steps": 1}
    model = {"drop_path_rate": 0.1, "tokens_per_axis": 2, "jitter": False}
    loop.pretrain(settings(folder / "data", tmp_path / "more", model=model, **changes))
    pipe = WalrusPipeline.from_pretrained(tmp_path / "more" / "model", device="cpu")
    assert_same(pipe.model.state_dict(), started.model.state_dict())
    assert pipe.model.config.drop_path_rate == 0.1
    assert (pipe.model.config.tokens_per_axis, pipe.processor.tokens_per_axis) == (2, 2)
    assert not pipe.processor.jitter
    assert pipe.processor.field_names == {"p": "pressure"}
    assert pipe.processor.hold_scales
    card = (tmp_path / "more" / "model" / "README.md").read_text()
    assert "1 optimiser steps from the weights of `first` on" in card
    assert str(tmp_path) not in card


@pytest.mark.parametrize(("share", "held"), [(0.0, False), (0.5, True)])
def test_scales_are_held_in_forecasts_as_they_were_before_the_loss(tmp_path, share, held):
    arguments = settings(tmp_path, tmp_path, own_forecasts=share)
    assert arguments.processor(arguments.config()).hold_scales == held


@pytest.mark.parametrize("change", [{"num_hidden_layers": 3}, {"hidden_size": 64}, {"num_hidden_layers": 1}])
def test_weights_of_another_geometry_are_refused(folder, tmp_path, change):
    start = {"model_name_or_path": str(folder / "straight" / "model"), "model": change}
    with pytest.raises(ValueError, match="expected the weights that the given settings describe, found "):
        loop.pretrain(settings(folder / "data", tmp_path, **start))


@pytest.mark.parametrize("start", [None, "straight/model"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drop_path_rat": 0.1}, "model: expected settings of WalrusConfig, found drop_path_rat"),
        ({"drop_path_rate": 5.0}, "drop_path_rate"),
        ({"tokens_per_axis": 0}, "tokens_per_axis"),
    ],
)
def test_settings_of_the_model_that_make_no_sense_are_refused_with_a_start_and_without(folder, start, change, message):
    named = None if start is None else str(folder / start)
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        settings(folder, folder, model_name_or_path=named, model=change).config()


def test_a_start_that_is_not_there_is_refused(folder):
    with pytest.raises(FileNotFoundError, match=r"\./gone: expected the folder of a checkpoint, found none"):
        settings(folder, folder, model_name_or_path="./gone").config()


def test_a_validation_split_of_too_short_trajectories_is_refused_by_its_name(tmp_path):
    write_source(tmp_path / "plane", 1, 1, 12, 0)
    write_source(tmp_path / "plane", 1, 1, 4, 50, "valid")
    arguments = settings(tmp_path, tmp_path, sources=[str(tmp_path / "plane")])
    assert len(loop.open_indexes(arguments, arguments.config())) == 1
    with pytest.raises(ValueError, match="validation_split 'valid': source 'plane': expected at least 5 frames"):
        open_validation(arguments, arguments.config())


def test_trajectories_that_are_too_short_for_own_steps_are_refused_with_the_reason(folder):
    arguments = settings(folder / "data", folder, own_forecasts=0.5, own_steps=9)
    message = r"expected at least 14 frames a trajectory, found 12 .* \(windows have 9 frames more for own_steps\)"
    with pytest.raises(ValueError, match=message):
        loop.open_indexes(arguments, arguments.config())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 6}, "expected a run with seed 6, found 5"),
        ({"gradient_accumulation_steps": 3}, "expected a run with slots 3, found 4"),
        ({"learning_rate": 2e-3}, r"expected a run with learning_rate 0\.002, found 0\.001"),
        ({"ema_decay": None}, r"expected a run with ema_decay None, found 0\.5"),
        ({"tokens": [2, 4]}, r"expected a run with tokens \[2, 4\], found None"),
        (
            {"model": {**MODEL, "drop_path_rate": 0.0}},
            "with model {'drop_path_rate': 0.0}, found {'drop_path_rate': 0.3}",
        ),
        ({"frames": 3}, "expected a run with frames 3, found 4"),
        ({"cache_bytes": 2**18}, r"\['plane', \d+, \d+, 5, .* with cache_bytes in proportion to"),
        ({"sources": []}, r"expected a run with sources \[\], found \[\['plane'"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(folder, tmp_path, change, message):
    checkpoint = str(folder / "straight" / "step-00000003")
    with pytest.raises(ValueError, match=message):
        loop.pretrain(settings(folder / "data", tmp_path, resume_from_checkpoint=checkpoint, **change))


def test_blocks_are_the_same_where_memory_grows_with_the_micro_batches_of_a_process(folder):
    cut = [
        settings(folder / "data", folder, groups, cache_bytes=2**18 // groups, gradient_accumulation_steps=4 // groups)
        for groups in (1, 2)
    ]
    one, two = (loop.open_indexes(arguments, arguments.config()) for arguments in cut)
    assert [index.num_blocks for index in one] == [index.num_blocks for index in two]
    assert all(index.num_trajectories < index.num_blocks for index in one)


@pytest.mark.parametrize("held", ["step-00000006", "metrics.jsonl"])
def test_a_run_is_not_replaced_by_another_in_its_folder(folder, tmp_path, held):
    source = folder / "straight" / held
    (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / held)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError, match=f"expected an output folder without a run, found {held}; go on with it"):
        loop.pretrain(settings(folder / "data", tmp_path, seed=6))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_checkpoint_of_other_data_of_the_same_size_is_refused(folder, tmp_path):
    shutil.copytree(folder / "data", tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "plane")
    write_source(tmp_path / "data" / "plane", files=2, trajectories=2, frames=12, grid=(16, 24))
    given = settings(
        tmp_path / "data", tmp_path / "out", resume_from_checkpoint=str(folder / "straight" / "step-00000003")
    )
    with pytest.raises(ValueError, match=r"\[16, 24\].*found \['plane', \d+, \d+, 5, \[8, 12\]"):
        loop.pretrain(dataclasses.replace(given, cache_bytes=2**40))


def test_what_cannot_be_read_of_a_validation_split_is_left_out_of_it(folder, tmp_path):
    shutil.copytree(folder / "data", tmp_path / "data")
    (file,) = (tmp_path / "data" / "plane" / "data" / "valid").iterdir()
    with h5py.File(file, "r+") as content:
        content["t0_fields/pressure"][:] = np.nan
    with pytest.warns(UserWarning, match="plane: a blank batch of weight 0 instead of"):
        loop.pretrain(settings(tmp_path / "data", tmp_path / "out", max_steps=1))
    errors = read_metrics(tmp_path / "out")[-1]["validation"]
    assert errors["plane"] == {"vrmse": None, "persistence": None}
    assert errors["wide"]["vrmse"] > 0


def test_a_volume_with_one_cell_along_an_axis_is_trained_on_as_a_plane(folder, tmp_path):
    flat = write_source(tmp_path / "flat", files=1, trajectories=1, frames=12, grid=(8, 12, 1))
    arguments = settings(folder / "data", tmp_path / "out", max_steps=1, sources=[str(flat)], mode="balanced")
    loop.pretrain(arguments)
    assert list(read_metrics(tmp_path / "out")[-1]["losses"]) == ["flat"]


def test_a_grid_that_is_too_small_is_named_with_its_source(folder, tmp_path):
    small = write_source(tmp_path / "small", files=1, trajectories=1, frames=12, grid=(4, 12))
    sources = [str(folder / "data" / "plane"), str(small)]
    with pytest.raises(ValueError, match="source 'small': expected at least 8 cells on an axis"):
        loop.pretrain(settings(folder / "data", tmp_path / "out", sources=sources))


def test_memory_that_holds_no_blocks_of_a_source_is_warned_about(folder):
    arguments = settings(folder / "data", folder, cache_bytes=2**14)
    with pytest.warns(UserWarning, match=r"cache_bytes=16384: memory holds no blocks of \d of \d sources"):
        loop.open_indexes(arguments, arguments.config())


def test_more_steps_follow_the_schedule_of_the_new_number_at_once(folder, tmp_path):
    checkpoint = str(folder / "straight" / "step-00000006")  # where the rate was 0
    changes = {"max_steps": 10, "validation_steps": 0, "save_steps": 10}
    loop.pretrain(settings(folder / "data", tmp_path, resume_from_checkpoint=checkpoint, **changes))
    rates = [row["learning_rate"] for row in read_metrics(tmp_path)]
    assert rates == [1e-3 * published_schedule(step, 10) for step in range(6, 10)]


def test_the_same_command_after_the_last_step_writes_the_same_model_and_card(folder, tmp_path):
    output = tmp_path / "straight"
    shutil.copytree(folder / "straight", output)
    shutil.rmtree(output / "model")
    rows = read_metrics(output)
    loop.pretrain(settings(folder / "data", output, resume_from_checkpoint="latest"))
    assert read_metrics(output) == rows
    assert_same(weights(output / "model"), weights(folder / "straight" / "model"))
    card = (output / "model" / "README.md").read_text()
    assert card == (folder / "straight" / "model" / "README.md").read_text()


def test_another_strategy_than_the_one_asked_for_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="strategy: expected fsdp2, found single with 1 processes"):
        loop.pretrain(settings(folder / "data", tmp_path, strategy="fsdp2"))


def test_what_cannot_be_read_is_left_out_and_counted(folder, tmp_path, monkeypatch):
    read = BatchReader.read

    def broken(self, descriptor):
        if self.augmented and descriptor["source"] == 2:  # in training
            raise OSError("the disk went away")
        return read(self, descriptor)

    monkeypatch.setattr(BatchReader, "read", broken)
    changes = {"max_steps": 2, "save_steps": 2, "validation_steps": 0}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop.pretrain(settings(folder / "data", tmp_path / "some", **changes))
    assert sum("a blank batch of weight 0" in str(warning.message) for warning in caught) == 2
    rows = read_metrics(tmp_path / "some")
    assert [row["reader_errors"] for row in rows] == [1, 2]
    whole = read_metrics(folder / "straight")[0]
    assert rows[0]["losses"] == {name: loss for name, loss in whole["losses"].items() if name != "volume"}
    assert 0 < rows[0]["grad_norm"] < math.inf
    with pytest.raises(TooManyReaderErrors, match="2 batches could not be read, at most 1 are allowed: seed 5"):
        loop.pretrain(settings(folder / "data", tmp_path / "many", reader_error_limit=1, **changes))


def test_gradients_that_are_not_finite_leave_the_weights_alone_and_stop_the_run(folder, tmp_path, monkeypatch):
    read, train_step, weights = BatchReader.read, loop.train_step, []

    def poisoned(self, descriptor):
        batch = read(self, descriptor)
        poison = math.nan if descriptor["source"] == 2 else 1.0
        return {**batch, "field_values": batch["field_values"] * poison}

    def watched(run, plan, batches, step):
        weights.append([parameter.detach().clone() for parameter in run.bare.parameters()])
        return train_step(run, plan, batches, step)

    monkeypatch.setattr(BatchReader, "read", poisoned)
    monkeypatch.setattr(loop, "train_step", watched)
    with pytest.raises(TrainingDiverged, match=r"5 steps in a row: seed 5, steps 0, 1, 2, 3, 4, samples .*'file'"):
        loop.pretrain(settings(folder / "data", tmp_path, validation_steps=0, save_steps=100))
    rows = read_metrics(tmp_path)
    assert [(row["skipped"], row["grad_norm"]) for row in rows] == [(n, None) for n in (1, 2, 3, 4)]
    assert rows[0]["losses"]["plane"] == read_metrics(folder / "straight")[0]["losses"]["plane"]
    assert all(torch.equal(a, b) for a, b in zip(weights[0], weights[-1], strict=True))


def test_the_example_runs_what_its_flags_say(folder, tmp_path, monkeypatch):
    uploads: list[Upload] = []
    monkeypatch.setattr(saving, "push", uploads.append)
    example = Path(__file__).parents[2] / "examples" / "pretrain.py"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**vars(settings(folder / "data", tmp_path)), "max_steps": 1}))
    sources = [str(folder / "data" / name) for name in ("plane", "volume")]
    flags = [
        "--config",
        str(recipe),
        "--output_dir",
        str(tmp_path / "run"),
        "--push_to_hub",
        "lab/tiny",
        "--sources",
        *sources,
    ]
    monkeypatch.setattr(sys, "argv", [str(example), *flags])
    runpy.run_path(str(example), run_name="__main__")
    (row,) = read_metrics(tmp_path / "run")
    assert set(row["losses"]) == {"plane", "volume"}
    assert WalrusPipeline.from_pretrained(tmp_path / "run" / "model", device="cpu").model.config.hidden_size == 32
    (upload,) = uploads
    assert upload.repo_id == "lab/tiny"
    assert {"model.safetensors", "preprocessor_config.json", "modeling_walrus.py"} <= set(upload.files)
    assert "1 optimiser steps on `plane`, `volume`" in upload.card
