"""`python -m walrus_hf.bench forward`: one forecast step beside the plain reading of the architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..configuration_walrus import WalrusConfig
from .cases import (
    FIELDS,
    MATRIX,
    both_sides,
    compared,
    in_turn,
    make_sides,
    matmul_peak,
    peak_and_shares,
    ratio,
    reference_flops,
    spread,
)
from .flops import forward_flops


@torch.inference_mode()
def measure_forward(
    config: WalrusConfig, case: Mapping[str, Any], repeats: int, matrix: int = MATRIX
) -> dict[str, float]:
    """Both sides on one case, with the same weights and shifts: seconds, ratios and shares of the matmul peak.

    Args:
        case: `grid`, `frames`, and `reference_flops` where they are known.
        matrix: side of the matrices that measure the peak.
    """
    sides = make_sides(config, case)

    def ours():
        return sides.ours(sides.values, sides.ids, plan=sides.plan, frames_to_keep=1).delta[:, -1]

    def plain():
        return sides.plain_delta()[:, -1]

    expected = plain()
    difference = ((ours() - expected).abs().max() / expected.square().mean().sqrt()).item()
    seconds = in_turn({"peak": matmul_peak(matrix), "ours": ours, "plain": plain}, repeats)
    done = forward_flops(config, sides.plan, case["frames"], len(FIELDS), frames_to_keep=1)
    return {
        **compared(seconds, reference_flops(sides, case), matrix),
        "done_gflop": sum(done.values()) / 1e9, "difference": difference,
    }  # fmt: skip


@torch.inference_mode()
def measure_bfloat16(config: WalrusConfig, case: Mapping[str, Any], repeats: int) -> dict[str, float]:
    """Our model with weights in float32 and in bfloat16: seconds, their ratio, and how far the last deltas differ."""
    sides = make_sides(config, case)
    low: Any = make_sides(config, case).ours
    low.to(torch.bfloat16)

    def run(model):
        return model(sides.values, sides.ids, plan=sides.plan, frames_to_keep=1).delta[:, -1]

    expected = run(sides.ours)
    difference = ((run(low) - expected).square().mean() / expected.square().mean()).sqrt().item()
    seconds = in_turn({"float32": lambda: run(sides.ours), "bfloat16": lambda: run(low)}, repeats)
    return {
        **ratio(seconds["float32"], seconds["bfloat16"]), **spread(seconds["bfloat16"]),
        **spread(seconds["float32"], "float32_"), "difference_rms": difference,
    }  # fmt: skip


def describe(r: Mapping[str, float]) -> str:
    return (
        f"{both_sides(r)}; {r['done_gflop']:.4g} GFLOP done for {r['reference_gflop']:.4g} of the reference, "
        f"{peak_and_shares(r)}; last frames differ by {r['difference']:.1e} rms"
    )


def describe_bfloat16(r: Mapping[str, float]) -> str:
    return (
        f"bfloat16 {r['seconds']:.3f} s ({r['fastest']:.3f}, {r['slowest']:.3f}), "
        f"float32 {r['float32_seconds']:.3f} s, "
        f"float32 / bfloat16 {r['ratio_median']:.2f} ({r['ratio_lowest']:.2f}, {r['ratio_highest']:.2f}); "
        f"deltas differ by {100 * r['difference_rms']:.2g}% rms"
    )
