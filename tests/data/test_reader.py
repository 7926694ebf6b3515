"""Descriptors to batches: bit for bit what h5py and the processor give, within bounds, and loud about damage."""

import gc
import pickle
import threading
import warnings

import h5py
import numpy as np
import pytest
import torch

from walrus_hf import WalrusProcessor
from walrus_hf.data.augment import rotate
from walrus_hf.data.fetching import DamagedFileError
from walrus_hf.data.index import ScenarioIndex
from walrus_hf.data.plan import StreamPlan
from walrus_hf.data.reader import BatchReader
from walrus_hf.data.remote import TRANSFERS, ChangedFileError
from walrus_hf.data.source_files import build_manifest
from walrus_hf.data.well_writer import save_well

from .test_manifest import LAYOUTS
from .wells import assert_rows_match, restore, trajectory, write_source


def index_of(folder, name="flow", **kwargs):
    return ScenarioIndex(name, build_manifest(folder / "data" / "train"), **kwargs)


def every(plan):
    return list(plan.descriptors())


@pytest.mark.parametrize("layout", [layout for layout, _ in LAYOUTS.values()], ids=LAYOUTS)
@pytest.mark.parametrize("grid", [(9,), (6, 5), (4, 6, 5)], ids=["1D", "2D", "3D"])
def test_every_window_of_every_layout_is_what_h5py_and_the_processor_give(tmp_path, layout, grid):
    folder = write_source(tmp_path / "a", files=2, trajectories=2, frames=(11, 9), grid=grid)
    if grid != (9,):  # lifting a line pads two components, a volume none
        for path in (folder / "data" / "train").iterdir():
            restore(path, **layout)
    index = index_of(folder, frames=4, stride_range=(1, 3), block_bytes=10 * 4 * 4 * int(np.prod(grid)))
    reader = BatchReader([index])
    rows = 0
    for descriptor in every(StreamPlan([index], [1], 2, epochs=1)):
        batch = reader.read(descriptor)
        assert_rows_match(folder, batch, frames=4)
        rows += len(batch["window"])
    assert rows == index.num_windows


def test_a_descriptor_needs_no_more_than_source_and_windows(tmp_path):
    folder = write_source(tmp_path / "a")
    index = index_of(folder, stride_range=(1, 3))
    reader = BatchReader([index])
    batch = reader.read({"source": 0, "windows": [[1, 2, 0, 3], [0, 1, 4, 1]]})
    assert_rows_match(folder, batch)
    assert batch["window"][0] == {"file": "1.hdf5", "trajectory": 2, "start": 0, "stride": 3}
    assert batch["source"] == "flow"
    assert reader.kept_bytes == 0


def test_names_logarithms_zero_fields_and_global_scales_are_those_of_the_processor(tmp_path):
    rng = np.random.default_rng(0)
    given = trajectory(0)
    given.fields["density"] = np.exp(rng.normal(size=given.fields["pressure"].shape)).astype(np.float32)
    given.fields["rho_c"] = given.fields.pop("pressure")
    (tmp_path / "a" / "data" / "train").mkdir(parents=True)
    save_well(given, tmp_path / "a" / "data" / "train" / "0.hdf5")
    scales = {"density": 2.0, "rho_c": 3.0, "velocity": [4.0, 5.0]}
    processor = WalrusProcessor(
        field_names={"rho_c": "concentration"}, log_fields=["density"],
        global_scales={"rms": scales, "rms_delta": scales},
    )  # fmt: skip
    index = index_of(tmp_path / "a", processor=processor)
    batch = BatchReader([index]).read({"source": 0, "windows": [[0, 0, 3, 1]]})
    assert_rows_match(tmp_path / "a", batch, processor=processor)
    assert {"value_scales", "change_scales"} <= set(batch)
    zeroed = index_of(tmp_path / "a", processor=processor, zero_fields=("speed_of_sound",))
    batch = BatchReader([zeroed]).read({"source": 0, "windows": [[0, 0, 3, 1]]})
    assert not batch["constant_values"].any()
    assert batch["field_values"].all(dim=-1).any()


