"""`fit` on two processes does what one does, and one of them writes."""

import json

import pytest
import torch

from walrus_hf import WalrusPipeline
from walrus_hf.finetuning import fit

from . import finetuning_ranks
from .finetuning_runs import RUNS, write_base
from .training.small_runs import assert_finished, launch, run_processes

pytest.importorskip("peft")
pytestmark = [
    pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("ranks")
    write_base(path / "base")
    return path


@pytest.fixture(scope="module")
def report(folder):
    """What finetuning_ranks.py saw."""
    assert_finished(run_processes(launch("ddp", 2, finetuning_ranks.__file__, str(folder))))
    return json.loads((folder / "report.json").read_text())


def read(folder, run):
    found = json.loads((folder / run / "results.json").read_text())
    rows = [json.loads(row) for row in (folder / run / "metrics.jsonl").read_text().splitlines()]
    return found, rows


def test_both_processes_end_with_the_same_weights_and_those_are_saved(folder, report):
    first, second = report["weights"]
    assert first == second
    whole, interrupted, early, replaced = first
    assert whole == interrupted == replaced != early
    for run, expected in (("two", whole), ("cut", interrupted), ("early", replaced)):
        assert finetuning_ranks.digest(WalrusPipeline.from_pretrained(folder / run)) == expected


def test_two_processes_do_what_one_does_with_two_micro_batches_a_step(folder, report):
    settings = {**finetuning_ranks.SETTINGS, "gradient_accumulation_steps": 2}
    fit(folder / "base", RUNS, folder / "one", **settings)
    (found, rows), (expected, expected_rows) = (read(folder, run) for run in ("two", "one"))
    for row, other in zip(rows, expected_rows, strict=True):
        for name in ("step", "loss", "grad_norm", "learning_rate"):
            assert row[name] == pytest.approx(other[name], rel=1e-4), name
    for when, curve in expected["rollout_vrmse"].items():
        assert found["rollout_vrmse"][when] == pytest.approx(curve, rel=1e-4), when
    assert [row["vrmse"] for row in found["validations"]] == pytest.approx(
        [row["vrmse"] for row in expected["validations"]], rel=1e-4
    )
    one, two = (WalrusPipeline.from_pretrained(folder / run).model.state_dict() for run in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-4, rtol=1e-3, msg=name)


def test_a_signal_to_one_process_stops_both_and_they_go_on_exactly(folder, report):
    """At a step after which a validation is due."""
    assert report["checkpoints"] == [["step-00000002"]] * 2
    (found, rows), (expected, expected_rows) = (read(folder, run) for run in ("cut", "two"))
    assert [row["loss"] for row in rows] == [row["loss"] for row in expected_rows]
    for what in ("validations", "rollout_vrmse", "best_step", "steps"):
        assert found[what] == expected[what]


def test_both_processes_stop_early_keep_the_best_weights_and_refuse_a_folder_that_is_taken(folder, report):
    base = finetuning_ranks.digest(WalrusPipeline.from_pretrained(folder / "base"))
    assert [weights[2] for weights in report["weights"]] == [base, base]
    assert all("found a finished run" in refusal for refusal in report["refusal"])
    assert read(folder, "early")[0]["steps"] == 4  # of the run that replaced it
