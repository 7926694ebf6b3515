"""What the experiments share: pretraining an arm, forecasting with it, scoring, and keeping what was measured.

An arm is one pretraining run. Arms that are compared differ in one thing; the seed gives them the same windows and the
same first weights. Whatever is done is kept under `--output`, so each command goes on where it stopped.

Shapes: B batch, T frames, C channels, H W D space.
"""

import argparse
import dataclasses
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from walrus_hf import Trajectory, WalrusConfig, WalrusForPrediction, WalrusPipeline, WalrusProcessor, load_well
from walrus_hf.data.simulate import write_simulations
from walrus_hf.data.well import well_info
from walrus_hf.finetuning import fit
from walrus_hf.loading import processor_for
from walrus_hf.metrics import persistence, score
from walrus_hf.modeling_walrus import mask_state
from walrus_hf.safe_files import write_text
from walrus_hf.training.arguments import PretrainingArguments, read_recipe
from walrus_hf.training.loop import pretrain
from walrus_hf.training.objective import TrainingModel
from walrus_hf.training.optim import ExponentialAverage

RECIPE = Path(__file__).parents[1] / "configs" / "nano.yaml"
PLANES = (
    "acoustic_scattering", "burgers", "euler_multi_quadrants_open", "euler_multi_quadrants_periodic", "gray_scott",
    "kolmogorov_flow", "rayleigh_benard", "shear_flow", "wave",
)  # fmt: skip
TINY = ("wave", "acoustic_scattering")  # scenarios of `--tiny`, which need no JAX
VOLUMES = ("advection_diffusion_3d", "turbulence_3d")
# 1.5 million parameters, of which planes reach 1.0 million.
MODEL = {
    "hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4,
    "stem_hidden_size": 16, "tokens_per_axis": 8, "tokens_per_axis_3d": 4, "drop_path_rate": 0.0,
}  # fmt: skip
TINY_MODEL = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "stem_hidden_size": 4,
}  # fmt: skip
CONTEXT = 4
FIRST = 17  # frame of the first forecast, as in the published evaluation
WORST = 10.0  # errors are cut there, so that a forecast that blew up has a number
EMA = 0.99
RATES = (1e-3, 4e-3)  # of fine-tuning, the better of which counts
STARTS = 3
SEEDS = 2
RESAMPLES = 2000


def parser(doc: str | None, seeds: bool = False, scenarios: bool = False) -> argparse.ArgumentParser:
    """The flags that all experiments take, and those of experiments on several seeds, or scenario by scenario."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=Path, default=Path("runs/nano/data"), help="of simulate.py --recipe nano")
    made.add_argument("--output", type=Path, required=True, help="state; pictures and numbers, too, with --tiny")
    made.add_argument("--tiny", action="store_true", help="A few steps of everything, to see that it runs.")
    if seeds or scenarios:
        made.add_argument("--seeds", type=int, default=SEEDS)
    if scenarios:
        made.add_argument("--scenarios", nargs="+", choices=PLANES, help="some of the nine")
    return made


def flags(given: argparse.Namespace) -> str:
    """Those of `parser` that shape the result, as the command had them."""
    seeds = "" if given.seeds == SEEDS else f" --seeds {given.seeds}"
    chosen = vars(given).get("scenarios")
    return seeds + (f" \\\n    --scenarios {' '.join(chosen)}" if chosen else "")


def written_to(given: argparse.Namespace) -> Path:
    """Where the results go: beside the scripts, but for a run that only tries whether they work."""
    return given.output if given.tiny else Path(__file__).parent


def tiny_data(folder: Path, names: Sequence[str] = TINY, variants: Sequence[int] = (0, 2)) -> None:
    """Simulations for `--tiny`, laid out as those of the recipe."""
    for name in names:
        for variant in variants:
            grid = (16, 16, 16) if name in VOLUMES else ((16, 16), (16, 24), (24, 16))[variant]
            for split, count in (("train", 2), ("valid", 1), ("test", 2)):
                if not (folder / str(variant) / name / "data" / split).is_dir():
                    write_simulations(name, folder / str(variant), count, variant, split, grid=grid, frames=24)


# --- pretraining


def geometry(tiny: bool) -> dict[str, Any]:
    """Settings of `WalrusConfig.tiny` that all arms have in common; the vocabulary is the recipe's."""
    return {**MODEL, **(TINY_MODEL if tiny else {}), "field2id": read_recipe(RECIPE)["model"]["field2id"]}


