"""Time and memory of a forecast before it is made: counted work over what this machine does at the moment.

How long a counted operation takes, in units of a measured matrix product and a measured copy, was fitted once
(`python -m walrus_hf.bench growth --save`, which writes growth.json) and is the same for all grids and models.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from ..configuration_walrus import WalrusConfig
from ..jitter import TokenizationPlan
from .flops import forward_flops, moved_bytes, working_bytes

FITTED = Path(__file__).with_name("growth.json")
MATRIX, COPIED = 2048, 2**27  # side; bytes, more than caches hold


@dataclasses.dataclass(frozen=True)
class Rates:
    """What a device does now: operations a second in float32 matrix products, bytes a second in copies."""

    matmul: float
    copy: float


def measure_rates(device: torch.device, matrix: int = MATRIX, copied: int = COPIED) -> Rates:
    """A second of measuring.

    Args:
        matrix: side of the matrices.
        copied: bytes.
    """
    a = torch.randn(matrix, matrix, device=device)
    b = torch.zeros(copied // 4, device=device)
    c = torch.empty_like(b)
    return Rates(2 * matrix**3 / _fastest(lambda: a @ a), copied / _fastest(lambda: c.copy_(b)))


def _fastest(run: Callable[[], torch.Tensor]) -> float:
    seconds = math.inf
    for _ in range(4):
        begin = time.perf_counter()
        run().flatten()[0].item()  # reading a value waits for the device
        seconds = min(seconds, time.perf_counter() - begin)
    return seconds


def step_work(
    config: WalrusConfig, plan: TokenizationPlan, frames: int, channels: int, rates: Rates
) -> dict[str, float]:
    """Seconds that each kind of work would take at the full measured rate, and the number of layers."""
    flops = forward_flops(config, plan, frames, channels, frames_to_keep=1)
    return {
        "linears": flops["linears"] / rates.matmul,
        "attention": flops["attention"] / rates.matmul,
        "convolutions": (flops["encoder"] + flops["decoder"]) / rates.matmul,
        "moved": moved_bytes(config, plan, frames, channels) / rates.copy,
        "layers": float(config.num_hidden_layers),
    }


def fitted() -> dict[str, float]:
    """Of each kind of work how much longer it takes than at the full rate; of a layer its seconds; `working`, how much
    more memory a step takes than is counted; `libraries`, bytes that a process holds without a model."""
    return json.loads(FITTED.read_text(encoding="utf-8"))["coefficients"]


def step_seconds(work: Mapping[str, float], coefficients: Mapping[str, float]) -> float:
    """Of one forecast step in float32, from `step_work`."""
    return math.fsum(coefficients[kind] * amount for kind, amount in work.items())


def forecast_bytes(
    config: WalrusConfig,
    plan: TokenizationPlan,
    frames: int,
    channels: int,
    parameters: int,
    steps: int,
    coefficients: Mapping[str, float],
) -> dict[str, float]:
    """Memory of a forecast of so many steps in float32, by part; it grows with the steps by the forecast alone."""
    kept = steps * channels * math.prod(plan.grid) * 4
    return {
        "weights": 4.0 * parameters,
        "working memory": coefficients["working"] * working_bytes(config, plan, frames, channels),
        "forecast": 2.0 * kept,  # frame by frame, then as one array
        "libraries": coefficients["libraries"],
    }
