"""`python -m walrus_hf.bench growth`: how time and memory of a forecast step grow, fitted, checked on other cases."""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

from ..allocator import keep_freed_memory
from ..configuration_walrus import WalrusConfig
from ..jitter import TokenizationPlan
from ..loading import processor_for
from ..modeling_walrus import WalrusForPrediction
from ..safe_files import write_text
from .cases import FIELDS, NETWORK, SMALL_NETWORK
from .flops import working_bytes
from .footprint import in_own_process, peak_of, resident
from .prediction import COPIED, FITTED, MATRIX, measure_rates, step_seconds, step_work

KINDS = ("linears", "attention", "convolutions", "moved", "layers")
WITHIN = 0.25  # relative error that a prediction may have


@dataclasses.dataclass(frozen=True)
class Case:
    """A forecast step; `network` differs from the reference network, all sides are of one kind."""

    grid: tuple[int, ...]
    frames: int
    network: dict[str, Any] = dataclasses.field(default_factory=dict)
    sides: str = "periodic"
    held_out: bool = False

    def config(self, small: bool) -> WalrusConfig:
        return WalrusConfig(**{**(SMALL_NETWORK if small else NETWORK), **self.network})

    def plan(self, config: WalrusConfig) -> TokenizationPlan:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a grid that the published table lacks costs no less
            return processor_for(config).plan(self.grid, dict.fromkeys("xyz"[: len(self.grid)], self.sides), seed=0)


def _width(width: int) -> dict[str, int]:
    return {
        "hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": width // 64,
        "stem_hidden_size": width // 4,
    }  # fmt: skip


# One thing at a time around two cases, in the plane and in a volume; then others, which the fit does not see.
CASES = {
    "plane": Case((256, 256), 4), "2 frames": Case((256, 256), 2), "8 frames": Case((256, 256), 8),
    "16 tokens": Case((256, 256), 4, {"tokens_per_axis": 16}),
    "48 tokens": Case((384, 384), 4, {"tokens_per_axis": 48}),
    "128 cells": Case((128, 128), 4), "512 cells": Case((512, 512), 4),
    "2 layers": Case((256, 256), 4, {"num_hidden_layers": 2}),
    "16 layers": Case((256, 256), 2, {"num_hidden_layers": 16}),
    "width 192": Case((256, 256), 4, _width(192)), "width 768": Case((256, 256), 2, _width(768)),
    "volume": Case((64, 64, 64), 2), "8 tokens": Case((64, 64, 64), 2, {"tokens_per_axis_3d": 8}),
    "volume of width 192": Case((64, 64, 64), 2, _width(192)), "128 cells cubed": Case((128, 128, 128), 2, _width(192)),
    "long plane between walls": Case((384, 128), 5, _width(512), "wall", held_out=True),
    "64 tokens": Case((512, 512), 2, {"tokens_per_axis": 64, "num_hidden_layers": 4}, held_out=True),
    "narrow and deep": Case((192, 192), 6, {**_width(256), "num_hidden_layers": 12}, held_out=True),
    "open volume": Case((64, 96, 64), 3, {**_width(256), "num_hidden_layers": 4}, "open", held_out=True),
    "wide": Case((128, 128), 3, {**_width(1024), "num_hidden_layers": 4}, held_out=True),
}  # fmt: skip
SMALL_CASES = {
    "plane": Case((32, 32), 3), "2 frames": Case((32, 32), 2), "64 cells": Case((64, 64), 3),
    "4 layers": Case((32, 32), 3, {"num_hidden_layers": 4}), "volume": Case((16, 16, 16), 2),
    "8 tokens": Case((64, 64), 3, {"tokens_per_axis": 8}),
    "walls": Case((48, 32), 4, {}, "wall", held_out=True),
}  # fmt: skip
# Memory is measured in a process of its own each, so in fewer cases.
MEMORY = ("plane", "8 frames", "512 cells", "width 768", "volume", "64 tokens", "open volume", "wide")
SMALL_MEMORY = ("plane", "walls")


def measure_growth(small: bool, repeats: int) -> dict[str, dict[str, float]]:
    """Seconds and memory of a step of each case, with its counted work at the rates measured beside it."""
    found = {name: _measure_time(case, small, repeats) for name, case in (SMALL_CASES if small else CASES).items()}
    for name in SMALL_MEMORY if small else MEMORY:
        found[name] |= in_own_process("step_peak", small, name, module="growth")
    return found


