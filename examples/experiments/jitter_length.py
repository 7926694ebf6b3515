"""Does patch jitter help a model that is trained for longer, and where does it turn?

    python examples/simulate.py runs/nano/data --recipe nano
    OMP_NUM_THREADS=1 python examples/experiments/jitter_length.py --output runs/experiments
    OMP_NUM_THREADS=1 python examples/experiments/jitter_length.py --output runs/tiny --tiny   # does it run?

jitter.py sees no turn within 300 steps. Here are three of its scenarios for four times as many, with two arms and two
seeds, and forecasts of 60 frames from checkpoints after each quarter. `--seeds 1` stops after the first seed; the same
command goes on after a stop.
"""

import argparse
import collections
import itertools
import json

import numpy as np
from common import (
    MODEL,
    Results,
    averaged_model,
    curves,
    errors_of,
    flags,
    improvement,
    parser,
    percent,
    plural,
    ratio_interval,
    span,
    still,
    tiny_data,
    train,
    write,
    written_to,
)
from jitter import ARMS, causes, sources_of

from walrus_hf.model_card import markdown_table

NAME = "jitter_length"
SCENARIOS = ("gray_scott", "shear_flow", "wave")  # periodic both ways; jitter.py's for vortices, patterns and waves
CAUSES = {"equivariance": "shift error", "one_step": "error of the change"}


