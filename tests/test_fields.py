"""Trajectories: what they accept, what they refuse and in which words, and what slices of them hold."""

import dataclasses

import numpy as np
import pytest

from walrus_hf.fields import FLAG_NAMES, PUBLISHED_FIELDS, BoundaryCondition, Trajectory, check_sides

WALL, OPEN, PERIODIC = BoundaryCondition.WALL, BoundaryCondition.OPEN, BoundaryCondition.PERIODIC
SIDES = {"x": "periodic", "y": ("wall", "open")}


def plane(frames: int = 4, height: int = 6, width: int = 9, **kwargs) -> Trajectory:
    rng = np.random.default_rng(0)
    fields = {
        "pressure": rng.normal(size=(frames, height, width)),
        "velocity": rng.normal(size=(frames, height, width, 2)),
        "D": rng.normal(size=(frames, height, width, 2, 2)),
    }
    given = {"fields": fields, "boundary_conditions": SIDES, "constant_fields": {"mask": np.ones((height, width))}}
    return Trajectory(**{**given, **kwargs})


# --- the vocabulary and the kinds of boundary ---


def test_the_published_vocabulary_has_67_names_at_their_published_ids():
    known = {
        "closed_boundary": 0, "open_boundary": 1, "bias_correction": 2, "pressure": 3, "velocity_x": 4, "velocity_z": 6,
        "zeros_like_density": 7, "speed_of_sound": 8, "concentration": 9, "D_xx": 10, "D_xy": 11, "D_yx": 13,
        "D_zz": 18, "E_xx": 19, "E_zz": 27, "density": 28, "energy": 29, "velocity_r": 30, "velocity_theta": 31,
        "velocity_phi": 32, "momentum_x": 33, "momentum_z": 35, "pressure_re": 36, "pressure_im": 37, "mask": 38,
        "magnetic_field_x": 39, "A": 42, "B": 43, "height": 44, "internal_energy": 45, "temperature": 46,
        "electron_fraction": 47, "entropy": 48, "magnetic_field_log_r": 49, "magnetic_field_theta": 50,
        "magnetic_field_phi": 51, "velocity_log_r": 52, "buoyancy": 53, "tracer": 54, "log10_density": 55,
        "log10_temperature": 56, "c_zz": 57, "C_xx": 58, "C_xz": 60, "C_zz": 66,
    }  # fmt: skip
    assert len(PUBLISHED_FIELDS) == len(set(PUBLISHED_FIELDS)) == 67
    assert {name: PUBLISHED_FIELDS.index(name) for name in known} == known
    assert [PUBLISHED_FIELDS.index(name) for name in FLAG_NAMES] == [2, 0, 1]


def test_boundary_ids_are_those_of_the_well():
    assert [int(kind) for kind in (WALL, OPEN, PERIODIC)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("value", "kind"),
    [("wall", WALL), ("Open", OPEN), ("PERIODIC", PERIODIC), (0, WALL), (2.0, PERIODIC), (np.int64(1), OPEN)],
)
def test_a_boundary_kind_is_read_from_a_name_an_id_or_a_member(value, kind):
    assert BoundaryCondition.parse(value) is kind


@pytest.mark.parametrize("value", ["closed", "", 3, -1, 1.7, float("nan"), float("inf"), None, [0, 1], b"wall"])
def test_other_boundary_kinds_are_refused_with_the_list_of_kinds(value):
    with pytest.raises(ValueError, match=r"expected a boundary condition 'wall' \(0\), 'open' \(1\) or 'periodic'"):
        BoundaryCondition.parse(value)


@pytest.mark.parametrize("low", BoundaryCondition)
@pytest.mark.parametrize("high", BoundaryCondition)
def test_an_axis_is_periodic_on_both_sides_or_on_neither(low, high):
    if (low, high).count(PERIODIC) == 1:
        with pytest.raises(ValueError, match=f"axis q: .*{low.name.lower()}, {high.name.lower()}.*both sides or on"):
            check_sides("q", low, high)
    else:
        check_sides("q", low, high)


