"""The experiments on small models run with `--tiny`, go on where they stopped, and their own mathematics is right."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from walrus_hf import WalrusForPrediction
from walrus_hf.data.simulate import write_simulations

from .small_model import PERIODIC, WALL_OPEN, small_config, small_inputs, small_model

pytestmark = pytest.mark.filterwarnings("ignore")
EXPERIMENTS = Path(__file__).parents[1] / "examples" / "experiments"


@pytest.fixture(autouse=True)
def _experiments_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))


def run(monkeypatch, name, folder, *arguments):
    given = [name, "--tiny", "--data", str(folder / "data"), "--output", str(folder / "out"), *arguments]
    monkeypatch.setattr(sys, "argv", given)
    runpy.run_path(str(EXPERIMENTS / name), run_name="__main__")


def written(folder, name):
    """The numbers of an experiment; its picture must be there, too."""
    assert (folder / "out" / f"{name}.png").stat().st_size > 5000
    return json.loads((folder / "out" / f"{name}.json").read_text())


def test_jitter_is_measured_and_what_is_done_is_not_done_again(monkeypatch, tmp_path):
    run(monkeypatch, "jitter.py", tmp_path, "--seeds", "1")
    first = written(tmp_path, "jitter")
    assert len(first["main"]["1:3"]["improvement"][0]) == 2
    (tmp_path / "out" / "jitter.json").unlink()
    from walrus_hf.training import loop

    monkeypatch.setattr(loop, "train_step", None)  # whoever trains or forecasts now fails
    monkeypatch.setattr(WalrusForPrediction, "forward", None)
    run(monkeypatch, "jitter.py", tmp_path, "--seeds", "1")
    assert written(tmp_path, "jitter") == first


def test_jitter_is_measured_against_training_length(monkeypatch, tmp_path):
    run(monkeypatch, "jitter_length.py", tmp_path, "--seeds", "1")
    found = written(tmp_path, "jitter_length")
    assert found["lengths"] == [1, 2, 3, 4]
    for rows in found["windows"].values():
        errors = np.array([[rows[str(step)][arm] for arm in ("jitter", "none")] for step in found["lengths"]])
        assert (errors > 0).all()
        lower = 1 - errors[:, 0] / errors[:, 1]
        np.testing.assert_allclose([rows[str(step)]["lower"][0] for step in found["lengths"]], lower, atol=1e-3)
    errors = [found["causes"][f"none: {step}"]["one_step"] for step in found["lengths"]]
    assert errors == sorted(errors, reverse=True)  # other weights at each length, which learn


def test_a_length_from_which_jitter_makes_a_difference_is_told():
    from jitter_length import turns

    rows = {
        "10": {"median lower": [-0.2, -0.3, -0.1], "lower": [[-0.2, 0.1], [-0.3, -0.1], [-0.1, 0.2]]},
        "20": {"median lower": [0.1, -0.1, 0.2], "lower": [[0.1, 0.3], [-0.1, 0.2], [0.2, 0.4]]},
    }
    assert turns(rows, [10, 20]) == "higher at 10 (-20% (-30 to -10))"
    assert turns(rows, [10, 20], 1) == "lower at 20 (30% (20 to 40))"
    assert turns({"20": rows["20"]}, [20]) == "every interval holds zero"


@pytest.mark.slow
def test_components_are_measured_one_by_one(monkeypatch, tmp_path):
    run(monkeypatch, "components.py", tmp_path, "--seeds", "1")
    found = written(tmp_path, "components")["components"]
    assert set(found) == {"jitter", "strides", "normalisation", "time attention"}
    assert {"seen grids, 1", "unseen grid, 1"} <= set(found["strides"])


def test_a_small_half_walrus_is_trained_on_one_scenario(monkeypatch, tmp_path):
    run(monkeypatch, "sanity.py", tmp_path)
    assert len(written(tmp_path, "sanity")["next frame"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scenarios", "diversity"])
def test_models_are_pretrained_and_fine_tuned_on_what_they_have_not_seen(monkeypatch, tmp_path, name):
    pytest.importorskip("peft")
    run(monkeypatch, f"{name}.py", tmp_path)
    assert written(tmp_path, name)


def test_an_arm_with_other_settings_is_refused(tmp_path):
    from common import train

    (tmp_path / "arm.json").write_text('{"max_steps": 7}')
    with pytest.raises(ValueError, match="another --output"):
        train(tmp_path, [tmp_path], 1, 0, tiny=True)
    assert (tmp_path / "arm.json").read_text() == '{"max_steps": 7}'


# --- forecasting


@pytest.mark.parametrize("sides", [PERIODIC, WALL_OPEN])
def test_with_one_shift_a_rollout_is_that_of_the_model(sides):
    from common import rollout

    model, inputs = small_model(jitter=True), small_inputs((16, 24, 1), sides=sides)
    expected = model.predict(**inputs, num_steps=3, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(rollout(model, inputs, 3, jitter=True, seed=5), expected)


def test_a_step_over_several_shifts_is_the_mean_of_their_forecasts():
    from common import rollout

    model, inputs = small_model(jitter=True), small_inputs()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        found = [model(**inputs, generator=generator).prediction[:, -1] for _ in range(3)]
    expected = torch.stack(found).mean(0)
    assert not torch.allclose(found[0], found[1], atol=1e-3)
    torch.testing.assert_close(rollout(model, inputs, 1, jitter=True, seed=2, shifts=3)[:, 0], expected)


def test_errors_are_those_of_the_metrics_and_stop_at_a_bound(tmp_path):
    from common import WORST, Windows

    write_simulations("wave", tmp_path, 2, grid=(16, 24), frames=24)
    windows = Windows.of(tmp_path / "wave" / "data" / "train", small_config(field2id=None), 3)
    truth = torch.cat([windows.processor(t)["field_values"] for t in windows.truths])
    assert windows.errors(truth) == pytest.approx(np.zeros((2, 3)), abs=1e-6)
    assert (windows.errors(torch.full_like(truth, torch.nan)) == WORST).all()
    still = truth.clone()
    still[:] = windows.inputs["field_values"][:, -1:]
    assert windows.errors(still) == pytest.approx(windows.errors(None))
    assert (windows.errors(None) > 0.01).all()


# --- causes


def test_a_pointwise_map_commutes_with_shifts_and_one_that_knows_the_place_does_not():
    from jitter import SHIFTS, equivariance_error

    fields = torch.randn(2, 3, 1, 16, 24, 1)
    place = torch.linspace(0, 1, 16)[:, None, None]
    assert equivariance_error(lambda x: torch.tanh(x) + x**2, fields, SHIFTS) == pytest.approx(0.0, abs=1e-6)
    assert equivariance_error(lambda x: x - 0.5 * x.roll(1, 3), fields, SHIFTS) == pytest.approx(0.0, abs=1e-6)
    assert equivariance_error(lambda x: x * place, fields, SHIFTS) > 0.1


def test_what_is_unlike_at_every_shift_has_an_error_of_the_square_root_of_two():
    from jitter import equivariance_error

    generator = torch.Generator().manual_seed(0)
    noise = equivariance_error(
        lambda x: torch.randn(x.shape, generator=generator), torch.ones(4, 1, 1, 64, 64, 1), [(1, 1)]
    )
    assert noise == pytest.approx(2**0.5, rel=0.03)


def test_the_spectrum_of_a_wave_is_one_line_of_its_mean_square():
    from jitter import spectrum

    power = spectrum(np.tile(3 * np.cos(2 * np.pi * 5 * np.arange(64) / 64), (2, 4, 1)))
    assert power[5] == pytest.approx((3 / 2) ** 2)
    assert np.delete(power, 5) == pytest.approx(0, abs=1e-12)


def test_a_spectrum_that_falls_off_evenly_has_no_comb_and_aliases_make_one():
    from jitter import comb, spectrum

    even = 10.0 ** (-0.1 * np.arange(33))
    assert comb(even, 8) == pytest.approx(0.0, abs=1e-9)
    lifted = even.copy()
    for k in (8, 16, 24):
        lifted[k - 1 : k + 2] *= 100
    assert comb(lifted, 8) == pytest.approx(2.0)
    # A long wave over faint noise, and the same held over patches of eight cells, as one number a token would leave it.
    rng = np.random.default_rng(0)
    wave = np.sin(2 * np.pi * np.arange(64) / 64 + rng.uniform(0, 6, (50, 1))) + 1e-3 * rng.normal(size=(50, 64))
    held = wave + 0.1 * np.repeat(wave[:, ::8], 8, axis=1)
    assert abs(comb(spectrum(wave), 8)) < 0.2
    assert comb(spectrum(held), 8) > 1
    assert np.isnan(comb(even[:9], 8))


# --- components


def forecasts(model, inputs, **changes):
    with torch.no_grad():
        return model(**{**inputs, **changes}).prediction[:, -1]


def test_without_time_attention_earlier_frames_matter_through_the_scales_alone():
    from components import no_time_attention

    model, inputs = small_model(), small_inputs(frames=3)
    scales = {"value_scales": torch.ones(2, 3), "change_scales": torch.full((2, 3), 0.5)}
    other = inputs["field_values"].clone()
    other[:, :-1] = torch.randn_like(other[:, :-1])
    assert not torch.allclose(
        forecasts(model, inputs, **scales), forecasts(model, inputs, **scales, field_values=other)
    )
    with no_time_attention():
        expected = forecasts(model, inputs, **scales)
        torch.testing.assert_close(forecasts(model, inputs, **scales, field_values=other), expected)
        assert not torch.allclose(forecasts(model, inputs), forecasts(model, inputs, field_values=other))
        other[:, -1] += 0.1
        assert not torch.allclose(forecasts(model, inputs, **scales, field_values=other), expected)
    assert not torch.allclose(forecasts(model, inputs, **scales), expected)  # it is back


def test_symmetric_normalisation_answers_in_units_of_the_field():
    from components import symmetric_normalisation

    model, inputs = small_model(), small_inputs()
    inputs["field_values"] += 10.0  # the field is large, its changes are not
    rms = inputs["field_values"].square().mean((1, 3, 4, 5)).sqrt()[:, None, :, None, None, None]
    with torch.no_grad(), symmetric_normalisation():
        output = model(**inputs)
    torch.testing.assert_close(output.prediction - inputs["field_values"], output.delta * rms, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("grid", "patch"), [((64, 48, 1), (8, 8, 1)), ((32, 1, 80), (8, 1, 8))])
def test_fixed_strides_keep_the_cells_of_a_patch_whatever_the_grid(grid, patch):
    from components import fixed_strides

    model, inputs = small_model(tokens_per_axis=8, jitter=True), small_inputs(grid, sides=PERIODIC)
    asked = (inputs["field_values"], inputs["boundary_conditions"])
    with fixed_strides():
        assert model.model.make_plan(*asked, generator=torch.Generator()).patch_sizes == patch
        assert forecasts(model, inputs).shape[2:] == grid
    assert model.model.make_plan(*asked).patch_sizes != patch


# --- intervals


def test_an_interval_holds_the_ratio_that_the_errors_were_drawn_with_and_narrows_with_them():
    from common import ratio_interval
    from jitter import improvement, wins

    rng = np.random.default_rng(1)
    widths = []
    for trajectories in (4, 40):
        under = np.exp(0.3 * rng.normal(size=(2, 9, trajectories)))
        over = 0.7 * under * np.exp(0.1 * rng.normal(size=(2, 9, trajectories)))
        middle, low, high = ratio_interval(over, under, improvement)
        assert low <= middle <= high
        assert low < 0.3 < high or abs(middle - 0.3) < 0.05
        widths.append(high - low)
    assert widths[1] < widths[0]
    assert ratio_interval(under, under[::-1], improvement)[0] == pytest.approx(0.0)
    assert ratio_interval(0.5 * under, under, wins)[0] == 9


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((0.12, 0.03, 0.2), "lowers the error by 12% (3 to 20)"),
        ((-0.12, -0.2, -0.03), "raises the error by 12% (3 to 20)"),
        ((0.004, -0.2, 0.03), "makes no difference that this run can tell (lower by 0% (-20 to 3))"),
    ],
)
def test_what_an_interval_says_depends_on_whether_it_holds_zero(interval, expected):
    from common import verdict

    assert verdict(interval) == expected
