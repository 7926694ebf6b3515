"""Pretraining on several processes: DDP and FSDP2 on two, HSDP on two groups of two; they do what one process does."""

import json
import math
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("accelerate")
pytest.importorskip("datasets")

from walrus_hf.training import loop
from walrus_hf.training.checkpoints import verify_checkpoint
from walrus_hf.training.records import read_metrics

from . import gradients, hsdp_ranks, pretraining_ranks
from .small_runs import (
    SLOTS,
    STEPS,
    assert_finished,
    cpu_environment,
    launch,
    plane_and_volume,
    run_processes,
    settings,
    without_times,
)

pytestmark = pytest.mark.usefixtures("on_the_cpu")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def four(folder):
    """What hsdp_ranks.py saw on two groups of two processes."""
    done = run_processes(launch("hsdp_24x4", 4, hsdp_ranks.__file__, str(folder), groups=2))
    assert_finished(done)
    return json.loads((folder / "report-hsdp.json").read_text())


DYING = f"""
import pathlib, runpy, sys
sys.path.insert(0, {str(ROOT)!r})
from accelerate.state import PartialState
from tests.training.cpu_sharding import shard
from walrus_hf.training import loop

train_step = loop.train_step

def dying(run, plan, batches, step):
    if step == 4 and PartialState().process_index == 1:
        pathlib.Path(__file__).with_name("died-now").touch()
        raise RuntimeError("the GPU fell off the bus")
    return train_step(run, plan, batches, step)

shard()
loop.train_step = dying
runpy.run_path({str(ROOT / "examples" / "pretrain.py")!r}, run_name="__main__")
"""


def recipe(folder, **changes):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(vars(settings(**changes))))
    return str(path)


@pytest.fixture(scope="module")
def died(folder):
    """The example on two processes with FSDP2, one of which dies at the fifth step; and how long the other went on."""
    script = folder / "dying.py"
    script.write_text(DYING)
    path = recipe(folder, data=folder / "data", output=folder / "died", strategy="fsdp2")
    # Not forked, as users launch it: then both ranks print their own tracebacks, whichever the launcher notices first.
    command = launch("fsdp2", 2, str(script), "--config", path)
    done = subprocess.run(command, capture_output=True, text=True, env=cpu_environment(), check=False, timeout=300)
    return done, time.time() - script.with_name("died-now").stat().st_mtime


@pytest.fixture(scope="module")
def two(folder, four, died):
    """What pretraining_ranks.py saw on two processes, also of checkpoints of the runs above."""
    done = run_processes(launch("fsdp2", 2, pretraining_ranks.__file__, str(folder)))
    assert_finished(done)
    return json.loads((folder / "report-two.json").read_text())


def test_four_processes_find_their_places_under_every_strategy(four):
    assert four["ddp"] == [[4, 1, rank, 0] for rank in range(4)]
    assert four["fsdp2"] == [[1, 4, 0, rank] for rank in range(4)]
    assert four["hsdp"] == [[2, 2, *divmod(rank, 2)] for rank in range(4)]


@pytest.mark.parametrize("name", ["apart", "unread", "clipped", "unequal", "bf16", "own"])
def test_gradients_of_groups_that_shard_equal_those_of_one_process(folder, four, tmp_path, monkeypatch, name):
    """With drop path; `clipped` with gradient checkpointing, which the one process does without.

    `apart`: one group has a plane, the other a volume, so they use different parameters. Both compute parts of a block
    again, as large models do. `own`: all micro-batches begin with forecasts, in bf16.
    """
    changes = {"mode": "variable"} if name == "unequal" else {}
    if name in ("apart", "unread"):
        changes = {**plane_and_volume(folder / "data"), "gradient_accumulation_steps": 2}
    if name == "unequal":
        assert sorted(four["unequal_counts"]) == [1, SLOTS - 1]
    if name == "own":
        changes = {"own_forecasts": 0.7, "own_steps": 2}
        assert set(four["own_steps"]) == {2}  # on every rank
    if name in ("bf16", "own"):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    unread = four["unread"] if name == "unread" else None  # the source of member 0 of the second group
    expected = gradients.of_one_process(settings(folder / "data", tmp_path, **changes), 2, unread)
    found = torch.load(folder / f"gradients-{name}.pt")
    norm = gradients.norm(expected)
    assert found["before"].keys() == expected.keys()
    assert gradients.norm({k: found["before"][k] - g for k, g in expected.items()}) < 1e-6 * norm
    for key, gradient in expected.items():
        assert (found["before"][key] - gradient).norm() <= 1e-5 * gradient.norm(), key
    assert four["norms"][name] == [pytest.approx(norm, rel=1e-6)] * 4
    scale = 0.01 / norm if name == "clipped" else 1.0  # max_grad_norm
    assert gradients.norm({k: found["after"][k] - scale * g for k, g in expected.items()}) < 1e-4 * scale * norm


