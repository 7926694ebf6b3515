"""One part of a trajectory: its byte ranges fetched side by side into memory, then stacked into channels."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import IO, cast

import numpy as np
import torch
from torch import Tensor

from ..fields import yes_or_no
from ..processing_walrus import stack_channels
from .flowbench import load_flowbench
from .index import ScenarioIndex
from .manifest import FieldLayout, FileManifest
from .remote import BufferedRangeFile, RangeFile
from .well import OBSTACLE_MASK, native
from .well_opening import one_line, open_well_file

# A range is cut into pieces that are fetched side by side: one stream of most stores is far slower than the line.
PIECE_BYTES = 8 * 2**20

Runs = tuple[tuple[int, int], ...]


class DamagedFileError(ValueError):
    """Bytes that arrived but cannot be used: not finite, or not in the declared layout."""


@dataclasses.dataclass(frozen=True)
class Loaded:
    """`frames` (n, C, H, W, D) float32 of the runs in order; `constants` (K, H, W, D); `obstacle` (H, W, D) bool."""

    frames: Tensor
    constants: Tensor | None
    obstacle: Tensor | None


class RawPart:
    """Arrays of one trajectory as the file holds them, and the work that fills them.

    Args:
        manifest: the file's layout.
        source: the file.
        geometry: FlowBench's file with the obstacle, where there is one.
        trajectory, runs: which frames, `((first, stop), ...)`.
        skip: names of fields that are not fetched; their arrays are zero.
    """

    def __init__(
        self,
        manifest: FileManifest,
        source: RangeFile,
        geometry: RangeFile | None,
        trajectory: int,
        runs: Runs,
        skip: tuple[str, ...] = (),
    ) -> None:
        self.manifest, self.source, self.geometry = manifest, source, geometry
        self.trajectory, self.runs = trajectory, runs
        self.frames = sum(stop - first for first, stop in runs)
        self.fields = [field for field in manifest.fields if field.name not in skip]
        self.arrays = {
            field.name: np.zeros(self._shape(field), dtype=field.dtype)
            if field.name in skip
            else np.empty(self._shape(field), dtype=field.dtype)
            for field in manifest.fields
        }

    def _shape(self, field: FieldLayout) -> tuple[int, ...]:
        return (self.frames if field.time_varying else 1, *field.frame_shape)

    def jobs(self) -> Iterator[Callable[[], None]]:
        """Pieces of work that may run at the same time, in any order."""
        if self.manifest.format == "flowbench":
            yield self._load_flowbench
            return
        for field in self.fields:
            if field.kind != "library":
                yield from self._range_jobs(field)
        if any(field.kind == "library" for field in self.fields):
            yield self._load_by_library

    def _range_jobs(self, field: FieldLayout) -> Iterator[Callable[[], None]]:
        target = self.arrays[field.name].reshape(-1).view(np.uint8).data
        filled = 0
        for first, stop in self.runs if field.time_varying else ((0, 1),):
            for start, end in field.ranges(self.trajectory, first, stop, self.manifest.frames):
                for begin in range(start, end, PIECE_BYTES):
                    size = min(PIECE_BYTES, end - begin)
                    yield _Piece(self.source, begin, target[filled : filled + size])
                    filled += size

    def _load_by_library(self) -> None:
        """Compressed or oddly chunked fields: h5py decodes them."""
        with BufferedRangeFile(self.source) as opened, open_well_file(self.source.url, opened) as file:
            for field in self.fields:
                if field.kind != "library":
                    continue
                row = (self.trajectory,) * field.sample_varying
                done = 0
                for first, stop in self.runs if field.time_varying else ((0, 1),):
                    index = (*row, slice(first, stop)) if field.time_varying else row
                    values = np.reshape(file[field.path][index], (stop - first, *field.frame_shape))
                    self.arrays[field.name][done : done + stop - first] = values
                    done += stop - first

    def _load_flowbench(self) -> None:
        """An archive is one trajectory, mostly compressed: it is read from its front up to the last frame."""
        first, stop = self.runs[0][0], self.runs[-1][1]
        with contextlib.ExitStack() as stack:
            opened, geometry = (
                None if file is None else cast(IO[bytes], stack.enter_context(BufferedRangeFile(file)))
                for file in (self.source, self.geometry)
            )
            assert opened is not None
            trajectory = load_flowbench(opened, first, stop - first, geometry)
        kept = np.concatenate([np.arange(begin, end) for begin, end in self.runs]) - first
        for name, values in trajectory.fields.items():
            self.arrays[name][...] = values[kept]
        if trajectory.obstacle_mask is not None:
            self.arrays[OBSTACLE_MASK] = trajectory.obstacle_mask[None]

    def filled(self) -> dict[str, np.ndarray]:
        """Native arrays (n or 1, *grid, [d], [d]), the axes along which a field does not vary filled up."""
        grid = self.manifest.grid
        ranks = {field.name: field.rank for field in self.manifest.fields}
        return {
            name: np.broadcast_to(native(values), (len(values), *grid, *(len(grid),) * ranks.get(name, 0)))
            for name, values in self.arrays.items()
        }


@dataclasses.dataclass(frozen=True)
class _Piece:
    source: RangeFile
    start: int
    target: memoryview

    def __call__(self) -> None:
        self.source.read_into(self.start, self.target)


class EvictedError(Exception):
    """The part was dropped before it was here; whoever wants it starts it anew."""


class PartFetch:
    """A part on its way, or here: `start` it, then ask for the `result`. The thread with the last piece stacks it."""

    def __init__(self, index: ScenarioIndex, file: int, trajectory: int, runs: Runs) -> None:
        self.index, self.file, self.trajectory, self.runs = index, file, trajectory, runs
        frames = sum(stop - first for first, stop in runs) - (-len(index.constants) // len(index.channels))
        self.nbytes = frames * index.frame_bytes
        self._raw: RawPart | None = None
        self._waiting: list[tuple[Future, Callable[[], None]]] = []
        self._missing = 0
        self._done: Future[Loaded] = Future()
        self._lock = threading.Lock()

    @property
    def failed(self) -> bool:
        return self._done.done() and self._done.exception() is not None

    def start(
        self, source: RangeFile, geometry: RangeFile | None, submit: Callable[[Callable[[], None]], Future]
    ) -> None:
        """Hand the work to a pool; what still waits in another pool moves to this one."""
        with self._lock:
            if self._done.done():
                return
            if self._raw is None:
                entry = self.index.manifest.files[self.file]
                self._raw = RawPart(entry, source, geometry, self.trajectory, self.runs, self.index.zero_fields)
                jobs = [functools.partial(self._work, job) for job in self._raw.jobs()]
                self._missing = len(jobs)
                self._waiting = [(submit(job), job) for job in jobs]
            else:
                self._waiting = [
                    (submit(job), job) if future.cancel() else (future, job) for future, job in self._waiting
                ]

    def cancel(self) -> None:
        """Drop what has not been fetched; a waiting `result` raises `EvictedError`."""
        with self._lock:
            for future, _ in self._waiting:
                future.cancel()
            self._raw, self._waiting = None, []
            if not self._done.done():
                self._done.set_exception(EvictedError())

    def result(self) -> Loaded:
        """Wait until the part is here.

        Raises:
            OSError: bytes that could not be had.
            DamagedFileError: bytes that cannot be used.
            EvictedError: it was dropped.
        """
        return self._done.result()

    def _work(self, job: Callable[[], None]) -> None:
        raw = self._raw
        if raw is None or self._done.done():  # dropped, or failed elsewhere
            return
        try:
            job()
            with self._lock:
                self._missing -= 1
                last = not self._missing
            if last:
                self._finish(self._stack(raw.filled()))
        except ValueError as error:
            damaged = isinstance(error, DamagedFileError)
            self._finish(error if damaged else DamagedFileError(f"{self._where()}: {one_line(error)}"))
        except Exception as error:
            self._finish(error)

    def _finish(self, outcome: Loaded | Exception) -> None:
        with self._lock:
            self._raw, self._waiting = None, []
            if self._done.done():
                return
            if isinstance(outcome, Exception):
                self._done.set_exception(outcome)
            else:
                self._done.set_result(outcome)

    def _stack(self, arrays: dict[str, np.ndarray]) -> Loaded:
        index = self.index
        grid = index.template.grid
        lifted = (*grid, *(1,) * (3 - len(grid)))
        masks = arrays.pop(OBSTACLE_MASK, None)
        try:
            mask = None if masks is None else yes_or_no(masks[0].reshape(grid))
            count = len(arrays[next(iter(index.template.fields))])
            frames = stack_channels(index.channels, arrays, (count, *grid), mask)
            constants = None
            if index.constants:
                constants = stack_channels(index.constants, arrays, (1, *grid), mask, constant=True)[0]
        except ValueError as error:
            raise DamagedFileError(f"{self._where()}: {one_line(error)}") from error
        return Loaded(frames, constants, None if mask is None else torch.from_numpy(mask.reshape(lifted)))

    def _where(self) -> str:
        frames = ", ".join(f"{first} to {stop - 1}" for first, stop in self.runs)
        url = self.index.manifest.url(self.file)
        return f"source {self.index.name!r}, {url}, trajectory {self.trajectory}, frames {frames}"


def read_arrays(
    manifest: FileManifest, source: RangeFile, geometry: RangeFile | None, trajectory: int, first: int, stop: int
) -> dict[str, np.ndarray]:
    """Frames `first:stop` of one trajectory as the file names them, read now in this thread."""
    raw = RawPart(manifest, source, geometry, trajectory, ((first, stop),))
    for job in raw.jobs():
        job()
    return raw.filled()
