"""All frames in stretches: each once and in order, bounded, in shards; statistics against The Well's definitions."""

import dataclasses
import threading

import h5py
import numpy as np
import pytest

from walrus_hf.data import flowbench, stretches
from walrus_hf.data.scenarios import SCENARIOS
from walrus_hf.data.source_files import build_manifest, open_source
from walrus_hf.data.statistics import RunningStatistics
from walrus_hf.data.stretches import collect_statistics, read_stretches, stretches_of
from walrus_hf.data.well_writer import save_well
from walrus_hf.fields import Trajectory

from .wells import GRID, restore, trajectory, write_source

FRAME = 4 * 4 * GRID[0] * GRID[1]  # pressure, velocity, and the constant field


@pytest.fixture
def small(monkeypatch):
    """Stretches of three frames."""
    monkeypatch.setattr(stretches, "STRETCH_BYTES", 3 * FRAME + 7)


@pytest.fixture
def folder(tmp_path):
    return write_source(tmp_path / "flow", files=2, trajectories=3, frames=(8, 10))


def stored(path, name):
    with h5py.File(path) as file:
        return file[name][()]


def test_every_frame_of_every_trajectory_comes_once_and_in_order(small, folder):
    restore(folder / "data" / "train" / "1.hdf5", chunks=True, compression="gzip")
    manifest = build_manifest(folder / "data" / "train")
    found: dict = {}
    for stretch, future in read_stretches(manifest):
        for name, values in future.result().fields.items():
            assert len(values) == stretch.stop - stretch.first <= 3
            found.setdefault((stretch.file, stretch.trajectory, name), []).append(values)
    assert list(dict.fromkeys(key[:2] for key in found)) == [(f, t) for f in (0, 1) for t in (0, 1, 2)]
    for file in (0, 1):
        for group, name in (("t0_fields", "pressure"), ("t1_fields", "velocity")):
            whole = stored(folder / "data" / "train" / f"{file}.hdf5", f"{group}/{name}")
            for t in range(3):
                np.testing.assert_array_equal(np.concatenate(found[file, t, name]), whole[t])


def test_shards_share_all_trajectories_among_them(small, folder):
    manifest = build_manifest(folder / "data" / "train")
    parts = [list(stretches_of(manifest, (i, 4))) for i in range(4)]
    together = [dataclasses.astuple(stretch) for part in parts for stretch in part]
    assert sorted(together) == sorted(map(dataclasses.astuple, stretches_of(manifest)))
    assert {(s.file, s.trajectory) for s in parts[1]} == {(0, 1), (1, 2)}
    assert all((s.file, s.trajectory) == (1, 0) for s in parts[3])


def test_constant_fields_come_once_for_each_array_of_the_file(small, tmp_path):
    own, shared = tmp_path / "own", tmp_path / "shared"
    write_source(own, files=1, trajectories=3, frames=8)
    batch = [trajectory(seed, frames=8) for seed in range(3)]
    for one in batch[1:]:
        one.constant_fields = batch[0].constant_fields
    (shared / "data" / "train").mkdir(parents=True)
    save_well(batch, shared / "data" / "train" / "0.hdf5")
    for folder, expected in ((own, [0, 1, 2]), (shared, [0])):
        manifest = build_manifest(folder / "data" / "train")
        found = [(s.trajectory, f.result().constants) for s, f in read_stretches(manifest)]
        assert [t for t, constants in found if constants] == expected
        for t, constants in found:
            for values in constants.values():
                with h5py.File(folder / "data" / "train" / "0.hdf5") as file:
                    whole = file["t0_fields/speed_of_sound"][()]
                np.testing.assert_array_equal(values, whole[t] if whole.ndim == 3 else whole)


def test_a_stretch_that_fails_does_not_end_the_others(small, folder, monkeypatch):
    def read(entry, source, geometry, trajectory, first, stop):
        if (trajectory, first) == (1, 3):
            raise OSError("no disk")
        return read_arrays(entry, source, geometry, trajectory, first, stop)

    read_arrays = stretches.read_arrays
    monkeypatch.setattr(stretches, "read_arrays", read)
    manifest = build_manifest(folder / "data" / "train" / "0.hdf5")
    failed = [str(stretch) for stretch, future in read_stretches(manifest) if future.exception() is not None]
    assert failed == ["trajectory 1, frames 3 to 5"]
    assert len(list(stretches_of(manifest))) == 9


