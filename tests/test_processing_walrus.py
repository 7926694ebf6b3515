"""Named fields become model inputs and come back; plans are reproducible; unusable data is refused with advice."""

import warnings

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, AutoProcessor

from walrus_hf import Trajectory, WalrusProcessor
from walrus_hf.fields import PUBLISHED_FIELDS

RNG = np.random.default_rng(0)
PERIODIC = {"x": "periodic", "y": "periodic"}
IDS = {name: i for i, name in enumerate(PUBLISHED_FIELDS)}


def array(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def plane(fields=None, axes=("x", "y"), sides="periodic", **kwargs):
    fields = fields or {"pressure": array(3, 16, 8), "velocity": array(3, 16, 8, 2)}
    return Trajectory(fields, dict.fromkeys(axes, sides), axes=axes, **kwargs)


def names_of(trajectory, processor=None, **kwargs):
    """Vocabulary names of the real and of the padded channels."""
    inputs = (processor or WalrusProcessor())(trajectory, **kwargs)
    names = [PUBLISHED_FIELDS[i] for i in inputs["field_ids"][0]]
    padded = inputs["padded_channels"][0].tolist()
    return [n for n, p in zip(names, padded) if not p], [n for n, p in zip(names, padded) if p]


# --- fields to channels --------------------------------------------------------------------------------------------


def test_vectors_become_channels_by_name_and_the_missing_component_is_padded_with_zeros():
    trajectory = plane()
    inputs = WalrusProcessor()(trajectory)
    assert names_of(trajectory) == (["pressure", "velocity_x", "velocity_y"], ["velocity_z"])
    assert inputs["field_values"].shape == (1, 3, 4, 16, 8, 1)
    assert inputs["field_values"].dtype == torch.float32
    assert inputs["field_ids"].tolist() == [[IDS[n] for n in ("pressure", "velocity_x", "velocity_y", "velocity_z")]]
    np.testing.assert_array_equal(inputs["field_values"][0, :, 2, :, :, 0], trajectory.fields["velocity"][..., 1])
    assert not inputs["field_values"][:, :, 3].any()


def test_tensors_become_nine_channels_in_row_major_order():
    trajectory = plane({"D": array(3, 16, 8, 2, 2)})
    real, padded = names_of(trajectory)
    assert real == ["D_xx", "D_xy", "D_yx", "D_yy"]
    assert padded == ["D_xz", "D_yz", "D_zx", "D_zy", "D_zz"]
    values = WalrusProcessor()(trajectory)
    index = values["field_ids"][0].tolist().index(IDS["D_xy"])
    np.testing.assert_array_equal(values["field_values"][0, :, index, ..., 0], trajectory.fields["D"][..., 0, 1])


@pytest.mark.parametrize(
    ("axes", "lifted"), [(("x",), (16, 1, 1)), (("x", "y"), (16, 8, 1)), (("x", "y", "z"), (16, 8, 12))]
)
def test_given_axes_come_first_and_absent_ones_are_single_periodic_cells(axes, lifted):
    d, grid = len(axes), (16, 8, 12)[: len(axes)]
    trajectory = Trajectory({"velocity": array(2, *grid, d)}, dict.fromkeys(axes, ("wall", "open")), axes=axes)
    inputs = WalrusProcessor()(trajectory)
    assert inputs["field_values"].shape == (1, 2, 3, *lifted)
    assert inputs["padded_channels"].tolist() == [[False] * d + [True] * (3 - d)]
    assert inputs["boundary_conditions"].tolist() == [[[0, 1]] * d + [[2, 2]] * (3 - d)]


def test_components_of_a_plane_in_other_axes_are_named_by_position():
    trajectory = plane({"velocity": array(2, 8, 8, 2)}, axes=("x", "z"))
    assert names_of(trajectory) == (["velocity_x", "velocity_y"], ["velocity_z"])
    apart = plane({"velocity_z": array(2, 8, 8), "velocity_x": array(2, 8, 8)}, axes=("x", "z"))
    assert names_of(apart) == (["velocity_y", "velocity_x"], ["velocity_z"])  # z is the second axis here


def test_curvilinear_axes_keep_their_own_component_names():
    grid = (2, 8, 16)
    whole = plane({"height": array(*grid), "velocity": array(*grid, 2)}, axes=("theta", "phi"))
    apart = plane(
        {"height": array(*grid), "velocity_theta": array(*grid), "velocity_phi": array(*grid)}, axes=("theta", "phi")
    )
    expected = (["height", "velocity_theta", "velocity_phi"], ["velocity_z"])
    assert names_of(whole) == expected
    assert names_of(apart) == expected


def test_three_curvilinear_axes_need_no_padding():
    axes = ("log_r", "theta", "phi")
    trajectory = plane({"magnetic_field": array(2, 8, 8, 8, 3)}, axes=axes)
    assert names_of(trajectory) == ([f"magnetic_field_{axis}" for axis in axes], [])


def test_components_given_apart_equal_the_vector_in_one_array():
    velocity = array(3, 16, 8, 2)
    whole = WalrusProcessor()(plane({"velocity": velocity}))
    apart = WalrusProcessor()(plane({"velocity_x": velocity[..., 0], "velocity_y": velocity[..., 1]}))
    for name in whole:
        assert torch.equal(whole[name], apart[name]), name


def test_a_third_component_on_a_plane_is_read_instead_of_padded():
    fields = {"velocity": array(3, 16, 8, 2), "velocity_z": array(3, 16, 8)}
    assert names_of(plane(fields)) == (["velocity_x", "velocity_y", "velocity_z"], [])


def test_own_names_are_mapped_to_the_vocabulary():
    processor = WalrusProcessor(field_names={"rho": "density", "u": "velocity", "p": "pressure"})
    trajectory = plane({"rho": array(2, 8, 8), "u": array(2, 8, 8, 2), "p": array(2, 8, 8)})
    real, padded = names_of(trajectory, processor)
    assert real == ["density", "velocity_x", "velocity_y", "pressure"]
    assert padded == ["velocity_z"]
    assert set(processor.postprocess(processor(trajectory)["field_values"], trajectory).fields) == {"rho", "u", "p"}


def test_log_fields_are_read_as_logarithms_and_come_back_as_powers():
    density, pressure = np.float32([[[1e-6] * 8] * 8] * 2), np.float32([[[1000.0] * 8] * 8] * 2)
    processor = WalrusProcessor(log_fields=["density", "pressure"])
    trajectory = plane({"density": density, "pressure": pressure})
    inputs = processor(trajectory)
    # There is a name for the logarithm of the density, none for that of the pressure.
    assert names_of(trajectory, processor)[0] == ["log10_density", "pressure"]
    assert inputs["field_values"][0, 0, :, 0, 0, 0].tolist() == pytest.approx([-6.0, 3.0])
    back = processor.postprocess(inputs["field_values"], trajectory)
    np.testing.assert_allclose(back.fields["density"], density, rtol=1e-5)
    np.testing.assert_allclose(back.fields["pressure"], pressure, rtol=1e-5)


def test_log_fields_may_be_larger_than_what_is_read_as_it_is():
    """Such as the electrons of a plasma in a cubic metre."""
    density = 10 ** RNG.uniform(18, 26, size=(2, 16, 8))
    processor = WalrusProcessor(log_fields=["density", "pressure"])
    given = plane({"density": density}, constant_fields={"pressure": 1e3 * density[0]})
    inputs = processor(given)
    np.testing.assert_allclose(inputs["field_values"][0, :, 0, ..., 0], np.log10(density), rtol=1e-6)
    np.testing.assert_allclose(inputs["constant_values"][0, 0, ..., 0], np.log10(1e3 * density[0]), rtol=1e-6)
    np.testing.assert_allclose(
        processor.postprocess(inputs["field_values"], given).fields["density"], density, rtol=1e-4
    )
    with pytest.raises(ValueError, match=r"magnitudes up to 3.4e\+38, found 1e\+39; rescale its units$"):
        processor(plane({"density": np.full((2, 8, 8), 1e39)}))


@pytest.mark.parametrize("dtype", [np.float16, np.uint8, np.int16, np.float64])
def test_logarithms_are_exact_to_float32_whatever_the_type(dtype):
    density = RNG.uniform(1, 255, size=(2, 16, 8)).astype(dtype)
    found = WalrusProcessor(log_fields=["density"])(plane({"density": density}))["field_values"]
    np.testing.assert_allclose(found[0, :, 0, ..., 0], np.log10(density.astype(np.float64)), rtol=1e-6, atol=1e-7)


def test_global_scales_reach_the_model_by_channel():
    scales = {"rms": {"pressure": 7.0, "velocity": [2.0, 3.0]}, "rms_delta": {"pressure": 0.7, "velocity": 0.5}}
    inputs = WalrusProcessor(global_scales=scales)(plane())
    assert inputs["value_scales"][0].tolist() == pytest.approx([7.0, 2.0, 3.0, 1.0])
    assert inputs["change_scales"][0].tolist() == pytest.approx([0.7, 0.5, 0.5, 1.0])
    assert "value_scales" not in WalrusProcessor()(plane())


@pytest.mark.parametrize("bad", [{}, {"pressure": 0.0}, {"pressure": [1.0, 2.0]}, {"pressure": float("inf")}])
def test_unusable_global_scales_are_refused(bad):
    processor = WalrusProcessor(global_scales={"rms": {"velocity": 1.0, **bad}, "rms_delta": {}})
    with pytest.raises(ValueError, match=r"global_scales\['rms'\].*'pressure'"):
        processor(plane())


def test_constants_and_obstacles_are_lifted_beside_the_fields():
    mask = RNG.random((16, 8)) > 0.8
    constant = {"speed_of_sound": array(16, 8), "D": array(16, 8, 2, 2)}
    inputs = WalrusProcessor()(plane(constant_fields=constant, obstacle_mask=mask))
    assert inputs["constant_values"].shape == (1, 10, 16, 8, 1)
    assert inputs["constant_ids"][0, 0] == IDS["speed_of_sound"]
    np.testing.assert_array_equal(inputs["constant_values"][0, 0, ..., 0], constant["speed_of_sound"])
    np.testing.assert_array_equal(inputs["constant_values"][0, 1 + 3, ..., 0], constant["D"][..., 1, 0])
    assert inputs["obstacle_mask"].dtype == torch.bool
    np.testing.assert_array_equal(inputs["obstacle_mask"][0, ..., 0], mask)


@pytest.mark.filterwarnings("error")
def test_arrays_may_be_views_of_any_order():
    mask, values = RNG.random((8, 16)) > 0.8, array(3, 8, 16)
    column = np.broadcast_to(np.arange(16)[:, None] < 2, (16, 8))
    for seen in (mask[::-1].T, mask.T[:, ::-1], column):
        given = plane({"pressure": values.transpose(0, 2, 1)[:, ::-1]}, obstacle_mask=seen)
        found = WalrusProcessor()(given)
        np.testing.assert_array_equal(found["obstacle_mask"][0, ..., 0], seen)
        expected = np.where(seen, 0, given.fields["pressure"]).astype(np.float32)
        np.testing.assert_array_equal(found["field_values"][0, :, 0, ..., 0], expected)


def test_a_given_plan_travels_with_the_inputs():
    processor, trajectory = WalrusProcessor(tokens_per_axis=4), plane()
    plan = processor.plan(trajectory.grid, trajectory.boundary_conditions, seed=0)
    assert processor(trajectory, plan=plan).to("cpu")["plan"] == plan


# --- back to fields ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [("x",), ("x", "z"), ("x", "y", "z"), ("theta", "phi")])
def test_postprocess_inverts_the_call_exactly(axes):
    d, grid = len(axes), (3, 8, 10, 12)[: 1 + len(axes)]
    fields = {"height": array(*grid), "velocity": array(*grid, d), "temperature": array(*grid)}
    if d < 3 and axes[0] == "x":
        fields["D"] = array(*grid, d, d)
    trajectory = plane(fields, axes=axes, dt=0.5, time=2.0, name="run", coordinates={axes[0]: np.arange(8.0)})
    processor = WalrusProcessor()
    back = processor.postprocess(processor(trajectory)["field_values"], trajectory)
    assert list(back.fields) == list(trajectory.fields)
    for name, values in trajectory.fields.items():
        assert back.fields[name].dtype == np.float32
        np.testing.assert_array_equal(back.fields[name], values)
    assert (back.axes, back.dt, back.name, back.boundary_conditions) == (
        axes,
        0.5,
        "run",
        trajectory.boundary_conditions,
    )
    assert back.time == pytest.approx(2.0 + 3 * 0.5)  # the frame after the last one given
    assert back.ensemble is None


def test_components_given_apart_come_back_apart():
    trajectory = plane({"velocity_y": array(3, 16, 8), "velocity_x": array(3, 16, 8)})
    processor = WalrusProcessor()
    back = processor.postprocess(processor(trajectory)["field_values"], trajectory)
    for name, values in trajectory.fields.items():
        np.testing.assert_array_equal(back.fields[name], values)


def test_members_become_an_ensemble_with_their_mean_as_fields():
    processor, trajectory = WalrusProcessor(tokens_per_axis=4), plane()
    members = torch.cat([processor(trajectory)["field_values"], 3 * processor(trajectory)["field_values"]])
    back = processor.postprocess(members, trajectory)
    assert back.ensemble["velocity"].shape == (2, 3, 16, 8, 2)
    np.testing.assert_array_equal(back.ensemble["pressure"][1], 3 * trajectory.fields["pressure"])
    np.testing.assert_allclose(back.fields["pressure"], 2 * trajectory.fields["pressure"], rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 3, 3, 16, 8, 1), (1, 3, 4, 8, 16, 1), (3, 4, 16, 8, 1)])
