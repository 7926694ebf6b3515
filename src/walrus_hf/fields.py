"""Named physical fields on a uniform grid: the data people hand to a forecast and get back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from enum import IntEnum
from typing import Any

import numpy as np


class BoundaryCondition(IntEnum):
    """Kind of one side of one axis; the integers are The Well's."""

    WALL = 0
    OPEN = 1
    PERIODIC = 2

    @classmethod
    def parse(cls, value: Any) -> BoundaryCondition:
        """`"wall"`, `"open"`, `"periodic"` (any case), an id or a member; `ValueError` for anything else."""
        try:
            if isinstance(value, str):
                return cls[value.upper()]
            if int(value) != value:
                raise ValueError
            return cls(int(value))
        except (KeyError, ValueError, TypeError, OverflowError):
            raise ValueError(
                f"expected a boundary condition 'wall' (0), 'open' (1) or 'periodic' (2), found {value!r}"
            ) from None


# The two boundary flags and the interior flag that the encoder appends to every input (architecture, section 3).
CLOSED_BOUNDARY, OPEN_BOUNDARY, INTERIOR = "closed_boundary", "open_boundary", "bias_correction"
FLAG_NAMES = (INTERIOR, CLOSED_BOUNDARY, OPEN_BOUNDARY)


def _components(name: str, rank: int) -> list[str]:
    suffixes = "xyz" if rank == 1 else [a + b for a in "xyz" for b in "xyz"]
    return [f"{name}_{suffix}" for suffix in suffixes]


# The published vocabulary: a field's id is its position (checkpoint polymathic-ai/walrus, field_index_map_override).
PUBLISHED_FIELDS: tuple[str, ...] = (
    CLOSED_BOUNDARY, OPEN_BOUNDARY, INTERIOR, "pressure", *_components("velocity", 1), "zeros_like_density",
    "speed_of_sound", "concentration", *_components("D", 2), *_components("E", 2), "density", "energy",
    "velocity_r", "velocity_theta", "velocity_phi", *_components("momentum", 1), "pressure_re", "pressure_im", "mask",
    *_components("magnetic_field", 1), "A", "B", "height", "internal_energy", "temperature", "electron_fraction",
    "entropy", "magnetic_field_log_r", "magnetic_field_theta", "magnetic_field_phi", "velocity_log_r", "buoyancy",
    "tracer", "log10_density", "log10_temperature", "c_zz", *_components("C", 2),
)  # fmt: skip