@pytest.mark.parametrize("inside", [2.0, np.nan])
def test_cells_inside_obstacles_are_zero_as_the_processor_makes_them(tmp_path, inside):
    given = trajectory(0)
    given.obstacle_mask = np.zeros(given.grid, dtype=bool)
    given.obstacle_mask[2:5, 3:] = True
    given.fields["pressure"][:, given.obstacle_mask] = inside
    given.constant_fields["speed_of_sound"][given.obstacle_mask] = inside
    (tmp_path / "a" / "data" / "train").mkdir(parents=True)
    save_well(given, tmp_path / "a" / "data" / "train" / "0.hdf5")
    batch = BatchReader([index_of(tmp_path / "a")]).read({"source": 0, "windows": [[0, 0, 3, 1], [0, 0, 4, 1]]})
    assert_rows_match(tmp_path / "a", batch)
    assert batch["obstacle_mask"].sum() == 2 * given.obstacle_mask.sum()


def test_augmented_batches_are_whole_rotations_of_plain_ones_drawn_by_the_key_alone(tmp_path):
    index = index_of(write_source(tmp_path / "a", files=1))
    plan = every(StreamPlan([index], [1], 2, epochs=1))[:12]
    plain, turned, again = (BatchReader([index], augmented=flag) for flag in (False, True, True))
    names = {i: name for name, i in index.processor.field2id.items()}
    shapes = set()
    for descriptor in plan:
        before, after, same = (reader.read(descriptor) for reader in (plain, turned, again))
        shapes.add(tuple(after["field_values"].shape[-3:]))
        assert torch.equal(after["labels"], same["labels"])
        assert torch.equal(after["field_values"][:, 1:], after["labels"][:, :-1])
        from walrus_hf.data.augment import ROTATIONS

        inputs = {k: v for k, v in before.items() if k not in ("source", "window")}
        candidates = [rotate(inputs, rotation, names) for rotation in ROTATIONS]
        assert any(
            all(torch.equal(c[k], after[k]) for k in c)
            for c in candidates
            if c["labels"].shape == after["labels"].shape
        )
    assert len(shapes) >= 3
    assert pickle.dumps(turned.read(plan[3])["labels"].numpy()) == pickle.dumps(again.read(plan[3])["labels"].numpy())


def test_blocks_are_read_once_and_windows_of_one_block_share_them(tmp_path):
    folder = write_source(tmp_path / "a", files=1, trajectories=2)
    index = index_of(folder)
    reader = BatchReader([index])
    TRANSFERS.reset()
    batches = [reader.read(d) for d in every(StreamPlan([index], [1], 2, epochs=1))]
    frame = 4 * 3 * 10 * 12
    constants = 4 * 10 * 12
    assert sum(len(b["window"]) for b in batches) == 28
    assert TRANSFERS.bytes == 2 * (20 * frame + constants)  # each block once


def test_a_source_that_fits_into_memory_is_read_in_the_first_pass_only(tmp_path):
    folder = write_source(tmp_path / "a", files=2, trajectories=1)
    index = index_of(folder)
    reader = BatchReader([index])
    TRANSFERS.reset()
    plan = every(StreamPlan([index], [1], 2, epochs=3))
    for number, descriptor in enumerate(plan):
        assert_rows_match(folder, reader.read(descriptor))
        if number == len(plan) // 3 - 1:
            first_pass = TRANSFERS.requests
    assert first_pass > 0
    assert TRANSFERS.requests == first_pass
    assert 0 < reader.kept_bytes <= reader.cache_bytes
    reader.drop()
    assert reader.kept_bytes == 0


def test_memory_stays_within_the_bound_when_blocks_do_not_fit(tmp_path):
    folder = write_source(tmp_path / "a", files=2, trajectories=3)
    index = index_of(folder, block_bytes=10**9)
    part = 20 * index.frame_bytes
    reader = BatchReader([index], cache_bytes=int(2.5 * part))
    most = 0
    for descriptor in every(StreamPlan([index], [1], 2, epochs=1)):
        assert_rows_match(folder, reader.read(descriptor))
        most = max(most, reader.kept_bytes)
    assert part <= most <= 2.5 * part


