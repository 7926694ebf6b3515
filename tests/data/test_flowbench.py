"""FlowBench's archives: read in any order of axes and any stretch; hostile ones are refused before any harm."""

import io
import itertools
import os
import pickle
import warnings
import zipfile

import numpy as np
import pytest

from walrus_hf.data import flowbench, well
from walrus_hf.data.flowbench import (
    flowbench_layout,
    list_flowbench,
    load_flowbench,
    load_obstacle_mask,
    parts_of_other_splits,
    reynolds_number,
)

from .http_server import Fault, RangeServer

FRAMES, NX, NY = 7, 32, 8


@pytest.fixture(autouse=True)
def _licence_is_known():
    """The warning has tests of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flowbench.warn_of_licence()


@pytest.fixture
def values():
    """(T, x, y, channel) float64, as the simulations are."""
    return np.random.default_rng(0).normal(size=(FRAMES, NX, NY, 3))


def archive(values, order="TYXC", compressed=True, fortran=False, **others):
    """An archive in memory, its axes (T, x, y, channel) brought into the order of the letters."""
    array = values.transpose(["TXYC".index(letter) for letter in order])
    array = np.asfortranarray(array) if fortran else np.ascontiguousarray(array)
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, data=array, **others)
    file.seek(0)
    return file


def with_member(content, name="data.npy"):
    """An archive whose array is these bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr(name, content)
    file.seek(0)
    return file


def npy(array_or_header, content=b""):
    """The bytes of an .npy file: of an array, or of a header and what follows it."""
    file = io.BytesIO()
    if isinstance(array_or_header, dict):
        np.lib.format.write_array_header_1_0(file, array_or_header)
        file.write(content)
    else:
        np.save(file, array_or_header, allow_pickle=True)
    return file.getvalue()


def refuse(file, message, **kwargs):
    for call in (lambda: load_flowbench(file, **kwargs), lambda: flowbench_layout(file)):
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert len(str(caught.value).splitlines()) == 1


# What comes back


@pytest.mark.parametrize("order", ["TYXC", "TCYX", "TXYC", "CTYX", "YXTC", "XCYT"])
@pytest.mark.parametrize("fortran", [False, True])
def test_any_order_of_axes_gives_the_same_simulation(values, order, fortran):
    trajectory = load_flowbench(archive(values, order, fortran=fortran), order=order)
    np.testing.assert_array_equal(trajectory.fields["velocity"], values[..., :2].astype(np.float32))
    np.testing.assert_array_equal(trajectory.fields["pressure"], values[..., 2].astype(np.float32))
    assert trajectory.fields["velocity"].dtype == np.float32
    assert (trajectory.axes, trajectory.grid, trajectory.num_frames) == (("x", "y"), (NX, NY), FRAMES)


@pytest.mark.parametrize("order", ["TYXC", "CTYX", "YXCT"])
@pytest.mark.parametrize(("start", "frames"), [(0, 1), (2, 3), (6, 1), (3, None)])
def test_a_stretch_is_that_part_of_the_whole(values, order, start, frames):
    trajectory = load_flowbench(archive(values, order), start=start, frames=frames, order=order)
    stop = FRAMES if frames is None else start + frames
    np.testing.assert_array_equal(trajectory.fields["pressure"], values[start:stop, ..., 2].astype(np.float32))
    assert trajectory.time == pytest.approx(0.05 * start)
    assert trajectory.dt == 0.05


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<f2", "<i4"])
def test_other_types_of_numbers_are_read(values, dtype):
    stored = (10 * values).astype(dtype)
    trajectory = load_flowbench(archive(stored))
    np.testing.assert_array_equal(trajectory.fields["velocity"], stored[..., :2].astype(np.float32))


def test_all_sides_are_open_and_cells_lie_in_the_published_region(values):
    trajectory = load_flowbench(archive(values))
    assert trajectory.boundary_ids() == ((1, 1), (1, 1)) == flowbench.BOUNDARY_IDS
    np.testing.assert_allclose(trajectory.coordinates["x"][[0, -1]], [4.25, 19.75])
    np.testing.assert_allclose(trajectory.coordinates["y"][[0, -1]], [6.25, 9.75])


def test_the_layout_needs_only_the_ends_of_the_archive(values):
    class Counting(io.BytesIO):
        taken = 0

        def read(self, size=-1):
            data = super().read(size)
            Counting.taken += len(data)
            return data

    content = archive(np.tile(values, (40, 1, 3, 1)), compressed=False).getvalue()
    layout = flowbench_layout(Counting(content))
    assert (layout.frames, layout.grid, layout.dtype, layout.key) == (40 * FRAMES, (NX, 3 * NY), "<f8", "data")
    assert Counting.taken < 20_000 < len(content) / 100


