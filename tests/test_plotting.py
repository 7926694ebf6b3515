"""Pictures: what they show, and that files are never half written."""

import ast
import dataclasses
import itertools
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")
import imageio.v2 as imageio
from PIL import Image, ImageSequence

from walrus_hf import curves, films, panels, plotting
from walrus_hf.fields import Trajectory


def smooth(shape, frames=30, seed=0):
    """(frames, H, W): a few waves that drift, between -1 and 1."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(*(np.arange(n) / n for n in shape), indexing="ij")
    values = np.zeros((frames, *shape))
    for _ in range(6):
        k, phase, speed = rng.integers(-2, 3, size=2), rng.uniform(0, 7), rng.uniform(0.05, 0.3)
        for t in range(frames):
            values[t] += np.sin(2 * np.pi * (k[0] * x + k[1] * y) + phase + speed * t) / 6
    return values


def box(fields, **kwargs):
    axes = kwargs.setdefault("axes", ("x", "y"))
    return Trajectory(fields, dict.fromkeys(axes, "periodic"), **kwargs)


@pytest.fixture(scope="module")
def pair():
    """Forecast and truth: a vector, a positive and a signed scalar; 5 frames of 24 x 16."""

    def make(seed):
        waves = [smooth((24, 16), frames=5, seed=seed + n) for n in range(4)]
        return {"velocity": np.stack(waves[:2], axis=-1), "tracer": waves[2] + 1.5, "pressure": waves[3]}

    return box(make(0), dt=0.1, name="waves"), box(make(1), dt=0.1)


def gif_frames(path):
    with Image.open(path) as film:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(film)]


def test_a_gif_has_a_frame_a_step_at_the_speed_asked_for(pair, tmp_path):
    path = plotting.animate(*pair, path=tmp_path / "film.gif", fps=5)
    assert path == tmp_path / "film.gif"
    frames = gif_frames(path)
    assert len(frames) == 5
    assert 900 <= frames[0].shape[1] <= 1100
    assert all((a != b).any() for a, b in itertools.pairwise(frames))
    assert tuple(frames[0][0, 0]) == (255, 255, 255)
    with Image.open(path) as film:
        assert film.info["duration"] == 200
        assert film.info["loop"] == 0


def test_an_mp4_has_the_same_frames(pair, tmp_path):
    path = plotting.animate(*pair, path=tmp_path / "film.mp4", field="pressure")
    with imageio.get_reader(path) as reader:
        frames = [frame for frame in reader]  # noqa: C416  (list() asks for a length, which is infinite)
    assert len(frames) == 5
    assert 900 <= frames[0].shape[1] <= 1100


def test_ten_frames_of_three_fields_stay_small(tmp_path):
    fields = {name: smooth((64, 64), frames=10, seed=n) for n, name in enumerate("abc")}
    growth = np.linspace(0.01, 0.3, 10)[:, None, None]
    forecast = {name: values + growth * smooth((64, 64), frames=10, seed=9) for name, values in fields.items()}
    path = plotting.animate(box(forecast), box(fields), path=tmp_path / "film.gif")
    assert path.stat().st_size < 1.2e6


def test_the_first_axis_runs_to_the_right_and_the_second_up(tmp_path):
    values = np.zeros((1, 8, 6))
    values[0, -1, 0] = 1.0  # far along x, at the low end of y: the lower right corner
    path = plotting.plot_panels(box({"A": values}), path=tmp_path / "corner.png")
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    dark = np.argwhere(np.abs(picture - [68, 1, 84]).sum(axis=-1) < 6)  # viridis at its low end
    top, left = dark.min(axis=0)
    bottom, right = dark.max(axis=0)
    cell = (bottom - top) / 6
    lower_right = picture[round(bottom - cell / 2), round(left + 7.5 / 8 * (right - left))]
    np.testing.assert_array_less(np.abs(lower_right - [253, 231, 37]), 6)  # and at its high end


def test_colours_are_those_of_the_truth_and_centred_on_zero_where_signs_matter(pair):
    _, tracer, pressure = panels.rows_of(*pair)
    truth = pair[1].fields
    assert [panel.title for panel in tracer.panels] == ["truth", "forecast", "error"]
    assert tracer.panels[0].limits == tracer.panels[1].limits == (truth["tracer"].min(), truth["tracer"].max())
    assert tracer.panels[1].colours == "viridis"
    bound = np.abs(truth["pressure"]).max()
    assert pressure.panels[0].limits == pressure.panels[1].limits == (-bound, bound)
    assert pressure.panels[1].colours == "blue_red"
    worst = np.abs(pair[0].fields["pressure"] - truth["pressure"]).max()
    assert pressure.panels[2].limits == (-worst, worst)
    assert panels.limits(np.array([-0.01, 1.0])) == ((-0.01, 1.0), "viridis")


def test_fields_in_tiny_units_are_drawn_in_their_own_range():
    values = smooth((24, 16), frames=2) + 1.5
    (row,) = panels.rows_of(*(box({"density": 1e-21 * offset * values}) for offset in (1.1, 1)))
    assert row.panels[0].limits == pytest.approx((1e-21 * values.min(), 1e-21 * values.max()), rel=1e-9, abs=0)
    assert row.panels[2].limits[1] == pytest.approx(1e-22 * values.max(), rel=1e-9, abs=0)
    low, high = panels.value_range(np.zeros(3))
    assert low < 0 < high


@pytest.mark.parametrize("change", [{"time": 0.3}, {"dt": 0.2}])
def test_a_truth_of_other_times_is_warned_of(pair, tmp_path, change):
    forecast, truth = pair
    with pytest.warns(UserWarning, match="truth: expected the forecast's frames from time 0 on, every 0.1, found"):
        plotting.plot_panels(forecast, dataclasses.replace(truth, **change), tmp_path / "other.png", steps=[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plotting.plot_panels(forecast, truth, tmp_path / "same.png", steps=np.array([1, 5]))


def test_a_vector_that_points_the_wrong_way_is_an_error_though_its_magnitude_is_right():
    east, north = np.zeros((2, 5, 4, 2)), np.zeros((2, 5, 4, 2))
    east[..., 0], north[..., 1] = 3.0, 3.0
    (row,) = panels.rows_of(box({"velocity": east}), box({"velocity": north}))
    assert row.label == "|velocity|"
    for panel, expected in zip(row.panels, (3.0, 3.0, np.sqrt(18))):
        np.testing.assert_allclose(panel.values, np.full((2, 5, 4), expected))


def test_obstacles_are_grey_and_do_not_set_the_colours(tmp_path):
    mask = np.zeros((12, 8), dtype=bool)
    mask[3:6, 2:5] = True
    values = smooth((12, 8), frames=2)
    values[:, mask] = 1e6
    shown = box({"A": values}, obstacle_mask=mask)
    (row,) = panels.rows_of(shown)
    np.testing.assert_array_equal(np.isnan(row.panels[0].values[0]), mask)
    assert row.panels[0].limits[1] < 2
    picture = np.asarray(Image.open(plotting.plot_panels(shown, path=tmp_path / "a.png")).convert("RGB"))
    assert (picture == [160, 160, 160]).all(axis=-1).sum() > 1000


def test_of_three_dimensional_data_the_middle_slice_is_shown_and_named(tmp_path):
    values = np.random.default_rng(0).normal(size=(2, 5, 4, 6, 3))
    cube = box({"velocity": values}, axes=("x", "y", "z"), name="cube")
    (row,) = panels.rows_of(cube)
    np.testing.assert_allclose(row.panels[0].values, np.linalg.norm(values[:, :, :, 3], axis=-1))
    assert panels.heading(cube, panels.MIDDLE) == "cube, middle slice across z, times in simulation units"
    assert len(gif_frames(plotting.animate(cube, cube, tmp_path / "cube.gif"))) == 2


def test_one_dimensional_data_are_lines(tmp_path):
    waves = {name: smooth((20, 1), frames=3, seed=n)[..., 0] for n, name in enumerate("uv")}
    line = box(waves, axes=("x",), coordinates={"x": np.linspace(0, 1, 20)})
    frames = gif_frames(plotting.animate(line, line.frames(0), tmp_path / "line.gif"))
    assert len(frames) == 3
    assert (frames[0] != frames[2]).any()
    figure = panels.panels_figure(panels.rows_of(line, line), line, [1, 3])
    assert len(figure.axes) == 2 * 2 * 2  # fields x (truth and forecast, error) x steps
    np.testing.assert_array_equal(figure.axes[1].lines[1].get_ydata(), waves["u"][2])


def test_a_vector_on_a_line_keeps_its_sign():
    velocity = np.sin(np.linspace(0, 6, 20)) * np.array([[1.0], [0.5], [-0.5]])
    truth = box({"velocity": velocity[..., None]}, axes=("x",))
    forecast = box({"velocity": 0.5 * velocity[..., None]}, axes=("x",))
    (row,) = panels.rows_of(forecast, truth)
    assert row.label == "velocity"
    for panel, expected in zip(row.panels, (velocity, 0.5 * velocity, -0.5 * velocity), strict=True):
        np.testing.assert_allclose(panel.values, expected)


def test_panels_show_the_steps_asked_for(pair, tmp_path):
    rows = panels.rows_of(*pair, "tracer")
    figure = panels.panels_figure(rows, pair[0], [2, 5])
    shown = np.array([axes.images[0].get_array().T for axes in figure.axes[:6]]).reshape(3, 2, 24, 16)
    truth, forecast = pair[1].fields["tracer"][[1, 4]], pair[0].fields["tracer"][[1, 4]]
    np.testing.assert_allclose(shown, [truth, forecast, forecast - truth])
    assert [axes.get_title() for axes in figure.axes[:2]] == ["lead time 0.2\n(step 2)", "lead time 0.5\n(step 5)"]
    assert Image.open(plotting.plot_panels(*pair, path=tmp_path / "panels.png", field="tracer")).width > 900


def test_error_curves_stand_beside_persistence_one_panel_a_field(tmp_path):
    scores = {
        "walrus": {"A": np.array([0.1, 0.2]), "B": np.array([0.2, 0.4])},
        "persistence": {"A": np.array([0.3, 0.9]), "B": np.array([0.5, 50.0])},
    }
    figure = curves.error_figure(curves.curves_by_field(scores), "VRMSE")
    for axes, field in zip(figure.axes, "AB"):
        assert axes.get_title() == field
        for line, label in zip(axes.lines, scores):
            assert line.get_label() == label
            np.testing.assert_array_equal(line.get_xdata(), [1, 2])
            np.testing.assert_array_equal(line.get_ydata(), scores[label][field])
        assert [line.get_linestyle() for line in axes.lines[:2]] == ["-", "--"]
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "log"]
    path = plotting.plot_error_growth({"walrus": np.ones(3)}, tmp_path / "curve.png")
    assert Image.open(path).width > 900


def test_existing_files_are_replaced_only_on_request(pair, tmp_path):
    path = tmp_path / "error.png"
    path.write_bytes(b"precious")
    for draw in (lambda **kw: plotting.plot_error_growth({"a": np.ones(3)}, path, **kw),
                 lambda **kw: plotting.plot_panels(*pair, path=path, field="tracer", steps=[1], **kw)):  # fmt: skip
        path.write_bytes(b"precious")
        with pytest.raises(FileExistsError, match="overwrite=True"):
            draw()
        assert path.read_bytes() == b"precious"
        draw(overwrite=True)
        assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["film.gif", "film.mp4"])
def test_a_film_that_fails_half_way_leaves_the_old_file_and_nothing_else(pair, tmp_path, monkeypatch, name):
    path = tmp_path / name
    path.write_bytes(b"precious")
    film = plotting.film

    def failing(*arguments):
        frames, draw = film(*arguments)

        def draw_some(step):
            if step > 2:
                raise RuntimeError("out of paper")
            return draw(step)

        return frames, draw_some

    monkeypatch.setattr(plotting, "film", failing)
    with pytest.raises(RuntimeError, match="out of paper"):
        plotting.animate(*pair, path=path, field="pressure", overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert path.read_bytes() == b"precious"


def test_mistakes_are_refused_before_anything_is_drawn(pair, tmp_path):
    forecast, truth = pair
    with pytest.raises(ValueError, match=r"\.gif or \.mp4, found .*film\.avi"):
        plotting.animate(forecast, truth, tmp_path / "film.avi")
    with pytest.raises(ValueError, match=r"ends in \.png"):
        plotting.plot_panels(forecast, truth, tmp_path / "panels.gif")
    with pytest.raises(FileNotFoundError, match="no folder"):
        plotting.animate(forecast, truth, tmp_path / "missing" / "film.gif")
    with pytest.raises(ValueError, match="one of velocity, tracer, pressure, found 'heat'"):
        plotting.animate(forecast, truth, tmp_path / "film.gif", field="heat")
    with pytest.raises(ValueError, match=r"expected the forecast's shape \(5, 24, 16, 2\), found \(4, 24, 16, 2\)"):
        plotting.animate(forecast, truth.frames(1), tmp_path / "film.gif")
    with pytest.raises(ValueError, match=r"'velocity'.*no such field"):
        plotting.animate(forecast, box({"tracer": truth.fields["tracer"]}), tmp_path / "film.gif")
    with pytest.raises(ValueError, match="fps"):
        plotting.animate(forecast, truth, tmp_path / "film.gif", fps=0)
    with pytest.raises(ValueError, match=r"steps: expected some of 1 to 5, found \[0\]"):
        plotting.plot_panels(forecast, truth, tmp_path / "panels.png", steps=[0])
    with pytest.raises(ValueError, match=r"steps: expected some of 1 to 5, found \[1.5\]"):
        plotting.plot_panels(forecast, truth, tmp_path / "panels.png", steps=[1.5])
    with pytest.raises(ValueError, match="at least one"):
        plotting.plot_error_growth({}, tmp_path / "error.png")
    with pytest.raises(ValueError, match=r"'b': expected the fields \['A'\], found \['B'\]"):
        plotting.plot_error_growth({"a": {"A": np.ones(2)}, "b": {"B": np.ones(2)}}, tmp_path / "error.png")
    with pytest.raises(ValueError, match=r"found shape \(2, 2\)"):
        plotting.plot_error_growth({"a": np.ones((2, 2))}, tmp_path / "error.png")
    assert not list(tmp_path.iterdir())


def test_the_message_names_the_extra_where_matplotlib_is_missing(pair, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"walrus-hf\[plot\]"):
        plotting.animate(*pair, path=tmp_path / "film.gif")


@pytest.mark.parametrize("module", [panels, films, curves, plotting], ids=lambda module: module.__name__)
def test_drawing_does_not_touch_pyplot_and_importing_loads_no_matplotlib(module):
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    nodes = {node: ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)}
    assert not any("pyplot" in text for text in nodes.values())
    top = " ".join(text for node, text in nodes.items() if node in tree.body)
    assert not any(package in top for package in ("matplotlib", "PIL", "imageio"))
