"""The loss of given frames, and of the model's own forecasts."""

import pytest
import torch

pytest.importorskip("accelerate")

from walrus_hf.jitter import with_shifts
from walrus_hf.normalization import delta_scales, field_scales
from walrus_hf.training.objective import TrainingModel

from ..small_model import small_inputs, small_model


@pytest.mark.parametrize("steps", [1, 3])
def test_own_steps_are_a_rollout_with_held_scales_before_the_loss(steps):
    model = small_model(jitter=True, drop_path_rate=0.5).train()
    training, inputs = TrainingModel(model), small_inputs(frames=2 + steps, labels=True)
    inputs["padded_channels"] = torch.tensor([[False, True, False]] * 2)
    inputs["obstacle_mask"] = torch.rand(inputs["field_values"][:, 0, 0].shape) < 0.2
    plan = model.model.make_plan(inputs["field_values"])
    inputs["plan"] = plan
    calls = []
    hook = model.register_forward_hook(lambda *call: calls.append(call[2]), with_kwargs=True)
    loss, _, _ = training(own_steps=steps, generator=torch.Generator().manual_seed(1), **inputs)
    hook.remove()
    assert len(calls) == steps + 1
    given = inputs["field_values"][:, :2].masked_fill(inputs["obstacle_mask"][:, None, None], 0.0)
    scales = {"value_scales": calls[-1]["value_scales"], "change_scales": calls[-1]["change_scales"]}
    assert torch.equal(scales["value_scales"], field_scales(given, model.config.scale_eps))
    assert torch.equal(scales["change_scales"], delta_scales(given, model.config.scale_eps))
    rest = {name: inputs[name] for name in inputs if name not in ("field_values", "labels")}
    generator = torch.Generator().manual_seed(1)
    forecasts = model.predict(given, num_steps=steps, generator=generator, hold_scales=True, **rest)
    expected = torch.cat([given, forecasts], 1)[:, -2:]
    assert torch.equal(calls[-1]["field_values"], expected)
    assert not calls[-1]["field_values"].requires_grad
    assert torch.equal(calls[-1]["labels"], inputs["labels"][:, -2:])
    assert calls[-1]["plan"] == with_shifts(plan, generator) != plan
    assert loss.requires_grad
    assert model.training


def test_given_scales_win_over_those_of_the_frames():
    model = small_model()
    training, inputs = TrainingModel(model), small_inputs(frames=4, labels=True)
    inputs["plan"] = model.model.make_plan(inputs["field_values"])
    scales = {"value_scales": torch.full((2, 3), 7.0), "change_scales": torch.full((2, 3), 3.0)}
    calls = []
    model.register_forward_hook(lambda *call: calls.append(call[2]), with_kwargs=True)
    training(own_steps=2, **inputs, **scales)
    assert len(calls) == 3
    assert all(torch.equal(call[name], scales[name]) for call in calls for name in scales)


def test_own_steps_leave_no_weight_without_a_gradient_under_autocast(monkeypatch):
    """Older torch shares casts between passes, and those of the forecasts have no history; so they must be gone."""
    cleared, clear = [], torch.clear_autocast_cache
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: (cleared.append(True), clear()))
    training, inputs = TrainingModel(small_model()).train(), small_inputs(frames=4, labels=True)
    inputs["plan"] = training.model.model.make_plan(inputs["field_values"])
    with torch.autocast("cpu", torch.bfloat16):
        training(own_steps=2, **inputs)[0].backward()
    norms = [p.grad.norm() for p in training.model.model.layers.parameters() if p.ndim == 2]
    assert min(norms) > 0
    assert cleared
