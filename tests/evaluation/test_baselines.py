"""Baselines that learn nothing or a linear map, against systems whose solution is known."""

import numpy as np
import pytest
import torch

from walrus_hf import Trajectory, WalrusProcessor
from walrus_hf.evaluation.baselines import (
    DynamicModeDecomposition,
    LinearExtrapolation,
    Persistence,
    linear_forecast,
    load_baseline,
)
from walrus_hf.evaluation.principal_components import PrincipalComponents

GRID = (7, 10)  # H != W, one odd
SIDES = {"x": ("wall", "open"), "y": "periodic"}


def linear_system(modes=4, seed=0):
    """An exactly linear system of two fields: a map between `modes` coordinates, and the patterns they stand for."""
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.normal(size=(modes, modes)))
    # Sizes of fields in their own units lie far apart.
    patterns = rng.normal(size=(modes, 3, *GRID)) * np.array([1e3, 1e-2, 1e-2]).reshape(1, 3, 1, 1)
    return 0.97 * rotation, patterns


def simulated(system, start, frames, dtype=np.float64):
    """A trajectory of the system: pressure and velocity."""
    step, patterns = system
    states = [start]
    for _ in range(frames - 1):
        states.append(step @ states[-1])
    values = np.einsum("tm,mchw->tchw", np.array(states), patterns).astype(dtype)
    fields = {"pressure": values[:, 0], "velocity": np.moveaxis(values[:, 1:], 1, -1)}
    return Trajectory(fields, SIDES, dt=0.5, time=3.0)


def windows_of(trajectories, frames=4, stride=1, processor=None):
    """Batches of one window, with their origin, as a stream gives them."""
    processor = processor or WalrusProcessor()
    for number, trajectory in enumerate(trajectories):
        for start in range(trajectory.num_frames - frames):
            inputs = dict(processor(trajectory.frames(start, start + frames + 1)))
            values = inputs.pop("field_values")
            origin = [{"file": "a.hdf5", "trajectory": number, "start": start, "stride": stride}]
            yield {"field_values": values[:, :-1], "labels": values[:, 1:], **inputs, "source": "a", "window": origin}


def relative_error(forecast, truth):
    return max(
        np.abs(forecast.fields[name] - truth.fields[name]).max() / np.abs(truth.fields[name]).max()
        for name in truth.fields
    )


@pytest.fixture(scope="module")
def system():
    return linear_system()


@pytest.fixture(scope="module")
def fitted(system):
    rng = np.random.default_rng(1)
    baseline = PrincipalComponents(components=8)
    baseline.fit(windows_of([simulated(system, rng.normal(size=4), 20) for _ in range(6)]))
    return baseline


def test_linear_extrapolation_is_exact_for_linear_motion():
    rng = np.random.default_rng(0)
    place, speed = rng.normal(size=(2, *GRID, 2))
    times = np.arange(9.0).reshape(-1, 1, 1, 1)
    whole = Trajectory({"velocity": place + times * speed}, SIDES, dt=0.25, time=1.0)
    forecast = LinearExtrapolation().predict(whole.frames(0, 4), 5)
    np.testing.assert_allclose(forecast.fields["velocity"], whole.fields["velocity"][4:], atol=1e-12)
    assert forecast.time == 2.0
    assert Persistence().predict(whole.frames(0, 4), 5).time == 2.0


def test_dynamic_mode_decomposition_recovers_a_linear_system(system):
    whole = simulated(system, np.array([1.0, -2.0, 0.5, 1.0]), 40)
    forecast = DynamicModeDecomposition(max_growth=None).predict(whole.frames(0, 10), 30)
    assert relative_error(forecast, whole.frames(10)) < 1e-6
    bounded = DynamicModeDecomposition().predict(whole.frames(0, 10), 30)
    assert relative_error(bounded, whole.frames(10)) < 1e-6, "a system that does not grow is not changed by the bound"


def test_dynamic_mode_decomposition_continues_a_travelling_wave_of_single_precision():
    x = np.arange(32) * 2 * np.pi / 32
    waves = [np.cos(k * (x[None, :, None] - 0.07 * np.arange(40)[:, None, None])) / k for k in (1, 2, 3)]
    whole = Trajectory(
        {"pressure": (sum(waves) + np.zeros((1, 1, 5))).astype(np.float32)}, {"x": "periodic", "y": "periodic"}
    )
    forecast = DynamicModeDecomposition().predict(whole.frames(0, 12), 28)
    assert forecast.fields["pressure"].dtype == np.float32
    assert relative_error(forecast, whole.frames(12)) < 1e-2
    assert relative_error(Persistence().predict(whole.frames(0, 12), 28), whole.frames(12)) > 1


