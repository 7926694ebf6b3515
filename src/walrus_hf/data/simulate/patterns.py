"""Two simulations of one substance in a periodic plane (extra `sim`): fronts between phases, and stripes and spots.

Both are `dA/dt = L A + q A^2 - c A^3` with a linear operator L. As in `periodic.py`, L is solved exactly and exponax's
exponential Runge-Kutta method does the rest, mode by mode; exponax's own steppers know only boxes with equal sides.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from ...fields import Trajectory
from .common import (
    MOST_STEPS,
    check_arguments,
    check_finite,
    check_positive,
    import_exponax,
    march,
    modes,
    on_cpu,
    smooth_noise,
    sum_of_squares,
    trajectory,
    transforms,
)


def reaction_diffusion(
    seed: int, grid: tuple[int, int] = (64, 64), frames: int = 40, dt: float = 0.1, diffusivity: float = 5e-4
) -> Trajectory:
    """One substance that diffuses and reacts with itself: fronts part where it is 0 from where it is 1.

    The threshold of the reaction, from 0.42 to 0.58, and the start come from the seed. Below 1/2 the substance advances
    where there is much of it, above it retreats; at 1/2 fronts move by their curvature alone (Allen and Cahn 1979).
    x is 1 long, cells are square.

    Args:
        seed: the same seed gives the same trajectory.
        grid: cells (H, W) along x and y.
        frames: frames to return, the initial state included.
        dt: time between frames; flat fronts move by up to 0.005 length units in 1 time unit.
        diffusivity: in length units squared per time unit; with the default, fronts are 0.06 thick. On fewer
            than about 48 cells along x they overshoot by up to 0.03.

    Returns:
        Float32 `A` (frames, H, W), from 0 to 1.

    Raises:
        ImportError: the extra `sim` is not installed.
        ValueError: unusable arguments, or the solution diverged.
    """
    check_arguments(grid, frames, dt)
    rng = np.random.default_rng(seed)
    threshold, contrast = rng.uniform(0.42, 0.58), rng.uniform(1, 4)
    start = 1 / (1 + np.exp(-contrast * (smooth_noise(rng, grid, 1 / grid[0], shortest=0.25) - rng.uniform(-0.2, 0.2))))
    return solve_reaction_diffusion(start, frames, dt, diffusivity, threshold, name=f"reaction_diffusion_{seed}")


def swift_hohenberg(
    seed: int, grid: tuple[int, int] = (64, 64), frames: int = 40, dt: float = 0.5, wavelength: float = 0.2
) -> Trajectory:
    """Stripes or spots of one width that grow out of noise and order themselves, slower and slower.

    How fast they grow (0.1 to 0.5), how far they are spots rather than stripes (asymmetry 0 to 1) and the noise come
    from the seed. Units, other arguments and errors are those of `reaction_diffusion`.

    Args:
        dt: time between frames; patterns are there after 7 to 25 time units, the slower they grow the later.
        wavelength: of the pattern, in length units; at least 3 cells.

    Returns:
        Float32 `A` (frames, H, W), about zero.
    """
    check_arguments(grid, frames, dt)
    if not 3 / grid[0] <= wavelength <= 1:
        raise ValueError(f"wavelength: expected 3 cells ({3 / grid[0]:.3g}) to the length of x (1), found {wavelength}")
    rng = np.random.default_rng(seed)
    start = rng.uniform(0.05, 0.3) * smooth_noise(rng, grid, 1 / grid[0], shortest=0.7 * wavelength)
    growth, asymmetry = rng.uniform(0.1, 0.5), rng.uniform(0, 1)
    return solve_swift_hohenberg(start, frames, dt, wavelength, growth, asymmetry, name=f"swift_hohenberg_{seed}")


def solve_reaction_diffusion(
    a: np.ndarray,
    frames: int,
    dt: float,
    diffusivity: float,
    threshold: float,
    rate: float = 4.0,
    name: str = "reaction_diffusion",
) -> Trajectory:
    """`dA/dt = diffusivity * laplacian(A) + rate * A (1 - A) (A - threshold)` from a start of your own, A (H, W)."""
    check_positive(diffusivity=diffusivity, rate=rate)
    check_finite(threshold=threshold)
    linear = -diffusivity * _k_squared(a) - rate * threshold
    return _solve(a, frames, dt, linear, rate * (1 + threshold), rate, name)


def solve_swift_hohenberg(
    a: np.ndarray,
    frames: int,
    dt: float,
    wavelength: float,
    growth: float,
    asymmetry: float = 0.0,
    name: str = "swift_hohenberg",
) -> Trajectory:
    """`dA/dt = growth A - (1 + laplacian / k^2)^2 A + asymmetry A^2 - A^3`, k = 2 pi / wavelength, from A (H, W)."""
    check_positive(wavelength=wavelength)
    check_finite(growth=growth, asymmetry=asymmetry)
    linear = growth - (1 - _k_squared(a) * (wavelength / (2 * np.pi)) ** 2) ** 2
    return _solve(a, frames, dt, linear, asymmetry, 1.0, name)


def _k_squared(a: np.ndarray) -> np.ndarray:
    """Of the modes of a plane; x is 1 long."""
    if a.ndim != 2:
        raise ValueError(f"expected A (H, W), found {a.shape}")
    return sum_of_squares(modes(a.shape, 1 / a.shape[0])[0])


def _solve(
    a: np.ndarray, frames: int, dt: float, linear: np.ndarray, quadratic: float, cubic: float, name: str
) -> Trajectory:
    check_arguments(a.shape, frames, dt)
    check_finite(A=a)
    # A step is at most half the time in which the fastest reaction goes by, at the start or where growth ends.
    reached = (abs(quadratic) + math.sqrt(quadratic**2 + 4 * cubic * max(0.0, float(linear.max())))) / (2 * cubic)
    largest = max(reached, float(np.abs(a).max()))
    fastest = 2 * abs(quadratic) * largest + 3 * cubic * largest**2
    substeps = math.ceil(min(2 * dt * fastest, MOST_STEPS)) or 1
    numbers = np.array([quadratic, cubic, dt / substeps], dtype=np.float32)
    (found,) = on_cpu(_solver((a.shape[0], a.shape[1]), frames))(np.float32(a), np.float32(linear), *numbers, substeps)
    return trajectory({"A": found}, dt, name, 1 / a.shape[0])


@functools.lru_cache(maxsize=8)
def _solver(grid: tuple[int, int], frames: int) -> Any:
    """Compiled once a grid: (A, linear, quadratic, cubic, step, substeps) -> A."""
    jax, etdrk = import_exponax()
    to_modes, to_cells = transforms(jax.numpy, grid, modes(grid, 1 / grid[0])[1])

    def solve(start, linear, quadratic, cubic, step, substeps):
        def reaction(state):
            a = to_cells(state)
            return to_modes(quadratic * a**2 - cubic * a**3)

        integrator = etdrk.ETDRK4(step, linear, reaction)
        return (to_cells(march(jax, integrator.step_fourier, to_modes(start), frames, substeps)),)

    return jax.jit(solve)
