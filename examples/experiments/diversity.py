"""Do the third dimension, rotations and strides in pretraining help on an unseen scenario in a volume?

    python examples/simulate.py runs/nano/data --recipe nano
    OMP_NUM_THREADS=1 python examples/experiments/diversity.py --output runs/experiments
    OMP_NUM_THREADS=1 python examples/experiments/diversity.py --output runs/diversity-tiny --tiny   # does it run?

Three arms of 1000 steps, after section 5.3 of the paper:

    naive      four scenarios in the plane, which stays as it is, at one distance of the frames
    diverse    the same, lifted to space, rotated, at one to three times the distance
    volumes    as diverse, with a scenario in the volume beside the four

Each is tested on the four as they are, then fine-tuned on 2 and on 8 trajectories of turbulence in a volume, beside a
model that starts from nothing. `--seeds 1` stops after the first seed; the same command goes on after a stop.
"""

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
from common import (
    MODEL,
    TINY,
    Results,
    by_trajectory,
    curves,
    errors_from,
    errors_of,
    finetune,
    flags,
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

SEEN = ("burgers", "euler_multi_quadrants_periodic", "shear_flow", "wave")
UNSEEN, VOLUME = "turbulence_3d", "advection_diffusion_3d"
DIVERSE = {"augment": True, "stride_max": 3}
RATES = (2.5e-4, 1e-3, 4e-3)  # of fine-tuning, the best of which counts
ARMS: dict[str, dict] = {"naive": {"augment": False, "stride_max": 1}, "diverse": DIVERSE, "volumes": DIVERSE}


class Size:
    """How much of everything."""

    def __init__(self, tiny: bool) -> None:
        self.planes = TINY if tiny else SEEN
        self.trajectories = (1, 2) if tiny else (2, 8)
        self.steps, self.tuning, self.lead = (2, 2, 3) if tiny else (1000, 150, 20)
        self.rates = RATES[:1] if tiny else RATES


def measure(given: argparse.Namespace, size: Size) -> dict:
    """(arm, seed, trajectories) -> errors on the volume; (arm, seed, "planes") -> those on what was pretrained on."""
    results = Results(given.output / "diversity" / "results.json", **vars(size))
    folder = given.data / "0" / UNSEEN / "data"
    own, valid, test = (trajectories(folder / split) for split in ("train", "valid", "test"))
    planes = [given.data / "0" / name for name in size.planes]
    found: dict = {"still": results.get("still", lambda: errors_from(None, test, size.lead))}
    for seed in range(given.seeds):
        for arm in ("nothing", *ARMS):
            if arm == "nothing":
                start = untrained(given.output / "diversity" / f"untrained-{seed}", seed, given.tiny)
            else:
                names = (*size.planes, VOLUME) if arm == "volumes" else size.planes
                sources = [given.data / str(variant) / name for name in names for variant in (0, 2)]
                its = given.output / "diversity" / f"{arm}-seed{seed}"
                train(its, sources, size.steps, seed, given.tiny, **ARMS[arm])
                start = its / "model"
                found[arm, seed, "planes"] = results.get(
                    f"{arm} {seed} planes",
                    lambda s=start, seed=seed: curves(
                        WalrusForPrediction.from_pretrained(s), planes, size.lead, True, seed
                    ),
                )
            for few in size.trajectories:
                found[arm, seed, few] = results.get(
                    f"{arm} {seed} {few}",
                    lambda s=start, n=few: finetune(s, own[:n], valid, test, size.rates, size.tuning, size.lead),
                )
    return found


def summary(found: dict, given: argparse.Namespace, size: Size) -> dict:
    """Errors, and how much lower than from nothing and than naively, with their intervals."""
    seeds, made = range(given.seeds), {"seeds": given.seeds, "planes": {}, "volume": {}}
    planes = [given.data / "0" / name for name in size.planes]
    for label, window in {"1": (1, 1), f"1:{size.lead}": (1, size.lead)}.items():
        naive = errors_of([found["naive", seed, "planes"] for seed in seeds], planes, *window)
        for arm in ARMS:
            errors = errors_of([found[arm, seed, "planes"] for seed in seeds], planes, *window)
            lower = ratio_interval(errors, naive, lambda r: 1 - np.median(r, axis=-1))
            made["planes"][f"{arm}, steps {label}"] = {
                "median": round(float(np.median(np.median(errors, -1).mean(0))), 4),
                "lower than naive": [round(float(x), 4) for x in lower],
            }
        made["volume"][f"nothing changes, steps {label}"] = round(
            float(np.median(by_trajectory([found["still"]], *window))), 4
        )
        for few in size.trajectories:
            runs = {arm: [found[arm, seed, few] for seed in seeds] for arm in ("nothing", *ARMS)}
            errors = {arm: by_trajectory(its, *window) for arm, its in runs.items()}
            for arm, its in errors.items():
                row: dict = {
                    "median": round(float(np.median(its, -1).mean()), 4),
                    "rate": [r["rate"] for r in runs[arm]],
                    "tuned": [r["tuned"] for r in runs[arm]],
                }
                for other in ("nothing", "naive"):
                    lower = ratio_interval(its, errors[other], lambda r: 1 - r[..., 0])
                    row[f"lower than {other}"] = [round(float(x), 4) for x in lower]
                made["volume"][f"{arm}, {few} trajectories, steps {label}"] = row
    return made


def draw(made: dict, size: Size, file: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, (*axes, last) = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
    labels, arms = ("1", f"1:{size.lead}"), ("nothing", *ARMS)
    for axis, label in zip(axes, labels):
        for few, color, aside in zip(size.trajectories, ("C0", "C1"), (-0.08, 0.08)):
            values = [made["volume"][f"{arm}, {few} trajectories, steps {label}"]["median"] for arm in arms]
            axis.plot(np.arange(4) + aside, values, "o", color=color, label=f"fine-tuned on {few} trajectories")
        idle = made["volume"][f"nothing changes, steps {label}"]
        axis.axhline(idle, color="black", lw=0.8, label="nothing changes")
        axis.set(xticks=range(4), ylabel="VRMSE", title=f"{UNSEEN}, {span(label)}")
        axis.set_xticklabels(["from nothing", *ARMS])
    axes[0].legend(fontsize=8)
    for label, color, aside in zip(labels, ("C2", "C3"), (-0.08, 0.08)):
        found = [made["planes"][f"{arm}, steps {label}"]["lower than naive"] for arm in ARMS]
        middle, low, high = 100 * np.array(found).T
        last.vlines(np.arange(len(ARMS)) + aside, low, high, color=color)
        last.plot(np.arange(len(ARMS)) + aside, middle, "o", color=color, label=span(label))
    last.axhline(0, color="black", lw=0.8)
    last.set(xticks=range(len(ARMS)), ylabel="error lower than naive by, %", title="planes of the pretraining")
    last.set_xticklabels(ARMS)
    last.legend(fontsize=8)
    figure.savefig(file, dpi=100)
    plt.close(figure)


def comparisons(made: dict, size: Size, few: int, labels: tuple[str, str]) -> list[str]:
    """What tuning on so many trajectories says of the arms; those that it did not move are not compared."""
    said = []
    rows = {(arm, label): made["volume"][f"{arm}, {few} trajectories, steps {label}"]
            for arm in ("nothing", *ARMS) for label in labels}  # fmt: skip
    for arm in ("nothing", *ARMS):
        its = {label: rows[arm, label] for label in labels}
        for label, other in itertools.product(labels, ("nothing", "naive")):
            if arm not in ("nothing", other) and all(its[label]["tuned"] + rows[other, label]["tuned"]):
                lower = verdict(its[label][f"lower than {other}"])
                said.append(f"- Fine-tuned on {few}, {span(label)}: *{arm}* instead of *{other}* {lower}.")
        if not all(its[labels[0]]["tuned"]):
            some = "of some seeds, " if any(its[labels[0]]["tuned"]) else ""
            still = all(
                row["median"] == made["volume"][f"nothing changes, steps {label}"] for label, row in its.items()
            )
            said.append(
                f"- *{arm}*, {some}{few} trajectories: neither half nor all of the steps lowered the error on the "
                "validation split at any rate, so the table has it as it began"
                + (", which is the forecast that nothing changes." if still else ".")
            )
    return said


def meaning(made: dict, size: Size, labels: tuple[str, str]) -> list[str]:
    """What the tables say together."""
    idle = {label: made["volume"][f"nothing changes, steps {label}"] for label in labels}
    rows = {label: {key: row for key, row in made["volume"].items()
                    if key.endswith(f"steps {label}") and not key.startswith("nothing changes")}
            for label in labels}  # fmt: skip
    counted = ", ".join(f"{not_below([row['median'] for row in its.values()], idle[label])} over {span(label)}"
                        for label, its in rows.items())  # fmt: skip
    on_planes = " and ".join(
        f"{verdict(made['planes'][f'diverse, steps {label}']['lower than naive'])} over {span(label)}"
        for label in labels
    )
    said = [f"No better than the forecast that nothing changes: {counted}.", "",
            f"What it means: on the planes of the pretraining, *diverse* instead of *naive* {on_planes}."]  # fmt: skip
    clear = []
    for few, arm in itertools.product(size.trajectories, ARMS):
        row, other = (rows[labels[1]][f"{who}, {few} trajectories, steps {labels[1]}"] for who in (arm, "nothing"))
        _, low, high = row["lower than nothing"]
        if all(row["tuned"] + other["tuned"]) and low * high > 0:
            clear.append(f"*{arm}* {verdict(row['lower than nothing'])} ({few} trajectories)")
    said[-1] += (f" Fine-tuned, {span(labels[1])}, instead of a start from nothing: "
                 f"{', '.join(clear) or 'no arm makes a difference that this run can tell'}.")  # fmt: skip
    for few in size.trajectories:
        found = [row["median"] for key, row in rows[labels[1]].items() if f", {few} tra" in key and all(row["tuned"])]
        if len(found) > 1:
            said[-1] += (f" Tuned on {few} trajectories, those that tuning moved lie within "
                         f"{max(found) / min(found) - 1:.0%} over {span(labels[1])}.")  # fmt: skip
    skill = 1 - min(row["median"] for row in rows[labels[1]].values()) / idle[labels[1]]
    if skill < 0.25:
        said[-1] += (f" All of them learnt little: the best is {skill:.0%} below the forecast that nothing changes. "
                     "More steps may rank them otherwise.")  # fmt: skip
    return said


def report(made: dict, given: argparse.Namespace, size: Size) -> str:
    labels = ("1", f"1:{size.lead}")
    planes = []
    for arm in ARMS:
        its = [made["planes"][f"{arm}, steps {label}"] for label in labels]
        planes.append([arm, *(f"{row['median']:.3f}; lower by {percent(row['lower than naive'])}" for row in its)])
    volume: list[list] = [
        [f"from {arm}" if arm == "nothing" else arm, few,
         *(f"{made['volume'][f'{arm}, {few} trajectories, steps {label}']['median']:.3f}" for label in labels)]
        for few in size.trajectories for arm in ("nothing", *ARMS)
    ]  # fmt: skip
    idle = ", ".join(f"{made['volume'][f'nothing changes, steps {label}']:.3f} over {span(label)}" for label in labels)
    heads = [span(label) for label in labels]
    said = [line for few in size.trajectories for line in comparisons(made, size, few, labels)]
    return "\n".join([
        "# Diversity of pretraining", "",
        "```bash", "python examples/simulate.py runs/nano/data --recipe nano",
        f"OMP_NUM_THREADS=1 python examples/experiments/diversity.py --output runs/experiments{flags(given)}",
        "```", "",
        f"Pretrained for {size.steps} steps on {', '.join(size.planes)}; seeds: {given.seeds}. *naive*: planes stay in "
        "their plane, one distance of the frames. *diverse*: lifted, rotated, one to three times the distance. "
        f"*volumes*: as diverse, with {VOLUME}. Then all weights are fine-tuned for {size.tuning} steps on {UNSEEN}, "
        f"at the best of the learning rates {', '.join(f'{rate:g}' for rate in size.rates)}. "
        "VRMSE, mean over fields and steps, median over trajectories; in brackets 95% bootstrap intervals over "
        f"trajectories{' and seeds' if given.seeds > 1 else ''}.", "",
        "On the test trajectories of the pretraining scenarios, as they are, median over scenarios, and the median "
        "over scenarios of how much lower it is than *naive*; below zero it is higher:", "",
        markdown_table(["arm", *heads], planes), "",
        f"On {UNSEEN}; where nothing changes, {idle}:", "",
        markdown_table(["arm", "trajectories", *heads], volume), "", "![diversity](diversity.png)", "",
        *said, "", *meaning(made, size, labels), "",
        f"Power: {plural(given.seeds, 'seed')}, four test trajectories with three starts each; "
        f"{MODEL['tokens_per_axis']} tokens an axis in planes, {MODEL['tokens_per_axis_3d']} in volumes. Intervals of "
        "one seed are over trajectories alone; another seed may differ by more. Encoder and decoder of volumes are "
        "untrained in the first two arms.", "",
    ])  # fmt: skip


def main() -> None:
    given = parser(__doc__, seeds=True).parse_args()
    size = Size(given.tiny)
    if given.tiny:
        tiny_data(given.data, (*size.planes, UNSEEN, VOLUME))
    made = summary(measure(given, size), given, size)
    write(written_to(given) / "diversity.json", json.dumps(made) + "\n")
    draw(made, size, written_to(given) / "diversity.png")
    text = report(made, given, size)
    write(written_to(given) / "diversity.md", text)
    print(text)


if __name__ == "__main__":
    main()
