"""`load_stream` as its users meet it: an oracle, resuming, workers, nodes, mixtures, and stores that fail."""

import contextlib
import gc
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import interleave_datasets
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

from walrus_hf import WalrusProcessor
from walrus_hf.data import ScenarioIndex, build_manifest, collate, load_stream, open_source
from walrus_hf.data import remote as transport
from walrus_hf.data.remote import TRANSFERS, ChangedFileError
from walrus_hf.data.scenarios import SCENARIOS
from walrus_hf.data.streams import scenario_processor

from .http_server import Fault, RangeServer, SignedStore
from .wells import address, addresses, assert_rows_match, trajectory, write_source

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")


@pytest.fixture
def folder(tmp_path):
    return write_source(tmp_path / "flow")


def take(stream, count):
    return list(itertools.islice(stream, count))


def same(first, second):
    return len(first) == len(second) and all(
        a.keys() == b.keys() and all(torch.equal(a[k], b[k]) if torch.is_tensor(a[k]) else a[k] == b[k] for k in a)
        for a, b in zip(first, second)
    )


def test_an_epoch_is_every_window_once_bit_for_bit(folder):
    batches = list(load_stream(folder, epochs=1))
    for batch in batches:
        assert_rows_match(folder, batch)
    found = addresses(batches)
    assert len(found) == len(set(found)) == 6 * 14
    assert {window["stride"] for batch in batches for window in batch["window"]} == {1, 2, 3}
    assert batches[0]["source"] == str(folder)
    assert batches[0]["field_values"].shape == batches[0]["labels"].shape == (2, 6, 4, 10, 12, 1)


def test_every_window_is_bit_equal_to_the_wells_own_reader(tmp_path):
    the_well = pytest.importorskip("the_well.data")
    folder = write_source(tmp_path / "flow", files=2, trajectories=2, frames=(12, 15), grid=(8, 6, 4))
    for stride in (1, 2):
        theirs = the_well.WellDataset(
            path=str(folder / "data" / "train"), n_steps_input=3, n_steps_output=1, use_normalization=False,
            min_dt_stride=stride, max_dt_stride=stride,
        )  # fmt: skip
        order = []
        for file in range(2):
            starts = theirs.n_windows_per_trajectory[file]
            order += [(f"{file}.hdf5", t, s) for t in range(2) for s in range(starts)]
        samples = {place: theirs[number] for number, place in enumerate(order)}
        seen = 0
        for batch in load_stream(folder, frames=4, stride_range=(stride, stride), epochs=1):
            for row, window in enumerate(batch["window"]):
                sample = samples[window["file"], window["trajectory"], window["start"]]
                frames = torch.cat([sample["input_fields"], sample["output_fields"]])  # (T, H, W, D, C)
                ours = torch.cat([batch["field_values"][row], batch["labels"][row, -1:]])
                assert torch.equal(ours, frames.permute(0, 4, 1, 2, 3))
                assert torch.equal(batch["constant_values"][row], sample["constant_fields"].permute(3, 0, 1, 2))
                assert torch.equal(batch["boundary_conditions"][row], sample["boundary_conditions"].long())
                seen += 1
        assert seen == len(theirs)


@pytest.mark.parametrize("kwargs", [{"epochs": 1}, {}, {"augment": True}, {"epochs": 2, "rank": 1, "world_size": 2}])
def test_resuming_gives_every_byte_of_what_an_uninterrupted_stream_gives(folder, tmp_path, kwargs):
    other = write_source(tmp_path / "other", first_seed=50, grid=(6, 8, 5), frames=9)
    make = lambda: load_stream({folder: 2, other: 1}, frames=4, seed=5, **kwargs)  # noqa: E731
    straight = take(make(), 110)
    for stop in (0, 1, 7):
        stream = make()
        iterator = iter(stream)
        assert same(take(iterator, stop), straight[:stop])
        state = json.loads(json.dumps(stream.state_dict()))
        resumed = make()
        resumed.load_state_dict(state)
        assert same(take(resumed, 100), straight[stop : stop + 100])


