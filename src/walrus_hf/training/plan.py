"""The work of every optimiser step: which scenario each shard group computes, as a pure function of (seed, step).

A step consists of `groups * accumulation` slots, micro-batches of one scenario each. They belong to the step, not to a
process: on another number of groups the same slots, with the same samples, are shared out in another way. Four modes:

    independent   every process draws by itself and no shapes are adapted: the naive baseline
    reference     the published recipe: each group draws by itself, all its members the same scenario; volumes at half
                  the batch and half the context
    balanced      the scenarios of a step are drawn together, in strata, so that each step holds the mixture; then dealt
                  to the groups by cost, the longest first, each group as many as another
    variable      the same, but volumes keep their context, and groups may run different numbers of micro-batches

The gradient of a step is the mean over its slots in each mode, so who computes a slot changes nothing but the time.
That leaves a choice: a slot goes to the group that reads from the same blocks of files anyway, where that is possible
without another deal (`WorkPlan.step`).
"""

from __future__ import annotations

import collections
import dataclasses
import heapq
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from ..data.augment import uniform_hash
from .costs import CostTable, Key, Shape

Mode = Literal["independent", "reference", "balanced", "variable"]
MODES: tuple[Mode, ...] = get_args(Mode)
# Steps whose draws are counted at once.
CHUNK = 256
# What a random number is drawn for.
_LABELS, _ORDER, _OFFSET, _HOMES, _MICRO_STEPS = range(5)


class MicroBatch(NamedTuple):
    """One slot: the micro-batch `slot` among all that are ever drawn of the source with that number.

    `home`: whether this group holds the blocks that the samples come from (as far as files are concerned).
    """

    source: int
    slot: int
    home: bool


@dataclasses.dataclass(frozen=True)
class WorkSource:
    """A scenario in the mixture.

    Attributes:
        name: what the cost table calls it.
        shape: of each member's micro-batch.
        weight: how often it is drawn; weights need not sum to 1.
    """

    name: str
    shape: Shape
    weight: float = 1.0

    @property
    def key(self) -> Key:
        return self.name, self.shape.batch, self.shape.frames


@dataclasses.dataclass(frozen=True)
class StepWork:
    """An optimiser step.

    Attributes:
        groups: for each group its micro-batches in order; gradients are averaged over groups after the last one.
        costs: predicted seconds of each group, (groups,).
    """

    groups: tuple[tuple[MicroBatch, ...], ...]
    costs: np.ndarray

    @property
    def loss_scale(self) -> float:
        """What each micro-batch's mean loss is multiplied by, where gradients are averaged over groups."""
        return len(self.groups) / sum(len(group) for group in self.groups)

    @property
    def balance(self) -> float:
        """Predicted utilisation: mean over maximum of the groups' costs."""
        return float(self.costs.mean() / self.costs.max())


