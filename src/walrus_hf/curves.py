"""Curves: error against lead time, power spectra, and how a training went.

matplotlib is imported only where something is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .panels import FORECAST_COLOUR, OWN_UNITS, TRUTH_COLOUR, new_figure, value_range

PERSISTENCE_COLOUR = "#888888"
# Okabe and Ito (2008): told apart with any colour vision; each has a dash of its own for print without colour.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6a4c93", "#222222")
DASHES = ("-", "-", "-", "-", (0, (6, 2)), (0, (6, 2)), (0, (6, 2)), (0, (2, 2)))
TRAINING_PANELS = ("loss", "loss by field", "validation VRMSE", "learning rate", "gradient norm")
PERSISTENCE = ", persistence"  # ends the name of a curve of validation that belongs to persistence
HELD_OUT = "held-out data"
MAX_POINTS = 200  # of a training curve; more are averaged in bins


def curves_by_field(curves: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """field -> label -> (3, steps) value, low, high, or (1, steps); the field is "" where curves are not by field."""
    if not curves:
        raise ValueError("curves: expected at least one, found none")
    by_label = {label: curve if isinstance(curve, Mapping) else {"": curve} for label, curve in curves.items()}
    fields = list(next(iter(by_label.values())))
    for label, of_field in by_label.items():
        if set(of_field) != set(fields):
            raise ValueError(f"curve {label!r}: expected the fields {fields}, found {list(of_field)}")
        for name, values in of_field.items():
            shape = np.shape(values)
            if not (len(shape) in (1, 2) and shape[-1] and (len(shape) == 1 or shape[0] == 3)):
                raise ValueError(
                    f"curve {label!r} {name}: expected an array (steps,), or (3, steps) with the two ends of an "
                    f"interval, found shape {shape}"
                )
    return {
        name: {label: np.atleast_2d(np.asarray(of_field[name], float)) for label, of_field in by_label.items()}
        for name in fields
    }


def error_figure(
    by_field: dict[str, dict[str, np.ndarray]], metric: str, dt: float | None = None, unit: str = OWN_UNITS
) -> Any:
    """One panel a field, from `curves_by_field`."""
    figure, grid = _grid(len(by_field))
    for axes, (name, curves) in zip(grid.flat, by_field.items()):
        _draw_errors(axes, name, curves, metric)
    figure.supxlabel("lead time (steps)" if dt is None else f"lead time (steps of {dt:.4g} {unit})", fontsize=11)
    figure.supylabel(metric, fontsize=11)
    _legend(figure, grid[0, 0])
    return figure


def _draw_errors(axes: Any, name: str, curves: dict[str, np.ndarray], metric: str) -> None:
    number = 0
    for label, (values, *interval) in curves.items():
        steps = np.arange(1, len(values) + 1)
        style: dict[str, Any] = {"color": PERSISTENCE_COLOUR, "linestyle": "--"}
        if label != "persistence":
            style = {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number % len(DASHES)]}
            number += 1
        marker = "o" if len(values) == 1 else None
        axes.plot(steps, values, label=label, linewidth=2, marker=marker, **style)
        if interval:
            axes.fill_between(steps, *interval, color=style["color"], alpha=0.18, linewidth=0)
    highest = max(value_range(values)[1] for values in curves.values())
    if highest > 10:  # a forecast that blew up would flatten the others
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, 1.08 * highest)
    if metric == "VRMSE" and highest > 0.95:  # else the line is not in the picture
        axes.axhline(1, color="#888888", linewidth=1, linestyle=":")
        place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        axes.annotate("spatial mean", (0, 1), xytext=(4, 3), color="#666666", fontsize=9, **place)
    _tidy(axes, name)


def spectra_figure(
    spectra: Mapping[str, tuple[np.ndarray, Mapping[str, np.ndarray]]], complete: float, label: str
) -> Any:
    """One panel a lead time: title -> (wavenumbers, {"truth" and "forecast": power}); whole rings up to `complete`."""
    figure, grid = _grid(len(spectra))
    styles = {"truth": (TRUTH_COLOUR, "-"), "forecast": (FORECAST_COLOUR, (0, (4, 1.5)))}
    seen = []
    for axes, (title, (wavenumbers, powers)) in zip(grid.flat, spectra.items()):
        shown = (wavenumbers >= 1) & (wavenumbers <= complete)
        for who, power in powers.items():
            colour, dash = styles[who]
            axes.loglog(wavenumbers[shown], power[shown], color=colour, linestyle=dash, linewidth=2, label=who)
            seen.append(power[shown])
        ticks = [2**i for i in range(int(math.log2(max(complete, 1))) + 1)]
        axes.set_xticks(ticks, labels=[str(tick) for tick in ticks])
        axes.set_xticks([], minor=True)
        _tidy(axes, title)
    low, high = value_range(np.concatenate(seen))
    for axes in grid.flat[: len(spectra)]:
        if high > 0:  # what lies far below the highest is the round-off of float32
            axes.set_ylim(max(low, 1e-12 * high) / 2, 3 * high)
    figure.supxlabel("wavenumber (waves along the longest axis)", fontsize=11)
    figure.supylabel(label, fontsize=11)
    _legend(figure, grid[0, 0])
    return figure


def training_curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Panel -> curve -> (steps, values), from the rows of a `metrics.jsonl`; means of bins where there are many rows.

    Panels, where the rows have them: `loss` (mean and each scenario), `loss by field`, `validation VRMSE` (each
    scenario, and persistence beside it), `learning rate`, `gradient norm`. Fine-tuning has one source to validate on,
    whose scores stand in the row by themselves: they are called `held-out data`.

    Raises:
        ValueError: no rows, or rows without a step and a loss.
    """
    if not rows:
        raise ValueError("training: expected rows of metrics, found none")
    for row in rows:
        if not {"step", "loss"} <= set(row):
            raise ValueError(f"training: expected rows with 'step' and 'loss', found the keys {', '.join(row)}")
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {name: {} for name in TRAINING_PANELS}

    def add(panel: str, curve: str, step: float, value: Any) -> None:
        if value is not None and math.isfinite(value):
            panels[panel].setdefault(curve, []).append((step, value))

    for row in rows:
        step = row["step"]
        add("loss", "mean", step, row["loss"])
        for panel, key in (("loss", "losses"), ("loss by field", "field_losses")):
            for name, value in (row.get(key) or {}).items():
                add(panel, name, step, value)
        validation = row.get("validation") or {}
        for name, scores in ({HELD_OUT: validation} if "vrmse" in validation else validation).items():
            add("validation VRMSE", name, step, scores.get("vrmse"))
            add("validation VRMSE", name + PERSISTENCE, step, scores.get("persistence"))
        add("learning rate", "learning rate", step, row.get("learning_rate"))
        add("gradient norm", "gradient norm", step, row.get("grad_norm"))
    return {
        panel: {name: _binned(points) for name, points in curves.items()} for panel, curves in panels.items() if curves
    }


