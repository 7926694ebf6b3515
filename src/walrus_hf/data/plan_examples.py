"""A plan and a reader as a Hugging Face dataset; only imported where `datasets` is there."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import numpy as np
from datasets import Features, IterableDataset, List, Value
from datasets.iterable_dataset import ExamplesIterable

from .plan import StreamPlan
from .reader import BatchReader


def _nested(value: Any, depth: int) -> Any:
    return value if depth == 0 else List(_nested(value, depth - 1))


# What is in every batch. It tells `datasets` what to expect where it puts streams together; values stay the tensors
# they are, which Arrow could not hold.
FEATURES = Features(
    {
        "field_values": _nested(Value("float32"), 6),
        "labels": _nested(Value("float32"), 6),
        "field_ids": _nested(Value("int64"), 2),
        "padded_channels": _nested(Value("bool"), 2),
        "boundary_conditions": _nested(Value("int64"), 3),
        "source": Value("string"),
        "window": List({"file": Value("string"), **{n: Value("int64") for n in ("trajectory", "start", "stride")}}),
    }
)


# Shards that a stream says to have; many divisors, so that `datasets` can share it out among any usual number of nodes.
SHARDS = (3840, 1920, 960, 480, 240, 120, 60, 48, 24, 12, 6, 4, 2, 1)
# Batches of an endless stream that a worker or node reads in a row before the next one's begin.
SEGMENT = 64


def plan_dataset(plan: StreamPlan, reader: BatchReader) -> IterableDataset:
    """The batches of a plan."""
    return IterableDataset(PlanExamples(plan, reader))


class PlanExamples(ExamplesIterable):
    """The batches of a plan, or one of several equal parts of them, for workers and nodes.

    Parts of an endless stream take segments in turn, so that together they read what comes first; parts of one that
    ends are stretches of it, so that few blocks are read twice. The state is how many batches of the part were read.

    A subclass because two things cannot be said from outside: passing over batches must read none of them, and a new
    epoch, which `datasets` tells by shuffling the shards, draws everything anew.
    """

    def __init__(self, plan: StreamPlan, reader: BatchReader, part: int = 0, parts: int = 1) -> None:
        super().__init__(plan.descriptors, {})
        self.plan, self.reader, self.part, self.parts = plan, reader, part, parts

    @property
    def is_typed(self) -> bool:
        return True

    @property
    def features(self) -> Features:
        return FEATURES

    @property
    def num_shards(self) -> int:
        if self.plan.num_batches is None:
            return SHARDS[0]
        first, stop = self._stretch(self.plan.num_batches)
        return next(count for count in SHARDS if count <= max(stop - first, 1))

    def _init_state_dict(self) -> dict[str, Any]:
        self._state_dict: dict[str, Any] = {"batches": 0, "plan": self.plan.fingerprint, "type": type(self).__name__}
        return self._state_dict

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        state = self._state_dict or {"batches": 0, "plan": self.plan.fingerprint}
        if state["plan"] != self.plan.fingerprint:
            raise ValueError(
                "load_state_dict: expected the state of this stream, found that of one with other sources, seed, "
                "rank or sizes; make the stream as it was made then"
            )
        try:
            for descriptor in self._descriptors(state["batches"]):
                batch = self.reader.read(descriptor)
                state["batches"] += 1
                yield f"{self.part}_{state['batches']}", batch
        finally:
            self.reader.drop()

    def _descriptors(self, passed: int) -> Iterator[dict[str, Any]]:
        if self.plan.num_batches is not None:
            first, stop = self._stretch(self.plan.num_batches)
            yield from self.plan.descriptors(first + passed, stop)
            return
        turn, inside = divmod(passed, SEGMENT)
        while True:
            begin = (self.part + turn * self.parts) * SEGMENT
            yield from self.plan.descriptors(begin + inside, begin + SEGMENT)
            turn, inside = turn + 1, 0

    def _stretch(self, batches: int) -> tuple[int, int]:
        return self.part * batches // self.parts, (self.part + 1) * batches // self.parts

    def shuffle_data_sources(self, generator: np.random.Generator) -> PlanExamples:
        epoch = int(deepcopy(generator).integers(1, 2**62))
        return PlanExamples(self.plan.with_epoch(epoch), self.reader, self.part, self.parts)

    def shard_data_sources(self, num_shards: int, index: int, contiguous: bool = True) -> PlanExamples:
        ends = self.plan.num_batches is not None
        part = self.part * num_shards + index if ends else self.part + self.parts * index
        return PlanExamples(self.plan, self.reader, part, self.parts * num_shards)

    def reshard_data_sources(self) -> PlanExamples:
        return self
