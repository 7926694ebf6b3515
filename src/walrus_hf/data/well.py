"""Read The Well's HDF5 files (https://github.com/PolymathicAI/the_well, docs/data_format.md).

One file holds trajectories of one simulation code on one grid:

    attributes             dataset_name, grid_type, n_spatial_dims, n_trajectories, simulation_parameters
    dimensions/            spatial_dims=("x", "y"); time (T) or (B, T); one data set an axis, (N) or (B, N)
    boundary_conditions/   groups with bc_type, associated_dims and a mask over those axes, True where the kind holds
    scalars/               numbers of a trajectory; a `Trajectory` has no place for them
    t0_fields/ t1_fields/ t2_fields/   scalars, vectors, tensors: ([B], [T], *grid, [d], [d])

Files come from the network and from full disks. So a file is checked before it is believed: nothing in it may lead to
another file of the user (well_opening.py), and no array is made on the word of a header alone. What these checks cannot
stop is a file made to crash or stall the HDF5 library itself, which reads headers before we can.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import h5py
import numpy as np

from ..fields import BoundaryCondition, Trajectory, check_sides
from .well_opening import open_well

FIELD_GROUPS = ("t0_fields", "t1_fields", "t2_fields")
OBSTACLE_MASK = "obstacle_mask"


@dataclasses.dataclass(frozen=True)
class WellInfo:
    """What a file of The Well holds. `fields` and `constant_fields` give the rank: 0 scalar, 1 vector, 2 tensor."""

    dataset_name: str
    trajectories: int
    frames: int
    axes: tuple[str, ...]
    grid: tuple[int, ...]
    grid_type: str
    fields: dict[str, int]
    constant_fields: dict[str, int]
    boundary_conditions: dict[str, tuple[BoundaryCondition, BoundaryCondition]]


@dataclasses.dataclass(frozen=True)
class StoredField:
    """One field in a file. `stored` is its shape over the axes, with 1 for an axis along which it does not vary."""

    name: str
    rank: int
    dataset: Any
    sample_varying: bool
    time_varying: bool
    stored: tuple[int, ...]


def load_well(path: str | os.PathLike, trajectory: int = 0, start: int = 0, frames: int | None = None) -> Trajectory:
    """One trajectory of a file of The Well, or a stretch of it; only the frames asked for are read.

    Args:
        path: a local file or a URL that fsspec knows: `hf://datasets/...`, `https://...`, `file://`, `memory://`.
        trajectory: which trajectory of the file, from 0.
        start: first frame, from 0.
        frames: number of frames; None reads to the end.

    Returns:
        Vectors (T, *grid, d) and tensors (T, *grid, d, d) in the numbers' own type and units. Fields that do not vary
        in time become constant fields, axes along which a field does not vary are filled up. A side of an axis that no
        mask covers is open, as in The Well; a boundary over several axes counts as a wall only if all of the side is.
        `dt` is the mean step of the frames read; unequal steps are warned about. The file's scalars are not read.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: as the name says.
        OSError: a URL that cannot be opened.
        ImportError: a URL, and fsspec or its part for that protocol is not installed.
        ValueError: anything else that is wrong with the file or with the stretch asked for.
    """
    for number in (trajectory, start, 0 if frames is None else frames):
        operator.index(number)
    with open_well(path) as file:
        axes, grid = axes_and_grid(file)
        count, available = count_trajectories(file), count_frames(file)
        if not 0 <= trajectory < count:
            raise ValueError(f"trajectory={trajectory}: expected 0 to {count - 1}, the file holds {count}")
        if not 0 <= start < available:
            raise ValueError(f"start={start}: expected 0 to {available - 1}, the trajectory has {available} frames")
        stop = available if frames is None else start + frames
        if not start < stop <= available:
            raise ValueError(f"frames={frames}: expected 1 to {available - start}, the frames left from frame {start}")

        found = list(stored_fields(file))
        members = list(_stored_members(file, found))
        _check_memory(found + members, grid, stop - start)
        values = {field.name: _read_field(field, grid, trajectory, start, stop) for field in found}
        obstacles = None
        if any(field.name == OBSTACLE_MASK and field.rank == 0 and not field.time_varying for field in found):
            obstacles = values.pop(OBSTACLE_MASK)
        varying = {field.name for field in found if field.time_varying}
        time, dt = _time_and_step(file, trajectory, start, stop)
        for problem in cell_problems(file, trajectory):
            warnings.warn(f"{os.fspath(path)}: {problem}", stacklevel=2)  # Python shows the same line once
        return Trajectory(
            fields={name: array for name, array in values.items() if name in varying},
            constant_fields={name: array for name, array in values.items() if name not in varying},
            boundary_conditions=boundary_conditions(file, trajectory),
            axes=axes,
            dt=dt,
            time=time,
            name=_trajectory_name(file, trajectory),
            coordinates=_coordinates(file, trajectory),
            obstacle_mask=obstacles,
            ensemble={field.name: native(field.dataset[trajectory, :, start:stop]) for field in members} or None,
            grid_type=text_of(file.attrs.get("grid_type", "cartesian")),
        )


def well_info(path: str | os.PathLike) -> WellInfo:
    """What the file holds, without reading any field. Boundary conditions are those of the first trajectory.

    Raises:
        The errors of `load_well`.
    """
    with open_well(path) as file:
        axes, grid = axes_and_grid(file)
        found = list(stored_fields(file))
        return WellInfo(
            dataset_name=dataset_name(file),
            trajectories=count_trajectories(file),
            frames=count_frames(file),
            axes=axes,
            grid=grid,
            grid_type=text_of(file.attrs.get("grid_type", "cartesian")),
            fields={field.name: field.rank for field in found if field.time_varying},
            constant_fields={field.name: field.rank for field in found if not field.time_varying},
            boundary_conditions=boundary_conditions(file, trajectory=0),
        )


def time_step(times: np.ndarray, stated: float | None = None) -> float:
    """Mean step of the times (T,); `stated` where a single time has no step, or where it is that mean but for rounding.

    Raises:
        ValueError: the times are not finite or do not grow.
    """
    if stated is not None and not math.isfinite(stated):
        stated = None
    if len(times) == 1:
        return 1.0 if stated is None else stated
    seconds = times.astype(np.float64)
    steps = np.diff(seconds)
    mean = float(seconds[-1] - seconds[0]) / len(steps)
    # Rounding can make neighbours equal: only a step backwards, or none at all, is an error.
    if not np.isfinite(steps).all() or (steps < 0).any() or mean == 0:
        raise ValueError(f"time: expected finite times that grow from frame to frame, found {shorten(times)}")
    # Times kept in float32 differ by their rounding alone, which is large beside a small step at a late time.
    eps = float(np.finfo(times.dtype).eps) if times.dtype.kind == "f" else 0.0
    rounding = 2 * eps * float(np.abs(seconds).max())
    if np.abs(steps - mean).max() > 1e-3 * mean + rounding:
        warnings.warn(
            f"time: steps from {steps.min():g} to {steps.max():g}, expected equal ones; dt is their mean {mean:g}",
            stacklevel=4,
        )
    if stated is not None and abs(stated - mean) <= 1e-9 * mean + rounding / len(steps):
        return stated
    return mean


def axes_and_grid(file: Any) -> tuple[tuple[str, ...], tuple[int, ...]]:
    for group in ("dimensions", "boundary_conditions", *FIELD_GROUPS):
        if not isinstance(file.get(group), h5py.Group):
            raise ValueError(
                f"expected the groups of The Well's format, found no group {group!r}; write such files with save_well"
            )
    axes = _texts(file["dimensions"], "spatial_dims")
    if not 1 <= len(axes) <= 3 or len(set(axes)) != len(axes) or "time" in axes:
        raise ValueError(f"dimensions: expected 1 to 3 different spatial_dims, found {axes}")
    return axes, tuple(_dimension(file, axis).shape[-1] for axis in axes)


def _dimension(file: Any, name: str) -> Any:
    """The data set `dimensions/<name>`, (N) or (B, N), B being the number of trajectories."""
    dataset = _dataset(file["dimensions"], name)
    check_stored(dataset)
    per_sample = flag_of(dataset, "sample_varying")
    if flag_of(dataset, "time_varying", default=False):
        raise ValueError(f"dimensions/{name}: expected a grid at rest, found one that changes in time")
    lead = (count_trajectories(file),) if per_sample else ()
    if dataset.ndim != len(lead) + 1 or dataset.shape[:-1] != lead or not dataset.shape[-1]:
        raise ValueError(
            f"dimensions/{name}: expected shape (n) or, sample_varying, (trajectories, n), found {dataset.shape}"
        )
    return dataset


def count_trajectories(file: Any) -> int:
    count = np.ravel(_attribute(file, "n_trajectories"))
    if count.dtype.kind not in "iu" or len(count) != 1 or count[0] < 1:
        raise ValueError(f"n_trajectories: expected a whole number of at least 1, found {shorten(count)}")
    return int(count[0])


def count_frames(file: Any) -> int:
    return int(_dimension(file, "time").shape[-1])


def stored_fields(file: Any) -> Iterator[StoredField]:
    """The fields of all three groups, their shapes checked against the axes."""
    axes, grid = axes_and_grid(file)
    count, frames = count_trajectories(file), count_frames(file)
    names: set[str] = set()
    for rank, group in enumerate(FIELD_GROUPS):
        for name in _texts(file[group], "field_names"):
            if name in names:
                raise ValueError(f"{group}/{name}: expected each field once, found it twice")
            names.add(name)
            dataset = _dataset(file[group], name)
            sample_varying, time_varying = flag_of(dataset, "sample_varying"), flag_of(dataset, "time_varying")
            varying = np.atleast_1d(np.asarray(_attribute(dataset, "dim_varying"), dtype=bool))
            if varying.shape != (len(axes),):
                raise ValueError(f"{dataset.name}: expected dim_varying for the axes {axes}, found {varying.tolist()}")
            lead = (count,) * sample_varying + (frames,) * time_varying
            kept = tuple(n if vary else 1 for n, vary in zip(grid, varying))
            dropped = tuple(n for n, vary in zip(grid, varying) if vary)
            components = (len(axes),) * rank
            # The format's text drops the axes along which a field does not vary, its reader wants them with size 1.
            if dataset.shape not in ((*lead, *kept, *components), (*lead, *dropped, *components)):
                raise ValueError(
                    f"{dataset.name}: expected shape {(*lead, *kept, *components)} (one component an axis), "
                    f"found {dataset.shape}"
                )
            yield StoredField(name, rank, dataset, sample_varying, time_varying, kept)


def _stored_members(file: Any, found: list[StoredField]) -> Iterator[StoredField]:
    """The members of an ensemble forecast, `ensemble/<field>` of shape (B, members, T, *grid, [d], [d])."""
    _, grid = axes_and_grid(file)
    count, frames = count_trajectories(file), count_frames(file)
    group = file.get("ensemble", {})
    ranks = {field.name: field.rank for field in found if field.time_varying}
    for name in group:
        dataset = _dataset(group, name)
        tail = (frames, *grid, *(len(grid),) * ranks.get(name, 0))
        if name not in ranks or dataset.ndim < 3 or dataset.shape[:1] != (count,) or dataset.shape[2:] != tail:
            raise ValueError(
                f"{dataset.name}: expected the members of one of the fields {sorted(ranks)}, shape "
                f"({count}, members, {str(tail)[1:]}, found {dataset.shape}"
            )
        yield StoredField(name, ranks[name], dataset, True, True, (dataset.shape[1], *grid))


def _read_field(field: StoredField, grid: tuple[int, ...], trajectory: int, start: int, stop: int) -> np.ndarray:
    """([T], *grid, [d], [d]) of one trajectory, the axes along which it does not vary filled up."""
    index: tuple[Any, ...] = (trajectory,) * field.sample_varying + (slice(start, stop),) * field.time_varying
    lead = (stop - start,) * field.time_varying
    components = (len(grid),) * field.rank
    values = field.dataset[index].reshape(*lead, *field.stored, *components)
    return np.ascontiguousarray(np.broadcast_to(native(values), (*lead, *grid, *components)))


def _time_and_step(file: Any, trajectory: int, start: int, stop: int) -> tuple[float, float]:
    dataset = _dimension(file, "time")
    times = _read(dataset)[trajectory] if dataset.ndim == 2 else _read(dataset)
    stated = dataset.attrs.get("dt")
    stated = None if stated is None else float(np.ravel(stated)[trajectory if np.size(stated) > 1 else 0])
    # One frame has no step of its own: take the step beside it.
    around = times[start:stop] if stop - start > 1 else times[max(0, min(start, len(times) - 2)) :][:2]
    return float(times[start]), time_step(around, stated)


def _coordinates(file: Any, trajectory: int) -> dict[str, np.ndarray]:
    coordinates = {}
    for axis in axes_and_grid(file)[0]:
        dataset = _dimension(file, axis)
        if not flag_of(dataset, "cell_numbers", default=False):  # save_well had none to write
            coordinates[axis] = _read(dataset)[trajectory] if dataset.ndim == 2 else _read(dataset)
    return coordinates


def cell_problems(file: Any, trajectory: int = 0) -> list[str]:
    """`axis_problems` of a file."""
    return axis_problems(_coordinates(file, trajectory), text_of(file.attrs.get("grid_type", "cartesian")))


def axis_problems(coordinates: Mapping[str, np.ndarray], grid_type: str) -> list[str]:
    """In words, the axes of a Cartesian grid that run backwards or whose cells differ in size; of other grids that is
    known."""
    found: list[str] = []
    for axis, positions in coordinates.items():
        if grid_type != "cartesian" or positions.dtype.kind not in "iuf":
            continue
        steps = np.diff(np.asarray(positions, dtype=np.float64))
        if len(steps) and (steps < 0).all():
            found.append(
                f"expected coordinates along {axis!r} that grow from cell to cell, found falling ones; models read the "
                "components of vectors and the sides in the order of the cells, so a flow towards larger "
                f"{axis} would be read as one towards smaller {axis}: turn the axis round (xarray: sortby)"
            )
        widths = np.abs(steps)
        # What the precision of the positions leaves open is no difference.
        rounding = 4 * np.finfo(np.float32).eps * np.abs(positions).max()
        if len(widths) > 1 and np.ptp(widths) > 0.01 * widths.mean() + rounding:
            found.append(
                f"expected cells of one width along {axis!r}, found {widths.min():.3g} to {widths.max():.3g}; models "
                "take cells for equal: interpolate the fields to equal cells"
            )
    return found


def boundary_conditions(file: Any, trajectory: int) -> dict[str, tuple[BoundaryCondition, BoundaryCondition]]:
    """Kinds of the low and the high side, read as The Well reads its masks; a side that no mask covers is open.

    Where masks of several kinds reach a side, such as those over all axes that share a corner, one that covers the
    whole side wins.
    """
    axes, grid = axes_and_grid(file)
    covered: set[tuple[str, int]] = set()
    sides = {axis: [BoundaryCondition.OPEN, BoundaryCondition.OPEN] for axis in axes}
    for name, group in file["boundary_conditions"].items():
        kind = BoundaryCondition.parse(text_of(_attribute(group, "bc_type")))
        dims = _texts(group, "associated_dims")
        if not dims or not set(dims) <= set(axes):
            raise ValueError(f"boundary {name!r}: expected associated_dims among the axes {axes}, found {dims}")
        if flag_of(group, "time_varying", default=False):
            raise ValueError(f"boundary {name!r}: expected one that stays the same, found one that changes in time")
        mask = _dataset(group, "mask")
        shape = tuple(grid[axes.index(dim)] for dim in dims)
        if flag_of(group, "sample_varying", default=False):
            shape = (count_trajectories(file), *shape)
        if mask.shape != shape:
            raise ValueError(f"boundary {name!r}: expected a mask of shape {shape}, found {mask.shape}")
        holds = _read(mask)[trajectory] if len(shape) > len(dims) else _read(mask)
        for position, dim in enumerate(dims):
            for side, cell in enumerate((0, -1)):
                cells = holds.take(cell, axis=position)
                if cells.all():
                    covered.add((dim, side))
                elif kind == BoundaryCondition.WALL or not cells.any() or (dim, side) in covered:
                    continue  # a wall is one only as a whole
                sides[dim][side] = kind
    for axis, (low, high) in sides.items():
        check_sides(axis, low, high)
    return {axis: (low, high) for axis, (low, high) in sides.items()}


def _trajectory_name(file: Any, trajectory: int) -> str | None:
    if "trajectory_names" not in file:
        return f"{dataset_name(file)}_{trajectory}"
    return text_of(file["trajectory_names"][trajectory]) or None


def dataset_name(file: Any) -> str:
    return text_of(file.attrs.get("dataset_name", "unnamed"))


def _read(dataset: Any) -> np.ndarray:
    """All of a small data set, checked first."""
    check_stored(dataset)
    refuse_too_large(dataset.name, math.prod(dataset.shape) * dataset.dtype.itemsize)
    return native(dataset[()])


def native(values: np.ndarray) -> np.ndarray:
    """The same numbers in the byte order of this machine, which torch needs."""
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def check_stored(dataset: Any) -> None:
    """Refuse what is no array of real numbers, or a header that declares more than the file holds.

    HDF5 reads what was never written as zeros, which would pass for data.
    """
    if dataset.shape is None or dataset.dtype.kind not in "biuf":
        raise ValueError(f"{dataset.name}: expected an array of real numbers, found dtype {dataset.dtype}")
    declared = math.prod(dataset.shape) * dataset.dtype.itemsize
    if dataset.chunks:
        chunks = math.prod(-(-n // size) for n, size in zip(dataset.shape, dataset.chunks))
        whole = dataset.id.get_num_chunks() >= chunks
    elif dataset.id.get_create_plist().get_layout() == h5py.h5d.COMPACT:
        whole = dataset.id.get_storage_size() >= declared
    else:
        offset, size = dataset.id.get_offset(), dataset.file.id.get_filesize()
        whole = not declared or (offset is not None and offset + declared <= size)
        whole = whole and dataset.id.get_storage_size() >= declared
    if not whole:
        raise ValueError(
            f"{dataset.name}: expected {declared} bytes for its shape {dataset.shape}, found fewer in the file; "
            "download or write it again"
        )


def _check_memory(found: list[StoredField], grid: tuple[int, ...], frames: int) -> None:
    """All fields must be stored as declared, and the frames asked for must fit into memory, filled up."""
    total = 0
    for field in found:
        check_stored(field.dataset)
        cells = max(math.prod(grid), math.prod(field.stored)) * (frames if field.time_varying else 1)
        total += cells * len(grid) ** field.rank * field.dataset.dtype.itemsize
        total = max(total, math.prod(field.dataset.chunks or (0,)) * field.dataset.dtype.itemsize)
    refuse_too_large(f"{frames} frames", total)


def refuse_too_large(what: str, needed: int) -> None:
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return
    if needed > memory:
        raise ValueError(
            f"{what}: expected data that fits into memory ({memory / 2**30:.1f} GiB), found {needed / 2**30:.1f} GiB; "
            "ask for fewer frames"
        )


def _dataset(group: Any, name: str) -> Any:
    """The data set of that name right in the group: a name such as `a/b` must not walk through the file."""
    if name not in list(group) or not isinstance(group[name], h5py.Dataset):
        raise ValueError(f"{group.name}: expected a data set {name!r}, found none; the file is not whole")
    return group[name]


def _attribute(item: Any, name: str) -> Any:
    if name not in item.attrs:
        raise ValueError(f"{item.name}: expected the attribute {name!r} of The Well's format, found none")
    return item.attrs[name]


def flag_of(item: Any, name: str, default: bool | None = None) -> bool:
    value = _attribute(item, name) if default is None else item.attrs.get(name, default)
    return bool(np.all(value))


def _texts(item: Any, name: str) -> tuple[str, ...]:
    value = _attribute(item, name)
    return () if isinstance(value, h5py.Empty) else tuple(text_of(part) for part in np.atleast_1d(value))


def text_of(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def shorten(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else text[:57] + "..."
