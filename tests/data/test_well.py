"""The Well's files: against The Well's own reader, and what a round trip keeps."""

import dataclasses
import io
import subprocess
import sys
import warnings

import h5py
import numpy as np
import pytest

from walrus_hf.data import well, well_opening
from walrus_hf.data.well import load_well, well_info
from walrus_hf.data.well_writer import save_well
from walrus_hf.fields import BoundaryCondition, Trajectory

GRIDS = [(7,), (6, 9), (3, 5, 4)]
FRAMES = 5


def make(grid=(6, 9), seed=0, boundaries=None, **kwargs):
    """A trajectory with a scalar, a vector and a tensor field, and constants of rank 0 and 1."""
    rng = np.random.default_rng(seed)
    d = len(grid)
    axes = ("x", "y", "z")[:d]

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    given = {
        "fields": {
            "C": draw(FRAMES, *grid, d, d),
            "pressure": draw(FRAMES, *grid),
            "velocity": draw(FRAMES, *grid, d),
            "density": draw(FRAMES, *grid),
        },
        "constant_fields": {"force": draw(*grid, d), "viscosity": draw(*grid)},
        "boundary_conditions": boundaries or dict.fromkeys(axes, "periodic"),
        "axes": axes,
        "dt": 0.1,
        "time": 0.7,
        "name": f"flow_{seed}",
    }
    return Trajectory(**{**given, **kwargs})


def assert_equal(found, expected):
    assert found.axes == expected.axes
    assert found.grid == expected.grid
    assert found.boundary_conditions == expected.boundary_conditions
    assert (found.name, found.grid_type) == (expected.name, expected.grid_type)
    assert (found.time, found.dt) == pytest.approx((expected.time, expected.dt), rel=1e-12)
    for part in ("fields", "constant_fields", "coordinates", "ensemble"):
        ours, theirs = getattr(found, part) or {}, getattr(expected, part) or {}
        assert set(ours) == set(theirs), part
        for name, values in theirs.items():
            np.testing.assert_array_equal(ours[name], values, err_msg=f"{part} {name}")
    assert (found.obstacle_mask is None) == (expected.obstacle_mask is None)
    if expected.obstacle_mask is not None:
        np.testing.assert_array_equal(found.obstacle_mask, expected.obstacle_mask)


def well_dataset(folder, **kwargs):
    data = pytest.importorskip("the_well.data")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return data.WellDataset(path=str(folder), n_steps_input=2, n_steps_output=3, **kwargs)


def channels(arrays, leading):
    """Scalars, vectors and tensors side by side, as The Well stacks them: by rank, then in the given order."""
    by_rank = sorted(arrays.values(), key=np.ndim)
    return np.concatenate([values.reshape(*values.shape[:leading], -1) for values in by_rank], axis=-1)


