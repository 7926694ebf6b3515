"""Read FlowBench's flow past an object: `.npz` archives of one simulation each, under a licence of its own.

    FPO_NS_2D_512x128/{harmonics,nurbs,skelenton}/<geometry>/Re_<n>.npz        data (242, 128, 512, 3) float64: u, v, p
                                                            /input_geometry.npz  data (128, 512): signed distance, mask

Published by BGLab on the Hub (https://huggingface.co/datasets/BGLab/FlowBench, arXiv 2409.18032). The names and the
order of the axes, time, y, x, channel, are those of the group's own scripts (baskargroup/flowbench-tools); other orders
can be named. The authors advise to leave out the first two frames; Walrus keeps all 242.

Nothing in an archive is ever unpickled, and no array is made on the word of a header alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import math
import os
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np

from ..fields import BoundaryCondition, Trajectory
from .remote import BufferedRangeFile, list_files, open_range_file
from .well import refuse_too_large
from .well_opening import one_line

DATASET_NAME = "flowbench_fpo"
LICENCE = "CC-BY-NC-4.0"
GEOMETRY_SUFFIX = "input_geometry.npz"
ORDER = "TYXC"
CHANNELS = ("u", "v", "p")
# The published arrays are cut out of the channel [0, 64] x [0, 16]: neither its inlet and outlet nor its walls, at
# y = 0 and y = 16, lie on their sides. Fluid crosses all four, so all four are open.
REGION = {"x": (4.0, 20.0), "y": (6.0, 10.0)}
BOUNDARY_IDS = ((int(BoundaryCondition.OPEN),) * 2,) * 2
DT = 0.05
# The object fits into a square of side 1 of the region's 16 x 4.
LARGEST_OBJECT = 0.25
SPLITS = ("train", "valid", "test")
Source = str | os.PathLike | IO[bytes] | io.IOBase


@dataclasses.dataclass(frozen=True)
class FlowBenchLayout:
    """What an archive holds: `grid` is (x, y), `dtype` numpy's text, `key` the name of the array."""

    frames: int
    grid: tuple[int, int]
    dtype: str
    key: str = "data"


@dataclasses.dataclass(frozen=True)
class FlowBenchFile:
    """One simulation in a folder of FlowBench; `geometry_path` is None in releases without geometry files."""

    path: str
    family: str
    geometry: str
    reynolds: float
    geometry_path: str | None


def flowbench_layout(source: Source, order: str = ORDER) -> FlowBenchLayout:
    """What an archive holds, from its table of contents and the header of its array.

    Args:
        source: a path, a URL that fsspec knows, or a seekable binary file.
        order: the axes of the array, T time, C channel, X along the flow, Y across it.

    Raises:
        FileNotFoundError, IsADirectoryError, OSError: as the name says.
        ValueError: no whole archive of one array of numbers (frames, y, x, u v p), or another order.
    """
    warn_of_licence()
    with _opened(source) as archive, _array(archive, "data") as array:
        return array.layout(order)


def load_flowbench(
    source: Source,
    start: int = 0,
    frames: int | None = None,
    geometry: Source | None = None,
    order: str = ORDER,
    name: str | None = None,
) -> Trajectory:
    """One simulation, or a stretch of it; memory holds the frames asked for in float32, and one frame more.

    Args:
        source: a path, a URL that fsspec knows, or a seekable binary file. Compressed archives are read from the front,
            whatever the start.
        start: first frame, from 0.
        frames: number of frames; None reads to the end.
        geometry: the `input_geometry.npz` beside the simulation; gives the obstacle mask.
        order: the axes of the array, T time, C channel, X along the flow, Y across it.
        name: of the trajectory; None makes one of the path: `flowbench_fpo_<family>_<geometry>_Re_<n>`.

    Returns:
        `velocity` (T, x, y, 2) and `pressure` (T, x, y), dimensionless, all sides open, `dt` 0.05, time from the first
        frame of the archive on. The rarer value of the mask marks the object, which covers about 1 % of the region: the
        files were seen to mark the fluid, the paper says that they mark the object.

    Raises:
        FileNotFoundError, IsADirectoryError, OSError: as the name says.
        ValueError: anything else that is wrong with the archive or with the stretch asked for.
    """
    warn_of_licence()
    with _opened(source) as archive, _array(archive, "data") as array:
        layout = array.layout(order)
        stop = layout.frames if frames is None else start + frames
        if not 0 <= start < stop <= layout.frames:
            raise ValueError(f"start={start}, frames={frames}: expected a stretch of the {layout.frames} frames")
        values = array.read(order, start, stop)
    mask = None if geometry is None else load_obstacle_mask(geometry, layout.grid, order)
    if name is None:
        name = _name_of(source) if isinstance(source, str | os.PathLike) else DATASET_NAME
    return Trajectory(
        fields={"velocity": values[..., :2], "pressure": values[..., 2]},
        boundary_conditions=dict(zip(REGION, BOUNDARY_IDS)),
        axes=tuple(REGION),
        dt=DT,
        time=start * DT,
        name=name,
        coordinates={axis: _cell_centres(*REGION[axis], n) for axis, n in zip(REGION, layout.grid)},
        obstacle_mask=mask,
    )


