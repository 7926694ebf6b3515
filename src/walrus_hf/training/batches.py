"""From names of sources to the batches of a plan, as a Hugging Face dataset that each rank reads by itself."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from datasets import IterableDataset
from torch.utils.data import DataLoader

from ..configuration_walrus import WalrusConfig
from ..data.collator import collate
from ..data.fetching import DamagedFileError
from ..data.index import ScenarioIndex
from ..data.manifest import SUFFIXES
from ..data.reader import BatchReader
from ..data.source_files import locate_source, open_source
from ..data.streams import block_bytes, scenario_processor, warn_of_small_blocks
from ..processing_walrus import WalrusProcessor
from ..strides import is_volume
from .arguments import PretrainingArguments
from .costs import Geometry
from .guards import substitute
from .plan import micro_batch_shape
from .samples import SamplePlan
from .topology import Topology


def open_indexes(arguments: PretrainingArguments, config: WalrusConfig) -> list[ScenarioIndex]:
    """The training windows of every source: the inputs of its micro-batches, frames to forecast before the loss if
    there are such, and the frame after them.

    Raises:
        FileNotFoundError, OSError, ValueError: a source that cannot be read, is too short, or holds unknown fields; two
            sources of one name.
    """
    base = arguments.processor(config)
    found = [
        open_index(arguments, base, source, arguments.split, arguments.extra_frames) for source in arguments.sources
    ]
    names = [index.name for index in found]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"sources: expected different names, found {name!r} twice; rename one of the folders")
    warn_of_small_blocks(found, arguments.cache_bytes, _blocks(arguments), "smaller blocks_in_memory")
    return found


def open_validation(arguments: PretrainingArguments, config: WalrusConfig) -> list[ScenarioIndex]:
    """The same of the validation split, for those sources that have one."""
    base, found = arguments.processor(config), []
    for source in arguments.sources:
        folders = [
            locate_source(source, split, arguments.base_path).folders
            for split in (arguments.split, arguments.validation_split)
        ]
        if folders[0] == folders[1]:  # a file, or a folder without splits
            continue
        try:
            found.append(open_index(arguments, base, source, arguments.validation_split))
        except FileNotFoundError as error:
            warnings.warn(f"{source}: not validated, {error}", stacklevel=2)
        except ValueError as error:
            raise ValueError(f"validation_split {arguments.validation_split!r}: {error}") from error
    return found


def open_index(
    arguments: PretrainingArguments, base: WalrusProcessor, source: str, split: str, extra_frames: int = 0
) -> ScenarioIndex:
    """The windows of one split of one source, some frames longer than those of its micro-batches."""
    manifest, scenario = open_source(source, split, arguments.base_path)
    processor = base if scenario is None else scenario_processor(base, scenario)
    zeros = () if scenario is None else scenario.zero_fields
    name = source_name(source, arguments.sources) if scenario is None else scenario.name
    volume = is_volume(manifest.files[0].grid)
    shape = micro_batch_shape(arguments.mode, volume, arguments.batch_size, arguments.frames)
    strides = (arguments.stride_min, arguments.stride_max)
    frames = shape.frames + extra_frames + 1
    try:
        size = block_bytes(arguments.cache_bytes, _blocks(arguments))
        return ScenarioIndex(name, manifest, frames, strides, processor, zeros, size)
    except ValueError as error:
        note = f" (windows have {extra_frames} frames more for own_steps)" if extra_frames else ""
        raise ValueError(f"{error}{note}") from error


def _blocks(arguments: PretrainingArguments) -> int:
    """That share the memory: a rank is at home in about as many lanes as it has micro-batches in a step, and fetches
    ahead as much again."""
    return 2 * arguments.blocks_in_memory * arguments.gradient_accumulation_steps


def source_name(source: str, sources: Sequence[str]) -> str:
    """What metrics call a source: its last part, without the ending of a file; more parts where others share that."""
    parts = source.rstrip("/").split("/")
    others = [other.rstrip("/").split("/") for other in sources if other != source]
    count = 1
    while count < len(parts) and any(other[-count:] == parts[-count:] for other in others):
        count += 1
    name = "/".join(parts[-count:])
    return name.removesuffix(next((end for end in (*SUFFIXES, ".json") if name.endswith(end)), ""))


class PlannedReader:
    """Descriptors to micro-batches; what cannot be read becomes a blank batch of weight 0.

    Args:
        reader: of the sources' files.
        batch_sizes: windows of a micro-batch of each source.
    """

    def __init__(self, reader: BatchReader, batch_sizes: Sequence[int]) -> None:
        self.reader, self.batch_sizes = reader, list(batch_sizes)

    def __call__(self, descriptor: Mapping[str, Any]) -> dict[str, Any]:
        """`inputs` of the model, `weight` of the loss, `number` of the source, and `samples`, the windows in words."""
        number = int(descriptor["source"])
        index = self.reader.indexes[number]
        samples = [str(index.address(*window)) for window in descriptor["windows"]]
        try:
            batch, weight = self.reader.read(descriptor), 1.0
        except (OSError, DamagedFileError) as error:
            warnings.warn(f"{index.name}: a blank batch of weight 0 instead of {samples}: {error}", stacklevel=2)
            batch, weight = substitute(empty_batch(index, self.batch_sizes[number]))
        return {"inputs": collate(batch), "weight": weight, "number": number, "samples": samples}


def empty_batch(index: ScenarioIndex, size: int) -> dict[str, Any]:
    """A batch of the source's shapes, fields and boundaries; values are not set."""
    grid = Geometry.of_index(index).grid
    values = torch.empty(size, index.frames - 1, len(index.channels), *grid)
    batch: dict[str, Any] = {"field_values": values, "labels": torch.empty_like(values)}
    for name, tensor in index.static_inputs.items():
        batch[name] = tensor.repeat(size, *[1] * (tensor.ndim - 1))
    if index.constants:
        batch["constant_values"] = torch.empty(size, len(index.constants), *grid)
    return batch


def planned_batches(
    samples: SamplePlan, topology: Topology, read: PlannedReader, first: int, stop: int
) -> Iterator[dict[str, Any]]:
    """The micro-batches of a rank from step `first` up to step `stop`.

    Accelerate must not see the loader: it would deal batches to the ranks that the plan has dealt already. No worker
    process either: the plan rests on the table of costs, which training changes, and threads fetch ahead as it is.
    """

    def descriptors() -> Iterator[dict[str, Any]]:
        yield from samples.descriptors(topology, first, stop)

    dataset = IterableDataset.from_generator(descriptors).map(read)
    return iter(DataLoader(dataset, batch_size=None, collate_fn=_unchanged))


def _unchanged(batch: Any) -> Any:
    return batch
