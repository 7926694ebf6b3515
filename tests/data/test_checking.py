"""Checks of a source: each kind of damage is one finding that names the file, and hides no other."""

import dataclasses
import os
import shutil

import fsspec
import h5py
import numpy as np
import pytest

from walrus_hf.data import checking, stretches
from walrus_hf.data import remote as transport
from walrus_hf.data.checking import Finding, check_source
from walrus_hf.data.scenarios import SCENARIOS, Scenario
from walrus_hf.data.source_files import build_manifest, open_source
from walrus_hf.data.well_writer import save_well

from .http_server import Fault, HubServer, RangeServer
from .wells import GRID, restore, trajectory, write_source

SIDES = {"x": "periodic", "y": ("wall", "open")}


@pytest.fixture
def folder(tmp_path):
    """Three splits, two files of two trajectories in each, and statistics."""
    for n, split in enumerate(("train", "valid", "test")):
        write_source(tmp_path / "flow", files=2, trajectories=2, frames=6, first_seed=10 * n, split=split)
    (tmp_path / "flow" / "stats.yaml").write_text("mean: {}\n")
    return tmp_path / "flow"


@pytest.fixture
def small(monkeypatch):
    """A scenario that the files of `folder` are of, as its facts say."""
    scenario = Scenario(
        "flow", "Flow", "nobody/flow", "pretraining", ("x", "y"), GRID, 6, 12, {"pressure": 0, "velocity": 1}, SIDES,
        "MIT", constant_fields={"speed_of_sound": 0},
    )  # fmt: skip
    monkeypatch.setitem(SCENARIOS, "flow", scenario)
    return scenario


@pytest.fixture
def facts(small, monkeypatch):
    """Changes what the scenario says."""

    def change(**changed):
        monkeypatch.setitem(SCENARIOS, "flow", dataclasses.replace(small, **changed))

    return change


def findings(source, *args, **kwargs):
    return check_source(source, *args, **kwargs)[0]


def only(source, *args, **kwargs):
    """The one finding."""
    (found,) = findings(source, *args, **kwargs)
    assert len(found.problem.splitlines()) == 1
    return found


def cut(path, size=9000):
    path.write_bytes(path.read_bytes()[:size])


def add(folder, name, *trajectories):
    return save_well(list(trajectories), folder / "data" / "train" / name)


# Files


def test_a_whole_source_has_no_findings(folder, small, monkeypatch):
    found, manifests = check_source(folder, read=True)
    assert found == []
    assert [len(manifest.files) for manifest in manifests] == [2, 2, 2]
    assert findings("flow", base_path=folder.parent, read=True) == []
    monkeypatch.chdir(folder.parent)
    assert findings("flow", base_path=".") == []
    assert findings(folder / "data" / "train" / "0.hdf5", read=True) == []
    assert findings(folder.as_uri()) == []


def test_damaged_files_do_not_hide_each_other_or_the_whole_ones(folder):
    cut(folder / "data" / "train" / "0.hdf5")
    (folder / "data" / "valid" / "1.hdf5").write_text("no HDF5")
    found, manifests = check_source(folder)
    assert [(f.file, f.severity) for f in found] == [
        (str(folder / "data" / "train" / "0.hdf5"), "error"),
        (str(folder / "data" / "valid" / "1.hdf5"), "error"),
    ]
    assert "truncated file" in found[0].problem
    assert all("expected a whole HDF5 file" in f.problem for f in found)
    assert not any(f.file in f.problem for f in found)
    assert [[entry.path for entry in m.files] for m in manifests] == [["1.hdf5"], ["0.hdf5"], ["0.hdf5", "1.hdf5"]]


def test_what_was_indexed_before_is_not_believed(folder):
    path = folder / "data" / "train" / "0.hdf5"
    build_manifest(path.parent)
    before = path.stat()
    path.write_bytes(b"12345678" + path.read_bytes()[8:])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert len(build_manifest(path.parent).files) == 2  # by the cache
    assert "expected a whole HDF5 file" in only(folder, "train").problem


