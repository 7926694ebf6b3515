"""Forecasts are what a loop over the model gives; unusable checkpoints and requests are refused in one line."""

import gc
import json
import shutil
import warnings

import numpy as np
import pytest
import torch

from walrus_hf import Trajectory, WalrusForPrediction, WalrusPipeline, WalrusProcessor
from walrus_hf.adapters import add_fields
from walrus_hf.loading import processor_for
from walrus_hf.metrics import persistence
from walrus_hf.normalization import delta_scales, field_scales

from .test_parity import parity_model

SIDES = {"x": "periodic", "y": ("wall", "open")}
SMALL = {"tokens_per_axis": 4, "tokens_per_axis_3d": 2}


def simulation(frames=8, grid=(16, 16), seed=0, **kwargs):
    rng = np.random.default_rng(seed)
    axes = ("x", "y", "z")[: len(grid)]
    fields = {
        "pressure": 5 + rng.normal(size=(frames, *grid)).cumsum(0),
        "velocity": rng.normal(size=(frames, *grid, len(grid))).cumsum(0),
    }
    sides = {axis: SIDES.get(axis, "wall") for axis in axes}
    return Trajectory(fields, sides, axes=axes, dt=0.5, time=1.0, **kwargs)


@pytest.fixture(scope="module")
def pipe():
    """Strong weights: what the model does matters after one step."""
    return WalrusPipeline(parity_model(torch.float32, **SMALL))


@pytest.fixture(scope="module")
def folder(pipe, tmp_path_factory):
    directory = tmp_path_factory.mktemp("pipeline") / "model"
    pipe.save_pretrained(directory)
    return directory


def same(a, b):
    return all(np.array_equal(a.fields[name], b.fields[name]) for name in a.fields)


# --- predict -------------------------------------------------------------------------------------------------------


def test_a_forecast_is_a_loop_over_the_models_forward(pipe):
    given = simulation(6, constant_fields={"A": np.ones((16, 16))}, obstacle_mask=np.eye(16, dtype=bool))
    forecast = pipe.predict(given, 3, seed=7, progress=False)
    generator = torch.Generator().manual_seed(7)
    draw = int(torch.randint(2**62, (1,), generator=generator))
    inputs = pipe.processor(given, plan=pipe.processor.plan(given.grid, given.boundary_conditions, seed=draw))
    states = inputs["field_values"].clone()
    blank = inputs["padded_channels"][:, None, :, None, None, None] | inputs["obstacle_mask"][:, None, None]
    for step in range(3):
        call = {**inputs, "field_values": states[:, -6:]}
        if step:
            del call["plan"]
            call["generator"] = generator
        with torch.no_grad():
            following = pipe.model(**call).prediction[:, -1:].masked_fill(blank, 0.0)
        states = torch.cat([states, following], 1)
    expected = pipe.processor.postprocess(states[:, 6:], given)
    for name, values in expected.fields.items():
        np.testing.assert_allclose(forecast.fields[name], values, rtol=1e-4, atol=1e-4 * np.abs(values).max())


def test_the_first_step_is_the_models_forward(pipe):
    given = simulation(6)
    forecast = pipe.predict(given, 1, jitter=False, progress=False)
    with torch.no_grad():
        prediction = pipe.model(**pipe.processor(given), jitter=False).prediction[:, -1:]
    expected = pipe.processor.postprocess(prediction, given)
    for name, values in expected.fields.items():
        np.testing.assert_allclose(forecast.fields[name], values, rtol=1e-4, atol=1e-4)
    assert np.abs(forecast.fields["pressure"] - given.fields["pressure"][-1]).max() > 0.1


def test_a_forecast_continues_the_trajectory(pipe):
    given = simulation(6, name="run", coordinates={"x": np.linspace(0, 1, 16)})
    forecast = pipe.predict(given, 4, seed=0, progress=False)
    assert (forecast.num_frames, forecast.grid, forecast.axes, forecast.dt) == (4, (16, 16), ("x", "y"), 0.5)
    assert forecast.time == pytest.approx(1.0 + 6 * 0.5)
    assert (forecast.name, forecast.boundary_conditions) == ("run", given.boundary_conditions)
    assert forecast.fields["velocity"].shape == (4, 16, 16, 2)
    assert forecast.ensemble is None
    assert all(np.isfinite(values).all() for values in forecast.fields.values())


