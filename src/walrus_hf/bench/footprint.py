"""`python -m walrus_hf.bench memory | load`: peaks of resident memory, each measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..allocator import return_freed_memory
from ..configuration_walrus import WalrusConfig
from ..fields import PUBLISHED_FIELDS
from ..modeling_walrus import WalrusForPrediction
from .cases import FIELDS, cases, make_sides, network
from .train import ours_loss, plain_loss, training_step

GIB = 2**30


def in_own_process(function: str, *arguments: Any, module: str = "footprint") -> dict[str, float]:
    """Call a function of a module beside this in a fresh process; its arguments and result go through JSON."""
    code = (
        f"import json, sys; from walrus_hf.bench import {module}; "
        f"print(json.dumps(getattr({module}, sys.argv[1])(*json.loads(sys.argv[2]))))"
    )
    command = [sys.executable, "-c", code, function, json.dumps(arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"the measuring process failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def resident(name: str) -> int:
    """Bytes of this process that are resident now (`VmRSS`) or were at the peak (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def peak_of(run: Callable[[], Any]) -> int:
    """The largest resident size while `run` runs (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    run()
    return resident("VmHWM")


# Training steps


def measure_memory(small: bool, case: str) -> dict[str, float]:
    """Peak of one training step above what a process holds with its libraries: plain, ours, ours with checkpointing."""
    found = {side: in_own_process("training_peak", small, case, side) for side in ("plain", "ours", "checkpointed")}
    peaks = {f"{side}_bytes": result["bytes"] for side, result in found.items()}
    return {
        **peaks,
        "ratio_median": peaks["ours_bytes"] / peaks["plain_bytes"],
        "ratio_checkpointed": peaks["checkpointed_bytes"] / peaks["plain_bytes"],
    }


def training_peak(small: bool, case: str, side: str) -> dict[str, float]:
    """Weights, gradients, optimiser and activations of the second training step; what is freed counts no more."""
    return_freed_memory()
    before = resident("VmRSS")
    sides = make_sides(network(small), cases(small)[case])
    if side == "plain":
        step = training_step(sides.plain, plain_loss(sides))
        object.__setattr__(sides, "ours", None)
    else:
        if side == "checkpointed":
            sides.ours.gradient_checkpointing_enable()
        step = training_step(sides.ours, ours_loss(sides))
        object.__setattr__(sides, "plain", None)
    step()
    return {"bytes": peak_of(step) - before}


def describe_memory(r: Mapping[str, float]) -> str:
    return (
        f"a training step takes {r['ours_bytes'] / GIB:.2f} GiB, {r['checkpointed_bytes'] / GIB:.2f} GiB with gradient "
        f"checkpointing, the plain one {r['plain_bytes'] / GIB:.2f} GiB: ours / plain {r['ratio_median']:.2f}, "
        f"{r['ratio_checkpointed']:.2f} with checkpointing"
    )


# Loading


def measure_load(small: bool, repeats: int) -> dict[str, float]:
    """`from_pretrained` of the 1.3B geometry (random weights) from local safetensors, in fresh processes."""
    config = network(True) if small else WalrusConfig()
    with tempfile.TemporaryDirectory() as folder:
        with torch.device("meta"):
            model = WalrusForPrediction(config)
        model.to_empty(device="cpu")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.02)
        model.save_pretrained(folder)
        del model
        runs = [in_own_process("load_peak", folder) for _ in range(repeats)]
        forecasts = {dtype: in_own_process("forecast_peak", folder, dtype) for dtype in ("float32", "bfloat16")}
    middle = sorted(runs, key=lambda run: run["seconds"] / run["read_seconds"])[len(runs) // 2]
    return {
        **middle, "ratio_median": middle["seconds"] / middle["read_seconds"],
        "ratio_memory": max(run["bytes"] / run["weight_bytes"] for run in runs),
        **{f"forecast_{dtype}_bytes": found["bytes"] for dtype, found in forecasts.items()},
    }  # fmt: skip


def load_peak(folder: str) -> dict[str, float]:
    files = sorted(Path(folder).glob("*.safetensors"))
    before = resident("VmRSS")
    seconds = time.perf_counter()

    def load() -> None:
        model = WalrusForPrediction.from_pretrained(folder)
        for parameter in model.parameters():  # lazily mapped weights are read at their first use
            parameter.detach().view(-1)[::1024].sum()

    peak = peak_of(load) - before
    seconds = time.perf_counter() - seconds
    begin = time.perf_counter()
    for file in files:
        with file.open("rb", buffering=0) as opened:
            while opened.read(2**24):
                pass
    read = time.perf_counter() - begin
    return {
        "bytes": peak, "weight_bytes": sum(file.stat().st_size for file in files), "seconds": seconds,
        "read_seconds": read,
    }  # fmt: skip


def forecast_peak(folder: str, dtype: str) -> dict[str, float]:
    """Loading and a first forecast of a 128x128 plane from two frames, libraries included."""
    ids = torch.tensor([[PUBLISHED_FIELDS.index(name) for name in FIELDS]])

    def forecast() -> None:
        model = WalrusForPrediction.from_pretrained(folder, dtype=dtype).eval()
        values = torch.randn(1, 2, len(FIELDS), 128, 128, 1)
        with torch.inference_mode():
            assert model(values, ids, frames_to_keep=1).prediction.isfinite().all()

    return {"bytes": peak_of(forecast)}


def describe_load(r: Mapping[str, float]) -> str:
    return (
        f"{r['weight_bytes'] / GIB:.2f} GiB of weights in {r['seconds']:.2f} s, reading the file "
        f"{r['read_seconds']:.2f} s: "
        f"{r['ratio_median']:.2f}x; peak {r['bytes'] / GIB:.2f} GiB, {r['ratio_memory']:.2f}x the weights; first "
        f"forecast of 128x128 from 2 frames within {r['forecast_float32_bytes'] / GIB:.2f} GiB in float32, "
        f"{r['forecast_bfloat16_bytes'] / GIB:.2f} GiB in bfloat16"
    )
