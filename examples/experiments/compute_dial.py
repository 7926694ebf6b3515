"""One checkpoint at many tokens per axis: which of them still work, and what do they cost?

    python examples/simulate.py runs/nano/data --recipe nano
    OMP_NUM_THREADS=1 python examples/experiments/compute_dial.py --output runs/compute-dial
    OMP_NUM_THREADS=1 python examples/experiments/compute_dial.py --output runs/dial-tiny --tiny   # does it run?

`tokens_per_axis` is the one compute dial: the kernels stay, their strides change. Forecasts of 30 frames of test
trajectories at each count, with jitter and without; at the default count also with the same patches made by other
strides of the two stages. Seconds are those of one forecast step, measured in turn, in one process and relative to the
default count, so other work on the machine hits all alike. The same command goes on after a stop.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoint import TINY, WINDOWS, Checkpoint, forecast, means, parser, plan_for, windows_of
from common import FIRST, Results, Windows, span, tiny_data, trajectories, write, written_to

from walrus_hf import WalrusForPrediction
from walrus_hf.jitter import TokenizationPlan
from walrus_hf.model_card import markdown_table
from walrus_hf.strides import KERNELS, Strides

NAME = "compute_dial"
PLANES = ("acoustic_scattering", "euler_multi_quadrants_open", "gray_scott", "rayleigh_benard", "shear_flow", "wave")
VOLUMES = ("advection_diffusion_3d", "turbulence_3d")
PLANE_DIAL, VOLUME_DIAL = (3, 4, 6, 8, 12, 16, 24), (2, 3, 4, 6, 8)
VARIANT, LEAD, ROUNDS, ROWS = 1, 30, 6, 2
WORKS = 1.5  # a count works where the error is at most so many times that of the training's count


def distinct(windows: Windows, dial: Sequence[int]) -> dict[int, TokenizationPlan]:
    """Target -> plan, of the targets that give plans of their own; the training's target comes first."""
    own = plan_for(windows, jitter=False)
    plans = {own.target: own}
    for target in dial:
        plan = plan_for(windows, target, jitter=False)
        if all(plan.strides != known.strides for known in plans.values()):
            plans[target] = plan
    return plans


