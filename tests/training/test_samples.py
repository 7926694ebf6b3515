"""Addresses of samples: each window once a pass, none twice in a step, the same for any groups, and cheap to read."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from datasets import IterableDataset

from walrus_hf.data import BatchReader, ScenarioIndex, build_manifest
from walrus_hf.training.costs import CostTable, Shape
from walrus_hf.training.plan import MODES, WorkPlan, WorkSource
from walrus_hf.training.samples import SamplePlan
from walrus_hf.training.topology import Topology

from ..data.wells import GRID, assert_rows_match, write_source

FRAME = 4 * 4 * GRID[0] * GRID[1]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Sources of 324, 141 and 72 windows of 7 frames."""
    sizes = [(2, 3, (60, 60)), (1, 3, (53,)), (1, 3, (30,))]
    place = tmp_path_factory.mktemp("samples")
    return [
        write_source(place / f"s{n}", files, trajectories, frames, first_seed=10 * n)
        for n, (files, trajectories, frames) in enumerate(sizes)
    ]


@pytest.fixture(scope="module")
def indexes(folders):
    """In blocks of about 15 windows."""
    manifests = [build_manifest(folder / "data" / "train") for folder in folders]
    return [ScenarioIndex(f"s{n}", m, 7, (1, 2), block_bytes=30 * FRAME) for n, m in enumerate(manifests)]


def samples(indexes, groups=2, members=2, mode="balanced", accumulation=4, batch=2, seed=0, interval=10_000, blocks=4):
    sources = [WorkSource(index.name, Shape(batch, index.frames - 1)) for index in indexes]
    table = CostTable({source.key: 1.0 + 0.3 * n for n, source in enumerate(sources)}, interval)
    return SamplePlan(WorkPlan(sources, groups, members, table, mode, accumulation, seed), indexes, blocks)


def all_ranks(found, step):
    """The descriptors of one step, on every rank."""
    work, members = found.plan.step(step), found.plan.members
    return [found.descriptor(m, member) for group in work.groups for m in group for member in range(members)]


def windows(descriptors):
    return [(d["source"], *window[:3]) for d in descriptors for window in d["windows"]]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("groups", "members", "accumulation"), [(1, 1, 1), (2, 2, 4), (3, 1, 2), (1, 4, 2)])
def test_no_step_sees_a_window_twice(indexes, mode, groups, members, accumulation):
    found = samples(indexes, groups, members, mode, accumulation)
    for step in range(150):
        seen = Counter(windows(all_ranks(found, step)))
        needed = Counter(source for source, *_ in seen.elements())
        for (source, *_), count in seen.items():
            assert count == 1 or needed[source] > indexes[source].num_windows


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13])
def test_a_source_of_just_enough_windows_is_not_repeated_within_a_step(tmp_path, count):
    """8 windows a step and a source of a few more: passes end within steps, in every possible place."""
    folder = write_source(tmp_path / "s", 1, 1, 13 + count)
    index = ScenarioIndex("s", build_manifest(folder / "data" / "train"), 7, block_bytes=FRAME)
    assert index.num_windows == index.num_blocks == 7 + count
    found = samples([index], 1, 2, accumulation=2)
    for step in range(60):
        assert len(set(windows(all_ranks(found, step)))) == 8
    assert_passes(in_order_of_slots(found, 60)[0], index.num_windows)


def assert_passes(seen, size):
    """Every pass has every window once."""
    assert len(seen) >= 2 * size
    for start in range(0, len(seen) - size + 1, size):
        assert len(set(seen[start : start + size])) == size


def in_order_of_slots(found, steps):
    """The windows of each source as its slots come."""
    slots = {n: [] for n in range(len(found.indexes))}
    for step in range(steps):
        for group in found.plan.step(step).groups:
            for m in group:
                read = [found.descriptor(m, member) for member in range(found.plan.members)]
                slots[m.source].append((m.slot, windows(read)))
    return {n: [w for _, read in sorted(rows) for w in read] for n, rows in slots.items()}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("groups", "members", "batch"), [(1, 1, 2), (2, 2, 2), (3, 1, 3), (2, 3, 1)])
