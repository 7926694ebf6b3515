"""`walrus-hf compare`: two evaluations, trajectory by trajectory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import print_table


def compare(
    first: Annotated[Path, typer.Argument(help="Folder of an evaluation, or its results.json.")],
    second: Annotated[Path, typer.Argument(help="The other one.")],
    forecaster: Annotated[
        str, typer.Option(help="Whose errors of the first: model, persistence or a baseline's name.")
    ] = "model",
    against: Annotated[str, typer.Option(help="Whose errors of the second.")] = "model",
    by_field: Annotated[bool, typer.Option("--by-field", help="Every field, not only their mean.")] = False,
) -> None:
    """Differences of VRMSE, second minus first, on the trajectories that both evaluations have."""
    from ..evaluation import compare as run
    from ..evaluation.protocol import MEAN_OF_FIELDS

    found = run(first, second, (forecaster, against))
    means = {row["scenario"] for row in found["rows"] if row["field"] == MEAN_OF_FIELDS}
    rows = [
        [
            row["scenario"], row["field"], row["window"], str(row["count"]), _number(row["first"]),
            _number(row["second"]), _signed(row["difference"]), f"{_signed(row['low'])} to {_signed(row['high'])}",
            f"{100 * row['better']:.0f} %",
        ]
        for row in found["rows"]
        if by_field or row["field"] == MEAN_OF_FIELDS or row["scenario"] not in means
    ]  # fmt: skip
    print_table(
        f"VRMSE of {forecaster} in {first} (A) and {against} in {second} (B), medians over the same trajectories",
        ["scenario", "field", "steps", "n", "A", "B", "B - A", "interval", "B better"],
        rows,
    )
    for row in found["rows"]:
        if any(row["failed"]) and (by_field or row["field"] == MEAN_OF_FIELDS or row["scenario"] not in means):
            where = f"{row['scenario']}, {row['field']}, steps {row['window']}"
            typer.echo(f"note: {where}: {row['failed'][0]} forecasts of A and {row['failed'][1]} of B failed")
    for note in found["notes"]:
        typer.echo(f"note: {note}")


def _number(value: float) -> str:
    return "failed" if value == float("inf") else f"{value:.4f}"


def _signed(value: float) -> str:
    return "-" if value != value else f"{value:+.4f}"
