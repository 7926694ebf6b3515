"""Convert public data sets of other formats to files of The Well.

    pdebench   compressible Navier-Stokes in 1 to 3 dimensions: density, pressure, Vx, Vy, Vz (N, T, x[, y[, z]]),
               x-coordinate, ..., t-coordinate (https://doi.org/10.18419/darus-2986)
    pdearena   Navier-Stokes 2D (conditioned): train|valid|test/{u, vx, vy} (N, T, x, y), dt (N)
               (https://huggingface.co/datasets/pdearena/NavierStokes-2D-conditoned)
    pdegym     CE-RM: solution (N, T, 5, x, y): density, velocity x and y, pressure, tracer
               (https://huggingface.co/datasets/camlab-ethz/CE-RM)
    bubbleml   pool boiling of BubbleML 2.0: dfun, temperature, velx, vely (T, y, x), x_centers, y_centers, and beside
               the file a .json with t_final (https://huggingface.co/datasets/hpcforge/BubbleML_2)

The layouts are those of the data sets' cards and of their authors' own loaders; the files themselves were not seen. So
names and shapes are checked first, and each converter says what it takes for granted. Other formats have no converter:
write `Trajectory` objects with `save_well`.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..fields import Trajectory
from .well import check_stored, time_step
from .well_opening import one_line, open_well_file
from .well_writer import save_well

# Memory for one reading, also of the largest array that is not kept on disk.
SLAB_BYTES = 32 * 2**20
# What one file holds at most, if it holds more than one trajectory.
FILE_BYTES = 256 * 2**20
LETTERS = "xyz"
Boundaries = Mapping[str, str | tuple[str, str]]
Source = str | os.PathLike


def convert_pdebench(source: Source, output_dir: Source, boundary_conditions: Boundaries | None = None) -> list[Path]:
    """PDEBench's compressible Navier-Stokes: `density`, `pressure`, `velocity`.

    Taken for granted: the axes behind trajectory and time are x, y, z; `t-coordinate` may hold one time more than there
    are frames, as it does in the published files.

    Args:
        source: a local `.hdf5` file such as `3D_CFD_Turb_M1.0_Eta1e-08_Zeta1e-08_periodic_Train.hdf5`.
        output_dir: folder for the new files, `<name>_<number of the first trajectory>.hdf5`; made if missing.
        boundary_conditions: axis -> kind; None takes it from the file's name: `periodic`, or `trans` for open sides.

    Returns:
        The files written, each of one trajectory or of several small ones; needs free space for one more of them.

    Raises:
        FileNotFoundError, FileExistsError, OSError: as the name says; nothing that is there is overwritten.
        ValueError: a file of another layout, or a damaged one.
    """
    with _opened(source) as file:
        density = _numbers(file, "density")
        axes = tuple(LETTERS[: density.ndim - 2])
        if not 1 <= len(axes) <= 3 or density.ndim - 2 > 3:
            raise ValueError(f"{source}: density: expected shape (N, T, x[, y[, z]]), found {density.shape}")
        components = [_numbers(file, f"V{axis}", density.shape) for axis in axes]
        pressure = _numbers(file, "pressure", density.shape)
        count, frames = density.shape[:2]
        times = _small(file, "t-coordinate")
        if times.shape not in ((frames,), (frames + 1,)):
            raise ValueError(f"{source}: t-coordinate: expected {frames} times, found shape {times.shape}")
        grid = density.shape[2:]
        coordinates = {axis: _small(file, f"{axis}-coordinate", (n,)) for axis, n in zip(axes, grid)}
        sides = boundary_conditions or dict.fromkeys(axes, _pdebench_kind(Path(source)))
        step = time_step(times[:frames])

        def make(number: int, folder: Path) -> Trajectory:
            return Trajectory(
                fields={
                    "density": _copy(density, number, folder),
                    "pressure": _copy(pressure, number, folder),
                    "velocity": _copy_vector(components, number, folder),
                },
                boundary_conditions=sides,
                axes=axes,
                dt=step,
                time=float(times[0]),
                name=f"pdebench_cns_{len(axes)}d_{number}",
                coordinates=coordinates,
            )

        return _write(source, output_dir, count, math.prod(density.shape[1:]) * (2 + len(axes)), make)


def convert_pdearena(source: Source, output_dir: Source) -> list[Path]:
    """PDEArena's Navier-Stokes 2D: `smoke` and `velocity`, in a closed box.

    Taken for granted: walls on all sides, as in the published generator, where the velocity is zero outside; the frames
    are `dt` apart. The components of the velocity lie on the low faces of the cells and stay there. The strength of the
    buoyancy, `buo_y`, is left out.

    Args, returns and raises as `convert_pdebench`; `source` is a file such as `NavierStokes2D_train_42_0.5_32.h5`.
    """
    with _opened(source) as file:
        splits = [name for name in ("train", "valid", "test") if isinstance(file.get(name), h5py.Group)]
        if len(splits) != 1:
            raise ValueError(f"{source}: expected one group train, valid or test, found {sorted(file)[:8]}")
        group = file[splits[0]]
        smoke = _numbers(group, "u")
        if smoke.ndim != 4:
            raise ValueError(f"{source}: u: expected shape (N, T, x, y), found {smoke.shape}")
        components = [_numbers(group, name, smoke.shape) for name in ("vx", "vy")]
        steps = _small(group, "dt", smoke.shape[:1])

        def make(number: int, folder: Path) -> Trajectory:
            return Trajectory(
                fields={
                    "smoke": _copy(smoke, number, folder),
                    "velocity": _copy_vector(components, number, folder),
                },
                boundary_conditions={"x": "wall", "y": "wall"},
                dt=float(steps[number]),
                name=f"pdearena_conditioned_ns_{number}",
            )

        return _write(source, output_dir, len(smoke), math.prod(smoke.shape[1:]) * 3, make)


def convert_pdegym(source: Source, output_dir: Source) -> list[Path]:
    """PDEGym's CE-RM (Richtmyer-Meshkov): `density`, `pressure`, `velocity`, periodic on the unit square.

    Taken for granted: the 21 frames are 0.1 apart (T = 2), as the card says, and all sides are periodic. The passive
    tracer, which the authors' own loader does not use either, is left out.

    Args, returns and raises as `convert_pdebench`; `source` is `solution_0.nc`, `solution_1.nc`, or the assembled
    `CE-RM.nc`.
    """
    with _opened(source) as file:
        solution = _numbers(file, "solution")
        if solution.ndim != 5 or solution.shape[2] != 5:
            raise ValueError(f"{source}: solution: expected shape (N, T, 5, x, y), found {solution.shape}")
        count, frames, _, *grid = solution.shape

        def channel(number: int, place: int, target: np.ndarray) -> np.ndarray:
            return _fill(target, lambda first, last: solution[number, first:last, place])

        def make(number: int, folder: Path) -> Trajectory:
            velocity = _empty((frames, *grid, 2), folder)
            channel(number, 1, velocity[..., 0])
            channel(number, 2, velocity[..., 1])
            return Trajectory(
                fields={
                    "density": channel(number, 0, _empty((frames, *grid), folder)),
                    "pressure": channel(number, 3, _empty((frames, *grid), folder)),
                    "velocity": velocity,
                },
                boundary_conditions={"x": "periodic", "y": "periodic"},
                dt=0.1,
                name=f"pdegym_ce_rm_{number}",
                coordinates={axis: (np.arange(n) + 0.5) / n for axis, n in zip("xy", grid)},
            )

        return _write(source, output_dir, count, frames * math.prod(grid) * 4, make)


def convert_bubbleml(source: Source, output_dir: Source) -> list[Path]:
    """Pool boiling of BubbleML 2.0: `gas-interface-sdf`, `temperature`, `velocity`, as in the data that Walrus saw.

    Taken for granted: the heated wall is the low side of y, the high side is open, and x ends at walls, which holds for
    pool boiling and not for flow boiling; the frames are evenly spread over `t_final`, from 0. The pressure, which is a
    gradient there, is left out.

    Args, returns and raises as `convert_pdebench`; `source` is a file such as `Twall_100.hdf5`, with `Twall_100.json`
    beside it. One trajectory has 8 GB, for which there must be space twice. The two fluids' files have the same names:
    give each fluid a folder of its own below the same one.
    """
    with _opened(source) as file:
        distance = _numbers(file, "dfun")
        if distance.ndim != 3 or len(distance) < 2:
            raise ValueError(f"{source}: dfun: expected shape (T, y, x), found {distance.shape}")
        frames, rows, columns = distance.shape
        temperature = _numbers(file, "temperature", distance.shape)
        components = [_numbers(file, name, distance.shape) for name in ("velx", "vely")]
        coordinates = {"x": _small(file, "x_centers", (columns,)), "y": _small(file, "y_centers", (rows,))}
        final = _final_time(Path(source).with_suffix(".json"))

        def turned(dataset: Any, target: np.ndarray) -> np.ndarray:
            return _fill(target, lambda first, last: dataset[first:last].swapaxes(1, 2))

        def make(number: int, folder: Path) -> Trajectory:
            velocity = _empty((frames, columns, rows, 2), folder)
            for i, component in enumerate(components):
                turned(component, velocity[..., i])
            return Trajectory(
                fields={
                    "gas-interface-sdf": turned(distance, _empty((frames, columns, rows), folder)),
                    "temperature": turned(temperature, _empty((frames, columns, rows), folder)),
                    "velocity": velocity,
                },
                boundary_conditions={"x": "wall", "y": ("wall", "open")},
                dt=final / (frames - 1),
                name=f"bubbleml_pool_boiling_subcooled_{number}",
                coordinates=coordinates,
            )

        return _write(source, output_dir, 1, math.prod(distance.shape) * 4, make)


CONVERTERS: dict[str, Callable[[Source, Source], list[Path]]] = {
    "pdebench": convert_pdebench,
    "pdearena": convert_pdearena,
    "pdegym": convert_pdegym,
    "bubbleml": convert_bubbleml,
}


@contextlib.contextmanager
def _opened(source: Source) -> Iterator[Any]:
    """The open file, checked for references to other files."""
    path = os.fspath(source)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: expected a local HDF5 file, found none; download it first")
    if not h5py.is_hdf5(path):
        raise ValueError(f"{path}: expected an HDF5 file, found another kind; download it again")
    with open_well_file(path, path):  # refuses a damaged file, and one that leads to others
        pass
    with h5py.File(path, "r") as file:
        yield file


def _numbers(group: Any, name: str, shape: Sequence[int] | None = None) -> Any:
    """A data set of real numbers, whole, of that shape and without an empty axis."""
    found = group.get(name)
    where = f"{group.file.filename}: {name}"
    if not isinstance(found, h5py.Dataset):
        raise ValueError(f"{where}: expected a data set, found none among {', '.join(sorted(group)[:12])}")
    check_stored(found)
    if shape is not None and found.shape != tuple(shape):
        raise ValueError(f"{where}: expected shape {tuple(shape)}, found {found.shape}")
    if not found.shape or not min(found.shape):
        raise ValueError(f"{where}: expected at least one trajectory, frame and cell, found shape {found.shape}")
    return found


def _small(group: Any, name: str, shape: Sequence[int] | None = None) -> np.ndarray:
    dataset = _numbers(group, name, shape)
    if dataset.size > 2**20:
        raise ValueError(f"{group.file.filename}: {name}: expected a short list of numbers, found {dataset.shape}")
    return np.asarray(dataset[()], dtype=np.float64)


def _empty(shape: tuple[int, ...], folder: Path) -> np.ndarray:
    """A new array of float32; a large one lies in a file that vanishes with it, so that it needs no memory."""
    size = 4 * math.prod(shape)
    if size <= SLAB_BYTES:
        return np.empty(shape, dtype=np.float32)
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):  # a full disk must show now: when a page is touched, it kills the process
            os.posix_fallocate(file.fileno(), 0, size)
        return np.memmap(file, dtype=np.float32, mode="r+", shape=shape)


def _fill(target: np.ndarray, read: Callable[[int, int], np.ndarray]) -> np.ndarray:
    """`target` (T, ...), filled by a few frames at a time."""
    step = max(1, SLAB_BYTES // (8 * max(1, target[:1].size)))
    for first in range(0, len(target), step):
        last = min(first + step, len(target))
        try:
            with np.errstate(over="raise"):
                target[first:last] = read(first, last)
        except FloatingPointError:
            raise ValueError("expected numbers that float32 can hold (3.4e38), found larger ones") from None
    return target


def _copy(dataset: Any, number: int, folder: Path) -> np.ndarray:
    """One trajectory (T, *grid) of a data set (N, T, *grid)."""
    return _fill(_empty(dataset.shape[1:], folder), functools.partial(_frames, dataset, number))


def _copy_vector(components: list[Any], number: int, folder: Path) -> np.ndarray:
    """One trajectory (T, *grid, d) of data sets (N, T, *grid)."""
    vector = _empty((*components[0].shape[1:], len(components)), folder)
    for i, component in enumerate(components):
        _fill(vector[..., i], functools.partial(_frames, component, number))
    return vector


def _frames(dataset: Any, number: int, first: int, last: int) -> np.ndarray:
    return dataset[number, first:last]


def _write(
    source: Source, output_dir: Source, count: int, numbers: int, make: Callable[[int, Path], Trajectory]
) -> list[Path]:
    """Files of as many trajectories as `FILE_BYTES` hold, at least one; `numbers` is what one trajectory has."""
    folder, stem = Path(output_dir), Path(source).stem
    per_file = max(1, FILE_BYTES // (4 * numbers))
    targets = [folder / f"{stem}_{first:05d}.hdf5" for first in range(0, count, per_file)]
    there = [target for target in targets if target.exists()]
    if there:
        raise FileExistsError(f"{there[0]}: expected no file, found one; remove it or choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for target, first in zip(targets, range(0, count, per_file)):
        batch = []
        for number in range(first, min(first + per_file, count)):
            try:
                batch.append(make(number, folder))
            except ValueError as error:
                raise ValueError(f"{source}: trajectory {number}: {one_line(error)}") from error
            except OSError as error:  # a damaged chunk, or a full disk
                raise OSError(error.errno or errno.EIO, f"{source}: trajectory {number}: {one_line(error)}") from error
        save_well(batch, target)
    return targets


def _pdebench_kind(path: Path) -> str:
    words = path.stem.split("_")
    if "periodic" in words:
        return "periodic"
    if "trans" in words:
        return "open"
    raise ValueError(
        f"{path}: expected 'periodic' or 'trans' in the name, which tell the boundaries; pass boundary_conditions"
    )


def _final_time(path: Path) -> float:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: expected the simulation's .json beside its .hdf5, found none; download it too"
        )
    try:
        final = float(json.loads(path.read_text(encoding="utf-8"))["t_final"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected a number t_final, found {type(error).__name__}: {one_line(error)}"
        ) from error
    if not 0 < final < math.inf:
        raise ValueError(f"{path}: expected t_final > 0, found {final}")
    return final
