"""Options that several commands share, and the tables they print."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str, typer.Option("--model", "-m", help="Folder of a checkpoint or adapter, walrus-nano, or a Hub repository.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the Hub repository.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ... Default: a GPU if there is one.")]
Seed = Annotated[int, typer.Option(min=0, max=2**62, help="Seed of the jitter: the same seed, the same forecast.")]
Jitter = Annotated[
    bool | None,
    typer.Option(
        "--jitter/--no-jitter", help="Random shifts against the imprint of patches. Default: as the checkpoint says."
    ),
]
Tokens = Annotated[
    int | None,
    typer.Option(
        "--tokens-per-axis", help="The compute dial: more is finer and slower. Default: as the checkpoint says."
    ),
]
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
            raise ValueError(f"--field-name: expected OWN=KNOWN such as rho=density, found {item!r}")
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
        raise FileExistsError(f"{path} exists; choose another name, or replace it with --overwrite")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"{path}: expected an existing folder {folder}, found none; create it first")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{path}: expected a folder that you may write to; choose another one")


def check_plot(path: Path | None, overwrite: bool) -> None:
    """The same for a picture, which needs more packages."""
    if path is None:
        return
    check_output(path, overwrite, (".gif", ".mp4", ".png"))
    needed = ["matplotlib"] + ["imageio_ffmpeg"] * (path.suffix.lower() == ".mp4")
    if not all(find_spec(package) for package in needed):
        raise ImportError("--plot needs more packages: pip install 'walrus-hf[plot]'")


def print_table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on stdout, the first column left and the others right."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    for i, name in enumerate(head):
        table.add_column(escape(name), justify="right" if i else "left")
    for row in rows:
        table.add_row(*map(escape, row))  # a unit in brackets is no markup
    console = Console()
    console.print(title, style="bold", markup=False, highlight=False, soft_wrap=True)
    console.print(table)


def print_scores(
    title: str, scores: Mapping[str, Mapping[str, float]], still: Mapping[str, Mapping[str, float]]
) -> None:
    """VRMSE by field and window of lead time, with persistence in brackets."""
    windows = list(next(iter(scores.values())))
    rows = [[name, *(f"{scores[name][w]:.4f} ({still[name][w]:.4f})" for w in windows)] for name in scores]
    print_table(title, ["field", *(f"steps {w}" for w in windows)], rows)
