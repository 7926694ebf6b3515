"""`walrus-hf finetune`: a model and simulations in, an adapter or a fine-tuned model out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import FieldNames, Overwrite, parse_field_names, print_table


def finetune(
    model: Annotated[
        str, typer.Option("--model", "-m", help="Folder of a checkpoint, walrus-nano, or a Hub repository.")
    ],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            "-d",
            help="Simulations: The Well's format (file, folder, URL), a scenario, netCDF, or YAML beside .npy files.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the adapter, its card and pictures.")],
    max_steps: Annotated[int, typer.Option(min=1, help="Optimiser steps at most.")] = 1000,
    preset: Annotated[
        str | None,
        typer.Option(help="What LoRA changes: all-linear (default), attention, mlp, attention-mlp, dora or rslora."),
    ] = None,
    method: Annotated[str, typer.Option(help="lora (an adapter), full (all weights) or head (the decoder).")] = "lora",
    rank: Annotated[int, typer.Option(min=1, help="Of the adapter.")] = 16,
    validation: Annotated[
        str | None, typer.Option(help="Data to validate on. Default: the split `valid`, or a tenth held out.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows of a step.")] = 2,
    learning_rate: Annotated[
        float | None, typer.Option(help="Default: 1e-3 for adapters and heads, 1e-4 for all weights.")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(min=2, help="Input frames. Default: the model's, or what the data hold.")
    ] = None,
    frame_stride: Annotated[int, typer.Option(min=1, help="Distance of the frames.")] = 1,
    field_name: FieldNames = None,
    log_field: Annotated[
        list[str] | None, typer.Option("--log-field", help="Own name of a field to read as its logarithm. Repeatable.")
    ] = None,
    new_field: Annotated[
        list[str] | None,
        typer.Option(
            "--new-field",
            metavar="OWN[=LIKE]",
            help="Own name of a field to teach, starting as a known one, e.g. smoke=density. Repeatable.",
        ),
    ] = None,
    normalization: Annotated[
        str, typer.Option(help="sample (scales of the given frames), global (of the data), or a stats.yaml.")
    ] = "sample",
    rope: Annotated[str | None, typer.Option(help="Learnable rotary frequencies: shared or per_axis.")] = None,
    absolute_position: Annotated[
        bool, typer.Option("--absolute-position", help="Learn absolute positions, for anisotropic domains.")
    ] = False,
    validation_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps between validations. Default: a twentieth of all.")
    ] = None,
    patience: Annotated[
        int, typer.Option(min=0, help="Validations without an improvement that end the run; 0 never does.")
    ] = 5,
    optimizer: Annotated[str, typer.Option(help="adamw, or adamw-8bit (bitsandbytes).")] = "adamw",
    quantization: Annotated[str | None, typer.Option(help="4bit: QLoRA (bitsandbytes).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Everything that is drawn follows from it.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint, if there is one.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Fine-tune a model on simulations, and compare forecasts before and after."""
    from ..adapters import DEFAULT_PRESET
    from ..allocator import return_freed_memory
    from ..finetuning import fit
    from ..finetuning_results import read_results
    from ..model_card import WHO, error_rows
    from ..training.guards import TrainingDiverged

    return_freed_memory()
    settings = {
        "max_steps": max_steps, "preset": preset or DEFAULT_PRESET, "method": method, "rank": rank,
        "batch_size": batch_size, "learning_rate": learning_rate, "frames": frames, "frame_stride": frame_stride,
        "field_names": parse_field_names(field_name), "log_fields": log_field or [],
        "new_fields": _parse_new_fields(new_field), "normalization": normalization, "rope_learnable": rope,
        "absolute_position": absolute_position, "validation_steps": validation_steps, "patience": patience or None,
        "optimizer": optimizer, "quantization": quantization, "seed": seed, "resume": resume, "overwrite": overwrite,
    }  # fmt: skip
    try:
        fit(model, data, output, validation, **settings)
    except TrainingDiverged as error:
        raise ValueError(str(error)) from error
    results = read_results(output)
    if results is None:
        typer.echo(f"stopped; go on with the same command and --resume. Checkpoint: {output}")
        return
    print_table(f"VRMSE on held-out data ({results['data']}), mean over fields", ["", *WHO], error_rows(results))
    share = results["trained_parameters"] / results["parameters"]
    apart = "" if frame_stride == 1 else f", and give it frames {frame_stride} apart (frame_stride={frame_stride})"
    typer.echo(
        f"wrote {output}: best at step {results['best_step']} of {results['steps']}, {share:.2%} of the parameters "
        f"trained. Load it: WalrusPipeline.from_pretrained('{output}'){apart}"
    )


def _parse_new_fields(given: list[str] | None) -> dict[str, str | None]:
    fields: dict[str, str | None] = {}
    for item in given or ():
        own, sign, like = item.partition("=")
        if not own or (sign and not like):
            raise ValueError(f"--new-field: expected OWN or OWN=LIKE such as smoke=density, found {item!r}")
        fields[own] = like or None
    return fields
