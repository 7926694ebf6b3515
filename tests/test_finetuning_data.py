"""Simulations of every format give the same windows, and the parts for training and validation share no frame."""

import dataclasses
import functools

import h5py
import numpy as np
import pytest
import torch
import yaml

from walrus_hf import Trajectory, WalrusProcessor, save_well
from walrus_hf.finetuning_data import check_fields, epoch_order, global_scales, has_split, open_data, split_windows

from .cli.conftest import simulation
from .data.wells import write_source

RUNS = [simulation(frames=9, seed=seed, grid=(16, 24)) for seed in range(3)]
WELL_SIZED = [{name: values.astype(np.float32) for name, values in run.fields.items()} for run in RUNS]


def as_well(folder):
    return save_well(RUNS, folder / "runs.hdf5")


def as_netcdf(folder):
    pytest.importorskip("xarray")
    pytest.importorskip("netCDF4")
    from walrus_hf import to_xarray

    for number, run in enumerate(RUNS):
        to_xarray(run).to_netcdf(folder / f"{number}.nc")
    return folder


@pytest.mark.parametrize("name", ["one.nc", "folder"])
def test_the_reader_of_the_extra_reads_netcdf_too(tmp_path, monkeypatch, name):
    """That is h5netcdf; where netCDF4 is installed, xarray would take it."""
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    from walrus_hf import to_xarray

    (tmp_path / "folder").mkdir()
    path = tmp_path / name
    to_xarray(RUNS[0]).to_netcdf(path / "0.nc" if path.is_dir() else path, engine="h5netcdf")
    monkeypatch.setattr(xarray, "open_dataset", functools.partial(xarray.open_dataset, engine="h5netcdf"))
    found = open_data(path).windows(3, 2, WalrusProcessor()).trajectory(0)
    for field, values in RUNS[0].fields.items():
        np.testing.assert_array_equal(found.fields[field], values)
    assert found.boundary_conditions == RUNS[0].boundary_conditions
    assert found.dt == RUNS[0].dt


def as_npy(folder):
    fields = {name: f"{name}.npy" for name in RUNS[0].fields}
    for name, file in fields.items():
        np.save(folder / file, np.stack([run.fields[name] for run in RUNS]))
    sides = {"x": "periodic", "y": ["wall", "open"]}
    text = yaml.safe_dump({"fields": fields, "axes": ["x", "y"], "boundary_conditions": sides, "dt": 0.5})
    (folder / "runs.yaml").write_text(text)
    return folder / "runs.yaml"


@pytest.mark.parametrize("write", [as_well, as_netcdf, as_npy], ids=["The Well", "netCDF", "npy and YAML"])
def test_every_format_gives_the_same_windows_and_trajectories(tmp_path, write):
    processor = WalrusProcessor()
    expected = open_data(RUNS).windows(3, 2, processor)
    found = open_data(write(tmp_path)).windows(3, 2, processor)
    np.testing.assert_array_equal(found.rows, expected.rows)
    assert len(found.rows) == 3 * (9 - 6)
    for numbers in ([0, 8], [4]):
        inputs, others = found.read(numbers), expected.read(numbers)
        assert set(inputs) == set(others)
        assert inputs["field_values"].shape == (len(numbers), 3, 4, 16, 24, 1)
        for name, tensor in inputs.items():
            torch.testing.assert_close(tensor, others[name], rtol=1e-6, atol=1e-6)
    for name, values in WELL_SIZED[2].items():
        np.testing.assert_allclose(found.trajectory(2).fields[name], values, rtol=1e-6)


@pytest.mark.parametrize("write", [as_well, as_netcdf, as_npy], ids=["The Well", "netCDF", "npy and YAML"])
def test_other_data_of_the_same_shape_have_another_identity(tmp_path, monkeypatch, write):
    for place in ("first", "again"):
        (tmp_path / place).mkdir()
    path = write(tmp_path / "first")
    found = open_data(path).identity()
    assert found == open_data(path).identity()
    monkeypatch.setitem(globals(), "RUNS", [*RUNS[:2], simulation(frames=9, seed=7, grid=(16, 24))])
    other = open_data(write(tmp_path / "again")).identity()
    assert other["parts"] != found["parts"]
    assert len(other["parts"]) == len(found["parts"])
    renamed = dataclasses.replace(open_data(path), name="others").identity()
    assert renamed != found


