"""`walrus-hf forecast`: a simulation file in, its continuation out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import (
    Device,
    FieldNames,
    Jitter,
    Model,
    Overwrite,
    Revision,
    Seed,
    Tokens,
    check_output,
    load_pipeline,
    print_table,
)


def forecast(
    file: Annotated[str, typer.Argument(help="Simulation in The Well's HDF5 format: a path or URL.")],
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Forecast, in the same format (.hdf5).")],
    steps: Annotated[int, typer.Option("--steps", "-n", min=1, help="Frames to forecast.")] = 50,
    plot: Annotated[Path | None, typer.Option(help="Picture of the forecast: .gif, .mp4 or .png.")] = None,
    trajectory: Annotated[int, typer.Option(min=0, help="Which trajectory of the file.")] = 0,
    first: Annotated[
        int | None,
        typer.Option(
            "--from",
            help="First frame to forecast; default: the one after the end of the file. Frames of the "
            "file from there on are the truth to compare with.",
        ),
    ] = None,
    ensemble: Annotated[int, typer.Option(min=1, help="Members to average; they differ in their jitter.")] = 1,
    seed: Seed = 0,
    jitter: Jitter = None,
    tokens_per_axis: Tokens = None,
    field_name: FieldNames = None,
    revision: Revision = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Forecast a simulation and write it to a file, with a picture if wanted."""
    from ..data.well import load_well, well_info
    from ..data.well_writer import save_well

    check_output(output, overwrite, (".hdf5", ".h5"))
    check_output(plot, overwrite, (".gif", ".mp4", ".png"))
    found = well_info(file)
    first = found.frames if first is None else first
    if not 2 <= first <= found.frames:
        raise ValueError(
            f"--from {first}: expected a frame from 2 to {found.frames}, the end of the file; "
            "a forecast needs at least 2 frames before it"
        )
    pipe = load_pipeline(model, revision, device, field_name)
    start = max(first - max(pipe.processor.context_frames, pipe.processor.context_frames_3d), 0)
    context = load_well(file, trajectory, start, first - start)
    typer.echo(f"from {context}")
    predicted = pipe.predict(
        context, steps, ensemble_size=ensemble, seed=seed, jitter=jitter, tokens_per_axis=tokens_per_axis
    )
    save_well(predicted, output, overwrite=overwrite)
    typer.echo(f"wrote {output}: {steps} frames from time {predicted.time:g} on")
    overlap = min(steps, found.frames - first)
    truth = load_well(file, trajectory, first, overlap) if overlap else None
    if truth is not None:
        _print_scores(pipe, context, predicted.frames(0, overlap), truth)
    if plot is not None:
        _draw(predicted, truth, plot, overwrite)
        typer.echo(f"wrote {plot}")


def _print_scores(pipe, context, predicted, truth) -> None:
    from ..metrics import persistence

    scores = pipe.evaluate(predicted, truth)
    still = pipe.evaluate(persistence(context, predicted.num_frames), truth)
    windows = list(next(iter(scores.values())))
    rows = [[name, *(f"{scores[name][w]:.4f} ({still[name][w]:.4f})" for w in windows)] for name in scores]
    print_table("VRMSE against the file (persistence in brackets)", ["field", *(f"steps {w}" for w in windows)], rows)


def _draw(predicted, truth, path: Path, overwrite: bool) -> None:
    from ..plotting import animate, plot_panels

    if truth is not None:
        predicted = predicted.frames(0, truth.num_frames)
    if path.suffix.lower() == ".png":
        plot_panels(predicted, truth, path, overwrite=overwrite)
    else:
        animate(predicted, truth, path, overwrite=overwrite)
