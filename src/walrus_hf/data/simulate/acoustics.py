"""Sound in a medium with a jump: pressure rings that spread, scatter at the jump, and leave through two open sides.

Follows The Well's `acoustic_scattering_discontinuous`. The linear equations `p_t + K div u = 0` and
`rho u_t + grad p = 0` on a staggered grid, pressure in the cells and velocity on the faces between them (as Yee, 1966,
for light), leapfrogged in time: second order, and between walls an energy is kept exactly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...fields import BoundaryCondition, Trajectory
from .common import cell_centres, check_arguments, check_positive
from .finite_volume import Sides, box_trajectory, parse_sides, step_within, to_tensor

BULK_MODULUS = 4.0  # The Well's, the same everywhere: density decides the speed of sound
DENSITIES = (1.0, 7.0)
SIDES = {"x": "wall", "y": "open"}
CLOSED = {"x": "wall", "y": "wall"}
REFINEMENT = 4  # cells of the solver to a cell of the frames, along each axis
COURANT = 0.9  # of the largest stable step


def acoustic_scattering(
    seed: int,
    grid: tuple[int, int] = (64, 64),
    frames: int = 40,
    dt: float = 0.01,
    boundary_conditions: Mapping[str, Any] = SIDES,
) -> Trajectory:
    """Rings of pressure in two media side by side, by default between reflecting walls in x and open sides in y.

    Media, where they meet and the rings come from the seed. In each medium the density is constant, a slope, a bump or
    smooth noise. x runs from -1 to 1 and cells are square, so y runs from `-W / H` to `W / H`. Equations, bulk modulus
    and densities are those of The Well's acoustic_scattering_discontinuous, which has 256 x 256 cells and a `dt` of
    2/101; here the rings have no jumps. Solved on four times the cells along each axis, of which frames are averages.

    Args:
        seed: the same seed gives the same trajectory.
        grid: cells (H, W) along x and y.
        frames: frames to return, the initial state included.
        dt: time between frames; sound moves by 0.8 to 2 length units in 1 time unit.
        boundary_conditions: `"wall"` or `"open"` an axis or a side, as in `solve_acoustics`.

    Returns:
        Float32 `pressure` (frames, H, W) and `velocity` (frames, H, W, 2); constant `density` and `speed_of_sound`
        (H, W). The published model reads a field of zeros, `zeros_like_density`, in place of this `density`.

    Raises:
        ValueError: unusable arguments.
    """
    check_arguments(grid, frames, dt)
    rng = np.random.default_rng(seed)
    fine, cell, half_width = (REFINEMENT * grid[0], REFINEMENT * grid[1]), 2 / grid[0], grid[1] / grid[0]
    x, y = cell_centres(fine, cell / REFINEMENT)
    x, y = x - 1, y - half_width
    pressure = torch.from_numpy(_rings(rng, x, y, half_width))
    media = torch.from_numpy(_two_media(rng, x, y, half_width, cell))
    speed, rest = (BULK_MODULUS / media).sqrt(), media.new_zeros(*fine, 2)
    sides, name = _not_periodic(boundary_conditions), f"acoustic_scattering_{seed}"
    fields = _march(pressure, rest, media, speed, sides, cell / REFINEMENT, frames, dt, name, REFINEMENT)
    density = _block_means(media, REFINEMENT)
    constants = {"density": density, "speed_of_sound": (BULK_MODULUS / density).sqrt()}
    return box_trajectory(fields, boundary_conditions, dt, name, cell, (-1.0, -half_width), constants)


def solve_acoustics(
    pressure: np.ndarray,
    velocity: np.ndarray,
    density: np.ndarray,
    speed_of_sound: np.ndarray,
    frames: int,
    dt: float,
    boundary_conditions: Mapping[str, Any] = SIDES,
    cell: float | None = None,
    name: str = "acoustics",
) -> Trajectory:
    """Sound from a start of your own, on the cells given.

    Args:
        pressure, velocity: the start at cell centres, (H, W) and (H, W, 2). Velocities are averaged onto the faces
            between cells and from there into the frames, so the first frame shows them slightly smoothed.
        density, speed_of_sound: of the medium, (H, W), positive.
        frames, dt: as in `acoustic_scattering`.
        boundary_conditions: `"wall"` (reflecting) or `"open"` an axis or a side, as in `Trajectory`. Open sides absorb
            what arrives head-on, and reflect `(1 - cos a) / (1 + cos a)` of what arrives at an angle `a` to that.
        cell: side of a cell; `1 / H` by default, so that x is 1 long.
        name: of the trajectory.

    Raises:
        ValueError: arrays that do not fit or are not finite, a medium that is not positive, periodic sides.
    """
    grid = np.shape(pressure)
    check_arguments(grid, frames, dt)
    cell = 1 / grid[0] if cell is None else cell
    check_positive(cell=cell)
    rho, speed = to_tensor(density, grid, "density"), to_tensor(speed_of_sound, grid, "speed_of_sound")
    if not (rho > 0).all() or not (speed > 0).all():
        raise ValueError("density and speed_of_sound: expected positive numbers, found zero or negative ones")
    sides = _not_periodic(boundary_conditions)
    start, flow = to_tensor(pressure, grid, "pressure"), to_tensor(velocity, (*grid, 2), "velocity")
    fields = _march(start, flow, rho, speed, sides, cell, frames, dt, name)
    constants = {"density": rho, "speed_of_sound": speed}
    return box_trajectory(fields, boundary_conditions, dt, name, cell, constant_fields=constants)


def _not_periodic(boundary_conditions: Mapping[str, Any]) -> tuple[Sides, Sides]:
    sides = parse_sides(boundary_conditions)
    if any(side == BoundaryCondition.PERIODIC for pair in sides for side in pair):
        raise ValueError(f"boundary_conditions: expected 'wall' or 'open' sides, found {boundary_conditions}")
    return sides


def _march(
    pressure: Tensor,
    velocity: Tensor,
    density: Tensor,
    speed: Tensor,
    sides: tuple[Sides, Sides],
    cell: float,
    frames: int,
    dt: float,
    name: str,
    blocks: int = 1,
) -> dict[str, Tensor]:
    """Pressure and velocity of every frame, averaged over blocks of `blocks` x `blocks` cells."""
    x = _Axis.of(velocity[..., 0].T, density.T, speed.T, sides[0], cell)
    y = _Axis.of(velocity[..., 1], density, speed, sides[1], cell)
    stiffness = density * speed**2 / cell
    # Gershgorin's bound on the operator, exact in a uniform medium.
    faces = (x.push[:, :-1] + x.push[:, 1:]).T + y.push[:, :-1] + y.push[:, 1:]
    step = step_within(dt, COURANT * float((2 / (stiffness * faces).max()).sqrt()), name)
    shape = (frames, pressure.shape[0] // blocks, pressure.shape[1] // blocks)
    pressures, velocities = pressure.new_empty(shape), pressure.new_empty(*shape, 2)
    now = x.flow, y.flow
    x.kick(pressure.T, step / 2)  # from here on, velocity is half a step ahead of pressure
    y.kick(pressure, step / 2)
    for n in range(frames):
        for _ in range(round(dt / step) if n else 0):
            pressure = pressure - step * stiffness * (x.flow.diff(dim=1).T + y.flow.diff(dim=1))
            before = x.flow, y.flow
            x.kick(pressure.T, step)
            y.kick(pressure, step)
            now = (before[0] + x.flow) / 2, (before[1] + y.flow) / 2
        pressures[n] = _block_means(pressure, blocks)
        velocities[n, ..., 0] = _block_means(_at_centres(now[0]).T, blocks)
        velocities[n, ..., 1] = _block_means(_at_centres(now[1]), blocks)
    return {"pressure": pressures, "velocity": velocities}


@dataclasses.dataclass
class _Axis:
    """Velocity on the faces along one axis, which is the last one here: `flow` (lines, n + 1), and what moves it."""

    flow: Tensor
    push: Tensor  # 1 / (density * cell) on the faces
    rates: tuple[Tensor | None, Tensor | None]  # speed of sound / cell where the low and the high side are open

    @classmethod
    def of(cls, velocity: Tensor, density: Tensor, speed: Tensor, sides: Sides, cell: float) -> _Axis:
        flow, rho = _on_faces(velocity), _on_faces(density)
        rates: list[Tensor | None] = []
        for index, side in zip((0, -1), sides):
            if side == BoundaryCondition.WALL:
                flow[:, index] = 0
            rates.append(None if side == BoundaryCondition.WALL else speed[:, index] / cell)
        return cls(flow, 1 / (rho * cell), (rates[0], rates[1]))

    def kick(self, pressure: Tensor, step: float) -> None:
        """Accelerate the faces by the pressure in the cells (lines, n) for `step`."""
        flow = self.flow.clone()
        flow[:, 1:-1] -= step * self.push[:, 1:-1] * pressure.diff(dim=1)
        # Outside an open side, sound only leaves: there pressure is impedance times velocity, half a cell away.
        for index, outward, rate in zip((0, -1), (-1, 1), self.rates):
            if rate is not None:
                gain = 2 * step * outward * self.push[:, index] * pressure[:, index]
                flow[:, index] = ((1 - step * rate) * flow[:, index] + gain) / (1 + step * rate)
        self.flow = flow


def _on_faces(values: Tensor) -> Tensor:
    """From cells (lines, n) to faces (lines, n + 1): means of both neighbours, and the outermost cells' own."""
    return torch.cat([values[:, :1], (values[:, :-1] + values[:, 1:]) / 2, values[:, -1:]], dim=1)