@pytest.mark.parametrize(("ahead", "most"), [(7 * FRAME, 2 + 1), (1, 1 + 1), (10**9, 5 + 1)])
def test_what_is_read_ahead_is_bounded_in_bytes_and_in_number(small, folder, monkeypatch, ahead, most):
    begun = []
    read_arrays, lock = stretches.read_arrays, threading.Lock()

    def read(*arguments):
        with lock:
            begun.append(arguments)
        return read_arrays(*arguments)

    monkeypatch.setattr(stretches, "read_arrays", read)
    monkeypatch.setattr(stretches, "AHEAD_BYTES", ahead)
    for number, (_, future) in enumerate(read_stretches(build_manifest(folder / "data" / "train"))):
        future.result()
        with lock:
            assert len(begun) - number <= most


def test_a_reader_that_stops_early_leaves_no_thread(small, folder):
    manifest = build_manifest(folder / "data" / "train")
    list(read_stretches(manifest))  # starts what a process has once, such as the monitor of progress bars
    before = threading.active_count()
    reading = read_stretches(manifest)
    next(reading)
    assert threading.active_count() > before
    reading.close()
    assert threading.active_count() == before


def test_a_frame_larger_than_the_memory_is_refused(folder, monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda name: 64)
    _, future = next(read_stretches(build_manifest(folder / "data" / "train")))
    with pytest.raises(ValueError, match="trajectory 0, frames 0 to 7: expected data that fits into memory"):
        future.result()


# Statistics


def moments(arrays, axes):
    """The Well's definitions: over everything but the components, divided by the count, float64."""
    whole = np.concatenate([a.astype(np.float64) for a in arrays])
    return {"mean": whole.mean(axes), "std": whole.std(axes), "rms": np.sqrt((whole**2).mean(axes))}


def assert_statistics(found, name, trajectories):
    """`trajectories`: arrays (T, x, y[, d])."""
    axes = (0, 1, 2)
    changes = moments([np.diff(a.astype(np.float64), axis=0) for a in trajectories], axes)
    for kind, value in moments(trajectories, axes).items():
        np.testing.assert_allclose(found[kind][name], value, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found[f"{kind}_delta"][name], changes[kind], rtol=1e-9, atol=1e-12)


def test_statistics_are_those_of_the_whole_arrays(small, folder):
    found = collect_statistics(build_manifest(folder / "data" / "train")).as_stats()
    paths = [folder / "data" / "train" / f"{n}.hdf5" for n in (0, 1)]
    for group, name in (("t0_fields", "pressure"), ("t1_fields", "velocity")):
        assert_statistics(found, name, [one for path in paths for one in stored(path, f"{group}/{name}")])
    constant = moments([stored(path, "t0_fields/speed_of_sound") for path in paths], (0, 1, 2))
    for kind, value in constant.items():
        np.testing.assert_allclose(found[kind]["speed_of_sound"], value, rtol=1e-9)
    assert "speed_of_sound" not in found["rms_delta"]


def test_the_statistics_of_shards_add_up_to_those_of_one_pass(small, folder):
    manifest = build_manifest(folder / "data" / "train")
    total = RunningStatistics(2)
    for i in range(7):  # more shards than trajectories
        total.merge(collect_statistics(manifest, shard=(i, 7)))
    found, expected = total.as_stats(), collect_statistics(manifest).as_stats()
    assert found.keys() == expected.keys()
    for kind in expected:
        for name, value in expected[kind].items():
            np.testing.assert_allclose(found[kind][name], value, rtol=1e-12, atol=1e-15)


def positive(seed, fields, constants=(), frames=4, grid=(6, 5), **kwargs):
    rng = np.random.default_rng(seed)
    draw = lambda *lead: np.exp(rng.normal(size=(*lead, *grid))).astype(np.float32)  # noqa: E731
    sides = dict.fromkeys("xyz"[: len(grid)], "open")
    varying = {name: draw(frames) for name in fields}
    varying["velocity"] = rng.normal(size=(frames, *grid, len(grid))).astype(np.float32)
    return Trajectory(varying, sides, {n: draw() for n in constants}, axes=tuple(sides), name="run", **kwargs)


