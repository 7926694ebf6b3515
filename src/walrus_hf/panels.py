"""What a picture of a forecast shows: planes of fields, their limits and colours, and how one of them is drawn.

Vectors and tensors are shown by their magnitude, on a line as they are; of volumes a middle slice or the maximum along
an axis. matplotlib is imported only where something is drawn.
"""

from __future__ import annotations

import dataclasses
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .fields import Trajectory

WIDTH, DPI = 9.6, 100  # inches and pixels an inch: pictures are 960 pixels wide
MAX_ROWS = 3
POSITIVE_MAP, SIGNED_MAP, ERROR_MAP, ERROR_SIZE_MAP = "viridis", "blue_red", "purple_orange", "magma"
TRUTH_COLOUR, FORECAST_COLOUR, ERROR_COLOUR = "#222222", "#d1495b", "#6a4c93"
OBSTACLE_COLOUR = "#a0a0a0"
OWN_UNITS = "simulation units"
# Hues of the two ends of a diverging map, in degrees of OKLab; between them lies white.
_HUES = {SIGNED_MAP: (252.0, 27.0), ERROR_MAP: (300.0, 65.0)}
_WHITE_MIDDLE_END = ((0.97, 0.0), (0.65, 0.14), (0.34, 0.10))  # lightness and chroma on the way from white to an end


@dataclasses.dataclass
class Panel:
    """One picture: values (T, n) or (T, n, m), NaN inside obstacles, with limits that hold for all frames."""

    title: str
    values: np.ndarray
    limits: tuple[float, float]
    colours: str


@dataclasses.dataclass
class Row:
    """One field: its panels are forecast, or truth, forecast and error."""

    label: str
    unit: str
    panels: list[Panel]
    error_label: str

    @property
    def is_lines(self) -> bool:
        return self.panels[0].values.ndim == 2


