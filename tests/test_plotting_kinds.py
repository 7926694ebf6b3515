"""Volumes, spectra, training curves, intervals, units, colour maps, and the strips of a page."""

import base64
import io

import numpy as np
import pytest

pytest.importorskip("matplotlib")
from PIL import Image

from walrus_hf import curves, films, panels, plotting
from walrus_hf.fields import Trajectory
from walrus_hf.panels import View


def cube(values, **kwargs):
    return Trajectory({"A": values}, dict.fromkeys("xyz", "wall"), axes=("x", "y", "z"), **kwargs)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


# --- volumes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("axis", "number"), [("x", 0), ("y", 1), ("z", 2), (None, 2)])
def test_a_slice_is_the_middle_plane_across_its_axis(axis, number):
    values = noise(2, 5, 4, 6)
    (shown,) = panels.planes("A", cube(values), None, View("slice", axis))
    np.testing.assert_array_equal(shown, np.take(values, (5, 4, 6)[number] // 2, axis=number + 1))


@pytest.mark.parametrize(("axis", "number"), [("x", 0), ("y", 1), ("z", 2)])
def test_a_maximum_is_the_largest_value_and_of_signed_fields_the_one_farthest_from_zero(axis, number):
    values = noise(2, 5, 4, 6)
    (signed,) = panels.planes("A", cube(values), None, View("maximum", axis))
    np.testing.assert_array_equal(np.abs(signed), np.abs(values).max(axis=number + 1))
    assert (signed < 0).any()
    (negative,) = panels.planes("A", cube(values - 10), None, View("maximum", axis))
    np.testing.assert_array_equal(negative, (values - 10).max(axis=number + 1))


def test_the_error_of_a_maximum_is_the_largest_error_and_not_the_difference_of_maxima():
    truth, forecast = np.full((1, 4, 3, 5), 10.0), np.full((1, 4, 3, 5), 10.0)
    truth[0, 1, 1, 0] = forecast[0, 1, 1, 4] = 12.0  # the same maximum at another place
    _, _, error = panels.planes("A", cube(forecast), cube(truth), View("maximum"))
    assert abs(error[0, 1, 1]) == 2.0


def test_obstacles_and_what_is_not_finite_never_are_the_maximum():
    values, mask = noise(1, 4, 3, 5) ** 2, np.zeros((4, 3, 5), dtype=bool)
    values[0, 0, 0, 1], values[0, 0, 0, 2], mask[0, 0, 2] = np.nan, 1e6, True
    values[0, 1, 1], mask[2, 2] = np.nan, True
    (shown,) = panels.planes("A", cube(values, obstacle_mask=mask), None, View("maximum"))
    assert shown[0, 0, 0] == values[0, 0, 0, [0, 3, 4]].max()
    np.testing.assert_array_equal(np.argwhere(np.isnan(shown[0])), [[1, 1], [2, 2]])


def test_a_volume_is_seen_from_three_sides_on_one_scale(tmp_path):
    truth = cube(noise(3, 8, 6, 4), dt=0.5, name="box")
    forecast = cube(truth.fields["A"] + 0.1 * noise(3, 8, 6, 4, seed=1), dt=0.5, name="box")
    figure = panels.volume_figure(forecast, truth, "A", 2, {"A": "kPa", "time": "ms"})
    images = [axes.images[0] for axes in figure.axes[:12]]
    assert [image.get_array().T.shape for image in images[:4]] == [(6, 4), (8, 4), (8, 6), (8, 6)]
    np.testing.assert_array_equal(images[2].get_array().T, truth.fields["A"][1, :, :, 2])
    np.testing.assert_array_equal(images[5].get_array().T, forecast.fields["A"][1, :, 3])
    assert len({image.get_clim() for image in images[:8]}) == len({image.get_clim() for image in images[8:]}) == 1
    assert images[0].get_clim()[1] == np.abs(truth.fields["A"][1]).max()  # that of the maximum
    assert figure.get_suptitle() == "box\nlead time 1 ms (step 2)"
    assert [axes.get_title() for axes in figure.axes[:3]] == [f"middle slice across {axis}" for axis in "xyz"]
    assert figure.axes[8].get_xlabel() == "y right, z up"
    assert figure.axes[12].get_ylabel() == "A [kPa]"
    assert Image.open(plotting.plot_volume(forecast, truth, tmp_path / "volume.png")).width == 960


def test_unknown_views_axes_and_planes_are_refused(tmp_path):
    volume, path = cube(noise(2, 4, 4, 4)), tmp_path / "film.gif"
    with pytest.raises(ValueError, match="view: expected 'slice' or 'maximum', found 'mean'"):
        plotting.animate(volume, path=path, view="mean")
    with pytest.raises(ValueError, match="along: expected an axis of x, y, z, found 'r'"):
        plotting.animate(volume, path=path, along="r")
    with pytest.raises(ValueError, match="units: expected names among A, time, found 'B'"):
        plotting.animate(volume, path=path, units={"B": "m"})
    plane = Trajectory({"A": noise(2, 4, 4)}, {"x": "wall", "y": "wall"})
    with pytest.raises(ValueError, match="three axes, found x, y; plot_panels shows planes"):
        plotting.plot_volume(plane, path=tmp_path / "volume.png")
    assert not list(tmp_path.iterdir())


# --- units and colours ------------------------------------------------------------------------------------------------


def test_units_and_lead_times_are_written_out():
    plane = Trajectory({"A": noise(4, 6, 5)}, {"x": "wall", "y": "wall"}, dt=0.25, name="my_run")
    named = {"A": "Pa", "time": "s"}
    figure = panels.panels_figure(panels.rows_of(plane, plane, units=named), plane, [1, 4], units=named)
    assert [axes.get_title() for axes in figure.axes[:2]] == ["lead time 0.25 s\n(step 1)", "lead time 1 s\n(step 4)"]
    assert "A [Pa]" in {axes.get_ylabel() for axes in figure.axes}
    assert figure.get_suptitle() == "my run"
    figure = panels.panels_figure(panels.rows_of(plane, plane), plane, [1, 4])
    assert "A [simulation units]" in {axes.get_ylabel() for axes in figure.axes}
    assert figure.get_suptitle() == "my run, times in simulation units"


@pytest.mark.parametrize("name", ["viridis", "magma", "blue_red", "purple_orange"])
def test_equal_steps_of_value_look_equally_large(name):
    lab = oklab(panels.colour_map(name)(np.linspace(0, 1, 65))[:, :3])
    steps = np.linalg.norm(np.diff(lab, axis=0), axis=-1)
    assert steps.std() < 0.22 * steps.mean()
    if name in ("viridis", "magma"):
        assert (np.diff(lab[:, 0]) > 0).all()  # ever lighter
    else:
        lightness = lab[:, 0]
        assert (np.diff(lightness[:33]) > 0).all()
        assert (np.diff(lightness[32:]) < 0).all()
        np.testing.assert_allclose(lightness, lightness[::-1], atol=0.015)  # both signs weigh the same
        assert np.abs(lab[32, 1:]).max() < 0.01  # zero is grey


def oklab(rgb):
    """Ottosson's OKLab from sRGB, with his matrices: the other way round than panels.py goes."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    cones = linear @ np.array([[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
                               [0.0883024619, 0.2817188376, 0.6299787005]]).T  # fmt: skip
    return np.cbrt(cones) @ np.array([[0.2104542553, 0.7936177850, -0.0040720468],
                                      [1.9779984951, -2.4285922050, 0.4505937099],
                                      [0.0259040371, 0.7827717662, -0.8086757660]]).T  # fmt: skip


# --- curves -----------------------------------------------------------------------------------------------------------


def test_intervals_are_bands_around_their_curve():
    curve = np.array([[0.2, 0.3], [0.1, 0.2], [0.4, 0.5]])
    figure = curves.error_figure(curves.curves_by_field({"walrus": curve, "persistence": curve[0] * 3}), "VRMSE", 0.5)
    (axes,) = figure.axes
    (band,) = axes.collections
    corners = {tuple(np.round(corner, 6)) for corner in band.get_paths()[0].vertices}
    assert {(1, 0.1), (2, 0.2), (2, 0.5), (1, 0.4)} <= corners
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [0.2, 0.3])
    assert figure.get_supxlabel() == "lead time (steps of 0.5 simulation units)"


def test_what_stands_inside_obstacles_is_in_no_spectrum(tmp_path, monkeypatch):
    mask = np.zeros((16, 12), dtype=bool)
    mask[4:8, 3:6] = True
    values, sides, powers = noise(2, 16, 12), {"x": "periodic", "y": "wall"}, []
    truth = Trajectory({"a": np.where(mask, np.nan, values)}, sides, obstacle_mask=mask)
    forecast = Trajectory({"a": np.where(mask, 0.0, values)}, sides)
    original = plotting.spectra_figure
    monkeypatch.setattr(plotting, "spectra_figure", lambda shown, *rest: powers.append(shown) or original(shown, *rest))
    plotting.plot_spectra(forecast, truth, tmp_path / "spectra.png", steps=[1])
    ((_, found),) = powers[0].values()
    assert np.isfinite(found["truth"]).all()
    np.testing.assert_array_equal(found["truth"], found["forecast"])


def test_spectra_peak_at_the_wave_that_is_there(tmp_path):
    x = np.arange(32) / 32
    wave = np.broadcast_to(np.sin(2 * np.pi * 5 * x)[:, None], (32, 24))
    truth = Trajectory({"v": np.stack([np.stack([wave, 2 * wave], axis=-1)] * 2)}, {"x": "periodic", "y": "periodic"})
    forecast = Trajectory({"v": truth.fields["v"] / 10}, truth.boundary_conditions)
    shown = []
    original = plotting.spectra_figure
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plotting, "spectra_figure", lambda *given: shown.append(original(*given)) or shown[-1])
        assert Image.open(plotting.plot_spectra(forecast, truth, tmp_path / "spectra.png", steps=[2])).width == 960
    (axes,) = shown[0].axes
    assert axes.get_title() == "lead time 2 (step 2)"
    for line, power in zip(axes.lines, (2.5, 0.025)):  # mean squares 1/2 and 4/2, of the forecast a hundredth
        wavenumbers, values = line.get_data()
        assert (wavenumbers.min(), wavenumbers.max()) == (1, 16)
        assert wavenumbers[values.argmax()] == 5
        assert values.max() == pytest.approx(power, rel=1e-6)


def rows(count):
    """Of a metrics.jsonl: losses that fall with the step, a scenario that is not in every step, validation at times."""
    made = []
    for step in range(1, count + 1):
        row = {"step": step, "loss": 1 / step, "losses": {"wave": 2 / step}, "field_losses": {"A": 3 / step},
               "learning_rate": 1e-4, "grad_norm": None if step == 2 else 0.5}  # fmt: skip
        if step % 2:
            row["losses"]["gas"] = 4 / step
        if step == count:
            row["validation"] = {"gas": {"vrmse": 0.3, "persistence": 0.9}}
        made.append(row)
    return made


def test_training_curves_are_those_of_the_metrics(tmp_path):
    panels_of_run = curves.training_curves(rows(4))
    assert list(panels_of_run) == ["loss", "loss by field", "validation VRMSE", "learning rate", "gradient norm"]
    np.testing.assert_array_equal(panels_of_run["loss"]["gas"], [[1, 3], [4, 4 / 3]])
    np.testing.assert_array_equal(panels_of_run["gradient norm"]["gradient norm"], [[1, 3, 4], [0.5] * 3])
    np.testing.assert_array_equal(panels_of_run["validation VRMSE"]["gas, persistence"], [[4], [0.9]])
    figure = curves.training_figure(panels_of_run)
    colour = {line.get_label(): line.get_color() for axes in figure.axes[:3:2] for line in axes.lines}
    assert colour["gas"] == colour["gas, persistence"] != colour["wave"]
    assert Image.open(plotting.plot_training(rows(4), tmp_path / "training.png")).width == 960


def test_long_trainings_are_shown_as_means_of_bins():
    steps, losses = curves.training_curves(rows(1000))["loss"]["mean"]
    assert len(steps) == 200
    np.testing.assert_allclose([steps[0], losses[0]], [3, np.mean(1 / np.arange(1, 6))])
    assert losses.mean() == pytest.approx(np.mean(1 / np.arange(1, 1001)))


def test_what_is_no_training_is_refused(tmp_path):
    with pytest.raises(ValueError, match="rows of metrics, found none"):
        plotting.plot_training([], tmp_path / "training.png")
    with pytest.raises(ValueError, match="'step' and 'loss', found the keys epoch"):
        plotting.plot_training([{"epoch": 1}], tmp_path / "training.png")
    assert not list(tmp_path.iterdir())


# --- strips -----------------------------------------------------------------------------------------------------------


def test_a_strip_holds_its_frames_one_below_the_other_with_obstacles_grey():
    values = np.arange(24.0).reshape(2, 4, 3)
    values[1, 0, 2] = np.nan
    panel = panels.Panel("truth", values, (0.0, 23.0), "viridis")
    (strip,) = films.strips(panels.Row("A", "m", [panel], ""), None)
    assert (strip.width, strip.height, strip.limits) == (4, 3, (0.0, 23.0))
    picture = Image.open(io.BytesIO(base64.b64decode(strip.image.partition(",")[2]))).convert("RGB")
    frames = np.asarray(picture).reshape(2, 3, 4, 3)
    assert tuple(frames[1, 0, 0]) == (160, 160, 160)  # first cell along x, last along y: the upper left corner
    expected = 255 * panels.colour_map("viridis")(values[0] / 23)[..., :3]
    np.testing.assert_allclose(frames[0].transpose(1, 0, 2)[:, ::-1], expected, atol=4)
    assert (strip.colours[0], strip.colours[-1], len(strip.colours)) == ("#440154", "#fde725", 17)
