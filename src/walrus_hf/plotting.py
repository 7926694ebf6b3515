"""Pictures of forecasts: films, panels of a few lead times, error curves (extra `plot`).

matplotlib and imageio are imported only here, and only where they are used. Figures are drawn on an Agg canvas of their
own, so nothing of a user's pyplot session is touched.
"""

from __future__ import annotations

import dataclasses
import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .fields import Trajectory

WIDTH, DPI = 9.6, 100  # inches and pixels an inch: pictures are 960 pixels wide
MAX_ROWS = 3
GREYS, LEVELS = 32, 32  # colours of a GIF, 256 at most: greys from black to white, and those of each colour map
POSITIVE_MAP, SIGNED_MAP, ERROR_MAP, ERROR_SIZE_MAP = "viridis", "RdBu_r", "PuOr_r", "magma"
TRUTH_COLOUR, FORECAST_COLOUR, ERROR_COLOUR, PERSISTENCE_COLOUR = "#222222", "#d1495b", "#6a4c93", "#888888"
OBSTACLE_COLOUR = "#a0a0a0"


def animate(
    forecast: Trajectory,
    truth: Trajectory | None = None,
    path: str | os.PathLike[str] = "forecast.gif",
    field: str | None = None,
    fps: float = 8,
    overwrite: bool = False,
) -> Path:
    """Film of a forecast beside the truth, one row a field, columns truth, forecast and error.

    Vectors and tensors are shown by their magnitude, and their error as the magnitude of the difference. Colour limits
    are those of the truth over all frames. One-dimensional data are drawn as lines; of three-dimensional data the
    middle slice of the last axis is shown.

    Args:
        forecast: the frames to show; the first has the lead time `dt`.
        truth: the same frames as they really were; without it the forecast is shown alone.
        path: file to write, `.gif` or `.mp4`.
        field: the one field to show; `None`: the first three.
        fps: frames a second.
        overwrite: replace an existing file.

    Returns:
        The path.

    Raises:
        ImportError: the extra `plot` is not installed.
        FileExistsError: the file exists and `overwrite` is false.
        ValueError: unknown suffix or field, or a truth that does not fit.
    """
    path = _check_path(path, (".gif", ".mp4"), overwrite)
    if not fps > 0:
        raise ValueError(f"fps: expected a positive number of frames a second, found {fps}")
    rows = _rows(forecast, truth, field)
    frames, draw = _film(rows, forecast)
    if path.suffix.lower() == ".gif":
        _write(path, lambda temporary: _write_gif(temporary, frames, draw, fps, _palette(rows)))
    else:
        _write(path, lambda temporary: _write_mp4(temporary, frames, draw, fps))
    return path


def plot_panels(
    forecast: Trajectory,
    truth: Trajectory | None = None,
    path: str | os.PathLike[str] = "forecast.png",
    steps: Sequence[int] | None = None,
    field: str | None = None,
    overwrite: bool = False,
) -> Path:
    """PNG of a few lead times side by side: rows truth, forecast and error for each field. Arguments as `animate`.

    Args:
        steps: which frames, counted from 1; `None`: four spread over the forecast.
    """
    path = _check_path(path, (".png",), overwrite)
    rows = _rows(forecast, truth, field)
    if steps is None:
        steps = sorted({round(step) for step in np.linspace(1, forecast.num_frames, 4)})
    if not steps or not all(1 <= step <= forecast.num_frames for step in steps):
        raise ValueError(f"steps: expected some of 1 to {forecast.num_frames}, found {list(steps)}")
    figure = _panels_figure(rows, forecast, steps)
    _write(path, lambda temporary: figure.savefig(temporary, dpi=DPI, format="png"))
    return path


def plot_error_growth(
    curves: Mapping[str, np.ndarray] | Mapping[str, Mapping[str, np.ndarray]],
    path: str | os.PathLike[str] = "error_growth.png",
    metric: str = "VRMSE",
    overwrite: bool = False,
) -> Path:
    """PNG of error against lead time, one line a forecast; the one called "persistence" is drawn grey and dashed.

    Args:
        curves: label -> `(steps,)`, or label -> field -> `(steps,)` as `walrus_hf.metrics.score` gives it: one panel a
            field then.
        path: `.png` file to write.
        metric: name of the error, for the axis.
        overwrite: replace an existing file.

    Raises:
        ImportError, FileExistsError, ValueError: as `animate`; no curves, or forecasts of different fields.
    """
    path = _check_path(path, (".png",), overwrite)
    figure = _error_figure(_curves_by_field(curves), metric)
    _write(path, lambda temporary: figure.savefig(temporary, dpi=DPI, format="png"))
    return path