def test_a_missing_or_empty_split_is_an_error_unless_another_one_is_asked_for(folder):
    shutil.rmtree(folder / "data" / "test")
    for file in (folder / "data" / "valid").iterdir():
        file.unlink()
    found = findings(folder)
    assert [(f.file, f.severity) for f in found] == [
        (str(folder / "data" / "valid"), "error"),
        (str(folder / "data" / "test"), "error"),
    ]
    assert findings(folder, "train") == []
    assert only(folder, "test").file == str(folder / "data" / "test")


def test_a_folder_without_files_and_a_missing_file_are_errors(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing here")
    assert only(tmp_path) == Finding(str(tmp_path), "expected files ending in .hdf5, .h5, .npz, found none")
    assert only(f"file://{tmp_path}/gone.hdf5").severity == "error"
    with pytest.raises(ValueError, match="expected a folder, or a file ending in"):
        check_source(tmp_path / "notes.txt")


def test_missing_statistics_are_a_note_where_they_belong(folder):
    (folder / "stats.yaml").unlink()
    found = only(folder)
    assert (found.file, found.severity) == (str(folder / "stats.yaml"), "note")
    assert "walrus-hf data stats" in found.problem
    assert findings(folder / "data" / "train") == []


def test_a_link_out_of_the_folder_is_an_error(folder, tmp_path):
    outside = save_well(trajectory(80, 6), tmp_path / "outside.hdf5")
    (folder / "data" / "train" / "2.hdf5").symlink_to(outside)
    found = only(folder)
    assert found.file == str(folder / "data" / "train" / "2.hdf5")
    assert "a link out of it" in found.problem


def test_names_with_blanks_are_found_behind_addresses(folder):
    path = folder / "data" / "train" / "0.hdf5"
    path.rename(path.with_name("number 0.hdf5"))
    assert findings(folder.as_uri(), read=True) == []
    manifest, _ = open_source(folder.as_uri())
    assert [entry.path for entry in manifest.files] == ["1.hdf5", "number 0.hdf5"]
    with RangeServer({"a b/number 0.hdf5": (folder / "data" / "train" / "number 0.hdf5").read_bytes()}) as server:
        assert findings(server.url("a b/number 0.hdf5"), read=True) == []


# What files share


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"grid": (8, 9)}, "expected the grid of 0.hdf5, x=10, y=12, found x=8, y=9"),
        ({"sides": {"x": "open", "y": "open"}}, "boundary conditions of 0.hdf5, x periodic, y wall/open, found x open"),
        ({"constant": False}, "constant speed_of_sound, found pressure, velocity (vector)"),
        ({"name": "other"}, "expected the dataset name of 0.hdf5, flow, found other"),
    ],
)
def test_the_file_that_differs_is_named_though_it_is_the_first(folder, change, problem):
    path = add(folder, "+.hdf5", trajectory(90, 6, **change))
    found = only(folder)
    assert (found.file, found.severity) == (str(path), "error")
    assert problem in found.problem


def test_files_of_other_lengths_belong_together_unless_the_scenario_says_otherwise(folder, facts):
    path = add(folder, "+.hdf5", trajectory(90, 9))
    assert findings(folder) == []
    facts(trajectories=13)
    found = only("flow", base_path=folder.parent)
    assert found.file == str(path)
    assert "expected the frames of 0.hdf5, 6, found 9" in found.problem
    facts(frames=(5, 9), trajectories=13)
    assert findings("flow", base_path=folder.parent) == []
    facts(frames=(6, 8), trajectories=13)
    assert "expected 6 to 8 frames as the scenario has, found 9" in only("flow", base_path=folder.parent).problem


def test_trajectories_with_boundaries_of_their_own_are_an_error(folder):
    with h5py.File(folder / "data" / "train" / "0.hdf5", "r+") as file:
        group = file["boundary_conditions/y_wall"]
        mask = group["mask"][()]
        del group["mask"]
        group["mask"] = np.stack([mask, np.zeros_like(mask)])
        group.attrs["sample_varying"] = True
    assert "expected one set of boundary conditions, found 2; split the file" in only(folder).problem


