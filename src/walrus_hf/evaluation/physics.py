"""What pointwise errors do not show: power by scale, conserved totals, divergence, and how long a forecast correlates.

All functions take one frame of a field, `(*grid, *components)`, and give numbers; the evaluation takes medians.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..fields import BoundaryCondition, Trajectory

# Lead time up to which forecast and truth are called correlated.
CORRELATED = 0.8
# Vector fields whose divergence means something: incompressible flow, and no magnetic monopoles.
DIVERGENCE_FIELDS = ("velocity", "magnetic_field")


def octave_edges(grid: Sequence[int]) -> np.ndarray:
    """Edges of octaves of wavenumber, `0, 1, 2, 4, ...` waves along the longest axis, beyond the highest there is.

    The first band is the mean alone.
    """
    highest = np.sqrt(sum((max(grid) * (n // 2) / n) ** 2 for n in grid if n > 1))
    return np.array([0, *2.0 ** np.arange(np.ceil(np.log2(np.floor(highest) + 1)) + 1)])


def band_power(values: np.ndarray, dims: int, edges: np.ndarray) -> np.ndarray:
    """Mean square of a field by band of wavenumber, summed over components: (bands,).

    Of all bands together it is the mean square of the values (Parseval). Grids of square cells; without a period the
    jump between two ends shows as power at high wavenumbers, in truth and forecast alike.

    Args:
        values: `(*grid, *components)`.
        dims: axes of the grid.
        edges: in waves along the longest axis; band i has `edges[i] <= k < edges[i + 1]`.
    """
    grid = values.shape[:dims]
    flat = np.asarray(values, dtype=np.float64).reshape(*grid, -1)
    # The half spectrum of real values; modes whose mirror image is left out count twice.
    modes = np.fft.rfftn(flat, axes=tuple(range(dims))) / np.prod(grid)
    frequencies = [np.fft.fftfreq(n) * max(grid) for n in grid[:-1]] + [np.fft.rfftfreq(grid[-1]) * max(grid)]
    wavenumber = np.sqrt(sum(f**2 for f in np.meshgrid(*frequencies, indexing="ij")))
    twice = np.full(modes.shape[dims - 1], 2.0)
    twice[0] = 1.0
    if grid[-1] % 2 == 0:
        twice[-1] = 1.0
    power = (np.abs(modes) ** 2).sum(axis=-1) * twice
    # Wavenumbers that are whole numbers must not fall out of their band by rounding.
    band = np.searchsorted(edges, wavenumber.ravel() + 1e-9, side="right") - 1
    inside = band < len(edges) - 1
    return np.bincount(band[inside], weights=power.ravel()[inside], minlength=len(edges) - 1)


def total_change(values: np.ndarray, before: np.ndarray, free: np.ndarray) -> float:
    """Change of the mean over the cells, over the RMS of the field before; of vectors the length of the change.

    For a conserved quantity on a uniform grid it stays zero.

    Args:
        values, before: `(*grid, *components)`, a frame and the last one before the forecast.
        free: bool `(*grid)`, the cells to count.
    """
    cells, earlier = (np.asarray(x, dtype=np.float64)[free] for x in (values, before))
    cells, earlier = cells.reshape(len(cells), -1), earlier.reshape(len(earlier), -1)
    scale = np.sqrt((earlier**2).sum(axis=1).mean())
    change = cells.mean(axis=0) - earlier.mean(axis=0)
    size = float(change[0]) if len(change) == 1 else float(np.linalg.norm(change))
    return size / float(scale) if scale > 0 else float("nan")


def spacings(trajectory: Trajectory) -> list[float]:
    """Cell size along each axis; 1 where the trajectory has no coordinates."""
    sizes = []
    for axis, n in zip(trajectory.axes, trajectory.grid):
        positions = trajectory.coordinates.get(axis)
        sizes.append(1.0 if positions is None or n < 2 else float(positions[-1] - positions[0]) / (n - 1))
    return sizes


def relative_divergence(
    vector: np.ndarray, spacing: Sequence[float], boundary_conditions: Sequence[tuple[int, int]]
) -> float:
    """RMS of the divergence over the RMS of the gradient: 0 for a solenoidal field, 1 / sqrt(d) for noise.

    Central differences of second order, one-sided at sides that are not periodic. Their own error is in it: compare
    with the same number of the truth.

    Args:
        vector: `(*grid, d)`, one component an axis.
        spacing: cell size along each axis.
        boundary_conditions: ids of the low and high side of each axis.
    """
    vector = np.asarray(vector, dtype=np.float64)
    divergence = np.zeros(vector.shape[:-1])
    squares = 0.0
    for axis, (step, (low, _)) in enumerate(zip(spacing, boundary_conditions)):
        if vector.shape[axis] < 2:
            continue
        if low == BoundaryCondition.PERIODIC:
            slope = (np.roll(vector, -1, axis) - np.roll(vector, 1, axis)) / (2 * step)
        else:
            slope = np.gradient(vector, step, axis=axis)
        divergence += slope[..., axis]
        squares += float(np.mean(slope**2)) * vector.shape[-1]
    return float(np.sqrt(np.mean(divergence**2) / squares)) if squares > 0 else float("nan")


def varying(cells: np.ndarray) -> np.ndarray:
    """Which components of `(cells, components)` are not the same in all cells."""
    return np.ptp(cells, axis=0) > 0


def correlation(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Pearson's correlation over the cells, mean over the components in which the truth varies; NaN if it does in none.

    A prediction that does not vary where the truth does has a correlation of 0.

    Args:
        prediction, truth: `(cells, components)`.
    """
    a, b = (np.asarray(x, dtype=np.float64) for x in (prediction, truth))
    varies = varying(b)
    if not varies.any():
        return float("nan")
    a, b = a[:, varies], b[:, varies]
    moves = np.ptp(a, axis=0) > 0  # without it, what rounding leaves beside the mean would count
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    sizes = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    there = moves & (sizes > 0)
    return float(np.divide((a * b).sum(axis=0), sizes, out=np.zeros_like(sizes), where=there).mean())


def correlation_time(correlations: np.ndarray) -> float:
    """The first lead time, counted from 1, whose correlation is not above `CORRELATED`; steps + 1 where all are.

    Lead times without a correlation (a constant truth) are passed over; NaN where there is none at all.
    """
    if np.isnan(correlations).all():
        return float("nan")
    below = np.flatnonzero(np.asarray(correlations) <= CORRELATED)
    return int(below[0]) + 1 if len(below) else len(correlations) + 1


def divergence_fields(trajectory: Trajectory, names: Mapping[str, str]) -> list[str]:
    """Own names of the vector fields whose divergence is measured, on Cartesian grids of two or three axes."""
    if trajectory.grid_type != "cartesian" or len(trajectory.axes) < 2:
        return []
    return [f for f in trajectory.fields if names.get(f, f) in DIVERGENCE_FIELDS and trajectory.rank(f) == 1]