def test_a_scenario_counts_logarithms_and_zeros_as_the_model_reads_them(tmp_path):
    home = tmp_path / "supernova_explosion_128" / "data" / "train"
    home.mkdir(parents=True)
    one = positive(0, ("density", "pressure", "temperature"), grid=(4, 3, 5))
    save_well(one, home / "0.hdf5")
    manifest, scenario = open_source("supernova_explosion_128", base_path=tmp_path)
    found = collect_statistics(manifest, scenario).as_stats()
    for name in ("density", "temperature"):
        logs = np.log10(one.fields[name]).astype(np.float64)
        assert found["mean"][name] == pytest.approx(logs.mean(), rel=1e-6)
        assert found["rms_delta"][name] == pytest.approx(np.sqrt((np.diff(logs, axis=0) ** 2).mean()), rel=1e-6)
    assert found["mean"]["pressure"] == pytest.approx(one.fields["pressure"].mean(dtype=np.float64), rel=1e-9)
    as_it_is = collect_statistics(manifest).as_stats()
    assert as_it_is["mean"]["density"] == pytest.approx(one.fields["density"].mean(dtype=np.float64), rel=1e-9)

    home = tmp_path / "acoustic_scattering_maze" / "data" / "train"
    home.mkdir(parents=True)
    save_well(positive(1, ("pressure",), ("density", "speed_of_sound")), home / "0.hdf5")
    found = collect_statistics(*open_source("acoustic_scattering_maze", base_path=tmp_path)).as_stats()
    assert [found[kind]["density"] for kind in ("mean", "std", "rms")] == [0, 0, 0]
    assert found["rms"]["speed_of_sound"] > 0


def test_what_stands_inside_obstacles_counts_as_zero_for_a_scenario_whatever_it_is(tmp_path):
    one = positive(0, ("density", "pressure", "temperature"), grid=(4, 3, 5))
    mask = np.zeros((4, 3, 5), dtype=bool)
    mask[1, 1, 2:4] = True
    fields = {name: np.where(mask.reshape(4, 3, 5, *[1] * (x.ndim - 4)), -1, x) for name, x in one.fields.items()}
    fields["velocity"][:, mask] = np.nan
    save_well(dataclasses.replace(one, fields=fields, obstacle_mask=mask), tmp_path / "0.hdf5")
    found = collect_statistics(build_manifest(tmp_path / "0.hdf5"), SCENARIOS["supernova_explosion_128"]).as_stats()
    logs = np.where(mask, 0, np.log10(one.fields["density"]))
    assert found["mean"]["density"] == pytest.approx(logs.mean(dtype=np.float64), rel=1e-6)
    assert found["rms"]["velocity"][0] == pytest.approx(
        np.sqrt((np.where(mask, 0, one.fields["velocity"][..., 0]) ** 2).mean(dtype=np.float64)), rel=1e-6
    )


def test_what_is_not_finite_inside_obstacles_counts_as_zero(tmp_path):
    one = positive(0, ("density",), ("speed_of_sound",))
    mask = np.zeros((6, 5), dtype=bool)
    mask[1, 2:4] = mask[3, 3] = True
    one.fields["velocity"][:, mask] = np.nan
    one.fields["density"][:, mask] = 7  # a number like any other, as long as no scenario reads it
    one.constant_fields["speed_of_sound"][mask] = np.inf
    path = save_well(dataclasses.replace(one, obstacle_mask=mask), tmp_path / "0.hdf5")
    found = collect_statistics(build_manifest(path)).as_stats()
    assert_statistics(found, "density", [one.fields["density"]])
    assert_statistics(found, "velocity", [np.where(mask[..., None], 0, one.fields["velocity"])])
    speed = np.where(mask, 0, one.constant_fields["speed_of_sound"]).astype(np.float64)
    assert found["mean"]["speed_of_sound"] == pytest.approx(speed.mean())
    with h5py.File(path, "r+") as file:
        file["t0_fields/speed_of_sound"][0, 2] = np.inf
    with pytest.raises(ValueError, match="constant field 'speed_of_sound': expected finite numbers, found 1"):
        collect_statistics(build_manifest(path))


def test_obstacle_masks_of_other_numbers_are_refused(tmp_path):
    one = positive(0, ("density",))
    path = save_well(dataclasses.replace(one, obstacle_mask=np.eye(6, 5) > 0), tmp_path / "0.hdf5")
    with h5py.File(path, "r+") as file:
        file["t0_fields/obstacle_mask"][...] = 2
    with pytest.raises(ValueError, match="obstacle_mask: expected True or 1 inside obstacles"):
        collect_statistics(build_manifest(path))


