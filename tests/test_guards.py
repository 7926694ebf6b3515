"""Inputs that once made a forecast silently wrong: each is refused, warned of, or forecast right."""

import re
import warnings

import numpy as np
import pytest
import torch

from walrus_hf import Trajectory, WalrusConfig, WalrusPipeline, WalrusProcessor
from walrus_hf.normalization import delta_scales, field_scales

from .small_model import small_inputs, small_model

BOX = {"x": "periodic", "y": "wall"}


@pytest.fixture(scope="module")
def pipe():
    return WalrusPipeline(small_model(field2id=None))


def frames(scale=1.0, seed=0, grid=(16, 24), mask=None):
    values = np.random.default_rng(seed).normal(size=(4, *grid)).cumsum(0) * scale
    return Trajectory({"pressure": values.astype(np.float32)}, BOX, obstacle_mask=mask)


def predict(pipe, trajectory, steps=3):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pipe.predict(trajectory, steps, seed=0, progress=False).fields["pressure"]


def test_what_a_file_holds_inside_obstacles_does_not_change_the_forecast(pipe):
    mask = np.zeros((16, 24), dtype=bool)
    mask[4:8, 5:9] = True
    hot, cold = frames(mask=mask), frames(mask=mask)
    hot.fields["pressure"][:, mask] = 300.0
    cold.fields["pressure"][:, mask] = 0.0
    forecast = predict(pipe, hot)
    assert np.array_equal(forecast, predict(pipe, cold))
    assert not forecast[:, mask].any()
    assert forecast[:, ~mask].all()


def test_obstacle_cells_of_a_logarithmic_field_are_zero_too(pipe):
    mask = np.zeros((16, 24), dtype=bool)
    mask[:3] = True
    density = np.exp(np.random.default_rng(0).normal(size=(3, 16, 24))).astype(np.float32)
    trajectory = Trajectory({"density": density}, BOX, obstacle_mask=mask)
    processor = WalrusProcessor(log_fields=["density"])
    back = processor.postprocess(processor(trajectory)["field_values"], trajectory)
    assert not back.fields["density"][:, mask].any()
    np.testing.assert_allclose(back.fields["density"][:, ~mask], density[:, ~mask], rtol=1e-5)


@pytest.mark.parametrize("magnitude", [1e-12, 1.0, 1e17, 3e18])
def test_scales_hold_over_the_whole_range_of_float32(magnitude):
    x = torch.randn(2, 3, 2, 64, 48, 1, generator=torch.Generator().manual_seed(0)) * magnitude
    for scales, values in ((field_scales(x, 0.0), x), (delta_scales(x, 0.0), x[:, 1:] - x[:, :-1])):
        expected = values.double().square().mean((1, 3, 4, 5)).sqrt()
        assert (scales.double() / expected - 1).abs().max() < 1e-5


def test_a_processor_of_another_vocabulary_is_refused():
    with pytest.raises(ValueError, match=r"processor: its vocabulary gives .* load both from one checkpoint"):
        WalrusPipeline(small_model(), WalrusProcessor())


def test_a_field_in_very_large_units_is_warned_of(pipe):
    with pytest.warns(UserWarning, match=r"field 'pressure' changes by .* give it in smaller units"):
        pipe.predict(frames(1e-9), 1, seed=0, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="grid")
        pipe.predict(frames(1.0), 1, seed=0, progress=False)


def test_a_plan_for_other_boundaries_is_refused(pipe):
    plan = pipe.processor.plan((16, 24), {"x": "periodic", "y": "periodic"})
    with pytest.raises(ValueError, match="plan: made for another grid or other boundaries"):
        pipe.processor(frames(), plan=plan)


def test_the_seamless_decoder_can_be_switched_on_a_loaded_model():
    model, inputs = small_model(), small_inputs()
    with torch.no_grad():
        before = model(**inputs).prediction
        model.config.seamless_decoder = True
        assert not torch.equal(model(**inputs).prediction, before)


def test_misspelt_arguments_are_refused():
    model, inputs = small_model(), small_inputs()
    with pytest.raises(TypeError, match="unexpected arguments: boundary_condition"):
        model(**inputs, boundary_condition=torch.zeros(2, 3, 2))


@pytest.mark.parametrize("bad", [{"tokens_per_axis": 0}, {"num_hidden_layers": 0}, {"scale_eps": 0.0}])
def test_configurations_that_cannot_work_are_refused(bad):
    with pytest.raises(Exception, match="expected"):
        WalrusConfig(**bad)


@pytest.mark.parametrize("bad", [{"dt": 0.0}, {"dt": -1.0}, {"dt": float("nan")}, {"time": float("inf")}])
def test_times_that_do_not_advance_are_refused(bad):
    with pytest.raises(ValueError, match="expected a time step dt > 0 and a finite time"):
        Trajectory({"pressure": np.zeros((2, 16, 24))}, BOX, **bad)