def test_bf16_is_in_force_and_gradients_stay_in_float32(folder, four):
    found, exact = (torch.load(folder / f"gradients-{name}.pt")["before"] for name in ("bf16", "clipped"))
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    difference = gradients.norm({name: found[name] - gradient for name, gradient in exact.items()})
    assert 1e-4 < difference / gradients.norm(exact) < 0.1


def test_what_a_group_never_uses_gets_gradients_from_the_other(folder, four):
    found = torch.load(folder / "gradients-apart.pt")["before"]
    ends = [g.norm().item() for name, g in found.items() if "embeddings" in name or "decoder" in name]
    assert len(ends) >= 8
    assert min(ends) > 0


def test_a_signal_to_one_rank_of_four_stops_all_and_they_go_on_as_if_nothing_had_been(folder, four):
    assert four["stopped"] == ["step-00000004"] * 4
    assert verify_checkpoint(folder / "stopped-hsdp" / "step-00000004")["processes"] == 4
    rows = read_metrics(folder / "straight-hsdp")
    assert without_times(read_metrics(folder / "stopped-hsdp")) == without_times(rows)
    for digests in four["digests"]:  # of every rank's shard after each step
        assert len(set(digests["straight-hsdp"])) == STEPS
        assert digests["straight-hsdp"] == digests["stopped-hsdp"]
    first, second, third, _ = four["digests"]
    assert first == third != second  # two groups hold the same, members different parts


def test_groups_with_different_grids_go_on_for_fifty_steps(folder, two):
    rows = read_metrics(folder / "fifty")
    assert [row["step"] for row in rows] == list(range(1, 51))
    assert all(row["losses"].keys() == {"plane", "volume"} and math.isfinite(row["loss"]) for row in rows)


def test_a_gradient_that_is_not_finite_on_one_rank_skips_the_step_on_all_and_five_in_a_row_stop_all(four):
    for message, last, seen in four["diverging"]:
        assert re.match(r"TrainingDiverged: .* 5 steps in a row: seed 5, steps 3, 4, 5, 6, 7, samples", message)
        assert last == 7
        # Steps skipped so far, and whether the weights stayed as they were.
        assert seen == [[0, False], [1, True], [1, False], [2, True], [3, True], [4, True], [5, True]][: len(seen)]
        assert len(seen) == 7


def test_what_one_rank_cannot_read_is_counted_on_all_and_too_much_stops_all(four):
    for message, last, seen in four["unreadable"]:
        assert message.startswith("TooManyReaderErrors: 3 batches could not be read, at most 2 are allowed")
        assert last == 3
        assert seen == [[0, False]] * 3


def test_a_rank_that_dies_ends_the_job_with_its_traceback_within_a_minute(folder, died):
    done, seconds = died
    assert done.returncode != 0
    assert "in dying\n" in done.stderr
    assert "RuntimeError: the GPU fell off the bus" in done.stderr
    assert seconds < 60
    assert verify_checkpoint(folder / "died" / "step-00000003")["processes"] == 2


def test_a_run_that_died_goes_on_from_its_checkpoint_to_the_last_bit(folder, two):
    rows = read_metrics(folder / "fsdp2")
    assert len(rows) == STEPS
    assert without_times(read_metrics(folder / "died")) == without_times(rows)


