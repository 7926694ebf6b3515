"""Windows and blocks of a source by number: what a stream and a training plan draw from, before any data is read.

A window is `frames` frames of one trajectory, `stride` frames apart. A block is a run of windows that start one frame
after the other, so that most of their frames are the same: read once, they serve all its windows. Plans permute blocks,
and windows inside the blocks that memory holds; permuting single windows would read every frame several times.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..fields import BoundaryCondition, Trajectory
from ..processing_walrus import Channel, WalrusProcessor
from .manifest import FileManifest, Manifest
from .well import OBSTACLE_MASK, refuse_too_large

# A block of a source that is streamed alone.
BLOCK_BYTES = 64 * 2**20
# Frames between two wanted ones are fetched with them up to this size: a request of its own takes as long.
GAP_BYTES = 2**20


@dataclasses.dataclass(frozen=True)
class Window:
    """`frames` frames from `start` of a trajectory of a file; its stride is drawn by whoever plans."""

    file: int
    trajectory: int
    start: int


@dataclasses.dataclass(frozen=True)
class Block:
    """The windows `first_window` to `first_window + windows - 1`, which start at `start`, `start + 1`, ..."""

    file: int
    trajectory: int
    start: int
    first_window: int
    windows: int


class ScenarioIndex:
    """All windows of one source, numbered file by file, trajectory by trajectory, frame by frame.

    Args:
        name: what batches call the source.
        manifest: its files; all on one grid, with one set of fields and boundary conditions.
        frames: frames of a window (T inputs and the frame after the last one).
        stride_range: smallest and largest distance of a window's frames. Windows are counted at the smallest one; where
            a trajectory is too short for it, at the largest one that fits.
        processor: gives names, logarithms and the vocabulary; None is the published one.
        zero_fields: own names of fields that are read as zeros (acoustic density, see scenarios.py).
        block_bytes: about how large a block gets in memory.
        storage_options: for fsspec, where the files lie in a store of its own.

    Raises:
        ValueError: trajectories too short at stride 1, files that differ, or fields that the processor refuses.
    """

    def __init__(
        self,
        name: str,
        manifest: Manifest,
        frames: int = 7,
        stride_range: tuple[int, int] = (1, 1),
        processor: WalrusProcessor | None = None,
        zero_fields: Sequence[str] = (),
        block_bytes: int = BLOCK_BYTES,
        storage_options: dict | None = None,
    ) -> None:
        low, high = stride_range
        if not 1 <= low <= high:
            raise ValueError(f"stride_range: expected 1 <= smallest <= largest, found {tuple(stride_range)}")
        if frames < 2:
            raise ValueError(f"frames: expected at least 2 (an input and the frame after it), found {frames}")
        self.name, self.manifest, self.frames = name, manifest, frames
        self.stride_range = (low, high)
        self.processor = processor or WalrusProcessor()
        self.zero_fields = tuple(zero_fields)
        self.storage_options = storage_options
        self.template = self._check_alike()
        self.channels = self._channels(constant=False)
        self.constants = self._channels(constant=True)
        self.static_inputs = self.processor.static_inputs(self.template)
        self._count_windows()
        self.frame_bytes = 4 * len(self.channels) * math.prod(self.template.grid)
        refuse_too_large(f"source {name!r}: a window", frames * self.frame_bytes)
        self._cut_blocks(block_bytes)

    @property
    def num_windows(self) -> int:
        return int(self._first_window[-1])

    @property
    def num_blocks(self) -> int:
        return len(self._block_first)

    @property
    def num_trajectories(self) -> int:
        return len(self._file)

    def window(self, number: int) -> Window:
        """The window of that number, 0 to `num_windows - 1`."""
        return Window(*(int(found[0]) for found in self.locate(np.array([number]))))

    def locate(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Files, trajectories and first frames of many windows, each (n,)."""
        if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < self.num_windows:
            raise IndexError(f"{self.name}: expected windows 0 to {self.num_windows - 1}, found {numbers}")
        row = np.searchsorted(self._first_window, numbers, side="right") - 1
        return self._file[row], self._trajectory[row], numbers - self._first_window[row]

    def block(self, number: int) -> Block:
        """The block of that number, 0 to `num_blocks - 1`."""
        first = int(self._block_first[number])
        window = self.window(first)
        return Block(window.file, window.trajectory, window.start, first, int(self._block_windows[number]))

    def block_windows(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First window and number of windows of many blocks, each (n,)."""
        return self._block_first[numbers], self._block_windows[numbers]

    def blocks_of(self, windows: np.ndarray) -> np.ndarray:
        """The block of each window (n,)."""
        return np.searchsorted(self._block_first, windows, side="right") - 1

    def strides(self, windows: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """A stride for each window (n,) from uniform numbers (n,) in [0, 1), among those that fit its trajectory."""
        row = np.searchsorted(self._first_window, windows, side="right") - 1
        start = windows - self._first_window[row]
        low = self._smallest[row]
        high = np.minimum(self.stride_range[1], (self._frames[row] - 1 - start) // (self.frames - 1))
        return low + np.floor(uniform * (high - low + 1)).astype(np.int64)

    def address(self, file: int, trajectory: int, start: int, stride: int) -> dict[str, Any]:
        """What batches carry as `window`: where it came from, in words that outlive this index."""
        path = self.manifest.files[file].path
        return {"file": path, "trajectory": trajectory, "start": start, "stride": stride}

    def _check_alike(self) -> Trajectory:
        """An empty-handed trajectory of the source's fields and grid; every file must agree with it."""
        first = self.manifest.files[0]
        expected = _in_common(first)
        for entry in self.manifest.files:
            for what, found in _in_common(entry).items():
                if found != expected[what]:
                    raise ValueError(
                        f"source {self.name!r}: expected the {what} of {first.path}, {expected[what]}, found {found} "
                        f"in {entry.path}; give the two as sources of their own"
                    )
        return template_of(first)

    def _channels(self, constant: bool) -> list[Channel]:
        try:
            return self.processor.channels(self.template, constant)
        except ValueError as error:
            raise ValueError(f"source {self.name!r}: {error}") from None

    def _count_windows(self) -> None:
        counts = [entry.trajectories for entry in self.manifest.files]
        self._file = np.repeat(np.arange(len(counts)), counts)
        self._trajectory = np.concatenate([np.arange(count) for count in counts])
        self._frames = np.repeat([entry.frames for entry in self.manifest.files], counts)
        fitting = (self._frames - 1) // (self.frames - 1)
        if fitting.min() < 1:
            entry = self.manifest.files[int(self._file[fitting.argmin()])]
            raise ValueError(
                f"source {self.name!r}: expected at least {self.frames} frames a trajectory, found {entry.frames} in "
                f"{entry.path}; ask for fewer frames"
            )
        if fitting.min() < self.stride_range[0]:
            warnings.warn(
                f"source {self.name!r}: some trajectories are too short for {self.frames} frames at distance "
                f"{self.stride_range[0]}; their windows are at distance {fitting.min()}, another time step",
                stacklevel=3,
            )
        self._smallest = np.minimum(self.stride_range[0], fitting)
        windows = self._frames - self._smallest * (self.frames - 1)
        self._first_window = np.concatenate([[0], np.cumsum(windows)])

    def _cut_blocks(self, block_bytes: int) -> None:
        """Blocks of nearly equal numbers of windows a trajectory, none larger than `block_bytes` if one window fits."""
        span = self.stride_range[1] * (self.frames - 1)
        longest = max(1, block_bytes // self.frame_bytes - span)
        counts = np.diff(self._first_window)
        pieces = -(-counts // longest)
        row = np.repeat(np.arange(len(counts)), pieces)
        piece = np.arange(len(row)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        begin, end = piece * counts[row] // pieces[row], (piece + 1) * counts[row] // pieces[row]
        self._block_first = self._first_window[row] + begin
        self._block_windows = end - begin


def runs_of(frames: np.ndarray, frame_bytes: int) -> tuple[tuple[int, int], ...]:
    """Sorted different frames as runs ((first, stop), ...); small gaps are read along with them."""
    widest = 1 + GAP_BYTES // max(frame_bytes, 1)
    cuts = np.flatnonzero(np.diff(frames) > widest)
    firsts, lasts = frames[np.concatenate([[0], cuts + 1])], frames[np.concatenate([cuts, [-1]])]
    return tuple((int(first), int(last) + 1) for first, last in zip(firsts, lasts))


def _in_common(entry: FileManifest) -> dict[str, Any]:
    """What all files of one source must share."""
    return {
        "axes": entry.axes,
        "grid": entry.grid,
        "grid type": entry.grid_type,
        "boundary conditions": sorted(set(entry.boundaries))
        if len(set(entry.boundaries)) > 1
        else entry.boundaries[:1],
        "fields": sorted((field.name, field.rank, field.time_varying) for field in entry.fields),
        "format": entry.format,
    }


def template_of(entry: FileManifest) -> Trajectory:
    """The names and shapes of a file as a trajectory of one frame that takes no memory."""
    if len(set(entry.boundaries)) > 1:
        raise ValueError(
            f"{entry.path}: expected one set of boundary conditions, found {len(set(entry.boundaries))} among its "
            "trajectories; a batch needs one: split the file"
        )
    dims = len(entry.axes)
    arrays: Mapping[bool, dict[str, np.ndarray]] = {True: {}, False: {}}
    for field in entry.fields:
        lead = (1,) * field.time_varying
        empty = np.broadcast_to(np.float32(0), (*lead, *entry.grid, *(dims,) * field.rank))
        arrays[field.time_varying][field.name] = empty
    arrays[False].pop(OBSTACLE_MASK, None)
    sides = {
        axis: (BoundaryCondition(low), BoundaryCondition(high))
        for axis, (low, high) in zip(entry.axes, entry.boundaries_of(0))
    }
    return Trajectory(
        fields=arrays[True], constant_fields=arrays[False], boundary_conditions=sides, axes=entry.axes,
        grid_type=entry.grid_type, name=entry.dataset_name,
    )  # fmt: skip