def test_components_given_apart_are_lifted_on_axes_of_any_name():
    parts = {name: np.ones((2, 16, 24)) for name in ("velocity_x", "velocity_y")}
    sides = {"h": "wall", "w": "wall"}
    trajectory = Trajectory(parts, sides, axes=("h", "w"))
    names = [channel.name for channel in WalrusProcessor().channels(trajectory)]
    assert names == ["velocity_x", "velocity_y", "velocity_z"]
    with pytest.raises(ValueError, match="missing"):
        WalrusProcessor().channels(
            Trajectory({"velocity_x": parts["velocity_x"]}, {"h": "wall", "w": "wall"}, axes=("h", "w"))
        )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"labels": lambda x: x["labels"][:, -1:]}, "labels: expected .* (2, 3, 3, 16, 24, 1), found (2, 1, 3,"),
        ({"labels": lambda x: x["labels"][0, 0]}, "labels: expected .*, found (3, 16, 24, 1)"),
        ({"labels": lambda x: x["labels"][:, :, :1]}, "labels: expected"),
        ({"padded_channels": lambda _: torch.zeros(3, dtype=torch.bool)}, "padded_channels: expected (batch, chan"),
        (
            {"obstacle_mask": lambda _: torch.zeros(2, 16, 1, 1, dtype=torch.bool)},
            "obstacle_mask: expected .* (2, 16, 24",
        ),
        ({"field_values": lambda x: x["field_values"][:, :0]}, "at least one frame and one channel, found 0 and 3"),
        ({"field_ids": lambda _: torch.tensor([[3, 7, 5], [3, 5, 7]])}, "field_ids: expected the same fields in all"),
        ({"field_ids": lambda x: x["field_ids"] + 20}, "ids of another vocabulary: load_stream"),
        ({"field_ids": lambda x: x["field_ids"].float()}, "field_ids: expected whole numbers"),
        (
            {"constant_values": lambda _: torch.ones(2, 1, 16, 24, 1), "constant_ids": lambda _: torch.tensor([9])},
            "constant_ids: expected (batch, constants) (2, 'one or more'), found (1,)",
        ),
        ({"patch_shifts": lambda _: (1, 2)}, "patch_shifts: expected 3 whole numbers, for H, W and D, found 2"),
        (
            {"layer_shifts": lambda _: [(1, 0, 0), (0, 0, 0)], "jitter": lambda _: False},
            "layer_shifts were given with jitter=False: leave out one of the two",
        ),
    ],
)
def test_inputs_that_would_be_broadcast_or_cut_are_refused(wrong, message):
    inputs = small_inputs(labels=True)
    inputs |= {name: make(inputs) for name, make in wrong.items()}
    pattern = ".*".join(re.escape(part) for part in message.split(".*"))
    with pytest.raises(ValueError, match=pattern):
        small_model()(**inputs)
    if "labels" not in wrong:
        del inputs["labels"]
        with pytest.raises(ValueError, match=pattern):
            small_model().model(**inputs)


@pytest.mark.parametrize(("offset", "step"), [(101325.0, 1e-3), (1e8, 1.0), (1e12, 1.0)])
def test_a_change_that_float32_does_not_hold_beside_an_offset_is_warned_of(pipe, offset, step):
    values = offset + step * np.random.default_rng(0).normal(size=(4, 16, 24)).cumsum(0)
    with pytest.warns(UserWarning, match=r"field 'pressure' changes by less a frame than float32 tells apart"):
        pipe.predict(Trajectory({"pressure": values}, BOX), 1, seed=0, progress=False)


def test_a_change_inside_an_obstacle_alone_is_none(pipe):
    mask = np.zeros((16, 24), dtype=bool)
    mask[4:8, 5:9] = True
    values = np.full((4, 16, 24), 1e8)
    values[:, mask] = np.arange(64.0).reshape(4, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="grid")
        pipe.predict(Trajectory({"pressure": values}, BOX, obstacle_mask=mask), 1, seed=0, progress=False)


def test_labels_of_the_kept_frames_alone_and_masks_for_all_samples_are_taken():
    model, inputs = small_model(), small_inputs(labels=True)
    padded, obstacles = torch.tensor([[False, True, False]]), torch.zeros(1, 16, 24, 1, dtype=torch.bool)
    obstacles[:, 3:7] = True
    with torch.no_grad():
        whole = model(**inputs, frames_to_keep=1, padded_channels=padded.expand(2, -1),
                      obstacle_mask=obstacles.expand(2, -1, -1, -1))  # fmt: skip
        inputs["labels"] = inputs["labels"][:, -1:]
        assert model(**inputs, frames_to_keep=1, padded_channels=padded, obstacle_mask=obstacles).loss == whole.loss
        with pytest.raises(ValueError, match="labels: expected"):
            model(**inputs)


@pytest.mark.parametrize(
    "values",
    [
        np.full((4, 16, 24), 1e8), frames().fields["pressure"] + 1e4,
        300 * (1 + 1e-15 * np.random.default_rng(0).normal(size=(4, 16, 24))),
    ],
)  # fmt: skip
def test_what_stands_still_or_changes_enough_is_not_warned_of(pipe, values):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="grid")
        pipe.predict(Trajectory({"pressure": values}, BOX), 1, seed=0, progress=False)


def test_misspelt_settings_of_the_processor_are_told_and_others_of_transformers_kept():
    with pytest.warns(UserWarning, match="setting 'tokens_per_axes' is not known .* perhaps 'tokens_per_axis'"):
        WalrusProcessor(tokens_per_axes=4)
    with pytest.raises(ValueError, match=r"log_fields: expected a list of names such as \['density'\]"):
        WalrusProcessor(log_fields="density")
    assert WalrusProcessor(auto_map={"AutoProcessor": "own.Own"}).to_dict()["auto_map"] == {"AutoProcessor": "own.Own"}


def test_plans_take_boundaries_as_trajectories_do():
    sides = {"x": np.int64(2), "y": np.array([0, 1])}
    plan = WalrusProcessor().plan((16, 24), sides)
    assert plan.boundaries[:2] == ((2, 2), (0, 1))
    assert [list(pair) for pair in Trajectory({"A": np.zeros((2, 16, 24))}, sides).boundary_ids()] == [[2, 2], [0, 1]]
