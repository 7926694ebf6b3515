"""Trajectories to xarray, through netCDF files, and back."""

import sys
import warnings

import numpy as np
import pytest

from walrus_hf.data.xarray_io import from_xarray, to_xarray
from walrus_hf.fields import Trajectory

xarray = pytest.importorskip("xarray")

FRAMES = 4
WALLS = {"x": "wall", "y": "wall"}


def make(grid=(5, 7), **kwargs):
    """A trajectory with all parts: scalar, vector and tensor fields, constants, coordinates, mask and members."""
    rng = np.random.default_rng(0)
    d = len(grid)
    axes = ("x", "y", "z")[:d]
    given = {
        "fields": {
            "velocity": rng.normal(size=(FRAMES, *grid, d)).astype(np.float32),
            "pressure": rng.normal(size=(FRAMES, *grid)),
            "C": rng.normal(size=(FRAMES, *grid, d, d)).astype(np.float32),
        },
        "constant_fields": {"force": rng.normal(size=(*grid, d)), "level": rng.integers(0, 9, size=grid)},
        "boundary_conditions": {"x": ("wall", "open"), "y": "periodic", "z": "open"},
        "axes": axes,
        "dt": 0.1,
        "time": 0.7,
        "name": "box",
        "coordinates": {"x": rng.normal(size=grid[0])},
        "obstacle_mask": rng.random(grid) > 0.5,
        "ensemble": {
            "velocity": rng.normal(size=(3, FRAMES, *grid, d)),
            "pressure": rng.normal(size=(3, FRAMES, *grid)),
        },
        "grid_type": "spherical",
    }
    given["boundary_conditions"] = {axis: given["boundary_conditions"][axis] for axis in axes}
    return Trajectory(**{**given, **kwargs})


def assert_equal(found, expected):
    for part in ("axes", "boundary_conditions", "dt", "time", "name", "grid_type"):
        assert getattr(found, part) == getattr(expected, part), part
    for part in ("fields", "constant_fields", "coordinates", "ensemble"):
        ours, theirs = getattr(found, part) or {}, getattr(expected, part) or {}
        assert list(ours) == list(theirs), part
        for name, values in theirs.items():
            np.testing.assert_array_equal(ours[name], values, err_msg=f"{part} {name}")
            assert ours[name].dtype == values.dtype, f"{part} {name}"
    assert (found.obstacle_mask is None) == (expected.obstacle_mask is None)
    if expected.obstacle_mask is not None:
        np.testing.assert_array_equal(found.obstacle_mask, expected.obstacle_mask)


def through_netcdf(dataset, folder):
    pytest.importorskip("netCDF4")
    dataset.to_netcdf(folder / "a.nc", engine="netcdf4")
    with xarray.open_dataset(folder / "a.nc", engine="netcdf4") as opened:
        return opened.load()


CASES = [
    make((6,)),
    make(),
    make((3, 5, 4)),
    make(coordinates={}, obstacle_mask=None, ensemble=None, constant_fields={}, name=None, grid_type="cartesian"),
    make(time=1e6, dt=1 / 3),
    make(ensemble=None).frames(1, 2),
]


@pytest.mark.parametrize("trajectory", CASES)
def test_a_round_trip_is_exact(trajectory):
    assert_equal(from_xarray(to_xarray(trajectory)), trajectory)


@pytest.mark.parametrize("trajectory", CASES)
def test_a_round_trip_through_a_netcdf_file_is_exact(tmp_path, trajectory):
    assert_equal(from_xarray(through_netcdf(to_xarray(trajectory), tmp_path)), trajectory)


def test_the_dataset_names_its_dimensions():
    dataset = to_xarray(make())
    assert dataset["pressure"].dims == ("time", "x", "y")
    assert dataset["velocity"].dims == ("time", "x", "y", "component")
    assert dataset["C"].dims == ("time", "x", "y", "component_i", "component_j")
    assert dataset["force"].dims == ("x", "y", "component")
    assert dataset["velocity_ensemble"].dims == ("member", "time", "x", "y", "component")
    assert dataset["obstacle_mask"].dims == ("x", "y")
    np.testing.assert_allclose(dataset["time"], [0.7, 0.8, 0.9, 1.0])
    assert list(dataset["component"].values) == ["x", "y"]


def test_the_order_of_dimensions_does_not_matter():
    trajectory = make()
    dataset = to_xarray(trajectory)
    first = dataset["velocity"].transpose("component", "x", "time", "y")
    other = dataset.transpose("member", "component_j", "y", "component", "component_i", "x", "time")
    assert_equal(from_xarray(other.assign(velocity=first)), trajectory)


