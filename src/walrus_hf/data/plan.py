"""Which windows a rank reads, in which order: a pure function of seed, epoch, rank and world size, without any data.

Of each source, a pass permutes the blocks and lays their windows in a row. The row is cut into one stretch a rank, all
of the same length (what remains, fewer windows than ranks, is dropped). A rank takes the blocks of its stretch a few at
a time, a group, and permutes the windows within each group; successive windows make a batch. Batches of the sources
are mixed by their weights, independently on each rank.

Any batch of a stream can be named without those before it: that is what makes resuming cheap.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .augment import uniform_hash
from .index import ScenarioIndex, runs_of

# Batches of an endless stream whose sources are drawn at once.
CHUNK_BATCHES = 4096
# What a key is drawn for; the first number of each.
_BLOCKS, _GROUPS, _STRIDES, _MIXTURE = range(4)


@dataclasses.dataclass(frozen=True)
class Row:
    """The windows of a pass, in block order: numbers, strides and passes (n,) each."""

    windows: np.ndarray
    strides: np.ndarray
    passes: np.ndarray

    def __len__(self) -> int:
        return len(self.windows)

    def take(self, kept: np.ndarray | slice) -> Row:
        return Row(self.windows[kept], self.strides[kept], self.passes[kept])


class RankPass:
    """What one rank reads of one pass over one source, in reading order.

    Args:
        index: the source.
        row: all windows of the pass in block order.
        rank, world_size: which stretch.
        blocks_in_memory: blocks a group.
        key: names the pass; the windows within groups are permuted by it.
    """

    def __init__(
        self, index: ScenarioIndex, row: Row, rank: int, world_size: int, blocks_in_memory: int, key: Sequence[int]
    ) -> None:
        share = len(row) // world_size
        self.index = index
        self.stretch = np.arange(rank * share, (rank + 1) * share)  # places in the row
        blocks = index.blocks_of(row.windows[self.stretch])
        turn = np.concatenate(
            [[0], np.cumsum(np.diff(blocks) != 0)]
        )  # 0, 0, ..., 1, 1, ...: how many blocks came before
        bounds = np.searchsorted(turn, np.arange(0, turn[-1] + blocks_in_memory + 1, blocks_in_memory))
        rng = np.random.default_rng([_GROUPS, *key, rank, world_size])
        order = np.concatenate([a + rng.permutation(b - a) for a, b in itertools.pairwise(bounds.tolist())])
        self.stretch, self.turn = self.stretch[order], turn[order]
        self.row = row.take(self.stretch)
        self.blocks_in_memory, self.bounds = blocks_in_memory, bounds
        self.last_use = np.zeros(turn[-1] + 1, dtype=np.int64)
        np.maximum.at(self.last_use, self.turn, np.arange(share))
        self._parts: dict[int, list[Any]] = {}

    def __len__(self) -> int:
        return len(self.row)

    def descriptor(self, source: int, first: int, stop: int, key: Sequence[int]) -> dict[str, Any]:
        """The batch of the windows `first` to `stop - 1` in reading order (reader.py says what is in it)."""
        file, trajectory, start = self.index.locate(self.row.windows[first:stop])
        windows = np.stack([file, trajectory, start, self.row.strides[first:stop]], axis=1).tolist()
        turns = self.turn[first:stop].tolist()
        done = sorted({turn for turn in turns if self.last_use[turn] < stop})
        return {
            "source": source,
            "windows": windows,
            "parts": [self.part(turn) for turn in turns],
            "ahead": [self.part(turn) for turn in self._ahead(first, stop)],
            "done": [self.part(turn) for turn in done],
            "key": [*key, int(self.row.passes[first]), int(self.row.windows[first])],
        }

    def _ahead(self, first: int, stop: int) -> list[int]:
        """Blocks of this group with windows still to come, then those of the next group, one after the other."""
        group = int(np.searchsorted(self.bounds, first, side="right")) - 1
        begin, end = int(self.bounds[group]), int(self.bounds[group + 1])
        here = range(group * self.blocks_in_memory, min((group + 1) * self.blocks_in_memory, len(self.last_use)))
        share = (stop - begin) / (end - begin)
        following = self.turn[end : int(self.bounds[group + 2])] if group + 2 < len(self.bounds) else self.turn[:0]
        in_order = list(dict.fromkeys(following.tolist()))
        return [turn for turn in here if self.last_use[turn] >= stop] + in_order[: round(share * len(in_order))]

    def part(self, turn: int) -> list[Any]:
        """`[file, trajectory, runs]`: the frames that the windows of one block need, at their strides."""
        if turn not in self._parts:
            for old in [kept for kept in self._parts if kept < turn - 4 * self.blocks_in_memory]:
                del self._parts[old]
            self._parts[turn] = self._make_part(turn)
        return self._parts[turn]

    def _make_part(self, turn: int) -> list[Any]:
        group = turn // self.blocks_in_memory
        begin, end = int(self.bounds[group]), int(self.bounds[group + 1])
        rows = begin + np.flatnonzero(self.turn[begin:end] == turn)
        file, trajectory, start = self.index.locate(self.row.windows[rows])
        offsets = np.arange(self.index.frames)
        frames = np.unique(start[:, None] + self.row.strides[rows][:, None] * offsets)
        runs = runs_of(frames, self.index.frame_bytes)
        return [int(file[0]), int(trajectory[0]), [list(run) for run in runs]]


class StreamPlan:
    """The descriptors of one rank.

    Args:
        indexes: the sources.
        weights: how often each is drawn, (sources,); they need not sum to 1.
        batch_size: windows a batch; the last batch of a pass may hold fewer.
        seed, rank, world_size: whole numbers.
        epochs: passes over every source, after which the stream ends; None never ends.
        blocks_in_memory: blocks whose windows are mixed.
        history: how far earlier runs of this stream at other world sizes came, `((world size, batches of each
            rank), ...)`: what they read of a pass they had not finished is left out.
        epoch: from `set_epoch`.

    Raises:
        ValueError: unusable numbers, or a source with fewer windows than ranks.
    """

    def __init__(
        self,
        indexes: Sequence[ScenarioIndex],
        weights: Sequence[float],
        batch_size: int = 2,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        epochs: int | None = None,
        blocks_in_memory: int = 4,
        history: Sequence[tuple[int, int]] = (),
        epoch: int = 0,
    ) -> None:
        counts = {"batch_size": batch_size, "world_size": world_size, "blocks_in_memory": blocks_in_memory}
        for name, count in {**counts, "epochs": 1 if epochs is None else epochs}.items():
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"{name}: expected a whole number of at least 1, found {count}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank: expected 0 to {world_size - 1} at world_size={world_size}, found {rank}")
        if seed < 0:
            raise ValueError(f"seed: expected 0 or more, found {seed}")
        if len(weights) != len(indexes) or not np.isfinite(weights).all() or min(weights) <= 0:
            raise ValueError(f"weights: expected one positive number for each source, found {list(weights)}")
        self.indexes = tuple(indexes)
        self.weights = np.asarray(weights, dtype=np.float64) / np.sum(weights)
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        self.epochs, self.blocks_in_memory, self.epoch = epochs, blocks_in_memory, epoch
        self.history = tuple((int(world), int(batches)) for world, batches in history)
        if self.history and epochs is not None:
            raise ValueError("history: expected an endless stream (epochs=None) to continue at another world size")
        for index in self.indexes:
            if index.num_windows < max(world_size, *(world for world, _ in self.history), 1):
                raise ValueError(
                    f"source {index.name!r}: expected at least one window for each of {world_size} ranks, found "
                    f"{index.num_windows}; leave the source out or use fewer ranks"
                )
        self._start_of_run = self._after_history()
        self._passes: dict[int, tuple[int, RankPass]] = {}
        self._counted = [np.zeros(len(self.indexes), dtype=np.int64)]  # batches of each source before each chunk

    @property
    def fingerprint(self) -> str:
        """Tells plans apart: a state of one plan means nothing to another."""
        sources = [(index.name, index.num_windows, index.num_blocks, index.frames) for index in self.indexes]
        settings = (
            sources, self.weights.tolist(), self.batch_size, self.seed, self.rank, self.world_size, self.epochs,
            self.blocks_in_memory, self.history, self.epoch,
        )  # fmt: skip
        return hashlib.sha256(repr(settings).encode()).hexdigest()[:16]

    def with_epoch(self, epoch: int) -> StreamPlan:
        """The same plan with everything drawn anew.

        Raises:
            ValueError: a plan with a history, which tells of the first epoch only.
        """
        if self.history:
            raise ValueError("set_epoch: expected a stream without history, which tells how far its one epoch came")
        return StreamPlan(
            self.indexes, self.weights, self.batch_size, self.seed, self.rank, self.world_size, self.epochs,
            self.blocks_in_memory, (), epoch,
        )  # fmt: skip

    @property
    def num_batches(self) -> int | None:
        """Batches of this rank; None of an endless stream."""
        return None if self.epochs is None else len(self._finite_mixture)

    def descriptors(self, first: int = 0, stop: int | None = None) -> Iterator[dict[str, Any]]:
        """The batches of this rank from number `first` on, up to `stop` or the end of the stream."""
        end = min((n for n in (stop, self.num_batches) if n is not None), default=None)
        cursor, number = self._before(first), first
        while end is None or number < end:
            for source in self._labels_from(number).tolist():
                if number == end:
                    return
                yield self.descriptor(source, int(cursor[source]))
                cursor[source] += 1
                number += 1

    def descriptor(self, source: int, number: int) -> dict[str, Any]:
        """The rank's batch of that number among those of one source."""
        nth, batch = self._place(source, number)
        found = self._rank_pass(source, nth)
        first = batch * self.batch_size
        stop = min(first + self.batch_size, len(found))
        return found.descriptor(source, first, stop, (self.seed, self.epoch, source))

    def _labels_from(self, number: int) -> np.ndarray:
        """The sources of some batches, the first of which has that number."""
        if self.epochs is not None:
            return self._finite_mixture[number:]
        chunk, passed = divmod(number, CHUNK_BATCHES)
        return self._own_mixture(chunk)[passed:]

    def _before(self, number: int) -> np.ndarray:
        """Batches of each source before the one of that number, (sources,)."""
        sources = len(self.indexes)
        if self.epochs is not None:
            return np.bincount(self._finite_mixture[:number], minlength=sources)
        chunk, passed = divmod(number, CHUNK_BATCHES)
        while len(self._counted) <= chunk:
            latest = self._own_mixture(len(self._counted) - 1)
            self._counted.append(self._counted[-1] + np.bincount(latest, minlength=sources))
        return self._counted[chunk] + np.bincount(self._own_mixture(chunk)[:passed], minlength=sources)

    def _own_mixture(self, chunk: int) -> np.ndarray:
        return self._endless_mixture(len(self.history), self.rank, self.world_size, chunk)

    def _endless_mixture(self, run: int, rank: int, world_size: int, chunk: int) -> np.ndarray:
        """Sources drawn by weight, each batch by itself."""
        if len(self.indexes) == 1:
            return np.zeros(CHUNK_BATCHES, dtype=np.int64)
        rng = np.random.default_rng([_MIXTURE, self.seed, self.epoch, run, rank, world_size, chunk])
        return rng.choice(len(self.indexes), size=CHUNK_BATCHES, p=self.weights)

    @functools.cached_property
    def _finite_mixture(self) -> np.ndarray:
        """Sources drawn by weight among those that have batches left: Poisson processes, merged by time of arrival."""
        rng = np.random.default_rng([_MIXTURE, self.seed, self.epoch, self.rank, self.world_size])
        counts = [(self.epochs or 0) * self._batches(index.num_windows) for index in self.indexes]
        times = [np.cumsum(rng.exponential(1 / weight, count)) for weight, count in zip(self.weights, counts)]
        return np.repeat(np.arange(len(counts)), counts)[np.argsort(np.concatenate(times), kind="stable")]

    def _batches(self, windows: int, world_size: int | None = None) -> int:
        """Batches of a rank in a pass over that many windows."""
        return -(-(windows // (world_size or self.world_size)) // self.batch_size)

    def _place(self, source: int, number: int) -> tuple[int, int]:
        """Pass of this run and batch within it; pass 0 is what a history left over, where it did."""
        rest = len(self._start_of_run[source][0])
        if number < self._batches(rest):
            return 0, number
        nth, batch = divmod(number - self._batches(rest), self._batches(self.indexes[source].num_windows))
        return nth + (rest > 0), batch

    def _rank_pass(self, source: int, nth: int) -> RankPass:
        kept = self._passes.get(source)
        if kept is None or kept[0] != nth:
            kept = (nth, self._make_pass(source, nth, len(self.history), self.rank, self.world_size))
            self._passes[source] = kept
        return kept[1]

    def _make_pass(self, source: int, nth: int, run: int, rank: int, world_size: int) -> RankPass:
        key = (self.seed, self.epoch, source, run, nth)
        row = self._row_of_pass(source, nth)
        return RankPass(self.indexes[source], row, rank, world_size, self.blocks_in_memory, key)

    def _row_of_pass(self, source: int, nth: int) -> Row:
        rest, following = self._start_of_run[source]
        if len(rest):
            return rest if nth == 0 else self._whole_row(source, following + nth - 1)
        return self._whole_row(source, following + nth)

    def _whole_row(self, source: int, number: int) -> Row:
        """All windows of a source in the block order of one pass, whatever the world size."""
        index = self.indexes[source]
        rng = np.random.default_rng([_BLOCKS, self.seed, self.epoch, source, number])
        first, count = index.block_windows(rng.permutation(index.num_blocks))
        windows = np.repeat(first - (np.cumsum(count) - count), count) + np.arange(index.num_windows)
        # Ranks leave out the end of the row: let it be another place of the last block each time.
        windows[-count[-1] :] = np.roll(windows[-count[-1] :], rng.integers(count[-1]))
        uniform = uniform_hash((_STRIDES, self.seed, self.epoch, source, number), windows)
        return Row(windows, index.strides(windows, uniform), np.full(len(windows), number))

    def _after_history(self) -> list[tuple[Row, int]]:
        """For each source what broken-off passes left over, in block order, and the number of the next whole pass."""
        none = np.empty(0, dtype=np.int64)
        self._start_of_run = [(Row(none, none, none), 0)] * len(self.indexes)
        worlds = [world for world, _ in self.history[1:]] + [self.world_size]
        for run, ((world_size, batches), next_world) in enumerate(zip(self.history, worlds)):
            if world_size < 1 or batches < 0:
                raise ValueError(f"history: expected pairs (world size, batches of each rank), found {self.history}")
            taken = np.stack([self._taken(run, rank, world_size, batches) for rank in range(world_size)])
            after = [self._left_over(i, run, world_size, taken[:, i]) for i in range(len(self.indexes))]
            # A rest of fewer windows than ranks is dropped, as everywhere.
            self._start_of_run = [
                (rest if len(rest) >= next_world else rest.take(slice(0, 0)), following) for rest, following in after
            ]
        return self._start_of_run

    def _taken(self, run: int, rank: int, world_size: int, batches: int) -> np.ndarray:
        """Batches of each source among the first ones of a rank, (sources,)."""
        sources = len(self.indexes)
        found = np.zeros(sources, dtype=np.int64)
        for chunk in range(-(-batches // CHUNK_BATCHES)):
            labels = self._endless_mixture(run, rank, world_size, chunk)[: batches - chunk * CHUNK_BATCHES]
            found += np.bincount(labels, minlength=sources)
        return found

    def _left_over(self, source: int, run: int, world_size: int, taken: np.ndarray) -> tuple[Row, int]:
        """What a run leaves in which each rank took that many batches of the source, (world size,)."""
        rest, following = self._start_of_run[source]
        parts: list[Row] = []
        nth = 0
        while taken.max() > 0:
            row = self._row_of_pass(source, nth)
            batches = self._batches(len(row), world_size)
            if taken.min() < batches:  # some rank has not finished this pass
                unread = np.ones(len(row), dtype=bool)
                for rank, count in enumerate(np.minimum(taken, batches).tolist()):
                    read = self._make_pass(source, nth, run, rank, world_size)
                    unread[read.stretch[: count * self.batch_size]] = False
                parts.append(row.take(unread))
            taken = np.maximum(taken - batches, 0)
            nth += 1
        if nth == 0:
            return rest, following
        merged = [rest.take(slice(0, 0)), *parts]
        row = Row(
            np.concatenate([part.windows for part in merged]),
            np.concatenate([part.strides for part in merged]),
            np.concatenate([part.passes for part in merged]),
        )
        return row, following + nth - (len(rest) > 0)