def test_resuming_reads_nothing_of_what_was_passed_and_at_most_a_block_before_the_first_batch(tmp_path):
    folder = write_source(tmp_path / "flow", files=3, trajectories=4)
    make = lambda: load_stream(folder, seed=1, stride_range=(1, 1), batch_size=1)  # noqa: E731
    stream = make()
    take(iter(stream), 100)
    state = stream.state_dict()
    resumed = make()
    resumed.load_state_dict(state)
    block = 20 * 3 * 4 * 120 + 4 * 120
    from walrus_hf.data.reader import BatchReader

    before = BatchReader.read
    read = []

    def without_looking_ahead(self, descriptor):
        read.append(1)
        return before(self, {**descriptor, "ahead": []})

    TRANSFERS.reset()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BatchReader, "read", without_looking_ahead)
        next(iter(resumed))
    assert len(read) == 1
    assert 0 < TRANSFERS.bytes <= block


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stateful_dataloader_resumes_exactly(folder, workers):
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    def make():
        stream = load_stream(folder, seed=2)
        return stateful.StatefulDataLoader(stream, batch_size=None, collate_fn=collate, num_workers=workers)

    loader = make()
    iterator = iter(loader)
    take(iterator, 9)
    state = loader.state_dict()
    expected = take(iterator, 20)
    resumed = make()
    resumed.load_state_dict(state)
    assert same(take(iter(resumed), 20), expected)
    assert set(expected[0]) >= {"field_values", "labels", "field_ids", "boundary_conditions"}
    assert "window" not in expected[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_share_an_epoch_out(folder, workers):
    loader = DataLoader(load_stream(folder, epochs=1), batch_size=None, num_workers=workers)
    found = addresses(loader)
    assert len(found) == len(set(found)) == 84


def test_workers_of_an_endless_stream_together_read_what_comes_first(folder):
    """Segments in turn: no worker runs passes ahead of another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("walrus_hf.data.plan_examples.SEGMENT", 3)
        loader = DataLoader(load_stream(folder), batch_size=None, num_workers=2)
        found = addresses(take(loader, 42))
    assert Counter(found) == Counter(addresses(take(load_stream(folder), 42)))
    assert len(set(found)) == 84


def test_parts_of_a_finite_stream_are_stretches_of_it(folder):
    """So workers and nodes do not read each other's blocks."""
    whole = [batch["window"] for batch in load_stream(folder, epochs=1)]
    for parts in (2, 3, 6):
        found = []
        for part in range(parts):
            split = split_dataset_by_node(load_stream(folder, epochs=1), part, parts)
            found += [batch["window"] for batch in split]
        assert found == whole
    nested = [split_dataset_by_node(split_dataset_by_node(load_stream(folder, epochs=1), a, 2), b, 3)
              for a in range(2) for b in range(3)]  # fmt: skip
    assert [batch["window"] for part in nested for batch in part] == whole


def test_a_state_of_another_stream_is_refused(folder):
    stream = load_stream(folder, seed=1)
    take(iter(stream), 3)
    other = load_stream(folder, seed=2)
    other.load_state_dict(stream.state_dict())
    with pytest.raises(ValueError, match="expected the state of this stream"):
        next(iter(other))


def test_set_epoch_is_refused_with_a_history_of_one_epoch(folder):
    stream = load_stream(folder, history=[(2, 3)])
    stream.set_epoch(1)
    with pytest.raises(ValueError, match="without history"):
        next(iter(stream))


@pytest.mark.parametrize(("frames", "stride_range", "cache_bytes"), [(7, (1, 3), 100_000), (2, (1, 1), 10_000)])
def test_memory_that_holds_no_blocks_is_warned_about_until_it_is_what_the_warning_asks_for(
    folder, recwarn, frames, stride_range, cache_bytes
):
    load_stream(folder, frames=frames, stride_range=stride_range, cache_bytes=cache_bytes)
    said = str(recwarn.pop(UserWarning).message)
    pattern = rf"memory holds no blocks of 1 of 1 sources.*about {frames} times.*; cache_bytes=(\d+) would help"
    asked = re.search(pattern, said)
    recwarn.clear()
    load_stream(folder, frames=frames, stride_range=stride_range, cache_bytes=int(asked[1]))
    assert not recwarn.list


def test_frames_too_large_for_any_block_ask_for_fewer_of_them(folder, monkeypatch):
    monkeypatch.setattr("walrus_hf.data.streams.LARGEST_BLOCK", 10_000)
    with pytest.warns(UserWarning, match="; fewer frames or smaller strides would help"):
        load_stream(folder)


def test_workers_that_are_spawned_read_the_same(folder):
    stream = load_stream(folder, epochs=1)
    found = DataLoader(stream, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    assert same(list(found), list(stream))


def test_set_epoch_draws_order_strides_and_batches_anew_on_all_ranks_alike(folder):
    streams = [load_stream(folder, seed=3, rank=rank, world_size=2, epochs=1) for rank in range(2)]
    epochs = []
    for epoch in (0, 1, 2, 1):
        for stream in streams:
            stream.set_epoch(epoch)
        epochs.append([list(stream) for stream in streams])
        found = [addresses(batches) for batches in epochs[-1]]
        assert len(found[0]) == len(found[1]) == 42
        assert not set(found[0]) & set(found[1])
    assert same(epochs[1][0], epochs[3][0])
    orders = [addresses(batches[0]) for batches in epochs[:3]]
    assert len({tuple(order) for order in orders}) == 3
    assert len({frozenset(order) for order in orders}) == 3  # not only the order: another share of the windows
    strides = [
        {address(w): w["stride"] for batches in ranks for batch in batches for w in batch["window"]}
        for ranks in epochs[:2]
    ]
    assert strides[0] != strides[1]


def test_set_epoch_reaches_a_stream_through_other_operations(folder):
    def windows(epoch):
        mapped = load_stream(folder, epochs=1).map(lambda batch: {"first": batch["window"][0]["start"]})
        mapped.set_epoch(epoch)
        return [batch["window"] for batch in mapped]

    assert windows(0) != windows(1)
    assert windows(1) == windows(1)


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("epoch", [0, 1])
def test_split_by_node_gives_nodes_different_windows_and_all_of_them(folder, world_size, epoch):
    stream = load_stream(folder, epochs=1)
    stream.set_epoch(epoch)
    parts = []
    for rank in range(world_size):
        part = split_dataset_by_node(stream, rank=rank, world_size=world_size)
        part.set_epoch(epoch)
        parts.append(addresses(part))
    together = list(itertools.chain(*parts))
    assert len(together) == len(set(together)) == 84
    assert max(map(len, parts)) - min(map(len, parts)) <= 2


def test_split_by_node_reads_no_more_than_its_share_of_an_endless_stream(folder):
    assert load_stream(folder).num_shards % 96 == 0
    part = split_dataset_by_node(load_stream(folder), rank=1, world_size=96)
    TRANSFERS.reset()
    take(part, 3)
    assert TRANSFERS.bytes <= 2 * 6 * (20 * 3 * 4 * 120 + 4 * 120)  # the windows of 3 batches, not of 3 * 96


def test_interleaved_streams_keep_their_probabilities_and_resume(folder, tmp_path):
    other = write_source(tmp_path / "other", first_seed=50)

    def make():
        return interleave_datasets(
            [load_stream(folder), load_stream(other)],
            probabilities=[0.8, 0.2],
            seed=0,
            stopping_strategy="first_exhausted",
        )

    found = take(make(), 200)
    share = np.mean([batch["source"] == str(folder) for batch in found])
    assert 0.7 < share < 0.9
    stream = make()
    take(iter(stream), 20)
    resumed = make()
    resumed.load_state_dict(stream.state_dict())
    assert same(take(resumed, 20), found[20:40])


def test_a_mixture_follows_its_weights_and_each_batch_is_of_one_source(folder, tmp_path):
    other = write_source(tmp_path / "other", first_seed=50, grid=(5, 4, 6), frames=12)
    found = take(load_stream({str(folder): 3, str(other): 1}), 800)
    share = np.mean([batch["source"] == str(folder) for batch in found])
    assert abs(share - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 800)
    shapes = {batch["source"]: batch["field_values"].shape[-3:] for batch in found}
    assert shapes == {str(folder): (10, 12, 1), str(other): (5, 4, 6)}
    even = Counter(batch["source"] for batch in take(load_stream([folder, other]), 400))
    assert abs(even[str(other)] - 200) < 4 * np.sqrt(100)


def test_a_restart_at_another_world_size_goes_on_where_the_ranks_were(folder):
    before = [take(load_stream(folder, seed=4, rank=rank, world_size=2), 10) for rank in range(2)]
    again = [take(load_stream(folder, seed=4, rank=r, world_size=4, history=[(2, 10)]), 5) for r in range(4)]
    seen = addresses(itertools.chain(*before, *again))
    assert len(seen) == 80
    assert len(set(seen)) == 80


# Sources


def test_sources_are_files_folders_data_sets_manifests_indexes_and_urls(folder, tmp_path):
    inside = folder / "data" / "train"
    build_manifest(inside).save(tmp_path / "m.json")
    expected = Counter(addresses(load_stream(folder, epochs=1)))
    index = ScenarioIndex("mine", build_manifest(inside), 7, (1, 5))
    for source in (inside, str(folder), f"file://{inside}", f"file://{folder}", tmp_path / "m.json", index):
        assert Counter(addresses(load_stream(source, epochs=1))) == expected
    one = Counter(addresses(load_stream(inside / "1.hdf5", epochs=1)))
    assert one == Counter({a: n for a, n in expected.items() if a[0] == "1.hdf5"})
    assert next(iter(load_stream(index)))["source"] == "mine"


def test_a_store_of_fsspec_serves_the_same(folder):
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in (folder / "data" / "train").iterdir():
        memory.pipe_file(f"/flow/data/train/{path.name}", path.read_bytes())
    try:
        batches = list(load_stream("memory://flow", epochs=1))
        assert len(addresses(batches)) == 84
        for batch in batches:
            assert_rows_match(folder, batch)
    finally:
        memory.rm("/flow", recursive=True)


def test_splits_are_folders(tmp_path):
    folder = write_source(tmp_path / "flow", files=1)
    write_source(tmp_path / "valid", files=1, trajectories=1, first_seed=30, split="valid")
    (tmp_path / "valid" / "data" / "valid").rename(folder / "data" / "valid")
    assert len(addresses(load_stream(folder, split="valid", epochs=1))) == 14
    for source in (folder, f"file://{folder}"):
        with pytest.raises(FileNotFoundError, match="data/test"):
            load_stream(source, split="test")


def test_a_base_path_makes_a_source_a_scenario_even_where_a_folder_has_its_name(tmp_path, monkeypatch):
    write_source(tmp_path / "shear_flow", files=1, constant=False)
    monkeypatch.chdir(tmp_path)
    assert load_stream("shear_flow", base_path=".", epochs=1).num_shards > 0
    assert next(iter(load_stream("shear_flow", base_path=".")))["source"] == "shear_flow"
    with pytest.raises(ValueError, match="unknown scenario 'flow'"):
        load_stream("flow", base_path=".")


def test_names_with_blanks_and_percent_signs_are_read_in_every_store(tmp_path):
    folder = write_source(tmp_path / "my %20 flow", files=1)
    (folder / "data" / "train" / "0.hdf5").rename(folder / "data" / "train" / "run 1.hdf5")
    for source in (folder, folder.as_uri()):
        assert addresses(load_stream(source, epochs=1))[0][0] == "run 1.hdf5"


def test_splits_that_would_be_mixed_are_refused(tmp_path):
    folder = write_source(tmp_path / "flow", files=1)
    write_source(folder, files=1, first_seed=9, split="valid")
    for source in (folder / "data", (folder / "data").as_uri()):
        with pytest.raises(
            ValueError, match=r"expected a folder with data/train in it, .* found splits in it themselves"
        ):
            load_stream(source)
    assert len(addresses(load_stream(folder / "data" / "train", epochs=1))) > 0  # one of them is what it is
    for source in (folder / "data" / "train", "shear_flow"):
        with pytest.raises(ValueError, match="split: expected one of train, valid, test, found 'vaild'"):
            load_stream(source, split="vaild")
    with pytest.raises(FileNotFoundError, match="data/vaild"):
        load_stream(folder, split="vaild")
    (folder / "data" / "valid").rename(folder / "data" / "holdout")
    assert len(addresses(load_stream(folder, split="holdout", epochs=1))) > 0  # a split of one's own


def test_windows_at_another_distance_than_asked_for_are_warned_of(tmp_path):
    folder = write_source(tmp_path / "flow", files=1, frames=12)
    with pytest.warns(UserWarning, match="too short for 7 frames at distance 5; their windows are at distance 1"):
        load_stream(folder, frames=7, stride_range=(5, 5))


def test_a_file_that_is_none_of_simulations_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.raises(ValueError, match="found another file"):
        load_stream(tmp_path / "notes.txt")


def test_a_cache_that_cannot_be_written_is_no_reason_not_to_read(folder, tmp_path, monkeypatch):
    (tmp_path / "occupied").write_text("a file where the folder should be")
    monkeypatch.setenv("WALRUS_HF_CACHE", str(tmp_path / "occupied"))
    assert len(addresses(load_stream(folder, epochs=1))) == 84


def test_a_scenario_by_name_is_read_as_the_paper_reads_it(tmp_path):
    name = "turbulent_radiative_layer_3D"
    base = write_source(tmp_path / name, files=1, trajectories=1, constant=False, grid=(6, 4, 5))
    from walrus_hf.data.well_writer import save_well

    rng = np.random.default_rng(0)
    given = trajectory(0, grid=(6, 4, 5), constant=False)
    given.fields["density"] = np.exp(rng.normal(size=given.fields["pressure"].shape)).astype(np.float32)
    save_well(given, base / "data" / "train" / "0.hdf5", overwrite=True)
    batch = next(iter(load_stream([name], base_path=tmp_path)))
    assert batch["source"] == name
    vocabulary = WalrusProcessor().field2id
    assert vocabulary["log10_density"] in batch["field_ids"][0].tolist()
    assert_rows_match(base, batch, processor=WalrusProcessor(log_fields=["density"]))


def test_a_manifest_made_of_a_scenario_is_read_as_the_scenario(tmp_path):
    name = "supernova_explosion_128"
    write_source(tmp_path / name, files=1, trajectories=1, constant=False, grid=(6, 4, 5))
    manifest, scenario = open_source(name, base_path=tmp_path)
    assert scenario.name == manifest.scenario == name
    manifest.save(tmp_path / "shipped.json")
    assert open_source(tmp_path / "shipped.json")[1] is scenario
    assert next(iter(load_stream(tmp_path / "shipped.json")))["source"] == name


def test_an_unknown_source_suggests_scenarios():
    with pytest.raises(ValueError, match=r"unknown scenario 'shear_flw'.*perhaps 'shear_flow'"):
        load_stream("shear_flw")


def test_a_scenario_that_needs_a_conversion_names_the_command():
    with pytest.raises(ValueError, match="walrus-hf data convert --format pdebench"):
        load_stream("pdebench_cns_3d_turbulent")


def test_on_request_files_that_cannot_be_indexed_are_left_out_with_a_warning(folder):
    path = folder / "data" / "train" / "0.hdf5"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"0\.hdf5: expected a whole HDF5 file"):
        load_stream(folder)
    with pytest.warns(UserWarning, match=r"left out a damaged file: .*0\.hdf5"):
        stream = load_stream(folder, skip_damaged=True, epochs=1)
    assert {a[0] for a in addresses(stream)} == {"1.hdf5"}
    path.with_name("1.hdf5").unlink()
    with pytest.raises(ValueError, match="found 1 damaged ones"), pytest.warns(UserWarning, match="left out"):
        load_stream(folder, skip_damaged=True)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"sources": []}, "sources: expected at least one"),
        ({"sources": {"{folder}": -1}}, "weights: expected one positive number"),
        ({"frames": 30}, "expected at least 30 frames a trajectory, found 20"),
        ({"rank": 1}, "rank: expected 0 to 0"),
    ],
)
def test_unusable_arguments_are_refused_at_once(folder, kwargs, message):
    kwargs = {"sources": str(folder), **kwargs}
    if isinstance(kwargs["sources"], dict):
        kwargs["sources"] = {str(folder): -1}
    with pytest.raises(ValueError, match=message):
        load_stream(**kwargs)


