"""All frames of a source, a bounded stretch at a time: for checks, and for statistics in one pass."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from tqdm.auto import tqdm

from ..fields import decimal_logarithm, fill_obstacles, fill_unusable, yes_or_no
from .fetching import read_arrays
from .manifest import FileManifest, Manifest
from .remote import RangeFile
from .scenarios import Scenario
from .statistics import RunningStatistics
from .well import OBSTACLE_MASK, refuse_too_large

# Frames that are read together: about so many bytes, and so many more on their way.
STRETCH_BYTES = 32 * 2**20
AHEAD_BYTES = 128 * 2**20
THREADS = 4


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Frames `first` to `stop - 1` of one trajectory of a manifest's file."""

    file: int
    trajectory: int
    first: int
    stop: int

    def __str__(self) -> str:
        return f"trajectory {self.trajectory}, frames {self.first} to {self.stop - 1}"


@dataclasses.dataclass(frozen=True)
class Part:
    """`fields` (n, *grid, [d], [d]) of a stretch; `constants` (*grid, [d], [d]), each of the file's arrays once."""

    fields: dict[str, np.ndarray]
    constants: dict[str, np.ndarray]
    obstacle: np.ndarray | None


def stretches_of(manifest: Manifest, shard: tuple[int, int] = (0, 1)) -> Iterator[Stretch]:
    """All frames of all trajectories in order; `shard` (i, n) takes trajectories i, i + n, i + 2n, ..."""
    rows = [(file, t) for file, entry in enumerate(manifest.files) for t in range(entry.trajectories)]
    for file, trajectory in rows[shard[0] :: shard[1]]:
        entry = manifest.files[file]
        # An archive of FlowBench is inflated from its front each time, so it is read at once.
        length = entry.frames if entry.format == "flowbench" else max(1, STRETCH_BYTES // _frame_bytes(entry))
        for first in range(0, entry.frames, length):
            yield Stretch(file, trajectory, first, min(first + length, entry.frames))


def read_stretches(
    manifest: Manifest,
    shard: tuple[int, int] = (0, 1),
    progress: bool = False,
    storage_options: dict | None = None,
) -> Iterator[tuple[Stretch, Future[Part]]]:
    """Each stretch with its frames, read ahead by a few threads and given in order; a failure is in the future.

    A constant field that all trajectories share comes with trajectory 0 of its file, and so with one shard only.
    """

    @functools.lru_cache(THREADS)  # the way to a file is found once
    def opened(file: int) -> tuple[RangeFile, RangeFile | None]:
        return manifest.open(file, storage_options)

    def read(stretch: Stretch) -> Part:
        return _read_part(manifest.files[stretch.file], opened(stretch.file), stretch)

    total = sum(stretch.stop - stretch.first for stretch in stretches_of(manifest, shard))
    waiting: collections.deque[tuple[Stretch, Future[Part]]] = collections.deque()
    ahead = 0
    pool = ThreadPoolExecutor(THREADS)
    bar = tqdm(total=total, desc="read", unit="frame", leave=False, disable=None if progress else True)
    try:
        for stretch in stretches_of(manifest, shard):
            while waiting and (ahead + _bytes(manifest, stretch) > AHEAD_BYTES or len(waiting) > THREADS):
                ahead -= _bytes(manifest, waiting[0][0])
                bar.update(waiting[0][0].stop - waiting[0][0].first)
                yield waiting.popleft()
            waiting.append((stretch, pool.submit(read, stretch)))
            ahead += _bytes(manifest, stretch)
        while waiting:
            bar.update(waiting[0][0].stop - waiting[0][0].first)
            yield waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)
        bar.close()


def _read_part(entry: FileManifest, opened: tuple[RangeFile, RangeFile | None], stretch: Stretch) -> Part:
    refuse_too_large(str(stretch), (stretch.stop - stretch.first) * _frame_bytes(entry))
    arrays = read_arrays(entry, *opened, stretch.trajectory, stretch.first, stretch.stop)
    once = {field.name for field in entry.fields if field.sample_varying or stretch.trajectory == 0}
    constant = {field.name for field in entry.fields if not field.time_varying}
    return Part(
        fields={field.name: arrays[field.name] for field in entry.fields if field.time_varying},
        constants={
            name: arrays[name][0] for name in sorted(constant & once - {OBSTACLE_MASK}) if stretch.first == 0
        },
        obstacle=yes_or_no(arrays[OBSTACLE_MASK][0]) if OBSTACLE_MASK in arrays else None,
    )  # fmt: skip


