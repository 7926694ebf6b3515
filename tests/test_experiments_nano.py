"""The experiments on one checkpoint run with `--tiny` on a small random model, and compute what they say."""

import argparse
import importlib
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from walrus_hf import WalrusConfig, WalrusForPrediction, WalrusPipeline
from walrus_hf.data.simulate import SIMULATIONS, euler_multi_quadrants
from walrus_hf.loading import processor_for
from walrus_hf.training.arguments import read_recipe

pytest.importorskip("peft")
pytest.importorskip("matplotlib")
pytestmark = pytest.mark.filterwarnings("ignore")
EXPERIMENTS = Path(__file__).parents[1] / "examples" / "experiments"
RECIPE = EXPERIMENTS.parent / "configs" / "nano.yaml"


@pytest.fixture
def module(monkeypatch):
    """Imports an experiment, as a script beside the others does."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return importlib.import_module


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A model with the vocabulary of walrus-nano and weights that change a frame visibly."""
    torch.manual_seed(0)
    config = WalrusConfig(
        field2id=read_recipe(RECIPE)["model"]["field2id"], hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, stem_hidden_size=4, tokens_per_axis=4, tokens_per_axis_3d=2, drop_path_rate=0.0,
    )  # fmt: skip
    model = WalrusForPrediction(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                size = 20 if name.startswith("decoder") and "proj2" in name else 1
                weight.copy_(size * torch.randn_like(weight) / weight[0].numel() ** 0.5)
    processor = processor_for(config)
    processor.context_frames, processor.context_frames_3d = 4, 2
    folder = tmp_path_factory.mktemp("small") / "model"
    WalrusPipeline(model, processor).save_pretrained(folder)
    rows = [{"step": 1, "seconds": 2.0}, {"step": 2, "seconds": 3.0}, {"step": 2, "seconds": 4.0}, {"step": 2}]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Where the commands keep their simulations."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture
def run(monkeypatch, model_folder, shared, capsys):
    """Runs an experiment with `--tiny`; returns its result as text and as numbers."""

    def running(name):
        arguments = ["--tiny", "--data", shared / "data", "--output", shared / name, "--model", model_folder]
        monkeypatch.syspath_prepend(str(EXPERIMENTS))
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXPERIMENTS / f"{name}.py"), run_name="__main__")
        text = (shared / name / f"{name}.md").read_text()
        assert text in capsys.readouterr().out
        assert (shared / name / f"{name}.png").stat().st_size > 10_000
        return text, json.loads((shared / name / f"{name}.json").read_text())

    return running


@pytest.fixture
def windows(module, model_folder, tmp_path):
    """Two plane trajectories whose x is periodic or not, as one batch of two, and a pipeline."""
    pipe = WalrusPipeline.from_pretrained(model_folder, device="cpu")
    trajectories = [SIMULATIONS["wave"](seed, grid=(16, 24), frames=12) for seed in (0, 1)]
    return pipe, module("checkpoint").windows_of(pipe, trajectories, [6], 5)


# --- the commands


def test_the_cost_of_holding_is_measured_and_says_of_which_weights(run):
    text, found = run("holding")
    assert "trained for 2 steps in 6 s" in text
    assert found["trained"] in text
    assert len(found["weights"]) == 12
    assert found["costs"]["k = 2"].keys() == {"1:4"}
    assert found["costs"]["k = 4"] == found["costs"]["k = 8"]  # of four steps
    assert found["costs"]["k = 4"] != found["costs"]["k = 2"]
    assert run("holding") == (text, found)  # nothing is measured twice


def test_the_compute_dial_is_turned_and_timed(run):
    text, found = run("compute_dial")
    for row in found["scenarios"].values():
        assert row["seconds"][row["own"]] == 1
        assert all(its["jitter"]["1"] > 0 for its in row["targets"].values())
    assert found["scenarios"]["wave"]["targets"]["6"]["tokens"] == [8, 8]
    assert "## Planes" in text
    assert "## Volumes" not in text


def test_the_stress_changes_one_thing_at_a_time(run):
    text, found = run("stress")
    assert [row["changed"] for row in found["cases"]] == ["reference", "sides", "time step", "gamma"]
    assert "wall/wall" in text
    assert all(row["persistence"]["1"] > 0 for row in found["cases"])


def test_tuning_tries_every_method_at_every_size(run):
    _, found = run("lora")
    assert set(found["runs"]) == {"full", "LoRA, all linear", "head", "scratch"}
    assert all(set(by_size) == {"1", "2"} for by_size in found["runs"].values())
    shares = {method: by_size["1"][0]["trained"] for method, by_size in found["runs"].items()}
    assert shares["LoRA, all linear"] < shares["head"] < shares["full"] == shares["scratch"]
    tuned = {method: by_size["2"][0]["test"]["next frame"] for method, by_size in found["runs"].items()}
    assert len(set(tuned.values())) == len(tuned)


# --- the checkpoint