def test_a_file_without_fields_that_change_is_an_error(tmp_path):
    path = save_well(trajectory(0, 6), tmp_path / "0.hdf5")
    with h5py.File(path, "r+") as file:
        file["t0_fields"].attrs["field_names"] = np.array(["speed_of_sound"], dtype=h5py.string_dtype())
        file["t1_fields"].attrs["field_names"] = np.array([], dtype=h5py.string_dtype())
    assert only(path).problem == "expected a field that changes in time, found none"


# Scenarios


@pytest.mark.parametrize(
    ("change", "problem", "severity"),
    [
        ({"grid": (12, 10)}, "expected the grid of the scenario, x=12, y=10, found x=10, y=12", "error"),
        ({"frames": 7}, "expected the frames of the scenario, 7, found 6", "error"),
        ({"fields": {"pressure": 0, "velocity": 2}}, "velocity (tensor), constant speed_of_sound, found", "error"),
        ({"constant_fields": {}}, "pressure, velocity (vector), found pressure, velocity (vector), constant", "error"),
        ({"trajectories": 13}, "expected 13 trajectories in all, as the paper counts, found 12 in 6 files", "error"),
        ({"trajectories": 11}, "expected 11 trajectories in all, as the paper counts, found 12", "note"),
        ({"boundary_conditions": {"x": "periodic", "y": "wall"}}, "y wall, found x periodic, y wall/open", "note"),
    ],
)
def test_files_are_compared_with_the_facts_of_the_scenario(folder, facts, change, problem, severity, monkeypatch):
    facts(**change)
    found = only("flow", base_path=folder.parent)
    assert problem in found.problem
    assert (found.file, found.severity) == (str(folder), severity)
    monkeypatch.chdir(folder.parent)  # a folder of the same name at hand changes nothing
    assert only("flow", base_path=".").problem == found.problem


def test_trajectories_are_counted_only_over_all_splits_that_could_be_read(folder, facts):
    facts(trajectories=99)
    assert findings("flow", "train", base_path=folder.parent) == []
    cut(folder / "data" / "train" / "0.hdf5")
    assert [f.file for f in findings("flow", base_path=folder.parent)] == [str(folder / "data" / "train" / "0.hdf5")]


def test_a_base_path_goes_with_a_scenario_and_a_scenario_must_be_known_and_readable(folder):
    with pytest.raises(ValueError, match="unknown scenario"):
        check_source(folder, base_path=folder)
    with pytest.raises(ValueError, match="perhaps 'rayleigh_benard'"):
        check_source("raylegh_benard")
    with pytest.raises(ValueError, match="walrus-hf data convert --format pdegym"):
        check_source("pdegym_ce_rm")


# Numbers


@pytest.mark.parametrize("layout", [{}, {"chunks": True, "compression": "gzip"}])
def test_numbers_that_are_not_finite_are_found_by_reading(folder, monkeypatch, layout):
    monkeypatch.setattr(stretches, "STRETCH_BYTES", 5000)  # two frames
    path = folder / "data" / "valid" / "1.hdf5"
    with h5py.File(path, "r+") as file:
        file["t0_fields/pressure"][1, 3, 2] = np.nan
        file["t0_fields/pressure"][1, 5, 2, 7] = -np.inf
        file["t1_fields/velocity"][0, 0, 2, 7, 1] = np.inf
        file["t0_fields/speed_of_sound"][1, 0, 0] = np.nan
    restore(path, **layout)
    assert findings(folder) == []
    found = findings(folder, read=True)
    assert {f.file for f in found} == {str(path)}
    assert {f.problem for f in found} == {
        "field 'pressure': expected finite numbers, found 13 NaN or infinite in trajectory 1, frame 3 and 1 more",
        "field 'velocity': expected finite numbers, found 1 NaN or infinite in trajectory 0, frame 0",
        "field 'speed_of_sound': expected finite numbers, found 1 NaN or infinite in trajectory 1",
    }


def test_cells_that_differ_in_size_are_a_note_when_a_file_is_read(tmp_path):
    given = trajectory(0, frames=3)
    given.coordinates = {"x": np.arange(10.0), "y": np.arange(12.0) ** 2}
    path = save_well(given, tmp_path / "0.hdf5")
    assert check_source(path)[0] == []
    (found,) = check_source(path, read=True)[0]
    assert (found.file, found.severity) == (str(path), "note")
    assert found.problem.startswith("expected cells of one width along 'y', found 1 to 21; models take")