def test_the_bound_of_growth_holds_back_what_grows_and_nothing_else():
    times, rng = np.arange(30.0), np.random.default_rng(0)
    growing, turning, still = np.linalg.qr(rng.normal(size=(50, 3)))[0].T
    frames = 1.3 ** times[:, None] * growing + np.cos(0.3 * times)[:, None] * turning
    frames += np.sin(0.3 * times)[:, None] * still
    free = linear_forecast(frames[:10], 20)
    np.testing.assert_allclose(free, frames[10:], rtol=1e-6, atol=1e-6)
    bounded = linear_forecast(frames[:10], 20, max_growth=1.0)
    np.testing.assert_allclose(bounded @ turning, np.cos(0.3 * times[10:]), atol=1e-6)
    np.testing.assert_allclose(bounded @ growing, np.full(20, 1.3**10), rtol=1e-6)


def test_frames_that_never_change_are_forecast_as_they_are():
    for value in (0.0, 3.0):
        still = Trajectory({"pressure": np.full((4, *GRID), value, np.float32)}, SIDES)
        for baseline in (Persistence(), LinearExtrapolation(), DynamicModeDecomposition()):
            forecast = baseline.predict(still, 3).fields["pressure"]
            np.testing.assert_allclose(forecast, np.full((3, *GRID), value), rtol=1e-6, err_msg=baseline.name)


def test_what_lies_inside_obstacles_does_not_count():
    rng, mask = np.random.default_rng(0), np.zeros(GRID, bool)
    mask[1:3, 4:6] = True
    whole = simulated(linear_system(), np.array([1.0, -2.0, 0.5, 1.0]), 20)
    clean, dirty = ({name: values.copy() for name, values in whole.fields.items()} for _ in range(2))
    for name in clean:
        clean[name][:, mask] = 0.0
        dirty[name][:, mask] = 1e6 * rng.normal(size=dirty[name][:, mask].shape)
    clean, dirty = (Trajectory(fields, SIDES, obstacle_mask=mask) for fields in (clean, dirty))
    forecast = DynamicModeDecomposition().predict(dirty.frames(0, 10), 10)
    assert relative_error(forecast, clean.frames(10)) < 1e-6


@pytest.mark.parametrize(("dtype", "expected"), [("float64", "float64"), ("float16", "float32"), ("int32", "float64")])
def test_forecasts_have_the_precision_of_their_context(dtype, expected):
    context = Trajectory({"pressure": np.arange(3 * 70).reshape(3, *GRID).astype(dtype)}, SIDES)
    for baseline in (LinearExtrapolation(), DynamicModeDecomposition()):
        assert baseline.predict(context, 2).fields["pressure"].dtype == expected


def test_principal_components_recover_a_linear_system_from_other_trajectories(system, fitted):
    assert len(fitted.arrays["components"]) == 4, "the system has four modes"
    whole = simulated(system, np.array([-0.3, 1.5, 2.0, -1.0]), 24)
    forecast = fitted.predict(whole.frames(0, 4), 20)
    assert relative_error(forecast, whole.frames(4)) < 1e-4  # inputs are float32
    one_step = fitted.predict(whole.frames(0, 4), 1)
    assert relative_error(one_step, whole.frames(4, 5)) < 1e-6
    assert forecast.time == whole.time + 4 * whole.dt


def test_principal_components_keep_what_they_do_not_span(system, fitted):
    whole = simulated(system, np.array([-0.3, 1.5, 2.0, -1.0]), 5)
    rng = np.random.default_rng(3)
    apart = {name: 0.1 * np.abs(v).max() * rng.normal(size=v.shape[1:]) for name, v in whole.fields.items()}
    # Noise has a part inside the four modes; only what lies outside is left as it is.
    frames = np.concatenate([apart["pressure"][None], np.moveaxis(apart["velocity"], -1, 0)])
    flat = (frames / fitted.arrays["scales"][:, None, None]).ravel()
    components = fitted.arrays["components"]
    flat -= components.T @ (components @ flat)
    outside = flat.reshape(3, *GRID) * fitted.arrays["scales"][:, None, None]
    shifted = Trajectory(
        {
            "pressure": whole.fields["pressure"] + outside[0],
            "velocity": whole.fields["velocity"] + np.moveaxis(outside[1:], 0, -1),
        },
        SIDES,
    )
    forecast = fitted.predict(shifted.frames(0, 4), 1)
    assert relative_error(forecast, shifted.frames(4)) < 1e-5


def test_principal_components_are_the_same_after_saving_and_loading(system, fitted, tmp_path):
    context = simulated(system, np.array([0.2, 0.4, -2.0, 1.0]), 6)
    fitted.save(tmp_path / "pca")
    loaded = load_baseline(tmp_path / "pca")
    assert (loaded.name, loaded.parameters) == ("pca", fitted.parameters)
    for name, values in fitted.predict(context, 3).fields.items():
        np.testing.assert_array_equal(loaded.predict(context, 3).fields[name], values)
    with pytest.raises(FileExistsError, match="overwrite"):
        fitted.save(tmp_path / "pca")
    fitted.save(tmp_path / "pca", overwrite=True)
    (tmp_path / "pca" / "thesis.tex").write_text("")
    with pytest.raises(FileExistsError, match=r"thesis\.tex"):
        fitted.save(tmp_path / "pca", overwrite=True)