def test_a_prediction_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"expected \(members, steps, 4, 16, 8, 1\)"):
        WalrusProcessor().postprocess(torch.zeros(shape), plane())


# --- saving --------------------------------------------------------------------------------------------------------


def test_all_settings_survive_saving(tmp_path):
    processor = WalrusProcessor(
        field2id={"b": 0, "a": 1}, tokens_per_axis=8, tokens_per_axis_3d=4, jitter=False, num_hidden_layers=2,
        context_frames=4, context_frames_3d=2, field_names={"u": "velocity"}, log_fields=["a"],
        global_scales={"rms": {"a": 1.5}, "rms_delta": {"a": [0.5, 0.25]}}, hold_scales=True,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        processor.plan((9, 9), [(2, 2)] * 2)  # warns, and must not be saved as a setting
    processor.save_pretrained(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["preprocessor_config.json"]
    for loader in (WalrusProcessor, AutoFeatureExtractor):
        loaded = loader.from_pretrained(tmp_path)
        assert type(loaded) is WalrusProcessor
        settings, saved = processor.to_dict(), loaded.to_dict()
        assert {**saved, "_processor_class": None} == {**settings, "_processor_class": None}


def test_auto_processor_finds_it_beside_a_model_configuration(tmp_path):
    from walrus_hf import WalrusConfig

    WalrusConfig.tiny().save_pretrained(tmp_path)
    WalrusProcessor(tokens_per_axis=8).save_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert type(processor) is WalrusProcessor
    assert processor.tokens_per_axis == 8


# --- plans ---------------------------------------------------------------------------------------------------------


def test_the_same_seed_draws_the_same_plan_and_another_seed_another():
    processor = WalrusProcessor()
    plans = [processor.plan((256, 128), PERIODIC, seed=seed) for seed in (1, 1, 2)]
    assert plans[0] == plans[1]
    assert plans[0].patch_shifts != plans[2].patch_shifts
    assert len(plans[0].layer_shifts) == 40


def test_without_a_seed_plans_follow_the_default_generator():
    processor = WalrusProcessor()
    torch.manual_seed(5)
    first, second = (processor.plan((256, 128), PERIODIC) for _ in range(2))
    torch.manual_seed(5)
    assert processor.plan((256, 128), PERIODIC) == first != second


@pytest.mark.parametrize(
    "sides",
    [
        {"x": ("wall", "open"), "y": "periodic"},
        [("wall", "open"), "periodic"],
        [[0, 1], [2, 2]],
        [[0, 1], [2, 2], [2, 2]],
        np.array([[0, 1], [2, 2]]),
        torch.tensor([[0, 1], [2, 2], [2, 2]]),
        plane().boundary_conditions | {"x": (0, 1)},
    ],
)
def test_boundaries_may_be_names_or_ids(sides):
    plan = WalrusProcessor().plan((128, 256), sides, seed=0)
    assert plan.boundaries == ((0, 1), (2, 2), (2, 2))
    assert plan.grid == (128, 256, 1)


def test_tokens_per_axis_is_the_compute_dial():
    processor = WalrusProcessor(tokens_per_axis=32, tokens_per_axis_3d=16)
    planes = [processor.plan((256, 256), PERIODIC, tokens).tokens for tokens in (None, 16, 64)]
    assert planes == [(32, 32, 1), (16, 16, 1), (64, 64, 1)]
    volume = [(2, 2)] * 3
    assert processor.plan((64, 64, 64), volume).tokens == (16, 16, 16)
    assert processor.plan((64, 64, 64), volume, 8).tokens == (8, 8, 8)


def test_jitter_can_be_switched_off_by_setting_and_by_call():
    assert not any(WalrusProcessor(jitter=False).plan((256, 256), PERIODIC).patch_shifts)
    assert not any(WalrusProcessor().plan((256, 256), PERIODIC, jitter=False).patch_shifts)
    assert any(WalrusProcessor(jitter=False).plan((256, 256), PERIODIC, jitter=True, seed=0).patch_shifts)


def test_a_grid_outside_the_published_table_is_warned_of_once():
    processor = WalrusProcessor()
    with pytest.warns(UserWarning, match="unmeasured"):
        processor.plan((99, 128), PERIODIC)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        processor.plan((99, 128), PERIODIC)
        processor.plan((256, 128), PERIODIC)
    with pytest.warns(UserWarning, match=r"\(128, 99, 1\)"):
        processor.plan((128, 99), PERIODIC)


@pytest.mark.parametrize(
    ("grid", "sides", "message"),
    [
        ((), {}, "1 to 3 axes"),
        ((8, 8, 8, 8), PERIODIC, "1 to 3 axes"),
        ((64, 64), {"x": "periodic"}, "one entry for each of 2 axes, found 1"),
        ((64, 64), "periodic", "one entry for each axis, found 'periodic'"),
        ((64, 64), {"x": "periodic", "y": "sticky"}, "'wall' .* found 'sticky'"),
        ((64, 64), {"x": ("periodic", "wall"), "y": "wall"}, "one side is periodic and the other is not"),
        ((64, 4), PERIODIC, "at least 8 cells .* found 4"),
    ],
)
def test_unusable_grids_and_boundaries_are_refused(grid, sides, message):
    with pytest.raises(ValueError, match=message):
        WalrusProcessor().plan(grid, sides)


def test_no_tokens_at_all_are_refused():
    with pytest.raises(ValueError, match="at least one token"):
        WalrusProcessor().plan((64, 64), PERIODIC, tokens_per_axis=0)


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "messages"),
    [
        ({"presure": array(2, 8, 8)}, ["unknown field 'presure'", "'pressure'", "--field-name presure=NAME"]),
        ({"TEMPERATURE": array(2, 8, 8)}, ["perhaps 'temperature'"]),
        ({"vorticity": array(2, 8, 8)}, ["unknown field 'vorticity'", "64 field names"]),
        ({"velocty": array(2, 8, 8, 2)}, ["unknown field 'velocty' (as 'velocty_x')", "'velocity'"]),
        ({"bias_correction": array(2, 8, 8)}, ["unknown field 'bias_correction'"]),
        ({"velocity": array(2, 8, 8)}, ["expected a vector or tensor", "found a scalar"]),
        ({"pressure": array(2, 8, 8, 2)}, ["field 'pressure': expected a scalar", "found a vector"]),
        ({"velocity_x": array(2, 8, 8)}, ["field 'velocity': its component 'y' is missing", "all 2 components"]),
        ({"D_xx": array(2, 8, 8), "D_xy": array(2, 8, 8), "D_yy": array(2, 8, 8)}, ["component 'yx' is missing"]),
        ({"velocity": array(2, 8, 8, 2), "velocity_x": array(2, 8, 8)}, ["velocity_x: given twice"]),
        ({"pressure": np.full((2, 8, 8), np.nan)}, ["'pressure', frame 0", "found 64 NaN"]),
        ({"pressure": np.stack([np.zeros((8, 8)), np.full((8, 8), -np.inf)])}, ["'pressure', frame 1"]),
        ({"pressure": np.full((2, 8, 8), -2e18)}, ["'pressure': expected magnitudes up to 1e+18, found 2e+18"]),
    ],
)
def test_unusable_fields_are_refused_with_advice(fields, messages):
    with pytest.raises(ValueError) as error:  # noqa: PT011  (every message is checked below)
        WalrusProcessor()(plane(fields))
    for message in messages:
        assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_component_is_named_by_the_axes_of_the_data():
    with pytest.raises(ValueError, match="component 'z' is missing"):
        WalrusProcessor()(plane({"velocity_x": array(2, 8, 8)}, axes=("x", "z")))
    with pytest.raises(ValueError, match="component 'phi' is missing"):
        WalrusProcessor()(plane({"velocity_theta": array(2, 8, 8)}, axes=("theta", "phi")))