def test_frames_behind_the_stretch_are_not_inflated(values):
    damaged = bytearray(archive(values, compressed=False).getvalue())
    damaged[len(damaged) // 2] ^= 0xFF
    np.testing.assert_array_equal(
        load_flowbench(io.BytesIO(bytes(damaged)), frames=2).fields["pressure"], values[:2, ..., 2].astype(np.float32)
    )


def test_memory_holds_the_frames_asked_for(values):
    import tracemalloc

    file = archive(np.tile(values, (60, 1, 1, 1)))
    size = 60 * values.nbytes
    load_flowbench(file, frames=2)  # what is allocated once
    tracemalloc.start()
    load_flowbench(file, start=400, frames=20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * values[0].nbytes + 200_000 < size / 3


def test_paths_and_urls_are_read(values, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    path = tmp_path / "harmonics" / "21" / "Re_282.npz"
    path.parent.mkdir(parents=True)
    path.write_bytes(archive(values).getvalue())
    fsspec.filesystem("memory").pipe("/walrus_hf_test/harmonics/21/Re_282.npz", path.read_bytes())
    for source in (path, str(path), "memory://walrus_hf_test/harmonics/21/Re_282.npz"):
        trajectory = load_flowbench(source)
        assert trajectory.name == "flowbench_fpo_harmonics_21_Re_282"
        assert trajectory.num_frames == flowbench_layout(source).frames == FRAMES


def test_a_name_without_folders_is_kept_short(values, tmp_path):
    (tmp_path / "Re_99.npz").write_bytes(archive(values).getvalue())
    assert load_flowbench(tmp_path / "Re_99.npz").name == "flowbench_fpo_Re_99"
    assert load_flowbench(archive(values)).name == "flowbench_fpo"
    assert load_flowbench(archive(values), name="wake").name == "wake"


# The obstacle


def geometry(mask_yx, **others):
    file = io.BytesIO()
    np.savez_compressed(file, mask=mask_yx, **others)
    file.seek(0)
    return file


@pytest.fixture
def obstacle():
    mask = np.zeros((NX, NY), dtype=bool)
    mask[3:6, 2:4] = True
    return mask


@pytest.mark.parametrize("make", [
    lambda mask: ~mask,                          # as the files: the fluid is marked
    lambda mask: mask,                           # as the paper: the object is marked
    lambda mask: mask.astype(np.float32) * 255,  # as the first scripts
])  # fmt: skip
def test_the_rarer_value_is_the_obstacle(values, obstacle, make):
    file = geometry(make(obstacle).T, data=np.zeros((NY, NX)))
    trajectory = load_flowbench(archive(values), geometry=file)
    np.testing.assert_array_equal(trajectory.obstacle_mask, obstacle)
    assert load_flowbench(archive(values)).obstacle_mask is None


def test_the_mask_follows_the_order_of_the_axes(values, obstacle):
    trajectory = load_flowbench(archive(values, "TXYC"), geometry=geometry(obstacle), order="TXYC")
    np.testing.assert_array_equal(trajectory.obstacle_mask, obstacle)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((NX, NY), dtype=bool), r"expected shape \(8, 32\) \(yx\), found \(32, 8\)"),
        (np.ones((NY, NX), dtype=bool), "expected an object on a small part of the grid, found one on 0%"),
        (np.arange(NY * NX).reshape(NY, NX) % 2, "expected an object on a small part of the grid, found one on 50%"),
        (np.full((NY, NX), "a"), "expected an array of numbers"),
    ],
)
def test_a_mask_that_marks_no_object_is_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        load_obstacle_mask(geometry(mask), (NX, NY))


# The licence


def test_the_licence_is_shown_once_in_a_process(values):
    flowbench.warn_of_licence.cache_clear()
    with pytest.warns(UserWarning, match=r"CC-BY-NC-4\.0.*not for commercial use") as caught:
        load_flowbench(archive(values))
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_flowbench(archive(values))
        flowbench_layout(archive(values))


# Folders


