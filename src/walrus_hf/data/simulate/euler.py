"""Compressible gas in two dimensions: quadrants that break up into shocks, contacts and fans; a channel; layers.

The quadrants follow The Well's `euler_multi_quadrants_openBC` and `_periodicBC`. Finite volumes in float64: primitive
variables limited by monotonized central differences, HLLC fluxes (Toro, Spruce and Speares 1994) with Einfeldt's wave
speeds, Heun's method in time. Second order where the flow is smooth; mass, momentum and energy are kept to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...fields import BoundaryCondition, Trajectory
from .common import cell_centres, check_arguments, check_positive, periodic, smooth_noise
from .finite_volume import Sides, box_trajectory, parse_sides, step_within, to_tensor

# Of the sum of both directions' fastest waves; the method bears 1.
COURANT = 0.8
# (density, momentum or velocity across the faces, along them, energy or pressure): x and y change places in a sweep.
SWAPPED = [0, 2, 1, 3]


def euler_multi_quadrants(
    seed: int,
    boundary: Literal["open", "periodic", "wall"] = "open",
    grid: tuple[int, int] = (64, 64),
    frames: int = 40,
    dt: float = 0.015,
    gamma: float = 1.4,
) -> Trajectory:
    """Four quadrants of gas, each of constant density, pressure and velocity, that meet at a point and break up.

    The states and the point come from the seed. x is 1 long and cells are square, so y is `W / H` long. Equations,
    fields and `dt` are those of The Well's euler_multi_quadrants, which has 512 x 512 cells and ten values of `gamma`.
    In a periodic box the quadrants also meet across its sides.

    Args:
        seed: the same seed gives the same trajectory.
        boundary: `"open"` (zero gradient), `"periodic"` or `"wall"` (reflecting, slip), on all sides.
        grid: cells (H, W) along x and y.
        frames: frames to return, the initial state included.
        dt: time between frames; sound takes about 1 time unit from one side to the other.
        gamma: ratio of the heat capacities.

    Returns:
        Float32 `density`, `energy` (per volume) and `pressure` (frames, H, W), and `momentum` (frames, H, W, 2).

    Raises:
        ValueError: unusable arguments.
    """
    check_arguments(grid, frames, dt)
    if boundary not in ("open", "periodic", "wall"):
        raise ValueError(f"boundary: expected 'open', 'periodic' or 'wall', found {boundary!r}")
    density, velocity, pressure = _quadrants(np.random.default_rng(seed), grid)
    sides = {"x": boundary, "y": boundary}
    name = f"euler_multi_quadrants_{boundary}_{seed}"
    return solve_euler(density, velocity, pressure, frames, dt, gamma, sides, name=name)


def euler_channel(
    seed: int, grid: tuple[int, int] = (64, 64), frames: int = 40, dt: float = 0.02, gamma: float = 1.4
) -> Trajectory:
    """Gas that streams along a channel with slip walls below and above, and rolls up: periodic along x, walls along y.

    The start is smooth: layers and clouds of other density, velocity and, less, pressure, drawn from the seed, a
    quarter of a unit or more across. No gas moves through the walls. Units, arguments, fields with their shapes and
    errors are those of `euler_multi_quadrants`.
    """
    check_arguments(grid, frames, dt)
    rng, cell = np.random.default_rng(seed), 1 / grid[0]
    y = cell_centres(grid, cell)[1]
    noise = [smooth_noise(rng, grid, cell, shortest=0.25) for _ in range(4)]
    layers = [rng.normal() * np.cos(np.pi * n * y / (grid[1] * cell)) for n in range(1, 5)]
    density = np.exp(rng.uniform(0.1, 0.4) * noise[0] + 0.2 * layers[0] + 0.1 * layers[1])
    pressure = np.exp(rng.uniform(0.0, 0.2) * noise[1])
    along = rng.uniform(-0.3, 0.3) + rng.uniform(0.05, 0.3) * noise[2] + 0.2 * layers[2] + 0.2 * layers[3]
    across = rng.uniform(0.05, 0.3) * noise[3] * np.sin(np.pi * y / (grid[1] * cell))
    sides = {"x": "periodic", "y": "wall"}
    velocity = np.stack([along, across], axis=-1)
    return solve_euler(density, velocity, pressure, frames, dt, gamma, sides, name=f"euler_channel_{seed}")


def euler_layers(
    seed: int,
    boundary: Literal["periodic", "wall"] = "periodic",
    grid: tuple[int, int] = (64, 64),
    frames: int = 40,
    dt: float = 0.025,
    gamma: float = 1.4,
) -> Trajectory:
    """A layer of gas that slides along x through other gas and mostly rolls up (Kelvin and Helmholtz).

    Place, width and edges of the layer, its density and speed, and the waves on it come from the seed. The pressure is
    the same everywhere at first; later it differs by a hundredth to a fifth (RMS). Units, other arguments, fields with
    their shapes and errors are those of `euler_multi_quadrants`.

    Args:
        boundary: `"periodic"` or `"wall"` (reflecting, slip) below and above; along x the box is periodic.
    """
    check_arguments(grid, frames, dt)
    if boundary not in ("periodic", "wall"):
        raise ValueError(f"boundary: expected 'periodic' or 'wall', found {boundary!r}")
    rng, cell = np.random.default_rng(seed), 1 / grid[0]
    x, y = cell_centres(grid, cell)
    length = grid[1] * cell
    middle, half = rng.uniform(0.4, 0.6) * length, rng.uniform(0.12, 0.25) * length
    edge = rng.uniform(0.02, 0.05) * min(1, length)
    inside = 0.5 * (np.tanh((half - np.abs(periodic(y - middle, length))) / edge) + 1)
    density = rng.uniform(0.5, 1.5) + rng.uniform(-0.4, 1.0) * inside
    along = rng.uniform(-0.3, 0.3) + rng.choice((-1, 1)) * rng.uniform(0.6, 1.5) * (inside - 0.5)
    waves = sum(rng.normal() / n * np.sin(2 * np.pi * (n * x + rng.uniform())) for n in range(1, 5))
    across = rng.uniform(0.06, 0.2) * waves * np.sin(np.pi * y / length)
    velocity, sides = np.stack([along, across], axis=-1), {"x": "periodic", "y": boundary}
    pressure = np.full(grid, rng.uniform(0.6, 1.2))
    return solve_euler(density, velocity, pressure, frames, dt, gamma, sides, name=f"euler_layers_{boundary}_{seed}")


def solve_euler(
    density: np.ndarray,
    velocity: np.ndarray,
    pressure: np.ndarray,
    frames: int,
    dt: float,
    gamma: float = 1.4,
    boundary_conditions: Mapping[str, Any] | None = None,
    cell: float | None = None,
    name: str = "euler",
) -> Trajectory:
    """`euler_multi_quadrants` from a start of your own: density (H, W), velocity (H, W, 2) and pressure (H, W).

    Args:
        density, velocity, pressure: the first frame, cell averages or values at cell centres.
        frames, dt, gamma: as in `euler_multi_quadrants`.
        boundary_conditions: as in `Trajectory`: `"open"`, `"periodic"` or `"wall"` (reflecting, slip) an axis or a
            side; all open by default.
        cell: side of a cell; `1 / H` by default, so that x is 1 long.
        name: of the trajectory.

    Raises:
        ValueError: arrays that do not fit or are not finite, density or pressure not positive, or a solution that
            lost its positive density or pressure.
    """
    if boundary_conditions is None:
        boundary_conditions = {"x": "open", "y": "open"}
    grid = np.shape(density)
    check_arguments(grid, frames, dt)
    if not 1 < gamma < np.inf:
        raise ValueError(f"gamma: expected a number above 1, found {gamma}")
    cell = 1 / grid[0] if cell is None else cell
    check_positive(cell=cell)
    u, v = to_tensor(velocity, (*grid, 2), "velocity").unbind(-1)
    start = torch.stack([to_tensor(density, grid, "density"), u, v, to_tensor(pressure, grid, "pressure")])
    if not _is_gas(start):
        raise ValueError("density and pressure: expected positive numbers, found zero or negative ones")
    states = _march(start, frames, dt, gamma, parse_sides(boundary_conditions), cell, name)
    fields = {
        "density": states[0],
        "energy": states[3],
        "pressure": _primitive(states, gamma)[3],
        "momentum": states[1:3].movedim(0, -1),
    }
    return box_trajectory(fields, boundary_conditions, dt, name, cell)


def _march(
    start: Tensor, frames: int, dt: float, gamma: float, sides: tuple[Sides, Sides], cell: float, name: str
) -> Tensor:
    """The conserved state (4, frames, H, W) of every frame, the first included, from a primitive start (4, H, W)."""
    state, primitive = _conserved(start, gamma), start
    states = state.new_empty(4, frames, *state.shape[1:])
    states[:, 0] = state
    for n in range(1, frames):
        left = dt
        while left > 0:
            rate, speed = _rate(primitive, gamma, sides)
            step = step_within(left, COURANT * cell / speed, name)
            first = state + step / cell * rate
            rate, _ = _rate(_checked(_primitive(first, gamma), name, n), gamma, sides)
            state = (state + first + step / cell * rate) / 2
            primitive = _checked(_primitive(state, gamma), name, n)
            left = left - step if step < left else 0.0
        states[:, n] = state
    return states


def _rate(primitive: Tensor, gamma: float, sides: tuple[Sides, Sides]) -> tuple[Tensor, float]:
    """Flux into each cell of (4, H, W), and the sum of the fastest waves along x and y."""
    along_x, speed_x = _sweep(primitive.transpose(1, 2), sides[0], gamma)
    along_y, speed_y = _sweep(primitive[SWAPPED], sides[1], gamma)
    return along_x.transpose(1, 2) + along_y[SWAPPED], speed_x + speed_y


def _sweep(primitive: Tensor, sides: Sides, gamma: float) -> tuple[Tensor, float]:
    """Flux into each cell along the last axis of (4, lines, n), whose velocity is component 1, and the fastest wave."""
    cells = _with_ghosts(primitive, *sides)
    jump = cells.diff(dim=-1)
    before, after = jump[..., :-1], jump[..., 1:]
    # Monotonized central: the mean of both jumps, but at most twice the smaller, and zero where they disagree.
    most = 2 * torch.minimum(before, after).clamp(min=0)
    least = 2 * torch.maximum(before, after).clamp(max=0)
    half = 0.5 * torch.clamp(0.5 * (before + after), least, most)
    centre = cells[..., 1:-1]
    flux, speed = _hllc((centre + half)[..., :-1], (centre - half)[..., 1:], gamma)
    return -flux.diff(dim=-1), speed


def _with_ghosts(primitive: Tensor, low: BoundaryCondition, high: BoundaryCondition) -> Tensor:
    """Two more cells on both sides of the last axis."""
    first, last = primitive[..., :2], primitive[..., -2:]
    if low == BoundaryCondition.PERIODIC:
        return torch.cat([last, primitive, first], dim=-1)
    mirror = primitive.new_tensor([1, -1, 1, 1])[:, None, None]
    outside = [
        mirror * edge.flip(-1) if side == BoundaryCondition.WALL else outermost.expand_as(edge)
        for side, edge, outermost in ((low, first, first[..., :1]), (high, last, last[..., 1:]))
    ]
    return torch.cat([outside[0], primitive, outside[1]], dim=-1)


def _hllc(left: Tensor, right: Tensor, gamma: float) -> tuple[Tensor, float]:
    """Flux (4, lines, faces) between two primitive states, and the fastest wave's speed."""
    both = torch.stack([left, right], dim=1)
    rho, u, _, p = both
    sound_squared = gamma * p / rho
    sound = sound_squared.sqrt()
    # Einfeldt's estimate of the outermost waves, which keeps density and pressure positive.
    weight = rho.sqrt()
    weight = weight / weight.sum(dim=0)
    mean = (weight * u).sum(dim=0)
    spread = ((weight * sound_squared).sum(dim=0) + 0.5 * weight[0] * weight[1] * (u[1] - u[0]) ** 2).sqrt()
    slow, fast = torch.minimum(u[0] - sound[0], mean - spread), torch.maximum(u[1] + sound[1], mean + spread)

    outer = torch.stack([slow, fast])
    mass = rho * (outer - u)  # through the outermost waves
    contact = (p[1] - p[0] + mass[0] * u[0] - mass[1] * u[1]) / (mass[0] - mass[1])
    from_left = contact >= 0
    rho, u, v, p = torch.where(from_left, both[:, 0], both[:, 1])
    wave = torch.where(from_left, slow, fast)
    reach = torch.where(from_left, slow.clamp(max=0), fast.clamp(min=0))  # zero where all waves run to one side

    energy = p / (gamma - 1) + 0.5 * rho * (u * u + v * v)
    flow = rho * u
    gap = wave - u
    behind = rho * gap / (wave - contact)  # density between the wave and the contact
    behind_energy = behind * (energy / rho + (contact - u) * (contact + p / (rho * gap)))
    flux = torch.stack(
        [
            flow + reach * (behind - rho),
            flow * u + p + reach * (behind * contact - flow),
            flow * v + reach * (behind - rho) * v,
            u * (energy + p) + reach * (behind_energy - energy),
        ]
    )
    return flux, float(torch.maximum(-slow, fast).max())


