"""Gradients that are not finite, loss spikes, signals, and batches that cannot be read."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from walrus_hf.training.guards import (
    GradientGuard,
    ReaderErrors,
    SpikeWatch,
    StopSignal,
    TooManyReaderErrors,
    TrainingDiverged,
    substitute,
)

from ..small_model import VOLUME, WALL_OPEN, small_inputs, small_model

NAN, INF = torch.tensor(float("nan")), torch.tensor(float("inf"))
FINE = torch.tensor(3.0)


def through_json(state):
    return json.loads(json.dumps(state))


def test_a_step_is_taken_if_and_only_if_its_gradient_is_finite():
    guard = GradientGuard(seed=3)
    assert [guard.admits(norm, step) for step, norm in enumerate([FINE, NAN, FINE, INF, -INF, FINE])] == [
        True, False, True, False, False, True,
    ]  # fmt: skip
    assert guard.skipped == 3


def test_five_bad_gradients_in_a_row_end_the_run_with_seed_steps_and_samples():
    guard = GradientGuard(seed=3)
    for step in range(4):
        assert not guard.admits(NAN, 90 + step, [f"early/{step}"])
    assert guard.admits(FINE, 94)  # the row is broken
    for step in range(4):
        assert not guard.admits(INF, 100 + step, [f"plane/{step}", f"box/{step}"])
    with pytest.raises(TrainingDiverged) as error:
        guard.admits(NAN, 104, ["plane/4"])
    report = str(error.value)
    assert "5 steps in a row: seed 3, steps 100, 101, 102, 103, 104, samples of this rank: plane/0, box/0" in report
    assert "plane/4" in report
    assert "early" not in report
    assert "\n" not in report
    assert guard.skipped == 9


def test_a_row_of_bad_gradients_goes_on_after_a_resume():
    guard = GradientGuard(seed=3, limit=3)
    guard.admits(NAN, 7)
    guard.admits(NAN, 8)
    resumed = GradientGuard(seed=3, limit=3)
    resumed.load_state_dict(through_json(guard.state_dict()))
    assert resumed.skipped == 2
    with pytest.raises(TrainingDiverged, match=r"steps 7, 8, 9"):
        resumed.admits(NAN, 9)


def test_a_limit_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"limit: expected at least 1, found 0"):
        GradientGuard(seed=0, limit=0)


def noise(count, scale=1.0, seed=0):
    values = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    return [scale * (1.0 + 0.1 * float(v)) for v in values]


def test_a_spike_is_reported_with_scenario_seed_step_and_samples():
    watch = SpikeWatch(seed=11)
    assert not any(watch.observe("waves", loss, step) for step, loss in enumerate(noise(100)))
    report = watch.observe("waves", 2.0, 100, ["waves/file 3/12"])
    assert report is not None
    assert report.startswith("loss spike: waves at 2, expected at most 1.")
    assert report.endswith("seed 11, step 100, samples of this rank: waves/file 3/12")
    assert watch.observe("waves", 1.05, 101) is None
    assert watch.spikes == 1


def test_the_threshold_is_six_median_absolute_deviations_above_the_running_mean():
    losses = noise(64)
    mean = losses[0]
    for loss in losses[1:]:
        mean = 0.95 * mean + 0.05 * loss
    middle = float(torch.tensor(losses, dtype=torch.float64).quantile(0.5))
    spread = float((torch.tensor(losses, dtype=torch.float64) - middle).abs().quantile(0.5))
    for excess, expected in ((5.9, False), (6.1, True)):
        watch = SpikeWatch(seed=0)
        assert not any(watch.observe("waves", loss, step) for step, loss in enumerate(losses))
        assert (watch.observe("waves", mean + excess * spread, 64) is not None) is expected


def test_scenarios_of_different_scale_are_judged_by_their_own_history():
    watch = SpikeWatch(seed=0)
    for step, (small, large) in enumerate(zip(noise(60, 0.01), noise(60, 10.0, seed=1))):
        assert not watch.observe("small", small, step)
        assert not watch.observe("large", large, step)
    assert watch.observe("small", 0.1, 60)  # far below the other's usual loss
    assert not watch.observe("large", 10.5, 60)


def test_the_first_losses_of_a_scenario_are_no_spikes_but_a_nan_always_is():
    watch = SpikeWatch(seed=0)
    assert not any(watch.observe("waves", loss, step) for step, loss in enumerate([1.0, 50.0, 0.1, 900.0] * 8))
    fresh = SpikeWatch(seed=0)
    assert "at nan" in fresh.observe("waves", float("nan"), 0)
    assert "at inf" in fresh.observe("waves", float("inf"), 1)
    for step, loss in enumerate(noise(40)):  # they have left no trace
        assert not fresh.observe("waves", loss, step)
    assert fresh.observe("waves", 2.0, 41)


def test_a_lasting_change_stops_being_news():
    watch = SpikeWatch(seed=0)
    for step, loss in enumerate(noise(64)):
        watch.observe("waves", loss, step)
    reports = [watch.observe("waves", loss, step) for step, loss in enumerate(noise(200, 3.0, seed=2))]
    assert reports[0]
    assert not any(reports[-50:])


def test_losses_that_hardly_vary_make_no_spikes_of_rounding_errors():
    watch = SpikeWatch(seed=0)
    for step in range(64):
        watch.observe("still", 0.5, step)
    assert not watch.observe("still", 0.5 + 1e-6, 64)
    assert watch.observe("still", 0.6, 65)


def test_the_watch_remembers_across_a_resume():
    watch, losses = SpikeWatch(seed=0), noise(120)
    for step, loss in enumerate(losses[:50]):
        watch.observe("waves", loss, step)
    resumed = SpikeWatch(seed=0)
    resumed.load_state_dict(through_json(watch.state_dict()))
    for step, loss in enumerate([*losses[50:], 2.0, 3.0]):
        assert watch.observe("waves", loss, step) == resumed.observe("waves", loss, step)
    assert watch.state_dict() == resumed.state_dict()
    assert watch.spikes == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_sets_a_flag_and_the_old_handler_comes_back(number):
    heard = []
    before = signal.signal(number, lambda *_: heard.append("old"))
    try:
        with StopSignal() as stop:
            assert not stop.agreed()
            os.kill(os.getpid(), number)
            assert stop.agreed()
            assert stop.agreed()
        assert heard == []
        os.kill(os.getpid(), number)
        assert heard == ["old"]
    finally:
        signal.signal(number, before)


WORKER = """
import sys, time
from walrus_hf.training.guards import StopSignal
with StopSignal() as stop:
    print("ready", flush=True)
    for _ in range(600):
        if stop.agreed():
            print("saved", flush=True)
            break
        time.sleep(0.05)
