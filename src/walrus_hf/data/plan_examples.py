"""A plan and a reader as a Hugging Face dataset; only imported where `datasets` is there."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from itertools import islice
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


def plan_dataset(plan: StreamPlan, reader: BatchReader) -> IterableDataset:
    """The batches of a plan. Its chunks are the shards, for workers and nodes."""
    return IterableDataset(PlanExamples(plan, reader, list(range(plan.num_chunks))))


class PlanExamples(ExamplesIterable):
    """Batches, chunk by chunk. `datasets` keeps the state: a chunk, and how many of its batches have been read.

    A subclass because two things cannot be said from outside: passing over batches must read none of them, and a new
    epoch, which `datasets` tells by shuffling the shards, draws everything anew.
    """

    def __init__(self, plan: StreamPlan, reader: BatchReader, chunks: list[int]) -> None:
        super().__init__(plan.descriptors, {"chunk": chunks})
        self.plan, self.reader = plan, reader

    @property
    def is_typed(self) -> bool:
        return True

    @property
    def features(self) -> Features:
        return FEATURES

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        state = self._state_dict or {"shard_idx": 0, "shard_example_idx": 0}
        for chunk in islice(self.kwargs["chunk"], state["shard_idx"], None):
            for descriptor in islice(self.plan.descriptors(chunk), state["shard_example_idx"], None):
                batch = self.reader.read(descriptor)
                state["shard_example_idx"] += 1
                yield f"{chunk}_{state['shard_example_idx']}", batch
            state["shard_idx"] += 1
            state["shard_example_idx"] = 0

    def shuffle_data_sources(self, generator: np.random.Generator) -> PlanExamples:
        epoch = int(deepcopy(generator).integers(1, 2**62))
        return PlanExamples(self.plan.with_epoch(epoch), self.reader, self.kwargs["chunk"])

    def shard_data_sources(self, num_shards: int, index: int, contiguous: bool = True) -> PlanExamples:
        kept = self.split_shard_indices_by_worker(num_shards, index, contiguous=contiguous)
        return PlanExamples(self.plan, self.reader, [self.kwargs["chunk"][number] for number in kept])

    def reshard_data_sources(self) -> PlanExamples:
        return self
