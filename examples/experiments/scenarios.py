"""Does pretraining on more scenarios help on one that was not among them?

    python examples/simulate.py runs/nano/data --recipe nano
    OMP_NUM_THREADS=1 python examples/experiments/scenarios.py --output runs/experiments
    OMP_NUM_THREADS=1 python examples/experiments/scenarios.py --output runs/scenarios-tiny --tiny   # does it run?

Models are pretrained on 1, 2, 4 and 8 scenarios for 1000 steps each, then fine-tuned on 2 and on 8 trajectories of
Kolmogorov flow, which none has seen, beside one that starts from nothing. Which scenarios come first matters, so there
are two orders: from the front of a list and from its back. `--orders 1` stops after the first; the same command goes on
after a stop.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from common import (
    MODEL,
    RATES,
    TINY,
    Results,
    by_trajectory,
    errors_from,
    finetune,
    not_below,
    parser,
    percent,
    plural,
    ratio_interval,
    span,
    tiny_data,
    train,
    trajectories,
    untrained,
    verdict,
    write,
    written_to,
)

from walrus_hf import WalrusForPrediction
from walrus_hf.model_card import markdown_table

UNSEEN = "kolmogorov_flow"
# The other planes.
ORDER = (
    "wave", "gray_scott", "burgers", "acoustic_scattering", "shear_flow", "euler_multi_quadrants_periodic",
    "euler_multi_quadrants_open", "rayleigh_benard",
)  # fmt: skip


class Size:
    """How much of everything."""

    def __init__(self, tiny: bool) -> None:
        self.order = TINY if tiny else ORDER
        self.unseen = "euler_multi_quadrants_periodic" if tiny else UNSEEN
        self.counts = (1, 2) if tiny else (1, 2, 4, 8)
        self.trajectories = (1, 2) if tiny else (2, 8)
        self.steps, self.tuning, self.lead = (2, 2, 3) if tiny else (1000, 100, 20)
        self.rates = RATES[:1] if tiny else RATES


def measure(given: argparse.Namespace, size: Size) -> dict:
    """(order, scenarios, trajectories) -> errors. 0 scenarios: from nothing; 0 trajectories: before fine-tuning."""
    results = Results(given.output / "scenarios" / "results.json", **vars(size))
    folder = given.data / "0" / size.unseen / "data"
    own, valid, test = (trajectories(folder / split) for split in ("train", "valid", "test"))
    found: dict = {"still": results.get("still", lambda: errors_from(None, test, size.lead))}
    for number in range(given.orders):
        names = size.order[:: -1 if number else 1]
        for count in (0, *size.counts):
            sources = [given.data / str(variant) / name for name in names[:count] for variant in (0, 2)]
            if count:
                arm = given.output / "scenarios" / f"{count}-scenarios-order{number}"
                train(arm, sources, size.steps, number, given.tiny)
                start: Path = arm / "model"
                found[number, count, 0] = results.get(
                    f"{number} {count} 0",
                    lambda s=start: errors_from(WalrusForPrediction.from_pretrained(s), test, size.lead),
                )
            else:
                start = untrained(given.output / "scenarios" / f"untrained-{number}", number, given.tiny)
            for few in size.trajectories:
                found[number, count, few] = results.get(
                    f"{number} {count} {few}",
                    lambda s=start, n=few: finetune(s, own[:n], valid, test, size.rates, size.tuning, size.lead),
                )
    return found


def summary(found: dict, given: argparse.Namespace, size: Size) -> dict:
    """Errors, and how much lower they are than from nothing, with their intervals."""
    orders = range(given.orders)
    made: dict = {"orders": given.orders, "windows": {}}
    for label, window in {"1": (1, 1), f"1:{size.lead}": (1, size.lead)}.items():
        rows: dict = {"nothing changes": round(float(np.median(by_trajectory([found["still"]], *window))), 4)}
        for few in (0, *size.trajectories):
            for count in size.counts if few == 0 else (0, *size.counts):
                runs = [found[number, count, few] for number in orders]
                errors = by_trajectory(runs, *window)
                row: dict = {"each order": np.median(errors, -1)[:, 0].round(4).tolist()}
                if few:
                    row |= {name: [run[name] for run in runs] for name in ("rate", "tuned")}
                if count and few:
                    scratch = by_trajectory([found[number, 0, few] for number in orders], *window)
                    lower = ratio_interval(errors, scratch, lambda r: 1 - r[..., 0])
                    row["lower than from nothing"] = [round(float(x), 4) for x in lower]
                rows[f"{count} scenarios, {few} trajectories"] = row
        made["windows"][label] = rows
    return made


def draw(made: dict, size: Size, file: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    place = np.arange(1 + len(size.counts))
    for axis, (label, rows) in zip(axes, made["windows"].items()):
        for few, color in zip((0, *size.trajectories), ("grey", "C0", "C1")):
            counts = size.counts if few == 0 else (0, *size.counts)
            each = np.array([rows[f"{count} scenarios, {few} trajectories"]["each order"] for count in counts])
            name = f"fine-tuned on {few} trajectories" if few else "not fine-tuned"
            axis.plot(place[-len(counts) :], each.mean(1), "o-", color=color, label=name)
            axis.plot(place[-len(counts) :], each, "_", color=color, ms=10)
        axis.axhline(rows["nothing changes"], color="black", lw=0.8, label="nothing changes")
        axis.set(
            xticks=place, xlabel="pretraining scenarios", ylabel="VRMSE", yscale="log",
            title=span(label),
        )  # fmt: skip
        axis.set_xticklabels([0, *size.counts])
    axes[0].legend(fontsize=7)
    figure.savefig(file, dpi=100)
    plt.close(figure)


def report(made: dict, given: argparse.Namespace, size: Size) -> str:
    windows, rows, said = made["windows"], [], []
    for few in (0, *size.trajectories):
        for number in size.counts if few == 0 else (0, *size.counts):
            row = [number, few or "not fine-tuned"]
            for label, found in windows.items():
                its = found[f"{number} scenarios, {few} trajectories"]
                many = f"{plural(number, 'scenario')}, fine-tuned on {few}"
                errors = ", ".join(f"{error:.3f}" for error in its["each order"])
                lower = its.get("lower than from nothing")
                row.append(errors + (f"; lower than from nothing by {percent(lower)}" if lower else ""))
                if lower:
                    said.append(f"- {many}, {span(label)}: pretraining {verdict(lower)}.")
            rows.append(row)
    idle = ", ".join(f"{found['nothing changes']:.3f} over {span(label)}" for label, found in windows.items())
    lowers, changes = [], []
    for label, found in windows.items():
        intervals = [row["lower than from nothing"] for row in found.values()
                     if isinstance(row, dict) and "lower than from nothing" in row]  # fmt: skip
        clear = sum(low > 0 for _, low, _ in intervals)
        lowers.append(f"in {clear} of {len(intervals)} cases over {span(label)}")
        for few in size.trajectories:
            least, most = (np.mean(found[f"{count} scenarios, {few} trajectories"]["each order"])
                           for count in (size.counts[0], size.counts[-1]))  # fmt: skip
            changes.append(f"{most / least - 1:+.0%} over {span(label)} ({few} trajectories)")
    for fine, what in ((True, "fine-tuned"), (False, "not fine-tuned")):
        counted = []
        for label, found in windows.items():
            errors = [np.mean(row["each order"]) for key, row in found.items()
                      if key != "nothing changes" and fine != key.endswith(", 0 trajectories")]  # fmt: skip
            counted.append(f"{not_below(errors, found['nothing changes'])} over {span(label)}")
        said.append(f"- No better than the forecast that nothing changes, {what}: {', '.join(counted)}.")
    orders = "" if given.orders == 2 else f" --orders {given.orders}"
    return "\n".join([
        "# Number of pretraining scenarios", "",
        "```bash", "python examples/simulate.py runs/nano/data --recipe nano",
        f"OMP_NUM_THREADS=1 python examples/experiments/scenarios.py --output runs/experiments{orders}", "```", "",
        f"Pretrained for {size.steps} steps on 1, 2, 4 and 8 scenarios ({', '.join(size.order)}; in the second order "
        f"from the back), then fine-tuned for {size.tuning} steps on {size.unseen}. Orders: {given.orders}. VRMSE on "
        "its test trajectories, mean over fields, steps and three starts, median over trajectories, one number an "
        "order; in brackets 95% bootstrap intervals over "
        f"trajectories{' and orders' if given.orders > 1 else ''}. Where nothing changes: {idle}.", "",
        markdown_table(["pretraining scenarios", "trajectories", *(span(label) for label in windows)], rows), "",
        "![number of scenarios](scenarios.png)", "", *said, "",
        f"What it means: pretraining lowers the error after fine-tuning {', '.join(lowers)}. From {size.counts[0]} to "
        f"{size.counts[-1]} scenarios the error after it changes by {', '.join(changes)}.", "",
        f"Power: {plural(given.orders, 'order')}, one seed for each, four test trajectories, "
        f"{MODEL['tokens_per_axis']} tokens an axis. The steps are equal, so a model of eight scenarios has seen an "
        "eighth as much of each.", "",
    ])  # fmt: skip


def main() -> None:
    made_parser = parser(__doc__)
    made_parser.add_argument("--orders", type=int, choices=(1, 2), default=2)
    given = made_parser.parse_args()
    size = Size(given.tiny)
    if given.tiny:
        tiny_data(given.data, (*size.order, size.unseen))
    made = summary(measure(given, size), given, size)
    write(written_to(given) / "scenarios.json", json.dumps(made) + "\n")
    draw(made, size, written_to(given) / "scenarios.png")
    text = report(made, given, size)
    write(written_to(given) / "scenarios.md", text)
    print(text)


if __name__ == "__main__":
    main()
