"""What a training step holds, counted on tensors without data for the network and the cases of the benchmark."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from walrus_hf.bench.cases import cases, make_sides, network
from walrus_hf.bench.train import ours_loss, plain_loss
from walrus_hf.finetuning_memory import ADAM_STATES, LiveBytes


def held(model, loss):
    """Weights, optimiser, and the most that lives beside them in a forward and backward pass."""
    model.train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = torch.nn.Parameter(torch.empty(parameter.shape))
        with LiveBytes(model.parameters()) as counter:
            loss().backward()
        return counter.peak + (1 + ADAM_STATES) * sum(p.numel() * p.element_size() for p in model.parameters())


@pytest.mark.parametrize("case", ["2d", pytest.param("3d", marks=pytest.mark.slow)])
def test_a_training_step_takes_little_more_than_half_of_the_plain_one_and_less_than_a_third_with_checkpointing(case):
    sides = make_sides(network(False), cases(False)[case])
    plain = held(sides.plain, plain_loss(sides))
    ours = held(sides.ours, ours_loss(sides))
    sides.ours.gradient_checkpointing_enable({"use_reentrant": False})
    checkpointed = held(sides.ours, ours_loss(sides))
    assert ours < 0.56 * plain
    assert checkpointed < 0.32 * plain