def test_a_checkpoint_whose_training_nobody_knows_is_refused(module, model_folder, tmp_path):
    checkpoint = module("checkpoint")
    WalrusPipeline.from_pretrained(model_folder, device="cpu").save_pretrained(tmp_path / "model")
    given = argparse.Namespace(model=str(tmp_path / "model"))
    with pytest.raises(ValueError, match="which tells how long it was trained, found none"):
        checkpoint.Checkpoint.load(given)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "seconds": 3600.0}')
    found = checkpoint.Checkpoint.load(given)
    assert (found.name, found.trained) == (tmp_path.name, "trained for 1 steps in 3,600 s")


def test_the_card_of_the_packaged_checkpoint_tells_of_its_training(module):
    checkpoint = module("checkpoint")
    found = checkpoint.Checkpoint.load(argparse.Namespace(model="walrus-nano"))
    training = json.loads((checkpoint.CARDS / "walrus-nano" / "results.json").read_text())["training"]
    assert found.name == "walrus-nano"
    assert found.trained.startswith(
        f"trained for {training['steps']:,} steps in {training['minutes']:,} minutes of one core"
    )
    assert found.trained.endswith("drawn from " + ", ".join(map(str, training["tokens"])))


def test_other_weights_have_results_of_their_own(module, model_folder, tmp_path):
    pipe = WalrusPipeline.from_pretrained(model_folder, device="cpu")
    with torch.no_grad():
        next(pipe.model.parameters()).flatten()[0] += 1e-3
    pipe.save_pretrained(tmp_path / "model")
    load = module("checkpoint").Checkpoint.load
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "seconds": 1.0}')
    one, other = (load(argparse.Namespace(model=str(folder))) for folder in (model_folder, tmp_path / "model"))
    one.results(tmp_path, tiny=True).get("key", lambda: 1)
    assert one.results(tmp_path, tiny=True).get("key", lambda: 2) == 1
    assert other.results(tmp_path, tiny=True).get("key", lambda: 2) == 2
    with pytest.raises(SystemExit, match=r"expected numbers measured with \{'tiny': False\}, found \{'tiny': True\}"):
        one.results(tmp_path, tiny=False)
    with pytest.raises(SystemExit, match=r"expected numbers measured with .*'steps': 60"):
        one.results(tmp_path, tiny=True, steps=60)


@pytest.mark.parametrize("name", ["wave", "acoustic_scattering", "rayleigh_benard"])
def test_a_batch_is_forecast_as_the_pipeline_forecasts_each(module, model_folder, name):
    checkpoint = module("checkpoint")
    pipe = WalrusPipeline.from_pretrained(model_folder, device="cpu")
    whole = [SIMULATIONS[name](seed, grid=(24, 16), frames=12) for seed in (0, 1)]
    batch = checkpoint.windows_of(pipe, whole, [5, 7], 3)
    found = batch.errors(checkpoint.forecast(pipe, batch, 3, jitter=False))
    expected = [
        np.mean(list(module("common").score(
            pipe.predict(t.frames(0, first), 3, jitter=False, progress=False), t.frames(first, first + 3)
        ).values()), axis=0)
        for t in whole for first in (5, 7)
    ]  # fmt: skip
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert np.abs(found / batch.errors(None) - 1).min() > 1e-4


def test_means_are_over_lead_times_before_the_median_over_windows(module):
    curves = np.array([[1.0, 3.0], [2.0, 6.0], [9.0, 9.0]])
    assert module("checkpoint").means(curves, {"1": (1, 1), "1:2": (1, 2), "1:9": (1, 9)}) == {"1": 2.0, "1:2": 4.0}


# --- holding


@pytest.mark.parametrize(("every", "held"), [(3, ()), (1, ("shifts", "scales"))])
def test_a_rollout_that_holds_nothing_is_the_usual_forecast(module, windows, every, held):
    pipe, batch = windows
    found = module("holding").held_rollout(pipe.model, batch, 5, every, held)
    torch.testing.assert_close(found, module("checkpoint").forecast(pipe, batch, 5))


def test_held_shifts_and_held_scales_show_only_from_the_second_step_and_until_renewed(module, windows):
    pipe, batch = windows
    holding, usual = module("holding"), module("checkpoint").forecast(pipe, batch, 5)
    for held in ("shifts", "scales"):
        found = holding.held_rollout(pipe.model, batch, 5, 3, (held,))
        torch.testing.assert_close(found[:, 0], usual[:, 0])
        assert (found[:, 1:] - usual[:, 1:]).abs().amax(dim=(0, 2, 3, 4, 5)).min() > 1e-3


def test_held_shifts_are_one_shift(module, windows):
    """With shifts held all along, a forecast is that of a model which is given them."""
    pipe, batch = windows
    found = module("holding").held_rollout(pipe.model, batch, 4, 4, ("shifts",))
    plan = module("checkpoint").plan_for(batch, generator=torch.Generator().manual_seed(0))
    fixed = {"patch_shifts": plan.patch_shifts, "layer_shifts": plan.layer_shifts}
    assert any(plan.patch_shifts)
    torch.testing.assert_close(found, pipe.model.predict(**batch.inputs, num_steps=4, plan=plan, **fixed))


