"""Puts the weights of a training run into the package, measures them, and writes the card: one command for new weights.

    python examples/simulate.py runs/nano/data --recipe nano
    OMP_NUM_THREADS=1 ACCELERATE_MIXED_PRECISION=bf16 python examples/pretrain.py --config examples/configs/nano.yaml
    python model_cards/walrus-nano/measure.py --data runs/nano/data --run runs/nano/run --commit COMMIT

COMMIT is what the run was started at, `--recipe` names its settings where they are not those of nano.yaml, `--cores`
how many processes it had, and `--history` says where it departed from the recipe. A run that started from the weights
of another adds its steps, minutes and windows to those of `--earlier`, and may be averaged with weights it came from by
`--mean-with`.

The running averages of RUN's last checkpoint are rounded to bfloat16. With these the package's own evaluator forecasts
the test split of every source, and simulations that are unlike them (`simulations.py`, kept in DATA/unseen-*), beside
persistence, linear extrapolation and dynamic modes. Then the weights go to `src/walrus_hf/checkpoints/walrus-nano/`,
`results.json`, `metrics.csv` (the run's losses), `forecast.gif` and, by `../make.py`, `README.md` here, and the film to
`docs/images/`, too. About ten minutes on one core. After a stop, the same command goes on; RUN/measured holds what is
done, and every single error.

After a change of `simulations.py`, its simulations alone are measured again, with the weights of the package, by

    python model_cards/walrus-nano/measure.py --data runs/nano/data --unseen

Baselines at equal budget are trained and measured by `examples/baselines.py --model walrus-nano --split test` (or
measured by `walrus-hf evaluate`) on some of the same sources. Their results are added by

    python model_cards/walrus-nano/measure.py --baselines RESULTS [RESULTS ...] --budget "What each was given."

which writes `baselines.json`. It stays until it is written anew, whatever weights come.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import runpy
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from simulations import FIXED, UNSEEN, unseen

from walrus_hf import WalrusForPrediction, WalrusPipeline, save_well
from walrus_hf.cli.push import grid_costs
from walrus_hf.data.well import load_well
from walrus_hf.evaluation import Protocol, evaluate
from walrus_hf.evaluation.baselines import load_baseline
from walrus_hf.evaluation.forecasters import describe_model
from walrus_hf.evaluation.sources import CONTEXT_FRAMES
from walrus_hf.plotting import animate
from walrus_hf.safe_files import write_json
from walrus_hf.training.arguments import PretrainingArguments, read_recipe
from walrus_hf.training.checkpoints import AVERAGES, latest_checkpoint, verify_checkpoint
from walrus_hf.training.objective import TrainingModel
from walrus_hf.training.optim import ExponentialAverage
from walrus_hf.training.records import read_metrics

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NAME = "walrus-nano"
RECIPE = ROOT / "examples" / "configs" / "nano.yaml"
PACKAGED = ROOT / "src" / "walrus_hf" / "checkpoints" / NAME
WINDOWS = {"1": (1, 1), "1:10": (1, 10), "11:30": (11, 30)}
PROTOCOL = Protocol(start=17, steps=30, windows=WINDOWS)
WITHOUT_TRAINING = ("linear_extrapolation", "dmd")
UNSEEN_TRAJECTORIES = 4
FILM = "0/shear_flow"  # whose first test trajectory is shown
FILM_STEPS = 16
KEPT = ("median", "median_low", "median_high", "mean", "mean_low", "mean_high")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="what examples/simulate.py --recipe nano wrote")
    parser.add_argument("--run", type=Path, help="output_dir of the training run, with its checkpoints and metrics")
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="of the run")
    parser.add_argument("--commit", help="of this repository, that the run was made with; without it the card says so")
    parser.add_argument("--history", help="a sentence: in which way the run departs from the recipe")
    parser.add_argument("--cores", type=int, default=1, help="processes of the run, each on a core of its own")
    parser.add_argument(
        "--earlier", type=int, nargs=3, default=(0, 0, 0), metavar=("STEPS", "MINUTES", "WINDOWS"),
        help="of the run whose weights it started from",
    )  # fmt: skip
    parser.add_argument(
        "--mean-with",
        type=Path,
        nargs="+",
        default=(),
        metavar="FOLDER",
        help="take the mean with these models' weights",
    )
    parser.add_argument(
        "--unseen", action="store_true", help="only what simulations.py has, with the package's weights"
    )
    parser.add_argument("--baselines", type=Path, nargs="+", metavar="RESULTS", help="folders to take baselines from")
    parser.add_argument("--budget", help="a sentence: the parameters and minutes that each baseline was given")
    given = parser.parse_args()
    torch.set_float32_matmul_precision("highest")
    if given.baselines and given.budget:
        add_baselines(given.baselines, given.budget)
    elif given.data and given.unseen:
        measure_unseen(given.data)
    elif given.data and given.run:
        measure(given)
    else:
        parser.error("expected --data with --run or --unseen, or --baselines and --budget")
    runpy.run_path(str(HERE.parent / "make.py"))["main"]()


def measure(given: argparse.Namespace) -> None:
    """Weights into the package; `results.json` and the film here."""
    data, run = given.data, given.run
    arguments = PretrainingArguments(**read_recipe(given.recipe))
    if PACKAGED in (folder.resolve() for folder in given.mean_with):
        raise SystemExit(
            f"--mean-with: expected a copy of {PACKAGED}, found that folder, which is written to at the end"
        )
    checkpoint = latest_checkpoint(run)
    if checkpoint is None:
        raise SystemExit(f"{run}: expected a run of examples/pretrain.py, found no complete checkpoint in it")
    work = run / "measured"
    packed = pack(checkpoint, arguments, work / NAME, given.mean_with)
    pipe = WalrusPipeline.from_pretrained(packed, device="cpu")
    places = sorted(path.parent.relative_to(data) for path in data.glob("[0-9]*/*/data"))
    tests = {place.as_posix(): data / place for place in places}
    if not tests:
        raise SystemExit(f"{data}: expected what examples/simulate.py --recipe nano writes, found no <variant>/<name>")
    seen = forecast_errors(pipe, tests, work / "test")
    unlike = unseen_errors(pipe, data, work / "unseen")
    (work / "film").mkdir(exist_ok=True)
    film = work / "film" / "forecast.gif"
    shown = film_of(pipe, tests[FILM], film)
    results = {
        "training": trained(checkpoint, arguments, given),
        "weights": weights(packed / "model.safetensors", pipe),
        **settings(pipe),
        "protocol": seen["protocol"], "versions": seen["versions"], "device": seen["device"],
        "frames_of_dmd": CONTEXT_FRAMES,
        "test": {name: compact(seen["scenarios"][key]) for name, key in zip(tests, seen["scenarios"], strict=True)},
        **unlike,
        "film": shown,
    }  # fmt: skip
    PACKAGED.mkdir(exist_ok=True)
    for file in packed.iterdir():
        shutil.copyfile(file, PACKAGED / file.name)
    write_json(HERE / "results.json", results)
    write_losses(read_metrics(run), HERE / "metrics.csv")
    for place in (HERE / "forecast.gif", ROOT / "docs" / "images" / "shear_flow.gif"):
        shutil.copyfile(film, place)


def pack(checkpoint: Path, arguments: PretrainingArguments, folder: Path, mean_with: Sequence[Path] = ()) -> Path:
    """The averages of a checkpoint as a folder to load: float32 by its configuration, bfloat16 on the disk.

    `mean_with` are other models of the same geometry, such as the start: then it is the mean of all.
    """
    if not (checkpoint / AVERAGES).is_dir():
        raise SystemExit(f"{checkpoint}: expected running averages of the weights, found none; train with ema_decay")
    training = TrainingModel(WalrusForPrediction(arguments.config()))
    average = ExponentialAverage(training, arguments.ema_decay or 0.5)
    dcp.load(average.state_dict(), checkpoint_id=checkpoint / AVERAGES)
    with average.swap():
        WalrusPipeline(training.model, arguments.processor(training.model.config)).save_pretrained(folder)
        others = [WalrusForPrediction.from_pretrained(other, dtype=torch.float32) for other in mean_with]
        states = [model.state_dict() for model in (training.model, *others)]
        mean = {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
        training.model.load_state_dict(mean)
        stored = {name: value.to(torch.bfloat16).contiguous() for name, value in training.model.state_dict().items()}
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    return folder


def measure_unseen(data: Path) -> None:
    """`results.json` with these errors anew; the rest stays."""
    results = json.loads((HERE / "results.json").read_text(encoding="utf-8"))
    pipe = WalrusPipeline.from_pretrained(PACKAGED, device="cpu")
    if weights(PACKAGED / "model.safetensors", pipe) != results["weights"]:
        raise SystemExit(f"{PACKAGED}: expected the weights that results.json is of, found others; measure all of it")
    write_json(HERE / "results.json", results | unseen_errors(pipe, data, data / "measured-unseen"))


def unseen_errors(pipe: WalrusPipeline, data: Path, output: Path) -> dict[str, Any]:
    """What the card has of the simulations that the weights never saw, and what a test computes again of them."""
    others = simulated(data)
    found = forecast_errors(pipe, others, output)["scenarios"]
    keys = dict(zip(others, found, strict=True))
    return {
        "unseen": {name: {"unlike": UNSEEN[name][0], **compact(found[key])} for name, key in keys.items()},
        "fixed": {name: first_errors(output, key) for name, key in keys.items() if name in FIXED},
    }


def simulated(data: Path) -> dict[str, Path]:
    """Files of the unseen simulations, made where they are missing; a change of simulations.py makes new ones."""
    digest = hashlib.sha256((HERE / "simulations.py").read_bytes()).hexdigest()[:8]
    folder = data / f"unseen-{digest}"
    folder.mkdir(exist_ok=True)
    files = {name: folder / f"{name}.hdf5" for name in UNSEEN}
    for name, file in files.items():
        if not file.exists():
            print(f"simulating {file}", flush=True)
            save_well([unseen(name, number) for number in range(UNSEEN_TRAJECTORIES)], file)
    return files


def forecast_errors(pipe: WalrusPipeline, sources: Mapping[str, Path], output: Path) -> dict[str, Any]:
    """What `walrus-hf evaluate` writes, of these weights; read where it is there already."""
    file = output / "results.json"
    protocol = dataclasses.replace(PROTOCOL, jitter=pipe.processor.jitter)
    wanted = [describe_model(NAME, pipe), protocol.to_json(), [str(source) for source in sources.values()]]
    if file.is_file():
        found = json.loads(file.read_text(encoding="utf-8"))
        there = [found["model"], found["protocol"], [scenario["source"] for scenario in found["scenarios"].values()]]
        if there == json.loads(json.dumps(wanted)):
            return found
    baselines = {name: load_baseline(name) for name in WITHOUT_TRAINING}
    evaluate(
        pipe, list(sources.values()), output, protocol, baselines, model_name=NAME, batch_size=4, kept_forecasts=0,
        overwrite=True,
    )  # fmt: skip
    return json.loads(file.read_text(encoding="utf-8"))


def compact(scenario: Mapping[str, Any]) -> dict[str, Any]:
    """Of a scenario's results what the card needs: windows of the mean over fields, five digits."""
    kept = {name: scenario[name] for name in ("grid", "boundary_conditions", "dt", "fields", "trajectories")}
    # Strides of the published model say nothing of this one.
    notes = [note for note in scenario["notes"] if "published stride table" not in note]
    return kept | {
        "notes": notes,
        "forecasters": {who: windows_of(found) for who, found in scenario["forecasters"].items()},
    }