def write_by_hand(path, grid=(4, 6), trajectories=2, frames=3, fields=None, boundaries=None, time=None):
    """A file of The Well, written without our writer.

    `fields`: name -> (group, array, dim_varying, sample_varying, time_varying); `boundaries`: name -> (bc_type, dims,
    mask, sample_varying).
    """
    with h5py.File(path, "w") as file:
        file.attrs.update({"dataset_name": "by_hand", "grid_type": "cartesian", "n_spatial_dims": len(grid)})
        file.attrs["n_trajectories"] = trajectories
        dimensions = file.create_group("dimensions")
        dimensions.attrs["spatial_dims"] = list("xyz"[: len(grid)])
        dimensions["time"] = np.arange(frames, dtype=np.float32) if time is None else time
        dimensions["time"].attrs["sample_varying"] = dimensions["time"].ndim == 2
        for axis, n in zip("xyz", grid):
            dimensions[axis] = np.linspace(0, 1, n, dtype=np.float32)
            dimensions[axis].attrs.update({"sample_varying": False, "time_varying": False})
        file.create_group("scalars").attrs["field_names"] = ["Re"]
        file["scalars/Re"] = np.float32(100)
        file["scalars/Re"].attrs.update({"sample_varying": False, "time_varying": False})
        for name, (kind, dims, mask, per_sample) in (boundaries or {}).items():
            group = file.create_group(f"boundary_conditions/{name}")
            group.attrs.update({"associated_dims": dims, "associated_fields": ["u"], "bc_type": kind})
            group.attrs.update({"sample_varying": per_sample, "time_varying": False})
            group["mask"] = mask
        file.require_group("boundary_conditions")
        if fields is None:
            values = np.arange(trajectories * frames * np.prod(grid), dtype=np.float32)
            fields = {"u": ("t0_fields", values.reshape(trajectories, frames, *grid), [True] * len(grid), True, True)}
        for group in well.FIELD_GROUPS:
            names = [name for name, field in fields.items() if field[0] == group]
            file.create_group(group).attrs["field_names"] = np.array(names, dtype=h5py.string_dtype())
        for name, (group, values, dim_varying, sample_varying, time_varying) in fields.items():
            file[group][name] = values
            file[group][name].attrs.update(
                {"dim_varying": dim_varying, "sample_varying": sample_varying, "time_varying": time_varying}
            )
    return path


# The Well's own reader


@pytest.mark.parametrize("grid", GRIDS)
def test_the_well_reads_back_what_we_write(tmp_path, grid):
    batch = [make(grid, seed) for seed in range(3)]
    save_well(batch, tmp_path / "flow.hdf5")
    dataset = well_dataset(tmp_path)
    assert dataset.metadata.n_trajectories_per_file == [3]
    assert dataset.metadata.spatial_resolution == grid
    assert dataset.metadata.dataset_name == "flow"
    assert len(dataset) == 3 * (FRAMES - 4)
    for trajectory, sample in zip(batch, (dataset[i] for i in range(3))):
        frames = np.concatenate([sample["input_fields"], sample["output_fields"]])
        np.testing.assert_array_equal(frames, channels(trajectory.fields, leading=1 + len(grid)))
        constants = channels(trajectory.constant_fields, leading=len(grid))
        np.testing.assert_array_equal(sample["constant_fields"], constants)
        np.testing.assert_array_equal(sample["boundary_conditions"], trajectory.boundary_ids())
        np.testing.assert_allclose(sample["output_time_grid"], [0.2, 0.3, 0.4])


@pytest.mark.parametrize(
    "sides",
    [("wall", "wall"), ("open", "open"), ("periodic", "periodic"), ("wall", "open"), ("open", "wall")],
)
def test_each_boundary_kind_is_the_same_for_us_and_for_the_well(tmp_path, sides):
    boundaries = {"x": "wall", "y": sides, "z": "open"}
    trajectory = make((3, 5, 4), boundaries=boundaries)
    save_well(trajectory, tmp_path / "flow.hdf5")
    expected = [(0, 0), tuple(BoundaryCondition.parse(side) for side in sides), (1, 1)]
    assert load_well(tmp_path / "flow.hdf5").boundary_ids() == tuple(expected)
    np.testing.assert_array_equal(well_dataset(tmp_path)[0]["boundary_conditions"], expected)


