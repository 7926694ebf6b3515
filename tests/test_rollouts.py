"""One rollout for each member: what differs between them, and what is said of fields that hardly change."""

import numpy as np
import pytest
import torch

from walrus_hf import Trajectory, WalrusConfig, WalrusForPrediction, WalrusProcessor
from walrus_hf.rollouts import device_of, hidden_changes, member_rollouts, small_changes

CONFIG = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "stem_hidden_size": 8,
    "tokens_per_axis": 4, "field2id": {"closed_boundary": 0, "open_boundary": 1, "bias_correction": 2, "a": 3, "b": 4},
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return WalrusForPrediction(WalrusConfig(**CONFIG)).eval()


@pytest.fixture
def processor(model):
    return WalrusProcessor(field2id=model.config.field2id, tokens_per_axis=4, num_hidden_layers=2, hold_scales=True)


@pytest.fixture
def trajectory():
    rng = np.random.default_rng(0)
    fields = {name: rng.normal(size=(4, 24, 16)).astype(np.float32) for name in ("a", "b")}
    return Trajectory(fields, {"x": "periodic", "y": "periodic"}, dt=1.0)


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_members_of_one_seed_agree_and_those_of_others_do_not(model, processor, trajectory):
    members = member_rollouts(model, processor, processor(trajectory), trajectory, 2, generators(1, 1, 2))
    one, again, other = (torch.stack(list(member)) for member in members)
    assert one.shape == (2, 1, 2, 24, 16, 1)
    assert torch.equal(one, again)
    assert not torch.allclose(one, other, atol=1e-4)


def test_a_batch_is_forecast_as_each_of_it_alone(model, processor, trajectory):
    other = Trajectory(
        {name: 2 * values[::-1] for name, values in trajectory.fields.items()}, trajectory.boundary_conditions, dt=1.0
    )
    alone = [processor(part) for part in (trajectory, other)]
    together = {name: torch.cat([part[name] for part in alone]) for name in alone[0]}
    (batch,) = member_rollouts(model, processor, together, trajectory, 2, generators(3))
    found = torch.stack(list(batch))  # (steps, B, C, H, W, D)
    for row, part in enumerate(alone):
        (single,) = member_rollouts(model, processor, part, trajectory, 2, generators(3))
        torch.testing.assert_close(found[:, row], torch.stack(list(single))[:, 0], atol=1e-4, rtol=1e-4)


def test_the_processor_says_whether_scales_are_held_unless_the_caller_does(model, processor, trajectory):
    inputs = processor(trajectory)
    ends = []
    for hold, given in ((True, {}), (False, {}), (False, {"hold_scales": True})):
        processor.hold_scales = hold
        (member,) = member_rollouts(model, processor, inputs, trajectory, 3, generators(5), jitter=False, **given)
        ends.append(list(member)[-1])
    assert torch.equal(ends[0], ends[2])
    assert not torch.allclose(ends[0], ends[1], atol=1e-4)


def test_inputs_go_where_the_weights_are_and_to_the_cpu_if_those_are_nowhere(model):
    assert device_of(model) == torch.device("cpu")
    with torch.device("meta"):
        nowhere = torch.nn.Linear(2, 2)
    assert device_of(nowhere) == torch.device("cpu")


def test_a_field_of_yes_and_no_at_rest_hides_no_change(processor, trajectory):
    trajectory.fields["b"] = np.broadcast_to(np.eye(24, 16, dtype=bool), (4, 24, 16))
    assert hidden_changes(processor, processor(trajectory), trajectory) == []


def test_fields_that_hardly_change_are_named_with_their_change_unless_scales_are_given(processor, trajectory):
    trajectory.fields["b"] = (1 + 1e-7 * np.arange(4))[:, None, None] * np.ones((4, 24, 16))
    inputs = processor(trajectory)
    found = small_changes(processor, inputs, trajectory, 1e-5)
    assert list(found) == ["b"]
    assert found["b"] == pytest.approx(1e-7, rel=0.5)
    assert small_changes(processor, inputs, trajectory, 1e-9) == {}
    assert small_changes(processor, {**inputs, "change_scales": torch.ones(1, 2)}, trajectory, 1e-5) == {}