def load_obstacle_mask(geometry: Source, grid: Sequence[int], order: str = ORDER) -> np.ndarray:
    """The mask (x, y), True inside the object, from an `input_geometry.npz`.

    Raises:
        ValueError: a mask on another grid, or one that marks no small part of it; the errors of `load_flowbench`.
    """
    axes = "".join(axis for axis in _check_order(order) if axis in "XY")
    with _opened(geometry) as archive, _array(archive, "mask", kinds="biuf") as array:
        expected = tuple(grid["XY".index(axis)] for axis in axes)
        if array.shape != expected:
            raise ValueError(f"mask: expected shape {expected} ({axes.lower()}), found {array.shape}")
        marked = np.frombuffer(array.take(), array.dtype).reshape(array.shape, order=array.memory) != 0
    if axes == "YX":
        marked = marked.T
    obstacle = marked if 2 * np.count_nonzero(marked) <= marked.size else ~marked
    share = np.count_nonzero(obstacle) / obstacle.size
    if not 0 < share <= LARGEST_OBJECT:
        raise ValueError(f"mask: expected an object on a small part of the grid, found one on {share:.0%} of it")
    return np.ascontiguousarray(obstacle)


def list_flowbench(root: str | os.PathLike, exclude: Sequence[str] = ()) -> list[FlowBenchFile]:
    """All simulations below a folder, by family, geometry and Reynolds number.

    Args:
        root: a local folder or a URL that can be listed.
        exclude: parts of paths below `root` to leave out, such as `"Re_614.npz"`.

    Raises:
        FileNotFoundError: no such folder, or no simulation in it.
        ValueError: a folder behind http(s), which cannot be listed.
    """
    location = os.fspath(root).rstrip("/")
    location = location if "://" in location else os.path.abspath(location)
    paths = set(list_files(location, (".npz",), recursive=True))
    found = []
    for path in paths:
        parts, below = path.split("/"), path.removeprefix(location)
        if not re.fullmatch(r"Re_?\d.*\.npz", parts[-1]) or any(part in below for part in exclude):
            continue
        beside = "/".join([*parts[:-1], GEOMETRY_SUFFIX])
        geometry_path = beside if beside in paths else None
        found.append(FlowBenchFile(path, parts[-3], parts[-2], reynolds_number(path), geometry_path))
    if not found:
        raise FileNotFoundError(f"{location}: expected simulations <family>/<geometry>/Re_<n>.npz, found none")
    return sorted(found, key=lambda file: (file.family, len(file.geometry), file.geometry, file.reynolds))


def reynolds_number(path: str | os.PathLike) -> float:
    """The Reynolds number in a file's name, `Re_282.npz`.

    Raises:
        ValueError: there is none.
    """
    match = re.search(r"Re_?(\d+(?:\.\d+)?)", os.fspath(path).rpartition("/")[2])
    if match is None:
        raise ValueError(f"{os.fspath(path)}: expected a name such as Re_282.npz, found no Reynolds number in it")
    return float(match[1])


def parts_of_other_splits(split: str) -> tuple[str, ...]:
    """Parts of paths that belong to the other splits; FlowBench itself has none.

    Whole geometries are held out, by the last digit of their number: 9 for validation, 0 for testing, 80/10/10 in all.
    Walrus splits 80/10/10 by trajectory; which ones is not published.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, found {split!r}")
    own = {"train": "12345678", "valid": "9", "test": "0"}[split]
    return tuple(f"{digit}/Re_" for digit in "0123456789" if digit not in own)


@functools.cache
def warn_of_licence() -> None:
    """Show FlowBench's licence, once in a process."""
    warnings.warn(
        f"FlowBench is published under {LICENCE}: it, and what is made from it, is not for commercial use "
        "(https://huggingface.co/datasets/BGLab/FlowBench)",
        stacklevel=3,
    )