def test_batches_go_through_the_trainers_collator_into_the_model(folder):
    from walrus_hf import WalrusConfig, WalrusForPrediction

    model = WalrusForPrediction(WalrusConfig.tiny(tokens_per_axis=4))
    loader = DataLoader(load_stream(folder, frames=4), batch_size=None, collate_fn=collate)
    losses = [model(**inputs).loss for inputs in take(loader, 2)]
    sum(losses).backward()
    assert all(loss > 0 for loss in losses)


# Stores that fail: either the batch arrives intact, or an error names source, file and offset


@pytest.fixture
def server(folder, monkeypatch):
    monkeypatch.setattr(transport, "_sleep", lambda seconds: None)
    files = {f"flow/{path.name}": path.read_bytes() for path in (folder / "data" / "train").iterdir()}
    with RangeServer(files) as running:
        yield running


def web_stream(folder, server, block_frames=1000, **kwargs):
    """The source behind http."""
    manifest = build_manifest(f"{server.root}/flow/0.hdf5")
    index = ScenarioIndex("web", manifest, 7, (1, 3), block_bytes=block_frames * 4 * 4 * 120)
    return load_stream(index, epochs=1, **kwargs)


PASSING = {
    "429 with Retry-After": [Fault(status=429, headers={"Retry-After": "3"})],
    "503": [Fault(status=503), Fault(status=503)],
    "a connection cut in a range": [Fault(cut=100), Fault(cut=1000)],
    "a wrong Content-Range": [Fault(headers={"Content-Range": "bytes 5-10/100"})],
    "a slow answer": [Fault(delay=0.2)],
}