def _frame_bytes(entry: FileManifest) -> int:
    """Bytes of a frame with the fields of the file that do not vary, which are read along with each stretch."""
    return max(1, sum(field.frame_bytes for field in entry.fields))


def _bytes(manifest: Manifest, stretch: Stretch) -> int:
    return (stretch.stop - stretch.first) * _frame_bytes(manifest.files[stretch.file])


def collect_statistics(
    manifest: Manifest,
    scenario: Scenario | None = None,
    shard: tuple[int, int] = (0, 1),
    progress: bool = False,
    storage_options: dict | None = None,
) -> RunningStatistics:
    """Statistics of all frames in one pass; those of shards, merged, are those of all.

    Args:
        scenario: take the fields as the model reads them: logarithms, fields of zeros, zeros inside obstacles. None
            takes them as they are, but for zeros in place of what is not finite inside obstacles. Names are the data's
            own either way.
        shard: (i, n) takes trajectories i, i + n, i + 2n, ...
        progress: show a bar on a terminal.

    Raises:
        OSError: bytes that could not be had; names file and offset.
        ValueError: numbers that are not finite, or not positive where a logarithm is taken; names file and trajectory.
    """
    dims = len(manifest.files[0].axes)
    other = next((file for file, entry in enumerate(manifest.files) if len(entry.axes) != dims), None)
    if other is not None:
        raise ValueError(
            f"{manifest.url(other)}: expected {dims} axes, as {manifest.url(0)} has, found "
            f"{len(manifest.files[other].axes)}; take the statistics of planes and volumes apart"
        )
    statistics = RunningStatistics(dims)
    for stretch, future in read_stretches(manifest, shard, progress, storage_options):
        part = future.result()
        try:
            part = as_stored(part) if scenario is None else as_read(part, scenario)
            if part.fields:
                statistics.add_trajectory_part(part.fields, follows=stretch.first > 0)
            statistics.add_constant_fields(part.constants)
        except ValueError as error:
            raise ValueError(f"{manifest.url(stretch.file)}, {stretch}: {error}") from error
    return statistics


def as_stored(part: Part) -> Part:
    """The fields as they are, with zeros in place of what is not finite inside obstacles."""
    fields = {name: _usable(values, part.obstacle, lead=1) for name, values in part.fields.items()}
    constants = {name: _usable(values, part.obstacle) for name, values in part.constants.items()}
    return dataclasses.replace(part, fields=fields, constants=constants)


def _usable(values: np.ndarray, obstacle: np.ndarray | None, lead: int = 0, log: bool = False) -> np.ndarray:
    """`lead` axes stand before the grid."""
    if obstacle is None:
        return values
    return fill_unusable(values, obstacle, log, components=values.ndim - lead - obstacle.ndim)


def as_read(part: Part, scenario: Scenario) -> Part:
    """The fields as the model reads them in that scenario, under their own names."""

    def read(name: str, values: np.ndarray, constant: bool = False) -> np.ndarray:
        if name in scenario.zero_fields:
            return np.zeros_like(values)
        log = name in scenario.log_fields
        if constant:
            values = _usable(values, part.obstacle, log=log)
        elif part.obstacle is not None:
            values = fill_obstacles(values, part.obstacle, 1 if log else 0, values.ndim - 1 - part.obstacle.ndim)
        if log:
            smallest = values.min()
            if not smallest > 0:
                raise ValueError(f"field {name!r}: expected positive values for a logarithm, found {smallest:g}")
            values = decimal_logarithm(values)
        return values

    fields = {name: read(name, values) for name, values in part.fields.items()}
    constants = {name: read(name, values, constant=True) for name, values in part.constants.items()}
    return dataclasses.replace(part, fields=fields, constants=constants)
