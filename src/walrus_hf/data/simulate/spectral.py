"""Three more simulations in periodic boxes, solved on the CPU in seconds: Burgers, sound waves, a tracer in a volume.

They need the extra `sim`, except for the waves, whose exact solution numpy evaluates mode by mode. exponax's own
steppers know only boxes with equal sides and tracers in uniform streams, so as in `periodic.py` its exponential
Runge-Kutta method works on the Fourier modes of our equations.
"""

from __future__ import annotations

import functools
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
    smooth_noise,
    steps_a_frame,
    sum_of_squares,
    trajectory,
    transforms,
)


def burgers(
    seed: int, grid: tuple[int, ...] = (64, 64), frames: int = 40, dt: float = 0.02, viscosity: float = 3e-3
) -> Trajectory:
    """Burgers' equation in the plane or on a line: a velocity that carries itself, steepens into shocks, and fades.

    `du/dt + (u . grad) u = viscosity * laplacian(u)` for the vector u: a fluid without pressure. The start, smooth
    waves upon a drift, comes from the seed. x is 1 long, cells are square.

    Args:
        seed: the same seed gives the same trajectory.
        grid: cells (H, W) along x and y, or (H,) along x.
        frames: frames to return, the initial state included.
        dt: time between frames; the first shocks form after about 0.3 time units.
        viscosity: in length units squared per time unit; with the default, a shock across which the velocity falls by 1
            is 0.02 thick.

    Returns:
        Float32 `velocity` (frames, H, W, 2), on a line (frames, H, 1).

    Raises:
        ImportError: the extra `sim` is not installed.
        ValueError: unusable arguments, or the solution diverged.
    """
    check_arguments(grid, frames, dt, (1, 2))
    rng = np.random.default_rng(seed)
    drift, speed = rng.uniform(-0.3, 0.3, size=len(grid)), rng.uniform(0.3, 0.6)
    # Solved on twice the cells: on the cells themselves, the thinnest shocks ring and one in five seeds diverges.
    fine, cell = tuple(2 * n for n in grid), 1 / grid[0]
    waves = np.stack([smooth_noise(rng, fine, cell / 2, shortest=0.2) for _ in grid], axis=-1)
    found = solve_burgers(drift + speed * waves, frames, dt, viscosity).fields["velocity"]
    coarse = np.ascontiguousarray(found[(slice(None), *[slice(None, None, 2)] * len(grid))])
    return trajectory({"velocity": coarse}, dt, f"burgers_{seed}", cell, "xy"[: len(grid)])


def wave(seed: int, grid: tuple[int, ...] = (64, 64), frames: int = 40, dt: float = 0.01) -> Trajectory:
    """Sound in a uniform medium: pulses of pressure that spread, in the plane as rings, and run through each other.

    Number, places, sizes and signs of the pulses and the speed of sound come from the seed. They are let go from rest
    and the first frame is 0.1 time units later. x is 1 long, cells are square, the density is 1. The Well's
    acoustic_scattering is the same in media that reflect, between walls.

    Args:
        seed: the same seed gives the same trajectory.
        grid: cells (H, W) along x and y, or (H,) along x.
        frames: frames to return.
        dt: time between frames; sound travels 0.7 to 1.2 length units in 1 time unit.

    Returns:
        Float32 `pressure` (frames, H, W) and `velocity` (frames, H, W, 2), on a line (frames, H) and (frames, H, 1).

    Raises:
        ValueError: unusable arguments.
    """
    check_arguments(grid, frames, dt, (1, 2))
    rng = np.random.default_rng(seed)
    cell = 1 / grid[0]
    speed_of_sound = rng.uniform(0.7, 1.2)
    positions, lengths = cell_centres(grid, cell), np.multiply(grid, cell)
    pressure = np.zeros(grid)
    for _ in range(rng.integers(3, 8)):
        centre = rng.uniform(0, 1, size=len(grid)) * lengths
        away = zip(positions, centre, lengths)
        squared = sum_of_squares(periodic(along - middle, length) for along, middle, length in away)
        pressure += rng.choice((-1, 1)) * rng.uniform(0.4, 1.0) * np.exp(-squared / rng.uniform(0.05, 0.1) ** 2)
    rest = np.zeros((*grid, len(grid)))
    return solve_wave(pressure, rest, frames, dt, speed_of_sound, spin_up=0.1, name=f"wave_{seed}")


