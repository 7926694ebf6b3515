"""Does patch jitter lower the error of long forecasts, and why?

    python examples/simulate.py runs/nano/data --recipe nano
    OMP_NUM_THREADS=1 python examples/experiments/jitter.py --output runs/experiments
    OMP_NUM_THREADS=1 python examples/experiments/jitter.py --output runs/jitter-tiny --tiny   # does it run?

Two arms, with jitter and without, two seeds each, on nine scenarios in the plane: a model of 1.5 million parameters for
each, 300 steps on two grids, then forecasts of 60 frames of the test trajectories. Each arm also forecasts the other
way (jitter where it was trained without, and the reverse), the first as the mean over four shifts at each step, and
both from their checkpoints after a quarter and half of the steps. `--seeds 1` stops after the first seed; the same
command goes on after a stop.
"""

import argparse
import collections
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from common import (
    MODEL,
    PLANES,
    TINY,
    Results,
    Windows,
    averaged_model,
    curves,
    errors_of,
    flags,
    improvement,
    parser,
    percent,
    plural,
    ratio_interval,
    rollout,
    span,
    still,
    tiny_data,
    train,
    verdict,
    write,
    written_to,
)
from torch import Tensor

from walrus_hf import WalrusForPrediction
from walrus_hf.model_card import markdown_table
from walrus_hf.normalization import delta_scales, per_channel
from walrus_hf.training.arguments import PretrainingArguments

VARIANTS = (0, 2)
# Periodic along both axes, on 64 x 64 cells: where shifts and spectra have a plain meaning.
PERIODIC = ("burgers", "euler_multi_quadrants_periodic", "gray_scott", "kolmogorov_flow", "shear_flow", "wave")
ARMS = {"jitter": True, "none": False}
SHIFTS = ((1, 3), (3, 6), (5, 2), (2, 5))  # cells along H and W; none is a multiple of a patch


class Size:
    """How much of everything; the settings of `--tiny` are for trying whether it runs."""

    def __init__(self, tiny: bool, scenarios: Sequence[str] | None = None) -> None:
        self.scenarios = tuple(scenarios) if scenarios else TINY if tiny else PLANES
        self.steps = 4 if tiny else 300
        self.lead = 3 if tiny else 60
        self.long = (2, 3) if tiny else (21, 60)  # lead times of the "long" error, as published
        self.whole = f"1:{self.lead}"
        self.shifts = 2 if tiny else 4
        self.spectrum = (1, 3) if tiny else (1, 20)
        self.periodic = TINY[:1] if tiny else [name for name in self.scenarios if name in PERIODIC]
        if not self.periodic:
            raise ValueError(f"--scenarios: expected one of {', '.join(PERIODIC)} among them, found {self.scenarios}")

    def results(self, folder: Path) -> Results:
        """Named by scenario, so that more of them can follow."""
        return Results(folder / "results.json", steps=self.steps, lead=self.lead, shifts=self.shifts)

    def sources(self, data: Path, variants: Sequence[int] = VARIANTS) -> list[Path]:
        return [source for name in self.scenarios for source in sources_of(data, name, variants)]


def sources_of(data: Path, scenario: str, variants: Sequence[int] = VARIANTS) -> list[Path]:
    return [data / str(variant) / scenario for variant in variants]


def train_arm(given: argparse.Namespace, size: Size, scenario: str, arm: str, seed: int) -> PretrainingArguments:
    """One of the arms on one of the scenarios; components.py needs these, too."""
    folder, sources = given.output / "jitter" / scenario / f"{arm}-seed{seed}", sources_of(given.data, scenario)
    return train(folder, sources, size.steps, seed, given.tiny, model={"jitter": ARMS[arm]})


# --- what is measured