def test_numbers_inside_obstacles_need_not_be_finite(tmp_path):
    given = trajectory(0, frames=6)
    given.obstacle_mask = np.zeros(given.grid, dtype=bool)
    given.obstacle_mask[2:5, 3:] = True
    for values in (given.fields["pressure"][1:3], given.fields["velocity"], given.constant_fields["speed_of_sound"]):
        values[given.obstacle_mask if values.shape == GRID else (slice(None), given.obstacle_mask)] = np.nan
    path = save_well(given, tmp_path / "0.hdf5")
    assert check_source(path, read=True)[0] == []
    given.constant_fields["speed_of_sound"][0, 0] = np.nan
    given.fields["pressure"][4, 0, 1] = np.inf
    save_well(given, path, overwrite=True)
    assert {finding.problem for finding in check_source(path, read=True)[0]} == {
        "field 'pressure': expected finite numbers, found 1 NaN or infinite in trajectory 0, frame 4",
        "field 'speed_of_sound': expected finite numbers, found 1 NaN or infinite in trajectory 0",
    }


def test_stretches_that_cannot_be_read_are_found_by_reading(folder, monkeypatch):
    monkeypatch.setattr(stretches, "STRETCH_BYTES", 5000)
    path = folder / "data" / "train" / "0.hdf5"
    restore(path, chunks=lambda shape, _: (1, *shape[1:]) if len(shape) > 3 else shape, compression="gzip")
    with h5py.File(path) as file:
        place = file["t0_fields/pressure"].id.get_chunk_info(1).byte_offset
    data = bytearray(path.read_bytes())
    data[place : place + 50] = bytes(50)
    path.write_bytes(data)
    with h5py.File(path, "r+") as file:
        file["t0_fields/speed_of_sound"][...] = np.nan
    assert findings(folder) == []
    unread, bad = findings(folder, read=True)
    assert unread.file == bad.file == str(path)
    assert unread.problem.startswith("trajectory 1, frames 0 to 1: expected a whole HDF5 file")
    assert unread.problem.endswith("(and 2 more stretches)")
    assert "'speed_of_sound'" in bad.problem


# Manifests


def test_a_manifest_is_held_against_its_files(folder):
    manifest = folder / "data" / "train" / "manifest.json"
    build_manifest(folder / "data" / "train").save(manifest)
    assert findings(manifest, read=True) == []
    text = manifest.read_text()
    with h5py.File(folder / "data" / "train" / "0.hdf5") as file:
        offset = file["t0_fields/pressure"].id.get_offset()
    manifest.write_text(text.replace(f'"offset":{offset}', f'"offset":{offset - 480}', 1))
    found = only(manifest)
    assert found.file.endswith("/0.hdf5")
    assert "expected the layout in the manifest, found another one" in found.problem
    manifest.write_text(text)
    add(folder, "other.hdf5", trajectory(3, 6)).replace(folder / "data" / "train" / "1.hdf5")
    found = only(manifest)
    assert found.file.endswith("/1.hdf5")
    assert "expected the file that was indexed" in found.problem
    (folder / "data" / "train" / "1.hdf5").unlink()
    assert "found none" in only(manifest).problem
    manifest.write_text("{}")
    with pytest.raises(ValueError, match="expected a manifest"):
        check_source(manifest)


# Stores


@pytest.fixture
def memory(folder):
    store = fsspec.filesystem("memory")
    store.put(str(folder), "/checked", recursive=True)
    yield store
    store.rm("/checked", recursive=True)


def test_a_store_is_checked_as_a_disk_is(memory, folder):
    assert findings("memory://checked", read=True) == []
    memory.rm("/checked/data/test", recursive=True)
    memory.pipe("/checked/data/train/0.hdf5", (folder / "data/train/0.hdf5").read_bytes()[:9000])
    found = findings("memory://checked")
    assert [f.file for f in found] == ["memory://checked/data/train/0.hdf5", "memory://checked/data/test"]
    with pytest.raises(FileNotFoundError, match="data/test"):  # not the files of another split
        open_source("memory://checked", "test")