@pytest.mark.parametrize("grid", [(32,), (8, 8, 8)])
def test_lines_and_volumes_come_back_in_their_own_rank(pipe, grid):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        forecast = pipe.predict(simulation(4, grid), 2, seed=0, progress=False)
    assert forecast.fields["velocity"].shape == (2, *grid, len(grid))


def test_a_seed_makes_a_forecast_reproducible(pipe):
    given = simulation()
    first, again, other = (pipe.predict(given, 2, seed=seed, progress=False) for seed in (3, 3, 4))
    assert same(first, again)
    assert same(first, pipe.predict(given, 2, seed=np.int64(3), progress=False))
    assert not same(first, other)
    torch.manual_seed(0)
    unseeded = pipe.predict(given, 2, progress=False)
    assert not same(unseeded, pipe.predict(given, 2, progress=False))
    torch.manual_seed(0)
    assert same(unseeded, pipe.predict(given, 2, progress=False))


def test_without_jitter_every_forecast_is_the_same(pipe):
    given = simulation()
    assert same(
        pipe.predict(given, 2, jitter=False, progress=False), pipe.predict(given, 2, jitter=False, progress=False)
    )


def test_an_ensemble_is_the_mean_of_forecasts_with_successive_seeds(pipe):
    given = simulation()
    forecast = pipe.predict(given, 2, ensemble_size=3, seed=5, progress=False)
    for name, members in forecast.ensemble.items():
        assert members.shape == (3, *forecast.fields[name].shape)
        np.testing.assert_allclose(forecast.fields[name], members.mean(0), rtol=1e-5, atol=1e-6)
        for i, member in enumerate(members):
            alone = pipe.predict(given, 2, seed=5 + i, progress=False).fields[name]
            np.testing.assert_array_equal(member, alone)
        assert not np.array_equal(members[0], members[1])


def test_a_cached_forecast_is_that_of_the_models_cached_rollout(pipe):
    given = simulation(6)
    forecast = pipe.predict(given, 4, seed=7, use_cache=True, cache_steps=4, progress=False)
    generator = torch.Generator().manual_seed(7)
    draw = int(torch.randint(2**62, (1,), generator=generator))
    plan = pipe.processor.plan(given.grid, given.boundary_conditions, seed=draw)
    inputs = pipe.processor(given)
    inputs.pop("boundary_conditions")
    states = pipe.model.predict(
        **inputs, num_steps=4, plan=plan, generator=generator, use_cache=True, cache_steps=4
    )  # fmt: skip
    assert same(forecast, pipe.processor.postprocess(states, given))
    exact = pipe.predict(given, 4, seed=7, progress=False)
    assert same(forecast.frames(0, 1), exact.frames(0, 1))
    assert not same(forecast.frames(1), exact.frames(1))


