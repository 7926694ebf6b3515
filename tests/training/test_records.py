"""Times of micro-batches, where the last one waits for others."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("accelerate")

from walrus_hf.training import records


@pytest.mark.parametrize(
    ("passes", "times", "waits", "expected"),
    [
        # Marks before, after the forward and after the backward passes. A pass takes 1 s forward and 2 s backward.
        ((1, 1), (0, 1, 3, 3, 4, 6), False, [3, 3]),
        ((1, 1), (0, 1, 3, 3, 4, 60), True, [3, 3]),
        ((1, 7), (0, 1, 3, 3, 10, 60), True, [3, 9]),
        ((7, 1), (0, 7, 9, 9, 10, 60), True, [9, 3]),
        ((3,), (0, 3, 60), True, [5]),
    ],
)
def test_the_last_backward_pass_is_taken_from_its_forward_pass_and_the_others(
    monkeypatch, passes, times, waits, expected
):
    clock = iter(times)
    monkeypatch.setattr(records, "time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    watch = records.Stopwatch(torch.device("cpu"))
    for _ in times:
        watch.mark()
    assert watch.micro_batches(passes, last_waits=waits) == pytest.approx(expected)
