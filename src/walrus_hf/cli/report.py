"""`walrus-hf report`: a page of tables, curves and films from evaluations."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from .options import Overwrite, check_output


def report(
    results: Annotated[list[Path], typer.Argument(help="Folders written by `walrus-hf evaluate`, one or several.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write (.html).")] = Path("report.html"),
    training: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of a training run with metrics.jsonl, to show its curves. Repeatable."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Make one self-contained page of evaluations: tables, curves, films; it works offline and on a phone."""
    from ..evaluation.report import write_report

    check_output(output, overwrite, (".html", ".htm"))
    if not all(find_spec(package) for package in ("matplotlib", "PIL")):
        raise ImportError("the films of a report need more packages: pip install 'walrus-hf[plot]'")
    write_report(results, output, training or (), overwrite)
    size = output.stat().st_size / 2**20
    typer.echo(f"wrote {output} ({size:.1f} MiB): open it in a browser")