def folder(root):
    for path in ("harmonics/21/Re_282.npz", "harmonics/3/Re_1000.npz", "harmonics/3/Re_614.npz", "nurbs/3/Re_99.npz"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")
    for path in ("harmonics/3/input_geometry.npz", "nurbs/3/notes.npz", "harmonics/3/.gitkeep"):
        (root / path).write_bytes(b"")
    return root


def test_an_archive_behind_http_is_read_although_the_server_fails_now_and_then(values):
    name, content = "harmonics/21/Re_282.npz", archive(values).getvalue()
    with RangeServer({name: content}) as server:
        server.script(name, Fault(status=503), None, Fault(cut=10), None)
        found = load_flowbench(server.url(name), 1, 2)
    local = load_flowbench(archive(values), 1, 2)
    np.testing.assert_array_equal(found.fields["velocity"], local.fields["velocity"])
    assert found.name == "flowbench_fpo_harmonics_21_Re_282"


def test_simulations_are_listed_by_family_geometry_and_reynolds_number(tmp_path):
    found = list_flowbench(folder(tmp_path), exclude=["Re_614.npz"])
    assert [(f.family, f.geometry, f.reynolds, f.geometry_path is not None) for f in found] == [
        ("harmonics", "3", 1000.0, True),
        ("harmonics", "21", 282.0, False),
        ("nurbs", "3", 99.0, False),
    ]
    assert found[0].geometry_path == str(tmp_path / "harmonics/3/input_geometry.npz")
    assert os.path.isfile(found[1].path)


def test_one_family_and_a_url_are_listed_alike(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.pipe("/walrus_hf_list/harmonics/7/Re_5.npz", b"")
    memory.pipe("/walrus_hf_list/harmonics/7/input_geometry.npz", b"")
    (found,) = list_flowbench("memory://walrus_hf_list/harmonics")
    assert (found.family, found.geometry, found.reynolds) == ("harmonics", "7", 5.0)
    assert memory.exists(found.path)
    assert memory.exists(found.geometry_path)
    assert [f.reynolds for f in list_flowbench(folder(tmp_path) / "harmonics")] == [614.0, 1000.0, 282.0]


@pytest.mark.parametrize("make", [lambda path: path / "none", lambda path: path])
def test_a_folder_without_simulations_is_not_found(tmp_path, make):
    with pytest.raises(FileNotFoundError, match="found none"):
        list_flowbench(make(tmp_path))


def test_splits_hold_out_whole_geometries():
    paths = [f"/{geometry}/Re_{re}.npz" for geometry in range(1, 101) for re in (100, 614)]
    kept = {
        split: {path for path in paths if not any(part in path for part in parts_of_other_splits(split))}
        for split in ("train", "valid", "test")
    }
    assert set.union(*kept.values()) == set(paths)
    assert [len(found) for found in kept.values()] == [160, 20, 20]
    for a, b in itertools.combinations(kept.values(), 2):
        assert not {path.split("/")[1] for path in a} & {path.split("/")[1] for path in b}
    with pytest.raises(ValueError, match="expected one of train, valid, test, found 'dev'"):
        parts_of_other_splits("dev")


def test_the_reynolds_number_is_read_from_the_name():
    assert reynolds_number("a/Re_7/b/Re_282.npz") == 282.0
    assert reynolds_number("Re614.npz") == 614.0
    assert reynolds_number("Re_0.5.npz") == 0.5
    with pytest.raises(ValueError, match="found no Reynolds number"):
        reynolds_number("Re_7/data.npz")


# What is refused


class Trap:
    """Unpickling it would be noticed."""

    sprung = False

    def __reduce__(self):
        return (setattr, (Trap, "sprung", True))


def test_a_pickled_array_is_refused_and_never_run():
    content = npy(np.array([Trap(), 1], dtype=object))
    np.load(io.BytesIO(content), allow_pickle=True)
    assert Trap.sprung  # the trap works
    Trap.sprung = False
    refuse(with_member(content), "found pickled objects.*write its numbers anew")
    with pytest.raises(ValueError, match="found pickled objects"):
        load_obstacle_mask(with_member(content, "mask.npy"), (NX, NY))
    refuse(with_member(pickle.dumps(Trap())), "magic string")
    assert not Trap.sprung


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((FRAMES, NY, NX), "expected four axes TYXC with 3 channels"),
        ((FRAMES, NY, NX, 2), "expected four axes TYXC with 3 channels"),
        ((FRAMES, 3, NY, NX), "expected four axes TYXC with 3 channels"),
        ((0, NY, NX, 3), "expected four axes TYXC with 3 channels"),
        ((FRAMES, NX, NY, 3), "expected more cells along the flow"),
        ((), "expected four axes TYXC with 3 channels"),
    ],
)
def test_another_shape_is_refused(shape, message):
    refuse(with_member(npy(np.zeros(shape))), message)