@pytest.mark.parametrize(
    ("given", "ids"),
    [
        ({"x": "wall", "y": "open"}, ((0, 0), (1, 1))),
        ({"y": ("open", "wall"), "x": ["wall", "open"]}, ((0, 1), (1, 0))),
        ({"x": 2, "y": (0, 1)}, ((2, 2), (0, 1))),
        ({"x": np.int64(2), "y": np.array([1, 0])}, ((2, 2), (1, 0))),
        ({"x": PERIODIC, "y": (WALL, OPEN)}, ((2, 2), (0, 1))),
    ],
)
def test_boundaries_come_as_names_ids_or_pairs_and_leave_in_the_order_of_the_axes(given, ids):
    assert plane(boundary_conditions=given).boundary_ids() == ids


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"x": "periodic"}, r"expected one entry for each axis of \('x', 'y'\), found \['x'\]"),
        ({"x": "periodic", "y": "wall", "z": "wall"}, r"one entry for each axis .* found \['x', 'y', 'z'\]"),
        ({0: "wall", "x": "wall"}, r"one entry for each axis .* found \[0, 'x'\]"),
        ("periodic", "one entry for each axis .* found 'periodic'"),
        (None, "one entry for each axis .* found None"),
        ({"x": "periodic", "y": "wal"}, r"boundary_conditions\['y'\]: expected a boundary condition .*found 'wal'"),
        ({"x": "periodic", "y": None}, r"boundary_conditions\['y'\]: expected a boundary condition .*found None"),
        ({"x": "periodic", "y": 0.5}, r"boundary_conditions\['y'\]: expected a boundary condition .*found 0.5"),
        ({"x": "periodic", "y": ("wall", 7)}, r"boundary_conditions\['y'\]: expected a boundary condition .*found 7"),
        ({"x": "periodic", "y": ("wall",)}, r"boundary_conditions\['y'\]: expected one kind or \(low, high\)"),
        ({"x": "periodic", "y": (0, 1, 1)}, r"boundary_conditions\['y'\]: expected one kind or \(low, high\), found"),
        ({"x": ("periodic", "wall"), "y": "wall"}, "axis x: one side is periodic and the other is not"),
        ({"x": "wall", "y": ("open", "periodic")}, r"axis y: .*\(open, periodic\).* both sides or on neither"),
    ],
)
def test_unusable_boundaries_are_refused_by_axis(given, message):
    with pytest.raises(ValueError, match=message):
        plane(boundary_conditions=given)


# --- shapes ---


def test_a_trajectory_knows_its_frames_grid_and_ranks():
    trajectory = plane(frames=5, height=6, width=9)
    assert (trajectory.num_frames, trajectory.grid, trajectory.axes) == (5, (6, 9), ("x", "y"))
    assert [trajectory.rank(name) for name in ("pressure", "velocity", "D", "mask")] == [0, 1, 2, 0]


@pytest.mark.parametrize("axes", [("x",), ("theta", "phi"), ("x", "y", "z")])
def test_trajectories_have_one_to_three_axes_of_any_name(axes):
    grid, d = (8, 9, 10)[: len(axes)], len(axes)
    trajectory = Trajectory(
        {"T": np.zeros((2, *grid)), "v": np.zeros((2, *grid, d)), "S": np.zeros((2, *grid, d, d))},
        dict.fromkeys(axes, "open"), {"c": np.zeros(grid), "w": np.zeros((*grid, d))}, axes,
    )  # fmt: skip
    assert (trajectory.grid, trajectory.boundary_ids()) == (grid, ((1, 1),) * d)
    assert [trajectory.rank(name) for name in "TvScw"] == [0, 1, 2, 0, 1]


