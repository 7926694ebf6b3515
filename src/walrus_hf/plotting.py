"""Pictures of forecasts: films, panels of a few lead times, volumes, error curves, spectra, training (extra `plot`).

Figures are drawn on an Agg canvas of their own, so nothing of a user's pyplot session is touched. What is shown stands
in panels.py, films.py and curves.py; files are written here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .curves import curves_by_field, error_figure, spectra_figure, training_curves, training_figure
from .fields import Trajectory, fill_obstacles
from .films import film, palette_of, write_gif, write_mp4
from .metrics import power_spectrum
from .panels import DPI, OWN_UNITS, View, lead_time, panels_figure, rows_of, volume_figure
from .safe_files import whole_file


def animate(
    forecast: Trajectory,
    truth: Trajectory | None = None,
    path: str | os.PathLike[str] = "forecast.gif",
    field: str | None = None,
    fps: float = 8,
    view: str = "slice",
    along: str | None = None,
    units: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Film of a forecast beside the truth, one row a field, columns truth, forecast and error.

    Vectors and tensors are shown by their magnitude, and their error as the magnitude of the difference. Colour limits
    are those of the truth over all frames, centred on zero where both signs matter. One-dimensional data are drawn as
    lines, their vectors with their sign.

    Args:
        forecast: the frames to show; the first has the lead time `dt`.
        truth: the same frames as they really were, where it begins at another time with a warning; without it the
            forecast is shown alone.
        path: file to write, `.gif` or `.mp4`.
        field: the one field to show; `None`: the first three.
        fps: frames a second.
        view: of volumes: `"slice"`, the middle slice, or `"maximum"`, the largest value along an axis (of signed
            fields and errors the one farthest from zero).
        along: the axis that is cut or looked along; `None`: the last one.
        units: field -> unit, and `"time"` -> unit of `dt`, for the labels; what is not named is in the simulation's.
        overwrite: replace an existing file.

    Returns:
        The path.

    Raises:
        ImportError: the extra `plot` is not installed.
        FileExistsError: the file exists and `overwrite` is false.
        ValueError: unknown suffix, field, view or axis, or a truth that does not fit.
    """
    path = _check_path(path, (".gif", ".mp4"), overwrite)
    if not fps > 0:
        raise ValueError(f"fps: expected a positive number of frames a second, found {fps}")
    seen = View(view, along)
    rows = rows_of(forecast, truth, field, seen, units)
    frames, draw = film(rows, forecast, seen, units)
    if path.suffix.lower() == ".gif":
        with whole_file(path, ".gif") as temporary:
            write_gif(temporary, frames, draw, fps, palette_of(rows))
    else:
        with whole_file(path, ".mp4") as temporary:
            write_mp4(temporary, frames, draw, fps)
    return path