def test_two_processes_go_on_with_what_four_have_saved(folder, two):
    rows = read_metrics(folder / "fewer")
    assert verify_checkpoint(folder / "fewer" / "step-00000006")["processes"] == 2
    assert_rows_close(rows, read_metrics(folder / "straight-hsdp")[3:])


def test_accelerate_falling_back_to_ddp_is_an_error(two):
    assert "expected fsdp2 or hsdp, found ddp with 2 processes (MULTI_CPU)" in two["fallback"]


def test_two_processes_do_what_one_does(folder, two):
    first, second = two["digests"]
    assert len(first) == STEPS
    assert len(set(first)) == STEPS
    assert first == second
    rows, expected = read_metrics(folder / "two"), read_metrics(folder / "straight")
    assert_rows_close(rows, expected)
    assert all(0 < row["measured_utilisation"] <= 1 for row in rows)


def assert_rows_close(rows, expected):
    """To rounding."""
    assert len(rows) == len(expected)
    for row, other in zip(without_times(rows), without_times(expected)):
        assert row.keys() == other.keys()
        for name, value in other.items():
            if name == "validation":
                for source, errors in value.items():
                    assert row[name][source] == pytest.approx(errors, rel=1e-4)
            else:
                assert row[name] == pytest.approx(value, rel=1e-4), name


def test_a_signal_to_one_rank_stops_both_and_one_process_goes_on_from_there(folder, two):
    assert two["stopped"] == ["step-00000003"] * 2
    assert verify_checkpoint(folder / "stopped" / "step-00000003")["processes"] == 2
    loop.pretrain(settings(folder / "data", folder / "stopped", resume_from_checkpoint="latest"))
    rows, expected = read_metrics(folder / "stopped"), read_metrics(folder / "straight")
    assert_rows_close(rows[3:], expected[3:])


def test_two_processes_stop_at_the_same_step_when_their_time_is_over(folder, two):
    steps = len(read_metrics(folder / "boxed"))
    assert 1 <= steps < 100_000
    assert two["boxed"] == [steps, steps]


def test_groups_with_different_numbers_of_micro_batches_have_the_gradient_of_one_process(folder, two, tmp_path):
    assert [sorted(counts) for counts in two["counts"]] == [[1, SLOTS - 1]] * 3
    changes = {"mode": "variable", "max_steps": 3, "validation_steps": 0}
    loop.pretrain(settings(folder / "data", tmp_path, **changes))
    assert_rows_close(read_metrics(folder / "variable"), read_metrics(tmp_path))


LEAVING = f"""
import pathlib, runpy, sys
from accelerate.state import PartialState
runpy.run_path({str(ROOT / "examples" / "pretrain.py")!r}, run_name="__main__")
(pathlib.Path(__file__).parent / f"left-{{PartialState._shared_state['process_index']}}").touch()
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)
def test_a_signal_to_the_launcher_saves_within_twenty_seconds_and_every_process_leaves_in_order(
    folder, tmp_path, number
):
    script, run = tmp_path / "leaving.py", tmp_path / "run"
    script.write_text(LEAVING)
    path = recipe(tmp_path, data=folder / "data", output=run, max_steps=100_000, validation_steps=0, save_steps=100_000)
    command = launch("ddp", 2, str(script), "--config", path)
    with subprocess.Popen(command, env=cpu_environment(), stderr=subprocess.PIPE, text=True) as launcher:
        while not (run / "metrics.jsonl").is_file() or len(read_metrics(run)) < 2:
            assert launcher.poll() is None, launcher.stderr.read()[-3000:]
            time.sleep(0.1)
        launcher.send_signal(number)
        told = time.monotonic()
        launcher.stderr.read()  # to the end, when the last process has left
        assert time.monotonic() - told < 20
    (checkpoint,) = run.glob("step-*")
    assert verify_checkpoint(checkpoint)["step"] == len(read_metrics(run))
    assert sorted(file.name for file in tmp_path.glob("left-*")) == ["left-0", "left-1"]