@pytest.mark.parametrize(
    ("kind", "covered", "expected"),
    [
        ("wall", "all", ((0, 0), (0, 0))),
        ("Wall", "part", ((1, 1), (1, 1))),  # part of a side is no wall
        ("PERIODIC", "part", ((2, 2), (2, 2))),
        ("OPEN", "none", ((1, 1), (1, 1))),
        ("WALL", "low x", ((0, 1), (1, 1))),
    ],
)
def test_masks_over_several_axes_are_read_as_the_well_reads_them(tmp_path, kind, covered, expected):
    mask = np.zeros((4, 6), dtype=bool)
    if covered == "low x":
        mask[0] = True
    elif covered != "none":
        mask[[0, -1]] = mask[:, [0, -1]] = True
        if covered == "part":
            mask[0, 2] = mask[-1, 2] = mask[2, 0] = mask[2, -1] = False
    path = write_by_hand(tmp_path / "a.hdf5", frames=5, boundaries={"edge": (kind, ["x", "y"], mask, False)})
    assert load_well(path).boundary_ids() == expected
    with pytest.warns(RuntimeWarning, match="axis-aligned"):
        theirs = well_dataset(tmp_path).__getitem__(0)["boundary_conditions"]
    np.testing.assert_array_equal(theirs, expected)


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
@pytest.mark.parametrize("other", ["open", "periodic"])
def test_a_mask_over_a_whole_side_wins_over_one_that_shares_its_corners_whatever_their_names(tmp_path, names, other):
    along_y, along_x = np.zeros((4, 6), dtype=bool), np.zeros((4, 6), dtype=bool)
    along_y[:, [0, -1]] = along_x[[0, -1]] = True
    masks = {names[0]: ("wall", ["x", "y"], along_y, False), names[1]: (other, ["x", "y"], along_x, False)}
    path = write_by_hand(tmp_path / "a.hdf5", frames=5, boundaries=masks)
    kind = {"open": 1, "periodic": 2}[other]
    assert load_well(path).boundary_ids() == ((kind, kind), (0, 0))


def test_a_side_without_a_mask_is_open(tmp_path):
    mask = np.array([True, False, False, False])
    path = write_by_hand(tmp_path / "a.hdf5", frames=5, boundaries={"low": ("WALL", ["x"], mask, False)})
    assert load_well(path).boundary_ids() == ((0, 1), (1, 1))
    np.testing.assert_array_equal(well_dataset(tmp_path)[0]["boundary_conditions"], [(0, 1), (1, 1)])


def test_a_mask_for_each_trajectory_gives_each_its_boundaries(tmp_path):
    mask = np.array([[True, False, False, False], [False, False, False, True]])
    path = write_by_hand(tmp_path / "a.hdf5", boundaries={"wall": ("WALL", ["x"], mask, True)})
    assert load_well(path, trajectory=0).boundary_ids() == ((0, 1), (1, 1))
    assert load_well(path, trajectory=1).boundary_ids() == ((1, 0), (1, 1))


def test_fields_that_do_not_vary_along_an_axis_are_filled_up_as_the_well_does(tmp_path):
    rng = np.random.default_rng(0)
    row = rng.normal(size=(2, 5, 1, 6)).astype(np.float32)
    vector = rng.normal(size=(5, 4, 1, 2)).astype(np.float32)
    number = rng.normal(size=(2, 1, 1)).astype(np.float32)
    path = write_by_hand(
        tmp_path / "a.hdf5",
        frames=5,
        fields={
            "row": ("t0_fields", row, [False, True], True, True),
            "number": ("t0_fields", number, [False, False], True, False),
            "vector": ("t1_fields", vector, [True, False], False, True),
        },
    )
    dataset = well_dataset(tmp_path)
    for i in range(2):
        ours, theirs = load_well(path, trajectory=i), dataset[i]
        frames = np.concatenate([theirs["input_fields"], theirs["output_fields"]])
        np.testing.assert_array_equal(channels(ours.fields, leading=3), frames)
        np.testing.assert_array_equal(ours.constant_fields["number"], theirs["constant_fields"][..., 0])
        assert ours.fields["row"].flags.writeable


def test_axes_along_which_a_field_does_not_vary_may_be_left_out(tmp_path):
    row = np.random.default_rng(0).normal(size=(2, 3, 6)).astype(np.float32)
    kept = {"u": ("t0_fields", row[:, :, None], [False, True], True, True)}
    left_out = {"u": ("t0_fields", row, [False, True], True, True)}
    first = load_well(write_by_hand(tmp_path / "a.hdf5", fields=kept), trajectory=1)
    second = load_well(write_by_hand(tmp_path / "b.hdf5", fields=left_out), trajectory=1)
    np.testing.assert_array_equal(first.fields["u"], np.broadcast_to(row[1][:, None], (3, 4, 6)))
    np.testing.assert_array_equal(first.fields["u"], second.fields["u"])