def train(
    folder: Path, sources: Sequence[Path], steps: int, seed: int, tiny: bool = False, **changes: Any
) -> PretrainingArguments:
    """Pretrain an arm, or go on with it, or leave it alone where it is done.

    Args:
        tiny: a model that only shows whether it runs.
        changes: settings of `PretrainingArguments` in which the arm differs; those of `model` come on top of `MODEL`.

    Raises:
        ValueError: the folder holds a run with other settings.
    """
    model = {**geometry(tiny), **changes.pop("model", {})}
    settings = {
        "mode": "variable", "batch_size": 4, "frames": CONTEXT, "stride_max": 1, "augment": False,
        "gradient_accumulation_steps": 1, "learning_rate": 1e-2, "muon": True, "ema_decay": EMA, "max_grad_norm": 1.0,
        "save_steps": max(steps // 4, 1), "keep_checkpoints": 5, "validation_steps": 0, "validation_batches": 1,
        "log_with": ["none"], **changes,
    }  # fmt: skip
    arguments = PretrainingArguments(
        sources=[str(source) for source in sources], output_dir=str(folder), max_steps=steps, seed=seed,
        model_size="tiny", model=model, resume_from_checkpoint="latest", **settings,
    )  # fmt: skip
    text, file = json.dumps(dataclasses.asdict(arguments), indent=1), folder / "arm.json"
    if file.is_file() and json.loads(file.read_text()) != json.loads(text):
        raise ValueError(f"{folder}: expected a run with the settings of this arm, found others; give another --output")
    if not (folder / "model" / "README.md").is_file():
        write(file, text)
        pretrain(arguments)
    return arguments


def averaged_model(arguments: PretrainingArguments, step: int) -> WalrusForPrediction:
    """The running average of the weights in the checkpoint after `step` steps."""
    model = TrainingModel(WalrusForPrediction(arguments.config()))
    average = ExponentialAverage(model, EMA)
    folder = Path(arguments.output_dir) / f"step-{step:08d}" / "averages"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(average.state_dict(), checkpoint_id=folder)
    model.model.load_state_dict({name.removeprefix("model."): value for name, value in average.averages.items()})
    return model.model.eval()


def finetune(
    start: str | Path | WalrusPipeline,
    train_on: list[Trajectory],
    valid: list[Trajectory],
    test: list[Trajectory],
    rates: Sequence[float],
    steps: int,
    lead: int,
) -> dict[str, Any]:
    """All weights, at the learning rate whose next frames are best on the validation split.

    Returns:
        `rate`; `tuned`, False where neither half nor all of the steps made it better, so that these are the first
        weights; and `curves` (windows, lead): errors of forecasts of the test trajectories.
    """
    best: tuple[float, float, WalrusPipeline | None] = (np.inf, 0.0, None)
    for rate in rates:
        pipe = fit(
            start, train_on, validation=valid, method="full", max_steps=steps, batch_size=4, learning_rate=rate,
            frames=CONTEXT, patience=None, validation_steps=max(steps // 2, 1), validation_batches=4,
            gradient_checkpointing=False, max_grad_norm=1.0, rollout_steps=1,
        )  # fmt: skip
        windows = Windows.from_trajectories(valid, pipe.model.config, range(FIRST, valid[0].num_frames, 4), 1)
        error = windows.errors(rollout(pipe.model, windows.inputs, 1, jitter=True)).mean()
        if error < best[0]:
            best = error, rate, pipe
    _, rate, pipe = best
    if pipe is None:
        raise RuntimeError(f"fine-tuning from {start}: no forecast is finite at any of the rates {list(rates)}")
    first = start if isinstance(start, WalrusPipeline) else WalrusPipeline.from_pretrained(start, device="cpu")
    before = dict(first.model.named_parameters())
    tuned = any(not torch.equal(p.cpu(), before[name].cpu()) for name, p in pipe.model.named_parameters())
    return {**errors_from(pipe.model, test, lead), "rate": rate, "tuned": tuned}


def untrained(folder: Path, seed: int, tiny: bool = False) -> Path:
    """A folder with a model of the arms' geometry that has seen nothing."""
    if not folder.is_dir():
        torch.manual_seed(seed)
        model = WalrusForPrediction(WalrusConfig.tiny(**geometry(tiny)))
        processor = processor_for(model.config)
        processor.context_frames = processor.context_frames_3d = CONTEXT
        WalrusPipeline(model, processor).save_pretrained(folder)
    return folder


def errors_from(model: WalrusForPrediction | None, test: list[Trajectory], lead: int) -> dict[str, Any]:
    """`curves` of forecasts from `STARTS` frames of each trajectory, (windows, lead), those of a trajectory in a row.

    None is the forecast that nothing changes.
    """
    firsts = np.linspace(FIRST, test[0].num_frames - lead, STARTS).astype(int).tolist()
    config = WalrusConfig.tiny(**geometry(tiny=False)) if model is None else model.config
    windows = Windows.from_trajectories(test, config, firsts, lead)
    forecast = None if model is None else rollout(model, windows.inputs, lead, jitter=True)
    return {"curves": windows.errors(forecast).round(4).tolist()}


def by_trajectory(found: Sequence[dict[str, Any]], first: int, last: int) -> np.ndarray:
    """Errors (runs, 1, trajectories) of `errors_from`, mean over a window of lead times and over starts."""
    curves = np.array([run["curves"] for run in found])[:, :, first - 1 : last].mean(2)
    return curves.reshape(len(found), 1, -1, STARTS).mean(3)


# --- forecasting


def trajectories(folder: Path) -> list[Trajectory]:
    """All of a split, in the order of the files' numbers."""
    files = sorted(folder.glob("*.hdf5"), key=lambda file: int(file.stem.rpartition("_")[2]))
    return [load_well(file, i) for file in files for i in range(well_info(file).trajectories)]


@dataclasses.dataclass
class Windows:
    """Stretches of the trajectories of one source: inputs `(B, T, C, H, W, D)` of the model, and what followed."""

    inputs: dict[str, Tensor]
    contexts: list[Trajectory]
    truths: list[Trajectory]
    processor: WalrusProcessor

    @classmethod
    def of(cls, folder: Path, config: WalrusConfig, steps: int) -> "Windows":
        """Of every trajectory in a split's folder, for forecasts of `steps` frames from frame `FIRST` on."""
        return cls.from_trajectories(trajectories(folder), config, [FIRST], steps)

    @classmethod
    def from_trajectories(
        cls, whole: list[Trajectory], config: WalrusConfig, firsts: Sequence[int], steps: int
    ) -> "Windows":
        """Of trajectories on one grid, for forecasts of `steps` frames from each of the frames `firsts` on."""
        processor = processor_for(config)
        contexts = [t.frames(first - CONTEXT, first) for t in whole for first in firsts]
        truths = [t.frames(first, first + steps) for t in whole for first in firsts]
        parts = [processor(context) for context in contexts]
        inputs = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return cls(inputs, contexts, truths, processor)

    def errors(self, forecast: Tensor | None) -> np.ndarray:
        """VRMSE, mean over fields: (windows, steps), at most `WORST`; None is the forecast that nothing changes.

        `forecast`: `(B, steps, C, H, W, D)`.
        """
        curves = []
        for row, (context, truth) in enumerate(zip(self.contexts, self.truths)):
            if forecast is None:
                found = persistence(context, truth.num_frames)
            else:
                found = self.processor.postprocess(forecast[row : row + 1], context)
            curves.append(np.mean(list(score(found, truth).values()), axis=0))
        return np.minimum(np.nan_to_num(curves, nan=WORST, posinf=WORST), WORST)


@torch.no_grad()
def rollout(
    model: WalrusForPrediction, inputs: dict[str, Tensor], steps: int, jitter: bool, seed: int = 0, shifts: int = 1
) -> Tensor:
    """Forecast `(B, steps, C, H, W, D)`; with `shifts` above 1 each step is the mean of forecasts under so many shifts.

    With one shift this is `model.predict`. The mean is taken at every step and goes on as the next input.
    """
    generator = torch.Generator().manual_seed(seed)
    state, given = inputs["field_values"], {k: v for k, v in inputs.items() if k != "field_values"}
    frames = []
    for _ in range(steps):
        found = [
            model(state, **given, jitter=jitter, generator=generator, frames_to_keep=1).prediction
            for _ in range(shifts)
        ]
        following = mask_state(torch.stack(found).mean(0), inputs.get("padded_channels"), inputs.get("obstacle_mask"))
        state = torch.cat([state[:, 1:], following], 1)
        frames.append(following)
    return torch.cat(frames, 1)


def curves(
    model: WalrusForPrediction, sources: Sequence[Path], lead: int, jitter: bool, seed: int, shifts: int = 1
) -> dict[str, list[list[float]]]:
    """Errors of forecasts of the test trajectories: source -> (trajectories, lead times)."""
    found = {}
    for source in sources:
        windows = Windows.of(source / "data" / "test", model.config, lead)
        forecast = rollout(model, windows.inputs, lead, jitter, seed, shifts)
        found[f"{source.parent.name}/{source.name}"] = windows.errors(forecast).round(4).tolist()
    return found


def still(config: WalrusConfig, sources: Sequence[Path], lead: int) -> dict[str, list[list[float]]]:
    """The same of the forecast that nothing changes."""
    found = {}
    for source in sources:
        windows = Windows.of(source / "data" / "test", config, lead)
        found[f"{source.parent.name}/{source.name}"] = windows.errors(None).round(4).tolist()
    return found


# --- results


class Results:
    """Numbers by name in a JSON file; what is in it is not computed again.

    The file knows the settings that its numbers were measured with, and is not gone on with under others.
    """

    def __init__(self, file: Path, **settings: Any) -> None:
        self.file = file
        expected = json.loads(json.dumps(settings))
        self.values: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {"settings": expected}
        found = self.values.get("settings")
        if found != expected:
            raise SystemExit(f"{file}: expected numbers measured with {expected}, found {found}; take another --output")

    def get(self, key: str, compute: Callable[[], Any]) -> Any:
        if key not in self.values:
            self.values[key] = compute()
            write(self.file, json.dumps(self.values))
        return self.values[key]


def write(file: Path, text: str) -> None:
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text)


def errors_of(found: Sequence[dict], sources: Sequence[Path], first: int, last: int) -> np.ndarray:
    """(seeds, scenarios, trajectories): mean over lead times; the trajectories of all variants beside each other."""
    names = list(dict.fromkeys(source.name for source in sources))
    keys = {name: [f"{s.parent.name}/{s.name}" for s in sources if s.name == name] for name in names}
    return np.array(
        [[np.concatenate([np.array(f[k])[:, first - 1 : last].mean(1) for k in keys[n]]) for n in names] for f in found]
    )


def ratio_interval(
    over: np.ndarray, under: np.ndarray, statistic: Callable[[np.ndarray], Any], seed: int = 0
) -> tuple[float, float, float]:
    """A statistic of the scenarios' ratios of errors, with its 95% bootstrap interval over seeds and trajectories.

    Args:
        over, under: errors `(seeds, scenarios, trajectories)` of two arms on the same trajectories. The error of a
            scenario is the median over its trajectories, then the mean over seeds.
        statistic: of the ratios `(..., scenarios)`.

    The seeds of each arm are drawn by themselves, the trajectories of a scenario for both arms alike. The scenarios are
    not drawn: the interval says nothing about others.
    """

    def ratios(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.median(a, axis=-1).mean(axis=-2) / np.median(b, axis=-1).mean(axis=-2)

    rng = np.random.default_rng(seed)
    chosen = rng.integers(over.shape[2], size=(RESAMPLES, 1, *over.shape[1:]))
    a, b = (x[rng.integers(len(x), size=(RESAMPLES, len(x)))] for x in (over, under))
    drawn = statistic(ratios(np.take_along_axis(a, chosen, 3), np.take_along_axis(b, chosen, 3)))
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return statistic(ratios(over, under)), low, high


def improvement(ratios: np.ndarray) -> np.ndarray:
    """How much lower the error is: the median over scenarios, as a part of the error it is compared with."""
    return 1 - np.median(ratios, axis=-1)


def not_below(errors: Sequence[float], bound: float) -> str:
    """`"3 of 8"`: how many are no lower than the bound."""
    return f"{sum(error >= bound for error in errors)} of {len(errors)}"


def span(label: str) -> str:
    """`"step 1"` or `"steps 1:20"`."""
    return f"step{'s' if ':' in label else ''} {label}"


def plural(number: int, thing: str) -> str:
    """`"1 seed"`, `"2 seeds"`; things that take an s."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def percent(interval: Sequence[float]) -> str:
    """`"12% (3 to 20)"`."""
    middle, low, high = (round(100 * x) for x in interval)
    return f"{middle}% ({low} to {high})"


def verdict(interval: Sequence[float]) -> str:
    """What an interval of `improvement` says, as the end of a sentence."""
    _, low, high = interval
    if low > 0:
        return f"lowers the error by {percent(interval)}"
    if high < 0:
        return f"raises the error by {percent([-x for x in (interval[0], high, low)])}"
    return f"makes no difference that this run can tell (lower by {percent(interval)})"
