"""The plan: every window once, ranks apart and alike, mixtures by weight, chunks that start by themselves, restarts."""

import itertools
import pickle
import random
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from walrus_hf.data.index import ScenarioIndex
from walrus_hf.data.plan import StreamPlan
from walrus_hf.data.source_files import build_manifest

from .wells import GRID, write_source

FRAME = 4 * 4 * GRID[0] * GRID[1]


@pytest.fixture(scope="module")
def indexes(tmp_path_factory):
    """Three sources of 84, 45 and 33 windows, in blocks of about 5 windows."""
    found = []
    for n, (files, trajectories, frames) in enumerate([(2, 3, 20), (1, 3, (21,)), (1, 3, (17,))]):
        folder = write_source(tmp_path_factory.mktemp("plan") / "s", files, trajectories, frames, first_seed=10 * n)
        manifest = build_manifest(folder / "data" / "train")
        found.append(ScenarioIndex(f"s{n}", manifest, 7, (1, 2), block_bytes=17 * FRAME))
    return found


def every(plan):
    return list(plan.descriptors())


def endless(plan, count):
    return list(plan.descriptors(0, count))


def windows(descriptors):
    return [(d["source"], *window[:3]) for d in descriptors for window in d["windows"]]


def counts(indexes):
    return sum(index.num_windows for index in indexes)


@pytest.mark.parametrize("world_size", [1, 2, 5])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_in_an_epoch_ranks_share_out_all_windows_evenly_and_none_twice(indexes, world_size, batch_size):
    plans = [StreamPlan(indexes, [1, 1, 1], batch_size, 0, rank, world_size, epochs=1) for rank in range(world_size)]
    found = [windows(every(plan)) for plan in plans]
    assert len({len(part) for part in found}) == 1
    assert len({plan.num_batches for plan in plans}) == 1
    together = Counter(itertools.chain(*found))
    assert max(together.values()) == 1
    dropped = sum(index.num_windows % world_size for index in indexes)
    assert len(together) == counts(indexes) - dropped


def test_two_epochs_are_two_different_passes(indexes):
    found = windows(every(StreamPlan(indexes[:1], [1], 2, epochs=2)))
    half = len(found) // 2
    assert set(found[:half]) == set(found[half:])
    assert found[:half] != found[half:]


def test_the_plan_depends_on_seed_epoch_and_nothing_global(indexes):
    def of(seed, epoch=0, rank=0):
        return every(StreamPlan(indexes, [1, 2, 3], 2, seed, rank, 2, epochs=1, epoch=epoch))

    first = of(3)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    assert of(3) == first
    assert windows(of(4)) != windows(first)
    assert windows(of(3, epoch=1)) != windows(first)
    assert not set(windows(of(3, rank=1))) & set(windows(first))


def test_strides_belong_to_a_window_and_an_epoch_not_to_a_rank(indexes):
    def strides(world_size, epoch=0):
        plans = [StreamPlan(indexes[:1], [1], 1, 5, r, world_size, epochs=1, epoch=epoch) for r in range(world_size)]
        return {tuple(w[:3]): w[3] for plan in plans for d in every(plan) for w in d["windows"]}

    alone, shared, later = strides(1), strides(3), strides(1, epoch=1)
    assert alone == shared
    assert alone != later
    assert set(alone.values()) == {1, 2}


def test_windows_of_a_batch_come_from_the_blocks_in_memory(indexes):
    for blocks_in_memory in (1, 2, 4):
        plan = StreamPlan(indexes[:1], [1], 2, epochs=1, blocks_in_memory=blocks_in_memory)
        found = every(plan)
        blocks = [d["parts"] for d in found]
        live, most = set(), 0
        for d, parts in zip(found, blocks):
            live |= {repr(part) for part in parts}
            most = max(most, len(live))
            live -= {repr(part) for part in d["done"]}
        assert not live
        assert most <= blocks_in_memory + 1  # a batch may reach from one group into the next
        mixed = Counter(len({repr(part) for part in parts}) for parts in blocks)
        assert (mixed[2] > len(blocks) / 3) == (blocks_in_memory > 1)