def windows_of(forecaster: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        window: {name: digits(found["mean of fields"][name]) for name in KEPT}
        | {"failed": found["mean of fields"]["failed"]}
        for window, found in forecaster["windows"].items()
    }


def digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def first_errors(output: Path, scenario: str) -> dict[str, dict[str, float | None]]:
    """Of the first trajectory of a scenario, the errors that a test computes again."""
    table = pandas.read_parquet(output / "trajectories.parquet")
    table = table[(table.scenario == scenario) & (table.trajectory == 0)]
    found = {}
    for who in ("model", "persistence"):
        curve = table[table.forecaster == who].groupby("lead_time").vrmse.mean().sort_index().to_numpy()
        found[who] = {name: digits(curve[first - 1 : last].mean()) for name, (first, last) in WINDOWS.items()}
    return found


def film_of(pipe: WalrusPipeline, source: Path, path: Path) -> dict[str, Any]:
    """A forecast beside the truth; what the card says of it."""
    file = sorted((source / "data" / "test").glob("*.hdf5"))[0]
    truth = load_well(file, frames=PROTOCOL.start + FILM_STEPS)
    forecast = pipe.predict(truth.frames(0, PROTOCOL.start), FILM_STEPS, seed=0)
    errors = pipe.evaluate(forecast, truth, ((1, FILM_STEPS),))
    animate(forecast, truth.frames(PROTOCOL.start), path, overwrite=True)
    return {"source": FILM, "steps": FILM_STEPS, "vrmse": digits(next(iter(errors["all fields"].values())))}