@pytest.mark.parametrize("faults", PASSING.values(), ids=PASSING)
def test_a_fault_that_passes_leaves_every_batch_intact(folder, server, faults):
    stream = web_stream(folder, server)
    server.script("flow/0.hdf5", *faults)
    batches = list(stream)
    assert len(addresses(batches)) == 42
    for batch in batches:
        assert_rows_match(folder, batch)
    assert not server._scripts["flow/0.hdf5"]


def test_a_store_that_comes_back_serves_the_same_stream_on(folder, server):
    stream = web_stream(folder, server, block_frames=22, blocks_in_memory=1)
    batches = take(iter(stream), 2)
    stream.load_state_dict(stream.state_dict())
    server.always("flow/0.hdf5", Fault(status=503))
    with pytest.raises(OSError, match="503"):
        next(iter(stream))
    server.always("flow/0.hdf5", None)
    batches += list(stream)
    assert len(addresses(batches)) == len(set(addresses(batches))) == 42


def test_what_failed_when_it_was_fetched_ahead_is_tried_again_when_it_is_needed(folder, server):
    from walrus_hf.data import BatchReader, StreamPlan

    manifest = build_manifest(f"{server.root}/flow/0.hdf5")
    index = ScenarioIndex("web", manifest, 7, (1, 1), block_bytes=14 * 4 * 4 * 120)
    plan = list(StreamPlan([index], [1], 1, epochs=1, blocks_in_memory=1).descriptors())
    reader = BatchReader([index])
    reader.read({**plan[0], "ahead": []})
    server.always("flow/0.hdf5", Fault(status=503))
    later = next(d for d in plan if d["parts"][0] != plan[0]["parts"][0])
    reader.read({**plan[0], "ahead": later["parts"], "done": []})
    for part in reader._kept:
        with contextlib.suppress(OSError):
            reader._kept.get(part).result()
    server.always("flow/0.hdf5", None)
    assert_rows_match(folder, reader.read(later))


