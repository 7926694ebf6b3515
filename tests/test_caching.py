"""A cached rollout forecasts what uncached forwards over the growing window forecast."""

import pytest
import torch

from walrus_hf.caching import WalrusTimeCache
from walrus_hf.jitter import with_shifts
from walrus_hf.normalization import delta_scales, field_scales

from .small_model import PERIODIC, PLANE, VOLUME, WALL_OPEN, small_inputs, small_model

CASES = {
    "periodic plane": (PLANE, PERIODIC, {}),
    "wall and open plane, jitter": (PLANE, WALL_OPEN, {"jitter": True}),
    "periodic volume, jitter": (VOLUME, PERIODIC, {"jitter": True}),
    "all learned parts, eager": ((16, 16, 1), PERIODIC, {"rope_learnable": "per_axis", "jitter": True}),
}


def double(model, inputs):
    """In float64, with a decoder whose forecasts change as much as the inputs do."""
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(5.0)
    return model.double(), {n: t.double() if t.is_floating_point() else t for n, t in inputs.items()}


def growing_window(model, inputs, steps, cache_steps, generator):
    """The same forecast without any cache: scales and plan held, one frame more each step."""
    inputs = dict(inputs)
    state = inputs.pop("field_values")
    sides = inputs.pop("boundary_conditions", None)
    masks = {name: inputs.pop(name) for name in ("padded_channels", "obstacle_mask") if name in inputs}
    frames, plan, found = state.shape[1], None, []
    if "obstacle_mask" in masks:
        state = state.masked_fill(masks["obstacle_mask"][:, None, None], 0.0)
    for step in range(steps):
        if step % cache_steps == 0:
            state = state[:, -frames:]
            plan = with_shifts(plan, generator) if plan else model.model.make_plan(state, sides, generator=generator)
            value, change = field_scales(state, 1e-5), delta_scales(state, 1e-5)
        with torch.no_grad():
            following = model(
                state, plan=plan, value_scales=value, change_scales=change, **inputs
            ).prediction[:, -1:]  # fmt: skip
        if "padded_channels" in masks:
            following = following.masked_fill(masks["padded_channels"][:, None, :, None, None, None], 0.0)
        if "obstacle_mask" in masks:
            following = following.masked_fill(masks["obstacle_mask"][:, None, None], 0.0)
        found.append(following[:, 0])
        state = torch.cat([state, following], 1)
    return torch.stack(found, 1)


@pytest.mark.parametrize(("grid", "sides", "config"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("cache_steps", [2, 4])
def test_the_steps_between_renewals_are_those_of_the_growing_window(grid, sides, config, cache_steps):
    model, inputs = double(small_model(num_hidden_layers=3, **config), small_inputs(grid, sides=sides))
    if "rope_learnable" in config:
        model.set_attn_implementation("eager")
    expected = growing_window(model, inputs, 6, cache_steps, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    found = model.predict(**inputs, num_steps=6, use_cache=True, cache_steps=cache_steps, generator=generator)
    assert (found - expected).abs().max() < 1e-9 * expected.abs().max()
    assert expected.diff(dim=1).abs().amax((0, 2, 3, 4, 5)).min() > 0.1  # the frames do change


def test_constants_padded_components_and_obstacles_are_kept_too():
    model, inputs = double(small_model(jitter=True), small_inputs(sides=WALL_OPEN))
    generator = torch.Generator().manual_seed(1)
    inputs["constant_values"] = torch.randn(2, 1, *PLANE, generator=generator, dtype=torch.float64)
    inputs["constant_ids"] = torch.tensor([[9]] * 2)
    inputs["padded_channels"] = torch.tensor([[False, True, False]] * 2)
    inputs["obstacle_mask"] = torch.rand(2, *PLANE, generator=generator) < 0.2
    expected = growing_window(model, inputs, 5, 5, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    found = model.predict(**inputs, num_steps=5, use_cache=True, cache_steps=5, generator=generator)
    assert (found - expected).abs().max() < 1e-9 * expected.abs().max()
    assert not found[:, :, 1].any()


def test_frames_far_apart_keep_their_relative_positions():
    model, inputs = double(small_model(), small_inputs((8, 16, 1), batch=1, frames=2, sides=PERIODIC))
    expected = growing_window(model, inputs, 40, 40, None)
    found = model.predict(**inputs, num_steps=40, use_cache=True, cache_steps=40)
    assert torch.isfinite(expected).all()
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=0)


def test_only_the_newest_frame_is_computed_between_renewals():
    model, inputs = small_model(), small_inputs(frames=3, sides=PERIODIC)
    frames = []
    model.model.embeddings.register_forward_hook(lambda module, args, output: frames.append(output.shape[1]))
    model.predict(**inputs, num_steps=7, use_cache=True, cache_steps=3)
    assert frames == [3, 1, 1, 3, 1, 1, 3]


def test_a_cache_of_one_step_is_the_plain_rollout_bit_for_bit():
    model, inputs = small_model(jitter=True), small_inputs(sides=WALL_OPEN)
    plain, cached = (
        model.predict(**inputs, num_steps=3, generator=torch.Generator().manual_seed(0), use_cache=use_cache)
        for use_cache in (False, True)
    )
    assert torch.equal(plain, cached)


def test_global_scales_are_used_throughout():
    model, inputs = double(small_model(), small_inputs(batch=1, sides=PERIODIC))
    scales = {"value_scales": torch.full((1, 3), 2.0), "change_scales": torch.full((1, 3), 0.1)}
    found = model.predict(**inputs, num_steps=3, use_cache=True, cache_steps=3, **scales)
    window = torch.cat([inputs["field_values"], found[:, :2]], 1)
    with torch.no_grad():
        last = model(**{**inputs, "field_values": window}, **scales).prediction[:, -1]
    torch.testing.assert_close(found[:, 2], last, rtol=1e-9, atol=1e-9)


def test_holding_scales_without_the_cache_is_refused():
    model, inputs = small_model(), small_inputs(sides=PERIODIC)
    with pytest.raises(ValueError, match="use_cache=True"):
        model.predict(**inputs, num_steps=3, cache_steps=2)
    with pytest.raises(ValueError, match="at least 1, found 0"):
        model.predict(**inputs, num_steps=3, use_cache=True, cache_steps=0)


def test_frames_that_follow_others_need_the_scales_and_plan_of_those():
    model, inputs = small_model(), small_inputs(sides=PERIODIC)
    plan = model.model.make_plan(inputs["field_values"])
    cache = WalrusTimeCache(2, 4)
    with torch.no_grad():
        model(**inputs, plan=plan, past_key_values=cache)
        assert cache.frames == 3
        one = {**inputs, "field_values": inputs["field_values"][:, -1:]}
        with pytest.raises(ValueError, match="value_scales and change_scales"):
            model(**one, plan=plan, past_key_values=cache)
        scales = {name: torch.ones(2, 3) for name in ("value_scales", "change_scales")}
        with pytest.raises(ValueError, match="plan"):
            model(**one, past_key_values=cache, **scales)
        model(**one, plan=plan, past_key_values=cache, **scales)
        with pytest.raises(ValueError, match="at most 4 frames, found 5"):
            model(**one, plan=plan, past_key_values=cache, **scales)