def trained(checkpoint: Path, arguments: PretrainingArguments, given: argparse.Namespace) -> dict[str, Any]:
    """How the weights came about; minutes are those of one core."""
    step = verify_checkpoint(checkpoint)["step"]
    rows, recipe = [row for row in read_metrics(given.run) if row["step"] <= step], given.recipe.resolve()
    steps, minutes, windows = given.earlier
    kept = ("seed", "max_steps", "learning_rate", "muon", "ema_decay", "mode", "batch_size", "frames", "stride_max",
            "tokens", "own_forecasts", "own_steps", "gradient_accumulation_steps", "augment", "max_grad_norm",
            "weight_decay")  # fmt: skip
    sources = {"/".join(Path(source).parts[-2:]) for source in arguments.sources}
    scenarios: dict[str, dict[str, list]] = {}
    for name, number, parameters in runpy.run_path(str(ROOT / "examples" / "simulate.py"))["nano_variants"]():
        if f"{number}/{name}" in sources:
            found = scenarios.setdefault(name, {"grids": [], "variants": []})
            found["grids"].append("x".join(map(str, parameters["grid"])))
            found["variants"].append({key: value for key, value in parameters.items() if key != "grid"})
    return {
        "recipe": recipe.relative_to(ROOT).as_posix() if recipe.is_relative_to(ROOT) else None,
        "commit": given.commit, "history": given.history, "command": command(given),
        "steps": steps + step,
        "minutes": minutes + round(given.cores * sum(row["seconds"] for row in rows) / 60),
        "windows": windows + round(sum(row["samples_per_second"] * row["seconds"] for row in rows)),
        **{name: getattr(arguments, name) for name in kept},
        "scenarios": scenarios, "scenario_count": len(scenarios),
        "source_count": sum(len(found["grids"]) for found in scenarios.values()),
        "trajectories": 16, "frames_each": 96,
    }  # fmt: skip