LASTING = {
    "503 for ever": (Fault(status=503), OSError, "503"),
    "every connection cut": (Fault(cut=10), OSError, "tries"),
    "always a wrong Content-Range": (Fault(headers={"Content-Range": "bytes 5-10/100"}), OSError, "Content-Range"),
    "ranges ignored": (Fault(whole=True), OSError, "range"),
    "missing": (Fault(status=404), FileNotFoundError, "check the address"),
    "forbidden": (Fault(status=403), PermissionError, "403"),
}


@pytest.mark.parametrize(("fault", "kind", "message"), LASTING.values(), ids=LASTING)
def test_a_fault_that_stays_is_an_error_that_names_the_file(folder, server, fault, kind, message):
    stream = web_stream(folder, server)
    server.always("flow/0.hdf5", fault)
    with pytest.raises(kind, match=message) as caught:
        list(stream)
    assert "flow/0.hdf5" in str(caught.value)


def test_a_file_that_changes_behind_the_server_is_an_error(folder, server):
    stream = web_stream(folder, server)
    content = bytearray(server.files["flow/0.hdf5"])
    content[-1] ^= 1
    server.files["flow/0.hdf5"] = bytes(content)
    with pytest.raises(ChangedFileError, match=r"flow/0\.hdf5"):
        list(stream)