def plot_panels(
    forecast: Trajectory,
    truth: Trajectory | None = None,
    path: str | os.PathLike[str] = "forecast.png",
    steps: Sequence[int] | None = None,
    field: str | None = None,
    view: str = "slice",
    along: str | None = None,
    units: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Path:
    """PNG of a few lead times side by side: rows truth, forecast and error for each field. Arguments as `animate`.

    Args:
        steps: which frames, counted from 1; `None`: four spread over the forecast.
    """
    path = _check_path(path, (".png",), overwrite)
    seen = View(view, along)
    rows = rows_of(forecast, truth, field, seen, units)
    return _write_png(path, panels_figure(rows, forecast, _check_steps(forecast, steps, 4), seen, units))


def plot_volume(
    forecast: Trajectory,
    truth: Trajectory | None = None,
    path: str | os.PathLike[str] = "volume.png",
    step: int = 1,
    field: str | None = None,
    units: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Path:
    """PNG of one field of a volume at one lead time: middle slices across the three axes, and the maximum along the
    last; rows truth, forecast and error. Arguments as `animate`; `field=None` shows the first.

    Raises:
        ValueError: also for data that are not three-dimensional.
    """
    path = _check_path(path, (".png",), overwrite)
    if len(forecast.axes) != 3:
        raise ValueError(f"expected three axes, found {', '.join(forecast.axes)}; plot_panels shows planes and lines")
    (step,) = _check_steps(forecast, [step], 1)
    name = next(iter(forecast.fields)) if field is None else field
    return _write_png(path, volume_figure(forecast, truth, name, step, units))


def plot_error_growth(
    curves: Mapping[str, np.ndarray] | Mapping[str, Mapping[str, np.ndarray]],
    path: str | os.PathLike[str] = "error_growth.png",
    metric: str = "VRMSE",
    dt: float | None = None,
    unit: str = OWN_UNITS,
    overwrite: bool = False,
) -> Path:
    """PNG of error against lead time, one line a forecast; the one called "persistence" is drawn grey and dashed.

    Args:
        curves: label -> `(steps,)`, or label -> field -> `(steps,)` as `walrus_hf.metrics.score` gives it: one panel a
            field then. `(3, steps)` are value, low and high end of an interval, which is drawn as a band.
        path: `.png` file to write.
        metric: name of the error, for the axis.
        dt: time between steps, and its `unit`, for the axis.
        overwrite: replace an existing file.

    Raises:
        ImportError, FileExistsError, ValueError: as `animate`; no curves, or forecasts of different fields.
    """
    path = _check_path(path, (".png",), overwrite)
    return _write_png(path, error_figure(curves_by_field(curves), metric, dt, unit))


def plot_spectra(
    forecast: Trajectory,
    truth: Trajectory | None = None,
    path: str | os.PathLike[str] = "spectra.png",
    steps: Sequence[int] | None = None,
    field: str | None = None,
    units: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Path:
    """PNG of the power of a field by wavenumber, truth and forecast, one panel a lead time. Arguments as `animate`.

    Vectors and tensors: the sum over their components. Only whole rings of wavenumbers are shown, up to half the cells
    of the longest axis; for uniform grids of square cells.

    Args:
        steps: which frames, counted from 1; `None`: three spread over the forecast.
        field: `None`: the first.
    """
    path = _check_path(path, (".png",), overwrite)
    name = next(iter(forecast.fields)) if field is None else field
    (row,) = rows_of(forecast, truth, name, units=units)
    given = {"forecast": forecast} if truth is None else {"truth": truth, "forecast": forecast}
    masks = [trajectory.obstacle_mask for trajectory in given.values()]
    obstacles = next((mask for mask in masks if mask is not None), None)
    shown = {}
    for step in _check_steps(forecast, steps, 3):
        powers = {who: _power(trajectory, name, step, obstacles) for who, trajectory in given.items()}
        wavenumbers = powers["forecast"][0]
        title = f"{lead_time(forecast, step, units)} (step {step})"
        shown[title] = (wavenumbers, {who: power for who, (_, power) in powers.items()})
    return _write_png(path, spectra_figure(shown, max(forecast.grid) / 2, f"power of {name} [({row.unit})²]"))


def plot_training(
    rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str] = "training.png", overwrite: bool = False
) -> Path:
    """PNG of how a training went: losses by scenario and field, validation beside persistence, rate and gradient norm.

    Args:
        rows: of a `metrics.jsonl`, as `walrus_hf.training.records.read_metrics(folder)` reads them; of more than 400
            rows the means of bins are drawn.

    Raises:
        ImportError, FileExistsError, ValueError: as `animate`; no rows, or rows without step and loss.
    """
    path = _check_path(path, (".png",), overwrite)
    return _write_png(path, training_figure(training_curves(rows)))


def _power(trajectory: Trajectory, name: str, step: int, obstacles: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Wavenumbers and power, summed over components: both (bins,). What stands inside obstacles does not count."""
    frame = trajectory.fields[name][step - 1].reshape(*trajectory.grid, -1)  # (*grid, components)
    frame = fill_obstacles(frame, obstacles, components=1)
    wavenumbers, power = power_spectrum(np.moveaxis(frame, -1, 0), spatial_axes=range(1, frame.ndim))
    return wavenumbers, power.sum(axis=0)


def _check_steps(forecast: Trajectory, steps: Sequence[int] | None, count: int) -> list[int]:
    if steps is None:
        return sorted({round(step) for step in np.linspace(1, forecast.num_frames, count)})
    if not len(steps) or not all(step in range(1, forecast.num_frames + 1) for step in steps):
        raise ValueError(f"steps: expected some of 1 to {forecast.num_frames}, found {list(steps)}")
    return [int(step) for step in steps]


def _check_path(path: str | os.PathLike[str], suffixes: tuple[str, ...], overwrite: bool) -> Path:
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"expected a file name that ends in {' or '.join(suffixes)}, found {str(path)!r}")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; pass overwrite=True to replace it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is no folder; create it first")
    return path


def _write_png(path: Path, figure: Any) -> Path:
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=DPI, format="png")
    return path