def test_a_processor_may_hold_the_scales_of_the_given_frames(pipe, tmp_path):
    given = simulation(6)
    renewed = pipe.predict(given, 3, seed=7, progress=False)
    held = WalrusPipeline(pipe.model, pipe.processor.from_dict(pipe.processor.to_dict() | {"hold_scales": True}))
    held.save_pretrained(tmp_path)
    held = WalrusPipeline.from_pretrained(tmp_path)
    forecast = held.predict(given, 3, seed=7, progress=False)
    assert same(forecast.frames(0, 1), renewed.frames(0, 1))
    assert not same(forecast.frames(1), renewed.frames(1))
    # The same as with these scales among the inputs at every step.
    generator = torch.Generator().manual_seed(7)
    draw = int(torch.randint(2**62, (1,), generator=generator))
    plan = pipe.processor.plan(given.grid, given.boundary_conditions, seed=draw)
    inputs = pipe.processor(given)
    inputs.pop("boundary_conditions")
    eps = pipe.model.config.scale_eps
    scales = {
        "value_scales": field_scales(inputs["field_values"], eps),
        "change_scales": delta_scales(inputs["field_values"], eps),
    }
    states = pipe.model.predict(**inputs, **scales, num_steps=3, plan=plan, generator=generator)
    assert same(forecast, pipe.processor.postprocess(states, given))
    # Scales that are given win.
    doubled = {"value_scales": 2 * scales["value_scales"], "change_scales": scales["change_scales"]}
    arguments = {"num_steps": 3, "plan": plan, "patch_shifts": (0, 0, 0), **inputs}
    expected = pipe.model.predict(**arguments, **doubled, generator=torch.Generator().manual_seed(3))
    only = {"value_scales": doubled["value_scales"], "hold_scales": True}
    found = pipe.model.predict(**arguments, **only, generator=torch.Generator().manual_seed(3))
    assert torch.equal(found, expected)


def test_holding_shifts_too_needs_the_cache(pipe):
    with pytest.raises(ValueError, match="use_cache=True"):
        pipe.predict(simulation(), 4, cache_steps=2, progress=False)


