"""Benchmarks: `python -m walrus_hf.bench forward | train | rollout | memory | load | growth | data`.

Speed is a ratio within one run, never a bare time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ..allocator import keep_freed_memory
from ..safe_files import write_text
from .cases import AGREEMENT, MATRIX, PLAIN_SHARE_2D, SMALL_MATRIX, cases, network

app = typer.Typer(help="Benchmarks of walrus_hf.", no_args_is_help=True, add_completion=False)

Repeats = Annotated[int, typer.Option(min=1, help="Timed rounds of both sides; the median counts.")]


def _writable(path: Path | None) -> Path | None:
    """Refuses a file in a folder that is not there before anything is measured, which may take minutes."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise typer.BadParameter(f"expected a file in a folder that exists, found {path}")
    return path


Json = Annotated[Path | None, typer.Option("--json", help="Write the numbers here too.", callback=_writable)]
Small = Annotated[bool, typer.Option("--small", help="Tiny sizes: shows that it runs, says nothing of speed.")]
Result = Mapping[str, float]


@app.callback()
def main() -> None:
    """Benchmarks of walrus_hf."""
    keep_freed_memory()


@app.command()
def forward(repeats: Repeats = 7, json_file: Json = None, small: Small = False) -> None:
    """One forecast step (float32, eval): this package beside the plain reading of the architecture, in turn.

    Ratio: seconds of the plain side over ours, round by round. Share: fixed work of the reference case (222.4 and
    703.5 GFLOP, all frames decoded) over seconds over the float32 matmul peak of the same rounds. Then our model in
    bfloat16 beside itself in float32.
    """
    from .forward import describe, describe_bfloat16, measure_bfloat16, measure_forward

    config = network(small)
    results = {name: measure_forward(config, case, repeats, _matrix(small)) for name, case in cases(small).items()}
    low = {f"{name}_bfloat16": measure_bfloat16(config, case, repeats) for name, case in cases(small).items()}
    _print(results, describe, repeats, small)
    _print(low, describe_bfloat16)
    _say_if_void(results["2d"], small)
    _write_json(json_file, {**results, **low}, small)
    _fail_where_apart(results)


@app.command()
def train(repeats: Repeats = 5, json_file: Json = None, small: Small = False) -> None:
    """One training step (forward, backward, AdamW; float32): this package beside the plain reading, in turn."""
    from .train import describe, measure_training

    config, matrix = network(small), _matrix(small)
    results = {name: measure_training(config, case, repeats, matrix) for name, case in cases(small).items()}
    _print(results, describe, repeats, small)
    _say_if_void(results["2d"], small)
    _write_json(json_file, results, small)
    _fail_where_apart(results)


@app.command()
def rollout(repeats: Repeats = 5, json_file: Json = None, small: Small = False) -> None:
    """A step of a rollout (float32): with the frames of the past kept for 8 steps, and computed anew each time."""
    from .rollout import describe, measure_rollout

    config, matrix = network(small), _matrix(small)
    found = {name: measure_rollout(config, case, repeats, matrix) for name, case in cases(small).items()}
    results = {f"cached_{name}": result for name, result in found.items()}
    _print(results, describe, repeats, small)
    _say_if_void(results["cached_2d"], small)
    _write_json(json_file, results, small)


@app.command()
def memory(json_file: Json = None, small: Small = False) -> None:
    """Peak memory of one training step: this package, with and without gradient checkpointing, and the plain side."""
    from .footprint import describe_memory, measure_memory

    results = {name: measure_memory(small, name) for name in cases(small)}
    _print(results, describe_memory, None, small)
    _write_json(json_file, results, small)


@app.command()
def load(repeats: Repeats = 3, json_file: Json = None, small: Small = False) -> None:
    """`from_pretrained` of the 1.3B geometry from local files: time and memory. Needs 6 GB of disk, 8 of memory."""
    from .footprint import describe_load, measure_load

    results = {"load": measure_load(small, repeats)}
    _print(results, describe_load, repeats, small)
    _write_json(json_file, results, small)


@app.command()
def growth(
    repeats: Repeats = 3,
    json_file: Json = None,
    small: Small = False,
    save: Annotated[bool, typer.Option("--save", help="Write the coefficients that `walrus-hf info` uses.")] = False,
) -> None:
    """How time and memory of a forecast step (float32) grow with frames, tokens, grid, layers and width: a fit.

    Some cases are held out of it; a prediction of theirs that is off by more than 25% is an error.
    """
    from . import growth as curves

    if save and small:
        raise typer.BadParameter("expected full sizes beside --save")
    found = curves.measure_growth(small, repeats)
    coefficients = curves.fit(found)
    ratios = curves.check(found, coefficients)
    results = {name: {**row, **ratios[name]} for name, row in found.items()}
    _print(results, curves.describe, repeats, small)
    typer.echo(f"fitted: {curves.describe_fit(coefficients)}")
    _write_json(json_file, {**results, "coefficients": coefficients}, small)
    apart = curves.apart(results)
    if apart and not small:
        typer.echo(f"Off by more than {curves.WITHIN:.0%}: {', '.join(apart)}", err=True)
        raise typer.Exit(1)
    if save:
        curves.save(coefficients, results)


@app.command()
def data(repeats: Repeats = 5, json_file: Json = None, small: Small = False) -> None:
    """Shuffled windows from a simulated store (50 ms a request, 50 MB/s a stream) and from the local disk.

    Ratio: samples a second of our stream over those of The Well's own reader, round by round. Ideal bytes: those of
    the frames of a window, read by itself.
    """
    from .data import describe, measure_data

    results = measure_data(repeats, small)
    _print(results, describe, repeats, small)
    _write_json(json_file, results, small)


def _matrix(small: bool) -> int:
    return SMALL_MATRIX if small else MATRIX


def _say_if_void(result: Result, small: bool) -> None:
    if not small and result["plain_share"] < PLAIN_SHARE_2D:
        typer.echo(f"The ratios are void: the plain side must reach {PLAIN_SHARE_2D} of the peak in 2D.")


def _print(
    results: Mapping[str, Result], describe: Callable[[Result], str], repeats: int | None = 0, small: bool = False
) -> None:
    """A heading, unless `repeats` is 0, and a line for each case."""
    if repeats != 0:
        typer.echo(
            f"{'SMALL SIZES, no measure of speed; ' if small else ''}{torch.get_num_threads()} threads, "
            f"torch {torch.__version__}" + (f", median of {repeats} (fastest, slowest)" if repeats else "")
        )
    for name, result in results.items():
        typer.echo(f"{name}: {describe(result)}")


def _write_json(path: Path | None, results: Mapping[str, Result], small: bool) -> None:
    if path is None:
        return
    content: dict[str, Any] = {"small": small, "threads": torch.get_num_threads(), "cases": results}
    write_text(path, json.dumps(content, indent=1) + "\n")


def _fail_where_apart(results: Mapping[str, Result]) -> None:
    apart = [name for name, result in results.items() if not result["difference"] <= AGREEMENT]
    if apart:
        typer.echo(f"The two sides disagree by more than {AGREEMENT:g}: {', '.join(apart)}", err=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
