"""`walrus-hf plan`: how busy a cluster would be in pretraining, simulated for each way of sharing out the work."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Overwrite, check_output, print_table

if TYPE_CHECKING:
    from ..training.simulation import Cluster


def plan(
    gpus: Annotated[int, typer.Option(help="GPUs of the cluster, say 8 to 4096.")] = 96,
    gpus_per_node: Annotated[int, typer.Option(help="GPUs that share a copy of the model.")] = 4,
    scenarios: Annotated[
        list[str] | None,
        typer.Option(help="Names, drawn equally often; repeat it, or list them. Default: all of pretraining."),
    ] = None,
    more: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps of each mode.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for all metrics and assumptions.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Simulate pretraining on a cluster: balance, utilisation and throughput of each way of sharing out the work."""
    from ..safe_files import write_json
    from ..training.simulation import PUBLISHED_RATIO, Cluster, scenarios_of, sensitivity, simulate

    check_output(json_file, overwrite, (".json",))
    if more and not scenarios:
        raise ValueError(f"expected options, found {' '.join(more)!r}; give names of scenarios after --scenarios")
    found, cluster = scenarios_of([*(scenarios or ()), *(more or ())]), Cluster(gpus, gpus_per_node)
    modes = simulate(found, cluster, steps, seed)
    varied = sensitivity(found, cluster, steps, seed)
    _print_modes(modes, cluster, len(found), steps)
    typer.echo(
        "\nThis is a simulation from a count of operations; nothing of it was measured on GPUs. The paper claims\n"
        f"+262% ({PUBLISHED_RATIO}x) for its recipe, and says neither of what nor for how many GPUs (it has 96).\n"
        "Frames/s of `reference` with all pretraining scenarios come nearest: a check of the model, no proof.\n"
        f"Here they are {modes['reference']['frames_per_second_ratio']:.2f}x."
    )
    _print_sensitivity(varied, modes)
    if json_file is not None:
        settings = {
            "gpus": gpus, "gpus_per_node": gpus_per_node, "scenarios": [scenario.name for scenario in found],
            "steps": steps, "seed": seed,
        }  # fmt: skip
        content = {
            "simulation": True,
            "settings": settings,
            "assumptions": dataclasses.asdict(cluster.hardware),
            "published": {"ratio": PUBLISHED_RATIO, "metric": "not stated; nearest: frames_per_second_ratio"},
            "modes": modes,
            "sensitivity": varied,
        }
        write_json(json_file, content)
        typer.echo(f"wrote {json_file}")


def _print_modes(modes: Mapping[str, Mapping[str, float]], cluster: Cluster, scenarios: int, steps: int) -> None:
    title = (
        f"Simulation of {cluster.gpus} GPUs ({cluster.groups} nodes of {cluster.gpus_per_node}), {scenarios} "
        f"scenarios, {steps:,} steps a mode; throughput relative to `independent`, naive sampling"
    )
    rates = [f"{rate}_per_second_ratio" for rate in ("samples", "frames", "tokens")]
    rows = [
        [mode, f"{m['balance']:.3f}", f"{m['utilisation']:.3f}", *(f"{m[rate]:.2f}x" for rate in rates)]
        for mode, m in modes.items()
    ]
    print_table(title, ["mode", "balance", "utilisation", "samples/s", "frames/s", "tokens/s"], rows)


def _print_sensitivity(varied: Sequence[Mapping[str, Any]], modes: Mapping[str, Mapping[str, float]]) -> None:
    rows = [["as assumed", *(f"{modes[m]['frames_per_second_ratio']:.2f}x" for m in ("reference", "balanced"))]]
    for row in varied:
        name = f"{row['assumption'].replace('_', ' ')} {row['value']:g}"
        rows.append([name, f"{row['reference']:.2f}x", f"{row['balanced']:.2f}x"])
    typer.echo()
    print_table("Frames/s when one assumption is another", ["assumption", "reference", "balanced"], rows)
