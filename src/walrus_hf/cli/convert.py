"""`walrus-hf convert`: the published checkpoint to a folder for `from_pretrained`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="The published walrus.pt.")],
    config: Annotated[Path, typer.Option("--config", "-c", help="The published extended_config.yaml.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder of a former conversion.")] = False,
) -> None:
    """Convert the published checkpoint to a folder with safetensors, configuration, processor and model card.

    The checkpoint is read without running code that it may hold.
    """
    from ..convert import convert_checkpoint

    folder = convert_checkpoint(checkpoint, config, output, overwrite=overwrite)
    for file in sorted(folder.iterdir()):
        typer.echo(f"{file.stat().st_size:>14,} bytes  {file}")
    typer.echo(f"use it with: walrus-hf forecast FILE --model {folder} --output forecast.hdf5")
