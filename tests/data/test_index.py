"""Windows and blocks by number, against counting by hand."""

import numpy as np
import pytest

from walrus_hf import WalrusProcessor
from walrus_hf.data.index import ScenarioIndex, runs_of
from walrus_hf.data.source_files import build_manifest

from .wells import GRID, restore, write_source


def index_of(folder, **kwargs):
    return ScenarioIndex("flow", build_manifest(folder / "data" / "train"), **kwargs)


def by_hand(frames_of_files, trajectories, frames, low):
    windows = []
    for file, length in enumerate(frames_of_files):
        for trajectory in range(trajectories):
            smallest = min(low, (length - 1) // (frames - 1))
            windows += [(file, trajectory, start) for start in range(length - smallest * (frames - 1))]
    return windows


@pytest.mark.parametrize(("frames", "low", "high"), [(7, 1, 5), (2, 1, 1), (4, 2, 3), (7, 3, 5)])
def test_windows_are_counted_file_by_file_and_trajectory_by_trajectory(tmp_path, frames, low, high):
    folder = write_source(tmp_path / "a", frames=(12, 20), trajectories=2)
    index = index_of(folder, frames=frames, stride_range=(low, high))
    expected = by_hand((12, 20), 2, frames, low)
    assert index.num_windows == len(expected)
    found = [index.window(n) for n in range(index.num_windows)]
    assert [(w.file, w.trajectory, w.start) for w in found] == expected
    files, trajectories, starts = index.locate(np.arange(index.num_windows))
    assert list(zip(files.tolist(), trajectories.tolist(), starts.tolist())) == expected
    with pytest.raises(IndexError):
        index.window(index.num_windows)
    with pytest.raises(IndexError):
        index.window(-1)


@pytest.mark.parametrize("block_frames", [1, 9, 14, 1000])
def test_blocks_cover_every_window_once_and_stay_in_one_trajectory(tmp_path, block_frames):
    folder = write_source(tmp_path / "a", frames=(12, 20), trajectories=2)
    frame_bytes = 4 * 4 * GRID[0] * GRID[1]  # four channels: the plane's velocity is lifted
    index = index_of(folder, frames=5, stride_range=(1, 2), block_bytes=block_frames * frame_bytes)
    assert index.frame_bytes == frame_bytes
    seen = []
    for number in range(index.num_blocks):
        block = index.block(number)
        members = range(block.first_window, block.first_window + block.windows)
        assert (index.blocks_of(np.array(members)) == number).all()
        for offset, member in enumerate(members):
            window = index.window(member)
            assert (window.file, window.trajectory, window.start) == (
                block.file,
                block.trajectory,
                block.start + offset,
            )
        span = block.windows + 2 * 4
        assert span <= block_frames or block.windows == 1
        seen += members
    assert seen == list(range(index.num_windows))
    if block_frames == 1000:
        assert index.num_blocks == 4


def test_strides_are_drawn_among_those_that_fit(tmp_path):
    folder = write_source(tmp_path / "a", files=1, frames=20, trajectories=1)
    index = index_of(folder, frames=7, stride_range=(1, 5))
    numbers = np.arange(index.num_windows)
    draws = np.stack([index.strides(numbers, np.full(len(numbers), u)) for u in np.linspace(0, 1, 50, endpoint=False)])
    for start in range(index.num_windows):
        fitting = {s for s in range(1, 6) if start + 6 * s <= 19}
        assert set(draws[:, start].tolist()) == fitting


def test_a_trajectory_too_short_for_the_smallest_stride_takes_the_largest_that_fits(tmp_path):
    folder = write_source(tmp_path / "a", files=1, frames=14, trajectories=1)
    index = index_of(folder, frames=7, stride_range=(4, 5))
    assert index.num_windows == 2
    assert index.strides(np.arange(2), np.array([0.0, 0.99])).tolist() == [2, 2]


def test_a_source_is_refused_only_if_stride_one_does_not_fit(tmp_path):
    folder = write_source(tmp_path / "a", frames=(20, 6))
    assert index_of(folder, frames=6, stride_range=(3, 5)).num_windows > 0
    with pytest.raises(ValueError, match=r"source 'flow': expected at least 7 frames a trajectory, found 6 in 1\.hdf5"):
        index_of(folder, frames=7, stride_range=(1, 5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": (12, 10)}, "expected the grid of 0.hdf5"),
        ({"constant": False}, "expected the fields"),
        ({"sides": {"x": "open", "y": "open"}}, "expected the boundary conditions"),
        ({"grid": (10, 12, 4)}, "expected the axes"),
    ],
)
def test_files_that_differ_are_sources_of_their_own(tmp_path, change, message):
    folder = write_source(tmp_path / "a", files=1)
    write_source(tmp_path / "b", files=1, first_seed=50, **change)
    (tmp_path / "b" / "data" / "train" / "0.hdf5").rename(folder / "data" / "train" / "1.hdf5")
    with pytest.raises(ValueError, match=message):
        index_of(folder)


def test_unknown_fields_name_the_source_and_near_names(tmp_path):
    folder = write_source(tmp_path / "a", files=1)
    with pytest.raises(ValueError, match=r"source 'flow': unknown field 'speed_of_sound'"):
        index_of(folder, processor=WalrusProcessor(field2id={"pressure": 3, "velocity_x": 4, "velocity_y": 5}))


@pytest.mark.parametrize(("arguments", "message"), [({"frames": 1}, "at least 2"), ({"stride_range": (0, 2)}, "1 <="),
                                                    ({"stride_range": (3, 2)}, "1 <=")])  # fmt: skip
def test_unusable_numbers_are_refused(tmp_path, arguments, message):
    folder = write_source(tmp_path / "a", files=1)
    with pytest.raises(ValueError, match=message):
        index_of(folder, **arguments)


def test_the_index_reads_no_frames(tmp_path):
    folder = write_source(tmp_path / "a", files=1)
    restore(folder / "data" / "train" / "0.hdf5", chunks=True, compression="gzip")
    manifest = build_manifest(folder / "data" / "train")
    (folder / "data" / "train" / "0.hdf5").unlink()
    assert ScenarioIndex("flow", manifest).num_windows == 3 * 14


@pytest.mark.parametrize(
    ("frames", "frame_bytes", "runs"),
    [
        ([3], 2**20, ((3, 4),)),
        ([0, 1, 2, 9], 4 * 2**20, ((0, 3), (9, 10))),
        ([0, 2, 4, 9], 2**19, ((0, 5), (9, 10))),
        ([0, 5, 10], 10, ((0, 11),)),
    ],
)
def test_small_gaps_are_read_along_and_large_ones_are_not(frames, frame_bytes, runs):
    assert runs_of(np.array(frames), frame_bytes) == runs