"""
LAUNCHER = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]]).wait()"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_a_worker_saves_when_its_launcher_dies_without_passing_the_signal_on():
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "none"}
    command = [sys.executable, "-c", LAUNCHER, WORKER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as launcher:
        assert launcher.stdout.readline() == "ready\n"
        launcher.send_signal(signal.SIGUSR1)  # which Python's default handler obeys by dying
        launched = time.monotonic()
        assert launcher.stdout.readline() == "saved\n"  # the worker holds the other end of the pipe
        assert time.monotonic() - launched < 10


def test_reader_errors_are_counted_until_the_limit_ends_the_run():
    errors = ReaderErrors(limit=2, seed=5)
    errors.add(0, 1)
    errors.add(2, 2, ["waves/9"])
    resumed = ReaderErrors(limit=2, seed=5)
    resumed.load_state_dict(through_json(errors.state_dict()))
    resumed.add(0, 3)
    with pytest.raises(TooManyReaderErrors, match=r"^3 batches .* at most 2 .* seed 5, step 4, .*: waves/1") as error:
        resumed.add(1, 4, ["waves/1"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("grid", [(16, 24, 1), VOLUME])
def test_a_substitute_runs_like_a_batch_and_leaves_finite_zero_gradients(grid):
    model = small_model().train()
    batch = small_inputs(grid, labels=True, sides=WALL_OPEN)
    batch["obstacle_mask"] = torch.zeros(2, *grid, dtype=torch.bool)
    batch["obstacle_mask"][:, :2] = True
    model(**batch).loss.backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    kept = {name: value.clone() for name, value in batch.items()}
    blank, weight = substitute(batch)
    assert weight == 0.0
    assert not blank["field_values"].any()
    assert not blank["labels"].any()
    for name in ("field_ids", "boundary_conditions", "obstacle_mask"):
        assert torch.equal(blank[name], kept[name])
    assert all(blank[name].shape == value.shape for name, value in kept.items())
    assert all(torch.equal(batch[name], value) for name, value in kept.items())  # the batch itself is untouched

    (weight * model(**blank).loss).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert gradients.keys() == reached
    assert all(not gradient.any() for gradient in gradients.values())  # a NaN counts as any()
