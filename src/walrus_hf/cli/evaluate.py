"""`walrus-hf evaluate`: VRMSE over lead time of a model on a simulation file, beside persistence."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Annotated, Any

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
    print_scores,
    writing,
)


def evaluate(
    model: Model,
    data: Annotated[str, typer.Option("--data", "-d", help="Simulations in The Well's HDF5 format: a path or URL.")],
    first: Annotated[
        int, typer.Option("--from", help="First frame to forecast, counted from 0 (published protocol: 17).")
    ] = 17,
    steps: Annotated[
        int | None, typer.Option("--steps", "-n", min=1, help="Frames to forecast; default: to the end, at most 60.")
    ] = None,
    trajectories: Annotated[int | None, typer.Option(min=1, help="How many of the file's; default: all.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for every value, with the settings.")] = None,
    seed: Seed = 0,
    jitter: Jitter = None,
    tokens_per_axis: Tokens = None,
    field_name: FieldNames = None,
    revision: Revision = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Forecast every trajectory of a file and print the median VRMSE by field and lead time."""
    import numpy as np

    from ..data.well import load_well, well_info
    from ..metrics import persistence

    check_output(json_file, overwrite, (".json",))
    found = well_info(data)
    if found.frames < 3 or not 2 <= first < found.frames:
        raise ValueError(
            f"--from {first}: expected a frame from 2 to {found.frames - 1}, with 2 frames before it to forecast from, "
            f"found a file of {found.frames} frames; choose another --from or a longer simulation"
        )
    length = min(steps or 60, found.frames - first)
    if steps and length < steps:
        raise ValueError(f"--steps {steps}: expected at most {length}, the frames of the file from frame {first} on")
    pipe = load_pipeline(model, revision, device, field_name)
    results: list[dict[str, Any]] = []
    for index in range(min(trajectories or found.trajectories, found.trajectories)):
        start = max(first - max(pipe.processor.context_frames, pipe.processor.context_frames_3d), 0)
        whole = load_well(data, index, start, first - start + length)
        context = whole.frames(0, first - start)
        predicted = pipe.predict(context, length, seed=seed + index, jitter=jitter, tokens_per_axis=tokens_per_axis)
        results.append(
            {
                "trajectory": index,
                "model": pipe.evaluate(predicted, whole),
                "persistence": pipe.evaluate(persistence(context, length), whole),
            }
        )
    medians = {
        who: {
            field: {w: float(np.median([r[who][field][w] for r in results])) for w in windows}
            for field, windows in results[0][who].items()
        }
        for who in ("model", "persistence")
    }
    title = f"VRMSE, median over {len(results)} trajectories (persistence in brackets)"
    print_scores(title, medians["model"], medians["persistence"])
    if json_file is not None:
        settings = {
            "model": model, "revision": revision, "data": data, "from": first, "steps": length, "seed": seed,
            "jitter": pipe.processor.jitter if jitter is None else jitter, "tokens_per_axis": tokens_per_axis,
        }  # fmt: skip
        write_json(json_file, {"settings": settings, "median_vrmse": medians, "trajectories": results})
        typer.echo(f"wrote {json_file}")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Under a temporary name, then moved; numbers that are not finite become null, which JSON can hold."""
    text = json.dumps(_finite(content), indent=1, allow_nan=False)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            temporary.write_text(text + "\n", encoding="utf-8")
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