@pytest.mark.parametrize("order", ["TYX", "TYXCC", "TCHW", "tyxc", ""])
def test_an_order_that_does_not_name_the_axes_is_refused(values, order):
    with pytest.raises(ValueError, match="expected the letters T, C, X and Y"):
        load_flowbench(archive(values), order=order)


@pytest.mark.parametrize("array", [np.full((FRAMES, NY, NX, 3), "a"), np.zeros((FRAMES, NY, NX, 3), complex)])
def test_what_is_no_real_number_is_refused(array):
    refuse(with_member(npy(array)), "expected an array of numbers")


@pytest.mark.parametrize(("start", "frames"), [(-1, 2), (0, 0), (0, 8), (7, None), (3, -1)])
def test_frames_outside_the_simulation_are_refused(values, start, frames):
    with pytest.raises(ValueError, match="expected a stretch of the 7 frames"):
        load_flowbench(archive(values), start=start, frames=frames)


def test_another_archive_is_refused():
    refuse(with_member(npy(np.zeros(3)), "fields.npy"), "expected an array 'data' in the archive, found fields.npy")


@pytest.mark.parametrize("content", [b"", b"PK", b"\x93NUMPY\x01\x00", b"x" * 5000])
def test_what_is_no_archive_is_refused(content):
    refuse(io.BytesIO(content), "expected a whole .npz archive.*download it again")


@pytest.mark.parametrize("part", [0.02, 0.4, 0.8, 0.99, 0.999])
def test_a_truncated_archive_is_refused(values, tmp_path, part):
    content = archive(values).getvalue()
    (tmp_path / "Re_1.npz").write_bytes(content[: int(part * len(content))])
    refuse(tmp_path / "Re_1.npz", "Re_1.npz: expected a whole .npz archive")


@pytest.mark.parametrize("compressed", [True, False])
def test_a_damaged_archive_is_refused(values, compressed):
    content = bytearray(archive(values, compressed=compressed).getvalue())
    content[len(content) // 2] ^= 0xFF
    with pytest.raises(ValueError, match=r"expected a whole \.npz archive.*download it again"):
        load_flowbench(io.BytesIO(bytes(content)))


def test_an_encrypted_archive_is_refused(values):
    content = bytearray(archive(values).getvalue())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + place] |= 1
    refuse(io.BytesIO(bytes(content)), "expected a whole .npz archive.*password required")


@pytest.mark.parametrize("shape", [(10**6, NY, NX, 3), (10**30, NY, NX, 3), (2, NY, NX, 3), (-1, NY, NX, 3)])
def test_a_header_that_declares_other_than_the_archive_holds_is_refused(shape):
    header = {"descr": "<f8", "fortran_order": False, "shape": shape}
    content = npy(header, bytes(FRAMES * NY * NX * 3 * 8))
    refuse(with_member(content), r"expected -?\d+ bytes for shape|expected an array of numbers")


def test_a_header_of_code_is_refused():
    header = npy({"descr": "<f8", "fortran_order": False, "shape": (1,)})
    refuse(with_member(header.replace(b"(1,)", b"f()0")), "FlowBench archive: ")


def test_an_archive_larger_than_memory_is_refused_before_it_is_inflated(monkeypatch):
    zeros = with_member(npy(np.zeros((500, NY, NX, 3))))
    assert len(zeros.getvalue()) < 20_000
    monkeypatch.setattr(well.os, "sysconf", lambda name: 600)  # 360 kB
    with pytest.raises(ValueError, match="expected data that fits into memory"):
        load_flowbench(zeros)
    assert load_flowbench(zeros, frames=10).num_frames == 10


@pytest.mark.parametrize(
    ("make", "kind"), [(lambda p: p / "none.npz", FileNotFoundError), (lambda p: p, IsADirectoryError)]
)
def test_what_is_not_there_is_named(tmp_path, make, kind):
    for call in (load_flowbench, flowbench_layout):
        with pytest.raises(kind, match=str(tmp_path)):
            call(make(tmp_path))


@pytest.mark.parametrize("reads", range(6))
def test_a_connection_that_breaks_is_no_damaged_archive(values, reads):
    class Broken(io.BytesIO):
        left = reads

        def read(self, size=-1):
            if not Broken.left:
                raise ConnectionError("reset")
            Broken.left -= 1
            return super().read(size)

    with pytest.raises(ConnectionError):
        load_flowbench(Broken(archive(values, compressed=False).getvalue()))
