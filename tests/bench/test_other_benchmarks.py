"""The benchmarks of training, rollouts and memory run at small sizes and write what they say; numbers are no test."""

import json

import pytest
import torch
from typer.testing import CliRunner

from walrus_hf.bench.__main__ import app
from walrus_hf.bench.cases import AGREEMENT, cases, make_sides, network
from walrus_hf.bench.footprint import in_own_process, peak_of, resident
from walrus_hf.bench.train import ours_loss, plain_loss


def cases_of(tmp_path, command, *arguments):
    file = tmp_path / "found.json"
    result = CliRunner().invoke(app, [command, "--small", "--json", str(file), *arguments])
    assert result.exit_code == 0, result.output
    assert "SMALL SIZES, no measure of speed" in result.output
    return json.loads(file.read_text())["cases"], result.output


def test_training_steps_of_both_sides_agree_in_loss_and_gradients(tmp_path):
    found, output = cases_of(tmp_path, "train", "--repeats", "1")
    assert list(found) == ["2d", "3d"]
    for case in found.values():
        assert case["ratio_median"] > 0
        assert case["difference"] <= AGREEMENT
        assert case["gradient_difference"] <= 1e-3
        assert 0.1 < case["loss"] < 10
        assert case["share"] / case["plain_share"] == pytest.approx(case["plain_seconds"] / case["seconds"])
    assert "plain / ours" in output


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("walrus_hf.bench.train.measure_training", lambda *_: pytest.fail("something was measured"))
    result = CliRunner().invoke(app, ["train", "--small", "--json", str(tmp_path / "gone" / "found.json")])
    assert result.exit_code == 2
    assert "expected a file in a folder that exists" in " ".join(result.output.replace("│", " ").split())


def test_both_sides_train_on_the_same_loss():
    sides = make_sides(network(small=True), cases(small=True)["2d"])
    with torch.no_grad():
        assert ours_loss(sides)().item() == pytest.approx(plain_loss(sides)().item(), rel=1e-5)


def test_a_rollout_is_compared_with_and_without_its_cache(tmp_path):
    found, output = cases_of(tmp_path, "rollout", "--repeats", "1")
    assert list(found) == ["cached_2d", "cached_3d"]
    for case in found.values():
        assert case["ratio_median"] > 0
        assert case["ratio_amortised_median"] > 0
        assert case["share"] / case["plain_share"] == pytest.approx(case["plain_seconds"] / case["amortised_seconds"])
    # keys and values, float32, 2 layers, 3 + 7 frames, 4 x 4 tokens, width 32
    assert found["cached_2d"]["cache_bytes"] == 2 * 4 * 2 * 10 * 16 * 32
    assert "between renewals" in output


@pytest.mark.slow
def test_memory_of_training_steps_is_measured_in_fresh_processes(tmp_path):
    found, _ = cases_of(tmp_path, "memory")
    for case in found.values():
        assert case["ratio_median"] == case["ours_bytes"] / case["plain_bytes"]
        assert min(case["ours_bytes"], case["plain_bytes"], case["checkpointed_bytes"]) > 2**20


@pytest.mark.slow
def test_loading_is_measured_against_reading_the_file(tmp_path):
    found, _ = cases_of(tmp_path, "load", "--repeats", "1")
    case = found["load"]
    assert case["ratio_median"] == pytest.approx(case["seconds"] / case["read_seconds"])
    assert case["forecast_float32_bytes"] > case["weight_bytes"]


def test_a_peak_counts_what_was_freed_again():
    before = resident("VmRSS")  # some of it may be free already, and used again
    assert peak_of(lambda: torch.ones(2**27).sum()) - before > 2**28


def test_the_peak_of_a_training_step_is_measured_in_a_process_of_its_own():
    assert in_own_process("training_peak", True, "3d", "checkpointed")["bytes"] > 2**20


def test_a_measuring_process_that_fails_says_why():
    with pytest.raises(RuntimeError, match="KeyError: '4d'"):
        in_own_process("training_peak", True, "4d", "ours")