def _measure_time(case: Case, small: bool, repeats: int) -> dict[str, float]:
    config = case.config(small)
    plan, run = step_of(case, config)
    run()
    seconds, works = [], []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
        rates = measure_rates(torch.device("cpu"), *((256, 2**20) if small else (MATRIX, COPIED)))
        works.append(step_work(config, plan, case.frames, len(FIELDS), rates))
    work = {kind: statistics.median(work[kind] for work in works) for kind in KINDS}
    counted = working_bytes(config, plan, case.frames, len(FIELDS))
    return {**work, "seconds": statistics.median(seconds), "counted_bytes": counted, "held_out": float(case.held_out)}


def step_of(case: Case, config: WalrusConfig) -> tuple[TokenizationPlan, Callable[[], None]]:
    """The plan of a case, and a function that makes one forecast step with random weights."""
    model, plan = WalrusForPrediction(config).eval(), case.plan(config)
    values = torch.randn(1, case.frames, len(FIELDS), *plan.grid, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[i for i in range(config.vocab_size) if i not in config.flag_ids][: len(FIELDS)]])

    @torch.inference_mode()
    def run() -> None:
        model(values, ids, plan=plan, frames_to_keep=1)

    return plan, run


def step_peak(small: bool, name: str) -> dict[str, float]:
    """Most that a process holds in two steps, what it holds without a model, and the weights.

    The process keeps freed memory as `walrus-hf` does.
    """
    keep_freed_memory()
    for other in SMALL_CASES.values():  # what libraries load and keep at their first use belongs to none of the cases
        step_of(other, other.config(small=True))[1]()
    libraries = resident("VmRSS")
    case = (SMALL_CASES if small else CASES)[name]
    config = case.config(small)
    _, run = step_of(case, config)

    def twice() -> None:
        run()
        run()

    with torch.device("meta"):
        weights = sum(p.numel() * p.element_size() for p in WalrusForPrediction(config).parameters())
    return {"bytes": peak_of(twice), "libraries": libraries, "weights": weights}


def fit(found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Coefficients that are not negative, least squares of relative errors, over the cases that are not held out.

    Of memory, what libraries hold, and how much more a step takes than is counted: medians.
    """
    rows = [row for row in found.values() if not row["held_out"]]
    relative = np.array([[row[kind] / row["seconds"] for kind in KINDS] for row in rows])
    scale = relative.max(0)  # kinds of very different size
    solution, _ = nnls(relative / scale, np.ones(len(rows)))
    weighed = [row for row in rows if "bytes" in row]
    working = [(row["bytes"] - row["libraries"] - row["weights"]) / row["counted_bytes"] for row in weighed]
    return {
        **dict(zip(KINDS, (solution / scale).tolist())), "working": max(statistics.median(working), 1.0),
        "libraries": statistics.median(row["libraries"] for row in weighed),
    }  # fmt: skip


def check(found: Mapping[str, Mapping[str, float]], coefficients: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Predicted over measured, time and memory of the whole process, of each case."""
    ratios = {}
    for name, row in found.items():
        predicted = step_seconds({kind: row[kind] for kind in KINDS}, coefficients)
        ratios[name] = {"seconds_ratio": predicted / row["seconds"]}
        if "bytes" in row:
            taken = coefficients["libraries"] + row["weights"] + coefficients["working"] * row["counted_bytes"]
            ratios[name]["bytes_ratio"] = taken / row["bytes"]
    return ratios


def apart(results: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Held-out cases whose prediction is further off than it may be."""
    names = ("seconds_ratio", "bytes_ratio")
    held = {name: [row[n] for n in names if n in row] for name, row in results.items() if row["held_out"]}
    return [name for name, ratios in held.items() if any(abs(ratio - 1) > WITHIN for ratio in ratios)]


def save(coefficients: Mapping[str, float], results: Mapping[str, Mapping[str, float]]) -> None:
    """Write growth.json, by which `walrus-hf info` predicts."""
    held = {name: row for name, row in results.items() if row["held_out"]}
    worst = max(abs(row["seconds_ratio"] - 1) for row in held.values())
    content = {
        "coefficients": {name: float(f"{value:.4g}") for name, value in coefficients.items()},
        "worst_held_out_error": worst, "threads": torch.get_num_threads(), "torch": torch.__version__,
    }  # fmt: skip
    write_text(FITTED, json.dumps(content, indent=1) + "\n")


def describe(row: Mapping[str, float]) -> str:
    memory = ""
    if "bytes" in row:
        working = row["bytes"] - row["libraries"] - row["weights"]
        memory = (
            f"; {row['bytes'] / 2**20:.0f} MiB, of which {working / 2**20:.0f} are working memory "
            f"({row['counted_bytes'] / 2**20:.0f} counted), predicted / measured {row['bytes_ratio']:.2f}"
        )
    told = " (held out)" if row["held_out"] else ""
    return f"{row['seconds']:.3f} s, predicted / measured {row['seconds_ratio']:.2f}{memory}{told}"


def describe_fit(coefficients: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in coefficients.items())