@pytest.fixture
def server(folder, monkeypatch):
    monkeypatch.setattr(transport, "_sleep", lambda _: None)
    paths = {path.relative_to(folder.parent).as_posix(): path for path in folder.rglob("*.hdf5")}
    with RangeServer({name: path.read_bytes() for name, path in paths.items()}) as server:
        yield server


def test_a_server_that_does_not_answer_is_unreachable_and_a_missing_file_is_an_error(server):
    url = server.url("flow/data/train/0.hdf5")
    assert findings(url, read=True) == []
    server.always("flow/data/train/0.hdf5", Fault(status=503))
    found = only(url)
    assert (found.file, found.severity) == (url, "unreachable")
    assert "HTTP 503" in found.problem
    assert only(server.url("flow/gone.hdf5")).severity == "error"
    with pytest.raises(ValueError, match="found a folder, which cannot be listed over http"):
        check_source(server.url("flow"))


def behind(server, folder):
    """The manifest of the training files as the server has them."""
    manifest = build_manifest(folder / "data" / "train")
    entries = [dataclasses.replace(e, version=server.etag(f"flow/data/train/{e.path}")) for e in manifest.files]
    return dataclasses.replace(manifest, root=server.url("flow/data/train"), files=tuple(entries))


def test_a_server_that_stops_answering_ends_the_check_after_what_was_found(server, folder, tmp_path):
    manifest = behind(server, folder).save(tmp_path / "manifest.json")
    assert findings(manifest) == []
    server.files["flow/data/train/0.hdf5"] = bytes(9000)
    server.always("flow/data/train/1.hdf5", Fault(status=503))
    assert [f.severity for f in findings(manifest)] == ["error", "unreachable"]
    server.always("flow/data/train/0.hdf5", Fault(status=503))
    assert [f.file[-6:] for f in findings(manifest)] == ["0.hdf5"]


def test_a_server_that_stops_answering_ends_the_reading_after_what_was_found(server, folder, monkeypatch):
    monkeypatch.setattr(stretches, "STRETCH_BYTES", 5000)
    manifest = behind(server, folder)
    assert checking.check_numbers(manifest) == []
    server.always("flow/data/train/1.hdf5", Fault(status=500))
    server.forget()
    (found,) = checking.check_numbers(manifest)
    assert (found.file, found.severity) == (manifest.url(1), "unreachable")
    assert found.problem.startswith("trajectory 0, frames 0 to 1: expected the bytes from")
    tries = transport.Retries().attempts
    assert sum(request.path.endswith("1.hdf5") for request in server.log) <= tries * stretches.THREADS


def test_a_store_that_cannot_be_reached_at_all_is_an_error_of_its_own(small, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="hf://datasets/nobody/flow/data/train: expected the Hub, found offline mode"):
        check_source("flow")


def test_a_scenario_is_checked_on_the_hub_at_one_commit(folder, facts, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # this Hub runs here
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}
    with HubServer() as hub:
        options = {"endpoint": hub.root}
        commit = hub.commit("nobody/flow", files)
        assert check_source("flow", read=True, storage_options=options)[0] == []
        hub.forget()
        found, manifests = check_source("flow", storage_options=options)
        assert found == []
        assert [m.root for m in manifests] == [
            f"hf://datasets/nobody/flow@{commit}/data/{split}" for split in ("train", "valid", "test")
        ]
        kept = {name: data for name, data in files.items() if "test/" not in name and name != "stats.yaml"}
        hub.commit("nobody/flow", {**kept, "data/train/1.hdf5": files["data/train/1.hdf5"][:9000]})
        found = findings("flow", storage_options=options)
        assert [(f.file.partition("/data/")[2], f.severity) for f in found] == [
            ("train/1.hdf5", "error"), ("test", "error"), ("", "note"),
        ]  # fmt: skip
        facts(repository="nobody/gone")
        assert [f.severity for f in findings("flow", storage_options=options)] == ["error"] * 3
