"""Incompressible flows in periodic boxes, solved on the CPU in seconds (extra `sim`): forced in 2D, decaying in both.

All solve the Navier-Stokes equations for the velocity, mode by mode: friction and drag exactly, advection with
exponax's fourth-order exponential Runge-Kutta method; the pressure takes out the divergence. exponax's own steppers
know neither a pressure nor boxes with unequal sides.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ...fields import Trajectory
from .common import (
    check_arguments,
    check_finite,
    check_positive,
    import_exponax,
    inverse_square,
    march_adaptively,
    modes,
    on_cpu,
    smooth_noise,
    sum_of_squares,
    trajectory,
    transforms,
)


def kolmogorov_flow(
    seed: int,
    grid: tuple[int, int] = (64, 64),
    frames: int = 40,
    dt: float = 0.05,
    viscosity: float = 1.5e-3,
    drag: float = 0.1,
) -> Trajectory:
    """Fluid in a plane pushed to and fro by a steady force along x that is a sine of y: stripes that break into eddies.

    The number of stripes (2 to 4 a length unit along y), the strength of the force and the eddies of the start come
    from the seed; the first frame is 5 time units later, when the flow has forgotten most of its start. x is 1 long,
    cells are square, the density is 1.

    Args:
        seed: the same seed gives the same trajectory.
        grid: cells (H, W) along x and y.
        frames: frames to return.
        dt: time between frames; the fluid moves by about half a length unit in 1 time unit, and half as fast again.
        viscosity: in length units squared per time unit. With the default, 128 cells along x that start from a first
            frame on 64 stay within 0.1% of it for 40 frames; over the spin-up, chaos tells the two apart.
        drag: rate at which friction with what is below and above the plane slows all motion.

    Returns:
        Float32 `velocity` (frames, H, W, 2) and `pressure` (frames, H, W), whose mean is zero.

    Raises:
        ImportError: the extra `sim` is not installed.
        ValueError: unusable arguments, or the solution diverged.
    """
    check_arguments(grid, frames, dt)
    rng = np.random.default_rng(seed)
    cell, length = 1 / grid[0], grid[1] / grid[0]
    stripes = max(1, round(length * rng.integers(2, 5))) / length
    speed = rng.uniform(0.5, 0.9)
    y = np.broadcast_to(np.arange(grid[1]) * cell, grid)
    force = speed**2 * stripes * np.sin(2 * np.pi * stripes * y + rng.uniform(0, 2 * np.pi))
    eddies = np.stack([smooth_noise(rng, grid, cell, shortest=0.2) for _ in range(2)], axis=-1)
    return solve_incompressible(
        0.5 * speed * eddies,
        frames,
        dt,
        viscosity,
        drag,
        force=np.stack([force, np.zeros(grid)], axis=-1),
        spin_up=5.0,
        name=f"kolmogorov_flow_{seed}",
    )


def turbulence_2d(
    seed: int, grid: tuple[int, int] = (64, 64), frames: int = 40, dt: float = 0.05, viscosity: float = 8e-4
) -> Trajectory:
    """Decaying turbulence in a periodic plane: eddies that wind each other up, merge into larger ones, and fade.

    The eddies of the start, their size and their speed come from the seed; the first frame is half a time unit later.
    Units, other arguments, fields with their shapes and errors are those of `kolmogorov_flow`.

    Args:
        dt: time between frames; the first eddies turn over in half to one time unit, the later ones ever slower.
    """
    check_arguments(grid, frames, dt)
    rng = np.random.default_rng(seed)
    speed, shortest = rng.uniform(0.3, 0.6), rng.uniform(0.15, 0.25)
    eddies = np.stack([smooth_noise(rng, grid, 1 / grid[0], shortest) for _ in range(2)], axis=-1)
    return solve_incompressible(speed * eddies, frames, dt, viscosity, spin_up=0.5, name=f"turbulence_2d_{seed}")


def turbulence_3d(
    seed: int,
    grid: tuple[int, int, int] = (32, 32, 32),
    frames: int = 40,
    dt: float = 0.05,
    viscosity: float = 2.5e-3,
) -> Trajectory:
    """Decaying turbulence in a periodic volume: eddies without a preferred direction that stretch and tear each other.

    The eddies of the start and their speed come from the seed; the first frame is half a time unit later, when they
    have made smaller ones. x is 1 long, cells are cubes, the density is 1.

    Args:
        seed: the same seed gives the same trajectory.
        grid: cells (H, W, D) along x, y and z.
        frames: frames to return.
        dt: time between frames; the largest eddies turn over in about half a time unit at first, ever slower later.
        viscosity: in length units squared per time unit. With the default, 32 cells along x differ from 64 by 1% of
            the flow after 40 frames.

    Returns:
        Float32 `velocity` (frames, H, W, D, 3) and `pressure` (frames, H, W, D), whose mean is zero.

    Raises:
        ImportError: the extra `sim` is not installed.
        ValueError: unusable arguments, or the solution diverged.
    """
    check_arguments(grid, frames, dt, dimensions=(3,))
    rng = np.random.default_rng(seed)
    speed = rng.uniform(0.4, 0.7)
    eddies = np.stack([smooth_noise(rng, grid, 1 / grid[0], shortest=0.25) for _ in range(3)], axis=-1)
    return solve_incompressible(speed * eddies, frames, dt, viscosity, spin_up=0.5, name=f"turbulence_3d_{seed}")


def solve_incompressible(
    velocity: np.ndarray,
    frames: int,
    dt: float,
    viscosity: float,
    drag: float = 0.0,
    force: np.ndarray | None = None,
    spin_up: float = 0.0,
    name: str = "incompressible",
) -> Trajectory:
    """Any of these flows from a start of your own, whose divergence is taken out, under a steady force of your own.

    Args:
        velocity: (H, W, 2) or (H, W, D, 3) at the start; x is 1 long and cells are square or cubes.
        frames, dt: frames to return, and the time between them.
        viscosity, drag: the friction is `viscosity * laplacian(velocity) - drag * velocity`.
        force: on a unit of mass, of the shape of `velocity`.
        spin_up: time from the start to the first frame.
        name: of the trajectory.

    Raises:
        ImportError: the extra `sim` is not installed.
        ValueError: unusable arguments, or the solution diverged.
    """
    force = np.zeros_like(velocity) if force is None else force
    if velocity.ndim not in (3, 4) or velocity.shape[-1] != velocity.ndim - 1 or force.shape != velocity.shape:
        raise ValueError(
            f"expected velocity and force (H, W, 2) or (H, W, D, 3), found {velocity.shape} and {force.shape}"
        )
    grid = velocity.shape[:-1]
    check_arguments(grid, frames, dt, (2, 3))
    check_positive(viscosity=viscosity)
    check_finite(velocity=velocity, force=force, drag=drag, spin_up=spin_up)
    if drag < 0 or spin_up < 0:
        raise ValueError(f"drag and spin_up: expected numbers that are not negative, found {drag} and {spin_up}")
    numbers = np.array([viscosity, drag, dt, spin_up], dtype=np.float32)
    arrays = on_cpu(_solver(grid, frames))(np.float32(velocity), np.float32(force), *numbers)
    return trajectory(dict(zip(("velocity", "pressure"), arrays)), dt, name, 1 / grid[0], "xyz"[: len(grid)])


@functools.lru_cache(maxsize=8)
def _solver(grid: tuple[int, ...], frames: int) -> Any:
    """Compiled once a grid: (velocity, force, viscosity, drag, dt, spin-up) -> velocity, pressure."""
    jax, etdrk = import_exponax()
    jnp, axes = jax.numpy, range(len(grid))
    k, kept = modes(grid, 1 / grid[0])
    k_squared, inverse, wavevector = sum_of_squares(k), inverse_square(k), np.stack(k)
    to_modes, to_cells = transforms(jnp, grid, kept)

    def potential(vector):  # the scalar whose gradient has the vector's divergence
        return -1j * inverse * (wavevector * vector).sum(axis=0)

    def solenoidal(vector):  # the vector without its divergence
        return vector - 1j * wavevector * potential(vector)

    def vector_modes(values):
        return to_modes(jnp.moveaxis(values, -1, 0))

    def advection(velocity):  # in flux form, which keeps the momentum
        u = to_cells(velocity)
        flux = {(i, j): to_modes(u[i] * u[j]) for i in axes for j in axes if i <= j}
        return -1j * jnp.stack([sum(k[j] * flux[min(i, j), max(i, j)] for j in axes) for i in axes])

    def solve(velocity, force, viscosity, drag, dt, spin_up):
        push = vector_modes(force)

        def observe(velocity):
            pressure = potential(advection(velocity) + push)
            return jnp.moveaxis(to_cells(velocity), 0, -1), to_cells(pressure)

        def integrator(step):
            friction = -(viscosity * k_squared + drag)[None]
            return etdrk.ETDRK4(step, friction, lambda velocity: solenoidal(advection(velocity) + push)).step_fourier

        def speed(velocity):
            return jnp.abs(to_cells(velocity)).sum(axis=0).max()

        start = solenoidal(vector_modes(velocity))
        frames_of_modes = march_adaptively(jax, integrator, speed, start, frames, dt, spin_up, 1 / grid[0])
        return jax.lax.map(observe, frames_of_modes)

    return jax.jit(solve)
