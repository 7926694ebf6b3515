"""Does pretraining help on a scenario that was never seen, and how much of the model must be trained?

    OMP_NUM_THREADS=1 python examples/experiments/transfer.py --output runs/transfer          # half an hour on a CPU
    OMP_NUM_THREADS=1 python examples/experiments/transfer.py --output runs/transfer --tiny   # does it run?

A tiny base is pretrained on six simulated scenarios, then fine-tuned on Kolmogorov flow with 4, 16 and 64 trajectories:
all weights, a LoRA adapter, the decoder alone, and all weights from scratch, with equally many steps. The learning rate
of each is chosen on the validation split with 16 trajectories. The same command goes on after a stop.
"""

import argparse
from pathlib import Path

import numpy as np
from common import Results, trajectories

from walrus_hf import Trajectory, WalrusForPrediction, WalrusPipeline
from walrus_hf.data.simulate import write_simulations
from walrus_hf.finetuning import fit
from walrus_hf.metrics import persistence, score
from walrus_hf.training.arguments import PretrainingArguments
from walrus_hf.training.loop import pretrain

SEEN = ("wave", "shear_flow", "gray_scott", "burgers", "acoustic_scattering", "euler_multi_quadrants_periodic")
UNSEEN = "kolmogorov_flow"
GRID, FRAMES, CONTEXT = (32, 32), 24, 4
PARAMETERS: dict[str, dict] = {"burgers": {"viscosity": 0.02}}  # the grid is coarse
MODEL = {"tokens_per_axis": 8, "tokens_per_axis_3d": 4, "drop_path_rate": 0.0}
RATES = {
    "full": (1e-3, 3e-3), "LoRA": (3e-3, 1e-2), "LoRA, all linear": (3e-3, 1e-2), "head": (3e-3, 1e-2),
    "scratch": (3e-3, 1e-2),
}  # fmt: skip
SETTINGS: dict[str, dict] = {"LoRA": {"method": "lora", "preset": "attention"}, "head": {"method": "head"}}
SETTINGS["LoRA, all linear"] = {"method": "lora", "preset": "all-linear"}


def simulate(output: Path, sizes: list[int]) -> None:
    wanted = {name: {"train": 16, "valid": 2} for name in SEEN}
    wanted[UNSEEN] = {"train": max(sizes), "valid": 8, "test": 8}
    for name, splits in wanted.items():
        for split, count in splits.items():
            if not (output / "data" / name / "data" / split).is_dir():
                write_simulations(
                    name, output / "data", count, split=split, grid=GRID, frames=FRAMES, **PARAMETERS.get(name, {})
                )


def make_base(output: Path, steps: int) -> str:
    """The pretrained base, and beside it one of the same geometry that has seen nothing."""
    folder = output / "pretraining"
    arguments = PretrainingArguments(
        sources=[str(output / "data" / name) for name in SEEN], output_dir=str(folder), max_steps=steps,
        model_size="tiny", model=MODEL, batch_size=4, frames=CONTEXT, stride_max=1, augment=False, learning_rate=3e-3,
        muon=True, max_grad_norm=1.0, save_steps=100, validation_steps=100, resume_from_checkpoint="latest",
    )  # fmt: skip
    if not (folder / "model" / "README.md").is_file():
        pretrain(arguments)
    if not (output / "untrained").is_dir():
        pipe = WalrusPipeline.from_pretrained(folder / "model", device="cpu")
        WalrusPipeline(WalrusForPrediction(arguments.config()), pipe.processor).save_pretrained(output / "untrained")
    return str(folder / "model")


def errors(pipe: WalrusPipeline | None, truths: list[Trajectory], steps: int) -> dict[str, float]:
    """VRMSE of the next frame and over all, mean over fields, starts and trajectories; None is persistence."""
    curves = []
    for number, truth in enumerate(truths):
        for first in range(CONTEXT, FRAMES - 8, 4):
            context, following = truth.frames(first - CONTEXT, first), truth.frames(first, first + steps)
            still = persistence(context, steps)
            forecast = still if pipe is None else pipe.predict(context, steps, seed=number, progress=False)
            curves.append(np.mean(list(score(forecast, following).values()), axis=0))
    mean = np.mean(curves, axis=0)
    return {"next": float(mean[0]), "all": float(mean.mean())}


def tune(
    start: str | WalrusPipeline, train: list[Trajectory], valid: list[Trajectory], steps: int, method: str, rate: float,
    seed: int = 0,
) -> tuple[WalrusPipeline, float]:  # fmt: skip
    """Fine-tune by a method of `SETTINGS` (or all weights); also returns the share of the weights that was trained."""
    pipe = fit(
        start, train, validation=valid, max_steps=steps, batch_size=4, learning_rate=rate, frames=CONTEXT,
        patience=None, **SETTINGS.get(method, {"method": "full"}), validation_steps=max(1, steps // 2),
        gradient_checkpointing=False, max_grad_norm=1.0, rollout_steps=1, validation_batches=6, seed=seed,
    )  # fmt: skip
    trained = sum(p.numel() for p in pipe.model.parameters() if p.requires_grad)
    return pipe, trained / sum(p.numel() for p in pipe.model.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true", help="A few steps of everything, to see that it runs.")
    given = parser.parse_args()
    sizes, steps, pretraining_steps = ([2, 3], 2, 2) if given.tiny else ([4, 16, 64], 80, 600)
    simulate(given.output, sizes)
    base = make_base(given.output, pretraining_steps)
    folder = given.output / "data" / UNSEEN / "data"
    train, valid, test = (trajectories(folder / split)[: max(sizes)] for split in ("train", "valid", "test"))
    results = Results(given.output / "transfer.json", steps=steps, pretraining_steps=pretraining_steps)

    def run(method: str, size: int, rate: float) -> dict:
        def measured() -> dict:
            start = str(given.output / "untrained") if method == "scratch" else base
            pipe, share = tune(start, train[:size], valid, steps, method, rate)
            return {"valid": errors(pipe, valid, 1), "test": errors(pipe, test, 8), "trained": share}

        return results.get(f"{method}, {size} trajectories, rate {rate:g}", measured)

    middle = sizes[len(sizes) // 2]
    rows = [("persistence", errors(None, test, 8)), ("base", errors(WalrusPipeline.from_pretrained(base), test, 8))]
    best = {
        method: min(rates, key=lambda rate: run(method, middle, rate)["valid"]["next"])
        for method, rates in RATES.items()
    }
    for method, rate in best.items():
        for size in sizes:
            found = run(method, size, rate)
            rows.append((f"{method} ({found['trained']:.1%} trained, rate {rate:g}), {size}", found["test"]))
    print("| model, trajectories | next frame | 8 frames |\n|---|---|---|")
    for name, found in rows:
        print(f"| {name} | {found['next']:.4f} | {found['all']:.4f} |")


if __name__ == "__main__":
    main()
