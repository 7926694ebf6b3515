"""Which windows the micro-batches of a plan read: addresses in the indexes of the sources, as descriptors for a reader.

The slots of a source, counted from the start of training, read its windows pass after pass, each window once a pass:
slot q reads number `q * members * batch` on, whoever computes it. What stands there is laid out so that reading is
cheap. A pass permutes the blocks of the source, and its slots take turns between lanes; a lane goes through blocks of
its own, and each member through its part of them, a few blocks at a time.

So that no step sees a window twice, passes are read in two halves: whatever stands at the end of one half is not in the
next. A source too small for that, with fewer windows than two steps take, is read in one order, again and again.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..data.augment import uniform_hash
from ..data.index import ScenarioIndex
from ..data.plan import RankPass, Row
from .plan import MicroBatch, WorkPlan
from .topology import Topology

# Readings of a source that are remembered: those of this rank's lanes, and of lanes that it visits.
READINGS = 32
# What a random number is drawn for.
_ORDER, _HALVES, _BLOCKS, _STRIDES = range(4)


class SourceWindows:
    """The windows of one source in the order of its slots.

    Args:
        number: of the source.
        index: its windows, with the frames that the micro-batches have, or more, and the frame after them.
        members, batch: readers of a slot, and windows of each.
        lanes: readings beside each other.
        most: slots that a step may draw.
        seed: a whole number.
        blocks_in_memory: blocks whose windows are mixed, in each lane.
    """

    def __init__(
        self, number: int, index: ScenarioIndex, members: int, batch: int, lanes: int, most: int, seed: int,
        blocks_in_memory: int,
    ) -> None:  # fmt: skip
        self.number, self.index, self.batch, self.lanes = number, index, batch, lanes
        self.windows_per_slot = members * batch
        self.key = (seed, number)
        self.blocks_in_memory = blocks_in_memory
        windows = self._in_blocks(_HALVES, 0, np.arange(index.num_windows))
        self.halves = (windows[: len(windows) // 2], windows[len(windows) // 2 :])
        self.is_small = index.num_windows < 2 * most * self.windows_per_slot
        self._row: tuple[int, np.ndarray] = (-1, windows)
        self._readings: collections.OrderedDict[tuple[int, int, int], RankPass] = collections.OrderedDict()

    def descriptor(self, slot: int, member: int, home: bool) -> dict[str, Any]:
        """The windows of a member at a slot (data/reader.py). Blocks are fetched as a whole at home, else windows."""
        if self.is_small:
            first = slot * self.windows_per_slot + member * self.batch
            return self._plain(*self._again_and_again(np.arange(first, first + self.batch)))
        half = self._half_at(slot * self.windows_per_slot)
        begin, length = self._place(half)
        first, stop = -(-begin // self.windows_per_slot), (begin + length) // self.windows_per_slot
        if not first <= slot < stop:  # a slot that reads the end of one half and the beginning of the next
            start = slot * self.windows_per_slot + member * self.batch
            return self._plain(*self._one_by_one(np.arange(start, start + self.batch)))
        lane = (slot - first) % self.lanes
        visit = (slot - first) // self.lanes
        reading = self._reading(half, lane, member)
        found = reading.descriptor(self.number, visit * self.batch, (visit + 1) * self.batch, self.key)
        return found if home else {**found, "parts": [], "ahead": [], "done": []}

    def _half_at(self, position: int) -> int:
        """The half, counted from the start of training, that the window at a position belongs to."""
        number, rest = divmod(position, self.index.num_windows)
        return 2 * number + (rest >= len(self.halves[0]))

    def _place(self, half: int) -> tuple[int, int]:
        """Position of the first window of a half, and how many there are."""
        begin = half // 2 * self.index.num_windows + half % 2 * len(self.halves[0])
        return begin, len(self.halves[half % 2])

    def _reading(self, half: int, lane: int, member: int) -> RankPass:
        """What a member reads in a lane: slots of the half are dealt to the lanes in turn, windows one after the other.

        The row holds the beginning of the first slot that lies in this half as a whole, then lane by lane and member by
        member their windows, then the end.
        """
        key = (half, lane, member)
        if key not in self._readings:
            begin, length = self._place(half)
            size = self.windows_per_slot
            first, stop = -(-begin // size), (begin + length) // size
            visits, longer = divmod(stop - first, self.lanes)
            slots_before = lane * visits + min(lane, longer)
            own = (visits + (lane < longer)) * self.batch
            start = first * size - begin + slots_before * size + member * own
            windows = self._row_of(half)[start : start + own]
            row = Row(windows, self._strides(half // 2, windows), np.full(own, half // 2))
            self._readings[key] = RankPass(self.index, row, 0, 1, self.blocks_in_memory, (*self.key, *key))
        self._readings.move_to_end(key)
        if len(self._readings) > READINGS:
            self._readings.popitem(last=False)
        return self._readings[key]

    def _row_of(self, half: int) -> np.ndarray:
        """The windows of a half, in a new order of its blocks in each pass."""
        if self._row[0] != half:
            self._row = (half, self._in_blocks(_BLOCKS, half, self.halves[half % 2]))
        return self._row[1]

    def _in_blocks(self, purpose: int, number: int, windows: np.ndarray) -> np.ndarray:
        """The windows with their blocks permuted."""
        order = np.random.default_rng([purpose, *self.key, number]).permutation(self.index.num_blocks)
        return windows[np.argsort(order[self.index.blocks_of(windows)], kind="stable")]

    def _one_by_one(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Windows and passes of positions in rows, (n,) each."""
        halves = [self._half_at(position) for position in positions.tolist()]
        windows = [self._row_of(half)[p - self._place(half)[0]] for half, p in zip(halves, positions.tolist())]
        return np.array(windows), np.array(halves) // 2

    def _again_and_again(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same of a small source."""
        order = np.argsort(uniform_hash((_ORDER, *self.key), np.arange(self.index.num_windows)), kind="stable")
        return order[positions % len(order)], positions // len(order)

    def _strides(self, number: int, windows: np.ndarray) -> np.ndarray:
        return self.index.strides(windows, uniform_hash((_STRIDES, *self.key, number), windows))

    def _plain(self, windows: np.ndarray, passes: np.ndarray) -> dict[str, Any]:
        """A descriptor that fetches each window by itself."""
        strides = np.concatenate([self._strides(n, windows[i : i + 1]) for i, n in enumerate(passes.tolist())])
        addresses = np.stack([*self.index.locate(windows), strides], axis=1)
        return {
            "source": self.number, "windows": addresses.tolist(), "parts": [], "ahead": [], "done": [],
            "key": [*self.key, int(passes[0]), int(windows[0])],
        }  # fmt: skip


class SamplePlan:
    """The descriptors of a plan's micro-batches: a pure function of (seed, step) and the table of costs.

    Args:
        plan: the work.
        indexes: one for each of its sources, in the same order.
        blocks_in_memory: blocks whose windows are mixed, in each lane. A rank is at home in about `accumulation` lanes.

    Raises:
        ValueError: an index whose windows are shorter than the plan's micro-batches.
    """

    def __init__(self, plan: WorkPlan, indexes: Sequence[ScenarioIndex], blocks_in_memory: int = 4) -> None:
        if len(indexes) != len(plan.sources):
            raise ValueError(f"indexes: expected one for each of {len(plan.sources)} sources, found {len(indexes)}")
        for index, source in zip(indexes, plan.sources):
            if index.frames < source.shape.frames + 1:
                raise ValueError(
                    f"source {source.name!r}: expected windows of at least {source.shape.frames + 1} frames, the "
                    f"inputs and the one after, found an index of {index.frames} frames"
                )
        if blocks_in_memory < 1:
            raise ValueError(f"blocks_in_memory: expected at least 1, found {blocks_in_memory}")
        self.plan, self.indexes = plan, tuple(indexes)
        self.windows = [
            SourceWindows(
                i, index, plan.members, source.shape.batch, int(lanes), int(most), plan.seed, blocks_in_memory
            )
            for i, (index, source, lanes, most) in enumerate(
                zip(indexes, plan.sources, plan.lanes, plan.mixture.most, strict=True)
            )
        ]

    def descriptor(self, micro_batch: MicroBatch, member: int) -> dict[str, Any]:
        """What one member reads for a micro-batch."""
        return self.windows[micro_batch.source].descriptor(micro_batch.slot, member, micro_batch.home)

    def descriptors(self, topology: Topology, first: int = 0, stop: int | None = None) -> Iterator[dict[str, Any]]:
        """What a rank reads from step `first` on, micro-batch by micro-batch, up to step `stop` if one is given.

        Each also says its `step`, its number in the step (`micro_step`), and how many there are (`micro_steps`).
        """
        group, member = self.plan.group_of(topology.rank)
        for step in itertools.count(first) if stop is None else range(first, stop):
            work = self.plan.step(step).groups[group]
            for i, micro_batch in enumerate(work):
                yield {
                    **self.descriptor(micro_batch, member), "step": step, "micro_step": i, "micro_steps": len(work),
                }  # fmt: skip