def advection_diffusion_3d(
    seed: int,
    grid: tuple[int, int, int] = (32, 32, 32),
    frames: int = 40,
    dt: float = 0.03,
    diffusivity: float = 1.5e-3,
) -> Trajectory:
    """A tracer in a volume, carried by a steady flow that folds and stretches it, and diffusing.

    The clouds of the start and the flow come from the seed: a uniform stream and three crossed shear flows (of
    Arnold, Beltrami and Childress), without divergence. x is 1 long, cells are cubes.

    Args:
        seed: the same seed gives the same trajectory.
        grid: cells (H, W, D) along x, y and z.
        frames: frames to return, the initial state included.
        dt: time between frames; the stream moves by about half a length unit in 1 time unit.
        diffusivity: in length units squared per time unit.

    Returns:
        Float32 `tracer` (frames, H, W, D), from 0 to 1 at the start, and the constant field `velocity` (H, W, D, 3).

    Raises:
        ImportError: the extra `sim` is not installed.
        ValueError: unusable arguments, or the solution diverged.
    """
    check_arguments(grid, frames, dt, dimensions=(3,))
    rng = np.random.default_rng(seed)
    velocity = _crossed_shear(rng, grid)
    tracer = 1 / (1 + np.exp(-2 * smooth_noise(rng, grid, 1 / grid[0], shortest=0.25)))
    return solve_advection_diffusion(tracer, velocity, frames, dt, diffusivity, name=f"advection_diffusion_3d_{seed}")


def solve_burgers(velocity: np.ndarray, frames: int, dt: float, viscosity: float, name: str = "burgers") -> Trajectory:
    """`burgers` from a start of your own, velocity (H, W, 2), or (H, 1) on a line."""
    check_positive(viscosity=viscosity)
    grid = velocity.shape[:-1]
    if len(grid) not in (1, 2) or velocity.shape[-1] != len(grid):
        raise ValueError(f"expected velocity (H, W, 2) or (H, 1), found {velocity.shape}")
    check_finite(velocity=velocity)
    check_arguments(grid, frames, dt, (1, 2))
    substeps = steps_a_frame(velocity, dt, 1 / grid[0])  # no component grows beyond its start
    solve = on_cpu(_burgers_solver(grid, frames))
    (found,) = solve(np.float32(velocity), np.float32(viscosity), np.float32(dt / substeps), substeps)
    return trajectory({"velocity": found}, dt, name, 1 / grid[0], "xy"[: len(grid)])


def solve_wave(
    pressure: np.ndarray,
    velocity: np.ndarray,
    frames: int,
    dt: float,
    speed_of_sound: float,
    spin_up: float = 0.0,
    name: str = "wave",
) -> Trajectory:
    """Sound from a start of your own, pressure (H, W) and velocity (H, W, 2); the first frame is `spin_up` later.

    On a line they are (H,) and (H, 1). The equations are `dp/dt = -c^2 div u` and `du/dt = -grad p`, so what turns in
    the velocity stays as it is.
    """
    check_positive(speed_of_sound=speed_of_sound)
    if pressure.ndim not in (1, 2) or velocity.shape != (*pressure.shape, pressure.ndim):
        raise ValueError(
            "expected pressure (H, W) and velocity (H, W, 2), or (H,) and (H, 1), "
            f"found {pressure.shape} and {velocity.shape}"
        )
    check_finite(pressure=pressure, velocity=velocity, spin_up=spin_up)
    check_arguments(pressure.shape, frames, dt, (1, 2))
    k, kept = modes(pressure.shape, 1 / pressure.shape[0])
    to_modes, to_cells = transforms(np, pressure.shape, kept)
    wavevector, inverse = np.stack(k).astype(np.float64), inverse_square(k).astype(np.float64)
    frequency = speed_of_sound * np.sqrt(sum_of_squares(wavevector))
    start, motion = to_modes(pressure), to_modes(np.moveaxis(velocity, -1, 0))
    divergence = 1j * (wavevector * motion).sum(axis=0)
    pressures, velocities = [], []
    for t in spin_up + dt * np.arange(frames):
        # Each mode oscillates; `pushed` is the integral of its pressure until t.
        swing = t * np.sinc(frequency * t / np.pi)
        pushed = start * swing - divergence * inverse * (1 - np.cos(frequency * t))
        pressures.append(to_cells(start * np.cos(frequency * t) - speed_of_sound**2 * divergence * swing))
        velocities.append(np.moveaxis(to_cells(motion - 1j * wavevector * pushed), 0, -1))
    fields = {
        "pressure": np.array(pressures, dtype=np.float32),
        "velocity": np.array(velocities, dtype=np.float32),
    }
    return trajectory(fields, dt, name, 1 / pressure.shape[0], "xy"[: pressure.ndim])


