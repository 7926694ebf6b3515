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

A model for each of nine scenarios, trained on two grids and tested on these and on a third. `--seeds 1` stops after the
first seed; the same command goes on after a stop.
"""

import argparse
import collections
import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from common import (
    MODEL,
    Results,
    errors_of,
    flags,
    improvement,
    parser,
    percent,
    plural,
    ratio_interval,
    span,
    tiny_data,
    train,
    verdict,
    write,
    written_to,
)
from jitter import Size, evaluate, sources_of, train_arm
from torch import Tensor

from walrus_hf import modeling_walrus
from walrus_hf.layers import WalrusTimeAttention
from walrus_hf.model_card import markdown_table
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
    shared = size.results(given.output / "jitter")
    results = size.results(given.output / "components")
    found: dict = collections.defaultdict(dict)

    def forecasts(kept: Results, arguments: PretrainingArguments, name: str, label: str, jitter: bool) -> None:
        for grids, variants in GRIDS.items():
            where = kept if grids == "seen grids" else results
            found[label, seed, grids] |= evaluate(
                where, size, arguments, name, sources_of(given.data, scenario, variants), seed, size.steps, jitter
            )

    for seed, scenario in itertools.product(range(given.seeds), size.scenarios):
        for label, arm in (("none", "jitter"), ("jitter", "none")):
            forecasts(shared, train_arm(given, size, scenario, arm, seed), arm, label, jitter=arm == "jitter")
        for name, part in PARTS.items():
            folder = given.output / "components" / scenario / f"no-{name.replace(' ', '-')}-seed{seed}"
            with part():
                sources = sources_of(given.data, scenario)
                arguments = train(folder, sources, size.steps, seed, given.tiny, model={"jitter": True})
                forecasts(results, arguments, f"no {name}", name, jitter=True)
    return found


def summary(found: dict, given: argparse.Namespace, size: Size) -> dict:
    """How much lower the error is with each component: median over scenarios with its interval, and each scenario's."""
    windows = {"1": (1, 1), "2:10": (2, min(10, size.lead)), f"{size.long[0]}:{size.long[1]}": size.long}
    made: dict = {"seeds": given.seeds, "scenarios": list(size.scenarios), "components": {}}
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
            # Of a median of few scenarios the interval need not hold the estimate, so it is a line of its own.
            axis.hlines(place, low, high, color=f"C{i}")
            axis.plot(middle, place, "o", color=f"C{i}", label=span(label.rpartition(" ")[2]))
            for name, y in zip(names, place):
                each = 100 * np.array(made["components"][name][label]["improvement"])
                axis.plot(each.clip(-100, 100), np.full(len(each), y), "|", color=f"C{i}", ms=6, alpha=0.5)
        axis.axvline(0, color="black", lw=0.8)
        axis.set_xlim(-102, 62)  # what lies beyond stands at the edge
        axis.set(yticks=np.arange(len(names))[::-1], title=grids, xlabel="error lower with the component by, %")
        axis.set_yticklabels([f"{name} ({plural(made['components'][name]['seeds'], 'seed')})" for name in names])
    axes[0].legend(fontsize=7)
    figure.savefig(file, dpi=100)
    plt.close(figure)


def meaning(made: dict) -> str:
    """In how many columns of the table the interval leaves zero."""
    said = []
    for name, row in made["components"].items():
        found = [its["median improvement"] for label, its in row.items() if label != "seeds"]
        lower, higher = sum(low > 0 for _, low, _ in found), sum(high < 0 for _, _, high in found)
        said.append(f"{lower} and {higher} ({name})")
    return (
        f"of {len(found)} columns, so many have an interval that says lower, and so many one that says higher: "
        f"{', '.join(said)}. One in twenty says so by chance."
    )


def report(made: dict, given: argparse.Namespace) -> str:
    names, number, seeds = list(made["components"]), len(made["scenarios"]), plural(made["seeds"], "seed")
    labels = [label for label in made["components"][names[0]] if label != "seeds"]
    rows = []
    for name, row in made["components"].items():
        cells = [f"{percent(row[label]['median improvement'])}, {row[label]['scenarios better']}" for label in labels]
        rows.append([name, *cells])
    said = []
    for name, row in made["components"].items():
        for label in labels:
            grids, window = label.split(", ")
            said.append(f"- {name}, {grids}, {span(window)}: it {verdict(row[label]['median improvement'])}.")
    return "\n".join([
        "# Components, one at a time", "",
        "```bash", "python examples/simulate.py runs/nano/data --recipe nano",
        f"OMP_NUM_THREADS=1 python examples/experiments/components.py --output runs/experiments{flags(given)}",
        "```", "",
        f"A model for each of {number} scenarios in the plane, {seeds}, with all components and "
        "with one taken out: *jitter* neither trained nor forecast with it; *strides* fixed, so that patches keep "
        "their cells and tokens follow the grid; *normalisation* of changes by the field, not by the change; *time "
        "attention* left out. How much lower the error is with the component: the median over scenarios with its 95% "
        "bootstrap interval over trajectories and seeds, and in how many scenarios it is lower. Trained on grids 0 and "
        "2 of each scenario, tested on them and on grid 1.", "",
        markdown_table(["component", *labels], rows), "", "![components](components.png)", "", *said, "",
        f"What it means: {meaning(made)}", "",
        f"Power: {seeds} and {number} scenarios of {MODEL['tokens_per_axis']} tokens an axis; what lies within the "
        "intervals, which are widest at long lead times, is not resolved.", "",
        "The grids are alike in size (64 x 64, 64 x 48, 48 x 80): this says nothing about strides where they differ "
        "more.", "",
    ])  # fmt: skip


def main() -> None:
    given = parser(__doc__, scenarios=True).parse_args()
    size = Size(given.tiny, given.scenarios)
    if given.tiny:
        tiny_data(given.data, variants=(0, 1, 2))
    made = summary(measure(given, size), given, size)
    write(written_to(given) / "components.json", json.dumps(made) + "\n")
    draw(made, written_to(given) / "components.png")
    text = report(made, given)
    write(written_to(given) / "components.md", text)
    print(text)


if __name__ == "__main__":
    main()
