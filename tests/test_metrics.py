"""Metrics against The Well's own and against values that are known by hand."""

import types
import warnings

import numpy as np
import pytest
import torch

from walrus_hf import metrics
from walrus_hf.fields import Trajectory


def trajectory(fields, **kwargs):
    return Trajectory(fields, {"x": "wall", "y": "wall"}, **kwargs)


@pytest.fixture
def pair():
    """A forecast and its truth with a scalar, a vector and a tensor, 4 frames of 6 x 9."""
    rng = np.random.default_rng(0)
    shapes = {"pressure": (4, 6, 9), "velocity": (4, 6, 9, 2), "D": (4, 6, 9, 2, 2)}
    truth = {name: rng.normal(3, 2, size=shape) for name, shape in shapes.items()}
    forecast = {name: values + rng.normal(0, 0.5, size=values.shape) for name, values in truth.items()}
    return trajectory(forecast), trajectory(truth)


@pytest.mark.parametrize(("ours", "theirs"), [(metrics.vrmse, "VRMSE"), (metrics.nrmse, "NRMSE")])
@pytest.mark.parametrize("grid", [(11,), (6, 9), (3, 5, 4)])
def test_vrmse_and_nrmse_equal_the_wells(ours, theirs, grid):
    well = pytest.importorskip("the_well.benchmark.metrics.spatial")
    rng = np.random.default_rng(1)
    prediction, truth = rng.normal(size=(2, 3, 7, *grid, 5)) * np.arange(1, 6) + 4
    meta = types.SimpleNamespace(n_spatial_dims=len(grid))
    expected = getattr(well, theirs)()(torch.from_numpy(prediction), torch.from_numpy(truth), meta).numpy()
    found = ours(prediction, truth, spatial_axes=range(2, 2 + len(grid)))
    assert found.shape == (3, 7, 5)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_score_is_the_wells_vrmse_averaged_over_components(pair):
    well = pytest.importorskip("the_well.benchmark.metrics.spatial")
    forecast, truth = pair
    found = metrics.score(forecast, truth)
    meta = types.SimpleNamespace(n_spatial_dims=2)
    for name, values in truth.fields.items():
        flat = [torch.from_numpy(x.reshape(4, 6, 9, -1)) for x in (forecast.fields[name], values)]
        expected = well.VRMSE.eval(*flat, meta).mean(dim=-1).numpy()
        np.testing.assert_allclose(found[name], expected, rtol=1e-12)


def test_a_forecast_of_the_spatial_mean_scores_one_and_a_perfect_one_zero(pair):
    truth = pair[1]
    means = {name: values.mean(axis=(1, 2), keepdims=True) for name, values in truth.fields.items()}
    mean_forecast = trajectory({name: np.broadcast_to(means[name], v.shape) for name, v in truth.fields.items()})
    for values in metrics.score(mean_forecast, truth).values():
        np.testing.assert_allclose(
            values, np.sqrt((6 * 9 - 1) / (6 * 9)), rtol=1e-6
        )  # the variance is the unbiased one
    for values in metrics.score(truth, truth).values():
        np.testing.assert_array_equal(values, np.zeros(4))


def test_nrmse_of_twice_the_truth_is_one(pair):
    truth = pair[1].fields["pressure"]
    np.testing.assert_allclose(metrics.nrmse(2 * truth, truth, (1, 2)), 1, rtol=1e-6)


def test_vrmse_of_a_truth_constant_in_space_is_bounded_by_eps_alone():
    truth = np.full((1, 4, 5), 2.0)
    np.testing.assert_allclose(metrics.vrmse(truth + 0.01, truth, (1, 2)), 0.01 / np.sqrt(1e-7))


@pytest.mark.parametrize("unit", [1e-4, 1e-12])
def test_scores_in_units_so_large_that_eps_hides_the_truth_are_warned_about(pair, unit):
    forecast, truth = (trajectory({name: unit * values for name, values in x.fields.items()}) for x in pair)
    still = trajectory({name: np.full_like(values, 1.0) for name, values in truth.fields.items()})
    with pytest.warns(
        UserWarning, match="'pressure' varies in space by less than 1e-03 of its units.* scores too well"
    ):
        metrics.score(forecast, truth)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics.score(*pair)
        metrics.score(forecast, still)