def test_the_axes_are_those_of_the_first_variable_with_time():
    dataset = to_xarray(make())
    turned = from_xarray(dataset.transpose("time", "y", "x", ...))
    assert turned.axes == ("y", "x")
    np.testing.assert_array_equal(turned.fields["pressure"], make().fields["pressure"].swapaxes(1, 2))
    assert turned.boundary_conditions == {axis: make().boundary_conditions[axis] for axis in ("y", "x")}


def test_components_follow_the_axes_where_they_are_named():
    velocity = make().fields["velocity"]
    turned = from_xarray(to_xarray(make()).transpose("time", "y", "x", ...)).fields["velocity"]
    np.testing.assert_array_equal(turned, velocity.swapaxes(1, 2)[..., ::-1])
    unnamed = to_xarray(make()).drop_vars("component").transpose("time", "y", "x", ...)
    np.testing.assert_array_equal(from_xarray(unnamed).fields["velocity"], velocity.swapaxes(1, 2))


def test_boundary_conditions_in_the_call_come_before_those_of_the_attributes():
    assert from_xarray(to_xarray(make()), WALLS).boundary_ids() == ((0, 0), (0, 0))


def test_a_cut_and_a_thinned_dataset_keep_the_time():
    dataset = to_xarray(make())
    cut = from_xarray(dataset.isel(time=slice(1, 3)))
    assert (cut.time, cut.dt) == (pytest.approx(0.8), 0.1)
    thinned = from_xarray(dataset.isel(time=slice(None, None, 2)))
    assert (thinned.time, thinned.dt) == (0.7, pytest.approx(0.2))


def plain(times, **kwargs):
    values = np.random.default_rng(0).normal(size=(len(times), 3, 2))
    return xarray.Dataset({"u": (("time", "x", "y"), values)}, coords={"time": times}, **kwargs)


def test_dates_become_seconds(tmp_path):
    times = np.array(["1970-01-02T00:00", "1970-01-02T06:00", "1970-01-02T12:00"], dtype="datetime64[ns]")
    for dataset in (plain(times), plain(times.astype("datetime64[s]")), through_netcdf(plain(times), tmp_path)):
        trajectory = from_xarray(dataset, WALLS)
        assert (trajectory.time, trajectory.dt) == (86400.0, 21600.0)
    far = from_xarray(plain(np.array(["2970-01-01", "2970-01-02", "2970-01-03"], dtype="datetime64[s]")), WALLS)
    assert (far.time, far.dt) == ((365 * 1000 + 243) * 86400.0, 86400.0)  # nanoseconds do not reach that far
    durations = from_xarray(plain(np.array([500, 1000, 1500], dtype="timedelta64[ms]")), WALLS)
    assert (durations.time, durations.dt) == (0.5, 0.5)


def test_without_times_the_step_is_one():
    trajectory = from_xarray(plain(range(3)).drop_vars("time"), WALLS)
    assert (trajectory.time, trajectory.dt) == (0.0, 1.0)


def test_unequal_steps_give_their_mean_and_one_warning():
    with pytest.warns(UserWarning, match="steps from 1 to 2") as caught:
        assert from_xarray(plain([0.0, 1.0, 3.0]), WALLS).dt == 1.5
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert from_xarray(plain([0.0, 1.0, 2.0]), WALLS).dt == 1.0


def test_cells_that_differ_in_size_are_warned_of():
    wide = plain(range(3)).assign_coords(x=[0.0, 1.0, 21.0])
    with pytest.warns(UserWarning, match="expected cells of one width along 'x', found 1 to 20; models take") as caught:
        from_xarray(wide, WALLS)
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_xarray(wide.assign_attrs(grid_type="spherical"), WALLS)
        for even in ([0.0, 1.0, 2.0], ["west", "middle", "east"], np.array([0, 2, 4], dtype="datetime64[D]")):
            from_xarray(wide.assign_coords(x=even), WALLS)