def test_an_address_that_expires_is_resolved_again(folder, server):
    with SignedStore(dict(server.files)) as store, RangeServer(dict(server.files), store=store) as hub:
        stream = web_stream(folder, hub)
        iterator = iter(stream)
        batches = take(iterator, 3)
        store.revoke()
        batches += list(iterator)
        assert len(addresses(batches)) == 42
        for batch in batches:
            assert_rows_match(folder, batch)


def test_a_file_is_resolved_once_for_all_its_ranges(folder, server):
    with SignedStore(dict(server.files)) as store, RangeServer(dict(server.files), store=store) as hub:
        stream = web_stream(folder, hub)
        hub.forget()
        list(stream)
        assert hub.requests <= 2
        assert store.requests > 3


# Memory


@pytest.mark.parametrize("count", [3_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_thousands_of_batches_of_twenty_sources_stay_small_with_bounded_handles(tmp_path, count):
    for n in range(20):
        write_source(tmp_path / f"s{n}", files=2, trajectories=2, first_seed=10 * n, frames=12, grid=(16, 12))
    code = f"""
import itertools, os
from walrus_hf.data import load_stream
stream = load_stream([f"{tmp_path}/s{{n}}" for n in range(20)], frames=4)
def gib(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) / 2**20
seen = []
for number, batch in enumerate(itertools.islice(stream, {count})):
    if number in ({count // 3}, {count - 1}):
        seen += [gib("VmRSS"), len(os.listdir("/proc/self/fd"))]
print(*seen, gib("VmHWM"))  # getrusage would tell the peak of the process that this one was forked from
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert run.returncode == 0, run.stderr
    early, handles, late, more_handles, peak = map(float, run.stdout.split())
    assert peak < 1.5
    assert late < early + 0.05 * count / 10_000  # 8 kB a batch
    assert max(handles, more_handles) < 150


def test_a_process_ends_at_once_whatever_is_still_being_fetched(folder):
    """By itself and interrupted, on a line where all that is queued would take a minute."""
    code = f"""
import os, signal, sys, time
sys.path.insert(0, os.getcwd())
from tests.data.http_server import RangeServer
from walrus_hf.data import ScenarioIndex, build_manifest, load_stream
for interrupted in (False, True):
    if child := os.fork():  # everything is imported, and nothing runs yet
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(code, time.time(), flush=True)
    else:
        break
if not child:
    content = open({str(folder / "data" / "train" / "0.hdf5")!r}, "rb").read()
    server = RangeServer({{"0.hdf5": content}})
    index = ScenarioIndex("web", build_manifest(server.url("0.hdf5")), 7, (1, 1), block_bytes=15 * 4 * 4 * 120)
    stream = load_stream(index, blocks_in_memory=4, batch_size=1, threads=1)
    server.latency = 2.0
    iterator = iter(stream)
    next(iterator)
    print("reading", time.time(), flush=True)
    if interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
        os.kill(os.getpid(), signal.SIGINT)
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120,
    )  # fmt: skip
    what, times = zip(*(line.split() for line in run.stdout.splitlines()))
    assert what == ("reading", "0", "reading", str(-signal.SIGINT)), run.stderr
    began, ended, again, interrupted = map(float, times)
    assert ended - began < 20
    assert interrupted - again < 20
    assert "KeyboardInterrupt" in run.stderr


def test_a_stream_that_is_dropped_lets_go_of_its_memory_and_threads(folder):
    import threading

    stream = load_stream(folder)
    take(iter(stream), 5)
    before = threading.active_count()
    del stream
    gc.collect()
    for thread in threading.enumerate():
        if thread.name.startswith("walrus_hf"):
            thread.join(timeout=5)
    assert threading.active_count() < before


# The Hub, or a server that answers like it, in a process of its own with its own environment

HUB = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, os.getcwd())
from tests.data.http_server import HubServer, SignedStore
store = SignedStore(uses=5)
hub = HubServer(store=store, token="hf_right")
name = "polymathic-ai/shear_flow"
files = {f"data/train/{p.name}": p.read_bytes() for p in Path(sys.argv[1]).iterdir()}
first = hub.commit(name, files)
os.environ.update(HF_ENDPOINT=hub.root, HF_TOKEN="hf_right", HF_HUB_DISABLE_XET="1")
from tests.data.wells import assert_rows_match, addresses
from walrus_hf.data import load_stream, open_source
stream = load_stream("shear_flow", epochs=1)
manifest, scenario = open_source("shear_flow")
hub.commit(name, {"data/train/0.hdf5": b"another file"})   # the branch moves on, the stream does not
batches = list(stream)
for batch in batches:
    assert_rows_match(Path(sys.argv[1]).parents[1], batch)
