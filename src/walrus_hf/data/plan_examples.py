"""A plan as a Hugging Face dataset; only imported where `datasets` is there."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import numpy as np
from datasets import IterableDataset
from datasets.iterable_dataset import ExamplesIterable

from .plan import StreamPlan


def plan_dataset(plan: StreamPlan) -> IterableDataset:
    """The descriptors of a plan; its chunks are the shards, for workers and nodes."""
    return IterableDataset(PlanExamples(_descriptors, {"plan": plan, "chunks": list(range(plan.num_chunks))}))


class PlanExamples(ExamplesIterable):
    """Chunks of a plan. Where other datasets shuffle their shards, at `set_epoch` too, the plan draws everything anew.

    A subclass, since the epoch does not reach a generator's arguments in any other way.
    """

    def shuffle_data_sources(self, generator: np.random.Generator) -> PlanExamples:
        epoch = int(deepcopy(generator).integers(1, 2**62))
        return PlanExamples(self.generate_examples_fn, {**self.kwargs, "plan": self.kwargs["plan"].with_epoch(epoch)})


def _descriptors(plan: StreamPlan, chunks: list[int]) -> Iterator[tuple[str, dict[str, Any]]]:
    for chunk in chunks:
        for number, descriptor in enumerate(plan.descriptors(chunk)):
            yield f"{chunk}_{number}", descriptor
