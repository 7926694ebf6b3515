"""Options that several commands share, and the tables they print."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str, typer.Option("--model", "-m", help="Folder of a checkpoint or adapter, or a Hub repository.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the Hub repository.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; default: a GPU if there is one.")]
Seed = Annotated[int, typer.Option(help="Seed of the jitter.")]
Jitter = Annotated[bool | None, typer.Option("--jitter/--no-jitter", help="Default: as the checkpoint says.")]
Tokens = Annotated[int | None, typer.Option("--tokens-per-axis", help="Compute dial; default: as the checkpoint says.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing output files.")]
FieldNames = Annotated[
    list[str] | None,
    typer.Option(
        "--field-name", metavar="OWN=KNOWN", help="Map a field name of the file, e.g. rho=density. Repeatable."
    ),
]


def load_pipeline(model: str, revision: str | None, device: str | None, field_names: Sequence[str] | None):
    """A pipeline whose processor knows the names given as OWN=KNOWN."""
    from ..pipeline_walrus import WalrusPipeline

    mapping = parse_field_names(field_names)
    pipe = WalrusPipeline.from_pretrained(model, revision=revision, device=device)
    pipe.processor.field_names.update(mapping)
    return pipe


def parse_field_names(given: Sequence[str] | None) -> dict[str, str]:
    mapping = {}
    for item in given or ():
        own, sign, known = item.partition("=")
        if not (own and sign and known):
            raise typer.BadParameter(f"expected OWN=KNOWN, found {item!r}", param_hint="--field-name")
        mapping[own] = known
    return mapping


def check_output(path: Path | None, overwrite: bool, suffixes: Iterable[str]) -> None:
    """Refuses an output file before anything is computed."""
    if path is None:
        return
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path}: expected a file name ending in {' or '.join(suffixes)}")
    if path.is_dir():
        raise ValueError(f"{path}: expected a file name, found a folder")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; choose another name or replace it with --overwrite")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path.absolute().parent}: this folder does not exist; create it first")


def print_table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on stdout, the first column left and the others right."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold")
    for i, name in enumerate(head):
        table.add_column(name, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
