"""Checkpoints: complete or not there, resumed to the last bit, and refused in one line where they do not fit."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("accelerate")
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from walrus_hf.training import checkpoints
from walrus_hf.training.checkpoints import (
    latest_checkpoint,
    load_checkpoint,
    resolve,
    save_checkpoint,
    verify_checkpoint,
)
from walrus_hf.training.optim import published_schedule

from . import two_ranks
from .small_runs import assert_finished, launch, run_processes

STATE = {"seed": 7, "cost": {"waves": 0.1 + 0.2, "boxes": 4.4}, "guards": {"row": [3, 4], "last": None}}


def prepared(width=2, seed=0):
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(seed)
    model = nn.Linear(3, width)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    return accelerator, model, optimizer


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_comes_back(tmp_path):
    accelerator, model, optimizer = prepared()
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    path = save_checkpoint(accelerator, tmp_path / "out", 12, STATE)
    assert path == tmp_path / "out" / "step-00000012" == latest_checkpoint(tmp_path / "out")
    other, later, its_optimizer = prepared(seed=1)
    assert load_checkpoint(other, path) == {**STATE, "step": 12}
    assert torch.equal(later.weight, model.weight)
    moments = [state["exp_avg"] for state in its_optimizer.state.values()]
    assert all(torch.equal(a, state["exp_avg"]) for a, state in zip(moments, optimizer.state.values(), strict=True))


def test_old_checkpoints_go_once_the_new_one_is_in_place(tmp_path, monkeypatch):
    accelerator, *_ = prepared()
    for step in (1, 2, 3):
        save_checkpoint(accelerator, tmp_path, step, {}, keep=2)
    assert names(tmp_path) == ["step-00000002", "step-00000003"]

    def present(function):
        def spy(*arguments):
            events.append((function.__name__, names(tmp_path)))
            return function(*arguments)

        return spy

    events = []
    monkeypatch.setattr(checkpoints, "_commit", present(checkpoints._commit))
    monkeypatch.setattr(checkpoints, "_prune", present(checkpoints._prune))
    save_checkpoint(accelerator, tmp_path, 4, {}, keep=2)
    assert events == [
        ("_commit", ["step-00000002", "step-00000003", "tmp-00000004"]),
        ("_prune", ["step-00000002", "step-00000003", "step-00000004"]),
    ]
    assert names(tmp_path) == ["step-00000003", "step-00000004"]


def test_a_damaged_checkpoint_does_not_count_among_those_to_keep(tmp_path):
    accelerator, *_ = prepared()
    for step in (1, 2, 3):
        save_checkpoint(accelerator, tmp_path, step, {}, keep=2)
    os.truncate(tmp_path / "step-00000003" / "model.safetensors", 10)
    save_checkpoint(accelerator, tmp_path, 4, {}, keep=2)
    assert names(tmp_path) == ["step-00000002", "step-00000003", "step-00000004"]


def test_after_going_back_the_new_timeline_is_the_latest_and_is_not_pruned(tmp_path):
    accelerator, *_ = prepared()
    for step in (100, 200, 300):
        save_checkpoint(accelerator, tmp_path, step, {})
    load_checkpoint(accelerator, tmp_path / "step-00000100")
    assert save_checkpoint(accelerator, tmp_path, 150, {"seed": 8}, keep=2) == latest_checkpoint(tmp_path)
    assert names(tmp_path) == ["step-00000150", "step-00000300"]
    save_checkpoint(accelerator, tmp_path, 300, {"seed": 8}, keep=2)  # in the place of the abandoned one
    assert load_checkpoint(accelerator, latest_checkpoint(tmp_path)) == {"seed": 8, "step": 300}
    assert names(tmp_path) == ["step-00000150", "step-00000300"]


def test_a_kill_while_a_checkpoint_of_the_same_step_is_replaced_loses_none(tmp_path, monkeypatch):
    accelerator, *_ = prepared()
    save_checkpoint(accelerator, tmp_path, 100, {"seed": 7}, keep=1)
    rename = os.rename

    def killed(old, new):
        if new.name == "step-00000100":
            raise KeyboardInterrupt
        rename(old, new)

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(accelerator, tmp_path, 100, {"seed": 8}, keep=1)
    monkeypatch.undo()
    assert load_checkpoint(accelerator, resolve("latest", tmp_path)) == {"seed": 7, "step": 100}
    with pytest.raises(FileExistsError, match="expected an output folder without a run"):
        checkpoints.refuse_other_run(tmp_path)
    monkeypatch.setattr(checkpoints, "_save_state", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):  # while the next one is written, it is still there
        save_checkpoint(accelerator, tmp_path, 200, {"seed": 9}, keep=1)
    monkeypatch.undo()
    assert latest_checkpoint(tmp_path).name == "step-00000100"
    save_checkpoint(accelerator, tmp_path, 200, {"seed": 9}, keep=1)
    assert names(tmp_path) == ["step-00000200"]


def test_only_what_a_killed_save_left_behind_is_removed(tmp_path):
    accelerator, *_ = prepared()
    for name in ("tmp-00000001", "tmp-pruned-step-00000001", "tmp-mine"):
        (tmp_path / name).mkdir()
    (tmp_path / "tmp-notes.txt").write_text("mine")
    save_checkpoint(accelerator, tmp_path, 2, {})
    assert names(tmp_path) == ["step-00000002", "tmp-mine", "tmp-notes.txt"]


def test_latest_is_nothing_yet_then_the_last_complete_one(tmp_path):
    assert resolve("latest", tmp_path / "never") is None
    accelerator, *_ = prepared()
    for step in (1, 2):
        save_checkpoint(accelerator, tmp_path, step, {})
    (tmp_path / "tmp-00000003").mkdir()
    shutil.copy(tmp_path / "step-00000002" / checkpoints.STATE_FILE, tmp_path / "tmp-00000003")
    assert resolve("latest", tmp_path).name == "step-00000002"
    (tmp_path / "step-00000002" / "model.safetensors").unlink()
    assert resolve("latest", tmp_path).name == "step-00000001"
    assert resolve(str(tmp_path / "step-00000001"), tmp_path / "never").name == "step-00000001"
    (tmp_path / "step-00000001" / "optimizer.bin").unlink()
    with pytest.raises(ValueError, match=r"step-00000002.model.safetensors: expected \d+ bytes, found no file; .* dam"):
        resolve("latest", tmp_path)  # and not a silent start from scratch


@pytest.mark.parametrize(
    ("damage", "error", "expected"),
    [
        (lambda path: shutil.rmtree(path), FileNotFoundError, "expected the folder of a checkpoint, found none"),
        (lambda path: (path / "training_state.json").unlink(), FileNotFoundError, "the checkpoint is incomplete"),
        (lambda path: (path / "training_state.json").write_text('{"format": 2'), ValueError, "expected the manifest"),
        (lambda path: (path / "training_state.json").write_text("[]"), ValueError, "expected the manifest"),
        (lambda path: (path / "training_state.json").write_text('{"format": 9, "files": {}}'), ValueError, "format 3"),
        (lambda path: os.truncate(path / "optimizer.bin", 5), ValueError, r"expected \d+ bytes, found 5; the check"),
        (lambda path: (path / "random_states_0.pkl").unlink(), ValueError, "found no file; the checkpoint is damaged"),
    ],
)
def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path, damage, error, expected):
    accelerator, *_ = prepared()
    path = save_checkpoint(accelerator, tmp_path, 1, {})
    damage(path)
    for refused in (lambda: load_checkpoint(accelerator, path), lambda: resolve(path, tmp_path)):
        with pytest.raises(error, match=expected) as found:
            refused()
        assert "\n" not in str(found.value)
    assert latest_checkpoint(tmp_path) is None


def test_a_checkpoint_of_another_model_is_refused_in_one_line(tmp_path):
    accelerator, *_ = prepared(width=2)
    path = save_checkpoint(accelerator, tmp_path, 1, {})
    other, *_ = prepared(width=4)
    with pytest.raises(ValueError, match=r"step-00000001: does not fit this model and optimiser, .*size mismatch") as e:
        load_checkpoint(other, path)
    assert "\n" not in str(e.value)
    with pytest.raises(ValueError, match=r"holds no running averages; resume without them"):
        load_checkpoint(other, path, {"weight": torch.zeros(4, 3)})


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"cost": {3: 1.0}}, r"^state\['cost'\]: expected strings as keys, found 3; JSON would make it a string$"),
        ({"row": [1, (2, 3)]}, r"^state\['row'\]\[1\]: expected None, .* found tuple; convert it first$"),
        ({"loss": torch.tensor(1.0)}, r"^state\['loss'\]: .* found Tensor; convert it first$"),
    ],
)
def test_state_that_would_come_back_changed_is_refused_before_anything_is_written(tmp_path, state, expected):
    accelerator, *_ = prepared()
    with pytest.raises(ValueError, match=expected):
        save_checkpoint(accelerator, tmp_path, 1, state)
    assert names(tmp_path) == []


def test_no_checkpoint_is_made_inside_an_accumulation_window(tmp_path):
    accelerator, model, _ = prepared()
    accelerator.gradient_accumulation_steps = 2
    with accelerator.accumulate(model), pytest.raises(RuntimeError, match=r"save after the optimiser step"):
        save_checkpoint(accelerator, tmp_path, 1, {})
    with accelerator.accumulate(model):
        save_checkpoint(accelerator, tmp_path, 1, {})


def test_keeping_nothing_is_refused(tmp_path):
    accelerator, *_ = prepared()
    with pytest.raises(ValueError, match=r"keep: expected at least 1, found 0"):
        save_checkpoint(accelerator, tmp_path, 1, {}, keep=0)


def test_a_file_that_was_not_written_leaves_the_older_checkpoint_the_latest(tmp_path, monkeypatch):
    accelerator, *_ = prepared()
    save_checkpoint(accelerator, tmp_path, 1, {}, keep=1)
    save_state = Accelerator.save_state

    def forgetful(self, folder):
        save_state(self, folder)
        (Path(folder) / "random_states_0.pkl").unlink()

    monkeypatch.setattr(Accelerator, "save_state", forgetful)
    with pytest.raises(OSError, match=r"tmp-00000002: rank 0 misses random_states_0.pkl; is the output folder shared"):
        save_checkpoint(accelerator, tmp_path, 2, {}, keep=1)
    assert resolve("latest", tmp_path).name == "step-00000001"
    monkeypatch.undo()
    save_checkpoint(accelerator, tmp_path, 3, {}, keep=1)
    assert names(tmp_path) == ["step-00000003"]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two_ranks.py saw on two processes, and its folder."""
    folder = tmp_path_factory.mktemp("two_ranks")
    done = run_processes(launch("ddp", 2, two_ranks.__file__, str(folder)))
    assert_finished(done)
    return json.loads((folder / "report.json").read_text()), folder


