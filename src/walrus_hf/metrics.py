"""How far a forecast is from the truth: VRMSE and NRMSE as The Well computes them, persistence, power spectra."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from .fields import Trajectory

EPS = 1e-7  # The Well's; its VRMSE takes another eps and ignores it, so published numbers use this one


def vrmse(prediction: np.ndarray, truth: np.ndarray, spatial_axes: Sequence[int]) -> np.ndarray:
    """Root mean square error over the standard deviation of the truth: 1 is as good as forecasting the spatial mean.

    `sqrt(mean((prediction - truth)**2) / (variance(truth) + 1e-7))` over `spatial_axes`, with the unbiased variance
    (`n - 1`), frame by frame, in float64; `the_well.benchmark.metrics.VRMSE`. Where the truth is constant in space the
    variance is zero and the value is about 3000 times the error in its own units: not a relative error any more.

    Args:
        prediction, truth: arrays of one shape, in the same units.
        spatial_axes: the axes that are averaged over.

    Returns:
        The shape of the arrays without `spatial_axes`. NaN or infinite where the prediction is.

    Raises:
        ValueError: different shapes, or fewer than two cells.
    """
    prediction, truth, axes = _check(prediction, truth, spatial_axes)
    if np.prod([truth.shape[axis] for axis in axes]) < 2:
        raise ValueError(f"expected at least two cells along axes {axes}, found shape {truth.shape}: no variance")
    return np.sqrt(_mean_square(prediction - truth, axes) / (truth.var(axis=axes, ddof=1) + EPS))


def nrmse(prediction: np.ndarray, truth: np.ndarray, spatial_axes: Sequence[int]) -> np.ndarray:
    """Root mean square error over the root mean square of the truth; `the_well.benchmark.metrics.NRMSE`.

    `sqrt(mean((prediction - truth)**2) / (mean(truth**2) + 1e-7))`; arguments, result and errors as `vrmse`.
    """
    prediction, truth, axes = _check(prediction, truth, spatial_axes)
    return np.sqrt(_mean_square(prediction - truth, axes) / (_mean_square(truth, axes) + EPS))


def score(forecast: Trajectory, truth: Trajectory) -> dict[str, np.ndarray]:
    """VRMSE of each field at each lead time.

    Vectors and tensors are scored component by component, then averaged over the components, as in The Well. Cells
    inside `truth.obstacle_mask` are left out. Fields in units so large that eps hides their variance are warned about.

    Args:
        forecast, truth: the same fields, frames and grid.

    Returns:
        field -> `(frames,)`, float64.

    Raises:
        ValueError: fields, frames or grids differ.
    """
    if set(forecast.fields) != set(truth.fields):
        raise ValueError(
            f"expected a forecast of the fields {', '.join(sorted(truth.fields))}, "
            f"found {', '.join(sorted(forecast.fields))}"
        )
    if forecast.num_frames != truth.num_frames:
        raise ValueError(
            f"expected as many frames of the forecast as of the truth, found {forecast.num_frames} and "
            f"{truth.num_frames}; cut one of them with .frames(start, stop)"
        )
    scores = {}
    for name, values in truth.fields.items():
        predicted = forecast.fields[name]
        if predicted.shape != values.shape:
            raise ValueError(f"field {name!r}: expected the truth's shape {values.shape}, found {predicted.shape}")
        cells = _flat(values, truth)
        scores[name] = vrmse(_flat(predicted, truth), cells, spatial_axes=[1]).mean(axis=-1)
        if is_hidden(np.var(cells, axis=1, dtype=np.float64).max()):
            warnings.warn(hidden_line(name), stacklevel=2)
    return scores


def is_hidden(variance: float) -> bool:
    """Whether a variance of a truth in space is there, but so small that eps changes VRMSE by 5% or more."""
    return 0 < variance < 10 * EPS


def hidden_line(field: str) -> str:
    """What to know of such a field."""
    return (
        f"field {field!r} varies in space by less than {(10 * EPS) ** 0.5:.0e} of its units: the eps of VRMSE is not "
        "small beside that, so every forecast of it scores too well; score it in smaller units"
    )


def persistence(context: Trajectory, steps: int) -> Trajectory:
    """The forecast that nothing changes: the last frame of `context`, `steps` times. A model must beat it.

    The frames are read-only views of that one frame: they take no memory.
    """
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, found {steps}")
    return dataclasses.replace(
        context,
        fields={
            name: np.broadcast_to(values[-1], (steps, *values.shape[1:])) for name, values in context.fields.items()
        },
        ensemble=None,
        time=context.time + context.num_frames * context.dt,
    )


def every_frame(trajectory: Trajectory, stride: int) -> Trajectory:
    """The first frame and those that follow it at a distance of `stride`."""
    if stride == 1:
        return trajectory
    fields = {name: values[::stride] for name, values in trajectory.fields.items()}
    return dataclasses.replace(trajectory, fields=fields, ensemble=None, dt=stride * trajectory.dt)


def matching_frames(truth: Trajectory, forecast: Trajectory) -> Trajectory:
    """The frames of `truth` at the times of `forecast`, which may be several frames of the truth apart."""
    steps, stride = forecast.num_frames, max(round(forecast.dt / truth.dt), 1)
    start = round((forecast.time - truth.time) / truth.dt)
    end = start + (steps - 1) * stride
    ends = truth.time + truth.dt * np.array([start, end])
    apart = np.abs(ends - forecast.time - forecast.dt * np.array([0, steps - 1])).max()
    if apart > 1e-2 * abs(truth.dt) or start < 0 or end >= truth.num_frames:
        last = truth.time + (truth.num_frames - 1) * truth.dt
        raise ValueError(
            f"expected a truth with the forecast's {steps} frames from time {forecast.time:g} on, every "
            f"{forecast.dt:g}; found frames from {truth.time:g} to {last:g}, every {truth.dt:g}"
        )
    return every_frame(truth.frames(start, end + 1), stride)


def lead_time_windows(
    scores: Mapping[str, np.ndarray], windows: Iterable[tuple[int, int]]
) -> dict[str, dict[str, float]]:
    """Means of `score` over windows of lead time.

    Args:
        scores: field -> `(steps,)`.
        windows: first and last step of each, both included and counted from 1: `(1, 20)` are the first twenty.

    Returns:
        field -> `"1:20"` -> mean.

    Raises:
        ValueError: a window that is empty or reaches beyond the steps.
    """
    windows = list(windows)
    for first, last in windows:
        for name, values in scores.items():
            if not 1 <= first <= last <= len(values):
                raise ValueError(
                    f"window {first}:{last} of field {name!r}: expected steps from 1 to {len(values)}, in order"
                )
    return {
        name: {f"{first}:{last}": float(np.mean(values[first - 1 : last])) for first, last in windows}
        for name, values in scores.items()
    }


def power_spectrum(values: np.ndarray, spatial_axes: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Power by wavenumber, summed over rings (shells in 3D) of one wavenumber each.

    For uniform grids of square cells. The sum over all wavenumbers is the mean square of the values (Parseval); the
    highest ones, beyond half the cells of the longest axis, lie in the corners and are not complete rings.

    Args:
        values: real array with the grid along `spatial_axes`.
        spatial_axes: `None`: all axes.

    Returns:
        wavenumber `(bins,)`: waves along the longest axis, from 0 (the mean); power `(..., bins)`: the other axes
        first, in units of the values squared.
    """
    values = np.asarray(values, dtype=np.float64)
    axes = _axes(values, range(values.ndim) if spatial_axes is None else spatial_axes)
    values = np.moveaxis(values, axes, range(-len(axes), 0))
    grid, longest = values.shape[-len(axes) :], max(values.shape[-len(axes) :])
    frequencies = np.meshgrid(*(np.fft.fftfreq(n) * longest for n in grid), indexing="ij")
    rings = np.rint(np.sqrt(sum(f**2 for f in frequencies))).astype(int).ravel()
    modes = np.fft.fftn(values, axes=range(-len(axes), 0)) / np.prod(grid)
    power = (np.abs(modes) ** 2).reshape(-1, rings.size)
    binned = np.stack([np.bincount(rings, weights=row) for row in power])
    return np.arange(binned.shape[1]), binned.reshape(*values.shape[: -len(axes)], -1)


def _flat(values: np.ndarray, truth: Trajectory) -> np.ndarray:
    """(frames, cells, components) without the cells inside obstacles."""
    values = values.reshape(*values.shape[: 1 + len(truth.grid)], -1)
    free = np.ones(truth.grid, dtype=bool) if truth.obstacle_mask is None else ~truth.obstacle_mask
    return values[:, free]


def _mean_square(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return np.mean(values**2, axis=axes)


def _check(
    prediction: np.ndarray, truth: np.ndarray, spatial_axes: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    prediction, truth = np.asarray(prediction, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if prediction.shape != truth.shape:
        raise ValueError(f"expected a prediction of the truth's shape {truth.shape}, found {prediction.shape}")
    return prediction, truth, _axes(truth, spatial_axes)


def _axes(values: np.ndarray, axes: Iterable[int]) -> tuple[int, ...]:
    axes = tuple(axes)
    if not axes or not all(-values.ndim <= axis < values.ndim for axis in axes):
        raise ValueError(f"spatial_axes: expected some of the {values.ndim} axes of shape {values.shape}, found {axes}")
    return axes