@dataclasses.dataclass
class Trajectory:
    """A simulation, or a stretch of one: named arrays on a uniform grid with `axes` in the order of the arrays.

    Args:
        fields: name -> array `(T, *grid)` for scalars, `(T, *grid, d)` for vectors, `(T, *grid, d, d)` for rank-2
            tensors in row-major order, where `d = len(axes)`. All in their own units, all with the same `T`. Cells
            without a value in a masked array become NaN.
        boundary_conditions: axis -> `"periodic"`, `"wall"` or `"open"`, or a `(low side, high side)` pair.
        constant_fields: name -> array without the leading `T`; read by the model, never forecast.
        axes: one name an axis of the grid, `("x",)` to `("x", "y", "z")`, or curvilinear ones such as
            `("theta", "phi")`.
        dt: time between frames, in the units of the simulation.
        time: time of the first frame, same units.
        name: what to call it in tables and files.
        coordinates: axis -> positions of the cells `(n,)`; only carried along.
        obstacle_mask: bool `(*grid,)`, True inside obstacles; those cells are neither read, scored nor forecast.
        ensemble: for forecasts of several members: name of a field -> array `(members, T, *grid, ...)`; `fields` is
            their mean.
        grid_type: `"cartesian"` or another grid type of The Well; only carried along.

    Raises:
        ValueError: arrays whose shapes do not fit the axes or each other, or unusable boundary conditions.
    """

    fields: dict[str, np.ndarray]
    boundary_conditions: Mapping[str, Any]
    constant_fields: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    axes: tuple[str, ...] = ("x", "y")
    dt: float = 1.0
    name: str | None = None
    time: float = 0.0
    coordinates: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    obstacle_mask: np.ndarray | None = None
    ensemble: dict[str, np.ndarray] | None = None
    grid_type: str = "cartesian"

    def __post_init__(self) -> None:
        self.axes = tuple(self.axes)
        if not 1 <= len(self.axes) <= 3 or len(set(self.axes)) != len(self.axes):
            raise ValueError(f"expected 1 to 3 different axis names, found axes={self.axes}")
        try:
            usable = math.isfinite(self.dt) and self.dt > 0 and math.isfinite(self.time)
        except (TypeError, ValueError):  # a text, None, or a step for each frame
            usable = False
        if not usable:
            raise ValueError(
                f"expected a time step dt > 0 and a finite time, one number each, found dt={self.dt!r} and "
                f"time={self.time!r}; bring frames that are unequally apart to equal steps first"
            )
        for what, given in (("fields", self.fields), ("constant_fields", self.constant_fields)):
            if not isinstance(given, Mapping):
                raise ValueError(f"{what}: expected names and arrays such as {{'pressure': p}}, found {type(given)}")
        if not self.fields:
            raise ValueError("expected at least one field, found none: a forecast needs fields that change in time")
        both = sorted(set(self.fields) & set(self.constant_fields))
        if both:
            raise ValueError(f"{', '.join(both)}: given as a field and as a constant field; leave one of the two out")
        self.fields = {name: _plain(values) for name, values in self.fields.items()}
        self.constant_fields = {name: _plain(values) for name, values in self.constant_fields.items()}
        self._check_shapes()
        self.boundary_conditions = self._parse_boundary_conditions(self.boundary_conditions)
        if self.ensemble is not None:
            self.ensemble = checked_ensemble(self.ensemble, self.fields)
        if self.obstacle_mask is not None:
            self.obstacle_mask = yes_or_no(self.obstacle_mask)
            if self.obstacle_mask.shape != self.grid:
                raise ValueError(f"obstacle_mask: expected shape {self.grid}, found {self.obstacle_mask.shape}")
        for axis, positions in self.coordinates.items():
            if axis not in self.axes or np.shape(positions) != (self.grid[self.axes.index(axis)],):
                raise ValueError(f"coordinates[{axis!r}]: expected one position a cell of an axis of {self.axes}")

    @property
    def num_frames(self) -> int:
        return len(next(iter(self.fields.values())))

    @property
    def grid(self) -> tuple[int, ...]:
        """Cells along each axis."""
        return next(iter(self.fields.values())).shape[1 : 1 + len(self.axes)]

    def rank(self, name: str) -> int:
        """0 for a scalar field, 1 for a vector, 2 for a tensor."""
        if name in self.fields:
            return self.fields[name].ndim - 1 - len(self.axes)
        return self.constant_fields[name].ndim - len(self.axes)

    def boundary_ids(self) -> tuple[tuple[int, int], ...]:
        """Ids of the low and high side of each axis, in the order of `axes`."""
        return tuple((int(low), int(high)) for low, high in (self.boundary_conditions[axis] for axis in self.axes))

    def frames(self, start: int, stop: int | None = None) -> Trajectory:
        """The frames `start:stop` as a trajectory of their own (views, nothing is copied)."""
        first, _, _ = slice(start, stop).indices(self.num_frames)
        cut = slice(start, stop)
        if not len(range(*cut.indices(self.num_frames))):
            raise ValueError(f"frames {start}:{stop} of a trajectory of {self.num_frames} frames are none")
        return dataclasses.replace(
            self,
            fields={name: values[cut] for name, values in self.fields.items()},
            ensemble=self.ensemble and {name: values[:, cut] for name, values in self.ensemble.items()},
            time=self.time + first * self.dt,
        )

    def check_finite(self) -> None:
        """`ValueError` that names the first field and frame with NaN or infinity; inside obstacles they may stand."""
        free = ... if self.obstacle_mask is None else ~self.obstacle_mask
        for name, values in self.fields.items():
            for t, frame in enumerate(values):
                self._check_finite_array(f"field {name!r}, frame {t}", frame[free])
        for name, values in self.constant_fields.items():
            self._check_finite_array(f"constant field {name!r}", values[free])

    def __repr__(self) -> str:
        sides = {
            axis: low.name.lower() if low == high else f"{low.name.lower()}/{high.name.lower()}"
            for axis, (low, high) in self.boundary_conditions.items()
        }
        return (
            f"Trajectory({self.name or 'unnamed'}: {self.num_frames} frames of "
            f"{' x '.join(f'{axis}={n}' for axis, n in zip(self.axes, self.grid))}, "
            f"fields {', '.join(self.fields)}"
            + (f", constant {', '.join(self.constant_fields)}" if self.constant_fields else "")
            + f", boundaries {', '.join(f'{axis} {kind}' for axis, kind in sides.items())}, dt={self.dt:g})"
        )

    def _check_shapes(self) -> None:
        d = len(self.axes)
        first_name, first = next(iter(self.fields.items()))
        if first.ndim < 1 + d:
            raise ValueError(
                f"field {first_name!r}: expected (frames, {', '.join(self.axes)}[, components]), found {first.shape}"
            )
        frames, grid = first.shape[0], first.shape[1 : 1 + d]
        if not frames or not all(grid):
            raise ValueError(f"field {first_name!r}: expected at least one frame and one cell, found {first.shape}")
        for lead, arrays in (((frames, *grid), self.fields), (grid, self.constant_fields)):
            for name, values in arrays.items():
                tail = values.shape[len(lead) :]
                if values.dtype.kind not in "biuf":
                    raise ValueError(f"field {name!r}: expected real numbers, found dtype {values.dtype}")
                if values.shape[: len(lead)] != lead or tail not in ((), (d,), (d, d)):
                    raise ValueError(
                        f"field {name!r}: expected shape {lead} (scalar), {(*lead, d)} (vector: one component an axis) "
                        f"or {(*lead, d, d)} (tensor), found {values.shape}"
                    )

    def _parse_boundary_conditions(self, given: Mapping[str, Any]) -> dict[str, tuple]:
        if not isinstance(given, Mapping) or set(given) != set(self.axes):
            found = list(given) if isinstance(given, Mapping) else repr(given)
            raise ValueError(f"boundary_conditions: expected one entry for each axis of {self.axes}, found {found}")
        parsed = {}
        for axis in self.axes:
            sides = given[axis]
            pair = (sides, sides) if isinstance(sides, str) or np.ndim(sides) == 0 else tuple(sides)
            if len(pair) != 2:
                raise ValueError(f"boundary_conditions[{axis!r}]: expected one kind or (low, high), found {sides!r}")
            try:
                low, high = BoundaryCondition.parse(pair[0]), BoundaryCondition.parse(pair[1])
            except ValueError as error:
                raise ValueError(f"boundary_conditions[{axis!r}]: {error}") from None
            check_sides(axis, low, high)
            parsed[axis] = (low, high)
        return parsed

    @staticmethod
    def _check_finite_array(what: str, values: np.ndarray) -> None:
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            bad = values.size - int(np.isfinite(values).sum())
            raise ValueError(
                f"{what}: expected finite numbers, found {bad} NaN or infinite of {values.size}; "
                "cut those frames off or fill the cells before forecasting"
            )


