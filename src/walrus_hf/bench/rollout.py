"""`python -m walrus_hf.bench rollout`: a cached rollout beside the plain one, step by step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch

from ..configuration_walrus import WalrusConfig
from .cases import MATRIX, make_sides, matmul_peak, peak_and_shares, ratio, reference_flops, shares

CACHE_STEPS = 8


@torch.inference_mode()
def measure_rollout(
    config: WalrusConfig, case: Mapping[str, Any], repeats: int, matrix: int = MATRIX
) -> dict[str, float]:
    """Our rollout with and without `use_cache`, in turn: seconds a step and their ratios.

    `ratio` compares a step of the plain rollout with a step between two renewals, `ratio_amortised` with the mean over
    `CACHE_STEPS` steps, of which the first computes all frames. Shares are those of means over the steps.
    """
    sides = make_sides(config, case)

    def steps(**cache: Any) -> list[float]:
        found: list[float] = []
        rollout = sides.ours.rollout(sides.values, sides.ids, CACHE_STEPS, plan=sides.plan, **cache)
        while True:
            begin = time.perf_counter()
            if next(rollout, None) is None:
                return found
            found.append(time.perf_counter() - begin)

    plain, held, cached, products, peak = [], [], [], [], matmul_peak(matrix)
    for i in range(repeats + 1):
        begin = time.perf_counter()
        peak()
        seconds = time.perf_counter() - begin
        uncached, with_cache = steps(), steps(use_cache=True, cache_steps=CACHE_STEPS)
        if i:  # the first round warms up
            plain.append(statistics.mean(uncached))
            held.append(statistics.mean(with_cache[1:]))
            cached.append(statistics.mean(with_cache))
            products.append(seconds)
    frames = case["frames"] + CACHE_STEPS - 1
    reached = shares({"peak": products, "ours": cached, "plain": plain}, reference_flops(sides, case), matrix)
    return {
        **reached, **ratio(plain, held), **ratio(plain, cached, "ratio_amortised"), "seconds": statistics.median(held),
        "amortised_seconds": statistics.median(cached), "plain_seconds": statistics.median(plain),
        "cache_bytes": 2.0 * 4 * config.num_hidden_layers * frames * sides.plan.num_tokens * config.hidden_size,
    }  # fmt: skip


def describe(r: Mapping[str, float]) -> str:
    return (
        f"a step of the plain rollout {r['plain_seconds']:.3f} s, between renewals {r['seconds']:.3f} s: "
        f"{r['ratio_median']:.2f}x ({r['ratio_lowest']:.2f}, {r['ratio_highest']:.2f}); mean over {CACHE_STEPS} steps "
        f"{r['amortised_seconds']:.3f} s: {r['ratio_amortised_median']:.2f}x; "
        f"{peak_and_shares(r)}; cache {r['cache_bytes'] / 2**20:.0f} MiB"
    )