def test_lists_and_integers_are_accepted_as_arrays():
    trajectory = Trajectory({"a": [[1, 2, 3], [4, 5, 6]]}, {"x": "wall"}, axes=["x"])
    assert (trajectory.grid, trajectory.axes) == ((3,), ("x",))
    np.testing.assert_array_equal(trajectory.fields["a"], [[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_masked_cells_have_no_value(dtype):
    masked = np.ma.masked_equal(np.arange(4 * 6 * 9, dtype=dtype).reshape(4, 6, 9), 60)
    trajectory = plane(fields={"pressure": masked}, constant_fields={"mask": masked[1]})
    for values in (trajectory.fields["pressure"], trajectory.constant_fields["mask"]):
        assert type(values) is np.ndarray
        assert np.isnan(values).sum() == 1
    assert trajectory.fields["pressure"].dtype == (np.float64 if dtype == np.int32 else dtype)
    with pytest.raises(ValueError, match="field 'pressure', frame 1: expected finite numbers, found 1 NaN"):
        trajectory.check_finite()
    dataclasses.replace(trajectory, obstacle_mask=masked.mask[1]).check_finite()
    whole = plane(fields={"pressure": np.ma.asarray(masked.data)}).fields["pressure"]
    assert (type(whole), whole.dtype) == (np.ndarray, dtype)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"axes": ()}, r"expected 1 to 3 different axis names, found axes=\(\)"),
        ({"axes": ("x", "x")}, "expected 1 to 3 different axis names"),
        ({"axes": ("x", "y", "z", "w")}, "expected 1 to 3 different axis names"),
        ({"fields": {}}, "expected at least one field, found none"),
        ({"constant_fields": {"pressure": np.zeros((6, 9))}}, "pressure: given as a field and as a constant field"),
        ({"fields": {"p": np.zeros(4)}}, r"field 'p': expected \(frames, x, y\[, components\]\), found \(4,\)"),
        ({"fields": {"p": np.zeros((0, 6, 9))}}, r"field 'p': expected at least one frame and one cell.*\(0, 6, 9\)"),
        ({"fields": {"p": np.zeros((4, 0, 9))}}, r"field 'p': expected at least one frame and one cell"),
        ({"fields": {"p": np.zeros((4, 6, 9, 3))}}, r"field 'p': .*\(4, 6, 9, 2\) \(vector.*found \(4, 6, 9, 3\)"),
        ({"fields": {"p": np.zeros((4, 6, 9, 2, 3))}}, r"field 'p': .*\(4, 6, 9, 2, 2\) \(tensor\)"),
        ({"fields": {"p": np.zeros((4, 6, 9)), "q": np.zeros((3, 6, 9))}}, r"field 'q': expected shape \(4, 6, 9\)"),
        ({"fields": {"p": np.zeros((4, 6, 9)), "q": np.zeros((4, 9, 6))}}, r"field 'q': .*found \(4, 9, 6\)"),
        ({"constant_fields": {"c": np.zeros((4, 6, 9))}}, r"field 'c': expected shape \(6, 9\).*found \(4, 6, 9\)"),
        ({"fields": {"p": np.zeros((4, 6, 9), complex)}}, "field 'p': expected real numbers, found dtype complex128"),
        ({"fields": {"p": np.full((4, 6, 9), "a")}}, "field 'p': expected real numbers, found dtype <U1"),
        ({"obstacle_mask": np.zeros((9, 6))}, r"obstacle_mask: expected shape \(6, 9\), found \(9, 6\)"),
        ({"obstacle_mask": np.linspace(-1, 1, 54).reshape(6, 9)}, "obstacle_mask: .* give distance < 0"),
        ({"obstacle_mask": np.full((6, 9), np.nan)}, "obstacle_mask: expected True or 1"),
        ({"ensemble": {"pressure": np.zeros((2, 3, 6, 9))}}, r"ensemble\['pressure'\]: .*\(members, 4, 6, 9\).*stack"),
        ({"ensemble": {"pressure": np.zeros((4, 6, 9))}}, r"ensemble\['pressure'\]: .* found \(4, 6, 9\)"),
        ({"ensemble": {"pressure": np.zeros((0, 4, 6, 9))}}, r"ensemble\['pressure'\]: .*at least one member"),
        ({"ensemble": {"pressure": 1.0}}, r"ensemble\['pressure'\]: .* found \(\)"),
        ({"ensemble": {"pressure": np.zeros((2, 4, 6, 9), complex)}}, r"ensemble\['pressure'\]: .*dtype complex128"),
        ({"ensemble": {"mask": np.zeros((2, 6, 9))}}, r"ensemble\['mask'\]: .* fields pressure, velocity, D, found"),
        ({"ensemble": np.zeros((2, 4, 6, 9))}, "ensemble: expected a dictionary .* found ndarray; give ensemble={NAME"),
        (
            {"ensemble": {"pressure": np.zeros((2, 4, 6, 9)), "velocity": np.zeros((3, 4, 6, 9, 2))}},
            "ensemble: expected as many members of each field, found {'pressure': 2, 'velocity': 3}",
        ),
        ({"coordinates": {"x": np.arange(9)}}, r"coordinates\['x'\]: expected one position a cell"),
        ({"coordinates": {"r": np.arange(6)}}, r"coordinates\['r'\]: expected one position a cell"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_with_what_was_expected_and_found(change, message):
    with pytest.raises(ValueError, match=message):
        plane(**change)


def test_members_may_be_lists_and_broken_forecasts_and_not_of_all_fields():
    values = np.zeros((2, 4, 6, 9))
    values[1, 2:] = np.nan
    found = plane(ensemble={"pressure": values.tolist()}).ensemble
    np.testing.assert_array_equal(found["pressure"], values)


# --- slices ---


@pytest.mark.parametrize("change", [
    {"dt": "0.1"}, {"dt": None}, {"dt": np.array([0.1, 0.1, 0.2, 0.2])}, {"dt": np.datetime64("2026-01-01")},
    {"time": "noon"}, {"time": np.zeros(4)}, {"dt": np.nan}, {"dt": 0},
])  # fmt: skip
def test_a_time_step_that_is_no_number_is_refused_in_words(change):
    with pytest.raises(ValueError, match="expected a time step dt > 0 and a finite time, one number each, found dt="):
        plane(**change)


@pytest.mark.parametrize("what", ["fields", "constant_fields"])
def test_arrays_without_names_are_refused_in_words(what):
    with pytest.raises(ValueError, match=f"{what}: expected names and arrays such as"):
        plane(**{what: np.ones((4, 6, 9))})


@pytest.mark.parametrize(("start", "stop"), [(0, None), (1, 3), (2, None), (-2, None), (0, -1), (-3, -1), (1, 99)])
def test_a_slice_holds_the_same_frames_as_a_slice_of_the_arrays(start, stop):
    ensemble = {"pressure": np.random.default_rng(1).normal(size=(3, 5, 6, 9))}
    whole = plane(frames=5, dt=0.5, time=10.0, ensemble=ensemble, name="run", coordinates={"y": np.arange(9)})
    part = whole.frames(start, stop)
    for name, values in whole.fields.items():
        np.testing.assert_array_equal(part.fields[name], values[start:stop])
    np.testing.assert_array_equal(part.ensemble["pressure"], ensemble["pressure"][:, start:stop])
    assert part.time == 10.0 + 0.5 * list(range(5))[start]
    assert part.boundary_ids() == whole.boundary_ids()
    assert (part.name, part.dt, part.grid) == (whole.name, whole.dt, whole.grid)
    np.testing.assert_array_equal(part.constant_fields["mask"], whole.constant_fields["mask"])


def test_a_slice_copies_nothing_and_leaves_the_whole_as_it_was():
    whole = plane(frames=5)
    part = whole.frames(1, 3)
    assert np.shares_memory(part.fields["velocity"], whole.fields["velocity"])
    assert (whole.num_frames, whole.time) == (5, 0.0)


@pytest.mark.parametrize(("start", "stop"), [(3, 3), (5, None), (2, 1), (0, 0)])
def test_a_slice_of_no_frames_is_refused(start, stop):
    with pytest.raises(ValueError, match=f"frames {start}:{stop} of a trajectory of 5 frames are none"):
        plane(frames=5).frames(start, stop)


def test_a_replaced_trajectory_is_checked_again():
    with pytest.raises(ValueError, match="axis y"):
        dataclasses.replace(plane(), boundary_conditions={"x": "wall", "y": ("wall", "periodic")})


# --- finite numbers ---


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_finite_check_names_the_field_and_the_frame(bad, dtype):
    trajectory = plane(frames=4)
    values = trajectory.fields["velocity"] = trajectory.fields["velocity"].astype(dtype)
    trajectory.check_finite()
    values[2, 3, 4, 1] = values[2, 0, 0, 0] = values[3, 0, 0, 0] = bad
    with pytest.raises(ValueError, match=r"field 'velocity', frame 2: .* found 2 NaN or infinite of 108; cut those"):
        trajectory.check_finite()


def test_obstacle_masks_of_zeros_and_ones_are_yes_and_no():
    for dtype in (np.uint8, np.float32):
        np.testing.assert_array_equal(plane(obstacle_mask=np.eye(6, 9, dtype=dtype)).obstacle_mask, np.eye(6, 9) == 1)


def test_the_finite_check_passes_over_what_stands_inside_obstacles():
    trajectory = plane(obstacle_mask=np.eye(6, 9, dtype=bool))
    trajectory.fields["velocity"] = trajectory.fields["velocity"].astype(np.float32)
    trajectory.fields["velocity"][2, 3, 3, 1] = np.nan
    trajectory.check_finite()
    trajectory.fields["velocity"][2, 3, 4, 1] = np.nan
    with pytest.raises(ValueError, match=r"field 'velocity', frame 2: .* found 1 NaN or infinite of 96"):
        trajectory.check_finite()


def test_the_finite_check_passes_over_constant_fields_inside_obstacles():
    trajectory = plane(obstacle_mask=np.eye(6, 9, dtype=bool))
    trajectory.constant_fields["mask"][2, 2] = np.nan
    trajectory.check_finite()
    trajectory.constant_fields["mask"][2, 3] = np.nan
    with pytest.raises(ValueError, match=r"constant field 'mask': .* found 1 NaN or infinite of 48"):
        trajectory.check_finite()


def test_the_finite_check_reads_constant_fields_too():
    trajectory = plane()
    trajectory.constant_fields["mask"][1, 2] = np.nan
    with pytest.raises(
        ValueError, match="constant field 'mask': expected finite numbers, found 1 NaN or infinite of 54"
    ):
        trajectory.check_finite()


def test_whole_numbers_and_booleans_are_finite():
    Trajectory({"a": np.ones((2, 8), int)}, {"x": "wall"}, {"b": np.ones(8, bool)}, ("x",)).check_finite()


def test_the_printed_form_tells_grid_fields_and_boundaries():
    text = repr(plane(frames=4, name="shear", dt=0.25))
    for part in ("shear", "4 frames", "x=6 x y=9", "pressure, velocity, D", "constant mask", "x periodic, y wall/open",
                 "dt=0.25"):  # fmt: skip
        assert part in text