@pytest.mark.parametrize("smallest", [0.0, -1.0])
def test_a_logarithm_of_a_number_that_is_not_positive_is_refused(smallest):
    density = np.ones((2, 8, 8))
    density[1, 2, 3] = smallest
    with pytest.raises(ValueError, match=r"'density': expected positive values .* floor, or take .* out of log_fields"):
        WalrusProcessor(log_fields=["density"])(plane({"density": density}))


@pytest.mark.parametrize("log_fields", [[], ["density"]])
@pytest.mark.parametrize("inside", [0.0, -1.0, 1e30, np.nan, np.inf])
def test_what_stands_inside_obstacles_is_never_read(inside, log_fields):
    mask = RNG.random((16, 8)) > 0.8
    density = np.exp(array(3, 16, 8))
    processor = WalrusProcessor(log_fields=log_fields)
    clean, dirty = (
        processor(plane({"density": values}, obstacle_mask=mask))["field_values"]
        for values in (density, np.where(mask, inside, density))
    )
    torch.testing.assert_close(dirty, clean, rtol=0, atol=0)
    assert not dirty[..., 0][:, :, :, mask].any()


@pytest.mark.parametrize("log_fields", [[], ["density"]])
@pytest.mark.parametrize("inside", [-1.0, 0.0, 2.0, 1e30, np.nan, np.inf])
def test_constant_fields_keep_inside_obstacles_what_can_be_used(inside, log_fields):
    """A constant mask, for one, tells the model where obstacles are."""
    mask = RNG.random((16, 8)) > 0.8
    density = np.exp(array(16, 8))
    processor = WalrusProcessor(log_fields=log_fields)
    constants = {"density": np.where(mask, inside, density)}
    given = plane({"pressure": array(3, 16, 8)}, constant_fields=constants, obstacle_mask=mask)
    found = processor(given)["constant_values"][0, 0, ..., 0].numpy()
    read = np.log10 if log_fields else np.asarray
    kept = inside in (2.0, 1e30) if log_fields else inside in (-1.0, 0.0, 2.0)
    np.testing.assert_allclose(found[mask], read(inside) if kept else 0, rtol=1e-6)
    np.testing.assert_allclose(found[~mask], read(density)[~mask], rtol=1e-6)


