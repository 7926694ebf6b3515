"""`walrus-hf compare`: two evaluations, trajectory by trajectory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    typer.echo(f"A: {forecaster} in {first}\nB: {against} in {second}")
    tables: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in found["rows"]:
        tables.setdefault((row["scenario"], row["field"]), []).append(row)
    for (scenario, field), rows in tables.items():
        if by_field or field == MEAN_OF_FIELDS or (scenario, MEAN_OF_FIELDS) not in tables:
            _print(f"{scenario}, {field}: median VRMSE of the same trajectories", rows)
    typer.echo()
    for note in found["notes"]:
        typer.echo(f"note: {note}")


def _print(title: str, rows: list[dict[str, Any]]) -> None:
    typer.echo()
    head = ["steps", "n", "A", "B", "B - A", "from", "to", "B better"]
    cells = [
        [
            row["window"], str(row["count"]), _number(row["first"]), _number(row["second"]),
            *(_signed(row[name]) for name in ("difference", "low", "high")), f"{100 * row['better']:.0f} %",
        ]
        for row in rows
    ]  # fmt: skip
    print_table(title, head, cells)
    for row in rows:
        if any(row["failed"]):
            typer.echo(f"steps {row['window']}: {row['failed'][0]} forecasts of A and {row['failed'][1]} of B failed")


def _number(value: float) -> str:
    return "inf" if value == float("inf") else f"{value:.4f}"


def _signed(value: float) -> str:
    return "-" if value != value else f"{value:+.4f}"
