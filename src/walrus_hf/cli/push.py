"""`walrus-hf push`: a checkpoint or adapter to the Hub, in one commit."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

GRIDS = ((128, 128), (256, 256), (512, 512), (64, 64, 64), (128, 128, 128))  # of the card's costs
FIELDS = 4


def push(
    folder: Annotated[Path, typer.Argument(help="Folder of a checkpoint or adapter.")],
    repo: Annotated[str, typer.Option("--repo", help="Repository on the Hub, ORG/NAME; made where there is none.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List files and card, and touch nothing.")] = False,
    results: Annotated[
        Path | None, typer.Option(help="results.json of `walrus-hf evaluate` for these weights, for the card.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="Base model on the Hub, ORG/NAME, or walrus-nano.")] = None,
    license: Annotated[str | None, typer.Option(help="Licence of the weights, such as cc-by-4.0.")] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="Data set on the Hub that it was trained on. Repeatable.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch to push to. Default: main.")] = None,
    message: Annotated[str | None, typer.Option("--message", help="Of the commit.")] = None,
) -> None:
    """Push a checkpoint or adapter to the Hub: weights, configuration, processor, code and card in one commit."""
    from ..hub import prepare_upload
    from ..hub import push as push_upload

    upload = prepare_upload(
        folder, repo, results=results, base_model=base, license=license, datasets=dataset or (),
        costs=checkpoint_costs(folder),
    )  # fmt: skip
    if dry_run:
        _show(upload)
        return
    typer.echo(push_upload(upload, private=private or None, revision=revision, commit_message=message))
    typer.echo(f"use it with: walrus-hf forecast FILE --model {repo} --output forecast.hdf5")


def checkpoint_costs(folder: Path) -> list[dict[str, Any]]:
    """What a forecast step costs on typical grids, for the card of a checkpoint that has none."""
    from ..hub import count_parameters, read_config
    from ..loading import load_processor

    if not (folder / "config.json").is_file() or (folder / "README.md").is_file():
        return []
    return grid_costs(read_config(folder), count_parameters(folder), load_processor(str(folder), "main"))


def grid_costs(config, parameters: int, processor=None) -> list[dict[str, Any]]:
    """Tokens, operations and memory of one forecast step on periodic grids, as `walrus-hf info` counts them.

    The processor says from how many frames; None takes the one that fits the configuration.
    """
    from ..bench.flops import forward_flops, working_bytes
    from ..loading import processor_for

    processor, costs = processor or processor_for(config), []
    for grid in GRIDS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a grid that the published table lacks costs no less
            plan = processor.plan(grid, dict.fromkeys("xyz"[: len(grid)], "periodic"), seed=0)
        frames = processor.most_frames(grid)
        costs.append(
            {
                "grid": "x".join(map(str, grid)), "frames": frames, "fields": FIELDS, "tokens": plan.num_tokens,
                "gflop": sum(forward_flops(config, plan, frames, FIELDS, frames_to_keep=1).values()) / 1e9,
                "gib": (4 * parameters + working_bytes(config, plan, frames, FIELDS)) / 2**30,
            }
        )  # fmt: skip
    return costs


def _show(upload) -> None:
    total = 0
    typer.echo(f"would push to {upload.repo_id}, in one commit:")
    for name in upload.files:
        total += upload.size(name)
        typer.echo(f"{upload.size(name):>14,} bytes  {name}")
    typer.echo(f"{total:>14,} bytes  in {len(upload.files)} files")
    if upload.left_out:
        typer.echo(f"stays here: {', '.join(upload.left_out)}")
    if "\nlicense:" not in upload.card:
        typer.echo("the card names no licence: give one with --license")
    typer.echo(f"\nREADME.md:\n\n{upload.card}")