def restrided(plan: TokenizationPlan, stage: int) -> tuple[Strides, ...]:
    """As many cells a token as in the plan, with as many as can be of them from one stage, 0 or 1."""
    pairs = []
    for n, (s1, s2) in zip(plan.grid, plan.strides):
        product = s1 * s2
        fitting = [
            (a, product // a)
            for a in range(1, KERNELS[0] + 1)
            if product % a == 0 and product // a <= KERNELS[1]
        ]  # fmt: skip
        pairs.append(max(fitting, key=lambda pair: pair[stage]) if n > 1 else (1, 1))
    return tuple(pairs)


def time_ratios(calls: Sequence[Callable[[], Any]], rounds: int) -> tuple[list[float], float]:
    """Seconds of each call over those of the first, and those of the first: medians over rounds, every other of which
    runs backwards."""
    for call in calls:
        call()
    seconds = np.zeros((rounds, len(calls)))
    for turn in range(rounds):
        for i in range(len(calls))[:: 1 if turn % 2 == 0 else -1]:
            start = time.perf_counter()
            calls[i]()
            seconds[turn, i] = time.perf_counter() - start
    return np.median(seconds / seconds[:, :1], axis=0).tolist(), float(np.median(seconds[:, 0]))


@torch.no_grad()
def seconds_of(model: WalrusForPrediction, windows: Windows, plans: dict[int, TokenizationPlan], rounds: int) -> dict:
    """Target -> seconds of one forecast step of one trajectory, over those of the first target, which are "own"."""
    given = {name: value[:1] for name, value in windows.inputs.items() if name != "boundary_conditions"}
    calls = [lambda p=plan: model(**given, plan=p, frames_to_keep=1) for plan in plans.values()]
    ratios, own = time_ratios(calls, rounds)
    return {**dict(zip(map(str, plans), ratios)), "own": own}


def measure(given: argparse.Namespace, checkpoint: Checkpoint, results: Results) -> dict[str, dict[str, Any]]:
    """By scenario: grid, persistence, and of every target tokens, errors and seconds."""
    names, lead = (TINY, 3) if given.tiny else ((*PLANES, *VOLUMES), LEAD)
    pipe, found = checkpoint.pipe, {}
    for name in names:
        folder = given.data / str(0 if given.tiny else VARIANT) / name / "data" / "test"
        dial = (3, 4, 6) if given.tiny else VOLUME_DIAL if name in VOLUMES else PLANE_DIAL
        windows = windows_of(pipe, trajectories(folder)[:ROWS], [FIRST], lead)
        plans = distinct(windows, dial)

        def errors(key: str, w: Windows = windows, name: str = name, **settings: Any) -> dict[str, float]:
            return results.get(
                f"{name}, {key}", lambda: means(w.errors(forecast(pipe, w, lead, **settings)), WINDOWS)
            )  # fmt: skip

        own = next(iter(plans))
        rows = {
            str(target): {
                "tokens": [n for n, cells in zip(plan.tokens, plan.grid) if cells > 1],
                "strides": [pair for pair, cells in zip(plan.strides, plan.grid) if cells > 1],
                "jitter": errors(f"{target} tokens, jitter", tokens=target, jitter=True),
                "none": errors(f"{target} tokens, none", tokens=target, jitter=False),
            }
            for target, plan in sorted(plans.items())
        }
        others = {
            f"stage {stage + 1}": restrided(plans[own], stage)
            for stage in (0, 1)
            if restrided(plans[own], stage) != plans[own].strides
        }
        found[name] = {
            "grid": list(windows.truths[0].grid),
            "own": str(own),
            "still": means(windows.errors(None), WINDOWS),
            "targets": rows,
            "strides": {key: errors(f"strides of {key}", strides=pairs, jitter=True) for key, pairs in others.items()},
            "seconds": results.get(
                f"{name}, seconds",
                lambda w=windows, p=plans: seconds_of(pipe.model, w, p, 2 if given.tiny else ROUNDS),
            ),
        }
    return found


def over_own(
    found: dict[str, dict[str, Any]], names: Sequence[str], window: str, jitter: str
) -> dict[int, list[float]]:
    """Target -> error over that of the default target with jitter, of each scenario that has a plan for it."""
    ratios: dict[int, list[float]] = {}
    for name in names:
        reference = found[name]["targets"][found[name]["own"]]["jitter"][window]
        for target, row in found[name]["targets"].items():
            ratios.setdefault(int(target), []).append(row[jitter][window] / reference)
    return dict(sorted(ratios.items()))


def summary_rows(found: dict[str, dict[str, Any]], names: Sequence[str]) -> list[list[str]]:
    """A row for each target: medians over the scenarios where it gives a plan of its own."""
    windows = list(next(iter(found.values()))["still"])
    ratios = {(w, j): over_own(found, names, w, j) for w in windows for j in ("jitter", "none")}
    rows = []
    for target in ratios[windows[0], "jitter"]:
        has = [name for name in names if str(target) in found[name]["targets"]]
        seconds = np.median([found[name]["seconds"][str(target)] for name in has])
        beaten = [
            sum(found[name]["targets"][str(target)]["jitter"][w] < found[name]["still"][w] for name in has)
            for w in windows
        ]
        rows.append([
            str(target), str(len(has)), f"{seconds:.2f}",
            *(f"{np.median(ratios[w, 'jitter'][target]):.2f}" for w in windows),
            *(f"{np.median(ratios[w, 'none'][target]):.2f}" for w in windows),
            ", ".join(f"{n}" for n in beaten),
        ])  # fmt: skip
    return rows


def sentences(found: dict[str, dict[str, Any]], names: Sequence[str], what: str) -> list[str]:
    """Which targets work, what jitter does off the default, and what other strides do."""
    windows, own = list(next(iter(found.values()))["still"]), int(found[names[0]]["own"])
    said = []
    for window in windows:
        ratios = over_own(found, names, window, "jitter")
        works = [str(t) for t, each in ratios.items() if np.median(each) <= WORKS]
        best = min(ratios, key=lambda target: np.median(ratios[target]))
        said.append(
            f"- {what}, steps {window}: {', '.join(works)} tokens keep the median error within {WORKS} times that of "
            f"{own}, the default; the best are {best} ({np.median(ratios[best]):.2f})."
        )
    last = windows[-1]
    on, off = over_own(found, names, last, "jitter"), over_own(found, names, last, "none")
    gains = [f"{np.median(np.divide(on[t], off[t])):.2f} at {t}" for t in on]
    said.append(f"- {what}: error with jitter over that without, steps {last}: {', '.join(gains)}.")
    for stage in ("stage 1", "stage 2"):
        has = [name for name in names if stage in found[name]["strides"]]
        if has:
            each = [
                found[n]["strides"][stage][last] / found[n]["targets"][found[n]["own"]]["jitter"][last] for n in has
            ]
            said.append(
                f"- {what}, the same patches of {own} tokens with all they can of their strides in {stage}: "
                f"{np.median(each):.2f} times the error at steps {last} (median of {len(has)})."
            )
    return said


def report(found: dict[str, dict[str, Any]], checkpoint: Checkpoint) -> str:
    windows = list(next(iter(found.values()))["still"])
    groups = {"Planes": [n for n in found if len(found[n]["grid"]) == 2]}
    groups["Volumes"] = [n for n in found if n not in groups["Planes"]]
    head = [
        "tokens per axis", "scenarios", "seconds", *windows, *(f"{w}, no jitter" for w in windows),
        f"beats persistence at {', '.join(windows)}",
    ]  # fmt: skip
    text = [
        "# The compute dial", "", "```bash",
        "python examples/simulate.py runs/nano/data --recipe nano",
        "OMP_NUM_THREADS=1 python examples/experiments/compute_dial.py --output runs/compute-dial", "```", "",
        f"{checkpoint.text()}. {ROWS} test trajectories a scenario, forecast from frame {FIRST} on, one seed of the "
        "jitter. VRMSE, mean over fields and trajectories. All numbers are relative to the default count with "
        "jitter, and medians over the scenarios whose grids give that count strides of its own.", "",
    ]  # fmt: skip
    said = []
    for what, names in groups.items():
        if names:
            text += [f"## {what}", "", markdown_table(head, summary_rows(found, names)), ""]
            said += sentences(found, names, what)
    own_seconds = ", ".join(f"{1000 * row['seconds']['own']:.0f} ms ({name})" for name, row in found.items())
    rows = [
        [name, "x".join(map(str, row["grid"])), target, "x".join(map(str, its["tokens"])),
         " ".join(map(str, its["strides"])).replace("[", "(").replace("]", ")"), f"{row['seconds'][target]:.2f}",
         *(f"{its[jitter][w]:.3f}" for jitter in ("jitter", "none") for w in windows),
         *(f"{row['still'][w]:.3f}" for w in windows)]
        for name, row in found.items() for target, its in row["targets"].items()
    ]  # fmt: skip
    head = ["scenario", "grid", "asked for", "tokens", "strides", "seconds", *windows]
    head += [f"{w}, {what}" for what in ("no jitter", "persistence") for w in windows]
    return "\n".join([
        *text, f"![error against seconds]({NAME}.png)", "", "What it says:", "", *said, "", "## Each scenario", "",
        f"VRMSE, and seconds of a step relative to the default count, whose step of one trajectory took "
        f"{own_seconds}; other work on the machine was not kept away.",
        "", markdown_table(head, rows), "",
    ])  # fmt: skip


def draw(found: dict[str, dict[str, Any]], file: Path) -> None:
    """Medians over the scenarios of planes and of volumes, and the range in which all of them lie."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    windows = list(next(iter(found.values()))["still"])
    planes = [name for name in found if len(found[name]["grid"]) == 2]
    groups = {"planes": planes, "volumes": [name for name in found if name not in planes]}
    figure, axes = plt.subplots(1, len(windows), figsize=(5 * len(windows), 4.2), layout="constrained", squeeze=False)
    for axis, window in zip(axes[0], windows):
        for (what, names), color in zip(groups.items(), ("C0", "C1")):
            for jitter, style in (("jitter", "o-"), ("none", "x:")) if names else ():
                ratios = over_own(found, names, window, jitter)
                x = [np.median([found[n]["seconds"][str(t)] for n in names if str(t) in found[n]["targets"]])
                     for t in ratios]  # fmt: skip
                y = [np.median(each) for each in ratios.values()]
                label = what if jitter == "jitter" else f"{what}, without jitter"
                axis.plot(x, y, style, color=color, ms=5, lw=1.2, label=label)
                if jitter == "jitter":
                    low, high = ([end(each) for each in ratios.values()] for end in (min, max))
                    axis.fill_between(x, low, high, color=color, alpha=0.12, lw=0)
                    for place, value, target in zip(x, y, ratios):
                        axis.annotate(str(target), (place, value), (0, 6), textcoords="offset points", color=color,
                                      fontsize=8, ha="center")  # fmt: skip
        axis.set(xscale="log", yscale="log", xlabel="seconds of a step, default count = 1", title=span(window))
        for one, ticks in ((axis.xaxis, (0.125, 0.25, 0.5, 1, 2, 4, 8)), (axis.yaxis, (0.5, 0.7, 1, 1.5, 2, 3, 4))):
            one.set_major_locator(FixedLocator(ticks))
            one.set_major_formatter(StrMethodFormatter("{x:g}"))
            one.set_minor_locator(NullLocator())
        axis.axhline(1, color="grey", lw=0.8)
    axes[0, 0].set_ylabel("VRMSE over that of the default count\n(median and range of scenarios)")
    axes[0, 0].legend(fontsize=8)
    figure.savefig(file, dpi=100)
    plt.close(figure)


def main() -> None:
    given = parser(__doc__).parse_args()
    if given.tiny:
        tiny_data(given.data, TINY, (0,))
    checkpoint = Checkpoint.load(given)
    settings = {"variant": VARIANT, "lead": LEAD, "rounds": ROUNDS, "rows": ROWS}
    found = measure(given, checkpoint, checkpoint.results(given.output / NAME, given.tiny, **settings))
    folder = written_to(given)
    write(folder / f"{NAME}.json", json.dumps({**checkpoint.record(), "scenarios": found}, indent=1) + "\n")
    write(folder / f"{NAME}.md", report(found, checkpoint))
    draw(found, folder / f"{NAME}.png")
    print(report(found, checkpoint))


if __name__ == "__main__":
    main()