# Round trips


@pytest.mark.parametrize("grid", GRIDS)
def test_a_round_trip_keeps_the_trajectory(tmp_path, grid):
    rng = np.random.default_rng(1)
    trajectory = make(
        grid,
        obstacle_mask=rng.random(grid) > 0.5,
        coordinates={"x": np.linspace(0.1, 1, grid[0])},
        grid_type="spherical",
        ensemble={"velocity": rng.normal(size=(2, FRAMES, *grid, len(grid))).astype(np.float32)},
    )
    assert save_well(trajectory, tmp_path / "a.hdf5") == tmp_path / "a.hdf5"
    assert_equal(load_well(tmp_path / "a.hdf5"), trajectory)


def test_several_trajectories_keep_their_own_values_names_times_and_masks(tmp_path):
    rng = np.random.default_rng(1)
    batch = [
        make(
            seed=seed,
            time=float(seed),
            dt=0.1 * (seed + 1),
            name=[None, "second", "third_2"][seed],
            obstacle_mask=rng.random((6, 9)) > 0.5,
            coordinates={"y": np.linspace(seed, 5, 9)},
            ensemble={"pressure": rng.normal(size=(3, FRAMES, 6, 9)).astype(np.float32)},
        )
        for seed in range(3)
    ]
    save_well(batch, tmp_path / "a.hdf5")
    for number, trajectory in enumerate(batch):
        assert_equal(load_well(tmp_path / "a.hdf5", number), trajectory)


@pytest.mark.parametrize(
    ("positions", "uneven"),
    [
        (np.linspace(-1, 3, 9), False),
        (1e4 + np.linspace(0, 1, 9, dtype=np.float32) * np.float32(0.5), False),  # widths are rounded to 1 in 64
        (1.02 ** np.arange(9), True),
        (-np.cos(np.pi * np.arange(9) / 8), True),
    ],
)
@pytest.mark.parametrize("grid_type", ["cartesian", "spherical"])
def test_cells_that_differ_in_size_are_warned_of_once_a_file(tmp_path, positions, uneven, grid_type):
    batch = [make(seed=seed, coordinates={"y": positions}, grid_type=grid_type) for seed in range(2)]
    path = save_well(batch, tmp_path / "a.hdf5")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for number in range(2):
            load_well(path, number)
    found = [str(warning.message) for warning in caught]
    assert len(found) == (1 if uneven and grid_type == "cartesian" else 0)
    assert all(text.startswith(f"{path}: expected cells of one width along 'y', found ") for text in found)


def test_an_axis_that_runs_backwards_is_warned_of(tmp_path):
    save_well(make(coordinates={"y": np.linspace(3, -1, 9)}), tmp_path / "a.hdf5")
    with pytest.warns(UserWarning, match="expected coordinates along 'y' that grow from cell to cell.* turn the axis"):
        load_well(tmp_path / "a.hdf5")
    save_well(make(coordinates={"y": np.linspace(3, -1, 9)}, grid_type="spherical"), tmp_path / "b.hdf5")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_well(tmp_path / "b.hdf5")


def test_other_readers_pass_over_members_and_obstacles_are_a_constant_for_them(tmp_path):
    trajectory = make(obstacle_mask=np.eye(6, 9) > 0, constant_fields={})
    trajectory.ensemble = {"pressure": np.ones((2, FRAMES, 6, 9), dtype=np.float32)}
    save_well(trajectory, tmp_path / "a.hdf5")
    sample = well_dataset(tmp_path)[0]
    np.testing.assert_array_equal(sample["constant_fields"][..., 0], trajectory.obstacle_mask)
    assert sample["input_fields"].shape == (2, 6, 9, 2 + 2 + 4)