def test_a_signal_to_one_rank_saves_on_all_at_the_same_step(two):
    report, folder = two
    assert report["distributed_type"] == "MULTI_CPU"
    assert report["saved_at"] == [4, 4]
    assert names(folder / "runs") == ["step-00000004"]
    manifest = verify_checkpoint(folder / "runs" / "step-00000004")
    assert {"random_states_0.pkl", "random_states_1.pkl", "model.safetensors"} <= manifest["files"].keys()


def test_a_resumed_run_equals_the_uninterrupted_one_to_the_last_bit(two):
    report, _ = two
    assert report["state"] == {"seed": 7, "cost": {"a": 0.1}, "step": 4}
    assert report["averages_came_back"]
    assert report["resumed_equals_straight"] == [True, True]
    assert report["averages_equal_straight"]


def test_two_processes_follow_the_schedule_of_one(two):
    report, _ = two
    expected = 1e-2 * published_schedule(4, two_ranks.STEPS)
    assert report["learning_rate_at_4"] == report["learning_rate_resumed"] == expected


def test_one_process_resumes_what_two_have_saved_to_rounding(two):
    report, folder = two
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, step_scheduler_with_optimizer=False)
    run = two_ranks.Run(accelerator, average=True)
    before = run.parameters()
    run.step = load_checkpoint(accelerator, folder / "runs" / "step-00000004", run.averages())["step"]
    assert two_ranks.same(run.parameters(), torch.load(folder / "at-4.pt"))
    assert int(run.average.updates) == 4
    run.train(two_ranks.STEPS)
    straight = torch.load(folder / "straight.pt")
    # What is added to all keys changes no attention. Its gradient is zero but for rounding, which Adam scales up to
    # full steps, so it ends wherever the machine's rounding takes it.
    idle = "layers.0.space_mixing.k_norm.bias"
    found = {name: value for name, value in run.parameters().items() if name != idle}
    assert two_ranks.distance(found, straight) < 1e-5 * two_ranks.distance(before, straight)
    assert run.loss(99, 0).item() == pytest.approx(report["loss_of_straight"], rel=1e-5)


