"""`load_stream`: simulations from disk, URLs or the Hub as an endless, mixed, resumable `datasets.IterableDataset`."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..processing_walrus import WalrusProcessor
from .index import ScenarioIndex
from .plan import StreamPlan
from .reader import THREADS, BatchReader
from .scenarios import SCENARIOS, Scenario
from .source_files import open_source

if TYPE_CHECKING:
    import datasets

# No block is larger, however much memory there is: a stream should begin soon and be mixed well.
LARGEST_BLOCK = 256 * 2**20
Source = str | os.PathLike | ScenarioIndex


def load_stream(
    sources: Source | Sequence[Source] | Mapping[str, float],
    split: str = "train",
    frames: int = 7,
    stride_range: tuple[int, int] = (1, 5),
    batch_size: int = 2,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    epochs: int | None = None,
    augment: bool = False,
    blocks_in_memory: int = 4,
    *,
    processor: WalrusProcessor | None = None,
    base_path: str | os.PathLike | None = None,
    cache_bytes: int = 512 * 2**20,
    threads: int = THREADS,
    skip_damaged: bool = False,
    history: Sequence[tuple[int, int]] = (),
    storage_options: dict | None = None,
) -> datasets.IterableDataset:
    """Batches of model inputs, each from one source.

    Args:
        sources: names of scenarios (`walrus_hf.data.SCENARIOS`), files, folders, manifests or URLs; a list is drawn
            from evenly, a mapping by its weights.
        split: `"train"`, `"valid"` or `"test"`: which folder of a data set in The Well's layout.
        frames: frames of a window: inputs, and the frame after the last one.
        stride_range: smallest and largest distance of a window's frames; drawn for each window among those that fit its
            trajectory.
        batch_size: windows a batch; where an epoch ends, a batch may hold fewer.
        seed: everything that is drawn follows from it, the epoch, and the window.
        rank, world_size: this process among all that read; in an epoch no two get the same window, and all get
            equally many.
        epochs: passes over every source; None never ends.
        augment: rotate batches, planes into any orientation in space (augment.py).
        blocks_in_memory: blocks whose windows are mixed. A larger number mixes better and needs smaller blocks.
        processor: vocabulary, own names, logarithms and global scales; None is the published vocabulary. Settings of a
            scenario that is named come on top.
        base_path: folder or URL that holds the scenarios as `<name>/data/<split>`, instead of the Hub.
        cache_bytes: bound of the frames in memory, in each process; it also bounds the size of blocks.
        threads: byte ranges that are fetched at the same time.
        skip_damaged: leave out files that cannot be indexed, and replace windows of files whose data turn out to be
            damaged, instead of raising; counted and warned about.
        history: how far the same stream came at other world sizes, `[(world size, batches of each rank), ...]`: to
            restart on more or fewer processes without seeing a window of an unfinished epoch twice.
        storage_options: for fsspec, where files lie in a store of its own.

    Returns:
        A dataset of dictionaries as `BatchReader.read` describes them. `state_dict` and `load_state_dict` resume it
        exactly, `set_epoch` draws everything anew; give it to a DataLoader with `batch_size=None` and
        `collate_fn=collate`.

    Raises:
        FileNotFoundError, OSError, ValueError: a source that cannot be read, is too short at stride 1, or holds fields
            that the vocabulary lacks; arguments that make no sense.
        ImportError: the extra `data` is not installed.
    """
    weighted = _weighted(sources)
    if blocks_in_memory < 1:
        raise ValueError(f"blocks_in_memory: expected at least 1, found {blocks_in_memory}")
    blocks = 2 * blocks_in_memory * len(weighted)
    indexes = []
    for source, _ in weighted:
        if isinstance(source, ScenarioIndex):
            indexes.append(source)
            continue
        manifest, scenario = open_source(source, split, base_path, storage_options, skip_damaged)
        settings = processor or WalrusProcessor()
        zeros = () if scenario is None else scenario.zero_fields
        settings = settings if scenario is None else scenario_processor(settings, scenario)
        name = os.fspath(source) if scenario is None else scenario.name
        indexes.append(
            ScenarioIndex(
                name, manifest, frames, stride_range, settings, zeros, block_bytes(cache_bytes, blocks), storage_options
            )
        )
    warn_of_small_blocks(indexes, cache_bytes, blocks, "fewer sources or blocks_in_memory")
    plan = StreamPlan(
        indexes,
        [weight for _, weight in weighted],
        batch_size,
        seed,
        rank,
        world_size,
        epochs,
        blocks_in_memory,
        history,
    )
    return stream_of(plan, BatchReader(indexes, cache_bytes, threads, augment, skip_damaged))


def block_bytes(cache_bytes: int, blocks: int) -> int:
    """Size of a block of frames, where so many of them share the memory."""
    return min(LARGEST_BLOCK, cache_bytes // blocks)


def warn_of_small_blocks(indexes: Sequence[ScenarioIndex], cache_bytes: int, blocks: int, remedy: str) -> None:
    """Say so where the memory does not hold so many blocks: each frame is then read for each of its windows."""
    small = [index for index in indexes if index.num_blocks == index.num_windows > index.num_trajectories]
    if not small:
        return
    # A block is worth it where it holds as much besides the first window, or one window more.
    spans = [index.stride_range[1] * (index.frames - 1) * index.frame_bytes for index in small]
    needed = [span + max(span, 2 * index.frame_bytes) for span, index in zip(spans, small)]
    least = min(needed)
    if least > LARGEST_BLOCK:
        advice = "fewer frames or smaller strides would help"
    else:
        smallest = small[needed.index(least)].name
        advice = f"cache_bytes={blocks * least} would help the smallest of them ({smallest}), {remedy} too"
    warnings.warn(
        f"cache_bytes={cache_bytes}: memory holds no blocks of {len(small)} of {len(indexes)} sources, so each window "
        f"is read by itself, about {small[0].frames} times as much; {advice}",
        stacklevel=3,
    )


def scenario_processor(base: WalrusProcessor, scenario: Scenario) -> WalrusProcessor:
    """The same processor with the names and logarithms of a scenario."""
    processor, own = copy.deepcopy(base), scenario.processor_settings()
    processor.field_names |= own["field_names"]
    processor.log_fields = list(dict.fromkeys([*processor.log_fields, *own["log_fields"]]))  # it may have some of them
    return processor


def stream_of(plan: StreamPlan, reader: BatchReader) -> datasets.IterableDataset:
    """The batches of a plan as a Hugging Face dataset."""
    try:
        from .plan_examples import plan_dataset
    except ImportError:
        raise ImportError("streams need the extra `data`: pip install 'walrus-hf[data]'") from None
    return plan_dataset(plan, reader)


def _weighted(sources: Any) -> list[tuple[Any, float]]:
    if isinstance(sources, Mapping):
        given = [(source, float(weight)) for source, weight in sources.items()]
    elif isinstance(sources, str | os.PathLike | ScenarioIndex):
        given = [(sources, 1.0)]
    else:
        given = [(source, 1.0) for source in sources]
    if not given:
        raise ValueError(f"sources: expected at least one, found none; the scenarios are {', '.join(SCENARIOS)}")
    return given