def test_a_window_holds_the_frames_of_its_stride_and_the_one_after_them():
    run = Trajectory({"pressure": np.arange(9.0)[:, None, None] * np.ones((16, 16))}, {"x": "open", "y": "open"})
    inputs = open_data(run).windows(3, 2, WalrusProcessor()).read([1])
    assert inputs["field_values"][0, :, 0, 0, 0, 0].tolist() == [1, 3, 5]
    assert inputs["labels"][0, :, 0, 0, 0, 0].tolist() == [3, 5, 7]


def test_whole_trajectories_are_held_out_where_there_are_several():
    windows = open_data(RUNS).windows(3, 1, WalrusProcessor())
    trained, held = split_windows(windows)
    assert set(windows.rows[trained, 0].tolist()) == {0, 1}
    assert set(windows.rows[held, 0].tolist()) == {2}
    assert len(trained) + len(held) == len(windows.rows)


def test_of_one_trajectory_the_end_is_held_out_and_no_frame_is_in_both_parts():
    windows = open_data(simulation(frames=30)).windows(3, 1, WalrusProcessor())
    trained, held = (windows.rows[numbers, 1] for numbers in split_windows(windows))
    assert trained.max() + windows.span < held.min()
    assert held.max() + windows.span == 29


def test_a_folder_with_a_validation_split_is_known_as_such(tmp_path):
    write_source(tmp_path / "both", 1, 1, 8)
    assert not has_split(str(tmp_path / "both"), "valid")
    write_source(tmp_path / "both", 1, 1, 8, first_seed=9, split="valid")
    assert has_split(str(tmp_path / "both"), "valid")
    assert not has_split(RUNS, "valid")