def test_a_cost_is_the_ratio_of_errors_and_no_difference_costs_nothing(module):
    rng, holding = np.random.default_rng(0), module("holding")
    usual = {name: rng.uniform(0.1, 1, size=(4, 12)) for name in "abc"}
    factors = (2.0, 1.0, 3.0, 1.0, 0.5, 2.0, 1.0)
    twice = dict(zip((*holding.CACHED, *holding.USUAL), factors, strict=True))
    found = {
        name: {"k = 1": errors.tolist(), **{arm: (factor * errors).tolist() for arm, factor in twice.items()}}
        for name, errors in usual.items()
    }
    cost = holding.costs(found)
    assert {arm: row["1:10"] for arm, row in cost.items()} == {arm: [factor] * 3 for arm, factor in twice.items()}
    assert all(set(row) == {"1:10", "1:12"} for row in cost.values())


# --- the compute dial


def test_other_strides_make_the_same_tokens(module, windows):
    _, batch = windows
    dial, plan_for = module("compute_dial"), module("checkpoint").plan_for
    own = plan_for(batch, jitter=False)
    first, second = (dial.restrided(own, stage) for stage in (0, 1))
    assert len({first, second, own.strides}) > 1
    for pairs in (first, second):
        assert [a * b for a, b in pairs] == list(own.patch_sizes)
        assert plan_for(batch, strides=pairs, jitter=False).tokens == own.tokens
    assert all(a[0] >= b[0] for a, b in zip(first, own.strides))
    assert all(a[1] >= b[1] for a, b in zip(second, own.strides))


def test_targets_that_give_the_same_plan_are_measured_once(module, windows):
    _, batch = windows
    plans = module("compute_dial").distinct(batch, (6, 7, 8, 9))  # 16 and 24 cells make 8 tokens of all but the first
    assert list(plans) == [batch.processor.tokens_per_axis, 6, 7]
    assert [plan.tokens[:2] for plan in plans.values()] == [(4, 4), (8, 6), (8, 8)]


def test_timing_in_turn_takes_out_a_machine_that_slows_down(module, monkeypatch):
    dial, now = module("compute_dial"), [0.0]
    monkeypatch.setattr(dial.time, "perf_counter", lambda: now[0])

    def call(cost):
        def work():
            now[0] += cost * (1 + 0.01 * now[0])

        return work

    found, own = dial.time_ratios([call(1.0), call(2.0), call(4.0)], 6)
    assert found[0] == 1
    assert found[1:] == pytest.approx([2, 4], rel=0.05)
    assert 1 < own < 2


# --- stress


def test_the_reference_gas_is_the_simulation_of_the_training(module):
    stress, grid = module("stress"), (16, 24)
    found, known = stress.gas(5, 4, grid), euler_multi_quadrants(5, "periodic", grid, 4)
    for name, values in known.fields.items():
        np.testing.assert_allclose(found.fields[name], values, rtol=1e-4, atol=1e-5)


def test_every_case_differs_from_its_reference_in_one_setting_and_no_two_are_equal(module):
    cases = module("stress").cases(tiny=False)
    assert [len(case.settings) for case in cases].count(0) == 2
    assert max(len(case.settings) for case in cases) == 1
    assert len({case.name for case in cases}) == len({f"{c.scenario}{c.settings}" for c in cases}) == len(cases)


def test_forecasts_of_all_time_steps_begin_at_the_same_time(module):
    stress = module("stress")
    states = []
    for factor in (0.5, 1, 2):
        case = stress.Case("gas", "time step", "", {"dt": factor * 0.015, "grid": (16, 24)})
        states.append(stress.gas(3, case.first(), **case.settings).fields["density"][-1])
    np.testing.assert_allclose(states[0], states[1], rtol=0.03)
    np.testing.assert_allclose(states[2], states[1], rtol=0.03)
    assert stress.Case("gas", "reference", "", {}).first() == module("common").FIRST


def test_a_verdict_follows_from_the_error_over_that_of_persistence(module):
    stress = module("stress")

    def row(ratio):
        return {"model": {"1": ratio}, "persistence": {"1": 1.0}}

    kinds = [stress.verdict(row(ratio), row(0.4), "1") for ratio in (0.1, 0.6, 0.61, 0.99, 1.0)]
    assert kinds == ["holds", "holds", "worse", "worse", "breaks"]


# --- tuning


def test_blasts_lose_neither_mass_nor_energy_in_their_box(module):
    found = module("lora").blasts(1, grid=(24, 16), frames=12)
    assert not found.fields["momentum"][0].any()
    assert np.abs(found.fields["momentum"][-1]).max() > 0.1
    for name in ("density", "energy"):
        total = found.fields[name].sum(axis=(1, 2), dtype=float)
        np.testing.assert_allclose(total, total[0], rtol=1e-5)
    assert found.fields["pressure"][0].max() > 1.5
    assert found.fields["density"][0].min() > 0.2


def test_the_smaller_sets_of_trajectories_are_parts_of_the_larger_ones(module):
    lora, whole = module("lora"), list(range(64))
    small, large, other = lora.chosen(whole, 4, 0), lora.chosen(whole, 16, 0), lora.chosen(whole, 4, 1)
    assert large[:4] == small
    assert len(set(large)) == 16
    assert small != other