def test_parts_hold_the_frames_of_their_windows_and_are_fetched_once(indexes):
    plan = StreamPlan(indexes[:1], [1], 2, epochs=1)
    fetched = Counter()
    known = set()
    for d in every(plan):
        for (file, trajectory, start, stride), part in zip(d["windows"], d["parts"]):
            assert part[:2] == [file, trajectory]
            held = {frame for first, stop in part[2] for frame in range(first, stop)}
            assert {start + stride * n for n in range(7)} <= held
            if repr(part) not in known:
                known.add(repr(part))
                fetched[repr(part)] += 1
        known -= {repr(part) for part in d["done"]}
    assert set(fetched.values()) == {1}


def test_blocks_are_announced_before_they_are_needed(indexes):
    announced, first_seen, missed = set(), True, 0
    for d in every(StreamPlan(indexes[:1], [1], 2, epochs=1)):
        if not first_seen:
            missed += sum(repr(part) not in announced for part in d["parts"])
        announced = {repr(part) for part in d["ahead"]}
        assert not announced & {repr(part) for part in d["done"]}
        first_seen = False
    assert missed <= 3


def test_an_endless_mixture_follows_its_weights_independently_on_each_rank(indexes):
    weights, draws = [5, 3, 1], []
    for rank in range(2):
        plan = StreamPlan(indexes, weights, 1, 1, rank, 2)
        draws.append([d["source"] for d in endless(plan, 6000)])
        observed = np.bincount(draws[-1], minlength=3)
        assert stats.chisquare(observed, 6000 * np.array(weights) / 9).pvalue > 1e-3
    both = np.histogram2d(*draws, bins=(3, 3))[0]
    assert stats.chi2_contingency(both).pvalue > 1e-3


def test_a_finite_mixture_follows_its_weights_while_all_sources_last(indexes):
    firsts = [every(StreamPlan(indexes, [8, 1, 1], 1, seed, epochs=3))[0]["source"] for seed in range(150)]
    assert stats.chisquare(np.bincount(firsts, minlength=3), 150 * np.array([0.8, 0.1, 0.1])).pvalue > 1e-3