def _at_centres(flow: Tensor) -> Tensor:
    return (flow[:, :-1] + flow[:, 1:]) / 2


def _block_means(values: Tensor, blocks: int) -> Tensor:
    """(H, W) to (H / blocks, W / blocks)."""
    h, w = values.shape
    return values.reshape(h // blocks, blocks, w // blocks, blocks).mean(dim=(1, 3))


def _rings(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, half_width: float) -> np.ndarray:
    pressure = np.zeros_like(x)
    for _ in range(rng.integers(1, 5)):
        distance = np.hypot(x - rng.uniform(-0.95, 0.95), y - rng.uniform(-0.95, 0.95) * half_width)
        width = rng.uniform(0.07, 0.15)  # from The Well's 0.05 on, 64 cells do not resolve it
        offset = (distance - rng.uniform(width, 0.3)) / width
        pressure += rng.uniform(0.5, 2.0) * np.where(np.abs(offset) < 1, (1 + np.cos(np.pi * offset)) / 2, 0)
    return pressure


def _two_media(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, half_width: float, cell: float) -> np.ndarray:
    """Density (H, W), with a jump on a line between cells of size `cell` across x or y."""
    across, edge = ((x, 1.0), (y, half_width))[rng.integers(2)]
    line = -edge + cell * round(rng.uniform(0.1, 0.9) * 2 * edge / cell)
    kinds = (_constant, _slope, _bump, _noise)
    low, high = (kinds[rng.integers(len(kinds))](rng, x, y, half_width) for _ in range(2))
    return np.where(across < line, low, high)


def _constant(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, half_width: float) -> np.ndarray:
    return np.full_like(x, rng.uniform(*DENSITIES))


def _slope(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, half_width: float) -> np.ndarray:
    """Bilinear between the four corners."""
    (low_low, low_high), (high_low, high_high) = rng.uniform(*DENSITIES, size=(2, 2))
    s, t = (x + 1) / 2, (y / half_width + 1) / 2
    return (1 - s) * ((1 - t) * low_low + t * low_high) + s * ((1 - t) * high_low + t * high_high)


def _bump(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, half_width: float) -> np.ndarray:
    base, peak = rng.uniform(*DENSITIES, size=2)
    squared = (x - rng.uniform(-1, 1)) ** 2 + (y - rng.uniform(-1, 1) * half_width) ** 2
    return base + (peak - base) * np.exp(-squared / rng.uniform(0.1, 5))


def _noise(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, half_width: float) -> np.ndarray:
    """Gaussian noise with a Gaussian spectrum, smooth over 0.04 to 0.08 and a tenth of the mean density strong."""
    mean, smooth = rng.uniform(*DENSITIES), rng.uniform(0.04, 0.08)
    modes = np.arange(-24, 25)  # beyond them there is next to nothing
    k_x, k_y = np.pi * modes, np.pi * modes / half_width
    weights = np.exp(-((k_x[:, None] ** 2 + k_y**2) * smooth**2) / 2)
    amplitudes = weights * (rng.standard_normal(weights.shape) + 1j * rng.standard_normal(weights.shape))
    noise = (np.exp(1j * x[:, :1] * k_x) @ amplitudes @ np.exp(1j * k_y[:, None] * y[:1])).real
    return mean * (1 + 0.1 * noise / np.sqrt((weights**2).sum()))