def equivariance_error(change: Callable[[Tensor], Tensor], fields: Tensor, shifts: Sequence[tuple[int, int]]) -> float:
    """How far a map is from commuting with shifts of a periodic plane, relative to what it returns.

    The root mean square of `shift back(change(shift(fields))) - change(fields)` over that of `change(fields)`.

    Args:
        change: of fields `(B, T, C, H, W, D)`.
        shifts: cells along H and W.
    """
    still = change(fields)
    moved = [change(fields.roll(shift, (3, 4))).roll((-shift[0], -shift[1]), (3, 4)) for shift in shifts]
    return float((torch.stack(moved) - still).square().mean().sqrt() / still.square().mean().sqrt())


def spectrum(values: np.ndarray) -> np.ndarray:
    """Power by wavenumber along the last axis, mean over the others."""
    power = np.abs(np.fft.rfft(values, axis=-1) / values.shape[-1]) ** 2
    return power.reshape(-1, power.shape[-1]).mean(0)


def comb(power: np.ndarray, tokens: int) -> float:
    """Decades by which a spectrum stands out at multiples of the number of tokens along the axis.

    Patches leave aliases there (section 3.2 of the paper). The power around each multiple below the highest wave is
    compared with the geometric mean of the power half-way to its neighbours, so a spectrum that falls off evenly has
    none. NaN where the patches are too small for that.
    """
    half = tokens // 2

    def around(k: int) -> float:
        return float(np.log10(power[k - 1 : k + 2].mean() + 1e-30))

    peaks = range(tokens, len(power) - half, tokens)
    return float(np.mean([around(k) - (around(k - half) + around(k + half)) / 2 for k in peaks])) if peaks else np.nan


@torch.no_grad()
def causes(
    model: WalrusForPrediction, sources: Sequence[Path], jitter: bool, steps: Sequence[int]
) -> dict[str, dict[str, float]]:
    """For each source how well the model commutes with shifts, and the traces of patches in its error after `steps`."""
    found = {}
    for source in sources:
        windows = Windows.of(source / "data" / "test", model.config, max(steps))
        given = {name: value for name, value in windows.inputs.items() if name != "field_values"}
        real = ~given["padded_channels"][0]

        def change(fields: Tensor, given: dict = given, real: Tensor = real) -> Tensor:
            return model(fields, **given, jitter=False, frames_to_keep=1).delta[:, :, real]

        state = windows.inputs["field_values"]
        truth = torch.cat([windows.processor(t)["field_values"] for t in windows.truths])
        scales = per_channel(delta_scales(state, model.config.scale_eps))
        target = ((truth[:, :1] - state[:, -1:]) / scales)[:, :, real]
        miss = change(state) - target
        row = {
            "equivariance": equivariance_error(change, state, SHIFTS),
            "one_step": float(miss.square().mean().sqrt() / target.square().mean().sqrt()),
        }
        forecast = rollout(model, windows.inputs, max(steps), jitter)
        tokens = model.model.make_plan(state, given["boundary_conditions"], jitter=False).tokens
        for step in steps:
            values = truth[:, step - 1, real].numpy()  # (B, C, H, W, 1)
            error = forecast[:, step - 1, real].numpy() - values
            size = values.std((2, 3, 4), keepdims=True) + 1e-12  # fields of other units count alike
            for name, x in (("error", error / size), ("truth", values / size)):
                powers = [spectrum(np.moveaxis(x, axis, -1)) for axis in (2, 3)]
                row[f"comb_{name}_{step}"] = float(np.mean([comb(p, tokens[i]) for i, p in enumerate(powers)]))
                row[f"spectrum_{name}_{step}"] = np.log10(powers[0] + 1e-30).round(4).tolist()
        found[source.name] = row
    return found


# --- tables and the picture


def wins(ratios: np.ndarray) -> np.ndarray:
    return (ratios < 1).sum(axis=-1)


def evaluate(
    results: Results, size: Size, arguments: PretrainingArguments, name: str, sources: Sequence[Path], seed: int,
    step: int, jitter: bool, shifts: int = 1,
) -> dict:  # fmt: skip
    """`curves` of the arm `name` after so many steps, once; components.py asks for some of the same."""
    variants = ",".join(source.parent.name for source in sources)
    return results.get(
        f"{sources[0].name}, grids {variants}: {name}, seed {seed}, step {step}, {way_of(jitter, shifts)}",
        lambda: curves(averaged_model(arguments, step), sources, size.lead, jitter, seed, shifts),
    )


