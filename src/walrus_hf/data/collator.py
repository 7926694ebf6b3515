"""From batches of a stream, or single windows, to the keyword arguments of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# What tells where a batch came from; no input of the model.
ORIGIN = ("source", "window")
# Inputs that must be the same in each row: a batch has one set of fields and one geometry.
SHARED = ("field_ids", "constant_ids", "padded_channels", "boundary_conditions")


def collate(batches: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Model inputs from a batch, or from several that are put together along the first axis.

    `source` and `window` are taken off. Fits `collate_fn=` of a DataLoader with `batch_size=None`, and the Trainer's
    `data_collator=`.

    Raises:
        ValueError: batches whose shapes, fields or boundary conditions differ; a batch has one topology.
    """
    given = [batches] if isinstance(batches, Mapping) else list(batches)
    if not given:
        raise ValueError("expected at least one batch, found none")
    names = [name for name in given[0] if name not in ORIGIN]
    for batch in given:
        found = [name for name in batch if name not in ORIGIN]
        if set(found) != set(names):
            raise ValueError(f"expected batches with the inputs {sorted(names)}, found {sorted(found)}; {_REMEDY}")
    for batch in given:
        if len({len(batch[name]) for name in names}) > 1:
            sizes = {name: len(batch[name]) for name in names}
            raise ValueError(f"expected inputs of as many rows each, found {sizes}")
    for name in names:
        if len({tuple(batch[name].shape[1:]) for batch in given}) > 1:
            shapes = [tuple(batch[name].shape) for batch in given]
            raise ValueError(f"{name}: expected batches of one shape, found {shapes}; {_REMEDY}")
    inputs = {name: given[0][name] if len(given) == 1 else torch.cat([b[name] for b in given]) for name in names}
    for name in SHARED:
        if name in inputs and not bool((inputs[name] == inputs[name][:1]).all()):
            raise ValueError(f"{name}: expected the same in each row of a batch, found rows that differ; {_REMEDY}")
    return inputs


_REMEDY = "put windows of one source and one geometry into a batch"