def test_a_scenario_reads_constant_fields_inside_obstacles_where_they_can_be_used(tmp_path):
    one = positive(0, ("pressure",), ("density", "speed_of_sound"))
    mask = np.zeros((6, 5), dtype=bool)
    mask[2, 2], mask[3, 3] = True, True
    one.constant_fields["speed_of_sound"][2, 2] = np.nan
    path = save_well(dataclasses.replace(one, obstacle_mask=mask), tmp_path / "0.hdf5")
    read = one.constant_fields["speed_of_sound"].astype(np.float64)
    read[2, 2] = 0
    found = collect_statistics(build_manifest(path), SCENARIOS["acoustic_scattering_maze"]).as_stats()
    assert found["mean"]["speed_of_sound"] == pytest.approx(read.mean())
    logs = dataclasses.replace(SCENARIOS["acoustic_scattering_maze"], log_fields=("speed_of_sound",))
    logarithms = np.log10(np.where(np.isnan(one.constant_fields["speed_of_sound"]), 1, read))
    found = collect_statistics(build_manifest(path), logs).as_stats()
    assert found["mean"]["speed_of_sound"] == pytest.approx(logarithms.mean())


def test_a_logarithm_of_what_is_not_positive_names_file_and_frames(small, tmp_path):
    one = positive(0, ("density", "pressure", "temperature"), grid=(4, 3, 5))
    one.fields["density"][2, 1, 1, 1] = 0
    path = save_well(one, tmp_path / "0.hdf5")
    manifest = build_manifest(path)
    with pytest.raises(ValueError, match=r"0\.hdf5, trajectory 0, .*'density': expected positive values .* found 0"):
        collect_statistics(manifest, SCENARIOS["supernova_explosion_128"])
    collect_statistics(manifest)


def test_numbers_that_are_not_finite_are_refused_with_their_place(small, folder):
    path = folder / "data" / "train" / "1.hdf5"
    with h5py.File(path, "r+") as file:
        file["t0_fields/pressure"][2, 7, 3, 4] = np.nan
    message = rf"{path}, trajectory 2, frames 6 to 8: field 'pressure', frame 7: expected finite numbers, found 1"
    with pytest.raises(ValueError, match=message):
        collect_statistics(build_manifest(folder / "data" / "train"))


@pytest.mark.filterwarnings("ignore:FlowBench is published")
def test_flowbench_counts_zeros_inside_its_obstacle(tmp_path):
    values = 5 + np.random.default_rng(0).normal(size=(4, 8, 32, 3))  # (T, y, x, channel)
    mask = np.zeros((8, 32), dtype=bool)
    mask[3:5, 6:9] = True
    (tmp_path / "11").mkdir()
    np.savez_compressed(tmp_path / "11" / "Re_100.npz", data=values)
    np.savez_compressed(tmp_path / "11" / flowbench.GEOMETRY_SUFFIX, mask=mask)
    manifest, _ = open_source(tmp_path)
    pressure = values[..., 2].astype(np.float32).astype(np.float64)
    found = collect_statistics(manifest, SCENARIOS["flowbench_fpo_harmonics"]).as_stats()
    assert found["mean"]["pressure"] == pytest.approx(np.where(mask, 0, pressure).mean(), rel=1e-9)
    assert found["rms_delta"]["pressure"] == pytest.approx(
        np.sqrt((np.diff(np.where(mask, 0, pressure), axis=0) ** 2).mean()), rel=1e-9
    )
    assert collect_statistics(manifest).as_stats()["mean"]["pressure"] == pytest.approx(pressure.mean(), rel=1e-9)


def test_planes_and_volumes_in_one_folder_have_no_common_statistics(tmp_path):
    rng = np.random.default_rng(0)
    periodic = dict.fromkeys("xyz", "periodic")
    save_well(Trajectory({"a": rng.normal(size=(3, 8, 8))}, {k: periodic[k] for k in "xy"}), tmp_path / "a.hdf5")
    volume = Trajectory({"b": rng.normal(size=(3, 8, 8, 8))}, periodic, axes=("x", "y", "z"))
    save_well(volume, tmp_path / "b.hdf5")
    with pytest.raises(ValueError, match=r"b\.hdf5: expected 2 axes, as .*a\.hdf5 has, found 3; take the statistics"):
        collect_statistics(build_manifest(tmp_path))