@dataclasses.dataclass
class _Array:
    """An array in an archive, its header read, its numbers not yet."""

    stream: IO[bytes]
    shape: tuple[int, ...]
    memory: Any  # "C" or "F"
    dtype: np.dtype

    def layout(self, order: str) -> FlowBenchLayout:
        sizes = dict(zip(_check_order(order), self.shape))
        if len(self.shape) != 4 or sizes["C"] != len(CHANNELS) or not min(self.shape):
            raise ValueError(
                f"data: expected four axes {order} with {len(CHANNELS)} channels ({', '.join(CHANNELS)}), found shape "
                f"{self.shape}; name its axes with order="
            )
        if sizes["X"] <= sizes["Y"]:
            raise ValueError(
                f"data: expected more cells along the flow (X) than across it (Y), found shape {self.shape} for the "
                f"axes {order}; name its axes with order="
            )
        return FlowBenchLayout(sizes["T"], (sizes["X"], sizes["Y"]), self.dtype.str)

    def read(self, order: str, start: int, stop: int) -> np.ndarray:
        """Frames `start:stop` as (T, x, y, channel) float32."""
        shape = self.shape
        if self.memory == "F":  # the same numbers as the turned-around array in C order
            shape, order = shape[::-1], order[::-1]
        sizes = dict(zip(order, shape))
        slab = math.prod(shape[1:]) * self.dtype.itemsize
        wanted = (stop - start, sizes["X"], sizes["Y"], len(CHANNELS))
        refuse_too_large(f"{stop - start} frames", 4 * math.prod(wanted) + 2 * slab)
        values = np.empty(wanted, dtype=np.float32)
        target = values.transpose(["TXYC".index(axis) for axis in order])
        with np.errstate(over="ignore"):  # infinite numbers are refused where they are used
            for i in range(stop if order[0] == "T" else shape[0]):
                block = np.frombuffer(self.take(slab), self.dtype).reshape(shape[1:])
                if order[0] != "T":
                    target[i] = block[(*(slice(None),) * (order.index("T") - 1), slice(start, stop))]
                elif i >= start:
                    target[i - start] = block
        if stop == sizes["T"] or order[0] != "T":
            self.stream.read(1)  # the end of the member, where its checksum is compared
        return values

    def take(self, size: int | None = None) -> bytes:
        """The next bytes, by default all of the array."""
        size = math.prod(self.shape) * self.dtype.itemsize if size is None else size
        data = self.stream.read(size)
        if len(data) != size:
            raise EOFError(f"{len(data)} of {size} bytes")
        return data


def _check_order(order: str) -> str:
    if sorted(order) != sorted("TCXY"):
        raise ValueError(f"order: expected the letters T, C, X and Y in the order of the axes, found {order!r}")
    return order


@contextlib.contextmanager
def _opened(source: Source) -> Iterator[zipfile.ZipFile]:
    """The open archive; what is wrong with it becomes one line that names it."""
    path = os.fspath(source) if isinstance(source, str | os.PathLike) else None
    location = "FlowBench archive" if path is None else path
    try:
        with contextlib.ExitStack() as stack:
            file: Any = source if path is None else stack.enter_context(_open_path(path))
            yield stack.enter_context(zipfile.ZipFile(file))
    except ValueError as error:
        raise ValueError(f"{location}: {one_line(error)}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        if isinstance(error.__context__, OSError):  # zipfile hides that the bytes did not come
            raise error.__context__ from error
        raise ValueError(
            f"{location}: expected a whole .npz archive, found one that cannot be read ({type(error).__name__}: "
            f"{one_line(error)}); download it again"
        ) from error


def _open_path(path: str) -> contextlib.AbstractContextManager[Any]:
    if "://" in path:
        return BufferedRangeFile(open_range_file(path), block_size=2**23, blocks=4)
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path}: expected an .npz archive, found a directory; name one file in it")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: expected an .npz archive, found none; check the path")
    return open(path, "rb")


@contextlib.contextmanager
def _array(archive: zipfile.ZipFile, key: str, kinds: str = "iuf") -> Iterator[_Array]:
    """The array of that name, refused where it is pickled or its header and the archive disagree."""
    if f"{key}.npy" not in archive.namelist():
        found = ", ".join(archive.namelist()[:5]) or "none"
        raise ValueError(f"expected an array {key!r} in the archive, found {found}; is it a file of FlowBench FPO?")
    member = archive.getinfo(f"{key}.npy")
    with archive.open(member) as stream:
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        version = np.lib.format.read_magic(stream)
        if version not in readers:
            raise ValueError(f"{key}: expected an array of numbers in format 1.0 or 2.0, found {version}")
        shape, fortran, dtype = readers[version](stream)
        if dtype.hasobject:
            raise ValueError(
                f"{key}: expected an array of numbers, found pickled objects, which could run any code when loaded; "
                "if you trust the file, write its numbers anew with np.savez_compressed"
            )
        declared = math.prod(shape) * dtype.itemsize
        if dtype.kind not in kinds or min(shape, default=1) < 0:
            raise ValueError(f"{key}: expected an array of numbers, found dtype {dtype} and shape {shape}")
        if stream.tell() + declared != member.file_size:
            raise ValueError(
                f"{key}: expected {declared} bytes for shape {shape} and dtype {dtype}, found "
                f"{member.file_size - stream.tell()} in the archive; download it again"
            )
        yield _Array(stream, shape, "F" if fortran else "C", dtype)


def _name_of(path: str | os.PathLike) -> str:
    *folders, last = os.fspath(path).removesuffix(".npz").split("/")
    known = folders[-2:] if len(folders) >= 2 and folders[-1].isdigit() else []
    return "_".join([DATASET_NAME, *known, last])


def _cell_centres(low: float, high: float, cells: int) -> np.ndarray:
    return low + (high - low) / cells * (np.arange(cells) + 0.5)