@dataclasses.dataclass
class _Panel:
    """One picture: values (T, n) or (T, n, m), NaN inside obstacles, with limits that hold for all frames."""

    title: str
    values: np.ndarray
    limits: tuple[float, float]
    colours: str


@dataclasses.dataclass
class _Row:
    """One field: its panels are forecast, or truth, forecast and error."""

    label: str
    panels: list[_Panel]
    error_label: str


def _rows(forecast: Trajectory, truth: Trajectory | None, field: str | None) -> list[_Row]:
    if field is not None and field not in forecast.fields:
        raise ValueError(f"field: expected one of {', '.join(forecast.fields)}, found {field!r}")
    names = [field] if field is not None else list(forecast.fields)[:MAX_ROWS]
    for name in names:
        expected = forecast.fields[name].shape
        if truth is not None and (name not in truth.fields or truth.fields[name].shape != expected):
            found = truth.fields[name].shape if name in truth.fields else "no such field"
            raise ValueError(f"truth of field {name!r}: expected the forecast's shape {expected}, found {found}")
    return [_row(name, forecast, truth) for name in names]


def _row(name: str, forecast: Trajectory, truth: Trajectory | None) -> _Row:
    rank = forecast.rank(name)
    mask = forecast.obstacle_mask if truth is None or truth.obstacle_mask is None else truth.obstacle_mask
    predicted = _shown(forecast.fields[name], rank, mask)
    label = f"|{name}|" if rank else name
    if truth is None:
        limits, colours = _limits(predicted)
        return _Row(label, [_Panel("forecast", predicted, limits, colours)], "")
    real = _shown(truth.fields[name], rank, mask)
    limits, colours = _limits(real)
    # Of vectors the magnitude of the difference: a difference of magnitudes would hide errors of direction.
    error = _shown(np.subtract(forecast.fields[name], truth.fields[name], dtype=np.float64), rank, mask)
    worst = max(*np.abs(_range(error)), 1e-3 * (limits[1] - limits[0]))
    panels = [
        _Panel("truth", real, limits, colours),
        _Panel("forecast", predicted, limits, colours),
        _Panel("error", error, (0.0 if rank else -worst, worst), ERROR_SIZE_MAP if rank else ERROR_MAP),
    ]
    return _Row(label, panels, "|forecast \u2212 truth|" if rank else "forecast \u2212 truth")


