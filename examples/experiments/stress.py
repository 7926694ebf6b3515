"""Where does a checkpoint hold on scenarios that it knows, and where does it break?

    OMP_NUM_THREADS=1 python examples/experiments/stress.py --output runs/stress
    OMP_NUM_THREADS=1 python examples/experiments/stress.py --output runs/stress-tiny --tiny   # does it run?

Two scenarios of the training, gas in quadrants and shear layers, simulated anew with one thing changed at a time:
grid, aspect ratio, boundary kind, time step, and a physical parameter. Each forecast begins at the same time of the
simulation as in the reference case, with the forecast that nothing changes beside it. Simulations are kept under
`--output`; the same command goes on after a stop.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from checkpoint import WINDOWS, Checkpoint, forecast, means, parser, plan_for, windows_of
from common import FIRST, Results, write, written_to

from walrus_hf import Trajectory, load_well, save_well
from walrus_hf.data.simulate import euler_multi_quadrants, shear_flow, solve_euler
from walrus_hf.data.simulate.writing import trajectory_seed
from walrus_hf.model_card import markdown_table

NAME = "stress"
LEAD, SEEDS, FIRST_SEED = 30, 3, 9  # another seed than those of the training data
HOLDS = 1.5  # error over persistence's, at most so many times that of the reference
GRIDS = ((32, 24), (48, 36), (56, 42), (80, 60), (96, 72))
SHAPES = ((64, 64), (48, 64), (96, 32), (128, 32), (32, 96))
SEEN_GRIDS = ((64, 64), (64, 48), (48, 80))


def gas(
    seed: int,
    frames: int,
    grid: tuple[int, int] = (64, 48),
    dt: float = 0.015,
    gamma: float = 1.4,
    sides: tuple[str, str] = ("periodic", "periodic"),
) -> Trajectory:
    """`euler_multi_quadrants` with any sides along x and y."""
    start = euler_multi_quadrants(seed, "periodic", grid, 1)
    density, momentum, pressure = (start.fields[name][0] for name in ("density", "momentum", "pressure"))
    velocity = momentum / density[..., None]
    return solve_euler(density, velocity, pressure, frames, dt, gamma, dict(zip("xy", sides)), name="gas")


def shear(
    seed: int, frames: int, grid: tuple[int, int] = (64, 48), dt: float = 0.05, viscosity: float = 7e-4
) -> Trajectory:
    return shear_flow(seed, grid, frames, dt, viscosity)


SOLVERS: dict[str, Callable[..., Trajectory]] = {"gas": gas, "shear": shear}
STEPS = {"gas": 0.015, "shear": 0.05}  # time steps of the reference, from whose frame 17 on all are forecast


@dataclasses.dataclass(frozen=True)
class Case:
    """A simulation that differs from the reference in one thing.

    Attributes:
        seen: whether the training data had this value (of the boundaries: for this kind of flow).
    """

    scenario: str
    changed: str
    value: str
    settings: dict[str, Any]
    seen: bool = False

    @property
    def name(self) -> str:
        return f"{self.scenario}, {self.changed} {self.value}".strip()

    def first(self) -> int:
        """Frame of the first forecast: the one after the time of the reference's frame 16."""
        dt = self.settings.get("dt", STEPS[self.scenario])
        return round((FIRST - 1) * STEPS[self.scenario] / dt) + 1

    def simulate(self, folder: Path, lead: int, seeds: int) -> list[Trajectory]:
        """From the file where it was kept, or anew."""
        file = folder / f"{self.name.replace(', ', '_').replace('/', '-').replace(' ', '_')}.hdf5"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            made = [
                SOLVERS[self.scenario](trajectory_seed(FIRST_SEED, "test", n), self.first() + lead, **self.settings)
                for n in range(seeds)
            ]
            save_well([dataclasses.replace(t, name=f"{self.scenario}_{n}") for n, t in enumerate(made)], file)
        return [load_well(file, n) for n in range(seeds)]