def test_state_or_steps_that_differ_between_ranks_are_refused_on_all_of_them(two):
    report, _ = two
    for refused in (report["rank_dependent"], report["another_step"]):
        assert re.match(r"ValueError: state: expected the same step and state on all ranks, .* on ranks \[1\]", refused)
    assert report["after_refusal"] == ["step-00000004"]


def test_a_crash_before_the_move_leaves_the_older_checkpoint_and_the_next_save_cleans_up(two):
    report, _ = two
    assert report["crash"] == "RuntimeError: the node went away"
    assert report["after_crash"] == ["step-00000004", "tmp-00000006"]
    assert report["latest_after_crash"] == "step-00000004"
    assert report["after_pruning"] == ["step-00000007", "step-00000008"]


def test_sharded_weights_muon_and_averages_resume_to_the_last_bit(two):
    report, _ = two
    assert report["is_fsdp2"]
    assert report["sharded_resumed_equals_straight"] == [True, True]
    assert report["sharded_averages_equal"]


def test_muon_steps_alike_on_sharded_and_on_whole_matrices(two):
    _, folder = two
    AcceleratorState._reset_state(reset_partial_state=True)
    run = two_ranks.Run(Accelerator(cpu=True, step_scheduler_with_optimizer=False), muon=True)
    before = run.parameters()
    run.train(1)
    sharded = torch.load(folder / "sharded-muon.pt")
    for name in ("layers.0.time_attention.q_proj.weight", "layers.0.space_mixing.up_proj.weight", "first.weight"):
        change, expected = sharded[name] - before[name], run.parameters()[name] - before[name]
        assert expected.norm() > 0
        # Newton-Schulz works in bfloat16, and the gradients of two processes are summed in another order.
        assert (change - expected).norm() < 0.05 * expected.norm()


def test_averages_serve_sharded_models_inside_a_swap_only(two):
    report, _ = two
    assert report["swapped"]
    assert report["swapped_back"]
    own, averaged, again = report["losses_around_swap"][0]
    assert own == again != averaged
    assert report["losses_around_swap"][0] == report["losses_around_swap"][1]


def test_the_gradient_guard_reads_the_norm_of_sharded_gradients(two):
    report, _ = two
    assert report["norm_is_dtensor"]
    assert report["guard_admits_finite"]
    assert not report["guard_admits_infinite"]


def test_a_checkpoint_of_another_strategy_is_refused(two):
    report, _ = two
    assert re.search(
        r"was written by a run with whole weights on each process, this one has FSDP2;", report["other_strategy"]
    )
    assert "\n" not in report["other_strategy"]