def solve_advection_diffusion(
    tracer: np.ndarray,
    velocity: np.ndarray,
    frames: int,
    dt: float,
    diffusivity: float,
    name: str = "advection_diffusion",
) -> Trajectory:
    """A tracer (H, W, D) from a start of your own in a steady flow of your own, (H, W, D, 3)."""
    check_positive(diffusivity=diffusivity)
    if tracer.ndim != 3 or velocity.shape != (*tracer.shape, 3):
        raise ValueError(
            f"expected tracer (H, W, D) and velocity (H, W, D, 3), found {tracer.shape} and {velocity.shape}"
        )
    check_finite(tracer=tracer, velocity=velocity)
    grid = (tracer.shape[0], tracer.shape[1], tracer.shape[2])
    check_arguments(grid, frames, dt, dimensions=(3,))
    substeps = steps_a_frame(velocity, dt, 1 / grid[0])
    solve = on_cpu(_advection_diffusion_solver(grid, frames))
    steady = np.array(velocity, dtype=np.float32)
    (found,) = solve(np.float32(tracer), steady, np.float32(diffusivity), np.float32(dt / substeps), substeps)
    return trajectory({"tracer": found}, dt, name, 1 / grid[0], "xyz", {"velocity": steady})


@functools.lru_cache(maxsize=8)
def _burgers_solver(grid: tuple[int, ...], frames: int) -> Any:
    """Compiled once a grid: (velocity, viscosity, step, substeps) -> velocity."""
    jax, etdrk = import_exponax()
    jnp = jax.numpy
    k, kept = modes(grid, 1 / grid[0])
    to_modes, to_cells = transforms(jnp, grid, kept)

    def solve(velocity, viscosity, step, substeps):
        def advection(modes):
            u, *slopes = to_cells(jnp.stack([modes, *(1j * along * modes for along in k)]))
            return -to_modes(sum(speed * slope for speed, slope in zip(u, slopes)))

        start = to_modes(jnp.moveaxis(velocity, -1, 0))
        integrator = etdrk.ETDRK4(step, -viscosity * sum_of_squares(k)[None], advection)
        found = march(jax, integrator.step_fourier, start, frames, substeps)
        return (jnp.moveaxis(to_cells(found), 1, -1),)

    return jax.jit(solve)


@functools.lru_cache(maxsize=8)
def _advection_diffusion_solver(grid: tuple[int, int, int], frames: int) -> Any:
    """Compiled once a grid: (tracer, velocity, diffusivity, step, substeps) -> tracer."""
    jax, etdrk = import_exponax()
    jnp = jax.numpy
    k, kept = modes(grid, 1 / grid[0])
    to_modes, to_cells = transforms(jnp, grid, kept)

    def solve(tracer, velocity, diffusivity, step, substeps):
        flow = jnp.moveaxis(velocity, -1, 0)

        def advection(modes):  # in flux form, which keeps the amount
            return -1j * (np.stack(k) * to_modes(flow * to_cells(modes))).sum(axis=0)

        integrator = etdrk.ETDRK4(step, -diffusivity * sum_of_squares(k), advection)
        return (to_cells(march(jax, integrator.step_fourier, to_modes(tracer), frames, substeps)),)

    return jax.jit(solve)


def _crossed_shear(rng: np.random.Generator, grid: tuple[int, int, int]) -> np.ndarray:
    """A uniform stream, and along each axis two waves across it: none varies along its own direction."""
    x = [positions - 0.5 / grid[0] for positions in cell_centres(grid, 1 / grid[0])]
    waves = [2 * np.pi * grid[0] / n * max(1, round(n / grid[0])) for n in grid]
    velocity = np.empty((*grid, 3))
    for axis in range(3):
        velocity[..., axis] = rng.uniform(-0.3, 0.3)
        for across in ((axis + 1) % 3, (axis + 2) % 3):
            phase = rng.uniform(0, 2 * np.pi)
            velocity[..., axis] += rng.uniform(0.15, 0.4) * np.sin(waves[across] * x[across] + phase)
    return velocity
