"""Files that are damaged, lie about themselves, or try to read other files: refused in one line, before any harm."""

import os
import struct
import sys

import h5py
import numpy as np
import pytest

from walrus_hf.data import well
from walrus_hf.data.well import load_well, well_info
from walrus_hf.data.well_writer import save_well
from walrus_hf.fields import Trajectory

SECRET = np.arange(2 * 3 * 5 * 4, dtype=np.float32).reshape(2, 3, 5, 4)


@pytest.fixture
def path(tmp_path):
    """A good file: 2 trajectories of 3 frames on 5 x 4 cells, with fields `u` and `v`."""
    rng = np.random.default_rng(0)
    batch = [
        Trajectory(
            fields={"u": rng.normal(size=(3, 5, 4)), "v": rng.normal(size=(3, 5, 4, 2))},
            constant_fields={"k": rng.normal(size=(5, 4))},
            boundary_conditions={"x": "periodic", "y": ("wall", "open")},
            name=f"box_{number}",
        )
        for number in range(2)
    ]
    path = save_well(batch, tmp_path / "box.hdf5")
    assert load_well(path, 1).num_frames == 3
    return path


def refuse(path, message, kind=ValueError, **kwargs):
    """`load_well` refuses in one line that names the file; the exception type is `kind`."""
    with pytest.raises(kind, match=message) as caught:
        load_well(path, **kwargs)
    assert len(str(caught.value).splitlines()) == 1
    assert str(path) in str(caught.value)


def replace_field(file, name="t0_fields/u", **kwargs):
    """Another data set in the place of a field, with its attributes."""
    attributes = dict(file[name].attrs)
    del file[name]
    dataset = file.create_dataset(name, **kwargs)
    dataset.attrs.update(attributes)
    return dataset


# What is no file of The Well


def test_a_missing_file_is_not_found(tmp_path):
    refuse(tmp_path / "none.hdf5", "found none", FileNotFoundError)
    refuse("memory://walrus_hf_test/none.hdf5", "found none", FileNotFoundError)


def test_a_folder_is_refused(tmp_path):
    refuse(tmp_path, "found a directory", IsADirectoryError)


def test_an_address_that_cannot_be_opened_is_refused():
    refuse("nonsense://a.hdf5", "expected an address that can be opened", ValueError)


@pytest.mark.parametrize("content", [b"", b"time,u\n0,1\n", b"\x89HDF\r\n\x1a\n", b"\x00" * 5000])
def test_a_file_that_is_no_hdf5_is_refused(tmp_path, content):
    (tmp_path / "a.hdf5").write_bytes(content)
    refuse(tmp_path / "a.hdf5", "expected a whole HDF5 file.*download or write it again")


@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_file_is_refused(path, part):
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    refuse(path, "expected a whole HDF5 file")


def test_a_file_without_the_groups_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["u"] = SECRET
    refuse(tmp_path / "a.hdf5", "no group 'dimensions'")
    with pytest.raises(ValueError, match="no group 'dimensions'"):
        well_info(tmp_path / "a.hdf5")


@pytest.mark.parametrize("group", ["dimensions", "boundary_conditions", "t0_fields", "t1_fields", "t2_fields"])
def test_each_group_is_needed(path, group):
    with h5py.File(path, "a") as file:
        del file[group]
    refuse(path, f"no group '{group}'")


@pytest.mark.parametrize(
    ("item", "attribute"),
    [
        ("/", "n_trajectories"),
        ("dimensions", "spatial_dims"),
        ("dimensions/time", "sample_varying"),
        ("t1_fields", "field_names"),
        ("t0_fields/u", "dim_varying"),
        ("t0_fields/u", "sample_varying"),
        ("t0_fields/u", "time_varying"),
        ("boundary_conditions/x_periodic", "bc_type"),
        ("boundary_conditions/x_periodic", "associated_dims"),
    ],
)
def test_a_missing_attribute_is_named(path, item, attribute):
    with h5py.File(path, "a") as file:
        del file[item].attrs[attribute]
    refuse(path, f"expected the attribute '{attribute}'")


# Other files


@pytest.fixture
def secret(tmp_path):
    with h5py.File(tmp_path / "secret.hdf5", "w") as file:
        file["u"] = SECRET
        file.create_group("group")["u"] = SECRET
    (tmp_path / "secret.raw").write_bytes(SECRET.tobytes())
    return tmp_path / "secret.hdf5"


