"""`python -m walrus_hf.bench data`: our stream beside The Well's own reader, on the same files, both shuffled."""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..data.remote import TRANSFERS
from ..data.streams import load_stream
from ..data.well_writer import save_well
from ..fields import Trajectory

# A file of 67 MB, one of the size of a block of a larger one: 2 trajectories of 64 frames, 4 channels.
GRID, FRAMES, TRAJECTORIES, CHANNELS = (128, 256), 64, 2, 4
SMALL_GRID, SMALL_FRAMES = (16, 32), 16
WINDOW = 11  # 10 input frames and the one after
THEIR_SAMPLES = {"store_50ms": 6, "local_disk": 30}
OUR_EPOCHS = {"store_50ms": 1, "local_disk": 20}  # about as many seconds as they take


def measure_data(repeats: int, small: bool) -> dict[str, dict[str, float]]:
    """Samples a second, requests and bytes a sample of both readers, on a slow store and on the local disk."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_file(Path(folder), small)
        grid = SMALL_GRID if small else GRID
        ideal = WINDOW * CHANNELS * 4 * math.prod(grid)
        kept = os.environ.get("WALRUS_HF_CACHE")
        os.environ["WALRUS_HF_CACHE"] = folder  # nothing is left behind, nothing is found
        try:
            return {name: _case(name, path, repeats, ideal) for name in THEIR_SAMPLES}
        finally:
            del os.environ["WALRUS_HF_CACHE"]
            if kept is not None:
                os.environ["WALRUS_HF_CACHE"] = kept


def write_file(folder: Path, small: bool) -> Path:
    """Noise in The Well's format: what is in it does not matter to a reader."""
    grid, frames = (SMALL_GRID, SMALL_FRAMES) if small else (GRID, FRAMES)
    rng = np.random.default_rng(0)
    runs = [
        Trajectory(
            fields={
                "pressure": rng.standard_normal((frames, *grid), dtype=np.float32),
                "tracer": rng.standard_normal((frames, *grid), dtype=np.float32),
                "velocity": rng.standard_normal((frames, *grid, 2), dtype=np.float32),
            },
            boundary_conditions={"x": "periodic", "y": "wall"},
            name=f"noise_{number}",
        )
        for number in range(TRAJECTORIES)
    ]
    return save_well(runs, folder / "noise.hdf5")


def _case(name: str, path: Path, repeats: int, ideal: int) -> dict[str, float]:
    """Both readers in turn; each repeat begins with nothing in memory. Opening what is indexed counts for neither."""
    import fsspec

    from .slow_store import SlowFileSystem

    fsspec.register_implementation("slow", SlowFileSystem, clobber=True)
    slow = name.startswith("store")
    url = f"slow://{path.parent}" if slow else str(path.parent)
    found: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    for repeat in range(repeats):
        sides = [("ours", lambda: _ours(url, name, repeat)), ("theirs", lambda: _theirs(url, name, repeat))]  # noqa: B023
        for side, run in sides if repeat % 2 else reversed(sides):
            SlowFileSystem.reset()
            TRANSFERS.reset()
            result = run()
            if slow:
                result |= {"requests": SlowFileSystem.requests, "bytes": SlowFileSystem.transferred}
            elif side == "ours":
                result |= {"requests": TRANSFERS.requests, "bytes": TRANSFERS.bytes}
            found[side].append(result)
    ratios = [a["rate"] / b["rate"] for a, b in zip(found["ours"], found["theirs"])]
    summary = {"ratio_median": statistics.median(ratios), "ratio_lowest": min(ratios), "ratio_highest": max(ratios)}
    summary["ours_first_pass_samples_per_second"] = statistics.median(r["first_pass_rate"] for r in found["ours"])
    for side, results in found.items():
        summary[f"{side}_samples_per_second"] = statistics.median(r["rate"] for r in results)
        if "bytes" in results[0]:
            summary[f"{side}_requests_per_sample"] = statistics.median(r["requests"] / r["samples"] for r in results)
            summary[f"{side}_bytes_per_sample"] = statistics.median(r["bytes"] / r["samples"] for r in results)
            summary[f"{side}_amplification"] = summary[f"{side}_bytes_per_sample"] / ideal
    return summary


def _ours(url: str, name: str, seed: int) -> dict[str, float]:
    """All passes; the first one reads, and the others find in memory what it read where that fits."""
    stream = load_stream(url, frames=WINDOW, stride_range=(1, 1), seed=seed, epochs=OUR_EPOCHS[name])
    windows = [0]
    begin = time.perf_counter()
    seconds = [0.0]
    for batch in stream:
        windows.append(windows[-1] + len(batch["window"]))
        seconds.append(time.perf_counter() - begin)
    first_pass = windows.index(windows[-1] // OUR_EPOCHS[name])
    return {
        "samples": windows[-1],
        "rate": windows[-1] / seconds[-1],
        "first_pass_rate": windows[first_pass] / seconds[first_pass],
    }


def _theirs(url: str, name: str, seed: int) -> dict[str, float]:
    try:
        from the_well.data import WellDataset
    except ImportError:
        raise ImportError("this benchmark needs The Well's reader: pip install 'walrus-hf[oracle,data]'") from None
    dataset = WellDataset(path=url, n_steps_input=WINDOW - 1, n_steps_output=1, use_normalization=False)
    order = np.random.default_rng(seed).permutation(len(dataset))[: THEIR_SAMPLES[name]]
    begin = time.perf_counter()
    for number in order.tolist():
        dataset[number]
    return {"samples": len(order), "rate": len(order) / (time.perf_counter() - begin)}


def describe(result: Mapping[str, float]) -> str:
    """The ratio, then a line for each reader: samples/s, requests and MB a sample, times the ideal bytes."""
    rows = [f"ours / theirs {result['ratio_median']:.1f} ({result['ratio_lowest']:.1f}, {result['ratio_highest']:.1f})"]
    for side, title in (("theirs", "the_well WellDataset"), ("ours", "walrus_hf load_stream")):
        line = f"  {title:22} {result[f'{side}_samples_per_second']:8.1f} samples/s"
        if f"{side}_bytes_per_sample" in result:
            line += (
                f"  {result[f'{side}_requests_per_sample']:6.2f} requests  "
                f"{result[f'{side}_bytes_per_sample'] / 1e6:7.2f} MB  {result[f'{side}_amplification']:5.2f}x the ideal"
            )
        if side == "ours":
            line += f"  (first pass: {result['ours_first_pass_samples_per_second']:.1f} samples/s)"
        rows.append(line)
    return "\n".join(rows)