@pytest.mark.parametrize(("grid", "frames"), [((16, 16), 6), ((8, 8, 8), 3)])
def test_only_the_last_frames_are_read_three_of_volumes_and_six_of_planes(pipe, grid, frames):
    given = simulation(9, grid)
    changed = given.frames(0)
    changed.fields = {name: values.copy() for name, values in given.fields.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        forecast = pipe.predict(given, 1, seed=0, progress=False)
        for values in changed.fields.values():
            values[: 9 - frames] += 100.0
        assert same(forecast, pipe.predict(changed, 1, seed=0, progress=False))
        for values in changed.fields.values():
            values[9 - frames] += 100.0
        assert not same(forecast, pipe.predict(changed, 1, seed=0, progress=False))


def test_tokens_per_axis_changes_the_forecast_and_needs_no_new_model(pipe):
    given = simulation(grid=(32, 32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        coarse, fine = (pipe.predict(given, 1, jitter=False, tokens_per_axis=n, progress=False) for n in (4, 8))
    assert not same(coarse, fine)


def test_the_memory_of_a_forecast_does_not_grow_with_its_steps(pipe):
    """Live tensors at the end of each step are counted from within the loop."""
    alive, states = [], []

    def count(module, args, output):
        alive.append(_live_tensor_bytes())
        states.append(output.prediction.nbytes)

    hook = pipe.model.register_forward_hook(count)
    try:
        pipe.predict(simulation(6), 12, seed=0, progress=False)
    finally:
        hook.remove()
    assert len(alive) == 12
    # Eight steps that stayed would be eight states; two leave room for what else the process does meanwhile.
    assert alive[11] - alive[3] <= 2 * states[0]


def _live_tensor_bytes():
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # isinstance wakes deprecated objects of other packages
        # Not isinstance: a compiler leaves fake tensors behind, which have no memory.
        tensors = [o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def test_a_forecast_that_is_not_finite_is_warned_of_and_filled_with_nan():
    model = parity_model(torch.float32, **SMALL)
    pipe = WalrusPipeline(model)
    calls = []

    def spoil(module, args, output):
        calls.append(1)
        if len(calls) == 3:
            output.prediction[0, -1, 0, 2, 2] = float("inf")
        return output

    model.register_forward_hook(spoil)
    with pytest.warns(UserWarning, match="not finite from step 3 on"):
        forecast = pipe.predict(simulation(), 5, seed=0, progress=False)
    assert len(calls) == 3
    for values in forecast.fields.values():
        assert np.isfinite(values[:2]).all()
        assert np.isnan(values[2:]).all()


def test_a_logarithm_of_what_float32_does_not_hold_ends_a_forecast_as_infinity_does():
    model = parity_model(torch.float32, **SMALL)
    pipe = WalrusPipeline(model)
    pipe.processor.log_fields = ["pressure"]
    pressure = 10.0 ** np.random.default_rng(0).uniform(30, 31, size=(4, 16, 16))
    calls = []

    def spoil(module, args, output):
        calls.append(1)
        output.prediction[:, -1] = 30.0
        output.prediction[0, -1, 0, 2, 2] = 38.5 if len(calls) < 3 else 38.6
        return output

    model.register_forward_hook(spoil)
    message = r"not finite \(field 'pressure' passes 3.4e\+38, .* float32\) from step 3 on; those frames are NaN"
    with pytest.warns(UserWarning, match=message) as caught:
        forecast = pipe.predict(Trajectory({"pressure": pressure}, SIDES), 5, seed=0, progress=False)
    assert not [warning for warning in caught if warning.category is RuntimeWarning]
    assert np.isfinite(forecast.fields["pressure"][:2]).all()
    assert np.isnan(forecast.fields["pressure"][2:]).all()


def test_one_bad_member_is_named(pipe):
    calls = []

    def spoil(module, args, output):
        calls.append(1)
        if len(calls) == 3:
            output.prediction.fill_(float("nan"))
        return output

    hook = pipe.model.register_forward_hook(spoil)
    try:
        with pytest.warns(UserWarning, match="of member 2 is not finite from step 1 on"):
            forecast = pipe.predict(simulation(), 2, ensemble_size=2, seed=0, progress=False)
    finally:
        hook.remove()
    assert np.isfinite(forecast.ensemble["pressure"][0]).all()
    assert np.isnan(forecast.ensemble["pressure"][1]).all()


def test_progress_is_shown_on_stderr_unless_switched_off(pipe, capsys):
    pipe.predict(simulation(), 2, seed=0)
    assert "forecast" in capsys.readouterr().err
    pipe.predict(simulation(), 2, seed=0, progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prediction_length": 0}, "at least 1 step and 1 member, found 0 and 1"),
        ({"ensemble_size": 0}, "at least 1 step and 1 member, found 50 and 0"),
        ({"ensemble_size": 2, "jitter": False}, "without jitter all members are equal; switch jitter on"),
        ({"tokens_per_axis": 0}, "at least one token"),
    ],
)
def test_requests_that_make_no_sense_are_refused(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe.predict(simulation(), **arguments)


def test_a_single_frame_and_unusable_data_are_refused_before_the_model_runs(pipe):
    hook = pipe.model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    try:
        with pytest.raises(ValueError, match=r"expected one walrus_hf\.Trajectory, found list"):
            pipe.predict([simulation()], 2)
        with pytest.raises(ValueError, match="at least 2 frames"):
            pipe.predict(simulation(1), 2)
        bad = simulation()
        bad.fields["pressure"][-1, 3, 3] = np.nan
        with pytest.raises(ValueError, match="'pressure', frame 5"):
            pipe.predict(bad, 2)
        with pytest.raises(ValueError, match="unknown field 'tracer'"):
            pipe.predict(Trajectory({"tracer": np.ones((4, 16, 16))}, SIDES), 2)
    finally:
        hook.remove()


# --- evaluate ------------------------------------------------------------------------------------------------------


def test_evaluate_compares_frames_of_the_same_time(pipe):
    truth = simulation(12)
    exact = truth.frames(4, 9)
    scores = pipe.evaluate(exact, truth)
    assert set(scores) == {"pressure", "velocity", "all fields"}
    assert list(scores["pressure"]) == ["1:1", "1:5"]
    assert all(value == 0 for windows in scores.values() for value in windows.values())
    worse = pipe.evaluate(persistence(truth.frames(0, 4), 5), truth)
    assert worse["pressure"]["1:5"] > worse["pressure"]["1:1"] > 0.1
    assert worse["all fields"]["1:1"] == pytest.approx((worse["pressure"]["1:1"] + worse["velocity"]["1:1"]) / 2)


def test_evaluate_takes_the_published_windows_that_fit(pipe):
    truth = simulation(40, (8, 8))
    assert list(pipe.evaluate(truth, truth)["pressure"]) == ["1:1", "1:10", "11:30", "1:20", "1:40"]
    assert list(pipe.evaluate(truth, truth, windows=((2, 3),))["pressure"]) == ["2:3"]


@pytest.mark.parametrize("case", ["too short", "too late", "between frames", "other step"])
def test_a_truth_of_other_times_is_refused(pipe, case):
    truth = simulation(12)
    forecast = truth.frames(4, 9)
    if case == "too short":
        truth = truth.frames(0, 8)
    elif case == "too late":
        truth = truth.frames(6)
    elif case == "between frames":
        forecast.time += 0.2
    else:
        forecast.dt = 1.0
    with pytest.raises(ValueError, match="expected a truth with the forecast's 5 frames from time 3"):
        pipe.evaluate(forecast, truth)


# --- loading and saving --------------------------------------------------------------------------------------------


def test_a_saved_pipeline_forecasts_equal_numbers(pipe, folder):
    loaded = WalrusPipeline.from_pretrained(folder)
    given = simulation()
    assert same(pipe.predict(given, 2, seed=1, progress=False), loaded.predict(given, 2, seed=1, progress=False))
    assert loaded.processor.to_dict() == pipe.processor.to_dict() | {"feature_extractor_type": "WalrusProcessor"}
    assert not loaded.model.training


def test_the_processor_made_for_a_model_has_its_vocabulary_and_dials(pipe):
    processor = processor_for(pipe.model.config)
    assert processor.field2id == pipe.model.config.field2id
    assert (processor.tokens_per_axis, processor.tokens_per_axis_3d, processor.num_hidden_layers) == (4, 2, 2)


def test_bfloat16_weights_forecast_nearly_the_same_in_float32_fields(pipe, folder):
    half = WalrusPipeline.from_pretrained(folder, dtype="bfloat16")
    assert half.model.dtype == torch.bfloat16
    given = simulation()
    exact = pipe.predict(given, 1, seed=0, progress=False).fields["pressure"]
    found = half.predict(given, 1, seed=0, progress=False).fields["pressure"]
    assert found.dtype == np.float32
    change = np.abs(exact - given.fields["pressure"][-1]).mean()
    assert 0 < np.abs(found - exact).mean() < 0.1 * change
    assert WalrusPipeline.from_pretrained(folder, dtype=torch.float32).model.dtype == torch.float32


def test_an_adapter_folder_finds_its_base(pipe, folder, tmp_path):
    peft = pytest.importorskip("peft")
    base = WalrusForPrediction.from_pretrained(folder)
    adapted = peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path)
    given = simulation()
    loaded = WalrusPipeline.from_pretrained(tmp_path)
    expected = WalrusPipeline(adapted, pipe.processor).predict(given, 2, seed=0, progress=False)
    found = loaded.predict(given, 2, seed=0, progress=False)
    assert same(found, expected)
    assert not same(found, pipe.predict(given, 2, seed=0, progress=False))
    loaded.save_pretrained(tmp_path / "again")
    assert same(WalrusPipeline.from_pretrained(tmp_path / "again").predict(given, 2, seed=0, progress=False), expected)


@pytest.fixture
def adapters(pipe, folder, tmp_path):
    """Folders of two adapters of the same base, the second with a processor of its own."""
    peft = pytest.importorskip("peft")
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        settings = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        adapted = peft.get_peft_model(WalrusForPrediction.from_pretrained(folder), settings)
        processor = processor_for(pipe.model.config)
        processor.tokens_per_axis = 2 + seed
        WalrusPipeline(adapted, processor).save_pretrained(tmp_path / name)
    return tmp_path / "one", tmp_path / "two"


@pytest.mark.parametrize("start", ["the base", "another adapter"])
def test_an_adapter_that_was_loaded_by_name_is_saved_where_it_is_found_again(folder, adapters, tmp_path, start):
    one, two = adapters
    named = WalrusPipeline.from_pretrained(folder if start == "the base" else one)
    named.load_adapter(two, "mine")
    named.model.set_adapter("mine")
    named.save_pretrained(tmp_path / "saved")
    written = {path.name for path in (tmp_path / "saved").iterdir()}
    assert written == {"README.md", "adapter_config.json", "adapter_model.safetensors", "preprocessor_config.json"}
    found, expected = (WalrusPipeline.from_pretrained(path) for path in (tmp_path / "saved", two))
    assert found.processor.tokens_per_axis == 3
    assert same(*(pipe.predict(simulation(), 2, seed=0, progress=False) for pipe in (found, expected)))


def test_loading_adapters_warns_of_nothing(adapters):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        WalrusPipeline.from_pretrained(adapters[0]).load_adapter(adapters[1], "mine")


def test_a_saved_adapter_leaves_a_card_and_folders_beside_it_alone(folder, adapters):
    one, two = adapters
    (one / "README.md").write_text("mine")
    shutil.copytree(two, one / "other")
    kept = {file: file.read_bytes() for file in [one / "README.md", *(one / "other").iterdir()]}
    named = WalrusPipeline.from_pretrained(folder)
    named.load_adapter(one, "other")
    named.save_pretrained(one)
    assert {file: file.read_bytes() for file in kept} == kept


def test_a_whole_model_and_an_adapter_are_not_saved_in_one_folder(pipe, folder, adapters, tmp_path):
    one, two = adapters
    whole = shutil.copytree(folder, tmp_path / "whole")
    before = {file: file.read_bytes() for place in (one, whole) for file in place.iterdir()}
    loaded = WalrusPipeline.from_pretrained(two)
    with pytest.raises(FileExistsError, match=r"whole: expected a folder to save an adapter in, found a whole model"):
        loaded.save_pretrained(whole)
    with pytest.raises(FileExistsError, match=r"expected a folder to save a whole model in, found an adapter there"):
        loaded.merge_adapter().save_pretrained(one)
    assert {file: file.read_bytes() for place in (one, whole) for file in place.iterdir()} == before
    expected = pipe.predict(simulation(), 2, seed=0, progress=False)
    pipe.save_pretrained(whole)
    assert same(WalrusPipeline.from_pretrained(whole).predict(simulation(), 2, seed=0, progress=False), expected)


def test_an_adapter_that_replaces_another_leaves_no_record_of_it(adapters):
    one, two = adapters
    (one / "walrus_adapter.json").write_text("of the adapter that was there")
    WalrusPipeline.from_pretrained(two).save_pretrained(one)
    assert not (one / "walrus_adapter.json").exists()


def test_an_adapter_on_fields_that_its_folder_would_lose_is_not_saved(folder, tmp_path):
    peft = pytest.importorskip("peft")
    base = WalrusPipeline.from_pretrained(folder)
    grown, processor = add_fields(base.model, base.processor, ["tracer_of_my_own"])
    settings = peft.LoraConfig(target_modules=["q_proj"])
    with pytest.raises(ValueError, match=r"found tracer_of_my_own added to .* merge_adapter\(\) gives, or save"):
        WalrusPipeline(peft.get_peft_model(grown, settings), processor).save_pretrained(tmp_path / "lost")
    assert not (tmp_path / "lost").exists()
    grown, processor = add_fields(base.model, base.processor, ["tracer_of_my_own"])
    WalrusPipeline(grown, processor).save_pretrained(tmp_path / "grown")
    adapted = peft.get_peft_model(WalrusForPrediction.from_pretrained(tmp_path / "grown"), settings)
    WalrusPipeline(adapted, processor).save_pretrained(tmp_path / "adapter")
    assert "tracer_of_my_own" in WalrusPipeline.from_pretrained(tmp_path / "adapter").processor.field2id


def test_an_adapter_whose_base_is_gone_is_refused(tmp_path):
    pytest.importorskip("peft")
    settings = {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "gone")}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(FileNotFoundError, match="gone: expected the folder of a checkpoint, found none"):
        WalrusPipeline.from_pretrained(tmp_path)


def _edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _truncate(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


DAMAGE = {
    "another model type": (lambda f: _edit(f / "config.json", model_type="bert"), "model type 'walrus', found 'bert'"),
    "no model type": (lambda f: (f / "config.json").write_text("{}"), "model type 'walrus', found None"),
    "no configuration": (lambda f: (f / "config.json").unlink(), "found one without a config.json"),
    "broken configuration": (lambda f: _truncate(f / "config.json", 40), "found an unreadable one"),
    "a list as configuration": (lambda f: (f / "config.json").write_text("[]"), "found an unreadable one"),
    "a wrong setting": (lambda f: _edit(f / "config.json", hidden_size="wide"), "expected int, got str"),
    "impossible settings": (lambda f: _edit(f / "config.json", num_attention_heads=5), "expected hidden_size to be"),
    "truncated weights": (lambda f: _truncate(f / "model.safetensors", 20_000), "save or download it again"),
    "weights cut in the header": (lambda f: _truncate(f / "model.safetensors", 100), "save or download it again"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no file named model.safetensors"),
    "too few weights": (lambda f: _edit(f / "config.json", num_hidden_layers=3), "missing such as model.layers.2."),
    "too many weights": (lambda f: _edit(f / "config.json", num_hidden_layers=1), "unexpected such as model.layers.1."),
    "other shapes": (lambda f: _edit(f / "config.json", intermediate_size=32), "mismatched such as model.layers.0."),
    "no processor": (lambda f: (f / "preprocessor_config.json").unlink(), "expected a preprocessor_config.json"),
    "a broken processor": (
        lambda f: _truncate(f / "preprocessor_config.json", 9),
        "expected a preprocessor_config.json",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_refused_in_one_line(folder, tmp_path, damage):
    spoil, message = DAMAGE[damage]
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    spoil(copy)
    with pytest.raises(ValueError) as error:  # noqa: PT011  (the message is checked below)
        WalrusPipeline.from_pretrained(copy)
    assert message in str(error.value)
    assert str(error.value).startswith(str(copy))
    assert "\n" not in str(error.value)


def test_pickled_weights_are_not_read(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "model.safetensors").unlink()
    torch.save(WalrusForPrediction.from_pretrained(folder).state_dict(), tmp_path / "copy" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="expected a whole checkpoint of safetensors"):
        WalrusPipeline.from_pretrained(tmp_path / "copy")


def test_a_missing_folder_and_a_file_are_refused(tmp_path):
    for name in (tmp_path / "gone", "./gone", "~/gone/by/now", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="expected the folder of a checkpoint, found none; check the path"):
            WalrusPipeline.from_pretrained(name)
    (tmp_path / "file").write_text("text")
    with pytest.raises(ValueError, match="found a file"):
        WalrusPipeline.from_pretrained(tmp_path / "file")
    with pytest.raises(ValueError, match="without a config"):
        WalrusPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("device", ["cuda:99", "abacus"])
def test_a_device_that_is_not_there_is_refused(folder, device):
    with pytest.raises(ValueError, match=f"expected one that this machine has, such as 'cpu', found '{device}'"):
        WalrusPipeline.from_pretrained(folder, device=device)


def test_models_that_cannot_forecast_or_hide_something_are_refused_with_a_remedy(pipe, adapters, folder):
    with pytest.raises(ValueError, match=r"found WalrusModel, which cannot forecast; load it with"):
        WalrusPipeline(pipe.model.model)
    with pytest.raises(ValueError, match=r"a wrapper of torch.compile, .* call model.compile\(\)"):
        WalrusPipeline(torch.compile(pipe.model))
    other = WalrusPipeline.from_pretrained(folder)
    other.model.load_adapter(str(adapters[0]))
    with pytest.raises(ValueError, match=r"transformers put inside; .* WalrusPipeline.load_adapter"):
        other.predict(simulation(), 1, adapter="base", progress=False)
    with pytest.raises(ValueError, match="transformers put inside"):
        WalrusPipeline(other.model)


def test_a_model_alone_gets_a_processor(pipe):
    assert isinstance(WalrusPipeline(pipe.model).processor, WalrusProcessor)