def _binned(points: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    steps, values = (np.array(column, dtype=float) for column in zip(*points))
    if len(steps) <= MAX_POINTS:
        return steps, values
    parts = [np.array_split(column, MAX_POINTS) for column in (steps, values)]
    return np.array([part.mean() for part in parts[0]]), np.array([part.mean() for part in parts[1]])


def training_figure(panels: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]) -> Any:
    """One panel for each that `training_curves` found; a scenario has the same colour in all of them."""
    columns = min(len(panels), 2)
    lines = -(-len(panels) // columns)
    figure = new_figure(0.3 + 3.6 * lines)
    grid = figure.subplots(lines, columns, squeeze=False)
    numbers: dict[str, int] = {}
    for axes, (title, curves) in zip(grid.flat, panels.items()):
        _draw_training(axes, title, curves, numbers if title != "loss by field" else {})
    for axes in grid.flat[len(panels) :]:
        axes.axis("off")
    return figure


def _draw_training(
    axes: Any, title: str, curves: Mapping[str, tuple[np.ndarray, np.ndarray]], numbers: dict[str, int]
) -> None:
    """`numbers`: which colour each name has; names that are new get the next one."""
    for name, (steps, values) in curves.items():
        style: dict[str, Any] = {"color": "#222222", "linewidth": 2, "zorder": 3}  # the mean, or the only curve
        if len(curves) > 1 and (title, name) != ("loss", "mean"):
            number = numbers.setdefault(name.removesuffix(PERSISTENCE), len(numbers))
            style = {"color": COLOURS[number % len(COLOURS)], "linewidth": 1.3}
        if name.endswith(PERSISTENCE):
            style["linestyle"] = "--"
        axes.plot(steps, values, label=name, marker="." if len(steps) <= 20 else None, **style)
    seen = np.concatenate([values for _, values in curves.values()])
    if seen.min() > 0 and seen.max() > 20 * seen.min() and title != "learning rate":
        axes.set_yscale("log")
    if title == "learning rate":
        axes.ticklabel_format(axis="y", scilimits=(-2, 3))
    _tidy(axes, title)
    axes.set_xlabel("step", fontsize=11)
    if len(curves) > 1:
        axes.legend(fontsize=8, frameon=False, ncols=1 + len(curves) // 9)


def _grid(panels: int) -> tuple[Any, np.ndarray]:
    columns = min(panels, 3)
    rows = -(-panels // columns)
    figure = new_figure(0.6 + 3.4 * rows + (1.0 if columns == 1 else 0.0))
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[panels:]:
        axes.axis("off")
    return figure, grid


def _legend(figure: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 5), frameon=False, fontsize=11)


def _tidy(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=12)
    axes.grid(color="#eeeeee")
    axes.spines[["top", "right"]].set_visible(False)