def test_every_pass_of_an_endless_stream_sees_every_window_once(indexes):
    plan = StreamPlan(indexes, [1, 1, 1], 2, 0)
    per_source = {n: [] for n in range(3)}
    for d in endless(plan, 400):
        per_source[d["source"]] += windows([d])
    for n, index in enumerate(indexes):
        seen = per_source[n][: len(per_source[n]) // index.num_windows * index.num_windows]
        assert len(seen) >= index.num_windows
        for start in range(0, len(seen), index.num_windows):
            assert len(set(seen[start : start + index.num_windows])) == index.num_windows


@pytest.mark.parametrize("epochs", [1, None])
def test_a_stream_can_be_started_anywhere(indexes, epochs, monkeypatch):
    monkeypatch.setattr("walrus_hf.data.plan.CHUNK_BATCHES", 10)
    sequence = endless(StreamPlan(indexes, [1, 2, 1], 2, 7, epochs=epochs), 70)
    for first, stop in [(0, 70), (1, 9), (10, 20), (37, 61), (69, 70), (70, 70)]:
        fresh = StreamPlan(indexes, [1, 2, 1], 2, 7, epochs=epochs)
        assert list(fresh.descriptors(first, stop)) == sequence[first:stop]


def test_a_finite_stream_ends_and_an_endless_one_does_not(indexes, monkeypatch):
    monkeypatch.setattr("walrus_hf.data.plan.CHUNK_BATCHES", 3)
    plan = StreamPlan(indexes, [1, 1, 1], epochs=1)
    assert len(every(plan)) == plan.num_batches == len(list(plan.descriptors(0, 10**6)))
    tail = list(itertools.islice(StreamPlan(indexes, [1, 1, 1]).descriptors(100), 50))
    assert len({repr(d) for d in tail}) == 50


def test_no_window_is_left_out_more_often_than_others(indexes):
    seen = Counter()
    for epoch in range(200):
        for rank in range(16):
            seen.update(windows(every(StreamPlan(indexes[1:2], [1], 2, 0, rank, 16, epochs=1, epoch=epoch))))
    counts = np.array([seen[0, 0, *divmod(n, 15)] for n in range(45)])
    assert counts.sum() == 200 * 32
    assert stats.chisquare(counts).pvalue > 1e-3 or counts.std() < 2 * np.sqrt(200 * 32 / 45)


def restart(indexes, history, world_size, batches):
    weights = [1, 2, 1][: len(indexes)]
    plans = [StreamPlan(indexes, weights, 2, 0, rank, world_size, history=history) for rank in range(world_size)]
    return [endless(plan, batches) for plan in plans]


@pytest.mark.parametrize(("first", "batches", "second"), [(2, 7, 3), (3, 5, 1), (1, 12, 4), (2, 40, 3), (4, 1, 2)])
def test_a_restart_at_another_world_size_neither_repeats_nor_misses_a_window(indexes, first, batches, second):
    before = windows(itertools.chain(*restart(indexes[:1], (), first, batches)))
    size = indexes[0].num_windows
    passes = len(before) // size
    left = size - (len(before) - passes * size)
    after = restart(indexes[:1], [(first, batches)], second, -(-left // second) // 2 + 1)
    after = [windows(rank) for rank in after]
    in_turn = [w for row in itertools.zip_longest(*after) for w in row if w is not None]
    seen = Counter(before)
    seen.update(in_turn[: left - left % second])
    assert max(seen.values()) - min(seen.values()) <= 1
    dropped = [w for w, n in seen.items() if n == passes] if passes else [None] * (size - len(seen))
    assert len(dropped) <= 2 * second + first


def test_a_restart_is_the_same_every_time_and_on_every_rank_different(indexes):
    history = [(2, 9), (3, 4)]
    once, again = (restart(indexes, history, 4, 6) for _ in range(2))
    assert once == again
    assert windows(once[0]) != windows(once[1])


def test_several_restarts_within_an_epoch_still_see_every_window_once(indexes):
    parts, history = [], []
    for world_size, batches in [(2, 5), (3, 4), (1, 6)]:
        parts += windows(itertools.chain(*restart(indexes[:1], history, world_size, batches)))
        history.append((world_size, batches))
    assert len(parts) == 20 + 24 + 12
    assert max(Counter(parts).values()) == 1


@pytest.mark.parametrize("case", range(8))
def test_no_window_of_a_pass_is_read_twice_or_lost_over_restarts_with_several_sources(indexes, case):
    """One rank may be a pass ahead of another when a run ends."""
    rng = np.random.default_rng(case)
    history, seen, last = [], Counter(), {}
    for run in range(4):
        world_size, batches = int(rng.integers(1, 5)), int(rng.integers(1, 60)) if run < 3 else 400
        for rank in range(world_size):
            plan = StreamPlan(indexes, [1, 2, 1], 1, 0, rank, world_size, history=history)
            for d in plan.descriptors(0, batches):
                place = (d["source"], d["key"][3])  # source and pass
                seen[place, tuple(d["windows"][0][:3])] += 1
                last[d["source"], run, rank] = d["key"][3]
        history.append((world_size, batches))
    assert max(seen.values()) == 1
    for n, index in enumerate(indexes):
        finished = min(last[n, 3, rank] for rank in range(history[-1][0]))
        assert finished >= 1
        for number in range(finished):
            found = sum(place == (n, number) for place, _ in seen)
            assert index.num_windows - sum(world - 1 for world, _ in history) <= found <= index.num_windows


def test_a_plan_survives_pickling(indexes):
    plan = StreamPlan(indexes, [1, 2, 1], 2, 7, 1, 2)
    assert endless(pickle.loads(pickle.dumps(plan)), 30) == endless(plan, 30)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected a whole number of at least 1"),
        ({"rank": 2, "world_size": 2}, "rank: expected 0 to 1"),
        ({"rank": -1}, "rank: expected 0 to 0"),
        ({"epochs": 0}, "epochs: expected a whole number of at least 1"),
        ({"seed": -1}, "seed: expected 0 or more"),
        ({"blocks_in_memory": 0}, "blocks_in_memory"),
        ({"weights": [1, 1]}, "one positive number for each source"),
        ({"weights": [1, 0, 1]}, "one positive number for each source"),
        ({"weights": [1, float("nan"), 1]}, "one positive number for each source"),
        ({"world_size": 40}, "source 's2': expected at least one window for each of 40 ranks, found 33"),
        ({"history": [(2, 3)], "epochs": 1}, "history: expected an endless stream"),
        ({"history": [(0, 3)]}, "history: expected pairs"),
        ({"batch_size": 2.5}, "batch_size: expected a whole number"),
    ],
)
def test_unusable_arguments_are_refused(indexes, arguments, message):
    with pytest.raises(ValueError, match=message):
        StreamPlan(**{"indexes": indexes, "weights": [1, 1, 1], **arguments})