def test_a_forecast_of_logarithms_beside_obstacles_can_be_read_again():
    given = plane({"density": np.exp(array(3, 16, 8))}, obstacle_mask=np.eye(16, 8, dtype=bool))
    processor = WalrusProcessor(log_fields=["density"])
    values = processor(given)["field_values"]
    again = processor(processor.postprocess(values, given))["field_values"]
    torch.testing.assert_close(again, values)


def test_bad_constants_are_refused_like_fields():
    with pytest.raises(ValueError, match="constant field 'speed_of_sound'"):
        WalrusProcessor()(plane(constant_fields={"speed_of_sound": np.full((16, 8), np.inf)}))
    with pytest.raises(ValueError, match="unknown field 'porosity'"):
        WalrusProcessor()(plane(constant_fields={"porosity": array(16, 8)}))


@pytest.mark.parametrize("given", [[plane()], {"pressure": array(4, 16, 8)}, array(4, 16, 8)])
def test_what_is_no_trajectory_is_refused_in_words(given):
    with pytest.raises(
        ValueError, match=f"trajectory: expected one walrus_hf.Trajectory, found {type(given).__name__}"
    ):
        WalrusProcessor()(given)


def test_only_torch_tensors_are_returned():
    with pytest.raises(ValueError, match="only 'pt'"):
        WalrusProcessor()(plane(), return_tensors="np")