@pytest.mark.parametrize("where", ["t0_fields/u", "unrelated", "boundary_conditions/x", "ensemble/u"])
def test_a_link_into_another_file_is_refused(path, secret, where):
    with h5py.File(path, "a") as file:
        if where in file:
            del file[where]
        file[where] = h5py.ExternalLink(str(secret), "u")
    refuse(path, f"{where}: expected data in this file, found a link into '.*secret.hdf5'")
    with pytest.raises(ValueError, match="found a link into"):
        well_info(path)


def test_a_group_in_another_file_is_refused(path, secret):
    with h5py.File(path, "a") as file:
        del file["t0_fields"]
        file["t0_fields"] = h5py.ExternalLink(str(secret), "group")
    refuse(path, "t0_fields: expected data in this file, found a link into")


def test_a_soft_link_through_a_link_into_another_file_is_refused(path, secret):
    with h5py.File(path, "a") as file:
        del file["t0_fields/u"]
        file["a/b/door"] = h5py.ExternalLink(str(secret), "group")
        file["t0_fields/u"] = h5py.SoftLink("/a/b/door/u")
    refuse(path, "/a/b/door: expected data in this file, found a link into")


def test_a_soft_link_inside_the_file_is_followed(path):
    expected = load_well(path, 1).fields["u"]
    with h5py.File(path, "a") as file:
        file.move("t0_fields/u", "elsewhere")
        file["t0_fields/u"] = h5py.SoftLink("/elsewhere")
    np.testing.assert_array_equal(load_well(path, 1).fields["u"], expected)


def test_a_soft_link_to_nowhere_is_refused(path):
    with h5py.File(path, "a") as file:
        del file["t0_fields/u"]
        file["t0_fields/u"] = h5py.SoftLink("/nowhere")
    refuse(path, "cannot be read")


def test_a_ring_of_groups_is_walked_once(path):
    with h5py.File(path, "a") as file:
        file["t0_fields/ring"] = file["/"]
    assert load_well(path).num_frames == 3


@pytest.mark.parametrize("where", ["t0_fields/u", "unrelated"])
def test_data_kept_in_another_file_is_refused(path, secret, where):
    external = [(str(secret.with_suffix(".raw")), 0, SECRET.nbytes)]
    with h5py.File(path, "a") as file:
        if where in file:
            replace_field(file, where, shape=SECRET.shape, dtype="f4", external=external)
        else:
            file.create_dataset(where, shape=SECRET.shape, dtype="f4", external=external)
        np.testing.assert_array_equal(file[where], SECRET)  # HDF5 itself would read it
    refuse(path, f"{where}: expected data in this file, found data kept in another file")


def test_a_virtual_data_set_is_refused(path, secret):
    layout = h5py.VirtualLayout(shape=SECRET.shape, dtype="f4")
    layout[:] = h5py.VirtualSource(str(secret), "u", shape=SECRET.shape)
    with h5py.File(path, "a") as file:
        attributes = dict(file["t0_fields/u"].attrs)
        del file["t0_fields/u"]
        file.create_virtual_dataset("t0_fields/u", layout).attrs.update(attributes)
        np.testing.assert_array_equal(file["t0_fields/u"], SECRET)
    refuse(path, "/t0_fields/u: expected data in this file, found data kept in another file")


@pytest.mark.parametrize("name", ["../dimensions/time", "/dimensions/time", "x/../u", "."])
def test_names_of_fields_are_no_paths(path, name):
    with h5py.File(path, "a") as file:
        file["t0_fields"].attrs["field_names"] = ["u", name]
    refuse(path, "expected a data set .* found none")


# Headers that promise too much


@pytest.mark.parametrize("kwargs", [{}, {"chunks": (1, 1, 5, 4)}, {"chunks": (1, 1, 5, 4), "compression": "gzip"}])
def test_data_that_was_never_written_is_refused(path, kwargs):
    with h5py.File(path, "a") as file:
        dataset = replace_field(file, shape=(2, 3, 5, 4), dtype="f4", **kwargs)
        if kwargs:
            dataset[0] = 1.0  # half of the chunks
    refuse(path, "/t0_fields/u: expected 480 bytes .* found fewer in the file")


