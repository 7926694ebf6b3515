"""What the benchmarks run: the reference network and its cases, both sides with the same weights, timed in turn."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..configuration_walrus import WalrusConfig
from ..convert import published_state_dict_to_walrus
from ..fields import PUBLISHED_FIELDS
from ..jitter import TokenizationPlan
from ..modeling_walrus import WalrusForPrediction
from ..processing_walrus import WalrusProcessor
from .flops import forward_flops
from .plain import PlainWalrus, draw_strong_weights

# The reference case: network, grids, frames, and the operations of the published implementation, all frames decoded, as
# torch's counter sees them (space attention not counted).
NETWORK = {
    "hidden_size": 384, "intermediate_size": 768, "num_hidden_layers": 8, "num_attention_heads": 6,
    "stem_hidden_size": 96, "drop_path_rate": 0.0,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "2d": {"grid": (256, 256, 1), "frames": 6, "reference_flops": 222.4e9},
    "3d": {"grid": (64, 64, 64), "frames": 3, "reference_flops": 703.5e9},
}
# The same in seconds instead of minutes; the reference operations are our own count then.
SMALL_NETWORK = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "stem_hidden_size": 8, "tokens_per_axis": 4, "tokens_per_axis_3d": 4, "drop_path_rate": 0.0,
}  # fmt: skip
SMALL_CASES: dict[str, dict[str, Any]] = {
    "2d": {"grid": (32, 32, 1), "frames": 3},
    "3d": {"grid": (16, 16, 16), "frames": 2},
}
FIELDS = ("velocity_x", "velocity_y", "velocity_z", "pressure")
# What the two sides may differ by: relative to the root mean square of the last frame's delta, or to the loss.
AGREEMENT = 1e-4
# Matrix products a round: about as long as a forward pass, since a CPU clocks a short burst higher than it can hold.
MATMULS, MATRIX, SMALL_MATRIX = 4, 4096, 256
# The plain side must be as good as the published code, or the ratio flatters.
PLAIN_SHARE_2D = 0.45


@dataclasses.dataclass(frozen=True)
class Sides:
    """Both implementations with the same weights, and what they are given."""

    ours: WalrusForPrediction
    plain: PlainWalrus
    values: Tensor  # (B, T, C, H, W, D)
    labels: Tensor  # (B, T, C, H, W, D)
    ids: Tensor  # (B, C)
    plan: TokenizationPlan

    def plain_delta(self) -> Tensor:
        """Normalised deltas of all frames by the plain side, `(B, T, C, H, W, D)`."""
        shifts = self.plan.layer_shifts[: len(self.plain.blocks)]
        arguments = (self.plan.boundaries, self.plan.strides, self.plan.jitter, self.plan.patch_shifts, shifts)
        return self.plain(self.values, self.ids[0], *arguments)[1]


def network(small: bool) -> WalrusConfig:
    return WalrusConfig(**(SMALL_NETWORK if small else NETWORK))  # type: ignore[arg-type]


def cases(small: bool) -> dict[str, dict[str, Any]]:
    return SMALL_CASES if small else CASES


def make_sides(config: WalrusConfig, case: Mapping[str, Any]) -> Sides:
    """A batch of one sample with periodic boundaries, and jitter, on the grid of a case."""
    plain = draw_strong_weights(PlainWalrus(config)).eval()
    ours = WalrusForPrediction(config).eval()
    ours.load_state_dict(published_state_dict_to_walrus(plain.state_dict(), config))
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1, case["frames"] + 1, len(FIELDS), *case["grid"], generator=generator)
    ids = torch.tensor([[PUBLISHED_FIELDS.index(name) for name in FIELDS]])
    processor = WalrusProcessor(tokens_per_axis=config.tokens_per_axis, tokens_per_axis_3d=config.tokens_per_axis_3d)
    plan = processor.plan(case["grid"], [(2, 2)] * 3, seed=0)
    return Sides(ours, plain, values[:, :-1], values[:, 1:], ids, plan)


def in_turn(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each run, round by round in alternating order, after one round that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(repeats + 1):
        for name in list(runs) if i % 2 else reversed(list(runs)):
            begin = time.perf_counter()
            runs[name]()
            if i:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def matmul_peak(matrix: int) -> Callable[[], None]:
    """A round of products of square matrices, whose rate stands for the peak."""
    a = torch.randn(matrix, matrix)

    def peak() -> None:
        for _ in range(MATMULS):
            a @ a

    return peak


def reference_flops(sides: Sides, case: Mapping[str, Any]) -> float:
    """Of a forward pass of the reference: all frames decoded, space attention not counted."""
    if "reference_flops" in case:
        return case["reference_flops"]
    every = forward_flops(sides.ours.config, sides.plan, case["frames"], len(FIELDS))
    return sum(every.values()) - every["attention"]


def shares(seconds: Mapping[str, Sequence[float]], work: float, matrix: int) -> dict[str, float]:
    """What both sides reach of the rate of `matmul_peak(matrix)`, with the work that the reference would take.

    Args:
        seconds: of the rounds of `peak`, `ours` and `plain`.
    """
    rate = MATMULS * 2 * matrix**3 / statistics.median(seconds["peak"])
    found = {name: work / statistics.median(seconds[name]) / rate for name in ("ours", "plain")}
    return {
        "share": found["ours"], "plain_share": found["plain"], "peak_gflops": rate / 1e9,
        "reference_gflop": work / 1e9,
    }  # fmt: skip


def ratio(slow: Sequence[float], quick: Sequence[float], name: str = "ratio") -> dict[str, float]:
    """Seconds of one side over those of the other, round by round: median, lowest, highest."""
    found = [a / b for a, b in zip(slow, quick)]
    return {f"{name}_median": statistics.median(found), f"{name}_lowest": min(found), f"{name}_highest": max(found)}


def spread(seconds: Sequence[float], prefix: str = "") -> dict[str, float]:
    """Median, fastest and slowest."""
    return {
        f"{prefix}seconds": statistics.median(seconds),
        f"{prefix}fastest": min(seconds),
        f"{prefix}slowest": max(seconds),
    }


def compared(seconds: Mapping[str, Sequence[float]], work: float, matrix: int) -> dict[str, float]:
    """Ratio, spread and shares of the rounds of `ours` and `plain`; arguments as in `shares`."""
    return {
        **ratio(seconds["plain"], seconds["ours"]), **spread(seconds["ours"]), **spread(seconds["plain"], "plain_"),
        **shares(seconds, work, matrix),
    }  # fmt: skip


def peak_and_shares(r: Mapping[str, float]) -> str:
    return f"peak {r['peak_gflops']:.0f} GFLOP/s, effective share {r['share']:.2f}, plain {r['plain_share']:.2f}"


def both_sides(r: Mapping[str, float]) -> str:
    """Seconds of our side and of the plain one, and their ratio, in words."""
    return (
        f"ours {r['seconds']:.3f} s ({r['fastest']:.3f}, {r['slowest']:.3f}), "
        f"plain {r['plain_seconds']:.3f} s ({r['plain_fastest']:.3f}, {r['plain_slowest']:.3f}), "
        f"plain / ours {r['ratio_median']:.2f} ({r['ratio_lowest']:.2f}, {r['ratio_highest']:.2f})"
    )
