"""The manifest against h5py: every layout, the cache, shipping, and manifests that lie."""

import json

import h5py
import numpy as np
import pytest

from walrus_hf.data import manifest as manifests
from walrus_hf.data.fetching import read_arrays
from walrus_hf.data.manifest import load_manifest
from walrus_hf.data.remote import TRANSFERS
from walrus_hf.data.source_files import build_manifest

from .wells import GRID, restore, write_source


def steps(count):
    """Chunks of `count` frames of one trajectory; constant fields in one chunk a trajectory."""

    def chunks(shape, attributes):
        lead = int(attributes["sample_varying"]) + int(attributes["time_varying"])
        frames = min(count, shape[1]) if attributes["time_varying"] else None
        return ((1,) if attributes["sample_varying"] else ()) + ((frames,) if frames else ()) + shape[lead:]

    return chunks


def halves(shape, attributes):
    return tuple(max(1, n // 2) for n in shape)


LAYOUTS = {
    "contiguous": ({}, "contiguous"),
    "one frame a chunk": ({"chunks": steps(1)}, "chunked"),
    "three frames a chunk, the last one short": ({"chunks": steps(3)}, "chunked"),
    "big-endian": ({"dtype": ">f4"}, "contiguous"),
    "float64": ({"dtype": "<f8"}, "contiguous"),
    "float16": ({"dtype": "<f2"}, "contiguous"),
    "compressed": ({"chunks": steps(1), "compression": "gzip"}, "library"),
    "shuffled and checked": ({"chunks": steps(2), "shuffle": True, "fletcher32": True}, "library"),
    "chunks across frames and space": ({"chunks": halves}, "library"),
    "chosen by h5py": ({"chunks": True}, None),
}


@pytest.mark.parametrize(("layout", "kind"), LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_frames_read_through_the_manifest_are_those_of_h5py(tmp_path, layout, kind, dims):
    folder = write_source(tmp_path / "a", files=1, trajectories=2, frames=8, grid=(4, 6, 5)[:dims])
    path = folder / "data" / "train" / "0.hdf5"
    restore(path, **layout)
    manifest = build_manifest(folder / "data" / "train")
    entry = manifest.files[0]
    if kind is not None:
        assert {field.kind for field in entry.fields if field.time_varying} == {kind}
    source, geometry = manifest.open(0)
    with h5py.File(path) as file:
        for first, stop in ((0, 8), (2, 7), (7, 8)):
            found = read_arrays(entry, source, geometry, 1, first, stop)
            for field in entry.fields:
                stored = file[field.path][1]
                np.testing.assert_array_equal(
                    found[field.name], stored[first:stop] if field.time_varying else stored[None]
                )
                assert found[field.name].dtype.isnative


def test_successive_frames_are_one_range_a_field(tmp_path):
    folder = write_source(tmp_path / "a", files=1, trajectories=2)
    restore(folder / "data" / "train" / "0.hdf5", chunks=steps(1))
    for field in build_manifest(folder / "data" / "train").files[0].fields:
        if field.time_varying:
            assert len(field.ranges(1, 3, 15, 20)) == 1


def test_fields_that_do_not_vary_along_an_axis_are_filled_up(tmp_path):
    folder = write_source(tmp_path / "a", files=1, trajectories=2, frames=8)
    path = folder / "data" / "train" / "0.hdf5"
    with h5py.File(path, "r+") as file:
        values = file["t0_fields/pressure"][()]
        attributes = dict(file["t0_fields/pressure"].attrs)
        del file["t0_fields/pressure"]
        file["t0_fields"].create_dataset("pressure", data=values[:, :, :, :1])
        file["t0_fields/pressure"].attrs.update({**attributes, "dim_varying": [True, False]})
    manifest = build_manifest(folder / "data" / "train")
    found = read_arrays(manifest.files[0], *manifest.open(0), 1, 2, 5)["pressure"]
    np.testing.assert_array_equal(found, np.broadcast_to(values[1, 2:5, :, :1], (3, *GRID)))


def test_a_second_look_comes_from_the_cache_and_a_new_file_does_not(tmp_path):
    folder = write_source(tmp_path / "a", files=2) / "data" / "train"
    first = build_manifest(folder)
    TRANSFERS.reset()
    again = build_manifest(folder)
    assert TRANSFERS.bytes == 0
    assert json.dumps([manifests._to_json(f) for f in again.files]) == json.dumps(
        [manifests._to_json(f) for f in first.files]
    )
    (folder / "0.hdf5").unlink()
    write_source(tmp_path / "b", files=1, frames=9)
    (tmp_path / "b" / "data" / "train" / "0.hdf5").rename(folder / "0.hdf5")
    assert [entry.frames for entry in build_manifest(folder).files] == [9, 20]


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"path": 3}', 100_000 * "["])
def test_a_damaged_cache_entry_is_built_anew(tmp_path, content):
    folder = write_source(tmp_path / "a", files=1) / "data" / "train"
    entry = build_manifest(folder).files[0]
    source, _ = build_manifest(folder).open(0)
    kept = manifests.cache_path(source.url, source.identity())
    assert kept.exists()
    kept.write_text(content)
    assert build_manifest(folder).files[0].frames == entry.frames


def test_a_cache_entry_of_another_file_is_built_anew(tmp_path):
    folder = write_source(tmp_path / "a", files=1) / "data" / "train"
    source, _ = build_manifest(folder).open(0)
    kept = manifests.cache_path(source.url, source.identity())
    content = json.loads(kept.read_text())
    kept.write_text(json.dumps({**content, "version": "another"}))
    assert build_manifest(folder).files[0].version == source.identity().version


def test_a_shipped_manifest_finds_its_files_where_the_folder_went(tmp_path):
    folder = write_source(tmp_path / "a", files=2) / "data" / "train"
    build_manifest(folder).save(folder / "manifest.json")
    moved = tmp_path / "elsewhere"
    folder.rename(moved)
    manifest = load_manifest(moved / "manifest.json")
    found = read_arrays(manifest.files[1], *manifest.open(1), 0, 0, 3)
    with h5py.File(moved / "1.hdf5") as file:
        np.testing.assert_array_equal(found["velocity"], file["t1_fields/velocity"][0, :3])


def test_a_manifest_is_not_overwritten_unasked(tmp_path):
    folder = write_source(tmp_path / "a", files=1) / "data" / "train"
    target = build_manifest(folder).save(tmp_path / "m.json")
    before = target.read_bytes()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        build_manifest(folder).save(target)
    assert target.read_bytes() == before
    assert load_manifest(build_manifest(folder).save(target, overwrite=True)).files[0].frames == 20


@pytest.mark.parametrize(
    "path", ["../b.hdf5", "/etc/passwd", "a/../../b.hdf5", "C:\\x", "file:///etc/passwd", "%2e%2e/b"]
)
@pytest.mark.parametrize("key", ["path", "geometry"])
def test_paths_that_leave_the_root_are_refused(tmp_path, path, key):
    folder = write_source(tmp_path / "a", files=1) / "data" / "train"
    saved = build_manifest(folder).save(tmp_path / "m.json")
    content = json.loads(saved.read_text())
    content["files"][0][key] = path
    saved.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="inside"):
        load_manifest(saved)


FIELD = ("fields", 0)
LIES = {
    "offset beyond the file": ((*FIELD, "offset"), 10**9, "within the file"),
    "negative offset": ((*FIELD, "offset"), -8, "within the file"),
    "offset beyond all numbers": ((*FIELD, "offset"), 10**400, "within the file"),
    "offset that is a text": ((*FIELD, "offset"), "0", "a whole number"),
    "more frames than the field has": (("frames",), 400, "within the file"),
    "more frames than bytes": (("frames",), 10**6, "fit into"),
    "frames that are no whole number": (("frames",), 20.0, "a whole number"),
    "frames that are a flag": (("frames",), True, "a whole number"),
    "size that is no number": (("size",), float("nan"), "a whole number"),
    "more trajectories": (("trajectories",), 50, "within the file"),
    "another grid": (("grid",), [10, 13], "does not fit the grid"),
    "a grid of no axes": ((*FIELD, "stored"), [], "does not fit the grid"),
    "an axis too few": ((*FIELD, "stored"), [10], "does not fit the grid"),
    "an object type": ((*FIELD, "dtype"), "|O", "expected real numbers"),
    "no type": ((*FIELD, "dtype"), None, "expected a text"),
    "an unknown type": ((*FIELD, "dtype"), "nonsense", "nonsense"),
    "an unknown way to read": ((*FIELD, "kind"), "magic", "does not fit"),
    "a rank of 3": ((*FIELD, "rank"), 3, "does not fit"),
    "a rank that is a text": ((*FIELD, "rank"), "0", "a whole number"),
    "a flag that is a text": ((*FIELD, "time_varying"), "no", "true or false"),
    "a table for a contiguous field": ((*FIELD, "chunk_offsets"), [[0]], "a chunked field alone"),
    "a table with a fraction": ((*FIELD, "chunk_offsets"), [[1.5]], "a whole number"),
    "a table of endless numbers": ((*FIELD, "chunk_offsets"), [[10**30]], "expected a manifest"),
    "no frames in a chunk": ((*FIELD, "chunk_frames"), 0, "a chunked field alone"),
    "a field given twice": (("fields", 1, "name"), "pressure", "expected different fields"),
    "no cells": (("grid",), [0, 12], "positive sizes"),
    "boundaries of one axis": (("boundaries",), [[[2, 2]]], "boundary kinds of 2 axes"),
    "an unknown boundary": (("boundaries",), [[[2, 2], [7, 7]]], "boundary kinds 0 to 2"),
    "another format": (("format",), "pickle", "expected a format"),
    "a path that is a number": (("path",), 5, "expected a text"),
    "a path that is nothing": (("path",), None, "expected a text"),
    "a geometry that is a number": (("geometry",), 3, "expected a text"),
    "a field too much": ((*FIELD, "surprise"), 1, "unexpected keyword"),
}


@pytest.mark.parametrize(("where", "value", "message"), LIES.values(), ids=LIES)
def test_manifests_that_contradict_themselves_are_refused(tmp_path, where, value, message):
    folder = write_source(tmp_path / "a", files=1) / "data" / "train"
    saved = build_manifest(folder).save(tmp_path / "m.json")
    content = json.loads(saved.read_text())
    item = content["files"][0]
    for key in where[:-1]:
        item = item[key]
    item[where[-1]] = value
    saved.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_manifest(saved)


def test_what_is_no_manifest_is_refused(tmp_path):
    empty = '{"walrus_hf_manifest": 1, "scenario": null, "root": ".", "files": []}'
    deep = '{"walrus_hf_manifest": 1, "files": ' + 100_000 * "[" + 100_000 * "]" + "}"
    for content in ("", "[]", "{}", empty, deep, '{"walrus_hf_manifest": 99, "root": ".", "files": []}'):
        (tmp_path / "m.json").write_text(content)
        with pytest.raises(ValueError, match="expected a manifest of version 1"):
            load_manifest(tmp_path / "m.json")


def test_a_damaged_file_is_named(tmp_path):
    folder = write_source(tmp_path / "a", files=2) / "data" / "train"
    content = (folder / "1.hdf5").read_bytes()
    (folder / "1.hdf5").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"1\.hdf5: expected .*download or write it again"):
        build_manifest(folder)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected files ending in"):
        build_manifest(tmp_path)


def test_attributes_of_the_simulation_are_kept(tmp_path):
    folder = write_source(tmp_path / "a", files=1) / "data" / "train"
    with h5py.File(folder / "0.hdf5", "r+") as file:
        file.attrs["simulation_parameters"] = ["Reynolds"]
        file.attrs["Reynolds"] = np.float32(1e4)
    found = build_manifest(folder).files[0].attributes
    assert found["Reynolds"] == 1e4
    assert found["simulation_parameters"] == ["Reynolds"]