def _plain(values: Any) -> np.ndarray:
    """An array; NaN where a masked one (netCDF4 reads them) has no value, for what lies below the mask is no number."""
    if np.ma.is_masked(values) and values.dtype.kind in "biuf":
        values = values.astype(np.result_type(values.dtype, np.float16)).filled(np.nan)
    return np.asarray(values)


def yes_or_no(mask: Any) -> np.ndarray:
    """A mask in Booleans; as such, NaN and every number but 0 would be an obstacle."""
    mask = np.asarray(mask)
    if mask.dtype != bool and not np.isin(mask, (0, 1)).all():
        raise ValueError(
            "obstacle_mask: expected True or 1 inside obstacles and False or 0 elsewhere, found other numbers; of a "
            "distance that is negative inside, give distance < 0"
        )
    return mask.astype(bool, copy=False)


def checked_ensemble(given: Any, fields: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Members as arrays; `ValueError` where they are not those of the fields.

    NaN may stand in them, as in the fields: the frames after a forecast has broken up are NaN.
    """
    if not isinstance(given, Mapping):
        raise ValueError(
            f"ensemble: expected a dictionary from names of fields to arrays (members, ...), found "
            f"{type(given).__name__}; give ensemble={{NAME: array}}, or None"
        )
    members = {name: _plain(values) for name, values in given.items()}
    for name, values in members.items():
        if name not in fields:
            raise ValueError(
                f"ensemble[{name!r}]: expected the members of one of the fields {', '.join(fields)}, found another "
                "name; rename it or leave it out"
            )
        if values.dtype.kind not in "biuf":
            raise ValueError(
                f"ensemble[{name!r}]: expected real numbers, found dtype {values.dtype}; give arrays of numbers"
            )
        shape = fields[name].shape
        if values.ndim != 1 + len(shape) or not len(values) or values.shape[1:] != shape:
            raise ValueError(
                f"ensemble[{name!r}]: expected shape (members, {', '.join(map(str, shape))}) with at least one member, "
                f"found {values.shape}; stack whole forecasts of the field along a first axis"
            )
    counts = {name: len(values) for name, values in members.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(
            f"ensemble: expected as many members of each field, found {counts}; leave out what not all have"
        )
    return members


def check_trajectory(given: Any) -> None:
    """`ValueError` for what is no trajectory, such as a batch of them."""
    if not isinstance(given, Trajectory):
        raise ValueError(
            f"trajectory: expected one walrus_hf.Trajectory, found {type(given).__name__}; make one of arrays with "
            "Trajectory(fields=..., boundary_conditions=...), and give several one after the other"
        )


def check_sides(axis: Any, low: int, high: int) -> None:
    """`ValueError` where one side of an axis is periodic and the other is not."""
    if (low == BoundaryCondition.PERIODIC) != (high == BoundaryCondition.PERIODIC):
        raise ValueError(
            f"axis {axis}: one side is periodic and the other is not ({BoundaryCondition(low).name.lower()}, "
            f"{BoundaryCondition(high).name.lower()}); an axis is periodic on both sides or on neither"
        )


def decimal_logarithm(values: np.ndarray) -> np.ndarray:
    """In float32 or better: numpy gives that of float16 and of bytes to three digits."""
    return np.log10(values, dtype=np.result_type(values, np.float32))


def fill_obstacles(values: np.ndarray, mask: np.ndarray | None, number: int = 0, components: int = 0) -> np.ndarray:
    """Values `(..., *grid, ...)` with a number in place of whatever stands inside obstacles.

    Args:
        mask: bool `(*grid,)`, True inside; None where there are none.
        number: 1 before a logarithm, which is 0 then.
        components: axes of the values behind the grid.
    """
    return values if mask is None else np.where(mask.reshape(*mask.shape, *[1] * components), number, values)


def fill_unusable(
    values: np.ndarray, mask: np.ndarray | None, log: bool = False, largest: float = np.inf, components: int = 0
) -> np.ndarray:
    """The same only where a value inside obstacles cannot be used: of constant fields, which no forecast changes there.

    The others stay: a constant field may tell the model something inside obstacles, such as where they are.

    Args:
        log: whether a logarithm is taken, which asks for positive values.
        largest: magnitude that can be used.
    """
    if mask is None:
        return values
    usable = np.isfinite(values) & (np.abs(values) <= np.float64(largest))  # as float16 it would be infinite
    return np.where(
        usable & (values > 0) if log else usable, values, fill_obstacles(values, mask, int(log), components)
    )