def test_principal_components_refuse_mixed_streams_and_other_data(system, fitted):
    one = [simulated(system, np.ones(4), 8), simulated(system, -np.ones(4), 8)]
    other_fields = Trajectory({"density": np.random.default_rng(0).normal(size=(8, *GRID))}, SIDES)
    with pytest.raises(ValueError, match=r"one data set.*pressure.*density"):
        PrincipalComponents().fit(windows_of([*one, other_fields]))
    with pytest.raises(ValueError, match="stride_range"):
        PrincipalComponents().fit([*windows_of(one), *windows_of(one, stride=2)])
    mixed = next(windows_of(one))
    mixed["window"] = [{**mixed["window"][0], "stride": stride} for stride in (1, 3)]
    with pytest.raises(ValueError, match=r"found strides \[1, 3\]"):
        PrincipalComponents().fit([mixed])
    with pytest.raises(ValueError, match="at least 2 trajectories"):
        PrincipalComponents().fit(windows_of(one[:1]))
    with pytest.raises(ValueError, match="the fields and the grid it was fitted to"):
        fitted.predict(other_fields, 1)
    with pytest.raises(ValueError, match="at least 4 frames"):
        fitted.predict(one[0].frames(0, 3), 1)
    with pytest.raises(ValueError, match="fit"):
        PrincipalComponents().predict(one[0], 1)


def test_a_second_fit_replaces_the_first(system, fitted):
    baseline = PrincipalComponents(components=2)
    density = [Trajectory({"density": np.random.default_rng(seed).normal(size=(9, *GRID))}, SIDES) for seed in range(3)]
    baseline.fit(windows_of(density))
    rng = np.random.default_rng(1)
    baseline.components = 8
    baseline.fit(windows_of([simulated(system, rng.normal(size=4), 20) for _ in range(6)]))
    context = simulated(system, np.ones(4), 6)
    expected = fitted.predict(context, 2).fields["pressure"]
    np.testing.assert_array_equal(baseline.predict(context, 2).fields["pressure"], expected)


def test_a_linear_map_that_grows_ends_in_nan_frames(system, fitted, tmp_path):
    fitted.save(tmp_path / "pca")
    loaded = load_baseline(tmp_path / "pca")
    loaded.arrays["coefficients"] = loaded.arrays["coefficients"] * 1e9
    forecast = loaded.predict(simulated(system, np.ones(4), 5), 60).fields["pressure"]
    assert np.isfinite(forecast[0]).all()
    assert np.isnan(forecast[-1]).all()


def test_reading_stops_after_the_windows_bytes_or_seconds_that_are_allowed(system):
    def counted(seen):
        rng = np.random.default_rng(0)
        while True:
            for batch in windows_of([simulated(system, rng.normal(size=4), 8)]):
                seen.append(torch.cat([batch["field_values"], batch["labels"][:, -1:]], 1)[:, :, :3].nbytes)
                yield {**batch, "window": []}

    for limits in ({"windows": 12}, {"max_bytes": 12 * 5 * 3 * 70 * 4}):
        seen: list[int] = []
        PrincipalComponents(2).fit(counted(seen), **limits)
        assert len(seen) == 12, limits
    seen = []
    PrincipalComponents(2).fit(counted(seen), seconds=0.05)
    assert 2 <= len(seen) < 500


def test_what_cannot_be_loaded_is_said_in_one_line(tmp_path):
    assert load_baseline("persistence").name == "persistence"
    assert load_baseline("dmd").parameters == 0
    with pytest.raises(FileNotFoundError, match="linear_extrapolation"):
        load_baseline("persistance")
    for content in ("", "{}", '{"format": "walrus_hf.baseline/9"}', "[1]"):
        (tmp_path / "baseline.json").write_text(content)
        with pytest.raises(ValueError, match="trained baseline"):
            load_baseline(tmp_path)


@pytest.mark.parametrize("name", ["persistence", "linear_extrapolation", "dmd"])
def test_useless_contexts_are_refused(name):
    baseline = load_baseline(name)
    one = Trajectory({"pressure": np.ones((3, *GRID))}, SIDES)
    with pytest.raises(ValueError, match="at least 1"):
        baseline.predict(one, 0)
    if name != "persistence":
        with pytest.raises(ValueError, match="at least 2 frames"):
            baseline.predict(one.frames(0, 1), 1)
        one.fields["pressure"][1, 2, 3] = np.nan
        with pytest.raises(ValueError, match="frame 1"):
            baseline.predict(one, 1)
