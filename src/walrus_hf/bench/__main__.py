"""Benchmarks: `python -m walrus_hf.bench forward`. Speed is a ratio within one run, never a bare time."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ..configuration_walrus import WalrusConfig
from ..fields import PUBLISHED_FIELDS
from ..modeling_walrus import WalrusForPrediction
from ..processing_walrus import WalrusProcessor
from .allocator import keep_freed_memory
from .flops import forward_flops

# The reference case: grid, frames, and the operations of the published implementation, all frames decoded, as
# torch's counter sees them (space attention not counted).
CASES: dict[str, dict[str, Any]] = {
    "2d": {"grid": (256, 256, 1), "frames": 6, "reference_flops": 222.4e9},
    "3d": {"grid": (64, 64, 64), "frames": 3, "reference_flops": 703.5e9},
}
# Matrix products a round: about as long as a forward pass, since a CPU clocks a short burst higher than it can hold.
MATMULS = 4
FIELDS = ("velocity_x", "velocity_y", "velocity_z", "pressure")

app = typer.Typer(help="Benchmarks of walrus_hf.", no_args_is_help=True, add_completion=False)


@app.callback()
def main() -> None:
    """Benchmarks of walrus_hf."""


@app.command()
def forward(
    repeats: Annotated[int, typer.Option(min=1, help="Timed passes; the median counts.")] = 7,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers here too.")] = None,
) -> None:
    """One forecast step (float32, eval): seconds, and the share of the float32 matmul peak of the same run.

    Share: fixed work of the reference case (222.4 and 703.5 GFLOP, all frames decoded) over seconds over peak.
    """
    keep_freed_memory()
    config = WalrusConfig(
        hidden_size=384, intermediate_size=768, num_hidden_layers=8, num_attention_heads=6, stem_hidden_size=96,
        initializer_range=1.0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = WalrusForPrediction(config).eval()
    results = {name: _measure(model, repeats, **case) for name, case in CASES.items()}
    typer.echo(f"{torch.get_num_threads()} threads, torch {torch.__version__}, median of {repeats} (fastest, slowest)")
    for name, r in results.items():
        typer.echo(
            f"{name}: {r['seconds']:.3f} s ({r['fastest']:.3f}, {r['slowest']:.3f}), "
            f"{r['done_gflop']:.1f} GFLOP done for {r['reference_gflop']:.1f} of the reference, "
            f"peak {r['peak_gflops']:.0f} GFLOP/s, effective share {r['share']:.2f}"
        )
    if json_file is not None:
        json_file.write_text(json.dumps({"cases": results}, indent=1), encoding="utf-8")


@torch.inference_mode()
def _measure(model: WalrusForPrediction, repeats: int, grid: tuple, frames: int, reference_flops: float) -> dict:
    values = torch.randn(1, frames, len(FIELDS), *grid, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[PUBLISHED_FIELDS.index(name) for name in FIELDS]])
    plan = WalrusProcessor().plan(grid, [(2, 2)] * 3, seed=0)
    a = torch.randn(4096, 4096)
    seconds, peaks = [], []
    for i in range(repeats + 1):
        begin = time.perf_counter()
        for _ in range(MATMULS):
            a @ a
        middle = time.perf_counter()
        model(values, ids, plan=plan, frames_to_keep=1)
        end = time.perf_counter()
        if i:  # the first round warms up
            peaks.append(MATMULS * 2 * 4096**3 / (middle - begin))
            seconds.append(end - middle)
    median, peak = statistics.median(seconds), statistics.median(peaks)
    done = sum(forward_flops(model.config, plan, frames, len(FIELDS), frames_to_keep=1).values())
    return {
        "seconds": median, "fastest": min(seconds), "slowest": max(seconds), "peak_gflops": peak / 1e9,
        "share": reference_flops / median / peak, "reference_gflop": reference_flops / 1e9, "done_gflop": done / 1e9,
    }  # fmt: skip


if __name__ == "__main__":
    app()
