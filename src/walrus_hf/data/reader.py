"""Descriptors to batches: parts of trajectories are fetched, kept while windows need them, and fetched ahead.

A descriptor is a small dictionary of whole numbers that a plan writes (plan.py):

    source    number of the source
    windows   [[file, trajectory, start, stride], ...], one for each row of the batch
    parts     [[file, trajectory, [[first, stop], ...]], ...], the frames fetched for each row: those of its block
    ahead     parts that later descriptors want
    done      parts that none wants any more
    key       whole numbers that name the batch; augmentation draws from them

Only `source` and `windows` are needed: without the others, the frames of each window are fetched by themselves.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import threading
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .augment import augment
from .fetching import DamagedFileError, EvictedError, Loaded, PartFetch
from .index import ScenarioIndex, runs_of
from .part_cache import Part, PartCache
from .remote import ChangedFileError, RangeFile
from .threads import DaemonPool

THREADS = 8
# With `skip_damaged` these are counted and replaced; a store that does not answer is an error all the same.
SKIPPED = (DamagedFileError, ChangedFileError, FileNotFoundError)


@dataclasses.dataclass(frozen=True)
class _Row:
    """One window of a batch: (file, trajectory, start, stride), and the part that holds its frames."""

    window: tuple[int, int, int, int]
    part: Part
    loaded: Loaded


class BatchReader:
    """`read(descriptor) -> batch`. Threads and connections belong to one process; copies start without them.

    Args:
        indexes: the sources, in the order of the descriptors' numbers.
        cache_bytes: bound of what is kept and fetched ahead, in each process; one batch's needs may go beyond it.
        threads: ranges that are fetched at the same time for the present batch, and as many ahead of it.
        augmented: rotate each batch by its key (augment.py).
        skip_damaged: replace windows of files that are damaged, changed or gone by windows of the same source's next
            file, count them in `damaged` and warn, instead of raising.
    """

    def __init__(
        self,
        indexes: Sequence[ScenarioIndex],
        cache_bytes: int = 512 * 2**20,
        threads: int = THREADS,
        augmented: bool = False,
        skip_damaged: bool = False,
    ) -> None:
        if threads < 1 or cache_bytes < 0:
            raise ValueError(f"expected at least 1 thread and no fewer than 0 bytes, found {threads} and {cache_bytes}")
        self.indexes = list(indexes)
        self.cache_bytes, self.threads = cache_bytes, threads
        self.augmented, self.skip_damaged = augmented, skip_damaged
        self.damaged: collections.Counter[str] = collections.Counter()
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._kept = PartCache(self.cache_bytes)
        self._files: dict[tuple[int, int], tuple[RangeFile, RangeFile | None]] = {}
        self._pools: dict[bool, DaemonPool] = {}
        self._bad: dict[Part, Exception] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    @property
    def kept_bytes(self) -> int:
        """Memory of all parts that are kept or on their way."""
        return self._kept.nbytes

    def read(self, descriptor: Mapping[str, Any]) -> dict[str, Any]:
        """The batch of a descriptor: model inputs, and `source` and `window`, which the collator takes off.

        Returns:
            `field_values` and `labels` (B, T - 1, C, H, W, D) float32, both views of the T frames; `field_ids` and
            `padded_channels` (B, C); `boundary_conditions` (B, 3, 2); where the source has them `constant_values`
            (B, K, H, W, D), `constant_ids` (B, K), `obstacle_mask` (B, H, W, D); `source`, its name, and `window`, a
            list of `{"file", "trajectory", "start", "stride"}`.

        Raises:
            OSError: bytes that could not be had; names file and offset.
            DamagedFileError: bytes that cannot be used; names source, file and frames.
        """
        if os.getpid() != self._process:  # forked: threads and connections did not come along
            self._start()
        number = int(descriptor["source"])
        index = self.indexes[number]
        windows = [(int(f), int(t), int(start), int(stride)) for f, t, start, stride in descriptor["windows"]]
        planned = descriptor.get("parts")
        parts = [_part(number, p) for p in planned] if planned else [_own_part(index, number, w) for w in windows]
        ahead = [_part(number, part) for part in descriptor.get("ahead") or ()]
        parts = self._request(parts, ahead)
        rows = [self._row(window, part) for window, part in zip(windows, parts)]
        batch = self._assemble(index, rows)
        self._release([_part(number, part) for part in descriptor.get("done") or ()])
        self._forget(row.part for row, part in zip(rows, parts) if not planned or row.part != part)
        if self.augmented:
            key = tuple(int(n) for n in descriptor.get("key") or (number, *windows[0]))
            id2field = {i: name for name, i in index.processor.field2id.items()}
            batch = augment(batch, key, id2field, index.template.grid_type)
        frames = batch["field_values"]
        batch["field_values"], batch["labels"] = frames[:, :-1], frames[:, 1:]
        return {**batch, "source": index.name, "window": [index.address(*row.window) for row in rows]}

    def _request(self, parts: Iterable[Part], ahead: Iterable[Part]) -> list[Part]:
        """Start what is not kept: what is wanted now first, what is wanted later where it fits beside all else.

        Returns:
            For each part itself, or a larger one in memory that has its frames.
        """
        with self._lock:
            found = [self._kept.covering(part) for part in parts]
            wanted = dict.fromkeys(found)
            for part in wanted:
                if part not in self._bad:
                    self._fetch(part, urgent=True)
            self._kept.shrink(wanted)
            for part in dict.fromkeys(self._kept.covering(part) for part in ahead):
                if part in self._kept:
                    self._kept.want(part)
                elif part not in self._bad and self._kept.make_room(self._new_fetch(part).nbytes):
                    self._fetch(part, urgent=False)
            return found

    def _fetch(self, part: Part, urgent: bool) -> PartFetch:
        fetch = self._kept.get(part)
        if fetch is None or (urgent and fetch.failed):  # what failed when it was fetched ahead is tried once more
            fetch = self._new_fetch(part)
            self._kept.put(part, fetch)
        self._kept.want(part)
        place = (part.source, part.file)
        if place not in self._files:
            index = self.indexes[part.source]
            self._files[place] = index.manifest.open(part.file, index.storage_options)
        fetch.start(*self._files[place], self._pool(urgent).submit)
        return fetch

    def _pool(self, urgent: bool) -> DaemonPool:
        if urgent not in self._pools:
            self._pools[urgent] = DaemonPool(self.threads)
        return self._pools[urgent]

    def _new_fetch(self, part: Part) -> PartFetch:
        return PartFetch(self.indexes[part.source], part.file, part.trajectory, part.runs)

    def _release(self, parts: Iterable[Part]) -> None:
        with self._lock:
            for part in parts:
                self._kept.release(self._kept.covering(part))

    def _forget(self, parts: Iterable[Part]) -> None:
        with self._lock:
            for part in parts:
                self._kept.drop(part)

    def _row(self, window: tuple[int, int, int, int], part: Part) -> _Row:
        """The part's data, or with `skip_damaged` those of a window of another file in its place."""
        index = self.indexes[part.source]
        replaced, files = window, len(index.manifest.files)
        for step in range(files):
            try:
                return _Row(replaced, part, self._load(part))
            except SKIPPED as error:
                if not self.skip_damaged or step == files - 1:
                    raise
                self._bad[part] = error
                self._report(index.manifest.url(part.file), error)
                replaced = _in_next_file(index, window, step + 1)
                part = _own_part(index, part.source, replaced)
        raise AssertionError("the last file either serves or raises")

    def _load(self, part: Part) -> Loaded:
        """A part's data. What failed is not kept, so that the next try is one; what is known to be damaged stays so."""
        if part in self._bad:
            raise self._bad[part]
        while True:
            with self._lock:
                fetch = self._kept.get(part) or self._fetch(part, urgent=True)
            try:
                return fetch.result()
            except EvictedError:  # another thread needed the room
                continue
            except Exception:
                self._forget([part])
                raise

    def _assemble(self, index: ScenarioIndex, rows: Sequence[_Row]) -> dict[str, Any]:
        """Rows stacked: `field_values` (B, T, C, H, W, D) still holds all T frames."""
        values = torch.empty((len(rows), index.frames, *rows[0].loaded.frames.shape[1:]))
        for target, row in zip(values, rows):  # (T, C, H, W, D)
            torch.index_select(row.loaded.frames, 0, _places(row, index.frames), out=target)
        batch: dict[str, Any] = {"field_values": values}
        for name, tensor in index.static_inputs.items():
            batch[name] = tensor.repeat(len(rows), *[1] * (tensor.ndim - 1))
        constants = [row.loaded.constants for row in rows if row.loaded.constants is not None]
        if constants:
            batch["constant_values"] = torch.stack(constants)
        if any(row.loaded.obstacle is not None for row in rows):
            nothing = torch.zeros(values.shape[-3:], dtype=torch.bool)
            masks = [nothing if row.loaded.obstacle is None else row.loaded.obstacle for row in rows]
            batch["obstacle_mask"] = torch.stack(masks)
        return batch

    def drop(self) -> None:
        """Let go of all that is kept or on its way: nobody reads on from here."""
        self._forget(list(self._kept))

    def _report(self, url: str, error: Exception) -> None:
        self.damaged[url] += 1
        count = self.damaged[url]
        if count & (count - 1) == 0:  # 1, 2, 4, 8, ...
            warnings.warn(f"{url}: {count} windows were replaced by those of other files ({error})", stacklevel=4)