def test_an_obstacle_mask_of_other_numbers_is_refused(tmp_path):
    path = save_well(make(obstacle_mask=np.eye(6, 9) > 0), tmp_path / "a.hdf5")
    with h5py.File(path, "r+") as file:
        file["t0_fields/obstacle_mask"][...] = 2
    with pytest.raises(ValueError, match="obstacle_mask: expected True or 1 inside obstacles"):
        load_well(path)


@pytest.mark.parametrize(("start", "frames"), [(0, None), (2, None), (1, 3), (4, 1)])
def test_a_stretch_is_the_same_as_a_cut_of_the_whole(tmp_path, start, frames):
    trajectory = make(ensemble={"pressure": np.random.default_rng(0).normal(size=(2, FRAMES, 6, 9)).astype("f4")})
    save_well([make(seed=1, ensemble=trajectory.ensemble), trajectory], tmp_path / "a.hdf5")
    stretch = load_well(tmp_path / "a.hdf5", trajectory=1, start=start, frames=frames)
    assert_equal(stretch, trajectory.frames(start, None if frames is None else start + frames))


def test_only_the_frames_asked_for_are_read(tmp_path, monkeypatch):
    values = np.zeros((2, 200, 32, 64), dtype=np.float32)
    path = write_by_hand(
        tmp_path / "a.hdf5", (32, 64), frames=200, fields={"u": ("t0_fields", values, [True, True], True, True)}
    )
    read = []

    class Counting(io.FileIO):
        def readinto(self, buffer):
            read.append(len(buffer))
            return super().readinto(buffer)

    monkeypatch.setattr(well_opening, "_open_source", Counting)
    assert load_well(path, trajectory=1, start=7, frames=4).num_frames == 4
    asked = 4 * 32 * 64 * 4
    assert asked <= sum(read) < asked + 64 * 1024 < values.nbytes / 30