def test_an_axis_that_runs_backwards_is_warned_of_until_it_is_turned_round():
    fallen = plain(range(3)).assign_coords(x=[2.0, 1.0, 0.0])
    with pytest.warns(UserWarning, match="expected coordinates along 'x' that grow.* found falling ones"):
        from_xarray(fallen, WALLS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_xarray(fallen.sortby("x"), WALLS)


def test_a_foreign_byte_order_is_turned():
    dataset = plain(range(3))
    dataset["u"] = dataset["u"].astype(">f4")
    values = from_xarray(dataset, WALLS).fields["u"]
    assert values.dtype == np.dtype("=f4")
    np.testing.assert_array_equal(values, dataset["u"].values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["u"], "expected an xarray.Dataset, found DataArray"),
        (lambda d: d.rename(time="t"), "expected a data variable with the dimension 'time'"),
        (lambda d: d.assign(obstacle_mask=d["u"] > 0), "obstacle_mask: expected dimensions without 'time'"),
        (lambda d: d.assign_attrs(dt="0.1 s"), "attribute 'dt': expected a number, found '0.1 s'"),
        (lambda d: d.isel(time=slice(0)), "dimension 'time': expected at least one frame, found none"),
        (lambda d: d[[]].assign(mean=d["u"].isel(x=0, drop=True).isel(y=0, drop=True)), "one for each axis"),
        (lambda d: d.assign(v=d["u"].rename(x="lon")), "variable 'v': expected the dimensions"),
        (lambda d: d.assign(v=d["u"].isel(x=0)), "variable 'v': expected the dimensions"),
        (lambda d: d.assign(crs=0), "variable 'crs': expected the dimensions.*drop the variable"),
        (lambda d: d.assign(v=d["u"].expand_dims(component=3)), "'v': expected shape"),
        (lambda d: d.assign(v=d["u"].expand_dims(component=["x", "z"])), "coordinate 'component'.*found .*'z'"),
        (lambda d: d.assign(v=d["u"].expand_dims(member=2)), "variable 'v': expected the members"),
        (lambda d: d.assign(u=d["u"].expand_dims(member=2)), "variable 'u': expected the members"),
        (lambda d: d.assign(v_ensemble=d["u"].expand_dims(member=2)), "variable 'v_ensemble': expected the members"),
        (
            lambda d: d.assign(u_ensemble=d["u"].expand_dims(member=2, component=2)),
            "variable 'u_ensemble': expected the members",
        ),
        (
            lambda d: d.assign(k=d["u"].isel(time=0), k_ensemble=d["u"].isel(time=0).expand_dims(member=2)),
            "variable 'k_ensemble': expected the members",
        ),
        (lambda d: d.assign(label=(("x", "y"), [["a", "b"]] * 3)), "'label': expected real numbers"),
        (lambda d: d.assign_coords(time=["a", "b", "c"]), "coordinate 'time': expected numbers or datetime64"),
        (lambda d: d.assign_coords(time=[2.0, 1.0, 0.0]), "times that grow"),
        (lambda d: d.assign_coords(time=[0.0, np.nan, 2.0]), "times that grow"),
        (lambda d: d.assign_coords(time=np.array(["2000", "NaT", "2002"], "datetime64[ns]")), "times that grow"),
    ],
)
def test_datasets_outside_the_convention_are_refused(change, message):
    dataset = change(plain([0.0, 1.0, 2.0]))
    with pytest.raises(ValueError, match=message) as caught:
        from_xarray(dataset, WALLS)
    assert "\n" not in str(caught.value)


def test_missing_or_unusable_boundary_conditions_are_refused():
    with pytest.raises(
        ValueError, match=r"expected boundary_conditions, found none.*attribute boundary_conditions, as JSON: \{"
    ):
        from_xarray(plain(range(3)))
    with pytest.raises(ValueError, match="attribute 'boundary_conditions': expected JSON"):
        from_xarray(plain(range(3), attrs={"boundary_conditions": "x periodic"}))
    with pytest.raises(ValueError, match="one entry for each axis"):
        from_xarray(plain(range(3)), {"x": "wall"})


@pytest.mark.parametrize(
    ("kwargs", "name"),
    [
        ({"constant_fields": {"x": np.zeros((5, 7))}}, "x"),
        ({"constant_fields": {"time": np.zeros((5, 7))}}, "time"),
        ({"constant_fields": {"obstacle_mask": np.zeros((5, 7))}}, "obstacle_mask"),
        ({"constant_fields": {"pressure_ensemble": np.zeros((5, 7))}}, "pressure_ensemble"),
        (
            {"axes": ("member", "y"), "boundary_conditions": {"member": "wall", "y": "wall"}, "coordinates": {}},
            "member",
        ),
    ],
)
def test_names_that_the_convention_uses_otherwise_are_refused(kwargs, name):
    with pytest.raises(ValueError, match=f"^{name}: expected names of fields and axes that differ"):
        to_xarray(make(**kwargs))


def test_a_missing_xarray_is_named_with_its_extra(monkeypatch):
    dataset = to_xarray(make())
    monkeypatch.setitem(sys.modules, "xarray", None)
    for call in (lambda: from_xarray(dataset), lambda: to_xarray(make())):
        with pytest.raises(ImportError, match=r"pip install 'walrus-hf\[xarray\]'"):
            call()
