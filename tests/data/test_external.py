"""Converters against small files in the layouts that the data sets' cards and loaders describe."""

import json
import os
import tracemalloc

import h5py
import numpy as np
import pytest

from walrus_hf.data import external
from walrus_hf.data.external import (
    CONVERTERS,
    convert_bubbleml,
    convert_pdearena,
    convert_pdebench,
    convert_pdegym,
)
from walrus_hf.data.scenarios import SCENARIOS
from walrus_hf.data.well import load_well, well_info
from walrus_hf.fields import PUBLISHED_FIELDS
from walrus_hf.processing_walrus import WalrusProcessor

N, T, GRID = 3, 4, (5, 6, 7)


def random(shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def write(path, **arrays):
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name.replace("__", "/")] = values
    return path


def pdebench(folder, d=3, kind="periodic"):
    shape = (N, T, *GRID[:d])
    arrays = {"density": random(shape, 1), "pressure": random(shape, 2)}
    arrays |= {f"V{axis}": random(shape, 3 + i) for i, axis in enumerate("xyz"[:d])}
    arrays |= {f"{axis}-coordinate": np.linspace(0.1, 0.9, n) for axis, n in zip("xyz"[:d], GRID)}
    arrays["t-coordinate"] = 0.05 * np.arange(T + 1)  # one more than there are frames, as published
    return write(folder / f"{d}D_CFD_Turb_M1.0_Eta1e-08_Zeta1e-08_{kind}_Train.hdf5", **arrays), arrays


def pdearena(folder, split="train"):
    shape = (N, T, *GRID[:2])
    arrays = {
        "u": random(shape, 1, np.float64), "vx": random(shape, 2, np.float64), "vy": random(shape, 3, np.float64),
        "dt": np.full(N, 1.5), "buo_y": np.full(N, 0.3), "t": np.tile(np.linspace(18, 102, T), (N, 1)),
    }  # fmt: skip
    return write(
        folder / f"NavierStokes2D_{split}_42_0.30000_3.h5", **{f"{split}__{k}": v for k, v in arrays.items()}
    ), arrays


def pdegym(folder):
    arrays = {"solution": random((N, T, 5, *GRID[:2]), 1)}
    return write(folder / "solution_0.nc", **arrays), arrays


def bubbleml(folder):
    shape = (T, *GRID[:2])  # time, y, x
    arrays = {name: random(shape, i) for i, name in enumerate(("dfun", "temperature", "velx", "vely", "pressure"))}
    arrays |= {"x_centers": np.linspace(-2.5, 2.5, GRID[1]), "y_centers": np.linspace(0.5, 4.5, GRID[0])}
    (folder / "Twall_100.json").write_text(json.dumps({"t_final": 6.0, "heater": {"wallTemp": 100}}))
    return write(folder / "Twall_100.hdf5", **arrays), arrays


MAKERS = {"pdebench": pdebench, "pdearena": pdearena, "pdegym": pdegym, "bubbleml": bubbleml}


# What comes out


@pytest.mark.parametrize("d", [1, 2, 3])
def test_pdebench_comes_back_as_it_was(tmp_path, d):
    source, arrays = pdebench(tmp_path, d)
    (path,) = convert_pdebench(source, tmp_path / "out")
    for number in range(N):
        trajectory = load_well(path, number)
        np.testing.assert_array_equal(trajectory.fields["density"], arrays["density"][number])
        np.testing.assert_array_equal(trajectory.fields["pressure"], arrays["pressure"][number])
        for i, axis in enumerate("xyz"[:d]):
            np.testing.assert_array_equal(trajectory.fields["velocity"][..., i], arrays[f"V{axis}"][number])
            np.testing.assert_array_equal(trajectory.coordinates[axis], arrays[f"{axis}-coordinate"])
        assert trajectory.dt == pytest.approx(0.05)
        assert set(trajectory.boundary_ids()) == {(2, 2)}


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_pdearena_comes_back_as_it_was(tmp_path, split):
    source, arrays = pdearena(tmp_path, split)
    (path,) = convert_pdearena(source, tmp_path / "out")
    for number in range(N):
        trajectory = load_well(path, number)
        np.testing.assert_array_equal(trajectory.fields["smoke"], arrays["u"][number].astype(np.float32))
        expected = np.stack([arrays["vx"][number], arrays["vy"][number]], axis=-1).astype(np.float32)
        np.testing.assert_array_equal(trajectory.fields["velocity"], expected)
        assert (trajectory.dt, trajectory.boundary_ids()) == (1.5, ((0, 0), (0, 0)))


def test_pdegym_comes_back_as_it_was_without_the_tracer(tmp_path):
    source, arrays = pdegym(tmp_path)
    (path,) = convert_pdegym(source, tmp_path / "out")
    for number in range(N):
        trajectory, expected = load_well(path, number), arrays["solution"][number]
        np.testing.assert_array_equal(trajectory.fields["density"], expected[:, 0])
        np.testing.assert_array_equal(trajectory.fields["pressure"], expected[:, 3])
        np.testing.assert_array_equal(trajectory.fields["velocity"], np.moveaxis(expected[:, 1:3], 1, -1))
        assert list(trajectory.fields) == ["density", "pressure", "velocity"]
        assert trajectory.dt == pytest.approx(0.1)
        np.testing.assert_allclose(trajectory.coordinates["x"][[0, -1]], [0.1, 0.9])