found = addresses(batches)
tokens = sum("authorization" in request.headers for request in store.log)
print(json.dumps([manifest.root, first, batches[0]["source"], len(found), len(set(found)), tokens, hub.requests]))
"""


def test_a_scenario_on_the_hub_is_read_at_the_commit_where_it_was_indexed(tmp_path):
    folder = write_source(tmp_path / "flow", constant=False)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    run = subprocess.run(
        [sys.executable, "-c", HUB, str(folder / "data" / "train")], capture_output=True, text=True,
        cwd=Path(__file__).parents[2], env={**environment, "OMP_NUM_THREADS": "1"}, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    root, commit, source, windows, different, tokens, asked = json.loads(run.stdout.splitlines()[-1])
    assert root == f"hf://datasets/polymathic-ai/shear_flow@{commit}/data/train"
    assert (source, windows, different) == ("shear_flow", 84, 84)
    assert tokens == 0  # it goes to the Hub alone
    assert asked < 60


def test_flowbench_streams_with_its_obstacles_its_splits_and_its_licence(tmp_path):
    from walrus_hf.data import flowbench

    from .test_flowbench import archive

    rng = np.random.default_rng(0)
    simulations = {}
    for geometry in ("1", "2", "3", "10"):
        place = tmp_path / "flowbench_fpo_harmonics" / "data" / "train" / geometry
        place.mkdir(parents=True)
        mask = np.zeros((8, 32))  # (y, x)
        mask[3:5, 4 : 6 + int(geometry) % 3] = 1
        if geometry != "3":  # releases without geometries have no obstacle
            np.savez_compressed(place / "input_geometry.npz", mask=mask)
        values = rng.normal(size=(12, 32, 8, 3))
        (place / "Re_100.npz").write_bytes(archive(values).getvalue())
        simulations[f"{geometry}/Re_100.npz"] = (values.astype(np.float32), (mask.T != 0) & (geometry != "3"))
    flowbench.warn_of_licence.cache_clear()
    with pytest.warns(UserWarning, match="not for commercial use"):
        stream = load_stream("flowbench_fpo_harmonics", base_path=tmp_path, stride_range=(1, 2), epochs=1)
    batches = list(stream)
    assert {window["file"] for batch in batches for window in batch["window"]} == {f"{n}/Re_100.npz" for n in "123"}
    for batch in batches:
        for row, window in enumerate(batch["window"]):
            values, mask = simulations[window["file"]]
            kept = values[window["start"] + window["stride"] * np.arange(7)] * ~mask[None, :, :, None]
            found = torch.cat([batch["field_values"][row], batch["labels"][row, -1:]])[..., 0]  # (T, C, x, y)
            names = batch["field_ids"][row].tolist()
            vocabulary = WalrusProcessor().field2id
            for channel, name in enumerate(("velocity_x", "velocity_y", "pressure")):
                np.testing.assert_array_equal(found[:, names.index(vocabulary[name])], kept[..., channel])
            if mask.any():
                np.testing.assert_array_equal(batch["obstacle_mask"][row, ..., 0], mask)
            elif "obstacle_mask" in batch:
                assert not batch["obstacle_mask"][row].any()


def test_a_named_scenario_keeps_every_setting_but_its_names_and_logarithms():
    base = WalrusProcessor(
        tokens_per_axis=8, tokens_per_axis_3d=4, jitter=False, num_hidden_layers=3, context_frames=4,
        context_frames_3d=2, global_scales={"rms": {"a": 1.0}, "rms_delta": {"a": 2.0}}, hold_scales=True,
    )  # fmt: skip
    found = scenario_processor(base, next(iter(SCENARIOS.values()))).to_dict()
    of_scenarios = {"field_names": None, "log_fields": None}
    assert {**found, **of_scenarios} == {**base.to_dict(), **of_scenarios}


def test_a_processor_that_has_the_logarithms_of_a_scenario_does_not_get_them_twice():
    scenario = SCENARIOS["turbulence_gravity_cooling"]
    once = scenario_processor(WalrusProcessor(), scenario)
    assert once.log_fields
    assert scenario_processor(once, scenario).log_fields == once.log_fields
