"""Write files in The Well's HDF5 format (layout: see well.py).

`save_well` adds three things that other readers pass over: the members of an ensemble forecast as `ensemble/<field>`
(B, members, T, ...), the data set `trajectory_names`, and `dt` on `dimensions/time`. An obstacle mask is written as the
constant scalar field `obstacle_mask`.
"""

from __future__ import annotations

import errno
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..fields import BoundaryCondition, Trajectory, checked_ensemble
from ..safe_files import whole_file
from .well import FIELD_GROUPS, OBSTACLE_MASK, time_step
from .well_opening import one_line


def save_well(
    trajectories: Trajectory | Sequence[Trajectory],
    path: str | os.PathLike,
    overwrite: bool = False,
    attributes: Mapping[str, str] | None = None,
) -> Path:
    """Write one file in The Well's format; fields become float32, times and coordinates float64.

    Args:
        trajectories: one, or several with the same frames, grid, fields and boundary conditions.
        path: the local file to write.
        overwrite: replace a file that is there. It stays as it is until the new one is complete.
        attributes: texts to keep with the file, by names that the format has no use for.

    Returns:
        The path.

    Raises:
        FileExistsError: the file is there and `overwrite` is False.
        OSError: the folder is missing, the disk is full, ...; no part of a file is left.
        ValueError: trajectories that do not fit into one file, or that the format or float32 cannot hold.
    """
    target = Path(path)
    batch = [trajectories] if isinstance(trajectories, Trajectory) else list(trajectories)
    if "://" in os.fspath(path):
        raise ValueError(f"{os.fspath(path)}: expected a local path, found a URL; write locally, then upload the file")
    _check_alike(batch)
    for trajectory in batch:
        _check_writable(trajectory)
    if target.is_dir():
        raise IsADirectoryError(f"{target}: expected the path of a file, found a directory; add a file name")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target}: expected no file, found one; pass overwrite=True to replace it")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target}: expected an existing folder {target.parent}, found none; make it first")

    with whole_file(target) as temporary, _PatientFile(temporary, "x+b") as disk:
        try:
            with h5py.File(disk, "w") as file:
                file.attrs.update(attributes or {})
                _write(file, batch)
        except RuntimeError as error:  # h5py raises it where closing fails
            raise OSError(errno.EIO, one_line(error)) from error
        if disk.failure is not None:
            raise disk.failure
    return target


class _PatientFile(io.FileIO):
    """Keeps the first failure of the disk for later: HDF5 crashes the process at its end if a write fails.

    What HDF5 still wants to write after that, or after the file was closed over an error, is dropped.
    """

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view) and self.failure is None and not self.closed:
            try:
                done += super().write(view[done:]) or 0
            except OSError as error:
                self.failure = error
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        try:
            return size or 0 if self.closed else super().truncate(size)
        except OSError as error:
            self.failure = self.failure or error
            return size or 0

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        return 0 if self.closed else super().seek(position, whence)

    def flush(self) -> None:
        if not self.closed:
            super().flush()

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        found = super().readinto(view) or 0
        if self.failure is not None:  # what could not be written reads as zeros
            view[found:] = bytes(len(view) - found)
            return len(view)
        return found


def _check_alike(batch: list[Trajectory]) -> None:
    if not batch:
        raise ValueError("expected at least one trajectory to save, found none")
    first = _in_common(batch[0])
    for number, trajectory in enumerate(batch):
        for what, found in _in_common(trajectory).items():
            if found != first[what]:
                raise ValueError(
                    f"trajectory {number}: expected the {what} of the first trajectory, {first[what]}, found {found}; "
                    "save it to a file of its own"
                )


def _in_common(trajectory: Trajectory) -> dict[str, Any]:
    """What all trajectories of one file have in common."""
    return {
        "axes": trajectory.axes,
        "number of frames": trajectory.num_frames,
        "grid": trajectory.grid,
        "grid type": trajectory.grid_type,
        "boundary conditions": trajectory.boundary_ids(),
        "fields and their ranks": {name: trajectory.rank(name) for name in trajectory.fields},
        "constant fields and their ranks": {name: trajectory.rank(name) for name in trajectory.constant_fields},
        "choice of an obstacle mask or none": trajectory.obstacle_mask is not None,
        "axes with coordinates": sorted(trajectory.coordinates),
        "ensemble": {name: np.shape(values) for name, values in (trajectory.ensemble or {}).items()},
    }


def _check_writable(trajectory: Trajectory) -> None:
    names = [*trajectory.fields, *trajectory.constant_fields]
    for name in (*names, *trajectory.axes):
        if not name or "/" in name or name == "." or "\0" in name:
            raise ValueError(f"{name!r}: expected a name that HDF5 can hold, without '/'; rename it")
    if "time" in trajectory.axes:
        raise ValueError(f"axes {trajectory.axes}: expected axes of space, found 'time'; rename it")
    if OBSTACLE_MASK in names:
        raise ValueError(f"field {OBSTACLE_MASK!r}: this name is kept for Trajectory.obstacle_mask; rename the field")
    for axis, n, (low, high) in zip(trajectory.axes, trajectory.grid, trajectory.boundary_ids()):
        if n == 1 and low != high:
            raise ValueError(f"axis {axis!r}: one cell has one mask entry, which cannot hold two kinds of boundary")
    time_step(_times(trajectory), trajectory.dt)  # a step that the times cannot hold could not be read back
    if trajectory.ensemble:
        checked_ensemble(trajectory.ensemble, trajectory.fields)  # it may have been set since the trajectory was made