def test_bubbleml_is_turned_to_x_before_y(tmp_path):
    source, arrays = bubbleml(tmp_path)
    (path,) = convert_bubbleml(source, tmp_path / "out")
    trajectory = load_well(path)
    assert trajectory.grid == (GRID[1], GRID[0])
    for name, own in (("gas-interface-sdf", "dfun"), ("temperature", "temperature")):
        np.testing.assert_array_equal(trajectory.fields[name], arrays[own].swapaxes(1, 2))
    for i, own in enumerate(("velx", "vely")):
        np.testing.assert_array_equal(trajectory.fields["velocity"][..., i], arrays[own].swapaxes(1, 2))
    np.testing.assert_array_equal(trajectory.coordinates["x"], arrays["x_centers"])
    np.testing.assert_array_equal(trajectory.coordinates["y"], arrays["y_centers"])
    assert trajectory.dt == pytest.approx(6.0 / (T - 1))
    assert trajectory.boundary_ids() == ((0, 0), (0, 1))


@pytest.mark.parametrize("name", CONVERTERS)
def test_a_converted_file_is_what_its_scenario_says(tmp_path, name):
    source, _ = MAKERS[name](tmp_path)
    info = well_info(CONVERTERS[name](source, tmp_path / "out")[0])
    scenario = next(s for s in SCENARIOS.values() if s.format == name)
    assert info.fields == dict(scenario.fields)
    assert (info.constant_fields, info.axes) == ({}, scenario.axes)
    assert scenario.name.startswith(info.dataset_name)
    trajectory = load_well(tmp_path / "out" / f"{source.stem}_00000.hdf5")
    assert info.boundary_conditions == trajectory.boundary_conditions
    sides = {
        axis: kind if isinstance(kind, tuple) else (kind, kind) for axis, kind in scenario.boundary_conditions.items()
    }
    assert {axis: tuple(side.name.lower() for side in pair) for axis, pair in info.boundary_conditions.items()} == sides
    known = (*PUBLISHED_FIELDS, *scenario.added_fields)
    processor = WalrusProcessor({field: i for i, field in enumerate(known)}, **scenario.processor_settings())
    assert processor(trajectory)["field_values"].isfinite().all()


# How it is written


@pytest.mark.parametrize("name", ["pdebench", "pdearena", "pdegym"])
def test_few_trajectories_a_file_under_one_name(tmp_path, name, monkeypatch):
    source, _ = MAKERS[name](tmp_path)
    whole = load_well(CONVERTERS[name](source, tmp_path / "whole")[0], 2)
    monkeypatch.setattr(external, "FILE_BYTES", 2 * 4 * sum(values.size for values in whole.fields.values()))
    paths = CONVERTERS[name](source, tmp_path / "parts")
    assert [path.name for path in paths] == [f"{source.stem}_00000.hdf5", f"{source.stem}_00002.hdf5"]
    assert [well_info(path).trajectories for path in paths] == [2, 1]
    assert len({well_info(path).dataset_name for path in paths}) == 1
    last = load_well(paths[1])
    assert last.name == whole.name
    for field, values in whole.fields.items():
        np.testing.assert_array_equal(last.fields[field], values)


@pytest.mark.parametrize("name", CONVERTERS)
def test_large_trajectories_lie_on_disk_not_in_memory(tmp_path, name, monkeypatch):
    monkeypatch.setattr(external, "SLAB_BYTES", 2**14)
    small, _ = MAKERS[name](tmp_path)
    expected = load_well(CONVERTERS[name](small, tmp_path / "small")[0])
    with h5py.File(small, "a") as file:
        large: list[str] = []
        file.visititems(lambda path, item: large.append(path) if getattr(item, "ndim", 0) > 2 else None)
        for path in large:  # the same frames again and again, 60 times
            values = file[path][()]
            del file[path]
            axis = 0 if name == "bubbleml" else 1
            file[path] = np.concatenate([values] * 60, axis=axis)
        if name == "pdebench":
            del file["t-coordinate"]
            file["t-coordinate"] = np.arange(60.0 * T)
    source = small.rename(tmp_path / f"long_{small.name}")
    if name == "bubbleml":
        (tmp_path / "Twall_100.json").rename(source.with_suffix(".json"))
    monkeypatch.setattr(external, "FILE_BYTES", 1)
    CONVERTERS[name](source, tmp_path / "warm")  # what is allocated once
    tracemalloc.start()
    paths = CONVERTERS[name](source, tmp_path / "large")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < os.path.getsize(paths[0]) / 2
    trajectory = load_well(paths[0])
    assert trajectory.num_frames == 60 * T
    for field, values in expected.fields.items():
        np.testing.assert_array_equal(trajectory.fields[field], np.concatenate([values] * 60))
    assert sorted(path.name for path in (tmp_path / "large").iterdir()) == sorted(path.name for path in paths)