def test_what_comes_later_is_fetched_ahead_in_threads(tmp_path):
    index = index_of(write_source(tmp_path / "a", files=2, trajectories=3))
    reader = BatchReader([index])
    plan = every(StreamPlan([index], [1], 2, epochs=1, blocks_in_memory=2))
    first = next(n for n, d in enumerate(plan) if len({*map(repr, d["ahead"])}) > 1)
    for descriptor in plan[: first + 1]:
        reader.read(descriptor)
    for part in reader._kept:
        reader._kept.get(part).result()
    TRANSFERS.reset()
    reader.read(plan[first + 1])
    assert TRANSFERS.requests == 0


def test_copies_and_forks_start_their_own_threads(tmp_path):
    import multiprocessing

    folder = write_source(tmp_path / "a")
    index = index_of(folder)
    reader = BatchReader([index])
    descriptor = {"source": 0, "windows": [[1, 2, 0, 1]]}
    expected = reader.read(descriptor)["labels"]
    copy = pickle.loads(pickle.dumps(reader))
    assert torch.equal(copy.read(descriptor)["labels"], expected)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=lambda: queue.put(reader.read(descriptor)["labels"].numpy()))
    child.start()
    np.testing.assert_array_equal(queue.get(timeout=30), expected.numpy())
    child.join()


def failures_of_threads(folder, reader, plans):
    """One thread a plan reads it and checks every row; what went wrong."""
    failures = []

    def run(plan):
        try:
            for descriptor in plan:
                assert_rows_match(folder, reader.read(descriptor))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(plan,)) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures


def test_two_threads_may_read_from_one_reader(tmp_path):
    folder = write_source(tmp_path / "a")
    index = index_of(folder)
    reader = BatchReader([index])
    plans = [every(StreamPlan([index], [1], 2, seed, epochs=1)) for seed in range(2)]
    assert not failures_of_threads(folder, reader, plans)


def test_threads_that_take_each_others_room_still_get_their_parts(tmp_path):
    folder = write_source(tmp_path / "a")
    index = index_of(folder)
    reader = BatchReader([index], cache_bytes=30 * index.frame_bytes, threads=2)
    plans = [every(StreamPlan([index], [1], 2, seed, epochs=1))[:25] for seed in range(4)]
    assert not failures_of_threads(folder, reader, plans)


# Damage


def spoil(path, value, name="t0_fields/pressure", at=(1, 9, 2, 3)):
    with h5py.File(path, "r+") as file:
        file[name][at] = value


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e19])
def test_numbers_that_cannot_be_used_name_source_file_trajectory_and_frames(tmp_path, value):
    folder = write_source(tmp_path / "a", files=1)
    spoil(folder / "data" / "train" / "0.hdf5", value)
    reader = BatchReader([index_of(folder)])
    assert_rows_match(folder, reader.read({"source": 0, "windows": [[0, 1, 0, 1]]}))
    with pytest.raises(
        DamagedFileError, match=r"source 'flow', .*0\.hdf5, trajectory 1, frames 5 to 11: field 'pressure'"
    ):
        reader.read({"source": 0, "windows": [[0, 1, 5, 1]]})
    assert reader.kept_bytes == 0


def test_a_file_that_changes_under_the_reader_is_an_error(tmp_path):
    folder = write_source(tmp_path / "a", files=1)
    reader = BatchReader([index_of(folder)])
    reader.read({"source": 0, "windows": [[0, 1, 0, 1]]})
    spoil(folder / "data" / "train" / "0.hdf5", 7.0)
    with pytest.raises(ChangedFileError, match=r"0\.hdf5: expected the file that was indexed"):
        reader.read({"source": 0, "windows": [[0, 1, 0, 1]]})