def _primitive(state: Tensor, gamma: float) -> Tensor:
    rho, mx, my, energy = state
    u, v = mx / rho, my / rho
    return torch.stack([rho, u, v, (gamma - 1) * (energy - 0.5 * (mx * u + my * v))])


def _conserved(primitive: Tensor, gamma: float) -> Tensor:
    rho, u, v, p = primitive
    return torch.stack([rho, rho * u, rho * v, p / (gamma - 1) + 0.5 * rho * (u * u + v * v)])


def _is_gas(primitive: Tensor) -> bool:
    """Whether density and pressure are positive (and no NaN)."""
    return bool((primitive[[0, 3]] > 0).all())


def _checked(primitive: Tensor, name: str, frame: int) -> Tensor:
    if not _is_gas(primitive):
        raise ValueError(
            f"{name}: the solution diverged, density or pressure is not positive before frame {frame}; "
            "take a calmer start or more cells"
        )
    return primitive


def _quadrants(rng: np.random.Generator, grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    low_x = np.arange(grid[0]) < rng.uniform(0.3, 0.7) * grid[0]
    low_y = np.arange(grid[1]) < rng.uniform(0.3, 0.7) * grid[1]
    quadrant = 2 * low_x[:, None] + low_y
    density = rng.uniform(0.2, 2.0, size=4)
    pressure = np.exp(rng.uniform(np.log(0.2), np.log(2.0), size=4))
    velocity = rng.uniform(-0.7, 0.7, size=(4, 2))
    return density[quadrant], velocity[quadrant], pressure[quadrant]
