"""`walrus-hf convert`: the published checkpoint to a folder for `from_pretrained`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Overwrite


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="The published walrus.pt.")],
    config: Annotated[Path, typer.Option("--config", "-c", help="The published extended_config.yaml.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    overwrite: Overwrite = False,
) -> None:
    """Convert the published checkpoint: safetensors, configuration, processor and model card."""
    from ..convert import convert_checkpoint

    folder = convert_checkpoint(checkpoint, config, output, overwrite=overwrite)
    for file in sorted(folder.iterdir()):
        typer.echo(f"{file.stat().st_size:>14,} bytes  {file}")
    typer.echo(f'load it with WalrusPipeline.from_pretrained("{folder}")')
