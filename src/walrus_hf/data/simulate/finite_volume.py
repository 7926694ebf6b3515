"""What the simulations with walls and open sides share: sides of a box, tensors in and a trajectory out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...fields import BoundaryCondition, Trajectory

Sides = tuple[BoundaryCondition, BoundaryCondition]
MOST_STEPS = 100_000


def parse_sides(boundary_conditions: Mapping[str, Any]) -> tuple[Sides, Sides]:
    """(low, high) of x and of y, from a mapping as in `Trajectory`, which checks it."""
    parsed = Trajectory({"any": np.zeros((1, 1, 1))}, boundary_conditions).boundary_conditions
    return parsed["x"], parsed["y"]


def to_tensor(values: np.ndarray, shape: tuple[int, ...], what: str) -> Tensor:
    """A float64 copy on the CPU; `ValueError` for another shape, NaN or infinity."""
    if np.shape(values) != shape:
        raise ValueError(f"{what}: expected shape {shape}, found {np.shape(values)}")
    tensor = torch.from_numpy(np.array(values, dtype=np.float64))
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{what}: expected finite numbers, found NaN or infinity")
    return tensor


def step_within(remaining: float, limit: float, name: str) -> float:
    """The longest step of at most `limit` that divides the time to the next frame evenly; `ValueError` if tiny."""
    if not remaining <= MOST_STEPS * limit:  # NaN too
        raise ValueError(
            f"{name}: the solution diverged, or needs more than {MOST_STEPS} steps to the next frame; "
            "take a calmer start or a smaller dt"
        )
    return remaining / math.ceil(remaining / limit)


def box_trajectory(
    fields: Mapping[str, Tensor],
    boundary_conditions: Mapping[str, Any],
    dt: float,
    name: str,
    cell: float,
    corner: tuple[float, float] = (0.0, 0.0),
    constant_fields: Mapping[str, Tensor] | None = None,
) -> Trajectory:
    """A float32 trajectory on a box of square cells whose low corner is at `corner`; `ValueError` unless finite."""
    grid = next(iter(fields.values())).shape[1:3]
    constants = {} if constant_fields is None else constant_fields
    trajectory = Trajectory(
        fields={field: values.numpy().astype(np.float32) for field, values in fields.items()},
        constant_fields={field: values.numpy().astype(np.float32) for field, values in constants.items()},
        boundary_conditions=boundary_conditions,
        dt=dt,
        name=name,
        coordinates={axis: low + (np.arange(n) + 0.5) * cell for axis, low, n in zip("xy", corner, grid)},
    )
    trajectory.check_finite()
    return trajectory
