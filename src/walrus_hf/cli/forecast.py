"""`walrus-hf forecast`: a simulation file in, its continuation out."""

from __future__ import annotations

import dataclasses
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
    check_plot,
    load_pipeline,
    parse_field_names,
    print_scores,
)


def forecast(
    file: Annotated[str, typer.Argument(help="Simulation in The Well's HDF5 format: a path or URL.")],
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Forecast, in the same format (.hdf5).")],
    steps: Annotated[int, typer.Option("--steps", "-n", min=1, help="Frames to forecast.")] = 50,
    plot: Annotated[Path | None, typer.Option(help="Picture of the forecast: .gif, .mp4 or .png.")] = None,
    trajectory: Annotated[int, typer.Option(help="Which trajectory of the file, counted from 0.")] = 0,
    first: Annotated[
        int | None,
        typer.Option(
            "--from",
            help="First frame to forecast, counted from 0. Default: the one after the end of the file. Frames that the "
            "file has from there on are the truth to compare with.",
        ),
    ] = None,
    ensemble: Annotated[int, typer.Option(min=1, help="Members to average, which differ in their jitter.")] = 1,
    seed: Seed = 0,
    jitter: Jitter = None,
    tokens_per_axis: Tokens = None,
    cache_steps: Annotated[
        int,
        typer.Option(min=1, help="Hold scales and jitter for so many steps and compute new frames alone: faster."),
    ] = 1,
    frame_stride: Annotated[
        int | None, typer.Option(min=1, help="Read every so many frames, and forecast frames as far apart. Default: 1.")
    ] = None,
    field_name: FieldNames = None,
    revision: Revision = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Forecast a simulation and write it to a file, with a picture if wanted."""
    from ..data.well import load_well, well_info
    from ..data.well_writer import save_well
    from ..metrics import every_frame, persistence

    check_output(output, overwrite, (".hdf5", ".h5"))
    check_plot(plot, overwrite)
    found = well_info(file)
    first = found.frames if first is None else first
    if found.frames < 2:
        raise ValueError(f"{file}: expected at least 2 frames to forecast from, found {found.frames}")
    if not 2 <= first <= found.frames:
        raise ValueError(f"--from {first}: expected 2 to {found.frames}, the frames of {file}")
    if not 0 <= trajectory < found.trajectories:
        raise ValueError(f"--trajectory {trajectory}: expected 0 to {found.trajectories - 1}")
    fields = [*found.fields, *found.constant_fields]
    for own in parse_field_names(field_name):
        if own not in fields:
            raise ValueError(f"--field-name: expected a field of {file} ({', '.join(fields)}), found {own!r}")
    pipe = load_pipeline(model, revision, device, field_name)
    stride = frame_stride or 1
    most = max(pipe.processor.context_frames, pipe.processor.context_frames_3d)
    start = max(first - (most - 1) * stride - 1, 0)
    known = min(first + steps * stride, found.frames)
    whole = load_well(file, trajectory, start, known - start)
    context = whole.frames(0, first - start)
    truth = every_frame(whole.frames(first - start + stride - 1), stride) if known >= first + stride else None
    typer.echo(f"forecast from {context}")
    predicted = pipe.predict(
        context, steps, ensemble_size=ensemble, seed=seed, jitter=jitter, tokens_per_axis=tokens_per_axis,
        use_cache=cache_steps > 1, cache_steps=cache_steps, frame_stride=frame_stride,
    )  # fmt: skip
    save_well(predicted, output, overwrite=overwrite)
    typer.echo(f"wrote {output}: {steps} frames from time {predicted.time:g} on")
    if truth is not None:
        scored = predicted.frames(0, truth.num_frames)
        still = dataclasses.replace(persistence(context, truth.num_frames), time=scored.time, dt=scored.dt)
        scores, still_scores = (pipe.evaluate(guess, truth) for guess in (scored, still))
        print_scores("VRMSE against the file (persistence in brackets)", scores, still_scores)
    if plot is not None:
        _draw(predicted, truth, plot, overwrite)
        typer.echo(f"wrote {plot}")


def _draw(predicted, truth, path: Path, overwrite: bool) -> None:
    from ..plotting import animate, plot_panels

    if truth is not None:
        predicted = predicted.frames(0, truth.num_frames)
    if path.suffix.lower() == ".png":
        plot_panels(predicted, truth, path, overwrite=overwrite)
    else:
        animate(predicted, truth, path, overwrite=overwrite)
