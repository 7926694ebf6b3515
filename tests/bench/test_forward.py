"""The forward benchmark runs, both sides agree and its JSON is whole; times are never asserted."""

import json
import os

import pytest
import torch
from typer.testing import CliRunner

from walrus_hf import WalrusProcessor
from walrus_hf.bench import __main__ as bench
from walrus_hf.bench.cases import FIELDS, cases, network
from walrus_hf.bench.flops import forward_flops
from walrus_hf.bench.forward import measure_forward
from walrus_hf.bench.plain import PlainWalrus

SECONDS = ("seconds", "fastest", "slowest", "plain_seconds", "plain_fastest", "plain_slowest")
OTHERS = ("ratio_median", "ratio_lowest", "ratio_highest", "share", "plain_share", "peak_gflops", "reference_gflop")


def run(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(bench.app, ["forward", "--small", "--repeats", "2", *map(str, arguments)])
    return result.exit_code, result.output


def test_a_small_run_prints_both_sides_and_writes_json(tmp_path):
    code, output = run("--json", tmp_path / "forward.json")
    assert code == 0, output
    assert "SMALL SIZES, no measure of speed" in output
    for part in ("2d: ours", "3d: ours", "plain / ours", "effective share", "rms"):
        assert part in output
    assert [file.name for file in tmp_path.iterdir()] == ["forward.json"]
    found = json.loads((tmp_path / "forward.json").read_text())
    assert found["small"] is True
    assert list(found["cases"]) == ["2d", "3d", "2d_bfloat16", "3d_bfloat16"]
    assert all(0 < found["cases"][f"{name}_bfloat16"]["difference_rms"] < 0.05 for name in ("2d", "3d"))
    for case in (found["cases"]["2d"], found["cases"]["3d"]):
        assert all(case[name] > 0 for name in (*SECONDS, *OTHERS))
        assert case["fastest"] <= case["seconds"] <= case["slowest"]
        assert case["ratio_lowest"] <= case["ratio_median"] <= case["ratio_highest"]
        assert case["share"] / case["plain_share"] == pytest.approx(case["plain_seconds"] / case["seconds"])
        assert 0 < case["difference"] <= bench.AGREEMENT


def test_sides_that_disagree_fail_the_benchmark(monkeypatch):
    forward = PlainWalrus.forward
    monkeypatch.setattr(PlainWalrus, "forward", lambda *args: [1.001 * y for y in forward(*args)])
    code, output = run()
    assert code == 1
    assert "disagree" in output


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    old = tmp_path / "forward.json"
    old.write_text("old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    code, _ = run("--json", old)
    assert code == 1
    assert old.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["forward.json"]


def test_without_a_given_reference_the_work_of_all_frames_is_counted():
    config, case = network(small=True), cases(small=True)["2d"]
    with torch.random.fork_rng():
        result = measure_forward(config, case, repeats=1, matrix=64)
    plan = WalrusProcessor(tokens_per_axis=4).plan(case["grid"], [(2, 2)] * 3)
    parts = forward_flops(config, plan, case["frames"], len(FIELDS))
    assert result["reference_gflop"] == pytest.approx((sum(parts.values()) - parts["attention"]) / 1e9)
    assert result["done_gflop"] < sum(parts.values()) / 1e9