@dataclasses.dataclass(frozen=True)
class View:
    """What is shown of a volume: the middle slice across an axis, or the largest values along it.

    Args:
        kind: `"slice"` or `"maximum"`. Where both signs matter the maximum is the value farthest from zero.
        axis: name of the axis that is cut or looked along; `None`: the last one.
    """

    kind: str = "slice"
    axis: str | None = None

    def position(self, axes: Sequence[str]) -> int:
        """Which of three axes; `ValueError` where there is none of that name, or an unknown kind."""
        if self.kind not in ("slice", "maximum"):
            raise ValueError(f"view: expected 'slice' or 'maximum', found {self.kind!r}")
        if self.axis is not None and self.axis not in axes:
            raise ValueError(f"along: expected an axis of {', '.join(axes)}, found {self.axis!r}")
        return len(axes) - 1 if self.axis is None else list(axes).index(self.axis)

    def title(self, axes: Sequence[str]) -> str:
        axis = axes[self.position(axes)]
        if self.kind == "slice":
            return f"middle slice across {axis}"
        return f"maximum along {axis} (signed: by magnitude)"

    def plane(self, values: np.ndarray, axis: int, signed: bool) -> np.ndarray:
        """(T, H, W, D) -> (T, n, m); NaN where no cell along the axis is finite."""
        if self.kind == "slice":
            return np.take(values, values.shape[axis] // 2, axis=axis)
        size = np.where(np.isfinite(values), np.abs(values) if signed else values, -np.inf)
        largest = np.expand_dims(size.argmax(axis=axis), axis)
        return np.take_along_axis(values, largest, axis=axis).squeeze(axis)


MIDDLE = View()


def rows_of(
    forecast: Trajectory,
    truth: Trajectory | None = None,
    field: str | None = None,
    view: View = MIDDLE,
    units: Mapping[str, str] | None = None,
) -> list[Row]:
    """The fields to show; `ValueError` for unknown ones, and for a truth that does not fit. Other times are warned
    of."""
    if field is not None and field not in forecast.fields:
        raise ValueError(f"field: expected one of {', '.join(forecast.fields)}, found {field!r}")
    view.position(forecast.axes)
    names = [field] if field is not None else list(forecast.fields)[:MAX_ROWS]
    unknown = sorted(set(units or {}) - set(forecast.fields) - {"time"})
    if unknown:
        raise ValueError(f"units: expected names among {', '.join([*forecast.fields, 'time'])}, found {unknown[0]!r}")
    for name in names:
        expected = forecast.fields[name].shape
        if truth is not None and (name not in truth.fields or truth.fields[name].shape != expected):
            found = truth.fields[name].shape if name in truth.fields else "no such field"
            raise ValueError(f"truth of field {name!r}: expected the forecast's shape {expected}, found {found}")
    if truth is not None:
        _warn_of_other_times(forecast, truth)
    return [row_from(name, planes(name, forecast, truth, view), forecast, units) for name in names]


def _warn_of_other_times(forecast: Trajectory, truth: Trajectory) -> None:
    ends = np.array([0, forecast.num_frames - 1])
    if np.abs(truth.time - forecast.time + (truth.dt - forecast.dt) * ends).max() > 0.01 * forecast.dt:
        warnings.warn(
            f"truth: expected the forecast's frames from time {forecast.time:g} on, every {forecast.dt:g}, found those "
            f"from {truth.time:g} on, every {truth.dt:g}; they are drawn all the same, but the error is that of other "
            "times: cut the truth with .frames(start, stop)",
            stacklevel=4,
        )


def planes(name: str, forecast: Trajectory, truth: Trajectory | None, view: View) -> list[np.ndarray]:
    """What is seen of a field: forecast, or truth, forecast and error, each (T, n) or (T, n, m)."""
    rank = 0 if has_one_component(name, forecast) else forecast.rank(name)
    mask = forecast.obstacle_mask if truth is None or truth.obstacle_mask is None else truth.obstacle_mask
    given = [forecast.fields[name]] if truth is None else [truth.fields[name], forecast.fields[name]]
    if rank < forecast.rank(name):  # (T, n, 1) or (T, n, 1, 1)
        given = [values.reshape(values.shape[:2]) for values in given]
    signed = rank == 0 and is_signed(given[0])
    shown = [_shown(values, rank, mask, forecast, view, signed) for values in given]
    if truth is not None:
        # Of vectors the magnitude of the difference: a difference of magnitudes would hide errors of direction.
        with np.errstate(invalid="ignore", over="ignore"):
            error = np.subtract(given[1], given[0], dtype=np.float64)
        shown.append(_shown(error, rank, mask, forecast, view, signed=rank == 0))
    return shown


def has_one_component(name: str, trajectory: Trajectory) -> bool:
    """Whether a field is one number a cell, and shown as it is: scalars, and on a line vectors and tensors, too."""
    return trajectory.rank(name) == 0 or len(trajectory.axes) == 1


def row_from(
    name: str, shown: Sequence[np.ndarray], forecast: Trajectory, units: Mapping[str, str] | None = None
) -> Row:
    """Limits and colours of what `planes` returned. Those of the truth hold for the forecast too."""
    single = has_one_component(name, forecast)
    label, unit = name if single else f"|{name}|", (units or {}).get(name, OWN_UNITS)
    bounds, colours = limits(shown[0])
    if len(shown) == 1:
        return Row(label, unit, [Panel("forecast", shown[0], bounds, colours)], "")
    real, predicted, error = shown
    worst = max(*np.abs(value_range(error)), 1e-3 * (bounds[1] - bounds[0]))
    panels = [
        Panel("truth", real, bounds, colours),
        Panel("forecast", predicted, bounds, colours),
        Panel("error", error, (-worst if single else 0.0, worst), ERROR_MAP if single else ERROR_SIZE_MAP),
    ]
    return Row(label, unit, panels, "forecast \u2212 truth" if single else "|forecast \u2212 truth|")


def _shown(
    values: np.ndarray, rank: int, mask: np.ndarray | None, trajectory: Trajectory, view: View, signed: bool
) -> np.ndarray:
    """Magnitude, without obstacles, seen through `view`: (T, n) or (T, n, m)."""
    values = np.asarray(values, dtype=np.float64)
    if rank:
        with np.errstate(invalid="ignore", over="ignore"):
            values = np.sqrt(np.square(values).sum(axis=tuple(range(-rank, 0))))
    if mask is not None:
        values = np.where(mask, np.nan, values)
    # T leads, so axis i of the grid is axis i + 1 of the array.
    return view.plane(values, 1 + view.position(trajectory.axes), signed) if values.ndim == 4 else values


def limits(values: np.ndarray) -> tuple[tuple[float, float], str]:
    """Colour limits and map. Centred on zero where both signs matter: a tracer that dips to -0.01 is positive."""
    low, high = value_range(values)
    if is_signed(values):
        return (-max(-low, high), max(-low, high)), SIGNED_MAP
    return (low, high), POSITIVE_MAP


def is_signed(values: np.ndarray) -> bool:
    low, high = value_range(values)
    return low < 0 < high and min(-low, high) > 0.1 * (high - low)


def value_range(values: np.ndarray) -> tuple[float, float]:
    """Lowest and highest finite value, a little apart even where all are equal."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    room = 1e-6 * max(abs(low), abs(high)) or 1e-12  # small units are no rounding
    return (low, high) if high - low > room else (low - room, high + room)


def heading(forecast: Trajectory, view: View | None, units: Mapping[str, str] | None = None) -> str:
    """What is shown, and in which units time is where `lead_time` cannot say it; no view: it is said elsewhere."""
    name = textwrap.shorten((forecast.name or "").replace("_", " "), 50, placeholder=" ...")
    shown = view.title(forecast.axes) if view is not None and len(forecast.axes) == 3 else ""
    times = "" if "time" in (units or {}) else f"times in {OWN_UNITS}"
    return ", ".join(part for part in (name, shown, times) if part)


def lead_time(forecast: Trajectory, step: int, units: Mapping[str, str] | None) -> str:
    """`lead time 0.2 s`; times without a unit are the simulation's own."""
    return f"lead time {step * forecast.dt:.4g} {(units or {}).get('time', '')}".rstrip()


# --- how it is drawn -----------------------------------------------------------------------------------------------


def panels_figure(
    rows: list[Row],
    forecast: Trajectory,
    steps: Sequence[int],
    view: View = MIDDLE,
    units: Mapping[str, str] | None = None,
) -> Any:
    """Rows truth, forecast and error of each field, one column a lead time."""
    lines = rows[0].is_lines
    # Lines of truth and forecast share a panel.
    kinds = [["forecast"]] if len(rows[0].panels) == 1 else [["truth"], ["forecast"], ["error"]]
    if lines and len(kinds) == 3:
        kinds = [["truth", "forecast"], ["error"]]
    height = 1.8 if lines else panel_height(rows[0], 0.8 * WIDTH / max(len(steps), 2))
    figure = new_figure(0.8 + len(kinds) * len(rows) * height)
    shared: dict[str, Any] = {"sharex": True, "sharey": "row"} if lines else {}
    grid = figure.subplots(len(kinds) * len(rows), len(steps), squeeze=False, **shared)
    for n, row in enumerate(rows):
        axes = grid[n * len(kinds) : (n + 1) * len(kinds)]
        for axes_of_kind, kind in zip(axes, kinds):
            _draw_steps(axes_of_kind, [panel for panel in row.panels if panel.title in kind], forecast, steps)
            label = f"{row.label} [{row.unit}]" if lines else row.label  # pictures have it at their colour bar
            axes_of_kind[0].set_ylabel(f"{label}\n{' and '.join(kind)}", fontsize=9 if lines else 11)
        if not lines:
            _colour_bars(figure, row, axes, height)
    for axes, step in zip(grid[0], steps):
        axes.set_title(f"{lead_time(forecast, step, units)}\n(step {step})", fontsize=11)
    if lines:
        grid[0, 0].legend(fontsize=9)
        for axes in grid[-1]:
            axes.set_xlabel(axis_label(forecast), fontsize=11)
    figure.suptitle(heading(forecast, view, units), fontsize=13)
    return figure


def volume_figure(
    forecast: Trajectory, truth: Trajectory | None, name: str, step: int, units: Mapping[str, str] | None = None
) -> Any:
    """Rows truth, forecast and error; columns: the middle slices across the three axes, and the maximum."""
    views = [*(View("slice", axis) for axis in forecast.axes), View("maximum", forecast.axes[-1])]
    forecast = forecast.frames(step - 1, step)
    truth = truth and truth.frames(step - 1, step)
    rows = [rows_of(forecast, truth, name, view, units)[0] for view in views]
    kinds = [panel.title for panel in rows[0].panels]
    for row in rows:  # what is seen from several sides has one scale
        for panel, others in zip(row.panels, zip(*(other.panels for other in rows))):
            low, high = min(other.limits[0] for other in others), max(other.limits[1] for other in others)
            signed = any(other.colours == SIGNED_MAP for other in others)
            panel.limits = (-max(-low, high), max(-low, high)) if signed else (low, high)
            panel.colours = SIGNED_MAP if signed else panel.colours
    height = max(panel_height(row, 0.78 * WIDTH / len(views)) for row in rows)
    figure = new_figure(0.9 + len(kinds) * height)
    grid = figure.subplots(len(kinds), len(views), squeeze=False)
    for axes_of_kind, kind, number in zip(grid, kinds, range(len(kinds))):
        for axes, row in zip(axes_of_kind, rows):
            draw_image(axes, row.panels[number], 1)
        axes_of_kind[0].set_ylabel(f"{rows[0].label}\n{kind}", fontsize=11)
    for axes, view in zip(grid[-1], views):
        across = [axis for axis in forecast.axes if axis != view.axis]
        axes.set_xlabel(f"{across[0]} right, {across[1]} up", fontsize=9)
    _colour_bars(figure, rows[0], grid, height)
    for axes, view in zip(grid[0], views):
        axes.set_title(view.title(forecast.axes).replace(" (", "\n("), fontsize=11)
    when = f"{lead_time(forecast, step, units)} (step {step})"
    figure.suptitle(f"{heading(forecast, None, units)}\n{when}".strip(), fontsize=13)
    return figure


def _colour_bars(figure: Any, row: Row, axes: np.ndarray, height: float) -> None:
    """One for truth and forecast, one for the error."""
    same_colours = axes[:2] if len(axes) == 3 else axes
    bar = figure.colorbar(same_colours[0, 0].images[0], ax=list(same_colours.flat), pad=0.015, aspect=30)
    bar.set_label(f"{row.label} [{row.unit}]" if height > 0.7 else "", fontsize=10)
    if len(axes) == 3:
        label = row.error_label if height > 1.3 else ""  # it would not fit beside a flat panel
        figure.colorbar(axes[2, 0].images[0], ax=list(axes[2]), pad=0.015, aspect=15, label=label)


def _draw_steps(axes: Sequence[Any], panels: list[Panel], forecast: Trajectory, steps: Sequence[int]) -> None:
    for a, step in zip(axes, steps):
        for panel in panels:
            if panel.values.ndim == 2:
                draw_line(a, panel, forecast, step)
            else:
                draw_image(a, panel, step)


def draw_image(axes: Any, panel: Panel, step: int) -> Any:
    colours = colour_map(panel.colours).with_extremes(bad=OBSTACLE_COLOUR)
    low, high = panel.limits
    axes.set(xticks=[], yticks=[])
    # The first axis runs to the right, the second one up.
    picture = panel.values[step - 1].T
    return axes.imshow(picture, origin="lower", cmap=colours, vmin=low, vmax=high, interpolation="nearest")


def axis_label(forecast: Trajectory) -> str:
    """Of one-dimensional data."""
    axis = forecast.axes[0]
    return axis if axis in forecast.coordinates else f"{axis} (cells)"


def draw_line(axes: Any, panel: Panel, forecast: Trajectory, step: int) -> Any:
    x = forecast.coordinates.get(forecast.axes[0], np.arange(forecast.grid[0]))
    colour = {"truth": TRUTH_COLOUR, "forecast": FORECAST_COLOUR, "error": ERROR_COLOUR}[panel.title]
    low, high = panel.limits
    axes.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
    axes.grid(color="#eeeeee")
    axes.spines[["top", "right"]].set_visible(False)
    return axes.plot(x, panel.values[step - 1], color=colour, label=panel.title, linewidth=1.8)[0]


def panel_height(row: Row, width: float) -> float:
    """Inches, for square cells."""
    n, m = row.panels[0].values.shape[1:]
    return min(max(width * m / n, 0.9), 5.0)


def new_figure(height: float, width: float = WIDTH) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need the extra `plot`: pip install 'walrus-hf[plot]'") from error
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def colour_map(name: str) -> Any:
    """matplotlib's map of that name, or one of the two diverging maps: equal steps of value look equally large."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    if name not in _HUES:
        return colormaps[name]
    low, high = (_half(hue) for hue in _HUES[name])
    return ListedColormap(np.concatenate([low[::-1], high[1:]]), name=name)


def _half(hue: float) -> np.ndarray:
    """(128, 3) sRGB from white to the end of a diverging map, at equal distances in OKLab (Ottosson 2020)."""
    way = np.linspace(0, 2, 1000)
    lightness, chroma = (np.interp(way, range(3), column) for column in zip(*_WHITE_MIDDLE_END))
    angle = np.deg2rad(hue)
    lab = np.stack([lightness, chroma * np.cos(angle), chroma * np.sin(angle)], axis=-1)
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(lab, axis=0), axis=-1))])
    even = np.linspace(0, length[-1], 128)
    lab = np.stack([np.interp(even, length, column) for column in lab.T], axis=-1)
    cones = lab @ np.array([[1, 1, 1], [0.3963377774, -0.1055613458, -0.0894841775],
                            [0.2158037573, -0.0638541728, -1.2914855480]])  # fmt: skip
    linear = cones**3 @ np.array([[4.0767416621, -1.2684380046, -0.0041960863],
                                  [-3.3077115913, 2.6097574011, -0.7034186147],
                                  [0.2309699292, -0.3413193965, 1.7076147010]])  # fmt: skip
    linear = linear.clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