def _shown(values: np.ndarray, rank: int, mask: np.ndarray | None) -> np.ndarray:
    """Magnitude, without obstacles, middle slice: (T, n) or (T, n, m)."""
    values = np.asarray(values, dtype=np.float64)
    if rank:
        values = np.sqrt(np.square(values).sum(axis=tuple(range(-rank, 0))))
    if mask is not None:
        values = np.where(mask, np.nan, values)
    return values[..., values.shape[-1] // 2] if values.ndim == 4 else values


def _limits(values: np.ndarray) -> tuple[tuple[float, float], str]:
    """Colour limits and map. Centred on zero where both signs matter: a tracer that dips to -0.01 is positive."""
    low, high = _range(values)
    if low < 0 < high and min(-low, high) > 0.1 * (high - low):
        return (-max(-low, high), max(-low, high)), SIGNED_MAP
    return (low, high), POSITIVE_MAP


def _range(values: np.ndarray) -> tuple[float, float]:
    """Lowest and highest finite value, a little apart even where all are equal."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    room = max(1e-6 * max(abs(low), abs(high)), 1e-12)
    return (low, high) if high - low > room else (low - room, high + room)


def _heading(forecast: Trajectory) -> str:
    name = textwrap.shorten((forecast.name or "").replace("_", " "), 60, placeholder=" ...")
    slice_shown = f"middle slice of {forecast.axes[2]}" if len(forecast.axes) == 3 else ""
    return ", ".join(part for part in (name, slice_shown) if part)


# --- how it is drawn -----------------------------------------------------------------------------------------------


def _film(rows: list[_Row], forecast: Trajectory) -> tuple[int, Callable[[int], np.ndarray]]:
    """Number of frames, and a function that draws one: (height, width, 3) uint8."""
    lines = rows[0].panels[0].values.ndim == 2
    figure, shown = (_line_film if lines else _image_film)(rows, forecast)
    heading = _heading(forecast)
    title = figure.suptitle(" \n " if heading else " ", fontsize=13)
    # All that stays is drawn once, the rest anew for each frame: three times as fast.
    figure.canvas.draw()
    figure.set_layout_engine("none")
    frames = [spine for artist, _ in shown for spine in artist.axes.spines.values()]  # pictures would cover them
    moving = [title, *(artist for artist, _ in shown), *frames]
    for artist in moving:
        artist.set_animated(True)
    figure.canvas.draw()
    background = figure.canvas.copy_from_bbox(figure.bbox)

    def draw(step: int) -> np.ndarray:
        for artist, panel in shown:
            values = panel.values[step - 1]
            artist.set_ydata(values) if lines else artist.set_data(values.T)
        when = f"lead time {step * forecast.dt:.4g}   (step {step} of {forecast.num_frames})"
        title.set_text(f"{heading}\n{when}" if heading else when)
        figure.canvas.restore_region(background)
        for artist in moving:
            figure.draw_artist(artist)
        picture = np.asarray(figure.canvas.buffer_rgba())[..., :3]
        return picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2].copy()  # films want even sizes

    return forecast.num_frames, draw


def _image_film(rows: list[_Row], forecast: Trajectory) -> tuple[Any, list[tuple[Any, _Panel]]]:
    """A row of truth, forecast and error for each field; forecasts alone stand side by side."""
    alone = len(rows[0].panels) == 1
    if alone:
        width = WIDTH if len(rows) > 1 else 0.6 * WIDTH
        figure = _new_figure(0.9 + _panel_height(rows[0], 0.8 * width / len(rows)), width)
        grid = figure.subplots(1, len(rows), squeeze=False).T
    else:
        figure = _new_figure(0.8 + len(rows) * _panel_height(rows[0], 0.24 * WIDTH))
        grid = figure.subplots(len(rows), 3, squeeze=False)
    shown: list[tuple[Any, _Panel]] = []
    for axes, row in zip(grid, rows):
        images = [_draw_image(a, panel, 1) for a, panel in zip(axes, row.panels)]
        shown += list(zip(images, row.panels))
        if alone:
            axes[0].set_title(row.label, fontsize=12)
            figure.colorbar(images[0], ax=axes[0], pad=0.03, aspect=25)
            continue
        axes[0].set_ylabel(row.label, fontsize=12)
        figure.colorbar(images[1], ax=list(axes[:2]), pad=0.015, aspect=25)
        figure.colorbar(images[2], ax=axes[2], pad=0.03, aspect=25, label=row.error_label)
    if not alone:
        for a, title in zip(grid[0], ("truth", "forecast", "error")):
            a.set_title(title, fontsize=12)
    return figure, shown


def _line_film(rows: list[_Row], forecast: Trajectory) -> tuple[Any, list[tuple[Any, _Panel]]]:
    """Truth and forecast in one panel, the error in a second one."""
    columns = 2 if len(rows[0].panels) == 3 else 1
    figure = _new_figure(0.9 + 2.4 * len(rows))
    grid = figure.subplots(len(rows), columns, squeeze=False, sharex=True)
    shown: list[tuple[Any, _Panel]] = []
    for axes_of_row, row in zip(grid, rows):
        for panel in row.panels:
            axes = axes_of_row[1 if panel.title == "error" else 0]
            shown.append((_draw_line(axes, panel, forecast, 1), panel))
        axes_of_row[0].set_ylabel(row.label, fontsize=12)
        if columns == 2:
            axes_of_row[1].set_ylabel(row.error_label, fontsize=11)
    grid[0, 0].legend(loc="upper right", fontsize=10)
    for axes in grid[-1]:
        axes.set_xlabel(forecast.axes[0], fontsize=11)
    return figure, shown


def _panels_figure(rows: list[_Row], forecast: Trajectory, steps: Sequence[int]) -> Any:
    lines = rows[0].panels[0].values.ndim == 2
    # Lines of truth and forecast share a panel.
    kinds = [["forecast"]] if len(rows[0].panels) == 1 else [["truth"], ["forecast"], ["error"]]
    if lines and len(kinds) == 3:
        kinds = [["truth", "forecast"], ["error"]]
    height = 1.8 if lines else _panel_height(rows[0], 0.8 * WIDTH / max(len(steps), 2))
    figure = _new_figure(0.8 + len(kinds) * len(rows) * height)
    shared: dict[str, Any] = {"sharex": True, "sharey": "row"} if lines else {}
    grid = figure.subplots(len(kinds) * len(rows), len(steps), squeeze=False, **shared)
    for n, row in enumerate(rows):
        axes = grid[n * len(kinds) : (n + 1) * len(kinds)]
        for axes_of_kind, kind in zip(axes, kinds):
            _draw_steps(axes_of_kind, [panel for panel in row.panels if panel.title in kind], forecast, steps)
            axes_of_kind[0].set_ylabel(f"{row.label}\n{' and '.join(kind)}", fontsize=11)
        if not lines:
            same_colours = axes[:2] if len(kinds) == 3 else axes
            figure.colorbar(same_colours[0, 0].images[0], ax=list(same_colours.flat), pad=0.015, aspect=30)
        if not lines and len(kinds) == 3:
            label = row.error_label if height > 1.3 else ""  # it would not fit beside a flat panel
            figure.colorbar(axes[2, 0].images[0], ax=list(axes[2]), pad=0.015, aspect=15, label=label)
    for axes, step in zip(grid[0], steps):
        axes.set_title(f"lead time {step * forecast.dt:.4g}\n(step {step})", fontsize=11)
    if lines:
        grid[0, 0].legend(fontsize=9)
        for axes in grid[-1]:
            axes.set_xlabel(forecast.axes[0], fontsize=11)
    if _heading(forecast):
        figure.suptitle(_heading(forecast), fontsize=13)
    return figure


def _draw_steps(axes: Sequence[Any], panels: list[_Panel], forecast: Trajectory, steps: Sequence[int]) -> None:
    for a, step in zip(axes, steps):
        for panel in panels:
            if panel.values.ndim == 2:
                _draw_line(a, panel, forecast, step)
            else:
                _draw_image(a, panel, step)


def _curves_by_field(curves: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """field -> label -> (steps,); the field is "" where curves are not by field."""
    if not curves:
        raise ValueError("curves: expected at least one, found none")
    by_label = {label: curve if isinstance(curve, Mapping) else {"": curve} for label, curve in curves.items()}
    fields = list(next(iter(by_label.values())))
    for label, of_field in by_label.items():
        if set(of_field) != set(fields):
            raise ValueError(f"curve {label!r}: expected the fields {fields}, found {list(of_field)}")
        for name, values in of_field.items():
            if np.ndim(values) != 1 or not len(values):
                raise ValueError(f"curve {label!r} {name}: expected an array (steps,), found shape {np.shape(values)}")
    return {name: {label: np.asarray(of_field[name]) for label, of_field in by_label.items()} for name in fields}


def _error_figure(by_field: dict[str, dict[str, np.ndarray]], metric: str) -> Any:
    columns = min(len(by_field), 3)
    rows = -(-len(by_field) // columns)
    figure = _new_figure(0.6 + 3.4 * rows + (1.0 if columns == 1 else 0.0))
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, (name, curves) in zip(grid.flat, by_field.items()):
        _draw_curves(axes, name, curves, metric)
    for axes in grid.flat[len(by_field) :]:
        axes.axis("off")
    for axes in grid[:, 0]:
        axes.set_ylabel(metric, fontsize=11)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 5), frameon=False, fontsize=11)
    return figure


def _draw_curves(axes: Any, name: str, curves: dict[str, np.ndarray], metric: str) -> None:
    for label, values in curves.items():
        style = {"color": PERSISTENCE_COLOUR, "linestyle": "--"} if label == "persistence" else {}
        axes.plot(np.arange(1, len(values) + 1), values, label=label, linewidth=2, **style)
    highest = max(_range(values)[1] for values in curves.values())
    if highest > 10:  # a forecast that blew up would flatten the others
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, 1.08 * highest)
    if metric == "VRMSE" and highest > 0.95:  # else the line is not in the picture
        axes.axhline(1, color="#888888", linewidth=1, linestyle=":")
        axes.annotate("spatial mean", (1, 1), xycoords=("axes fraction", "data"), xytext=(-4, 3), color="#888888",
                      textcoords="offset points", ha="right", fontsize=9)  # fmt: skip
    axes.set_title(name, fontsize=12)
    axes.set_xlabel("lead time (steps)", fontsize=11)
    axes.grid(color="#eeeeee")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_image(axes: Any, panel: _Panel, step: int) -> Any:
    from matplotlib import colormaps

    colours = colormaps[panel.colours].with_extremes(bad=OBSTACLE_COLOUR)
    low, high = panel.limits
    axes.set(xticks=[], yticks=[])
    # The first axis runs to the right, the second one up.
    picture = panel.values[step - 1].T
    return axes.imshow(picture, origin="lower", cmap=colours, vmin=low, vmax=high, interpolation="nearest")


def _draw_line(axes: Any, panel: _Panel, forecast: Trajectory, step: int) -> Any:
    x = forecast.coordinates.get(forecast.axes[0], np.arange(forecast.grid[0]))
    colour = {"truth": TRUTH_COLOUR, "forecast": FORECAST_COLOUR, "error": ERROR_COLOUR}[panel.title]
    low, high = panel.limits
    axes.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
    axes.grid(color="#eeeeee")
    axes.spines[["top", "right"]].set_visible(False)
    return axes.plot(x, panel.values[step - 1], color=colour, label=panel.title, linewidth=1.8)[0]


def _panel_height(row: _Row, width: float) -> float:
    """Inches, for square cells."""
    n, m = row.panels[0].values.shape[1:]
    return min(max(width * m / n, 0.9), 5.0)


def _new_figure(height: float, width: float = WIDTH) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need the extra `plot`: pip install 'walrus-hf[plot]'") from error
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


# --- files ---------------------------------------------------------------------------------------------------------


def _write_gif(path: Path, frames: int, draw: Callable[[int], np.ndarray], fps: float, palette: list[int]) -> None:
    """One palette for the whole film and no dithering: no flicker, and unchanged cells cost nothing."""
    from PIL import Image

    colours = Image.new("P", (1, 1))
    colours.putpalette(palette)

    def picture(step: int) -> Any:
        pixels = draw(step)
        reduced = Image.fromarray(pixels).quantize(palette=colours, dither=Image.Dither.NONE)
        reduced.paste(GREYS - 1, mask=Image.fromarray(pixels.min(axis=-1) == 255))  # Pillow makes white a light grey
        return reduced

    rest = (picture(step) for step in range(2, frames + 1))
    picture(1).save(path, format="GIF", save_all=True, append_images=rest, duration=round(1000 / fps), loop=0)


def _palette(rows: list[_Row]) -> list[int]:
    """At most 256 colours, as numbers of red, green and blue: those of the colour maps or lines, and greys."""
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    lines = rows[0].panels[0].values.ndim == 2
    if lines:
        ends = (TRUTH_COLOUR, FORECAST_COLOUR, ERROR_COLOUR)
        maps: list[Any] = [LinearSegmentedColormap.from_list("line", ["white", end]) for end in ends]
    else:
        maps = [colormaps[name] for name in sorted({panel.colours for row in rows for panel in row.panels})]
    greys = np.repeat(np.linspace(0, 255, GREYS), 3)
    ramps = [255 * colours(np.linspace(0, 1, LEVELS))[:, :3].ravel() for colours in maps]
    return [round(float(level)) for level in np.concatenate([greys, *ramps])]


def _write_mp4(path: Path, frames: int, draw: Callable[[int], np.ndarray], fps: float) -> None:
    try:
        import imageio.v2 as imageio
        import imageio_ffmpeg  # noqa: F401  (imageio finds it by itself)
    except ImportError as error:
        raise ImportError("MP4 files need the extra `plot`: pip install 'walrus-hf[plot]'") from error
    writer: Any = imageio.get_writer(path, format="FFMPEG", fps=fps, macro_block_size=2, quality=8)
    with writer:
        for step in range(1, frames + 1):
            writer.append_data(draw(step))


def _check_path(path: str | os.PathLike[str], suffixes: tuple[str, ...], overwrite: bool) -> Path:
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"expected a file name that ends in {' or '.join(suffixes)}, found {str(path)!r}")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; pass overwrite=True to replace it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is no folder; create it first")
    return path


def _write(path: Path, write: Callable[[Path], None]) -> None:
    """Under a temporary name, then moved: a failure leaves neither half a file nor the loss of an old one."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix.lower()}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