def test_a_file_that_went_is_an_error(tmp_path):
    folder = write_source(tmp_path / "a", files=1)
    index = index_of(folder)
    (folder / "data" / "train" / "0.hdf5").unlink()
    with pytest.raises(FileNotFoundError, match=r"0\.hdf5"):
        BatchReader([index]).read({"source": 0, "windows": [[0, 1, 0, 1]]})


def test_a_compressed_file_that_is_damaged_inside_is_an_error(tmp_path):
    folder = write_source(tmp_path / "a", files=1)
    path = folder / "data" / "train" / "0.hdf5"
    restore(path, chunks=True, compression="gzip", fletcher32=True)
    with h5py.File(path) as file:
        stored = file["t0_fields/pressure"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[stored.byte_offset + 10 : stored.byte_offset + 40] = bytes(30)
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"source 'flow', .*0\.hdf5"):
        BatchReader([index_of(folder)]).read({"source": 0, "windows": [[0, 0, 0, 1]]})


@pytest.mark.parametrize("damage", ["not finite", "gone", "changed"])
def test_on_request_windows_of_a_damaged_file_are_replaced_counted_and_reported(tmp_path, damage):
    folder = write_source(tmp_path / "a", files=3, trajectories=2)
    path = folder / "data" / "train" / "1.hdf5"
    if damage == "not finite":
        spoil(path, np.nan, at=(slice(None), slice(None), 2, 3))
    index = index_of(folder, stride_range=(1, 2))
    if damage == "gone":
        path.unlink()
    if damage == "changed":
        spoil(path, 7.0)
    reader = BatchReader([index], skip_damaged=True)
    rows, planned = 0, 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for descriptor in every(StreamPlan([index], [1], 2, epochs=1)):
            batch = reader.read(descriptor)
            assert_rows_match(folder, batch)
            assert all(window["file"] != "1.hdf5" for window in batch["window"])
            rows += len(batch["window"])
            planned += sum(window[0] == 1 for window in descriptor["windows"])
    assert rows == index.num_windows
    assert reader.damaged == {str(path): planned}
    messages = [str(w.message) for w in caught]
    assert any("1.hdf5: 1 windows were replaced by those of other files" in message for message in messages)
    assert 2 <= len(messages) < planned


def test_a_damaged_block_is_fetched_once_not_for_each_of_its_windows(tmp_path):
    folder = write_source(tmp_path / "a", files=2, trajectories=1)
    spoil(folder / "data" / "train" / "1.hdf5", np.nan, at=(slice(None), slice(None), 2, 3))
    index = index_of(folder)
    reader = BatchReader([index], skip_damaged=True)
    TRANSFERS.reset()
    descriptors = every(StreamPlan([index], [1], 2, epochs=1))
    with pytest.warns(UserWarning, match="were replaced"):
        assert len([reader.read(descriptor) for descriptor in descriptors]) == 14
    block, window = 20 * 3 * 4 * 120 + 480, 7 * 3 * 4 * 120 + 480
    assert TRANSFERS.bytes <= 2 * 2 * block + 14 * window  # a row may begin within a block: twice each


def test_a_source_whose_files_are_all_damaged_is_an_error_even_then(tmp_path):
    folder = write_source(tmp_path / "a", files=2, trajectories=1)
    for n in range(2):
        spoil(folder / "data" / "train" / f"{n}.hdf5", np.nan, at=(slice(None), slice(None), 2, 3))
    reader = BatchReader([index_of(folder)], skip_damaged=True)
    with pytest.warns(UserWarning, match="were replaced"), pytest.raises(DamagedFileError):
        reader.read({"source": 0, "windows": [[0, 0, 5, 1]]})


def test_batches_do_not_keep_their_blocks_alive(tmp_path):
    import weakref

    index = index_of(write_source(tmp_path / "a", files=1, trajectories=1))
    reader = BatchReader([index])
    batch = reader.read(every(StreamPlan([index], [1], 2, epochs=1))[0])
    (part,) = reader._kept
    block = weakref.ref(reader._kept.get(part).result())
    reader.drop()
    gc.collect()
    assert block() is None
    assert batch["labels"].shape[0] == 2