def _part(source: int, numbers: Sequence[Any]) -> Part:
    file, trajectory, runs = numbers
    return Part(source, int(file), int(trajectory), tuple((int(first), int(stop)) for first, stop in runs))


def _own_part(index: ScenarioIndex, source: int, window: tuple[int, int, int, int]) -> Part:
    """Just the frames of one window."""
    file, trajectory, start, stride = window
    frames = start + stride * np.arange(index.frames)
    return Part(source, file, trajectory, runs_of(frames, index.frame_bytes))


def _in_next_file(index: ScenarioIndex, window: tuple[int, int, int, int], step: int) -> tuple[int, int, int, int]:
    """The window at the same place of the file `step` files on, at the same stride where that fits."""
    file = (window[0] + step) % len(index.manifest.files)
    entry = index.manifest.files[file]
    stride = min(window[3], (entry.frames - 1) // (index.frames - 1))
    return file, window[1] % entry.trajectories, window[2] % (entry.frames - stride * (index.frames - 1)), stride


def _places(row: _Row, frames: int) -> torch.Tensor:
    """Where the frames of a window are in its part, (T,)."""
    _, _, start, stride = row.window
    held = np.concatenate([np.arange(first, stop) for first, stop in row.part.runs])
    return torch.from_numpy(np.searchsorted(held, start + stride * np.arange(frames)))
