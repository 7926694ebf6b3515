"""What are the model's components worth? Each is taken out by itself.

    python examples/simulate.py runs/nano/data --recipe nano
    OMP_NUM_THREADS=1 python examples/experiments/jitter.py --output runs/experiments       # the whole model, shared
    OMP_NUM_THREADS=1 python examples/experiments/components.py --output runs/experiments
    OMP_NUM_THREADS=1 python examples/experiments/components.py --output runs/components-tiny --tiny   # does it run?

    jitter          neither trained nor forecast with it
    strides         fixed at those that 64 cells get: patches stay as they are and the number of tokens follows the
                    grid, instead of the other way round
    normalisation   changes are scaled by the root mean square of the field, not by that of the change
    time attention  left out: each frame by itself, and the scales, which still see all frames

Trained on two grids of each scenario and tested on these and on a third. `--seeds 1` stops after the first seed of each
component; the same command goes on after a stop.
"""

import argparse
import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from common import Results, averaged_model, parser, ratio_interval, tiny_data, train, write, written_to
from jitter import Size, curves, errors_of, evaluate, improvement, train_arm
from torch import Tensor

from walrus_hf import modeling_walrus
from walrus_hf.layers import WalrusTimeAttention
from walrus_hf.modeling_walrus import WalrusModel
from walrus_hf.normalization import field_scales
from walrus_hf.training.arguments import PretrainingArguments

GRIDS = {"seen grids": (0, 2), "unseen grid": (1,)}


# --- the components, replaced


@contextlib.contextmanager
def fixed_strides() -> Iterator[None]:
    """Patches of 8 cells along each axis, whatever the grid."""
    make_plan = WalrusModel.make_plan

    def fixed(
        self: WalrusModel, field_values: Tensor, boundaries: Tensor | None = None, _: None = None, *args, **kwargs
    ):
        grid = field_values.shape[3:]
        pairs = [(4, 2) if n > 1 else (1, 1) for n in grid]
        return make_plan(self, field_values, boundaries, pairs, *args, **kwargs)

    with mock.patch.object(WalrusModel, "make_plan", fixed):
        yield


@contextlib.contextmanager
def symmetric_normalisation() -> Iterator[None]:
    """The network answers in units of the field, in training and in forecasts."""
    with mock.patch.object(modeling_walrus, "delta_scales", field_scales):
        yield


@contextlib.contextmanager
def no_time_attention() -> Iterator[None]:
    """Nothing is added to the token stream; the weights of time attention stay as they were drawn."""

    def nothing(self: WalrusTimeAttention, hidden_states: Tensor, frames_to_keep: int, *_, **__) -> Tensor:
        return torch.zeros_like(hidden_states[:, -frames_to_keep:])

    with mock.patch.object(WalrusTimeAttention, "forward", nothing):
        yield


PARTS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "strides": fixed_strides,
    "normalisation": symmetric_normalisation,
    "time attention": no_time_attention,
}


# --- what is measured


def measure(given: argparse.Namespace, size: Size) -> dict:
    """(component left out, seed, grids) -> errors; "none" is the whole model. Trains what is not there yet."""
    shared = Results(given.output / "jitter" / "results.json")
    results = Results(given.output / "components" / "results.json")
    seen, unseen = (size.sources(given.data, variants) for variants in GRIDS.values())
    found: dict = {}
    for seed, (name, arm) in itertools.product(range(size.seeds), (("none", "jitter"), ("jitter", "none"))):
        arguments = train_arm(given, size, arm, seed)
        with_jitter = arm == "jitter"
        found[name, seed, "seen grids"] = evaluate(shared, size, arguments, arm, seed, size.steps, with_jitter, 1, seen)
        found[name, seed, "unseen grid"] = _unseen(results, size, arguments, name, seed, with_jitter, unseen)
    for seed, (name, part) in itertools.product(range(min(given.seeds, size.seeds)), PARTS.items()):
        folder = given.output / "components" / f"no-{name.replace(' ', '-')}-seed{seed}"
        with part():
            arguments = train(folder, seen, size.steps, seed, given.tiny, model={"jitter": True})
            found[name, seed, "seen grids"] = evaluate(results, size, arguments, name, seed, size.steps, True, 1, seen)
            found[name, seed, "unseen grid"] = _unseen(results, size, arguments, name, seed, True, unseen)
    return found