def test_urls_give_the_same_as_the_path(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    trajectory = make()
    path = save_well(trajectory, tmp_path / "a.hdf5")
    assert_equal(load_well(path.as_uri()), trajectory)
    with fsspec.open("memory://walrus_hf_test/a.hdf5", "wb") as file:
        file.write(path.read_bytes())
    assert_equal(load_well("memory://walrus_hf_test/a.hdf5"), trajectory)


def test_a_single_frame_keeps_its_step(tmp_path):
    trajectory = make().frames(2, 3)
    save_well(trajectory, tmp_path / "a.hdf5")
    assert_equal(load_well(tmp_path / "a.hdf5"), trajectory)


def test_single_frames_of_one_time_keep_steps_of_their_own(tmp_path):
    batch = [dataclasses.replace(make(seed=seed).frames(2, 3), dt=dt) for seed, dt in enumerate((0.1, 0.2))]
    assert batch[0].time == batch[1].time
    save_well(batch, tmp_path / "a.hdf5")
    for number, trajectory in enumerate(batch):
        assert_equal(load_well(tmp_path / "a.hdf5", number), trajectory)


def test_numbers_keep_their_type_but_not_a_foreign_byte_order(tmp_path):
    values = np.random.default_rng(0).normal(size=(2, 3, 4, 6))
    fields = {
        "double": ("t0_fields", values, [True, True], True, True),
        "swapped": ("t0_fields", values.astype(">f4"), [True, True], True, True),
        "whole": ("t0_fields", (10 * values).astype(np.int16), [True, True], True, True),
    }
    loaded = load_well(write_by_hand(tmp_path / "a.hdf5", fields=fields))
    assert {name: array.dtype for name, array in loaded.fields.items()} == {
        "double": np.dtype("=f8"),
        "swapped": np.dtype("=f4"),
        "whole": np.dtype("=i2"),
    }
    np.testing.assert_array_equal(loaded.fields["swapped"], values[0].astype("f4"))


def test_compressed_files_are_read(tmp_path):
    path = write_by_hand(tmp_path / "a.hdf5")
    expected = load_well(path, 1).fields["u"]
    with h5py.File(path, "a") as file:
        values, attributes = file["t0_fields/u"][()], dict(file["t0_fields/u"].attrs)
        del file["t0_fields/u"]
        file["t0_fields"].create_dataset("u", data=values, chunks=(1, 2, 3, 4), compression="gzip")
        file["t0_fields/u"].attrs.update(attributes)
    np.testing.assert_array_equal(load_well(path, 1).fields["u"], expected)


# Time


def test_each_trajectory_may_have_its_own_times(tmp_path):
    path = write_by_hand(tmp_path / "a.hdf5", time=np.array([[0, 1, 2], [5, 5.5, 6]], dtype=np.float32))
    assert (load_well(path, 0).time, load_well(path, 0).dt) == (0, 1)
    assert (load_well(path, 1, start=1).time, load_well(path, 1, start=1).dt) == (5.5, 0.5)


def test_unequal_steps_give_their_mean_and_one_warning(tmp_path):
    path = write_by_hand(tmp_path / "a.hdf5", time=np.array([0.0, 1.0, 3.0]))
    with pytest.warns(UserWarning, match="steps from 1 to 2") as caught:
        assert load_well(path).dt == 1.5
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_the_rounding_of_float32_times_is_no_unequal_step(tmp_path):
    times = (3000 + 0.0101 * np.arange(3)).astype(np.float32)
    assert np.ptp(np.diff(times)) > 1e-3 * 0.0101
    path = write_by_hand(tmp_path / "a.hdf5", time=times)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_well(path).dt == pytest.approx(0.0101, rel=0.05)


# well_info


def test_info_says_what_the_file_holds(tmp_path):
    boundaries = {"x": "periodic", "y": ("wall", "open")}
    save_well([make(seed=seed, boundaries=boundaries) for seed in range(2)], tmp_path / "a.hdf5")
    info = well_info(tmp_path / "a.hdf5")
    assert (info.dataset_name, info.trajectories, info.frames) == ("flow", 2, FRAMES)
    assert (info.axes, info.grid, info.grid_type) == (("x", "y"), (6, 9), "cartesian")
    assert info.fields == {"pressure": 0, "density": 0, "velocity": 1, "C": 2}
    assert info.constant_fields == {"viscosity": 0, "force": 1}
    assert info.boundary_conditions == make(boundaries=boundaries).boundary_conditions


# Writing


def test_an_existing_file_is_replaced_only_when_asked(tmp_path):
    path = save_well(make(seed=0), tmp_path / "a.hdf5")
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save_well(make(seed=1), path)
    assert path.read_bytes() == before
    save_well(make(seed=1), path, overwrite=True)
    assert_equal(load_well(path), make(seed=1))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("stage", ["data set", "attribute", "close", "move", "interrupt"])
def test_a_write_that_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, stage):
    path = save_well(make(seed=0), tmp_path / "a.hdf5")
    before, calls = path.read_bytes(), []

    def fail(error, after):
        def call(*args, **kwargs):
            calls.append(args)
            if len(calls) > after:
                raise error
            return original(*args, **kwargs)

        return call

    full = OSError(28, "Can't write data (file write failed:\n No space left on device)")
    expected: type[BaseException] = OSError
    if stage == "data set":
        original = h5py.Dataset.__setitem__
        monkeypatch.setattr(h5py.Dataset, "__setitem__", fail(full, after=3))
    elif stage == "attribute":
        original = h5py.AttributeManager.__setitem__
        monkeypatch.setattr(h5py.AttributeManager, "__setitem__", fail(full, after=10))
    elif stage == "close":
        original = h5py.File.close
        monkeypatch.setattr(h5py.File, "close", fail(RuntimeError("Can't decrement id ref count"), after=0))
    elif stage == "move":
        monkeypatch.setattr(well.os, "replace", fail(full, after=0))
    else:
        original, expected = h5py.Dataset.__setitem__, KeyboardInterrupt
        monkeypatch.setattr(h5py.Dataset, "__setitem__", fail(KeyboardInterrupt(), after=3))
    with pytest.raises(expected) as caught:
        save_well(make(seed=1), path, overwrite=True)
    monkeypatch.undo()
    assert calls
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    if expected is OSError:
        assert caught.value.errno in (28, 5)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="limits on file sizes are POSIX")
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    path = save_well(make(seed=0), tmp_path / "a.hdf5")
    before = path.read_bytes()
    script = f"""
import resource, signal
import numpy as np
from walrus_hf import fields
from walrus_hf.data.well_writer import save_well
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
trajectory = fields.Trajectory({{"u": np.ones((10, 100, 100))}}, {{"x": "wall", "y": "open"}})
try:
    save_well(trajectory, {str(path)!r}, overwrite=True)
except OSError as error:
    assert len(str(error).splitlines()) == 1, error
    print("refused")
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert ran.stdout == "refused\n", ran.stderr
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"axes": ("x", "z"), "boundaries": {"x": "wall", "z": "wall"}}, "axes"),
        ({"grid": (6, 8)}, "grid"),
        ({"boundaries": {"x": "periodic", "y": "open"}}, "boundary conditions"),
        ({"constant_fields": {}}, "constant fields"),
        ({"obstacle_mask": np.zeros((6, 9))}, "obstacle mask"),
        ({"grid_type": "spherical"}, "grid type"),
        ({"coordinates": {"x": np.arange(6)}}, "coordinates"),
        ({"ensemble": {"pressure": np.zeros((2, FRAMES, 6, 9))}}, "ensemble"),
    ],
)
def test_trajectories_that_differ_do_not_share_a_file(tmp_path, other, message):
    with pytest.raises(ValueError, match=f"trajectory 1: expected the .*{message}.* of the first trajectory"):
        save_well([make(), make(**other)], tmp_path / "a.hdf5")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("trajectories", "message"),
    [
        ([], "at least one trajectory"),
        (make(constant_fields={"obstacle_mask": np.zeros((6, 9))}), "obstacle_mask"),
        (make(constant_fields={"a/b": np.zeros((6, 9))}), "'a/b'.*without '/'"),
        (make(fields={"u": np.full((2, 6, 9), 1e300)}), "'u'.*float32"),
        (make(grid=(1, 9), boundaries={"x": ("wall", "open"), "y": "wall"}), "axis 'x'.*two kinds"),
        (make(dt=1e-9, time=1e9), "times that grow"),
        (make(axes=("time", "y"), boundaries={"time": "wall", "y": "wall"}), "axes of space"),
    ],
)
def test_trajectories_that_the_format_cannot_hold_are_refused(tmp_path, trajectories, message):
    with pytest.raises(ValueError, match=message) as caught:
        save_well(trajectories, tmp_path / "a.hdf5")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_members_that_were_set_later_are_checked_before_anything_is_written(tmp_path):
    trajectory = make()
    for members in ({"pressure": np.zeros((2, 3, 6, 9))}, {"vorticity": np.zeros((2, FRAMES, 6, 9))}):
        trajectory.ensemble = members
        with pytest.raises(ValueError, match=r"ensemble\['(pressure|vorticity)'\]: expected"):
            save_well(trajectory, tmp_path / "a.hdf5")
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written_are_refused(tmp_path):
    with pytest.raises(IsADirectoryError, match="expected the path of a file"):
        save_well(make(), tmp_path, overwrite=True)
    with pytest.raises(FileNotFoundError, match="existing folder"):
        save_well(make(), tmp_path / "missing" / "a.hdf5")
    with pytest.raises(ValueError, match="local path"):
        save_well(make(), "memory://a.hdf5")
    assert list(tmp_path.iterdir()) == []
