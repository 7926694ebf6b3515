"""What of a trained checkpoint must be tuned for a scenario that it never saw, and how many trajectories does it take?

    OMP_NUM_THREADS=1 python examples/experiments/lora.py --output runs/lora
    OMP_NUM_THREADS=1 python examples/experiments/lora.py --output runs/lora-tiny --tiny   # does it run?

Blasts of gas in a closed box: the training of walrus-nano had gas in boxes with all kinds of sides, in quadrants of
constant states and in smooth channels, but no blasts. All weights, a LoRA adapter on all linear maps, the decoder
alone, and all weights from scratch, with 4, 16 and 64 trajectories, two seeds, and equally many steps. The learning
rate of each is chosen on the validation split with 16 trajectories. The same command goes on after a stop. transfer.py
asks the same of a base that it pretrains itself.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoint import Checkpoint, forecast, means, parser, windows_of
from common import Results, Windows, write, written_to
from transfer import CONTEXT, tune

from walrus_hf import Trajectory, WalrusForPrediction, WalrusPipeline, load_well, save_well
from walrus_hf.adapters import bare_model
from walrus_hf.data.simulate import solve_euler
from walrus_hf.data.simulate.common import cell_centres
from walrus_hf.data.simulate.writing import trajectory_seed
from walrus_hf.model_card import markdown_table

NAME = "lora"
METHODS = ("full", "LoRA, all linear", "head", "scratch")  # of transfer.py
RATES = {
    "full": (1e-3, 3e-3, 1e-2), "LoRA, all linear": (3e-3, 1e-2, 3e-2), "head": (3e-3, 1e-2, 3e-2),
    "scratch": (1e-3, 3e-3, 1e-2),
}  # fmt: skip
GRID, FRAMES, DT = (48, 40), 24, 0.01
COUNTS = {"train": 64, "valid": 6, "test": 8}
SIZES, STEPS, SEEDS = (4, 16, 64), 60, 2
STARTS, LEAD = (4, 9, 14), 10
SPANS = {"next frame": (1, 1), "10 frames": (1, LEAD)}


def blasts(seed: int, grid: tuple[int, int] = GRID, frames: int = FRAMES) -> Trajectory:
    """Two to four bubbles of hot gas burst in a box with reflecting walls, among bubbles that are denser or thinner."""
    rng, (x, y) = np.random.default_rng(seed), cell_centres(grid, 1 / grid[0])
    width = grid[1] / grid[0]
    density, pressure = np.ones(grid), np.ones(grid)
    for values, count, low, high in ((pressure, rng.integers(2, 5), 1.0, 4.0), (density, 3, -0.6, 1.5)):
        for _ in range(count):
            distance = np.hypot(x - rng.uniform(0.1, 0.9), y - rng.uniform(0.1, 0.9) * width)
            inside = (1 - np.tanh((distance - rng.uniform(0.06, 0.15)) / 0.02)) / 2
            values += rng.uniform(low, high) * inside * (1 - np.minimum(abs(values - 1), 1))
    walls = {"x": "wall", "y": "wall"}
    return solve_euler(density, np.zeros((*grid, 2)), pressure, frames, DT, 1.4, walls, name=f"blasts_{seed}")


def simulated(folder: Path, split: str, count: int, grid: tuple[int, int]) -> list[Trajectory]:
    """From the file where they were kept, or anew."""
    file = folder / f"blasts_{split}.hdf5"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        save_well([blasts(trajectory_seed(0, split, n), grid) for n in range(count)], file)
    return [load_well(file, n) for n in range(count)]


def chosen(whole: list[Trajectory], size: int, seed: int) -> list[Trajectory]:
    """The trajectories that a seed trains on; the smaller sets are parts of the larger ones."""
    return [whole[i] for i in np.random.default_rng(seed).permutation(len(whole))[:size]]


def scores(pipe: WalrusPipeline | None, windows: Windows, steps: int = LEAD) -> dict[str, float]:
    """Over the spans within `steps`; None is persistence."""
    if pipe is None:
        return means(windows.errors(None), SPANS)
    plain = WalrusPipeline(bare_model(pipe.model), pipe.processor)  # adapters stay in their places
    return means(windows.errors(forecast(plain, windows, steps)), SPANS)


def measure(given: argparse.Namespace, checkpoint: Checkpoint, results: Results) -> dict[str, Any]:
    """`rates` of the methods, `rows` of what was not tuned, and `runs`: method -> size -> scores of each seed."""
    sizes, steps, seeds = ((1, 2), 1, 1) if given.tiny else (SIZES, STEPS, SEEDS)
    counts = {"train": 2, "valid": 1, "test": 1} if given.tiny else COUNTS
    folder, grid = given.output / NAME, (24, 16) if given.tiny else GRID
    train, valid, test = (simulated(folder, split, count, grid) for split, count in counts.items())
    held, tested = windows_of(checkpoint.pipe, valid, STARTS, 1), windows_of(checkpoint.pipe, test, STARTS, LEAD)

    def start(method: str, seed: int) -> WalrusPipeline:
        if method != "scratch":
            return checkpoint.pipe
        torch.manual_seed(seed)
        return WalrusPipeline(WalrusForPrediction(checkpoint.pipe.model.config), checkpoint.pipe.processor)

    def run(method: str, size: int, rate: float, seed: int) -> dict[str, Any]:
        def tuned() -> dict[str, Any]:
            pipe, share = tune(start(method, seed), chosen(train, size, seed), valid, steps, method, rate, seed)
            return {"valid": scores(pipe, held, 1), "test": scores(pipe, tested), "trained": share}

        return results.get(f"{method}, {size} trajectories, rate {rate:g}, seed {seed}", tuned)

    middle = sizes[len(sizes) // 2]
    best: dict[str, float] = {}
    for method in METHODS:
        rates = RATES[method][:1] if given.tiny else RATES[method]
        best[method] = min(rates, key=lambda rate, m=method: run(m, middle, rate, 0)["valid"]["next frame"])
    runs = {
        method: {str(size): [run(method, size, rate, seed) for seed in range(seeds)] for size in sizes}
        for method, rate in best.items()
    }
    rows: dict[str, Callable[[], dict[str, float]]] = {
        "persistence": lambda: scores(None, tested),
        "checkpoint, not tuned": lambda: scores(checkpoint.pipe, tested),
    }
    plain = {name: results.get(name, compute) for name, compute in rows.items()}
    return {"steps": steps, "seeds": seeds, "rates": best, "plain": plain, "runs": runs}


def mean_of(found: dict[str, Any], method: str, size: str, span: str) -> float:
    return float(np.mean([run["test"][span] for run in found["runs"][method][size]]))


def spread(found: dict[str, Any], span: str) -> float:
    """How far the seeds of one run lie apart, as a part of their mean: the median over methods and sizes."""
    each = [[r["test"][span] for r in runs] for by_size in found["runs"].values() for runs in by_size.values()]
    return float(np.median([(max(values) - min(values)) / np.mean(values) for values in each]))


def sentences(found: dict[str, Any]) -> list[str]:
    sizes, said = list(next(iter(found["runs"].values()))), []

    def ratios(method: str, other: str, span: str) -> str:
        each = [mean_of(found, method, size, span) / mean_of(found, other, size, span) for size in sizes]
        return ", ".join(f"{ratio:.2f}" for ratio in each)

    for span in SPANS:
        listed = ", ".join(sizes)
        said.append(f"- {span}, error over that of all weights tuned, at {listed} trajectories:")
        said += [f"    - {method}: {ratios(method, 'full', span)}" for method in found["runs"] if method != "full"]
        untuned = found["plain"]["checkpoint, not tuned"][span] / found["plain"]["persistence"][span]
        said.append(f"- {span}: the checkpoint without tuning has {untuned:.2f} times the error of persistence.")
        said.append(f"- {span}: two seeds lie {spread(found, span):.1%} apart (median); less than that says nothing.")
        few, many = sizes[0], sizes[-1]
        changes = {m: mean_of(found, m, many, span) / mean_of(found, m, few, span) - 1 for m in found["runs"]}
        gains = [f"{change:+.0%} ({method})" for method, change in changes.items()]
        said.append(f"- {span}: with {many} trajectories instead of {few} the error changes by {', '.join(gains)}.")
    edges = [f"{method} ({'lowest' if rate == RATES[method][0] else 'highest'})"
             for method, rate in found["rates"].items() if rate in (RATES[method][0], RATES[method][-1])]  # fmt: skip
    if edges:
        said.append(
            f"- The best rate is at the end of what was tried for {', '.join(edges)}: others may do better there."
        )
    said.append(
        f"- {found['steps']} steps are few for a model that starts from nothing: this compares what the steps buy, not "
        "where each method ends."
    )
    return said


def report(found: dict[str, Any], checkpoint: Checkpoint) -> str:
    sizes = list(next(iter(found["runs"].values())))
    head = ["model", "trained", "rate", *(f"{span}: {', '.join(sizes)}" for span in SPANS)]
    rows = [[name, "", "", *(f"{its[span]:.4f}" for span in SPANS)] for name, its in found["plain"].items()]
    for method, by_size in found["runs"].items():
        share = by_size[sizes[0]][0]["trained"]
        cells = [", ".join(f"{mean_of(found, method, size, span):.4f}" for size in sizes) for span in SPANS]
        rows.append([method, f"{share:.1%}", f"{found['rates'][method]:g}", *cells])
    text = [
        "# Tuning on a scenario that was never seen", "", "```bash",
        "OMP_NUM_THREADS=1 python examples/experiments/lora.py --output runs/lora", "```", "",
        f"{checkpoint.text()}. Blasts in a closed box, {GRID[0]} x {GRID[1]} cells; {found['steps']} steps of four "
        f"windows for every method, {found['seeds']} seeds (of windows, trajectories and, from scratch, weights). "
        "VRMSE on the test trajectories, mean over fields, median over forecasts, mean over seeds, with "
        f"{', '.join(sizes)} trajectories to train on. *Head* is the decoder alone; *trained* counts all "
        "parameters, of which those for volumes have no part in a plane. The training had gas between walls, but no "
        "blasts.", "",
        markdown_table(head, rows), "", f"![error against trajectories]({NAME}.png)", "", "What it says:", "",
        *sentences(found), "",
    ]  # fmt: skip
    return "\n".join(text)


def draw(found: dict[str, Any], file: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(SPANS), figsize=(10, 4.2), layout="constrained")
    for axis, span in zip(axes, SPANS):
        for i, (method, by_size) in enumerate(found["runs"].items()):
            sizes = list(map(int, by_size))
            for seed in range(found["seeds"]):
                axis.plot(sizes, [runs[seed]["test"][span] for runs in by_size.values()], ".", color=f"C{i}")
            axis.plot(sizes, [mean_of(found, method, str(size), span) for size in sizes], color=f"C{i}", label=method)
        for (name, its), style in zip(found["plain"].items(), (":", "--")):
            axis.axhline(its[span], color="black", ls=style, lw=0.8, label=name)
        axis.set(xscale="log", xlabel="trajectories", ylabel="VRMSE", title=span, xticks=sizes, ylim=(0, None))
        axis.minorticks_off()
        axis.set_xticklabels(sizes)
    axes[0].legend(fontsize=8)
    figure.savefig(file, dpi=100)
    plt.close(figure)


def main() -> None:
    given = parser(__doc__).parse_args()
    checkpoint = Checkpoint.load(given)
    if checkpoint.pipe.processor.context_frames != CONTEXT:
        raise ValueError(f"{given.model}: expected a model that forecasts from {CONTEXT} frames, found another")
    settings = {
        "grid": GRID, "frames": FRAMES, "dt": DT, "counts": COUNTS, "steps": STEPS, "starts": STARTS, "lead": LEAD
    }  # fmt: skip
    found = measure(given, checkpoint, checkpoint.results(given.output / NAME, given.tiny, **settings))
    folder = written_to(given)
    write(folder / f"{NAME}.json", json.dumps({**checkpoint.record(), **found}, indent=1) + "\n")
    write(folder / f"{NAME}.md", report(found, checkpoint))
    draw(found, folder / f"{NAME}.png")
    print(report(found, checkpoint))


if __name__ == "__main__":
    main()
