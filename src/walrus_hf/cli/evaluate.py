"""`walrus-hf evaluate`: VRMSE over lead time of a model on a simulation file, beside persistence."""

from __future__ import annotations

import json
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
    print_table,
)


def evaluate(
    model: Model,
    data: Annotated[str, typer.Option("--data", "-d", help="Simulations in The Well's HDF5 format: a path or URL.")],
    first: Annotated[int, typer.Option("--from", min=2, help="First frame to forecast (published protocol: 17).")] = 17,
    steps: Annotated[
        int | None, typer.Option("--steps", "-n", min=1, help="Frames to forecast; default: to the end, at most 60.")
    ] = None,
    trajectories: Annotated[int | None, typer.Option(min=1, help="Only the first ones of the file.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Every value, with the settings.")] = None,
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
    if first >= found.frames:
        raise ValueError(
            f"--from {first}: expected a frame before the end of the file, which has {found.frames} frames"
        )
    length = min(steps or 60, found.frames - first)
    if steps and length < steps:
        raise ValueError(f"--steps {steps}: expected at most {found.frames - first} from frame {first} on")
    pipe = load_pipeline(model, revision, device, field_name)
    results: list[dict[str, Any]] = []
    for index in range(min(trajectories or found.trajectories, found.trajectories)):
        start = max(first - pipe.processor.context_frames, 0)
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
    windows = list(medians["model"]["all fields"])
    print_table(
        f"VRMSE, median over {len(results)} trajectories (persistence in brackets)",
        ["field", *(f"steps {w}" for w in windows)],
        [
            [field, *(f"{values[w]:.4f} ({medians['persistence'][field][w]:.4f})" for w in windows)]
            for field, values in medians["model"].items()
        ],
    )
    if json_file is not None:
        settings = {
            "model": model, "revision": revision, "data": data, "from": first, "steps": length, "seed": seed,
            "jitter": pipe.processor.jitter if jitter is None else jitter, "tokens_per_axis": tokens_per_axis,
        }  # fmt: skip
        temporary = json_file.with_name(f".{json_file.name}.tmp")
        text = json.dumps({"settings": settings, "median_vrmse": medians, "trajectories": results}, indent=1)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, json_file)
        typer.echo(f"wrote {json_file}")
