"""The benchmark of readers runs at a small size and says what it measured; its numbers are no test."""

import json

import pytest
from typer.testing import CliRunner

from walrus_hf.bench.__main__ import app

pytest.importorskip("the_well")


def test_the_small_benchmark_writes_ratios_requests_and_bytes(tmp_path):
    result = CliRunner().invoke(app, ["data", "--small", "--repeats", "1", "--json", str(tmp_path / "d.json")])
    assert result.exit_code == 0, result.output
    assert "no measure of speed" in result.output
    cases = json.loads((tmp_path / "d.json").read_text())["cases"]
    assert set(cases) == {"store_50ms", "local_disk"}
    for case in cases.values():
        assert case["ratio_median"] > 0
        assert case["ours_samples_per_second"] > 0
    store = cases["store_50ms"]
    assert store["ours_amplification"] < 1.5
    assert store["ours_requests_per_sample"] < store["theirs_requests_per_sample"]