def _unseen(
    results: Results,
    size: Size,
    arguments: PretrainingArguments,
    name: str,
    seed: int,
    jitter: bool,
    sources: list[Path],
) -> dict:
    return results.get(
        f"unseen grid, without {name}, {seed}",
        lambda: curves(averaged_model(arguments, size.steps), sources, size.lead, jitter, seed),
    )


def summary(found: dict, given: argparse.Namespace, size: Size) -> dict:
    """How much lower the error is with each component: median over scenarios with its interval, and each scenario's."""
    windows = {"1": (1, 1), "2:10": (2, min(10, size.lead)), f"{size.long[0]}:{size.long[1]}": size.long}
    made: dict = {"scenarios": list(size.scenarios), "components": {}}
    for name in ("jitter", *PARTS):
        seeds = sorted({seed for n, seed, _ in found if n == name})
        made["components"][name] = row = {"seeds": len(seeds)}
        for (grids, variants), (label, window) in itertools.product(GRIDS.items(), windows.items()):
            # The same seeds of both, whose first weights and windows are alike.
            whole, without = (
                errors_of([found[which, seed, grids] for seed in seeds], size.sources(given.data, variants), *window)
                for which in ("none", name)
            )
            each = 1 - np.median(whole, -1).mean(0) / np.median(without, -1).mean(0)
            row[f"{grids}, {label}"] = {
                "median improvement": [round(float(x), 4) for x in ratio_interval(whole, without, improvement)],
                "scenarios better": int((each > 0).sum()),
                "improvement": each.round(4).tolist(),
            }
    return made


def draw(made: dict, file: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(GRIDS), figsize=(11, 4), layout="constrained", sharey=True, sharex=True)
    names = list(made["components"])
    for axis, grids in zip(axes, GRIDS):
        labels = [key for key in made["components"][names[0]] if key.startswith(grids)]
        for i, label in enumerate(labels):
            place = np.arange(len(names))[::-1] + 0.2 * (1 - i)
            middle, low, high = (
                100 * np.array([made["components"][name][label]["median improvement"] for name in names]).T
            )
            axis.errorbar(
                middle, place, xerr=[middle - low, high - middle], fmt="o", capsize=2, color=f"C{i}",
                label=f"step{'s' if ':' in label else ''} {label.rpartition(' ')[2]}",
            )  # fmt: skip
            for name, y in zip(names, place):
                each = 100 * np.array(made["components"][name][label]["improvement"])
                axis.plot(each.clip(-150, 100), np.full(len(each), y), "|", color=f"C{i}", ms=6, alpha=0.5)
        axis.axvline(0, color="black", lw=0.8)
        axis.set(yticks=np.arange(len(names))[::-1], title=grids, xlabel="error lower with the component by, %")
        axis.set_yticklabels([f"{name} ({made['components'][name]['seeds']} seeds)" for name in names])
    axes[0].legend(fontsize=7)
    figure.savefig(file, dpi=100)
    plt.close(figure)


def main() -> None:
    made_parser = parser(__doc__)
    made_parser.add_argument("--seeds", type=int, default=2, help="of the components but jitter")
    given = made_parser.parse_args()
    size = Size(given.tiny)
    if given.tiny:
        tiny_data(given.data, variants=(0, 1, 2))
    made = summary(measure(given, size), given, size)
    write(written_to(given) / "components.json", json.dumps(made, indent=1) + "\n")
    draw(made, written_to(given) / "components.png")
    for name, row in made["components"].items():
        for label, found in row.items():
            if label != "seeds":
                middle, low, high = (100 * x for x in found["median improvement"])
                print(f"| {name} | {label} | {middle:.0f}% ({low:.0f} to {high:.0f}) |")


if __name__ == "__main__":
    main()