def test_every_window_comes_once_an_epoch_in_an_order_of_its_own():
    orders = [epoch_order(seed, epoch, 20) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert all(sorted(order.tolist()) == list(range(20)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 3
    assert epoch_order(0, 1, 20).tolist() == orders[1].tolist()


@pytest.mark.parametrize("inside", [1.0, 1000.0])
@pytest.mark.parametrize("log_fields", [[], ["pressure"]])
def test_global_scales_are_those_of_what_the_model_reads_with_zeros_inside_obstacles(inside, log_fields):
    mask = np.zeros((16, 24), dtype=bool)
    mask[4:8, 6:10] = True
    run = simulation(frames=9, grid=(16, 24))
    run.fields["pressure"] = np.exp(run.fields["pressure"])
    for values in run.fields.values():
        values[:, mask] = inside * np.arange(1, 10).reshape(-1, *[1] * (values.ndim - 2))
    run = dataclasses.replace(run, obstacle_mask=mask)
    processor = WalrusProcessor(log_fields=log_fields)
    windows = open_data(run).windows(3, 2, processor)
    found = global_scales(windows, np.arange(len(windows.rows)), 1e-8)
    read = processor(run)["field_values"][0, :, :, ..., 0].double().numpy()  # (T, pressure and 3 of velocity, H, W)
    expected = {"rms": read, "rms_delta": read[2:] - read[:-2]}
    for kind, values in expected.items():
        rms = np.sqrt((values**2).mean((0, 2, 3)))
        np.testing.assert_allclose([found[kind]["pressure"], *found[kind]["velocity"]], rms[:3], rtol=1e-5)


DAMAGE = {
    "no axes": (lambda s: s.pop("axes"), "expected fields, axes, boundary_conditions"),
    "a missing file": (lambda s: s["fields"].update(pressure="gone.npy"), "expected the array .*gone.npy"),
    "an unknown key": (lambda s: s.update(fps=3), "found .*'fps'"),
    "a list of constants": (
        lambda s: s.update(constant_fields=["height"]),
        r"expected under 'constant_fields' a file for each name, found \['height'\]",
    ),
    "no constants": (
        lambda s: s.update(constant_fields=None),
        "under 'constant_fields' a file for each name, found None",
    ),
    "too many masks": (
        lambda s: s.update(obstacle_mask="masks.npy"),
        "expected as many trajectories in each array along the first axis, found .*'obstacle_mask': 4",
    ),
    "too few axes": (lambda s: s.update(axes=["x"], boundary_conditions={"x": "open"}), "give a single trajectory as"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_description_that_does_not_fit_is_refused_with_its_name(tmp_path, damage):
    path = as_npy(tmp_path)
    settings = yaml.safe_load(path.read_text())
    spoil, message = DAMAGE[damage]
    np.save(tmp_path / "masks.npy", np.zeros((4, 16, 24), dtype=bool))
    spoil(settings)
    path.write_text(yaml.safe_dump(settings))
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        open_data(path)
    assert "runs.yaml" in str(error.value)


def test_a_lone_array_is_refused_with_the_file_that_describes_it(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((1, 5, 16, 24)))
    with pytest.raises(ValueError, match=r"x\.npy: expected a folder.*a YAML file beside it"):
        open_data(tmp_path / "x.npy")


def test_files_in_a_list_are_refused_with_the_place_for_them():
    with pytest.raises(ValueError, match=r"found 'a.hdf5' in a list; put several files into one folder"):
        open_data(["a.hdf5", "b.hdf5"])


def test_masks_in_files_are_yes_or_no_as_those_of_trajectories_are(tmp_path):
    path = save_well(dataclasses.replace(RUNS[0], obstacle_mask=np.eye(16, 24, dtype=bool)), tmp_path / "run.hdf5")
    windows = open_data(path).windows(3, 1, WalrusProcessor())
    np.testing.assert_array_equal(windows.trajectory(0).obstacle_mask, np.eye(16, 24) == 1)
    with h5py.File(path, "r+") as file:  # distances, which are 0 nowhere
        file["t0_fields/obstacle_mask"][...] = 2
    windows = open_data(path).windows(3, 1, WalrusProcessor())
    for read in (lambda: windows.trajectory(0), lambda: windows.read([0])):
        with pytest.raises(ValueError, match=r"obstacle_mask: expected True or 1 inside .* distance < 0"):
            read()


@pytest.mark.parametrize(
    ("field", "components", "message"),
    [
        ("velocity", (), "run: field 'velocity': expected a vector or tensor.* found a scalar: stack its components"),
        ("pressure", (2,), "run: field 'pressure': expected a scalar .* found a vector"),
        ("velocity_x", (), "run: field 'velocity': its component 'y' is missing"),
    ],
)
def test_a_known_field_of_another_rank_is_not_called_unknown(field, components, message):
    template = Trajectory({field: np.ones((4, 16, 8, *components))}, {"x": "wall", "y": "open"})
    with pytest.raises(ValueError, match=message):
        check_fields(WalrusProcessor(), template, "run")


def test_trajectories_of_different_kinds_are_refused():
    with pytest.raises(
        ValueError, match="trajectory 1: expected the fields, axes, grid and boundaries of trajectory 0"
    ):
        open_data([RUNS[0], simulation(frames=9, grid=(16, 16))])
    masked = dataclasses.replace(RUNS[0], obstacle_mask=np.zeros(RUNS[0].grid, dtype=bool))
    with pytest.raises(ValueError, match="found another choice of an obstacle mask or none: a mask beside none"):
        open_data([RUNS[0], masked])
    flat = dataclasses.replace(RUNS[0], fields={**RUNS[0].fields, "velocity": RUNS[0].fields["velocity"][..., 0]})
    with pytest.raises(
        ValueError, match=r"another choice of fields and ranks: .*'velocity': 0.* beside .*'velocity': 1"
    ):
        open_data([RUNS[0], flat])
