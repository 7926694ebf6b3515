"""Benchmarks: `python -m walrus_hf.bench forward | data`. Speed is a ratio within one run, never a bare time."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ..configuration_walrus import WalrusConfig
from ..convert import published_state_dict_to_walrus
from ..fields import PUBLISHED_FIELDS
from ..modeling_walrus import WalrusForPrediction
from ..processing_walrus import WalrusProcessor
from .allocator import keep_freed_memory
from .flops import forward_flops
from .plain import PlainWalrus, draw_strong_weights

# The reference case: network, grids, frames, and the operations of the published implementation, all frames decoded, as
# torch's counter sees them (space attention not counted).
NETWORK = {
    "hidden_size": 384, "intermediate_size": 768, "num_hidden_layers": 8, "num_attention_heads": 6,
    "stem_hidden_size": 96,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "2d": {"grid": (256, 256, 1), "frames": 6, "reference_flops": 222.4e9},
    "3d": {"grid": (64, 64, 64), "frames": 3, "reference_flops": 703.5e9},
}
# The same in seconds instead of minutes; the reference operations are our own count then.
SMALL_NETWORK = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "stem_hidden_size": 8, "tokens_per_axis": 4, "tokens_per_axis_3d": 4,
}  # fmt: skip
SMALL_CASES: dict[str, dict[str, Any]] = {
    "2d": {"grid": (32, 32, 1), "frames": 3},
    "3d": {"grid": (16, 16, 16), "frames": 2},
}
# Matrix products a round: about as long as a forward pass, since a CPU clocks a short burst higher than it can hold.
MATMULS, MATRIX, SMALL_MATRIX = 4, 4096, 256
# The plain side must be as good as the published code, or the ratio flatters.
PLAIN_SHARE_2D = 0.45
AGREEMENT = 1e-4  # of the root mean square of the last frame's delta
FIELDS = ("velocity_x", "velocity_y", "velocity_z", "pressure")

app = typer.Typer(help="Benchmarks of walrus_hf.", no_args_is_help=True, add_completion=False)


@app.callback()
def main() -> None:
    """Benchmarks of walrus_hf."""


@app.command()
def forward(
    repeats: Annotated[int, typer.Option(min=1, help="Timed rounds of both sides; the median counts.")] = 7,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers here too.")] = None,
    small: Annotated[
        bool, typer.Option("--small", help="Tiny sizes: shows that it runs, says nothing of speed.")
    ] = False,
) -> None:
    """One forecast step (float32, eval): this package beside the plain reading of the architecture, in turn.

    Ratio: seconds of the plain side over ours, round by round. Share: fixed work of the reference case (222.4 and
    703.5 GFLOP, all frames decoded) over seconds over the float32 matmul peak of the same rounds.
    """
    keep_freed_memory()
    network, cases, matrix = (SMALL_NETWORK, SMALL_CASES, SMALL_MATRIX) if small else (NETWORK, CASES, MATRIX)
    config = WalrusConfig(**network)  # type: ignore[arg-type]
    results = {name: measure_forward(config, case, repeats, matrix) for name, case in cases.items()}
    typer.echo(
        f"{'SMALL SIZES, no measure of speed; ' if small else ''}{torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, median of {repeats} (fastest, slowest)"
    )
    for name, result in results.items():
        typer.echo(f"{name}: {_line(result)}")
    if not small and results["2d"]["plain_share"] < PLAIN_SHARE_2D:
        typer.echo(f"The ratios are void: the plain side must reach {PLAIN_SHARE_2D} of the peak in 2D.")
    _write_json(json_file, {"small": small, "threads": torch.get_num_threads(), "cases": results})
    apart = [name for name, result in results.items() if not result["difference"] <= AGREEMENT]
    if apart:
        typer.echo(f"The two sides disagree by more than {AGREEMENT:g} rms: {', '.join(apart)}", err=True)
        raise typer.Exit(1)


@app.command()
def data(
    repeats: Annotated[int, typer.Option(min=1, help="Rounds of both readers; the median counts.")] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers here too.")] = None,
    small: Annotated[
        bool, typer.Option("--small", help="A tiny file: shows that it runs, says nothing of speed.")
    ] = False,
) -> None:
    """Shuffled windows from a simulated store (50 ms a request, 50 MB/s a stream) and from the local disk.

    Ratio: samples a second of our stream over those of The Well's own reader, round by round. Ideal bytes: those of
    the frames of a window, read by itself.
    """
    from .data import describe, measure_data

    keep_freed_memory()
    results = measure_data(repeats, small)
    typer.echo(
        f"{'SMALL FILE, no measure of speed; ' if small else ''}{torch.get_num_threads()} threads for torch on both "
        f"sides, median of {repeats} (lowest, highest)"
    )
    for name, result in results.items():
        span = f"({result['ratio_lowest']:.1f}, {result['ratio_highest']:.1f})"
        typer.echo(f"{name}: ours / theirs {result['ratio_median']:.1f} {span}")
        typer.echo("\n".join(describe(result)))
    _write_json(json_file, {"small": small, "threads": torch.get_num_threads(), "cases": results})


def _write_json(path: Path | None, content: Mapping[str, Any]) -> None:
    if path is None:
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _line(r: Mapping[str, float]) -> str:
    return (
        f"ours {r['seconds']:.3f} s ({r['fastest']:.3f}, {r['slowest']:.3f}), "
        f"plain {r['plain_seconds']:.3f} s ({r['plain_fastest']:.3f}, {r['plain_slowest']:.3f}), "
        f"plain / ours {r['ratio_median']:.2f} ({r['ratio_lowest']:.2f}, {r['ratio_highest']:.2f}); "
        f"{r['done_gflop']:.4g} GFLOP done for {r['reference_gflop']:.4g} of the reference, "
        f"peak {r['peak_gflops']:.0f} GFLOP/s, effective share {r['share']:.2f}, plain {r['plain_share']:.2f}; "
        f"last frames differ by {r['difference']:.1e} rms"
    )


@torch.inference_mode()
def measure_forward(config: WalrusConfig, case: Mapping[str, Any], repeats: int, matrix: int = MATRIX) -> dict:
    """Both sides on one case, with the same weights and shifts: a dictionary of seconds, ratios and shares.

    Args:
        case: `grid`, `frames`, and `reference_flops` where they are known.
        matrix: side of the matrices that measure the peak.
    """
    plain = draw_strong_weights(PlainWalrus(config)).eval()
    ours = WalrusForPrediction(config).eval()
    ours.load_state_dict(published_state_dict_to_walrus(plain.state_dict(), config))
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1, case["frames"], len(FIELDS), *case["grid"], generator=generator)
    ids = torch.tensor([[PUBLISHED_FIELDS.index(name) for name in FIELDS]])
    processor = WalrusProcessor(tokens_per_axis=config.tokens_per_axis, tokens_per_axis_3d=config.tokens_per_axis_3d)
    plan = processor.plan(case["grid"], [(2, 2)] * 3, seed=0)
    layer_shifts = plan.layer_shifts[: config.num_hidden_layers]
    a = torch.randn(matrix, matrix)

    def peak() -> None:
        for _ in range(MATMULS):
            a @ a

    def run_ours():
        return ours(values, ids, plan=plan, frames_to_keep=1).delta[:, -1]

    def run_plain():
        return plain(values, ids[0], plan.boundaries, plan.strides, True, plan.patch_shifts, layer_shifts)[1][:, -1]

    expected = run_plain()
    difference = ((run_ours() - expected).abs().max() / expected.square().mean().sqrt()).item()
    seconds: dict[Any, list[float]] = {peak: [], run_ours: [], run_plain: []}
    for i in range(repeats + 1):
        for side in (peak, run_ours, run_plain) if i % 2 else (peak, run_plain, run_ours):
            begin = time.perf_counter()
            side()
            if i:  # the first round warms up
                seconds[side].append(time.perf_counter() - begin)
    middle = {side: statistics.median(found) for side, found in seconds.items()}
    ratios = [theirs / own for own, theirs in zip(seconds[run_ours], seconds[run_plain])]
    rate = MATMULS * 2 * matrix**3 / middle[peak]
    sizes = (config, plan, case["frames"], len(FIELDS))
    every = forward_flops(*sizes)
    reference = case.get("reference_flops", sum(every.values()) - every["attention"])
    return {
        "ratio_median": statistics.median(ratios), "ratio_lowest": min(ratios), "ratio_highest": max(ratios),
        "seconds": middle[run_ours], "fastest": min(seconds[run_ours]), "slowest": max(seconds[run_ours]),
        "plain_seconds": middle[run_plain], "plain_fastest": min(seconds[run_plain]),
        "plain_slowest": max(seconds[run_plain]),
        "share": reference / middle[run_ours] / rate, "plain_share": reference / middle[run_plain] / rate,
        "peak_gflops": rate / 1e9, "reference_gflop": reference / 1e9,
        "done_gflop": sum(forward_flops(*sizes, frames_to_keep=1).values()) / 1e9, "difference": difference,
    }  # fmt: skip


if __name__ == "__main__":
    app()
