"""`walrus-hf evaluate`: VRMSE over lead time of a model by the published protocol, beside baselines and the paper."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import (
    Device,
    FieldNames,
    Jitter,
    Model,
    Overwrite,
    Revision,
    Seed,
    Tokens,
    load_pipeline,
    parse_field_names,
    print_table,
)


def evaluate(
    model: Model,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", "-d", help="File, folder or URL of The Well's format, manifest, or scenario. Several may follow."
        ),
    ] = None,
    more_data: Annotated[
        list[str] | None,
        typer.Argument(metavar="DATA...", help="What --data names; the option itself may be left out."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for results. Without it only the table is printed.")
    ] = None,
    protocol: Annotated[str, typer.Option(help="How to measure; walrus is the paper's.")] = "walrus",
    baseline: Annotated[
        list[str] | None, typer.Option(help="Name or folder of a baseline to measure beside. Repeatable.")
    ] = None,
    first: Annotated[
        int, typer.Option("--from", min=2, help="First frame to forecast, from 0; earlier where frames run out.")
    ] = 17,
    steps: Annotated[
        int | None,
        typer.Option("--steps", "-n", min=1, help="Frames to forecast; default: to the end of the last window."),
    ] = None,
    frame_stride: Annotated[
        int, typer.Option(min=1, help="Forecast every so many frames; lead times, --from and --steps count those.")
    ] = 1,
    window: Annotated[
        list[str] | None,
        typer.Option(help="Lead times to average over, such as 1 or 11:30. Repeatable. Default: the paper's."),
    ] = None,
    trajectories: Annotated[int | None, typer.Option(min=1, help="How many of each source; default: all.")] = None,
    split: Annotated[str, typer.Option(help="train, valid or test, of sources that have splits.")] = "test",
    base_path: Annotated[
        str | None, typer.Option(help="Folder or URL that holds scenarios as NAME/data/SPLIT, instead of the Hub.")
    ] = None,
    ensemble: Annotated[int, typer.Option(min=1, help="Members, which differ in their jitter.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, max=8, help="Trajectories that are forecast together.")] = 1,
    workers: Annotated[int, typer.Option(min=0, help="Threads that read ahead.")] = 0,
    keep: Annotated[int, typer.Option(min=0, help="Forecasts of each source to write for pictures.")] = 2,
    seed: Seed = 0,
    jitter: Jitter = None,
    tokens_per_axis: Tokens = None,
    field_name: FieldNames = None,
    revision: Revision = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Forecast trajectories of known simulations and print the median VRMSE by field and lead time.

    Run again, it goes on where it was killed.
    """
    from ..evaluation import WINDOWS, Protocol
    from ..evaluation import evaluate as run
    from ..evaluation.baselines import load_baseline
    from ..evaluation.evaluator import MODEL
    from ..evaluation.protocol import parse_windows
    from ..evaluation.results import note_lines, table_lines, title

    if protocol != "walrus":
        raise ValueError(f"--protocol: expected 'walrus', the one there is, found {protocol!r}")
    sources = [*(data or ()), *(more_data or ())]
    if not sources:
        raise ValueError("expected data to forecast, found none; name files or folders, as in --data DATA")
    settings = Protocol(
        start=first, steps=steps, windows=parse_windows(window) if window else WINDOWS, split=split,
        max_trajectories=trajectories, seed=seed, ensemble_size=ensemble, jitter=jitter,
        tokens_per_axis=tokens_per_axis, frame_stride=frame_stride,
    )  # fmt: skip
    baselines = {}
    for given in baseline or ():
        name = Path(given).name
        if name in baselines:
            raise ValueError(f"--baseline: expected different names, found {name!r} twice; rename one of the folders")
        baselines[name] = load_baseline(given, device)
    pipe = load_pipeline(model, revision, device, field_name)
    results = run(
        pipe, sources, output, settings, baselines, model_name=model, base_path=base_path,
        batch_size=batch_size, workers=workers, kept_forecasts=keep, overwrite=overwrite,
    )  # fmt: skip
    for key, scenario in results["scenarios"].items():
        head, *rows = table_lines(scenario, results["protocol"]["windows"], intervals=False)
        typer.echo()
        print_table(f"{key}: {title(scenario)}", head, rows)
    typer.echo()
    for note in note_lines(results):
        typer.echo(f"note: {note}")
    if output is not None:
        typer.echo(f"wrote {output}: intervals, means and every value")
    known = {name for scenario in results["scenarios"].values() for name in scenario["fields"]}
    for own in parse_field_names(field_name):
        if own not in known:
            typer.echo(f"note: --field-name {own}: no field that is scored has this name")
    if not baselines and not any(MODEL in scenario["forecasters"] for scenario in results["scenarios"].values()):
        raise ValueError("data: expected something that the model can forecast, found nothing; the notes say why")