def cases(tiny: bool) -> list[Case]:
    """The reference of each scenario, then its changes. Cells along x span one length unit, and cells are square."""
    found = []
    for scenario, parameter, values, seen in (
        ("gas", "gamma", (1.1, 1.2, 1.6667, 2.0, 2.5), (1.3, 1.6667)),
        ("shear", "viscosity", (1e-4, 2e-4, 1.5e-3, 4e-3, 1e-2), (4e-4, 1.5e-3)),
    ):
        found.append(Case(scenario, "reference", "", {}, True))
        for changed, grids in (("grid", GRIDS), ("shape", SHAPES)):
            found += [Case(scenario, changed, f"{h}x{w}", {"grid": (h, w)}, (h, w) in SEEN_GRIDS) for h, w in grids]
        if scenario == "gas":
            for sides in (
                ("open", "open"),
                ("periodic", "open"),
                ("periodic", "wall"),
                ("wall", "open"),
                ("wall", "wall"),
            ):
                known = sides in (("open", "open"), ("wall", "wall"))
                found.append(Case(scenario, "sides", f"{sides[0]}/{sides[1]}", {"sides": sides}, known))
        for factor in (0.25, 0.5, 2, 4):
            # The training reads every second frame, too.
            settings = {"dt": factor * STEPS[scenario]}
            found.append(Case(scenario, "time step", f"x {factor:g}", settings, factor == 2))
        found += [Case(scenario, parameter, f"{value:g}", {parameter: value}, value in seen) for value in values]
    if not tiny:
        return found
    chosen = {"gas, reference", "gas, sides wall/wall", "gas, time step x 2", "gas, gamma 2"}
    return [dataclasses.replace(c, settings={"grid": (16, 24), **c.settings}) for c in found if c.name in chosen]


def measure(given: argparse.Namespace, checkpoint: Checkpoint, results: Results) -> list[dict[str, Any]]:
    """Of each case the errors of the model and of persistence, by window."""
    lead, seeds = (3, 1) if given.tiny else (LEAD, SEEDS)
    rows = []
    for case in cases(given.tiny):

        def errors(case: Case = case) -> dict[str, Any]:
            whole = case.simulate(given.output / NAME / "simulations", lead, seeds)
            windows = windows_of(checkpoint.pipe, whole, [case.first()], lead)
            strides = plan_for(windows).strides[: len(whole[0].grid)]
            return {
                "strides": " ".join(f"({first}, {second})" for first, second in strides),
                "model": means(windows.errors(forecast(checkpoint.pipe, windows, lead)), WINDOWS),
                "persistence": means(windows.errors(None), WINDOWS),
            }

        found = results.get(case.name, errors)
        about = {"scenario": case.scenario, "changed": case.changed, "value": case.value, "seen": case.seen}
        rows.append({**about, **found})
    return rows


def relative(row: dict[str, Any], window: str) -> float:
    """Error over that of persistence: below 1 a forecast is worth something."""
    return row["model"][window] / row["persistence"][window]


def reference(rows: list[dict[str, Any]], scenario: str) -> dict[str, Any]:
    return next(row for row in rows if row["scenario"] == scenario and row["changed"] == "reference")


def verdict(row: dict[str, Any], its: dict[str, Any], window: str) -> str:
    """`"holds"`, `"worse"` (beyond `HOLDS` times the reference) or `"breaks"` (no better than persistence)."""
    if relative(row, window) >= 1:
        return "breaks"
    return "holds" if relative(row, window) <= HOLDS * relative(its, window) else "worse"


def sentences(rows: list[dict[str, Any]], scenario: str) -> list[str]:
    its, said = reference(rows, scenario), []
    windows = list(its["model"])
    mine = [row for row in rows if row["scenario"] == scenario]
    for changed in dict.fromkeys(row["changed"] for row in mine if row is not its):
        parts = []
        for window in windows:
            by: dict[str, list[str]] = {}
            for row in mine:
                if row["changed"] == changed:
                    text = f"{row['value']} ({relative(row, window) / relative(its, window):.1f}x)"
                    by.setdefault(verdict(row, its, window), []).append(text)
            listed = [f"{kind} at {', '.join(by[kind])}" for kind in ("holds", "worse", "breaks") if kind in by]
            parts.append(f"steps {window}: {'; '.join(listed)}")
        said.append(f"- {changed}. " + ". ".join(parts) + ".")
    return said