def test_each_pass_reads_every_window_of_a_source_once(indexes, mode, groups, members, batch):
    found = samples(indexes, groups, members, mode, batch=batch)
    for source, seen in in_order_of_slots(found, 1500 // (groups * members * batch)).items():
        assert_passes(seen, indexes[source].num_windows)


def test_passes_differ_from_each_other_and_mix_the_source(indexes):
    found = samples(indexes[:1], 1, 1)
    seen = in_order_of_slots(found, 200)[0]
    size = indexes[0].num_windows
    first, second = seen[:size], seen[size : 2 * size]
    assert first != second
    assert len(set(first[: size // 2]) & set(second[: size // 2])) == size // 2  # the halves of the source
    files = [file for _, file, *_ in first]
    assert 0.25 < np.mean(files[: size // 2]) < 0.75
    assert sum(a[1:3] == b[1:3] and abs(a[3] - b[3]) == 1 for a, b in itertools.pairwise(first)) < size / 10


@pytest.mark.parametrize("mode", ["reference", "balanced", "variable"])
def test_another_number_of_groups_reads_the_same_samples_at_each_step(indexes, mode):
    plans = [samples(indexes, groups, 2, mode, 8 // groups) for groups in (1, 2, 4, 8)]
    for step in (0, 1, 2, 17, 40, 41, 100):
        rows = [
            sorted(repr((d["source"], d["windows"], d["key"])) for d in all_ranks(found, step)) for found in plans
        ]  # strides and keys of augmentation too
        assert rows[0] == rows[1] == rows[2] == rows[3]


@pytest.mark.parametrize("mode", MODES)
def test_steps_can_be_asked_for_in_any_order_on_any_rank(indexes, mode):
    in_turn = samples(indexes, mode=mode)
    rows = {step: all_ranks(in_turn, step) for step in range(120)}
    fresh = samples(indexes, mode=mode)
    for step in (77, 5, 119, 0, 60, 61):
        assert all_ranks(fresh, step) == rows[step]
    assert all_ranks(samples(indexes, mode=mode, seed=1), 5) != rows[5]


def test_descriptors_of_a_rank_come_micro_batch_by_micro_batch(indexes):
    found = samples(indexes, 2, 2)
    for rank in range(4):
        topology = Topology.of_rank(rank, 2, 2)
        rows = list(found.descriptors(topology, 3, 6))
        assert [(d["step"], d["micro_step"], d["micro_steps"]) for d in rows] == [
            (step, i, 4) for step in (3, 4, 5) for i in range(4)
        ]
        work = [m for step in (3, 4, 5) for m in found.plan.step(step).groups[topology.group]]
        expected = [found.descriptor(m, topology.member) for m in work]
        assert [{k: d[k] for k in expected[0]} for d in rows] == expected
    assert list(itertools.islice(found.descriptors(topology, 3), 12)) == rows


def test_members_read_one_source_and_different_windows(indexes):
    found = samples(indexes, 3, 4)
    for step in range(20):
        for group in found.plan.step(step).groups:
            for m in group:
                read = [found.descriptor(m, member) for member in range(4)]
                assert {d["source"] for d in read} == {m.source}
                assert len(set(windows(read))) == 8


def test_away_from_home_the_same_windows_are_fetched_by_themselves(indexes):
    found = samples(indexes)
    for slot in range(60):
        here, away = (found.windows[0].descriptor(slot, 1, home) for home in (True, False))
        assert [here[name] for name in ("source", "windows", "key")] == [away[n] for n in ("source", "windows", "key")]
        assert [away[name] for name in ("parts", "ahead", "done")] == [[], [], []]
    assert here["parts"]


def frames_fetched(descriptors):
    """Frames that a rank asks for, with whatever it holds already; blocks are dropped when they are done."""
    fetched, held = 0, set()
    for d in descriptors:
        if not d["parts"]:
            fetched += sum(7 for _ in d["windows"])
        for part in d["parts"]:
            if (key := (d["source"], repr(part))) not in held:
                held.add(key)
                fetched += sum(stop - first for first, stop in part[2])
        held -= {(d["source"], repr(part)) for part in d["done"]}
    return fetched


def test_reading_whole_blocks_at_home_fetches_frames_a_few_times_less(indexes):
    """A window by itself is 7 frames; in blocks of 15 windows at strides 1 and 2, at most (15 + 12) / 15."""
    found = samples(indexes, 1, 1)
    rows = list(found.descriptors(Topology(), 0, 130))
    assert frames_fetched(rows) < 2.2 * sum(len(d["windows"]) for d in rows)
    spread = samples(indexes, 4, 2, accumulation=2)
    rows = [list(spread.descriptors(Topology.of_rank(rank, 4, 2), 0, 130)) for rank in range(8)]
    assert sum(map(frames_fetched, rows)) < 5 * sum(len(d["windows"]) for row in rows for d in row)


def test_few_blocks_are_open_at_a_time(indexes):
    found, open_, most = samples(indexes, 1, 1, accumulation=3, blocks=2), set(), 0
    for d in found.descriptors(Topology(), 0, 100):
        open_ |= {(d["source"], repr(part)) for part in d["parts"]}
        most = max(most, len(open_))
        open_ -= {(d["source"], repr(part)) for part in d["done"]}
    assert most <= 3 * (2 + 1)  # a batch may reach from one group of blocks into the next


@pytest.mark.parametrize("mode", MODES)
def test_a_reader_makes_batches_of_them(indexes, folders, mode):
    found = samples(indexes, 2, 2, mode)
    reader = BatchReader(indexes)
    for rank in (0, 3):
        for d in found.descriptors(Topology.of_rank(rank, 2, 2), 0, 6):
            batch = reader.read(d)
            assert batch["field_values"].shape[:2] == (2, 6)
            assert batch["source"] == f"s{d['source']}"
            assert_rows_match(folders[d["source"]], batch)


def test_a_dataset_of_descriptors_follows_the_measured_costs(indexes):
    """`IterableDataset.from_generator(...).map(read)`: one process plans ahead while training measures."""
    found, reader = samples(indexes, 2, 1, interval=3), BatchReader(indexes)
    stream = IterableDataset.from_generator(
        found.descriptors, gen_kwargs={"topology": Topology.of_rank(1, 2, 1), "first": 0, "stop": 30}
    ).map(lambda d: {**reader.read(d), "step": d["step"], "last": d["micro_step"] + 1 == d["micro_steps"]})
    step, batches = 0, 0
    for batch in stream:
        assert isinstance(batch["field_values"], torch.Tensor)
        assert batch["step"] == step
        batches += 1
        if batch["last"]:
            found.plan.table.measure(step, {source.key: 1.0 for source in found.plan.sources})
            step += 1
    assert (step, batches) == (30, 120)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda found, indexes: SamplePlan(found.plan, indexes[:2]), "indexes: expected one for each of 3 sources"),
        (lambda found, indexes: SamplePlan(found.plan, indexes, 0), "blocks_in_memory: expected at least 1, found 0"),
        (
            lambda found, indexes: SamplePlan(found.plan, [*indexes[:2], ScenarioIndex("s2", indexes[2].manifest, 4)]),
            "source 's2': expected windows of at least 7 frames, the inputs and the one after, found an index of 4",
        ),
    ],
)
def test_what_does_not_fit_the_plan_is_refused(indexes, wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong(samples(indexes), indexes)