class Size:
    """How much of everything."""

    def __init__(self, tiny: bool) -> None:
        self.scenarios = ("wave",) if tiny else SCENARIOS
        self.steps, self.lead = (4, 3) if tiny else (1200, 60)
        self.lengths = [self.steps * quarter // 4 for quarter in (1, 2, 3, 4)]
        self.long = (2, 3) if tiny else (21, 60)  # as in jitter.py, and published
        self.spectrum = (3,) if tiny else (20,)
        self.windows = {span_of(w): w for w in ((1, 1), (1, self.lead), self.long)}


def span_of(window: tuple[int, int]) -> str:
    return f"{window[0]}:{window[1]}" if window[1] > window[0] else f"{window[0]}"


def measure(given: argparse.Namespace, size: Size) -> dict:
    """(arm, seed, steps of training) -> errors by source; with "causes" -> those. Trains what is not there yet."""
    folder, found = given.output / "jitter-length", collections.defaultdict(dict)
    results = Results(folder / "results.json", steps=size.steps, lead=size.lead)
    for seed, scenario, arm in itertools.product(range(given.seeds), size.scenarios, ARMS):
        sources, jitter = sources_of(given.data, scenario), ARMS[arm]
        run = train(
            folder / scenario / f"{arm}-seed{seed}", sources, size.steps, seed, given.tiny, model={"jitter": jitter}
        )
        for step in size.lengths:
            key = f"{scenario}: {arm}, seed {seed}, step {step}"
            found[arm, seed, step] |= results.get(
                key, lambda r=run, n=step, s=sources, j=jitter, i=seed: curves(averaged_model(r, n), s, size.lead, j, i)
            )
            found[arm, seed, step, "causes"] |= results.get(
                f"{key}, causes",
                lambda r=run, n=step, s=sources[:1], j=jitter: causes(averaged_model(r, n), s, j, size.spectrum),
            )
        config = run.config()
        found["still"] |= results.get(f"{scenario}: still", lambda c=config, s=sources: still(c, s, size.lead))
    return found


def summary(found: dict, given: argparse.Namespace, size: Size) -> dict:
    """By window and length how much lower the error is with jitter, of all scenarios and of each; and why."""
    seeds, sources = range(given.seeds), [s for name in size.scenarios for s in sources_of(given.data, name)]

    def of(arm: str, step: int, window: tuple[int, int]) -> np.ndarray:
        return errors_of([found[arm, seed, step] for seed in seeds], sources, *window)

    made: dict = {
        "seeds": given.seeds, "scenarios": list(size.scenarios), "lengths": size.lengths,
        "windows": {}, "causes": {},
    }  # fmt: skip
    for label, window in size.windows.items():
        persistence = np.median(errors_of([found["still"]], sources, *window)[0], axis=-1)
        rows: dict = {"persistence": persistence.round(4).tolist()}
        for step in size.lengths:
            with_, without = of("jitter", step, window), of("none", step, window)
            each = ratio_interval(with_, without, lambda r: 1 - r)
            rows[str(step)] = {
                **{arm: np.median(x, -1).mean(0).round(4).tolist() for arm, x in zip(ARMS, (with_, without))},
                "lower": [np.round(x, 4).tolist() for x in each],
                "median lower": [round(float(x), 4) for x in ratio_interval(with_, without, improvement)],
            }
        made["windows"][label] = rows
    for arm, step in itertools.product(ARMS, size.lengths):
        rows = [row for seed in seeds for row in found[arm, seed, step, "causes"].values()]
        last = size.spectrum[-1]
        combs = [row[f"comb_error_{last}"] - row[f"comb_truth_{last}"] for row in rows]
        means = {name: round(float(np.mean([row[name] for row in rows])), 4) for name in CAUSES}
        made["causes"][f"{arm}: {step}"] = {**means, "comb": round(float(np.mean(combs)), 4)}
    return made


def turns(rows: dict, lengths: list[int], place: int | None = None) -> str:
    """What one window says of all scenarios, or of that at `place`: from which length on an interval leaves zero."""
    said = []
    for step in lengths:
        row = rows[str(step)]
        middle, low, high = row["median lower"] if place is None else [part[place] for part in row["lower"]]
        if low > 0 or high < 0:
            said.append(f"{'lower' if low > 0 else 'higher'} at {step} ({percent((middle, low, high))})")
    return ", ".join(said) or "every interval holds zero"


def draw(made: dict, size: Size, file: str) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, (a, b, c) = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    for i, (label, rows) in enumerate(made["windows"].items()):
        middle, low, high = 100 * np.array([rows[str(step)]["median lower"] for step in size.lengths]).T
        place = np.array(size.lengths) * (1 + 0.02 * (i - 1))
        a.vlines(place, low, high, color=f"C{i}")
        a.plot(place, middle, "o-", color=f"C{i}", label=span(label))
    a.axhline(0, color="black", lw=0.8)
    a.set(ylabel="error lower with jitter by, %", title="median over scenarios")
    rows = made["windows"][span_of(size.long)]
    for i, name in enumerate(size.scenarios):
        for arm, style in zip(ARMS, ("-", ":")):
            errors = [rows[str(step)][arm][i] for step in size.lengths]
            b.plot(size.lengths, errors, "o" + style, color=f"C{i}", label=f"{name.replace('_', ' ')}, {arm}")
        b.axhline(rows["persistence"][i], color=f"C{i}", lw=0.5)
    b.set(ylabel="VRMSE", yscale="log", title=f"{span(span_of(size.long))} (thin: nothing changes)")
    for arm, color in zip(ARMS, ("C0", "C1")):
        for name, style in (("equivariance", "o-"), ("comb", "s:")):
            values = [made["causes"][f"{arm}: {step}"][name] for step in size.lengths]
            label = "shift error" if name == "equivariance" else "comb, decades above the truth's"
            c.plot(size.lengths, values, style, color=color, label=f"{label}, {arm}")
    c.axhline(0, color="black", lw=0.8)
    c.set(title="why")
    for axis in (a, b, c):
        axis.set(xlabel="training steps", xticks=size.lengths)
        axis.legend(fontsize=7)
    figure.savefig(file, dpi=100)
    plt.close(figure)


def report(made: dict, given: argparse.Namespace, size: Size) -> str:
    labels, long = list(made["windows"]), span_of(size.long)
    length = [
        [str(step), *(percent(made["windows"][label][str(step)]["median lower"]) for label in labels)]
        for step in size.lengths
    ]
    each = []
    for i, name in enumerate(made["scenarios"]):
        cells = []
        for step in size.lengths:
            row = made["windows"][long][str(step)]
            cells.append(
                f"{row['jitter'][i]:.3f} / {row['none'][i]:.3f}: {percent([part[i] for part in row['lower']])}"
            )
        each.append([name.replace("_", " "), *cells, f"{made['windows'][long]['persistence'][i]:.3f}"])
    why = [[key, *(f"{row[name]:.3f}" for name in (*CAUSES, "comb"))] for key, row in made["causes"].items()]
    said = [
        f"- {span(label).capitalize()}, all scenarios: {turns(made['windows'][label], size.lengths)}."
        for label in labels
    ]
    said += [
        f"- {span(long).capitalize()}, {name.replace('_', ' ')}: {turns(made['windows'][long], size.lengths, i)}."
        for i, name in enumerate(made["scenarios"])
    ]
    return "\n".join([
        "# Jitter against training length", "",
        "```bash", "python examples/simulate.py runs/nano/data --recipe nano",
        f"OMP_NUM_THREADS=1 python examples/experiments/jitter_length.py --output runs/experiments{flags(given)}",
        "```", "",
        f"As [jitter.md](jitter.md), for {size.steps} steps: models of 1.5 million parameters, each of one scenario, "
        f"four windows a step, with jitter and without, {plural(made['seeds'], 'seed')}; running averages of the "
        "weights after each quarter. Forecasts of 60 frames from frame 17 of the test trajectories on two grids. How "
        "much lower the VRMSE is with jitter, the median over scenarios; in brackets 95% bootstrap intervals over "
        "trajectories and seeds.", "",
        markdown_table(["training steps", *map(span, labels)], length), "",
        f"![jitter against training length]({NAME}.png)", "",
        f"Each scenario, {span(long)}: VRMSE with jitter / without, and how much lower it is with it.", "",
        markdown_table(["scenario", *(f"{step} steps" for step in size.lengths), "nothing changes"], each), "",
        "Why: shift error, how far a forecast of the next frame without jitter changes when its input is shifted by a "
        "part of a patch and the output shifted back, and the error of the change, both in units of the change; comb, "
        f"decades by which the spectrum of the error after {size.spectrum[-1]} steps stands out at the waves of the "
        "tokens, less those of the truth. Means over scenarios and seeds, on the first grid.", "",
        markdown_table(["trained: steps", *CAUSES.values(), "comb"], why), "",
        "What it says:", "", *said, "",
        f"Power: {plural(made['seeds'], 'seed')}, {len(made['scenarios'])} scenarios of jitter.md's nine, eight "
        f"trajectories each, {MODEL['tokens_per_axis']} tokens an axis. The learning rate falls over the whole "
        "training, so a checkpoint within it is not what a shorter training would have ended with.", "",
    ])  # fmt: skip


def main() -> None:
    given = parser(__doc__, seeds=True).parse_args()
    size = Size(given.tiny)
    if given.tiny:
        tiny_data(given.data, size.scenarios)
    found = measure(given, size)
    made, folder = summary(found, given, size), written_to(given)
    write(folder / f"{NAME}.json", json.dumps(made) + "\n")
    draw(made, size, folder / f"{NAME}.png")
    text = report(made, given, size)
    write(folder / f"{NAME}.md", text)
    print(text)


if __name__ == "__main__":
    main()
