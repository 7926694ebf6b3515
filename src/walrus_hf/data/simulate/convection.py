"""Rayleigh-Benard convection: a layer of fluid heated from below and cooled from above, between two no-slip walls.

Follows The Well's `rayleigh_benard`. Boussinesq equations on a staggered grid (Harlow and Welch, 1965): buoyancy and
pressure in the cells, velocity on the faces, central differences in flux form, which neither make nor lose energy. The
pressure comes from an exact solve, waves in x and cosines in y, inside each of the three stages of Shu and Osher's
Runge-Kutta method, so the flow is free of divergence to rounding and the pressure is that of its frame.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ...fields import Trajectory
from .common import cell_centres, check_arguments, check_positive
from .finite_volume import box_trajectory, step_within, to_tensor

# Buoyancy at the lower and at the upper wall.
BOTTOM, TOP = 1.0, 0.0
# Stable are a sum of Courant numbers up to 1.73 without friction, and 8 * viscosity * step / cell^2 up to 2.51 without
# flow; the two shares of these bounds add up to at most 1 here.
COURANT, DIFFUSION = 1.4, 2.0
SPIN_UP = 8.0  # until plumes have crossed the layer


def rayleigh_benard(
    seed: int,
    grid: tuple[int, int] = (64, 32),
    frames: int = 40,
    dt: float = 0.25,
    rayleigh: float | None = None,
    prandtl: float | None = None,
) -> Trajectory:
    """Convection between a warm lower and a cold upper wall; x is periodic, y points up.

    Rayleigh and Prandtl number and the perturbations come from the seed. Lengths are in heights of the layer, times in
    free-fall times, so the viscosity is `sqrt(Pr / Ra)` and the diffusivity `1 / sqrt(Pr Ra)`: equations, walls and
    `dt` are those of The Well's rayleigh_benard, which has Rayleigh numbers from 1e6 on, on 512 x 128 cells. y is 1
    high and cells are square, so x is `H / W` long.

    Args:
        seed: the same seed gives the same trajectory.
        grid: cells (H, W) along x and y.
        frames: frames to return; the first shows the layer 8 time units after it was perturbed.
        dt: time between frames.
        rayleigh: buoyancy over friction; drawn from 1e5 to 1e6 by default, which suits 32 cells along y.
        prandtl: viscosity over diffusivity; drawn from 0.5 to 5 by default.

    Returns:
        Float32 `buoyancy` (frames, H, W), 1 at the lower wall and 0 at the upper, `pressure` (frames, H, W), whose mean
        is zero, and `velocity` (frames, H, W, 2).

    Raises:
        ValueError: unusable arguments, or the solution diverged.
    """
    check_arguments(grid, frames, dt)
    rng = np.random.default_rng(seed)
    drawn_rayleigh, drawn_prandtl = 10 ** rng.uniform(5, 6), 5 ** rng.uniform(-0.43, 1)
    buoyancy = _perturbed_layer(rng, grid)
    return solve_rayleigh_benard(
        buoyancy,
        np.zeros((*grid, 2)),
        frames,
        dt,
        drawn_rayleigh if rayleigh is None else rayleigh,
        drawn_prandtl if prandtl is None else prandtl,
        spin_up=SPIN_UP,
        name=f"rayleigh_benard_{seed}",
    )


def solve_rayleigh_benard(
    buoyancy: np.ndarray,
    velocity: np.ndarray,
    frames: int,
    dt: float,
    rayleigh: float,
    prandtl: float,
    spin_up: float = 0.0,
    name: str = "rayleigh_benard",
) -> Trajectory:
    """Rayleigh-Benard convection from a start of your own.

    Args:
        buoyancy, velocity: the start at cell centres, (H, W) and (H, W, 2). Velocities are averaged onto the faces
            between cells, freed of their divergence, and averaged back into the frames.
        frames, dt, rayleigh, prandtl: as in `rayleigh_benard`.
        spin_up: time before the first frame.
        name: of the trajectory.

    Raises:
        ValueError: arrays that do not fit or are not finite, other unusable arguments, or the solution diverged.
    """
    grid = np.shape(buoyancy)
    check_arguments(grid, frames, dt)
    check_positive(rayleigh=rayleigh, prandtl=prandtl)
    if not 0 <= spin_up < math.inf:
        raise ValueError(f"spin_up: expected a time of at least 0, found {spin_up}")
    centred = to_tensor(velocity, (*grid, 2), "velocity")
    layer = _Layer(grid, math.sqrt(prandtl / rayleigh), 1 / math.sqrt(prandtl * rayleigh))
    state = torch.stack([centred[..., 0], centred[..., 1], to_tensor(buoyancy, grid, "buoyancy")])
    state[0] = (state[0] + state[0].roll(1, 0)) / 2
    state[1, :, 1:] = (state[1, :, 1:] + state[1, :, :-1]) / 2
    state[1, :, 0] = 0
    layer.project(state)

    state = layer.advance(state, spin_up, name) if spin_up else state
    states = state.new_empty(frames, *state.shape)
    pressure = state.new_empty(frames, *grid)
    for n in range(frames):
        state = layer.advance(state, dt, name) if n else state
        states[n], pressure[n] = state, layer.rate(state)[1]
    u, v = states[:, 0], torch.nn.functional.pad(states[:, 1], (0, 1))
    centres = torch.stack([(u + u.roll(-1, 1)) / 2, (v[..., :-1] + v[..., 1:]) / 2], dim=-1)
    fields = {"buoyancy": states[:, 2], "pressure": pressure, "velocity": centres}
    return box_trajectory(fields, {"x": "periodic", "y": "wall"}, dt, name, 1 / grid[1])


class _Layer:
    """The equations on one grid.

    A state (3, H, W) holds velocity along x on the low faces in x, velocity along y on the low faces in y, the first of
    which is the lower wall, and buoyancy in the cells.
    """

    def __init__(self, grid: tuple[int, int], viscosity: float, diffusivity: float):
        self.cell = 1 / grid[1]
        self.largest_diffusivity = max(viscosity, diffusivity)
        self.diffusivities = torch.tensor([viscosity, viscosity, diffusivity], dtype=torch.float64)[:, None, None]
        self.ghosted = torch.zeros(3, grid[0] + 2, grid[1] + 2, dtype=torch.float64)
        # Second differences with no flux through the walls: eigenvectors along y, and the inverse of all eigenvalues.
        x, y = (np.arange(n) for n in grid)
        cosines = np.cos(np.pi / grid[1] * (y[:, None] + 0.5) * y)
        self.cosines = torch.from_numpy(cosines / np.linalg.norm(cosines, axis=0))
        along_x = np.sin(np.pi / grid[0] * x[: grid[0] // 2 + 1]) ** 2
        eigenvalues = 4 * along_x[:, None] + 4 * np.sin(np.pi / 2 / grid[1] * y) ** 2
        eigenvalues[0, 0] = np.inf  # the mean of the pressure is zero
        self.inverse = torch.from_numpy(-(self.cell**2) / eigenvalues)

    def advance(self, state: Tensor, time: float, name: str) -> Tensor:
        """The state after `time`."""
        left = time
        while left > 0:
            speed = float(state[0].abs().max() + state[1].abs().max())
            friction = 8 * self.largest_diffusivity / self.cell
            step = step_within(left, self.cell / (speed / COURANT + friction / DIFFUSION), name)
            first = state + step * self.rate(state)[0]
            second = 0.75 * state + 0.25 * (first + step * self.rate(first)[0])
            state = (state + 2 * (second + step * self.rate(second)[0])) / 3
            left = left - step if step < left else 0.0
        return state

    def rate(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Time derivative of the state, and the pressure (H, W) that keeps it free of divergence."""
        around = self._with_ghosts(state)
        # Between neighbours in x, for faces 0 to H, and in y, for faces 0 to W; corners are both.
        in_x, in_y = (around[:, :-1] + around[:, 1:]) / 2, (around[:, :, :-1] + around[:, :, 1:]) / 2
        carry_x = torch.stack([in_x[0, :, 1:-1], in_y[0, 1:, :-1], around[0, 1:, 1:-1]])
        carry_y = torch.stack([in_x[1, :-1, 1:], in_y[1, 1:-1], around[1, 1:-1, 1:]])
        spread = self.diffusivities / self.cell
        flux_x = carry_x * in_x[:, :, 1:-1] - spread * around[:, :, 1:-1].diff(dim=1)
        flux_y = carry_y * in_y[:, 1:-1] - spread * around[:, 1:-1].diff(dim=2)
        rate = -(flux_x.diff(dim=1) + flux_y.diff(dim=2)) / self.cell
        rate[1] += in_y[2, 1:-1, :-1]
        rate[1, :, 0] = 0
        return rate, self.project(rate)

    def project(self, state: Tensor) -> Tensor:
        """Take a gradient off the velocity, so that no divergence is left, and return its potential (H, W)."""
        u, v = state[0], state[1]
        divergence = torch.cat([u[1:], u[:1]]) - u
        divergence -= v
        divergence[:, :-1] += v[:, 1:]
        modes = torch.fft.rfft(divergence / self.cell @ self.cosines, dim=0) * self.inverse
        potential = torch.fft.irfft(modes, n=len(u), dim=0) @ self.cosines.T
        u -= (potential - torch.cat([potential[-1:], potential[:-1]])) / self.cell
        v[:, 1:] -= potential.diff(dim=1) / self.cell
        return potential

    def _with_ghosts(self, state: Tensor) -> Tensor:
        """One more cell on all sides, (3, H + 2, W + 2): no slip and fixed buoyancy at the walls, periodic in x."""
        around = self.ghosted
        around[:, 1:-1, 1:-1] = state
        around[0, :, 0], around[0, :, -1] = -around[0, :, 1], -around[0, :, -2]
        around[2, :, 0], around[2, :, -1] = 2 * BOTTOM - around[2, :, 1], 2 * TOP - around[2, :, -2]
        around[:, 0], around[:, -1] = around[:, -2], around[:, 1]
        return around


def _perturbed_layer(rng: np.random.Generator, grid: tuple[int, int]) -> np.ndarray:
    x, y = cell_centres(grid, 1 / grid[1])
    length = grid[0] / grid[1]
    buoyancy = BOTTOM + (TOP - BOTTOM) * y
    for n in range(1, 1 + max(4, round(3 * length))):
        for m in (1, 2):
            wave = np.cos(2 * np.pi * n * x / length + rng.uniform(0, 2 * np.pi))
            buoyancy += 0.03 * rng.standard_normal() * wave * np.sin(np.pi * m * y)
    return buoyancy