def test_cells_inside_obstacles_are_left_out_of_the_score(pair):
    forecast, truth = pair
    mask = np.zeros((6, 9), dtype=bool)
    mask[2:4, 3:6] = True
    spoiled = {
        name: np.where(mask.reshape(6, 9, *[1] * (v.ndim - 3)), np.nan, v) for name, v in forecast.fields.items()
    }
    found = metrics.score(trajectory(spoiled), trajectory(truth.fields, obstacle_mask=mask))
    free = {n: [x.fields[n][:, ~mask].reshape(4, 48, -1) for x in (forecast, truth)] for n in truth.fields}
    for name, (f, t) in free.items():
        error = np.sqrt(((f - t) ** 2).mean(axis=1) / (t.var(axis=1, ddof=1) + 1e-7))
        np.testing.assert_allclose(found[name], error.mean(axis=-1), rtol=1e-12)


def test_a_forecast_that_blew_up_scores_nan_from_there_on(pair):
    forecast, truth = pair
    forecast.fields["pressure"][2:, 1, 1] = np.nan
    np.testing.assert_array_equal(np.isnan(metrics.score(forecast, truth)["pressure"]), [False, False, True, True])


def test_persistence_repeats_the_last_frame_at_the_times_that_follow(pair):
    context = trajectory(pair[1].fields, dt=0.5, time=2.0, constant_fields={"density": np.ones((6, 9))})
    forecast = metrics.persistence(context, steps=3)
    assert forecast.num_frames == 3
    assert forecast.time == 4.0
    for name, values in forecast.fields.items():
        assert values.strides[0] == 0  # a thousand steps take no more memory than one
        for frame in values:
            np.testing.assert_array_equal(frame, context.fields[name][-1])
    np.testing.assert_array_equal(forecast.constant_fields["density"], np.ones((6, 9)))
    with pytest.raises(ValueError, match="steps"):
        metrics.persistence(context, steps=0)


def test_windows_count_steps_from_one_and_include_both_ends():
    found = metrics.lead_time_windows({"B": np.array([1.0, 2.0, 3.0, 10.0])}, [(1, 1), (1, 2), (3, 4)])
    assert found == {"B": {"1:1": 1.0, "1:2": 1.5, "3:4": 6.5}}


@pytest.mark.parametrize("window", [(0, 2), (3, 2), (1, 5)])
def test_windows_beyond_the_steps_are_refused(window):
    with pytest.raises(ValueError, match="expected steps from 1 to 4"):
        metrics.lead_time_windows({"B": np.ones(4)}, [window])


def test_the_spectrum_finds_the_wave_that_was_put_in():
    x, y = np.meshgrid(np.arange(32), np.arange(48), indexing="ij")
    waves = 5 + 3 * np.cos(2 * np.pi * (2 * x / 32 + 4 * y / 48))  # 3 and 4 waves along 48 cells: wavenumber 5
    wavenumber, power = metrics.power_spectrum(waves)
    np.testing.assert_array_equal(wavenumber[:6], np.arange(6))
    np.testing.assert_allclose(power[[0, 5]], [25, 4.5])
    np.testing.assert_allclose(np.delete(power, [0, 5]), 0, atol=1e-20)


@pytest.mark.parametrize("shape", [(17,), (8, 13), (4, 6, 5)])
def test_the_spectrum_sums_to_the_mean_square(shape):
    values = np.random.default_rng(2).normal(size=(3, *shape, 2))
    axes = tuple(range(1, 1 + len(shape)))
    wavenumber, power = metrics.power_spectrum(values, spatial_axes=axes)
    assert power.shape == (3, 2, len(wavenumber))
    np.testing.assert_allclose(power.sum(axis=-1), (values**2).mean(axis=axes))


def test_forecasts_that_do_not_fit_the_truth_are_refused(pair):
    forecast, truth = pair
    with pytest.raises(ValueError, match="found D, pressure"):
        metrics.score(trajectory({n: forecast.fields[n] for n in ("D", "pressure")}), truth)
    with pytest.raises(ValueError, match="found 3 and 4"):
        metrics.score(forecast.frames(1), truth)
    cut = trajectory({name: values[:, :, 1:] for name, values in forecast.fields.items()})
    with pytest.raises(ValueError, match=r"'pressure': expected the truth's shape \(4, 6, 9\), found \(4, 6, 8\)"):
        metrics.score(cut, truth)


@pytest.mark.parametrize("axes", [(), (0, 5), (-4,)])
def test_axes_that_do_not_exist_are_refused(axes):
    with pytest.raises(ValueError, match="spatial_axes"):
        metrics.vrmse(np.ones((2, 3, 4)), np.ones((2, 3, 4)), axes)


def test_shapes_that_differ_and_single_cells_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\), found \(3, 2\)"):
        metrics.vrmse(np.ones((3, 2)), np.ones((2, 3)), (1,))
    with pytest.raises(ValueError, match="two cells"):
        metrics.vrmse(np.ones((3, 1)), np.ones((3, 1)), (1,))