@pytest.mark.parametrize("name", CONVERTERS)
def test_nothing_is_overwritten(tmp_path, name):
    source, _ = MAKERS[name](tmp_path)
    (path,) = CONVERTERS[name](source, tmp_path / "out")
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=r"expected no file, found one; remove it"):
        CONVERTERS[name](source, tmp_path / "out")
    assert path.read_bytes() == before


def test_a_kind_of_boundary_comes_from_the_name_or_the_call(tmp_path):
    source, _ = pdebench(tmp_path, 2, "trans")
    assert load_well(convert_pdebench(source, tmp_path / "a")[0]).boundary_ids() == ((1, 1), (1, 1))
    other = source.rename(tmp_path / "mine.hdf5")
    with pytest.raises(ValueError, match=r"expected 'periodic' or 'trans' in the name.*pass boundary_conditions"):
        convert_pdebench(other, tmp_path / "b")
    sides = {"x": "wall", "y": ("wall", "open")}
    (path,) = convert_pdebench(other, tmp_path / "b", boundary_conditions=sides)
    assert load_well(path).boundary_ids() == ((0, 0), (0, 1))


# What is refused


@pytest.mark.parametrize(
    ("name", "dataset"),
    [
        ("pdebench", "density"), ("pdebench", "Vz"), ("pdebench", "t-coordinate"), ("pdebench", "y-coordinate"),
        ("pdearena", "train/u"), ("pdearena", "train/vy"), ("pdearena", "train/dt"), ("pdegym", "solution"),
        ("bubbleml", "dfun"), ("bubbleml", "velx"), ("bubbleml", "x_centers"),
    ],
)  # fmt: skip
def test_a_missing_data_set_or_a_wrong_shape_is_named(tmp_path, name, dataset):
    source, _ = MAKERS[name](tmp_path)
    with h5py.File(source, "a") as file:
        values = file[dataset][()]
        del file[dataset]
    key = dataset.rpartition("/")[2]
    with pytest.raises(ValueError, match=f"{source.name}: {key}: expected a data set, found none among"):
        CONVERTERS[name](source, tmp_path / "out")
    with h5py.File(source, "a") as file:
        file[dataset] = np.stack([values, values, values], axis=-1)
    with pytest.raises(ValueError, match=f"{source.name}: .*: expected (shape|3 times|4 times|a short list)"):
        CONVERTERS[name](source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_several_splits_in_one_file_are_refused(tmp_path):
    source, _ = pdearena(tmp_path)
    with h5py.File(source, "a") as file:
        file.create_group("valid")
    with pytest.raises(ValueError, match="expected one group train, valid or test"):
        convert_pdearena(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "expected a number t_final"), ('{"t_final": null}', "expected a number t_final"),
     ('{"end": 3}', "expected a number t_final"), ('{"t_final": 0}', "expected t_final > 0"),
     ('{"t_final": NaN}', "expected t_final > 0")],
)  # fmt: skip
def test_a_simulation_without_its_end_time_is_refused(tmp_path, content, message):
    source, _ = bubbleml(tmp_path)
    source.with_suffix(".json").write_text(content)
    with pytest.raises(ValueError, match=message):
        convert_bubbleml(source, tmp_path / "out")
    source.with_suffix(".json").unlink()
    with pytest.raises(FileNotFoundError, match=r"Twall_100.json: expected the simulation's .json"):
        convert_bubbleml(source, tmp_path / "out")


@pytest.mark.parametrize("name", CONVERTERS)
def test_what_is_no_hdf5_file_is_refused(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="expected a local HDF5 file, found none; download it first"):
        CONVERTERS[name](tmp_path / "none.h5", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="download it first"):
        CONVERTERS[name]("hf://datasets/a/b/c.h5", tmp_path / "out")
    (tmp_path / "a.h5").write_bytes(b"CDF\x01" + bytes(2000))
    with pytest.raises(ValueError, match="expected an HDF5 file, found another kind"):
        CONVERTERS[name](tmp_path / "a.h5", tmp_path / "out")


@pytest.mark.parametrize("name", CONVERTERS)
def test_a_truncated_file_is_refused(tmp_path, name):
    source, _ = MAKERS[name](tmp_path)
    content = source.read_bytes()
    source.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"{source.name}: expected a whole HDF5 file"):
        CONVERTERS[name](source, tmp_path / "out")


@pytest.mark.parametrize("name", CONVERTERS)
def test_a_file_that_leads_to_others_is_refused(tmp_path, name):
    source, _ = MAKERS[name](tmp_path)
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["u"] = random((N, T))
    with h5py.File(source, "a") as file:
        file["more"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "u")
    with pytest.raises(ValueError, match="found a link into"):
        CONVERTERS[name](source, tmp_path / "out")


def test_numbers_that_float32_cannot_hold_are_refused(tmp_path):
    source, _ = pdearena(tmp_path)
    with h5py.File(source, "a") as file:
        file["train/vy"][1, 2, 3, 4] = 1e300
    with pytest.raises(ValueError, match="trajectory 1: expected numbers that float32 can hold"):
        convert_pdearena(source, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
