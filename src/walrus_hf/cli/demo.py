"""`walrus-hf demo`: simulate, forecast with walrus-nano or a model trained on the spot, and look at it, on a CPU."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from .options import Overwrite, print_table

SCENARIOS = ("shear_flow", "gray_scott")
NEEDS = {"exponax": "sim", "matplotlib": "plot", "imageio": "plot"}
MINUTES = 2.5
TRAIN_TRAJECTORIES, STEPS = 24, 24
FIRST = 16  # that is forecast, counted from 0
LEAD_TIMES = (1, 2, 4, 8, 16, 24)
# Of training/; the time alone ends the run.
RECIPE = {
    "model_size": "tiny", "model": {"tokens_per_axis": 8, "drop_path_rate": 0.0}, "frames": 4, "batch_size": 4,
    "gradient_accumulation_steps": 1, "stride_max": 1, "augment": False, "learning_rate": 3e-3, "max_grad_norm": 1.0,
    "muon": True, "max_steps": 100_000, "save_steps": 100_000, "validation_steps": 0, "log_with": ["none"],
}  # fmt: skip


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for data, model and pictures.")] = Path(
        "demo-output"
    ),
    train: Annotated[
        bool, typer.Option("--train", help="Train a tiny model from scratch instead of taking walrus-nano.")
    ] = False,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help=f"How long to train. Default: {MINUTES}.", show_default=False)
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Simulate two kinds of flow that a model has not seen, forecast them, and draw films."""
    if minutes is not None and not train:
        raise ValueError("--minutes: expected together with --train; walrus-nano is trained already")
    needs = {**NEEDS, "accelerate": "train"} if train else NEEDS
    missing = sorted({extra for package, extra in needs.items() if find_spec(package) is None})
    if missing:
        raise ImportError(f"the demo needs more packages: pip install 'walrus-hf[{','.join(missing)}]'")
    if output.is_file():
        raise ValueError(f"{output}: expected a folder, found a file")
    _clear(output, overwrite)
    begin = time.monotonic()
    _simulate(output, TRAIN_TRAJECTORIES if train else 0)
    model = str(output / "model") if train else "walrus-nano"
    if train:
        _train(output, MINUTES if minutes is None else minutes)
    _verdict(_show(model, output))
    typer.echo(f"{time.monotonic() - begin:.0f} s in all. The model: WalrusPipeline.from_pretrained('{model}')")


def _show(model: str, output: Path) -> dict[str, dict]:
    """Forecast, draw and print; by forecaster and scenario the VRMSE at each lead time."""
    from ..pipeline_walrus import WalrusPipeline
    from ..plotting import animate, plot_error_growth

    curves: dict[str, dict] = {"Walrus": {}, "persistence": {}}
    rows = []
    pipe = WalrusPipeline.from_pretrained(model)
    for name in SCENARIOS:
        forecast, truth, scores = _forecast(pipe, output / "unseen" / f"{name}.hdf5")
        for who, errors in scores.items():
            curves[who][name.replace("_", " ")] = errors
        rows += [
            [f"{name.replace('_', ' ')}, {who}", *(f"{errors[t - 1]:.3f}" for t in LEAD_TIMES)]
            for who, errors in scores.items()
        ]
        typer.echo(f"wrote {animate(forecast, truth, output / f'{name}.gif')}")
    typer.echo(f"wrote {plot_error_growth(curves, output / 'error_growth.png')}\n")
    print_table(
        f"VRMSE of unseen trajectories from frame {FIRST} on (the first is 0), by lead time (in steps)",
        ["", *map(str, LEAD_TIMES)],
        rows,
    )
    return curves


def _clear(output: Path, overwrite: bool) -> None:
    """Remove what a former demo wrote; a folder that holds anything else is somebody's, and is left alone."""
    found = sorted(output.iterdir()) if output.is_dir() else []
    if found and not overwrite:
        raise FileExistsError(
            f"{output} is not empty; choose another folder, or replace a former demo with --overwrite"
        )
    written = {"data", "unseen", "recipe.yaml", "metrics.jsonl", "model", "error_growth.png"}
    written |= {f"{name}.gif" for name in SCENARIOS} | {path.name for path in output.glob("step-*")}
    for half in ("tmp-[0-9]*", "tmp-replaced-step-*", "tmp-pruned-step-*"):  # checkpoints of a demo that was killed
        written |= {path.name for path in output.glob(half)}
    recordings = {f"{name}.hdf5" for name in SCENARIOS}
    foreign = [path for path in found if not _is_one_of(written, path.name)]
    for folder in (output / "data", output / "unseen"):
        inside = sorted(folder.iterdir()) if folder.is_dir() else []
        foreign += [path for path in inside if not _is_one_of(recordings, path.name)]
    if found and not (output / "unseen").is_dir():  # which each demo makes before anything else
        foreign += found
    if foreign:
        raise FileExistsError(
            f"{output}: expected a former demo to replace, found {str(foreign[0].relative_to(output))!r} in it; choose "
            "another folder"
        )
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _is_one_of(names: set[str], name: str) -> bool:
    """Or half of one, which a demo that was killed has left."""
    return name in names or name.startswith(tuple(f".{whole}{mark}" for whole in names for mark in ".-"))


def _simulate(output: Path, trajectories: int) -> None:
    """One unseen trajectory of each scenario, and so many to train on."""
    from tqdm.auto import tqdm

    from ..data import simulate
    from ..data.well_writer import save_well

    solvers = {"shear_flow": simulate.shear_flow, "gray_scott": simulate.gray_scott}
    for folder in ("unseen", *(["data"] if trajectories else [])):
        (output / folder).mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(SCENARIOS) * (trajectories + 1), desc="simulate", unit="trajectory") as bar:
        for name in SCENARIOS:
            runs = []
            for seed in range(trajectories + 1):
                runs.append(solvers[name](seed))
                bar.update()
            # Seed 0 is kept for the forecast; walrus-nano was trained on other seeds, too.
            save_well(runs[0], output / "unseen" / f"{name}.hdf5")
            if trajectories:
                save_well(runs[1:], output / "data" / f"{name}.hdf5")


def _train(output: Path, minutes: float) -> None:
    import yaml

    sources = [str(output / "data" / f"{name}.hdf5") for name in SCENARIOS]
    recipe = {"sources": sources, "output_dir": str(output), "max_seconds": 60 * minutes, **RECIPE}
    (output / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "walrus_hf.training"]
    launch += ["--config", str(output / "recipe.yaml")]
    if subprocess.run(launch, check=False).returncode:
        raise OSError("the training stopped with the error above")


def _forecast(pipe, path: Path):
    """Forecast, truth, and the VRMSE of model and persistence, mean over fields, at each lead time."""
    import numpy as np

    from ..data.well import load_well
    from ..metrics import persistence, score

    context, truth = load_well(path, frames=FIRST), load_well(path, start=FIRST, frames=STEPS)
    forecast = pipe.predict(context, STEPS, seed=0)
    candidates = {"Walrus": forecast, "persistence": persistence(context, STEPS)}
    return forecast, truth, {
        who: np.mean(list(score(candidate, truth).values()), axis=0) for who, candidate in candidates.items()
    }  # fmt: skip


def _verdict(curves: dict[str, dict]) -> None:
    behind = [
        f"{name} at lead time {t}"
        for name, errors in curves["Walrus"].items()
        for t in LEAD_TIMES
        if not errors[t - 1] < curves["persistence"][name][t - 1]
    ]
    if behind:
        typer.echo(f"The forecast does NOT beat persistence for {', '.join(behind)}.")
    else:
        typer.echo("The forecast beats persistence at every lead time shown.")