def test_a_header_that_declares_more_than_the_file_holds_is_refused(path):
    """Each number of frames in the file, in headers and times, is raised to a billion."""
    frames = 10**9
    with h5py.File(path, "a") as file:
        for name in ("t0_fields/u", "t1_fields/v"):
            shape = (2, frames, *file[name].shape[2:])
            replace_field(file, name, shape=shape, dtype="f4", chunks=(1, 1, *shape[2:]))[0, :2] = 1.0
        attributes = dict(file["dimensions/time"].attrs)
        del file["dimensions/time"]
        file.create_dataset("dimensions/time", shape=(frames,), dtype="f8", chunks=(1000,))[:3] = [0, 1, 2]
        file["dimensions/time"].attrs.update(attributes)
    assert path.stat().st_size < 200_000
    refuse(path, "found fewer in the file")
    refuse(path, "found fewer in the file", frames=2)


def test_a_shape_raised_in_the_bytes_of_the_header_is_refused(path):
    content = path.read_bytes()
    shape = struct.pack("<4Q", 2, 3, 5, 4)
    assert content.count(shape) >= 1
    path.write_bytes(content.replace(shape, struct.pack("<4Q", 2, 3 * 10**9, 5, 4)))
    refuse(path, "expected")


def test_data_placed_past_the_end_of_the_file_is_refused(path):
    with h5py.File(path) as file:
        offset, size = file["t0_fields/u"].id.get_offset(), file.id.get_filesize()
    content = path.read_bytes()
    assert content.count(struct.pack("<2Q", offset, 480)) == 1
    path.write_bytes(content.replace(struct.pack("<2Q", offset, 480), struct.pack("<2Q", size - 100, 480)))
    refuse(path, "found fewer in the file|cannot be read")  # recent HDF5 refuses it before we do


def test_more_than_memory_holds_is_refused_before_it_is_read(path, monkeypatch):
    memory = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 3 * 5 * 4 * 4}
    monkeypatch.setattr(well.os, "sysconf", memory.__getitem__)
    monkeypatch.setattr(well, "_read_field", lambda *args: pytest.fail("read before the check"))
    refuse(path, "3 frames: expected data that fits into memory .* ask for fewer frames")


def test_fewer_frames_fit_where_all_do_not(path, monkeypatch):
    one_frame = 5 * 4 * 4 * (1 + 2 + 1)  # u, v and the constant k
    memory = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": one_frame}
    monkeypatch.setattr(well.os, "sysconf", memory.__getitem__)
    assert load_well(path, frames=1).num_frames == 1
    refuse(path, "fits into memory", frames=2)


def test_axes_that_are_filled_up_count_as_memory(path, monkeypatch):
    with h5py.File(path, "a") as file:
        replace_field(file, data=np.ones((2, 3, 1, 1), dtype="f4")).attrs["dim_varying"] = [False, False]
    needed = 5 * 4 * 4 * (3 + 6 + 1)
    for spare, fits in ((0, True), (-1, False)):
        monkeypatch.setattr(well.os, "sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": needed + spare}.__getitem__)
        if fits:
            assert load_well(path).fields["u"].shape == (3, 5, 4)
        else:
            refuse(path, "fits into memory")


# What does not fit together


@pytest.mark.parametrize(
    ("stretch", "message"),
    [
        ({"trajectory": 2}, "trajectory=2: expected 0 to 1"),
        ({"trajectory": -1}, "trajectory=-1: expected 0 to 1"),
        ({"start": 3}, "start=3: expected 0 to 2"),
        ({"start": -1}, "start=-1: expected 0 to 2"),
        ({"start": 1, "frames": 3}, "frames=3: expected 1 to 2"),
        ({"frames": 0}, "frames=0: expected 1 to 3"),
        ({"frames": -2}, "frames=-2: expected 1 to 3"),
    ],
)
def test_a_stretch_outside_the_file_is_refused(path, stretch, message):
    refuse(path, message, **stretch)


@pytest.mark.parametrize("shape", [(2, 3, 5, 4, 3), (2, 3, 5, 4, 1), (2, 3, 5, 4), (2, 3, 5, 4, 2, 2)])
def test_vectors_of_other_than_one_component_an_axis_are_refused(path, shape):
    with h5py.File(path, "a") as file:
        replace_field(file, "t1_fields/v", data=np.zeros(shape, dtype="f4"))
    refuse(path, r"/t1_fields/v: expected shape \(2, 3, 5, 4, 2\) \(one component an axis\)")


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 3, 5, 4), (2, 2, 5, 4), (3, 5, 4), (0, 3, 5, 4)])
def test_fields_that_do_not_fit_the_dimensions_are_refused(path, shape):
    with h5py.File(path, "a") as file:
        replace_field(file, data=np.zeros(shape, dtype="f4"))
    refuse(path, r"/t0_fields/u: expected shape \(2, 3, 5, 4\)")


