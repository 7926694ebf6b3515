"""Two small simulations to train on and to test with, solved on the CPU in seconds (extra `sim`: exponax, JAX).

Both follow a data set of The Well: `shear_flow` and `gray_scott_reaction_diffusion`. They are doubly periodic and
pseudo-spectral: linear terms exactly, the others with exponax's exponential Runge-Kutta methods. exponax's own steppers
know neither a tracer nor grids with H != W, so only its integrators are used, on the Fourier modes of our equations.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from ...fields import Trajectory
from .common import (
    cell_centres,
    check_arguments,
    check_finite,
    check_positive,
    import_exponax,
    inverse_square,
    march,
    modes,
    on_cpu,
    periodic,
    sum_of_squares,
    trajectory,
    transforms,
)

# (feed, kill) of four of the six regimes of The Well's gray_scott_reaction_diffusion; in the other two, bubbles and
# worms, next to nothing happens within a short trajectory.
GRAY_SCOTT_REGIMES = {
    "gliders": (0.014, 0.054),
    "maze": (0.029, 0.057),
    "spirals": (0.018, 0.051),
    "spots": (0.030, 0.062),
}
GRAY_SCOTT_CELL = 1 / 64
DIFFUSIVITY_A, DIFFUSIVITY_B = 2e-5, 1e-5


def shear_flow(
    seed: int, grid: tuple[int, int] = (64, 64), frames: int = 40, dt: float = 0.05, viscosity: float = 7e-4
) -> Trajectory:
    """Two perturbed shear layers that roll up into vortices, in an incompressible fluid with a passive tracer.

    Places, widths and speeds of the layers and the waves on them come from the seed. The fluid flows along x; x is 1
    long and cells are square, so y is `W / H` long. The density is 1, the tracer diffuses as fast as momentum (Schmidt
    number 1). The Well's shear_flow is the same at higher Reynolds numbers, on 256 x 512 cells.

    Args:
        seed: the same seed gives the same trajectory.
        grid: cells (H, W) along x and y.
        frames: frames to return, the initial state included.
        dt: time between frames; the fluid moves by about 1 length unit in 1 time unit.
        viscosity: in length units squared per time unit. The default suits 64 cells along x; with less, or with fewer
            cells, ripples appear beside the layers.

    Returns:
        Float32 `velocity` (frames, H, W, 2), `tracer` (frames, H, W) from 0 to 1, and `pressure` (frames, H, W), whose
        mean is zero.

    Raises:
        ImportError: the extra `sim` is not installed.
        ValueError: unusable arguments, or the solution diverged.
    """
    check_arguments(grid, frames, dt)
    velocity, tracer = _shear_layers(np.random.default_rng(seed), grid)
    return solve_shear_flow(velocity, tracer, frames, dt, viscosity, name=f"shear_flow_{seed}")


def gray_scott(seed: int, grid: tuple[int, int] = (64, 64), frames: int = 40, dt: float = 10.0) -> Trajectory:
    """Gray-Scott reaction and diffusion: spots of B feed on A and grow into one of four kinds of patterns.

    The regime (feed and kill rate) and the spots come from the seed. Equations, rates, diffusivities, `dt` and cells of
    1/64 are those of The Well's gray_scott_reaction_diffusion: its 128 x 128 cells are the domain [-1, 1]^2, and a
    smaller grid is a smaller domain, since wider cells would not resolve the fronts.

    Args:
        seed: the same seed gives the same trajectory.
        grid: cells (H, W) along x and y.
        frames: frames to return; the first shows the spots after 30 time units, when A and B have adjusted.
        dt: time between frames.

    Returns:
        Float32 concentrations `A` and `B` (frames, H, W), between 0 and 1.

    Raises:
        ImportError: the extra `sim` is not installed.
        ValueError: unusable arguments, or the solution diverged.
    """
    check_arguments(grid, frames, dt)
    rng = np.random.default_rng(seed)
    regime = sorted(GRAY_SCOTT_REGIMES)[rng.integers(len(GRAY_SCOTT_REGIMES))]
    # Solved on twice the cells: on the cells themselves, fronts take the shape of the grid.
    a, b = _spots(rng, (2 * grid[0], 2 * grid[1]), GRAY_SCOTT_CELL / 2)
    fine = solve_gray_scott(
        a, b, frames, dt, *GRAY_SCOTT_REGIMES[regime], cell=GRAY_SCOTT_CELL / 2, spin_up=30.0, name="gray_scott"
    )
    fields = {name: np.ascontiguousarray(values[:, ::2, ::2]) for name, values in fine.fields.items()}
    return trajectory(fields, dt, f"gray_scott_{regime}_{seed}", GRAY_SCOTT_CELL)


def solve_shear_flow(
    velocity: np.ndarray, tracer: np.ndarray, frames: int, dt: float, viscosity: float, name: str = "shear_flow"
) -> Trajectory:
    """`shear_flow` from a start of your own: velocity (H, W, 2), whose divergence is taken out, and tracer (H, W)."""
    check_positive(viscosity=viscosity)
    if tracer.ndim != 2 or velocity.shape != (*tracer.shape, 2):
        raise ValueError(f"expected velocity (H, W, 2) and tracer (H, W), found {velocity.shape} and {tracer.shape}")
    check_finite(velocity=velocity)
    grid = (velocity.shape[0], velocity.shape[1])
    # Courant number at most 0.8, with room for a maximum that grows by a half (the method bears 1).
    substeps = math.ceil(1.5 * float(np.abs(velocity).max()) * dt * grid[0] / 0.8) + 1
    solve = on_cpu(_shear_flow_solver(grid, frames))
    arrays = solve(np.float32(velocity), np.float32(tracer), np.float32(viscosity), np.float32(dt / substeps), substeps)
    return trajectory(dict(zip(("velocity", "tracer", "pressure"), arrays)), dt, name, 1 / grid[0])


def solve_gray_scott(
    a: np.ndarray,
    b: np.ndarray,
    frames: int,
    dt: float,
    feed: float,
    kill: float,
    cell: float = GRAY_SCOTT_CELL,
    spin_up: float = 0.0,
    name: str = "gray_scott",
) -> Trajectory:
    """Gray-Scott from a start of your own, A and B (H, W); the first frame is `spin_up` time units later."""
    substeps = math.ceil(dt / 2.0)  # the fastest reactions take about 2 time units
    step = dt / substeps
    solve = on_cpu(_gray_scott_solver((a.shape[0], a.shape[1]), frames, cell))
    start = np.float32(np.stack([a, b]))
    arrays = solve(start, np.float32(feed), np.float32(kill), np.float32(step), substeps, round(spin_up / step))
    return trajectory(dict(zip("AB", arrays)), dt, name, cell)


@functools.lru_cache(maxsize=8)
def _shear_flow_solver(grid: tuple[int, int], frames: int) -> Any:
    """Compiled once a grid: (velocity, tracer, viscosity, step, substeps) -> velocity, tracer, pressure."""
    jax, etdrk = import_exponax()
    jnp = jax.numpy
    (kx, ky), kept = modes(grid, 1 / grid[0])
    k_squared, inverse = sum_of_squares([kx, ky]), inverse_square([kx, ky])
    to_modes, to_cells = transforms(jnp, grid, kept)

    def velocity_of(vorticity, mean):  # of a stream function: without divergence by construction
        stream = vorticity * inverse
        return to_cells(1j * ky * stream) + mean[0], to_cells(-1j * kx * stream) + mean[1]

    def pressure_of(vorticity):  # -laplace p = du_i/dx_j du_j/dx_i, and dv/dy = -du/dx
        stream = vorticity * inverse
        du_dx, du_dy, dv_dx = to_cells(-kx * ky * stream), to_cells(-(ky**2) * stream), to_cells(kx**2 * stream)
        return to_cells(to_modes(2 * du_dx**2 + 2 * du_dy * dv_dx) * inverse)

    def solve(velocity, tracer, viscosity, step, substeps):
        mean = velocity.mean(axis=(0, 1))  # the vorticity does not know it, and nothing changes it

        def advection(state):  # in flux form, which keeps the integrals of both
            u, v = velocity_of(state[0], mean)
            vorticity_and_tracer = to_cells(state)
            return -1j * kx * to_modes(u * vorticity_and_tracer) - 1j * ky * to_modes(v * vorticity_and_tracer)

        def observe(state):
            u, v = velocity_of(state[0], mean)
            return jnp.stack([u, v], axis=-1), to_cells(state[1]), pressure_of(state[0])

        u, v = to_modes(velocity[..., 0]), to_modes(velocity[..., 1])
        start = jnp.stack([1j * kx * v - 1j * ky * u, to_modes(tracer)])
        integrator = etdrk.ETDRK4(step, -viscosity * k_squared[None], advection)
        return jax.lax.map(observe, march(jax, integrator.step_fourier, start, frames, substeps))

    return jax.jit(solve)


@functools.lru_cache(maxsize=8)
def _gray_scott_solver(grid: tuple[int, int], frames: int, cell: float) -> Any:
    """Compiled once a grid: (A and B, feed, kill, step, substeps, first steps) -> A, B."""
    jax, etdrk = import_exponax()
    jnp = jax.numpy
    wavenumbers, kept = modes(grid, cell)
    k_squared = sum_of_squares(wavenumbers)
    diffusion = np.stack([-DIFFUSIVITY_A * k_squared, -DIFFUSIVITY_B * k_squared])
    to_modes, to_cells = transforms(jnp, grid, kept)

    def solve(start, feed, kill, step, substeps, first_steps):
        def reaction(state):
            a, b = to_cells(state)
            rate = a * b * b
            return to_modes(jnp.stack([feed * (1 - a) - rate, rate - (feed + kill) * b]))

        advance = etdrk.ETDRK4(step, diffusion, reaction).step_fourier
        state = jax.lax.fori_loop(0, first_steps, lambda _, s: advance(s).astype("complex64"), to_modes(start))
        return to_cells(march(jax, advance, state, frames, substeps).swapaxes(0, 1))

    return jax.jit(solve)


def _shear_layers(rng: np.random.Generator, grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    length = grid[1] / grid[0]
    x, y = cell_centres(grid, 1 / grid[0])
    centres = length * (np.array([0.25, 0.75]) + rng.uniform(-0.06, 0.06, size=2))
    width, speed = rng.uniform(0.035, 0.07), rng.uniform(0.7, 1.2)
    # +1 between the two layers and -1 outside; the copies to the left and right make it periodic.
    layers = [(sign, centre + n * length) for n in (-1, 0, 1) for sign, centre in zip((1, -1), centres)]
    profile = sum(sign * np.tanh((y - centre) / width) for sign, centre in layers) - 1
    across = np.zeros(grid)
    for centre in centres:
        waves = sum(rng.uniform(0.3, 1.0) * np.sin(2 * np.pi * n * x + rng.uniform(0, 2 * np.pi)) for n in (1, 2, 3, 4))
        across += waves * np.exp(-((periodic(y - centre, length) / 0.1) ** 2))
    velocity = speed * np.stack([profile, rng.uniform(0.1, 0.25) * across], axis=-1)
    return velocity, (1 + profile) / 2


def _spots(rng: np.random.Generator, grid: tuple[int, int], cell: float) -> tuple[np.ndarray, np.ndarray]:
    length_x, length_y = grid[0] * cell, grid[1] * cell
    x, y = cell_centres(grid, cell)
    b = np.zeros(grid)
    for _ in range(max(2, round(rng.integers(5, 10) * length_x * length_y))):
        distance = np.hypot(
            periodic(x - rng.uniform(0, length_x), length_x), periodic(y - rng.uniform(0, length_y), length_y)
        )
        b = np.maximum(b, np.exp(-((distance / rng.uniform(0.03, 0.06)) ** 2)))
    return 1 - 0.5 * b, 0.4 * b