def micro_batch_shape(mode: Mode, is_volume: bool, batch: int, context: int) -> Shape:
    """The shape of a scenario's micro-batches, given that of planes (the published run: 2 samples of 6 frames).

    Volumes: half the batch, and half the context except in `variable`; `independent` adapts nothing.

    Raises:
        ValueError: an unknown mode, or numbers below 1.
    """
    check_mode(mode)
    if batch < 1 or context < 1:
        raise ValueError(f"expected a batch and a context of at least 1, found {batch} and {context}")
    if mode == "independent" or not is_volume:
        return Shape(batch, context)
    # The loss needs two frames: the first has no context.
    return Shape(max(batch // 2, 1), context if mode == "variable" else max(context // 2, min(context, 2)))


def check_mode(mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {', '.join(MODES)}, found {mode!r}")


class Mixture:
    """How often each source is drawn at each step.

    Args:
        weights: of the sources, (sources,).
        slots: draws a step.
        seed: a whole number.
        stratified: draw a step's slots together, so that a source of weight w gets `w * slots` of them, rounded up or
            down at random; else each by itself.

    Raises:
        ValueError: weights that are not positive, or no slots.
    """

    def __init__(self, weights: Sequence[float], slots: int, seed: int, stratified: bool) -> None:
        if not len(weights) or not np.isfinite(weights).all() or min(weights) <= 0:
            raise ValueError(f"weights: expected one positive number for each source, found {list(weights)}")
        if slots < 1 or seed < 0:
            raise ValueError(f"expected at least 1 slot and a seed of 0 or more, found {slots} and {seed}")
        self.weights = np.asarray(weights, dtype=np.float64) / math.fsum(weights)
        self.slots, self.seed, self.stratified = slots, seed, stratified
        self._before = [np.zeros(len(weights), dtype=np.int64)]
        self._last = (0, self._before[0])

    @property
    def expected(self) -> np.ndarray:
        """Draws of each source a step, on average, (sources,)."""
        return self.weights * self.slots

    @property
    def most(self) -> np.ndarray:
        """Draws of each source that no step exceeds (drawn one by one: not in the life of a cluster), (sources,)."""
        if self.stratified:
            return np.minimum(np.floor(self.expected).astype(np.int64) + 1, self.slots)
        bound = self.expected + 10 * np.sqrt(self.expected) + 10
        return np.minimum(np.ceil(bound).astype(np.int64), self.slots)

    def labels(self, steps: np.ndarray) -> np.ndarray:
        """The source of each slot, (steps, slots). In strata, slots of one source are neighbours."""
        if self.stratified:
            counts = self.counts(steps)
            return np.repeat(np.tile(np.arange(counts.shape[1]), len(counts)), counts.ravel()).reshape(-1, self.slots)
        ids = np.asarray(steps, dtype=np.int64)[:, None] * self.slots + np.arange(self.slots)
        uniform = uniform_hash((_LABELS, self.seed), ids)
        return np.searchsorted(np.cumsum(self.weights)[:-1], uniform, side="right")

    def counts(self, steps: np.ndarray) -> np.ndarray:
        """Draws of each source, (steps, sources)."""
        steps, sources = np.asarray(steps, dtype=np.int64), len(self.weights)
        if not self.stratified:
            labels = self.labels(steps) + sources * np.arange(len(steps))[:, None]
            return np.bincount(labels.ravel(), minlength=sources * len(steps)).reshape(-1, sources)
        # Systematic sampling: points one slot apart, with a random start, on the row of the sources in random order.
        shuffle = uniform_hash((_ORDER, self.seed), steps[:, None] * sources + np.arange(sources))
        order = np.argsort(shuffle, axis=1, kind="stable")
        start = uniform_hash((_OFFSET, self.seed), steps)
        edges = np.floor(np.cumsum(self.expected[order], axis=1) + start[:, None]).astype(np.int64)
        edges[:, -1] = self.slots
        counts = np.empty_like(edges)
        np.put_along_axis(counts, order, np.diff(edges, axis=1, prepend=0), axis=1)
        return counts

    def before(self, step: int) -> np.ndarray:
        """Draws of each source at all earlier steps, (sources,)."""
        if step == self._last[0] + 1:
            self._last = (step, self._last[1] + self.counts(np.array([step - 1]))[0])
        elif step != self._last[0]:
            self._last = (step, self._sum_before(step))
        return self._last[1]

    def _sum_before(self, step: int) -> np.ndarray:
        chunk, rest = divmod(step, CHUNK)
        while len(self._before) <= chunk:
            first = (len(self._before) - 1) * CHUNK
            self._before.append(self._before[-1] + self.counts(np.arange(first, first + CHUNK)).sum(axis=0))
        return self._before[chunk] + self.counts(np.arange(step - rest, step)).sum(axis=0)


class Deal(NamedTuple):
    """Groups that got the same: how many, the predicted seconds of each, and its sources, the dearest first."""

    groups: int
    seconds: float
    sources: tuple[int, ...]


def longest_first(counts: np.ndarray, costs: np.ndarray, groups: int, capacity: int | None = None) -> list[Deal]:
    """Share micro-batches out to groups: the longest first, each to the group that is done first (LPT, Graham 1969).

    Groups in the same state are dealt with together, so the time depends on the number of sources, hardly on groups.

    Args:
        counts: micro-batches of each source, (sources,).
        costs: seconds of one, (sources,).
        capacity: the most that a group takes; None sets no limit.

    Raises:
        ValueError: more micro-batches than the groups take.
    """
    if capacity is not None and counts.sum() > groups * capacity:
        raise ValueError(f"expected at most {groups} * {capacity} micro-batches, found {counts.sum()}")
    start = (0.0, 0, ())
    states: dict[tuple, int] = {start: groups}
    heap: list[tuple] = [start]
    full = []
    for source in np.argsort(-costs, kind="stable").tolist():
        left = int(counts[source])
        while left:
            state = heapq.heappop(heap)
            there = states.pop(state)
            taken = min(left, there)
            if there > taken:
                states[state] = there - taken
                heapq.heappush(heap, state)
            seconds, size, sources = state
            following = (seconds + float(costs[source]), size + 1, (*sources, source))
            if following[1] == capacity:
                full.append((following, taken))
            elif following in states:
                states[following] += taken
            else:
                states[following] = taken
                heapq.heappush(heap, following)
            left -= taken
    return [Deal(number, state[0], state[2]) for state, number in [*full, *states.items()]]


class WorkPlan:
    """The work of all steps. The same arguments and the same costs make the same plan, on whatever rank it is made.

    Args:
        sources: the mixture.
        groups, members: of the topology (topology.py). In mode `independent` every process is a group of its own.
        table: what micro-batches cost; training measures and updates it (costs.py).
        mode: see above.
        accumulation: micro-batches of each group in a step, on average. To go on with other groups, keep
            `groups * accumulation`.
        seed: a whole number.

    Raises:
        ValueError: unusable numbers, or a source that the table lacks.
    """

    def __init__(
        self,
        sources: Sequence[WorkSource],
        groups: int,
        members: int,
        table: CostTable,
        mode: Mode = "balanced",
        accumulation: int = 4,
        seed: int = 0,
    ) -> None:
        check_mode(mode)
        for name, count in (("groups", groups), ("members", members), ("accumulation", accumulation)):
            if count < 1:
                raise ValueError(f"{name}: expected at least 1, found {count}")
        if mode == "independent":
            groups, members = groups * members, 1
        self.sources, self.mode, self.table, self.seed = tuple(sources), mode, table, seed
        self.groups, self.members, self.accumulation = groups, members, accumulation
        stratified = mode in ("balanced", "variable")
        self.mixture = Mixture([source.weight for source in sources], groups * accumulation, seed, stratified)
        # Readings of a source that go on beside each other: about as many as a step draws of it.
        self.lanes = np.maximum(np.round(self.mixture.expected).astype(np.int64), 1)
        self._homes: tuple[int, _Homes] | None = None
        self._costs(table.step)

    @property
    def slots(self) -> int:
        """Micro-batches of a step, over all groups."""
        return self.mixture.slots

    def group_of(self, rank: int) -> tuple[int, int]:
        """Group and member of a rank in this plan."""
        return divmod(rank, self.members)

    def step(self, step: int) -> StepWork:
        """What each group does at a step.

        Micro-batches at home: the slots of a source take turns between its lanes, and every lane has a home, a group
        that reads its blocks for an interval of the table. Equal shares are given to groups, and slots of one source to
        those who draw it, such that many slots are done at home. Meanwhile a group sees some sources more often than
        others; over many intervals, all equally.

        Raises:
            ValueError: a step whose costs the table does not know (yet).
        """
        costs = self._costs(step)
        homes = self._homes_at(step // self.table.interval, costs)
        wanted = self._wanted(step, costs, homes)
        slots = self.mixture.before(step)
        found: list[list[MicroBatch]] = [[] for _ in range(self.groups)]
        for source, row in enumerate(wanted.T):
            numbers = range(int(slots[source]), int(slots[source] + row.sum()))
            for group, slot, home in _send_home(numbers, row, homes.groups[source]):
                found[group].append(MicroBatch(source, slot, home))
        rng = np.random.default_rng([_MICRO_STEPS, self.seed, step])
        order = [rng.permutation(len(group)).tolist() for group in found]
        groups = tuple(tuple(group[i] for i in turns) for group, turns in zip(found, order))
        return StepWork(groups, wanted @ costs)

    def _wanted(self, step: int, costs: np.ndarray, homes: _Homes) -> np.ndarray:
        """Micro-batches of each source for each group, (groups, sources)."""
        here = np.array([step])
        if not self.mixture.stratified:
            return _count(self.mixture.labels(here).reshape(self.groups, -1).tolist(), len(self.sources))
        capacity = self.accumulation if self.mode == "balanced" else None
        dealt = _spread(longest_first(self.mixture.counts(here)[0], costs, self.groups, capacity), len(self.sources))
        wanted = np.empty_like(dealt)
        wanted[homes.order[_seats(dealt, homes.counts)]] = dealt
        return wanted

    def _costs(self, step: int) -> np.ndarray:
        known = self.table.costs(step)
        for source in self.sources:
            if source.key not in known:
                raise ValueError(f"table: expected the cost of {source.key}, found those of {sorted(known)}")
        return np.array([known[source.key] for source in self.sources])

    def _homes_at(self, interval: int, costs: np.ndarray) -> _Homes:
        """Of all lanes, dealt like the work of a step, to groups in random order."""
        if self._homes is None or self._homes[0] != interval:
            capacity = math.ceil(self.lanes.sum() / self.groups)
            counts = _spread(longest_first(self.lanes, costs, self.groups, capacity), len(self.sources))
            order = np.random.default_rng([_HOMES, self.seed, interval]).permutation(self.groups)
            groups = [order[np.repeat(np.arange(self.groups), row)].tolist() for row in counts.T]
            self._homes = (interval, _Homes(counts, order, groups))
        return self._homes[1]


class _Homes(NamedTuple):
    """Lanes at home for some steps.

    counts: lanes of each source at each place, (groups, sources).
    order: the group at each place, (groups,). Choices are made among places, so that all groups have equal chances.
    groups: for each source the groups of its lanes.
    """

    counts: np.ndarray
    order: np.ndarray
    groups: list[list[int]]


def _count(sources: Sequence[Sequence[int]], kinds: int) -> np.ndarray:
    return np.stack([np.bincount(np.asarray(row, dtype=np.int64), minlength=kinds) for row in sources])


def _spread(deals: Sequence[Deal], kinds: int) -> np.ndarray:
    """Deals as a row for each group, (groups, sources)."""
    return np.repeat(_count([deal.sources for deal in deals], kinds), [deal.groups for deal in deals], axis=0)


def _seats(dealt: np.ndarray, homes: np.ndarray) -> np.ndarray:
    """A place for each row of the deal, such that many of its sources have a lane there; (groups,)."""
    overlap = np.zeros((len(dealt), len(homes)), dtype=np.int16)
    for work, lanes in zip(dealt.T.astype(np.int16), homes.T.astype(np.int16)):
        overlap += np.minimum.outer(work, lanes)
    seats = np.empty(len(dealt), dtype=np.int64)
    for row in np.argsort(-overlap.max(axis=1), kind="stable").tolist():
        seats[row] = overlap[row].argmax()
        overlap[:, seats[row]] = -1
    return seats


def _send_home(slots: Sequence[int], wanted: np.ndarray, homes: Sequence[int]) -> list[tuple[int, int, bool]]:
    """(group, slot, at home) for each slot of a source; each group takes as many as `wanted` says."""
    room = collections.Counter(dict(enumerate(wanted.tolist())))
    found, others = [], []
    for slot in slots:
        home = homes[slot % len(homes)]
        if room[home]:
            room[home] -= 1
            found.append((home, slot, True))
        else:
            others.append(slot)
    return found + [(group, slot, False) for group, slot in zip(room.elements(), others)]