@pytest.mark.parametrize("dtype", ["c8", "S4", [("re", "f4"), ("im", "f4")]])
def test_fields_of_other_than_real_numbers_are_refused(path, dtype):
    with h5py.File(path, "a") as file:
        replace_field(file, data=np.zeros((2, 3, 5, 4), dtype=dtype))
    refuse(path, "/t0_fields/u: expected an array of real numbers")


def test_a_named_field_without_its_data_set_is_refused(path):
    with h5py.File(path, "a") as file:
        file["t0_fields"].attrs["field_names"] = ["u", "k", "w"]
    refuse(path, "/t0_fields: expected a data set 'w', found none")


def test_a_group_in_the_place_of_a_field_is_refused(path):
    with h5py.File(path, "a") as file:
        del file["t0_fields/u"]
        file.create_group("t0_fields/u")
    refuse(path, "expected a data set 'u'")


def test_a_field_named_twice_is_refused(path):
    with h5py.File(path, "a") as file:
        file["t1_fields/u"] = file["t1_fields/v"]
        file["t1_fields"].attrs["field_names"] = ["u", "v"]
    refuse(path, "t1_fields/u: expected each field once")


def test_a_file_of_constants_alone_is_refused(path):
    with h5py.File(path, "a") as file:
        file["t0_fields"].attrs["field_names"] = ["k"]
        file["t1_fields"].attrs["field_names"] = np.array([], dtype=h5py.string_dtype())
    refuse(path, "expected at least one field")


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("associated_dims", ["q"], "among the axes .*'x', 'y'.*found .*'q'"),
        ("associated_dims", ["x", "q"], "among the axes"),
        ("associated_dims", ["x", "y"], "expected a mask of shape"),
        ("associated_dims", np.array([], dtype="S1"), "among the axes"),
        ("bc_type", "slippery", "expected a boundary condition"),
        ("time_varying", True, "changes in time"),
        ("sample_varying", True, "expected a mask of shape"),
    ],
)
def test_unusable_boundaries_are_refused(path, attribute, value, message):
    with h5py.File(path, "a") as file:
        file["boundary_conditions/x_periodic"].attrs[attribute] = value
    refuse(path, message)


def test_an_axis_periodic_on_one_side_alone_is_refused(path):
    with h5py.File(path, "a") as file:
        file["boundary_conditions/x_periodic/mask"][0] = False
    refuse(path, "axis x: one side is periodic and the other is not")
    with pytest.raises(ValueError, match="one side is periodic"):
        well_info(path)


@pytest.mark.parametrize("count", [0, -1, 3, 10**15, 1.5, "two", [1, 2]])
def test_a_wrong_number_of_trajectories_is_refused(path, count):
    with h5py.File(path, "a") as file:
        file.attrs["n_trajectories"] = count
    refuse(path, "expected")


@pytest.mark.parametrize("times", [[0.0, 0.0, 0.0], [0.0, np.nan, 2.0], [2.0, 1.0, 0.0], [0.0, np.inf, 2.0]])
def test_times_that_do_not_grow_are_refused(path, times):
    with h5py.File(path, "a") as file:
        file["dimensions/time"][:] = times
    refuse(path, "time: expected finite times that grow")


@pytest.mark.parametrize("shape", [(1, 2, 3, 5, 4), (2, 2, 2, 5, 4), (2, 3, 5, 4)])
def test_members_that_do_not_fit_their_field_are_refused(path, shape):
    with h5py.File(path, "a") as file:
        file["ensemble/u"] = np.zeros(shape, dtype="f4")
    refuse(path, "/ensemble/u: expected the members of one of the fields")


def test_members_of_no_field_are_refused(path):
    with h5py.File(path, "a") as file:
        file["ensemble/w"] = np.zeros((2, 2, 3, 5, 4), dtype="f4")
    refuse(path, "/ensemble/w: expected the members of one of the fields")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a file that this user may not read")
def test_a_file_without_permission_is_refused(path):
    path.chmod(0)
    refuse(path, "ermission", PermissionError)


def test_a_missing_fsspec_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    refuse("hf://datasets/a/b.hdf5", r"pip install 'walrus-hf\[data\]'", ImportError)
