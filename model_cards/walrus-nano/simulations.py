"""Simulations that walrus-nano never saw: other parameters, grids, boundary conditions, starts and solvers.

`UNSEEN` has them by name, each with what is unlike the training data and a function that makes a trajectory of a seed.
Those in `FIXED` need neither JAX nor a second, so a test forecasts them again and compares with the card.

Shapes: T frames, H W D cells along x, y and z. Cells are as wide along all axes and x is 1 long.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from walrus_hf import Trajectory
from walrus_hf.data import simulate
from walrus_hf.data.simulate.common import cell_centres, smooth_noise, sum_of_squares, trajectory

FRAMES = 47  # 17 to forecast from, 30 to forecast
FIXED = ("gas_in_a_box", "closed_room", "vortices", "beltrami_flow", "line_of_shocks", "other_gray_scott")


def sliding_gas(seed: int, grid: tuple[int, int], along_y: str) -> Trajectory:
    """A layer of gas that slides through other gas and rolls up, in a box that is periodic along x."""
    rng, length = np.random.default_rng(seed), grid[1] / grid[0]
    x, y = (axis / scale for axis, scale in zip(cell_centres(grid, 1 / grid[0]), (1, length)))
    inside = 0.5 * (np.tanh((y - 0.3) / 0.04) - np.tanh((y - 0.7) / 0.04))
    push = sum(rng.normal() * np.sin(2 * np.pi * (n * x + rng.uniform())) for n in range(1, 5))
    velocity = np.stack([rng.uniform(0.4, 0.8) * (inside - 0.5), 0.05 * push * np.sin(np.pi * y)], axis=-1)
    density = 1 + rng.uniform(0.3, 1.0) * inside
    sides = {"x": "periodic", "y": along_y}
    return simulate.solve_euler(density, velocity, np.ones(grid), FRAMES, 0.02, 1.5, sides, name="sliding_gas")


def blast(seed: int, grid: tuple[int, int] = (80, 64)) -> Trajectory:
    """A round blast in gas at rest, which leaves through open sides."""
    rng, (x, y) = np.random.default_rng(seed), cell_centres(grid, 1 / grid[0])
    away = np.hypot(x - rng.uniform(0.3, 0.7), y - rng.uniform(0.25, 0.55))
    pressure = np.where(away < rng.uniform(0.08, 0.2), rng.uniform(2, 7), 1.0)
    return simulate.solve_euler(np.ones(grid), np.zeros((*grid, 2)), pressure, FRAMES, 0.015, 1.35, name="blast")


def closed_room(seed: int, grid: tuple[int, int] = (72, 56)) -> Trajectory:
    """Sound between four walls, in a medium whose density varies smoothly."""
    rng, cell = np.random.default_rng(seed), 2 / grid[0]
    x, y = cell_centres(grid, cell)
    pressure = np.zeros(grid)
    for _ in range(3):
        across = (x - rng.uniform(0.3, 1.7)) ** 2 + (y - rng.uniform(0.3, 1.2)) ** 2
        pressure += rng.choice((-1, 1)) * np.exp(-across / rng.uniform(0.12, 0.2) ** 2)
    density = 3 + smooth_noise(rng, grid, cell, shortest=0.5)
    density = np.clip(density, 1, 7)
    walls = {"x": "wall", "y": "wall"}
    return simulate.solve_acoustics(
        pressure, np.zeros((*grid, 2)), density, np.sqrt(4 / density), FRAMES, 0.02, walls, cell, "closed_room"
    )


def vortices(seed: int, grid: tuple[int, int] = (56, 72)) -> Trajectory:
    """Rows of vortices that a stream carries and friction fades (Taylor and Green 1937): the exact solution."""
    rng, dt, viscosity = np.random.default_rng(seed), 0.04, 1.5e-3
    stream, phase = rng.uniform(-0.5, 0.5, size=2), rng.uniform(0, 2 * np.pi, size=2)
    lengths = np.array([1, grid[1] / grid[0]])
    k = 2 * np.pi * rng.integers(1, 4, size=2) / lengths
    size = rng.uniform(0.4, 0.9) / np.linalg.norm(k)
    x, y = cell_centres(grid, 1 / grid[0])
    velocities, pressures = [], []
    for t in dt * np.arange(FRAMES):
        a, b = k[0] * (x - stream[0] * t) + phase[0], k[1] * (y - stream[1] * t) + phase[1]
        now = size * np.exp(-viscosity * (k @ k) * t)
        curl = np.stack([-k[1] * np.cos(a) * np.sin(b), k[0] * np.sin(a) * np.cos(b)], axis=-1)
        velocities.append(stream + now * curl)
        pressures.append(-(now**2) / 4 * (k[1] ** 2 * np.cos(2 * a) + k[0] ** 2 * np.cos(2 * b)))
    return _periodic({"velocity": velocities, "pressure": pressures}, dt, "vortices", grid)


def beltrami_flow(seed: int, grid: tuple[int, int, int] = (24, 24, 12)) -> Trajectory:
    """Crossed helical waves, carried and fading (Arnold, Beltrami, Childress): the exact solution in a volume."""
    rng, dt, viscosity, k = np.random.default_rng(seed), 0.04, 2e-3, 4 * np.pi
    stream, phase = rng.uniform(-0.4, 0.4, size=3), rng.uniform(0, 2 * np.pi, size=3)
    a, b, c = rng.uniform(0.1, 0.4, size=3)
    places = cell_centres(grid, 1 / grid[0])
    velocities, pressures = [], []
    for t in dt * np.arange(FRAMES):
        x, y, z = (k * (place - u * t) + p for place, u, p in zip(places, stream, phase))
        waves = (a * np.sin(z) + c * np.cos(y), b * np.sin(x) + a * np.cos(z), c * np.sin(y) + b * np.cos(x))
        waves = np.exp(-viscosity * k**2 * t) * np.stack(waves, axis=-1)
        pressure = -(waves**2).sum(axis=-1) / 2
        velocities.append(stream + waves)
        pressures.append(pressure - pressure.mean())
    return _periodic({"velocity": velocities, "pressure": pressures}, dt, "beltrami_flow", grid)


def line_of_shocks(seed: int, cells: int = 128) -> Trajectory:
    """Burgers' equation on a line: the exact solution of Hopf (1950) and Cole (1951)."""
    rng, dt, viscosity, fine = np.random.default_rng(seed), 0.02, 4e-3, 1024
    x, k = np.arange(fine) / fine, 2j * np.pi * np.fft.rfftfreq(fine, 1 / fine)
    start = sum(rng.normal() / n * np.sin(2 * np.pi * (n * x + rng.uniform())) for n in range(1, 4))
    start *= rng.uniform(0.3, 0.6) / start.std()
    drift = rng.uniform(-0.3, 0.3)
    integral = np.fft.irfft(np.divide(np.fft.rfft(start), k, out=0 * k, where=k != 0), fine)
    modes = np.fft.rfft(np.exp(-(integral - integral.min()) / (2 * viscosity)))
    velocities = []
    for t in dt * np.arange(FRAMES):
        spread = modes * np.exp(viscosity * k**2 * t)
        potential = np.maximum(np.fft.irfft(spread, fine), 1e-300)
        velocity = np.fft.rfft(-2 * viscosity * np.fft.irfft(k * spread, fine) / potential)
        moved = velocity * np.exp(-k * (drift * t - 0.5 / cells))  # cells have their values at their centres
        velocities.append(drift + np.fft.irfft(moved, fine)[:: fine // cells, None])
    return _periodic({"velocity": velocities}, dt, "line_of_shocks", (cells,))


def line_of_sound(seed: int, cells: int = 200) -> Trajectory:
    """Sound on a line, two shapes that pass through each other (d'Alembert 1747): the exact solution."""
    rng, dt, speed = np.random.default_rng(seed), 0.012, 0.9
    x = (np.arange(cells) + 0.5) / cells
    waves = [(n, rng.normal(size=2) / n, rng.uniform(size=2)) for n in range(1, 6)]
    pressures, velocities = [], []
    for t in dt * np.arange(FRAMES):
        right, left = (
            sum(size[i] * np.sin(2 * np.pi * (n * (x - way * speed * t) + at[i])) for n, size, at in waves)
            for i, way in enumerate((1, -1))
        )
        pressures.append(right + left)
        velocities.append((right - left)[:, None] / speed)
    return _periodic({"pressure": pressures, "velocity": velocities}, dt, "line_of_sound", (cells,))


def tracer_in_a_stream(seed: int, grid: tuple[int, ...] = (96, 40)) -> Trajectory:
    """Clouds that a uniform stream carries and diffusion spreads, in a plane or a volume: the exact solution."""
    rng, dt, diffusivity, axes = np.random.default_rng(seed), 0.03, 1e-3, "xyz"[: len(grid)]
    stream = rng.uniform(-0.5, 0.5, size=len(grid))
    start = np.fft.fftn(1 / (1 + np.exp(-2 * smooth_noise(rng, grid, 1 / grid[0], shortest=0.25))))
    k = _modes(grid, 1 / grid[0])
    start *= np.all([np.abs(wave) < np.pi * grid[0] for wave in k], axis=0)  # the shortest waves have no direction
    rate = -sum(1j * u * wave + diffusivity * wave**2 for u, wave in zip(stream, k))
    tracer = [np.fft.ifftn(start * np.exp(rate * t)).real for t in dt * np.arange(FRAMES)]
    constant = {"velocity": np.broadcast_to(stream, (*grid, len(grid))).astype(np.float32)}
    return trajectory({"tracer": np.float32(tracer)}, dt, "tracer_in_a_stream", 1 / grid[0], axes, constant)


def other_gray_scott(seed: int, grid: tuple[int, int] = (56, 72)) -> Trajectory:
    """Gray-Scott with another feed and kill rate, by the explicit Euler method and five-point differences."""
    rng, (feed, kill), step, steps = np.random.default_rng(seed), (0.026, 0.0555), 1.0, 9
    x, y = cell_centres(grid, simulate.periodic.GRAY_SCOTT_CELL)
    a, b = np.ones(grid), np.zeros(grid)
    for _ in range(12):
        across = (x - rng.uniform(0.1, 0.8)) ** 2 + (y - rng.uniform(0.1, 1.0)) ** 2
        b = np.maximum(b, 0.4 * np.exp(-across / rng.uniform(0.04, 0.07) ** 2))
    a -= b
    spread = 1 / simulate.periodic.GRAY_SCOTT_CELL**2

    def react(state: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        a, b = state
        wide_a, wide_b = (sum(np.roll(c, s, i) for s in (1, -1) for i in (0, 1)) - 4 * c for c in (a, b))
        eaten = a * b * b
        grown = b + step * (1e-5 * spread * wide_b + eaten - (feed + kill) * b)
        return a + step * (2e-5 * spread * wide_a - eaten + feed * (1 - a)), grown

    frames = _march(react, (a, b), steps, before=11)
    return _periodic({"A": [a for a, _ in frames], "B": [b for _, b in frames]}, step * steps, "other_gray_scott", grid)


def phase_fronts(seed: int, grid: tuple[int, int] = (72, 56)) -> Trajectory:
    """Two phases that part, whose fronts then shorten (Allen and Cahn 1979), by explicit differences."""
    rng, cell, dt, steps = np.random.default_rng(seed), 1 / grid[0], 0.1, 4
    a = rng.uniform(0.1, 0.6) * smooth_noise(rng, grid, cell, shortest=0.15)

    def react(a: np.ndarray) -> np.ndarray:
        spread = sum(np.roll(a, way, axis) for way in (1, -1) for axis in (0, 1)) - 4 * a
        return a + dt / steps * (5e-4 / cell**2 * spread + a - a**3)

    return _periodic({"A": _march(react, a, steps)}, dt, "phase_fronts", grid)


def stripes(seed: int, grid: tuple[int, int] = (56, 72)) -> Trajectory:
    """A pattern of stripes that grows out of noise and orders itself (Swift and Hohenberg 1977), mode by mode."""
    rng, wave, dt, steps = np.random.default_rng(seed), 2 * np.pi * 6, 0.4, 8
    k_squared = _k_squared(grid)
    rate = rng.uniform(0.2, 0.5) - (1 - k_squared / wave**2) ** 2
    a, step = 0.2 * smooth_noise(rng, grid, 1 / grid[0], shortest=0.1), dt / steps

    def grow(a: np.ndarray) -> np.ndarray:
        """What is linear implicitly."""
        return np.fft.ifftn(np.fft.fftn(a - step * a**3) / (1 - step * rate)).real

    return _periodic({"A": _march(grow, a, steps)}, dt, "stripes", grid)


def fading_eddies(seed: int, grid: tuple[int, int] = (80, 56)) -> Trajectory:
    """Eddies in a plane that nothing drives: they merge, and friction fades them."""
    rng = np.random.default_rng(seed)
    start = np.stack([smooth_noise(rng, grid, 1 / grid[0], shortest=0.2) for _ in range(2)], axis=-1)
    return simulate.solve_incompressible(rng.uniform(0.3, 0.6) * start, FRAMES, 0.05, 5e-4, name="fading_eddies")


def rotating_waves(seed: int, grid: tuple[int, int] = (64, 88)) -> Trajectory:
    """Waves of a shallow layer of water on a rotating plane: the exact solution. Pressure is its depth."""
    rng, dt = np.random.default_rng(seed), 0.02
    start, spin = smooth_noise(rng, grid, 1 / grid[0], shortest=0.15), rng.uniform(2, 6)
    kx, ky = _modes(grid, 1 / grid[0])
    # d/dt (p, u, v) = -i matrix (p, u, v), for every mode.
    matrix = np.zeros((*grid, 3, 3), dtype=complex)
    matrix[..., 0, 1] = matrix[..., 1, 0] = kx
    matrix[..., 0, 2] = matrix[..., 2, 0] = ky
    matrix[..., 1, 2], matrix[..., 2, 1] = 1j * spin, -1j * spin
    rates, vectors = np.linalg.eigh(matrix)
    parts = vectors[..., 0, :].conj() * np.fft.fftn(start)[..., None]  # at rest
    frames = [
        np.fft.ifftn(np.einsum("xyfw,xyw->xyf", vectors, parts * np.exp(-1j * rates * t)), axes=(0, 1)).real
        for t in dt * np.arange(FRAMES)
    ]
    fields = {"pressure": [frame[..., 0] for frame in frames], "velocity": [frame[..., 1:] for frame in frames]}
    return _periodic(fields, dt, "rotating_waves", grid)


def spirals(seed: int, grid: tuple[int, int] = (72, 56)) -> Trajectory:
    """Oscillations that wind up into spirals (Ginzburg and Landau, complex): diffusion and reaction exact, in turns."""
    rng, dt, steps = np.random.default_rng(seed), 0.2, 4
    turn, grown = rng.uniform(0.5, 1.2), np.exp(dt / steps)
    z = sum(part * smooth_noise(rng, grid, 1 / grid[0], shortest=0.2) for part in (1, 1j))
    fade = np.exp(-5e-4 * dt / steps * _k_squared(grid))

    def react(z: np.ndarray) -> np.ndarray:
        """Half a step of dz/dt = z - (1 + i turn) |z|^2 z."""
        ratio = 1 + (grown - 1) * np.abs(z) ** 2
        return z * np.sqrt(grown / ratio) * np.exp(-0.5j * turn * np.log(ratio))

    frames = _march(lambda z: react(np.fft.ifftn(fade * np.fft.fftn(react(z)))), z, steps, before=20)
    return _periodic({"A": [z.real for z in frames], "B": [z.imag for z in frames]}, dt, "spirals", grid)


def separation(seed: int, grid: tuple[int, int] = (56, 72)) -> Trajectory:
    """A mixture that parts into drops of which the larger ones grow (Cahn and Hilliard 1958); none of it is lost."""
    rng, dt, steps, k_squared = np.random.default_rng(seed), 0.1, 20, _k_squared(grid)
    a = rng.uniform(-0.3, 0.3) + 0.3 * smooth_noise(rng, grid, 1 / grid[0], shortest=0.1)
    spread = 2e-3 * dt / steps * k_squared

    def part(a: np.ndarray) -> np.ndarray:
        """A^3 - 3 A explicitly; the other 2 A and the width of the fronts implicitly."""
        change = spread * np.fft.fftn(a**3 - 3 * a)
        return np.fft.ifftn((np.fft.fftn(a) - change) / (1 + spread * (2 + 4e-4 * k_squared))).real

    return _periodic({"A": _march(part, a, steps)}, dt, "separation", grid)


def flames(seed: int, grid: tuple[int, int] = (64, 80)) -> Trajectory:
    """Cells of a flame front, chaotic (Kuramoto 1976, Sivashinsky 1977), about its mean; x is 60 long."""
    rng, dt, steps = np.random.default_rng(seed), 0.4, 8
    kx, ky = _modes(grid, 60 / grid[0])
    k_squared = sum_of_squares((kx, ky))
    grow = np.exp((k_squared - k_squared**2) * dt / steps)
    kept = np.maximum(np.abs(kx), np.abs(ky)) < 2 / 3 * np.pi * grid[0] / 60  # none of what is aliased

    def burn(a: np.ndarray) -> np.ndarray:
        waves = np.fft.fftn(a)
        push = np.fft.fftn(sum(np.fft.ifftn(1j * k * waves).real ** 2 for k in (kx, ky)))
        push[0, 0] = 0
        return np.fft.ifftn(grow * (waves - dt / steps / 2 * kept * push)).real

    start = 2 * smooth_noise(rng, grid, 1 / grid[0], shortest=0.1)
    return _periodic({"A": _march(burn, start, steps, before=60)}, dt, "flames", grid)


def thin_water(seed: int, grid: tuple[int, int] = (80, 56)) -> Trajectory:
    """High waves in a shallow layer of water, which break: a gas of which pressure is half the density squared."""
    depth = 1 + 0.3 * smooth_noise(np.random.default_rng(seed), grid, 1 / grid[0], shortest=0.25)
    depth = np.maximum(depth, 0.3)
    sides = {"x": "periodic", "y": "periodic"}
    return simulate.solve_euler(depth, np.zeros((*grid, 2)), depth**2 / 2, FRAMES, 0.02, 2.0, sides, name="thin_water")


def _march(advance: Callable[[Any], Any], state: Any, steps: int, before: int = 0) -> list[Any]:
    """`FRAMES` states with so many steps between them, from so many frames after the start on."""
    found = []
    for frame in range(-before, FRAMES):
        if frame >= 0:
            found.append(state)
        for _ in range(steps):
            state = advance(state)
    return found


def _modes(grid: tuple[int, ...], cell: float) -> list[np.ndarray]:
    """Wavenumbers along each axis, each (H, W[, D])."""
    return np.meshgrid(*(2 * np.pi * np.fft.fftfreq(n, cell) for n in grid), indexing="ij")


def _k_squared(grid: tuple[int, ...]) -> np.ndarray:
    """Where x is 1 long."""
    return sum_of_squares(_modes(grid, 1 / grid[0]))


def _periodic(fields: dict[str, list[np.ndarray]], dt: float, name: str, grid: tuple[int, ...]) -> Trajectory:
    arrays = {field: np.array(frames, dtype=np.float32) for field, frames in fields.items()}
    return trajectory(arrays, dt, name, 1 / grid[0], "xyz"[: len(grid)])


def _known(name: str, **parameters) -> Callable[[int], Trajectory]:
    """A simulation of the package with parameters and a grid that the training data do not have."""
    return functools.partial(simulate.SIMULATIONS[name], frames=FRAMES, **parameters)


# name -> what is unlike the training data, and the simulation of a seed.
UNSEEN: dict[str, tuple[str, Callable[[int], Trajectory]]] = {
    "other_acoustics": ("grid, time step", _known("acoustic_scattering", grid=(96, 40), dt=0.011)),
    "other_burgers": ("grid, viscosity", _known("burgers", grid=(96, 40), viscosity=0.004)),
    "other_quadrants_open": ("grid, heat capacities", _known("euler_multi_quadrants_open", grid=(96, 40), gamma=1.5)),
    "other_quadrants_periodic": (
        "grid, heat capacities", _known("euler_multi_quadrants_periodic", grid=(80, 96), gamma=1.2),
    ),
    "large_gray_scott": ("grid", _known("gray_scott", grid=(128, 128))),
    "other_kolmogorov": (
        "grid, viscosity, drag", _known("kolmogorov_flow", grid=(96, 96), viscosity=1.2e-3, drag=0.07)
    ),
    "other_convection": ("grid, time step, Rayleigh number", _known("rayleigh_benard", grid=(96, 40), dt=0.22,
                                                                    rayleigh=1.5e6)),
    "other_shear_flow": ("grid, viscosity", _known("shear_flow", grid=(96, 40), viscosity=1e-3)),
    "large_shear_flow": ("grid, viscosity", _known("shear_flow", grid=(128, 128), viscosity=3e-4)),
    "large_turbulence": ("grid, viscosity", _known("turbulence_3d", grid=(32, 32, 32), viscosity=2e-3)),
    "other_tracer_3d": (
        "grid, diffusivity", _known("advection_diffusion_3d", grid=(28, 20, 16), diffusivity=0.002, dt=0.025)
    ),
    "wide_wave": ("grid, time step", _known("wave", grid=(128, 128), dt=0.012)),
    "gas_in_a_box": (
        "grid, start, heat capacities", functools.partial(sliding_gas, grid=(72, 40), along_y="wall")
    ),
    "gas_in_layers": (
        "grid, start, heat capacities", functools.partial(sliding_gas, grid=(80, 64), along_y="periodic")
    ),
    "blast": ("grid, start, heat capacities", blast),
    "closed_room": ("grid, medium, start", closed_room),
    "vortices": ("grid, start, solver", vortices),
    "beltrami_flow": ("grid, start, solver", beltrami_flow),
    "line_of_shocks": ("line, solver", line_of_shocks),
    "line_of_sound": ("line, solver", line_of_sound),
    "tracer_in_a_plane": ("plane, stream, solver", tracer_in_a_stream),
    "tracer_in_a_volume": ("grid, stream, solver", functools.partial(tracer_in_a_stream, grid=(32, 16, 24))),
    "other_gray_scott": ("grid, rates, solver", other_gray_scott),
    "phase_fronts": ("values about zero, grid, solver", phase_fronts),
    "stripes": ("grid, start, solver", stripes),
    "rotating_waves": ("equation, grid, solver", rotating_waves),
    "fading_eddies": ("grid, start, viscosity", fading_eddies),
    "spirals": ("equation, grid, solver", spirals),
    "separation": ("equation, grid, solver", separation),
    "flames": ("equation, grid, solver", flames),
    "thin_water": ("kind, grid, start", thin_water),
}  # fmt: skip


def unseen(name: str, number: int) -> Trajectory:
    """Trajectory `number` of an unseen simulation; its seed is none of the training data's."""
    seed = int(np.random.SeedSequence(2026, spawn_key=(number,)).generate_state(1, np.uint64)[0])
    return dataclasses.replace(UNSEEN[name][1](seed), name=f"{name}_{number}")