def _write(file: Any, batch: list[Trajectory]) -> None:
    first = batch[0]
    # The Well wants one name in a folder of files; simulations are told apart by a number at the end.
    file.attrs["dataset_name"] = re.sub(r"_\d+$", "", first.name or "") or "unnamed"
    file.attrs["grid_type"] = first.grid_type
    file.attrs["n_spatial_dims"] = len(first.axes)
    file.attrs["n_trajectories"] = len(batch)
    file.attrs["simulation_parameters"] = _string_list([])
    file["trajectory_names"] = _string_list([trajectory.name or "" for trajectory in batch])
    file.create_group("scalars").attrs["field_names"] = _string_list([])
    _write_dimensions(file.create_group("dimensions"), batch)
    _write_boundaries(file.create_group("boundary_conditions"), first)
    for rank, group in enumerate(FIELD_GROUPS):
        _write_fields(file.create_group(group), batch, rank)
    for name in first.ensemble or {}:
        members = [trajectory.ensemble[name] for trajectory in batch if trajectory.ensemble]
        _write_stack(file.require_group("ensemble"), name, members)


def _write_dimensions(group: Any, batch: list[Trajectory]) -> None:
    first = batch[0]
    group.attrs["spatial_dims"] = _string_list(first.axes)
    dataset = _write_dimension(group, "time", [_times(trajectory) for trajectory in batch])
    steps = [float(trajectory.dt) for trajectory in batch]
    # Times of single frames can be the same, and their steps not.
    dataset.attrs["dt"] = steps if dataset.attrs["sample_varying"] or len(set(steps)) > 1 else steps[0]
    for axis, n in zip(first.axes, first.grid):
        given = axis in first.coordinates
        positions = [trajectory.coordinates[axis] for trajectory in batch] if given else [np.arange(n)]
        dataset = _write_dimension(group, axis, [np.asarray(cells, dtype=np.float64) for cells in positions])
        dataset.attrs["time_varying"] = False
        if not given:  # The Well wants coordinates; a reader must not take cell numbers for positions
            dataset.attrs["cell_numbers"] = True


def _times(trajectory: Trajectory) -> np.ndarray:
    return trajectory.time + trajectory.dt * np.arange(trajectory.num_frames)


def _write_dimension(group: Any, name: str, values: list[np.ndarray]) -> Any:
    same = all(np.array_equal(values[0], other) for other in values)
    dataset = group.create_dataset(name, data=values[0] if same else np.stack(values))
    dataset.attrs["sample_varying"] = not same
    return dataset


def _write_boundaries(group: Any, trajectory: Trajectory) -> None:
    """One mask for each axis and kind, True at the ends where the kind holds."""
    for axis, n, sides in zip(trajectory.axes, trajectory.grid, trajectory.boundary_ids()):
        for kind in sorted(set(sides)):
            name = BoundaryCondition(kind).name
            mask = np.zeros(n, dtype=bool)
            mask[0] |= sides[0] == kind
            mask[-1] |= sides[1] == kind
            boundary = group.create_group(f"{axis}_{name.lower()}")
            boundary.attrs["bc_type"] = name
            boundary.attrs["associated_dims"] = _string_list([axis])
            boundary.attrs["associated_fields"] = _string_list([])
            boundary.attrs["sample_varying"] = False
            boundary.attrs["time_varying"] = False
            boundary["mask"] = mask


def _write_fields(group: Any, batch: list[Trajectory], rank: int) -> None:
    first = batch[0]
    stacks = {name: [t.fields[name] for t in batch] for name in first.fields if first.rank(name) == rank}
    constants = {
        name: [t.constant_fields[name] for t in batch] for name in first.constant_fields if first.rank(name) == rank
    }
    if rank == 0 and first.obstacle_mask is not None:
        constants[OBSTACLE_MASK] = [t.obstacle_mask for t in batch if t.obstacle_mask is not None]
    group.attrs["field_names"] = _string_list([*stacks, *constants])
    for name, values in {**stacks, **constants}.items():
        constant = name in constants
        same = constant and all(np.array_equal(values[0], other) for other in values)
        dataset = _write_stack(group, name, values[:1] if same else values, stack=not same)
        dataset.attrs["dim_varying"] = [True] * len(first.axes)
        dataset.attrs["sample_varying"] = not same
        dataset.attrs["time_varying"] = not constant
        if rank == 2:
            dataset.attrs["symmetric"] = dataset.attrs["antisymmetric"] = False


def _write_stack(group: Any, name: str, values: list[np.ndarray], stack: bool = True) -> Any:
    """Float32 (B, ...), written one trajectory after the other; without the B where `stack` is False."""
    shape = np.shape(values[0])
    dataset = group.create_dataset(name, shape=(len(values), *shape) if stack else shape, dtype=np.float32)
    for number, array in enumerate(values):
        try:
            with np.errstate(over="raise"):
                dataset[number if stack else ()] = np.asarray(array).astype(np.float32, copy=False)
        except FloatingPointError:
            raise ValueError(
                f"field {name!r}: expected numbers that float32 can hold (3.4e38), found larger ones; rescale it"
            ) from None
    return dataset


def _string_list(values: Sequence[str]) -> np.ndarray:
    return np.array(list(values), dtype=h5py.string_dtype())