def way_of(jitter: bool, shifts: int = 1) -> str:
    """How a forecast is made, in words."""
    return f"{shifts} shifts" if shifts > 1 else "jitter" if jitter else "none"


def measure(given: argparse.Namespace, size: Size) -> dict:
    """(arm, seed, steps of training, way of the forecast or "causes") -> results. Trains what is not there yet."""
    results = size.results(given.output / "jitter")
    found: dict = collections.defaultdict(dict)
    for seed, scenario, arm in itertools.product(range(given.seeds), size.scenarios, ARMS):
        arguments = train_arm(given, size, scenario, arm, seed)
        both, plain = sources_of(given.data, scenario), sources_of(given.data, scenario, VARIANTS[:1])
        own, last = ARMS[arm], size.steps
        todo = [(last, own, 1, both), (last, not own, 1, plain), *((last // n, own, 1, plain) for n in (4, 2))]
        if own:
            todo.append((last, own, size.shifts, plain))
        for step, jitter, shifts, sources in todo:
            found[arm, seed, step, way_of(jitter, shifts)] |= evaluate(
                results, size, arguments, arm, sources, seed, step, jitter, shifts
            )
        if scenario in size.periodic:
            for step in (last // 4, last // 2, last):
                found[arm, seed, step, "causes"] |= results.get(
                    f"{scenario}: causes, {arm}, seed {seed}, step {step}",
                    lambda a=arguments, n=step, s=plain, j=own: causes(averaged_model(a, n), s, j, size.spectrum),
                )
        config = arguments.config()
        found["still"] |= results.get(f"{scenario}: still", lambda c=config, s=both: still(c, s, size.lead))
    return found


def summary(found: dict, given: argparse.Namespace, size: Size) -> dict:
    """What the written result says."""
    both, plain = size.sources(given.data), size.sources(given.data, VARIANTS[:1])
    seeds, steps = range(given.seeds), size.steps
    windows = {"1": (1, 1), size.whole: (1, size.lead), f"{size.long[0]}:{size.long[1]}": size.long}

    def of(arm: str, way: str, sources: Sequence[Path], window: tuple[int, int], step: int = steps) -> np.ndarray:
        return errors_of([found[arm, seed, step, way] for seed in seeds], sources, *window)

    made: dict = {
        "seeds": given.seeds,
        "scenarios": list(size.scenarios),
        "main": {},
        "cross": {},
        "length": {},
        "causes": {},
    }
    for name, window in windows.items():
        with_, without = of("jitter", "jitter", both, window), of("none", "none", both, window)
        persistence = np.median(errors_of([found["still"]], both, *window)[0], axis=-1)
        each = ratio_interval(with_, without, lambda r: 1 - r)
        made["main"][name] = {
            "jitter": np.median(with_, -1).mean(0).round(4).tolist(),
            "none": np.median(without, -1).mean(0).round(4).tolist(),
            "persistence": persistence.round(4).tolist(),
            "improvement": [np.round(x, 4).tolist() for x in each],
            "median improvement": [round(float(x), 4) for x in ratio_interval(with_, without, improvement)],
            "scenarios won": [int(x) for x in ratio_interval(with_, without, wins)],
            "between seeds": [round(float(x), 4) for x in _between_seeds(with_, without)],
        }
    for name, window in windows.items():
        reference = of("none", "none", plain, window)
        ways = [("jitter", "jitter"), ("jitter", "none"), ("none", "jitter"), ("jitter", f"{size.shifts} shifts")]
        for arm, way in ways:
            ratio = ratio_interval(of(arm, way, plain, window), reference, improvement)
            won = ratio_interval(of(arm, way, plain, window), reference, wins)
            made["cross"][f"{name}: trained {arm}, forecast {way}"] = [round(float(x), 4) for x in (*ratio, *won)]
    for step, (name, window) in itertools.product((steps // 4, steps // 2, steps), windows.items()):
        a, b = of("jitter", "jitter", plain, window, step), of("none", "none", plain, window, step)
        made["length"][f"{name}: {step}"] = [round(float(x), 4) for x in ratio_interval(a, b, improvement)]
    for arm, step in itertools.product(ARMS, (steps // 4, steps // 2, steps)):
        rows = [list(found[arm, seed, step, "causes"].values()) for seed in seeds]
        made["causes"][f"{arm}: {step}"] = {
            name: np.mean([[row[name] for row in r] for r in rows], (0, 1)).round(4).tolist() for name in rows[0][0]
        }
    return made


def _between_seeds(with_: np.ndarray, without: np.ndarray) -> list[float]:
    """Median over scenarios of how far two seeds of one arm lie apart, as a part of their mean: the noise floor."""
    each = [np.median(x, -1) for x in (with_, without)]
    return [float(np.median((x.max(0) - x.min(0)) / x.mean(0))) for x in each]


def draw(made: dict, found: dict, given: argparse.Namespace, size: Size, file: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, ((a, b, e), (c, d, f)) = plt.subplots(2, 3, figsize=(15, 8), layout="constrained")
    _, plain = size.sources(given.data), size.sources(given.data, VARIANTS[:1])
    middle, low, high = (100 * np.array(x) for x in made["main"][size.whole]["improvement"])
    place = np.arange(len(middle))[::-1]
    # Of a median of few scenarios the interval need not hold the estimate, so it is a line of its own.
    a.hlines(place, low, high, color="C0")
    a.plot(middle, place, "o", color="C0")
    a.axvline(0, color="black", lw=0.8)
    a.set(yticks=place, xlabel=f"error lower with jitter by, % (steps 1 to {size.lead})", title="each scenario")
    a.set_yticklabels([name.replace("_", " ") for name in size.scenarios], fontsize=8)
    lines = [("jitter", "jitter", "C0", "-"), ("none", "none", "C1", "-"), ("jitter", "none", "C0", ":"),
             ("none", "jitter", "C1", ":"), ("jitter", f"{size.shifts} shifts", "C2", "-")]  # fmt: skip
    lead = np.arange(1, size.lead + 1)
    for arm, way, color, style in lines:
        each = [errors_of([found[arm, s, size.steps, way] for s in range(given.seeds)], plain, n, n) for n in lead]
        over = np.median(np.median(np.stack(each), -1).mean(1), -1)
        b.plot(lead, over, style, color=color, label=f"trained: {arm}, forecast: {way}")
    idle = [np.median(np.median(errors_of([found["still"]], plain, n, n)[0], -1)) for n in lead]
    b.plot(lead, idle, color="grey", lw=0.8, label="nothing changes")
    b.set(xlabel="step", ylabel="VRMSE, median over scenarios", yscale="log", title="trained and forecast")
    b.legend(fontsize=7)
    steps = [size.steps // 4, size.steps // 2, size.steps]
    for name, color in zip(made["main"], ("C0", "C1", "C2")):
        middle, low, high = 100 * np.array([made["length"][f"{name}: {step}"] for step in steps]).T
        c.vlines(steps, low, high, color=color)
        c.plot(steps, middle, "o-", color=color, label=span(name))
    c.axhline(0, color="black", lw=0.8)
    c.set(xlabel="training steps", ylabel="error lower with jitter by, %", title="median over scenarios", xticks=steps)
    c.legend(fontsize=7)
    for arm, color in zip(ARMS, ("C0", "C1")):
        rows = [made["causes"][f"{arm}: {step}"] for step in steps]
        d.plot(steps, [row["equivariance"] for row in rows], "o-", color=color, label=f"shift error, trained: {arm}")
        d.plot(steps, [row["one_step"] for row in rows], "s:", color=color, label=f"error of the change, {arm}")
    d.set(xlabel="training steps", ylabel="relative to the change", title="does it commute with shifts?", xticks=steps)
    d.set_ylim(bottom=0)
    d.legend(fontsize=7)
    last = size.spectrum[-1]
    for arm, color in zip(ARMS, ("C0", "C1")):
        row = made["causes"][f"{arm}: {size.steps}"]
        for step, style in zip(size.spectrum, (":", "-")):
            e.plot(row[f"spectrum_error_{step}"], style, color=color, label=f"error at step {step}, trained: {arm}")
        for step, style in zip(size.spectrum, (":", "-")):
            combs = [made["causes"][f"{arm}: {n}"][f"comb_error_{step}"] for n in steps]
            f.plot(steps, combs, "o" + style, color=color, label=f"error at step {step}, trained: {arm}")
    e.plot(row[f"spectrum_truth_{last}"], color="grey", lw=0.8, label=f"truth at step {last}")
    for k in range(8, len(row[f"spectrum_truth_{last}"]), 8):
        e.axvline(k, color="black", lw=0.4)
    lowest = [min(made["causes"][f"{arm}: {size.steps}"][f"spectrum_error_{size.spectrum[0]}"]) for arm in ARMS]
    e.set_ylim(bottom=min(lowest) - 0.5)
    e.set(xlabel="waves along x (lines: multiples of the tokens)", ylabel="log10 power", title="spectrum")
    e.legend(fontsize=7)
    f.axhline(row[f"comb_truth_{last}"], color="grey", lw=0.8, label=f"truth at step {last}")
    f.set(xlabel="training steps", ylabel="decades", title="excess at the tokens' waves", xticks=steps)
    f.legend(fontsize=7)
    figure.savefig(file, dpi=100)
    plt.close(figure)


def meaning(made: dict, size: Size) -> list[str]:
    """What the tables say together, beside what the paper says (section 2.4)."""
    label, last, steps = list(made["main"])[-1], size.spectrum[-1], (size.steps // 4, size.steps // 2, size.steps)
    lengths = [made["length"][f"{label}: {step}"] for step in steps]
    open_ = all(low <= 0 <= high for _, low, high in lengths)
    end = {arm: made["causes"][f"{arm}: {size.steps}"] for arm in ARMS}
    excess = {arm: abs(row[f"comb_error_{last}"] - row[f"comb_truth_{last}"]) for arm, row in end.items()}
    row = made["main"][label]
    return [
        "- The paper has lower errors at long lead times in 17 of 19 scenarios, by 54% in the median, for one model of "
        f"all, without seeds. Here it is {row['scenarios won'][0]} of {len(made['scenarios'])}, and "
        f"{percent(row['median improvement'])}: "
        + ("not resolved." if row["median improvement"][1] <= 0 <= row["median improvement"][2] else "resolved."),
        f"- Training length, {span(label)}: "
        + (f"from {steps[0]} to {steps[-1]} steps no turn is seen, every interval holds zero. For longer: "
           "[jitter_length.md](jitter_length.md)." if open_ else "some interval leaves zero, see the table."),
        f"- Artefacts: after {last} steps of a forecast the comb of the error differs from the truth's by "
        f"{excess['none']:.2f} decades without jitter, and by {excess['jitter']:.2f} with it.",
        f"- Shifts: trained with jitter, a forecast without it changes by {end['jitter']['equivariance']:.2f} of the "
        f"change when its input is shifted, trained without it by {end['none']['equivariance']:.2f}.",
    ]  # fmt: skip


def report(made: dict, given: argparse.Namespace, size: Size) -> str:
    main, number, seeds = made["main"], len(made["scenarios"]), plural(made["seeds"], "seed")
    every = main[size.whole]
    rows = []
    for i, name in enumerate(made["scenarios"]):
        numbers = [f"{every[arm][i]:.3f}" for arm in ("jitter", "none", "persistence")]
        rows.append([name.replace("_", " "), *numbers, percent([part[i] for part in every["improvement"]])])
    said = [
        f"- {span(label).capitalize()}: jitter {verdict(row['median improvement'])}; the "
        f"error is lower in {row['scenarios won'][0]} of {number} scenarios ({row['scenarios won'][1]} to "
        f"{row['scenarios won'][2]})."
        for label, row in main.items()
    ]
    ahead = sum(min(a, b) < p for a, b, p in zip(every["jitter"], every["none"], every["persistence"]))
    said.append(f"- One of the arms is better than the forecast that nothing changes in {ahead} of {number} scenarios.")
    if made["seeds"] > 1:
        apart = " and ".join(f"{100 * x:.0f}%" for x in every["between seeds"])
        said.append(
            f"- Power: seeds lie {apart} apart with jitter and without (median over scenarios); an effect below that "
            "is not resolved."
        )
    else:
        said.append("- Power: one seed, so the intervals are over trajectories alone, and seeds may lie further apart.")
    cross: dict[str, list[str]] = {}
    for key, row in made["cross"].items():
        _, way = key.split(": ")
        cross.setdefault(way, []).append(percent(row[:3]))
    length: dict[str, list[str]] = {}
    for key, row in made["length"].items():
        _, step = key.split(": ")
        length.setdefault(step, []).append(percent(row))
    first, last = size.spectrum
    names = ["equivariance", "one_step", f"comb_error_{first}", f"comb_error_{last}", f"comb_truth_{last}"]
    causes = [[key, *(f"{row[name]:.2f}" for name in names)] for key, row in made["causes"].items()]
    windows = [span(label) for label in main]
    left = [name for name in PLANES if name not in made["scenarios"]] + ["a second seed"] * (made["seeds"] == 1)
    return "\n".join([
        "# Jitter, with and without", "",
        "```bash", "python examples/simulate.py runs/nano/data --recipe nano",
        f"OMP_NUM_THREADS=1 python examples/experiments/jitter.py --output runs/experiments{flags(given)}", "```", "",
        f"For each of {number} scenarios in the plane, two models of 1.5 million parameters and {seeds}, "
        f"{size.steps} steps of four windows on two grids, with jitter and without; all else is alike. "
        f"Forecasts of {size.lead} frames from frame 17 of all test trajectories. VRMSE, mean over fields and steps "
        f"1 to {size.lead}, median over trajectories, at most 10; in brackets 95% bootstrap intervals over "
        "trajectories and seeds.", "",
        markdown_table(["scenario", "jitter", "none", "nothing changes", "lower with jitter by"], rows), "",
        "![jitter](jitter.png)", "", *said, "",
        "Trained and forecast, on the first grid: how much lower the error is than trained and forecast without, as "
        f"the median over scenarios. With {size.shifts} shifts each step is the mean of so many forecasts, which goes "
        "on as the next input.", "",
        markdown_table(["", *windows], [[way, *row] for way, row in cross.items()]), "",
        "Against training length, on the first grid: how much lower the error with jitter is.", "",
        markdown_table(["training steps", *windows], [[step, *row] for step, row in length.items()]), "",
        f"Why, on the {len(size.periodic)} scenarios that are periodic both ways. Shift error: how far the forecast of "
        "the next frame, without jitter, changes when the input is shifted by a part of a patch and the output shifted "
        "back; error of the change: how far it is from the truth; both in units of the change. Comb: decades by which "
        "the spectrum of the error stands out at the waves of the tokens.", "",
        markdown_table(
            ["trained: steps", "shift error", "error of the change", f"comb, step {first}", f"comb, step {last}",
             f"comb of the truth, step {last}"], causes), "",
        "What it means:", "", *meaning(made, size), "",
        f"Not measured: {', '.join([*left, 'volumes'])}, and one model for all scenarios, as the published one. All "
        f"models have {MODEL['tokens_per_axis']} tokens an axis.", "",
    ])  # fmt: skip


def main() -> None:
    given = parser(__doc__, scenarios=True).parse_args()
    size = Size(given.tiny, given.scenarios)
    if given.tiny:
        tiny_data(given.data)
    found = measure(given, size)
    made = summary(found, given, size)
    write(written_to(given) / "jitter.json", json.dumps(made) + "\n")
    draw(made, found, given, size, written_to(given) / "jitter.png")
    text = report(made, given, size)
    write(written_to(given) / "jitter.md", text)
    print(text)


if __name__ == "__main__":
    main()