def report(rows: list[dict[str, Any]], checkpoint: Checkpoint) -> str:
    windows = list(rows[0]["model"])
    text = [
        "# Stress", "", "```bash",
        "OMP_NUM_THREADS=1 python examples/experiments/stress.py --output runs/stress", "```", "",
        f"{checkpoint.text()}. {SEEDS} trajectories a case from seeds that the training did not have, one seed of the "
        "jitter. VRMSE, mean over fields, median over trajectories: of the model, of persistence, and the one over the "
        f"other. A case *holds* where that ratio is at most {HOLDS} times the reference's, *breaks* where it is 1 or "
        "more, and is *worse* in between. \"Seen\" values were in the training data of that scenario. The strides of "
        "the two stages, along x and y, follow from the grid: a grid can break because they are not among those of the "
        "training. Small differences between cases of so few trajectories say nothing.", "",
        f"![error over persistence]({NAME}.png)", "",
    ]  # fmt: skip
    for scenario in dict.fromkeys(row["scenario"] for row in rows):
        body = [
            [row["changed"], row["value"], row["strides"], "yes" if row["seen"] else "no",
             *(f"{row['model'][w]:.3f} / {row['persistence'][w]:.3f} = {relative(row, w):.2f}" for w in windows)]
            for row in rows if row["scenario"] == scenario
        ]  # fmt: skip
        title = {"gas": "Gas in quadrants, periodic", "shear": "Shear layers, periodic"}[scenario]
        head = ["changed", "value", "strides", "seen", *(f"steps {w}" for w in windows)]
        text += [f"## {title}", "", markdown_table(head, body)]
        text += ["", "In brackets the ratio over that of the reference:", "", *sentences(rows, scenario), ""]
    return "\n".join(text)


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    scenarios = list(dict.fromkeys(row["scenario"] for row in rows))
    groups = {s: list(dict.fromkeys(r["changed"] for r in rows if r["scenario"] == s))[1:] for s in scenarios}
    columns = max(map(len, groups.values()))
    size = (3.3 * columns, 3.6 * len(scenarios))
    figure, axes = plt.subplots(
        len(scenarios), columns, figsize=size, layout="constrained", squeeze=False, sharey="row"
    )
    for line, scenario in zip(axes, scenarios):
        its = reference(rows, scenario)
        for axis in line[len(groups[scenario]) :]:
            axis.set_axis_off()
        for axis, changed in zip(line, groups[scenario]):
            mine = [row for row in rows if row["scenario"] == scenario and row["changed"] == changed]
            for i, window in enumerate(its["model"]):
                values = np.array([relative(row, window) for row in mine])
                seen = np.array([row["seen"] for row in mine])
                place = np.arange(len(mine))
                axis.axhline(relative(its, window), color=f"C{i}", ls=":", lw=1)
                axis.plot(place[seen], values[seen], "o", color=f"C{i}")
                axis.plot(place[~seen], values[~seen], "o", color=f"C{i}", mfc="none", label=f"steps {window}")
            axis.axhline(1, color="black", lw=0.8)
            axis.set(xticks=place, yscale="log", title=f"{scenario}: {changed}")
            axis.set_xticklabels([row["value"] for row in mine], rotation=35, ha="right", fontsize=8)
        line[0].set_ylabel("VRMSE over persistence's")
    axes[0, 0].plot([], [], "o", color="grey", label="seen value")
    axes[0, 0].plot([], [], ":", color="grey", label="reference")
    axes[0, 0].legend(fontsize=7)
    figure.savefig(file, dpi=90)
    plt.close(figure)


def main() -> None:
    given = parser(__doc__).parse_args()
    checkpoint = Checkpoint.load(given)
    settings = {"lead": LEAD, "seeds": SEEDS, "first_seed": FIRST_SEED, "dt": STEPS}
    rows = measure(given, checkpoint, checkpoint.results(given.output / NAME, given.tiny, **settings))
    folder = written_to(given)
    write(folder / f"{NAME}.json", json.dumps({**checkpoint.record(), "cases": rows}, indent=1) + "\n")
    write(folder / f"{NAME}.md", report(rows, checkpoint))
    draw(rows, folder / f"{NAME}.png")
    print(report(rows, checkpoint))


if __name__ == "__main__":
    main()