def write_losses(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """A line for each step of the run."""
    columns = ["step", "loss", "learning_rate", "grad_norm", "seconds"]
    pandas.DataFrame(rows)[columns].to_csv(file, index=False, float_format="%.4g")


def command(given: argparse.Namespace) -> str:
    """That measures a run like this one again, but for `--history`."""
    said = ["python", "model_cards/walrus-nano/measure.py", "--data", given.data, "--run", given.run]
    said += ["--recipe", given.recipe] if given.recipe.resolve() != RECIPE else []
    said += ["--cores", given.cores] * (given.cores > 1) + ["--earlier", *given.earlier] * any(given.earlier)
    said += ["--mean-with", *given.mean_with] if given.mean_with else []
    said += ["--commit", given.commit] if given.commit else []
    return shlex.join(map(str, said))


def weights(file: Path, pipe: WalrusPipeline) -> dict[str, Any]:
    return {
        "bytes": file.stat().st_size, "megabytes": round(file.stat().st_size / 1e6, 1),
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "stored": "bfloat16",
        "computed": describe_model(NAME, pipe)["dtype"],
    }  # fmt: skip


def settings(pipe: WalrusPipeline) -> dict[str, Any]:
    """Geometry and costs, as the other cards have them."""
    config, parameters = pipe.model.config.to_dict(), pipe.model.num_parameters()
    kept = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "stem_hidden_size",
            "tokens_per_axis", "tokens_per_axis_3d", "scale_eps", "field2id", "patch_kernel_sizes")  # fmt: skip
    return {
        "config": {name: config[name] for name in kept}, "parameters": parameters,
        "frames": {"planes": pipe.processor.context_frames, "volumes": pipe.processor.context_frames_3d},
        "hold_scales": pipe.processor.hold_scales,
        "costs": grid_costs(pipe.model.config, parameters, pipe.processor),
    }  # fmt: skip


def add_baselines(evaluations: Sequence[Path], budget: str) -> None:
    """`baselines.json` from folders of `walrus-hf evaluate`, for the same trajectories and windows as the card's."""
    known = json.loads((HERE / "results.json").read_text(encoding="utf-8"))["test"]
    found: dict[str, dict[str, Any]] = {}
    for evaluation in evaluations:
        results = json.loads((evaluation / "results.json").read_text(encoding="utf-8"))
        for scenario in results["scenarios"].values():
            name = "/".join(Path(scenario["source"]).parts[-2:])
            windows = {who: windows_of(errors) for who, errors in scenario["forecasters"].items()}
            if name not in known or any(
                windows["persistence"].get(window, {}).get("median") != errors["median"]
                for window, errors in known[name]["forecasters"]["persistence"].items()
            ):
                raise SystemExit(
                    f"{evaluation}: expected the test trajectories of the card's sources with --from {PROTOCOL.start} "
                    f"and the windows {', '.join(WINDOWS)}, found other ones of {name}"
                )
            added = {
                who: {window: errors[window] for window in WINDOWS}
                for who, errors in windows.items()
                if who not in known[name]["forecasters"]
            }
            there = found.setdefault(name, {})
            if twice := there.keys() & added.keys():
                raise SystemExit(f"{evaluation}: expected other baselines of {name}, found {min(twice)} again")
            there.update(added)
    write_json(HERE / "baselines.json", {"budget": budget, "test": found})


if __name__ == "__main__":
    main()
