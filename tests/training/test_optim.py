"""The published schedule, AdamW and Muon behind one optimiser, and the running average of the weights."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from walrus_hf.training.optim import (
    ExponentialAverage,
    fill_state,
    hidden_matrices,
    make_optimizer,
    make_scheduler,
    muon_change,
    published_schedule,
)

from ..small_model import VOLUME, small_inputs, small_model

RUN = 100_000  # optimiser steps of the published run: 200 epochs of 500


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.1),
        (2_500, 0.55),  # half of the warm-up
        (5_000, 1.0),
        (50_000, 1 / (1 + math.sqrt(90 + 128) - math.sqrt(128))),  # 90 epochs after the warm-up
        (95_000, 1 / (1 + math.sqrt(180 + 128) - math.sqrt(128))),
        (96_250, 0.5 / (1 + math.sqrt(180 + 128) - math.sqrt(128))),  # a quarter of the cooldown: 1 - sqrt(1 / 4)
        (100_000, 0.0),
    ],
)
def test_the_schedule_has_the_published_values(step, expected):
    assert published_schedule(step, RUN) == pytest.approx(expected, abs=1e-12)


def test_the_schedule_rises_then_falls_without_a_jump():
    factors = [published_schedule(step, RUN) for step in range(RUN + 1)]
    assert max(factors) == 1.0 == factors[5_000]
    assert all(later > earlier for earlier, later in pairwise(factors[:5_001]))
    assert all(later < earlier for earlier, later in pairwise(factors[5_000:]))
    # The steepest place is the beginning of the cooldown, where one step of 5,000 takes sqrt(1 / 5000) off.
    steepest = max(abs(later - earlier) for earlier, later in pairwise(factors))
    assert steepest == pytest.approx(factors[95_000] * math.sqrt(1 / 5_000), rel=1e-6)


@pytest.mark.parametrize("total", [1, 2, 7, 60, 1000])
def test_short_runs_have_the_same_shape(total):
    factors = [published_schedule(step, total) for step in range(total)]
    assert factors[0] == pytest.approx(0.1)
    assert all(0 < factor <= 1 for factor in factors)
    assert published_schedule(total, total) == 0.0 == published_schedule(total + 5, total)
    assert factors[total // 2] == pytest.approx(published_schedule(total // 2 * 3, 3 * total))


def test_a_run_without_steps_is_refused():
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.5)
    with pytest.raises(ValueError, match=r"total_steps: expected at least 1, found 0"):
        make_scheduler(optimizer, 0)


def test_the_scheduler_sets_the_rate_of_the_coming_step_and_resumes():
    def rates(scheduler, optimizer, steps):
        seen = []
        for _ in range(steps):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return seen

    def fresh():
        optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.5)
        return make_scheduler(optimizer, 40), optimizer

    scheduler, optimizer = fresh()
    seen = rates(scheduler, optimizer, 15)
    assert seen == [0.5 * published_schedule(step, 40) for step in range(15)]
    later, other = fresh()
    later.load_state_dict(scheduler.state_dict())
    other.load_state_dict(optimizer.state_dict())
    assert rates(later, other, 25) == [0.5 * published_schedule(step, 40) for step in range(15, 40)]


def test_adamw_decays_all_parameters_and_its_epsilon_suits_small_gradients():
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    before = [p.detach().double() for p in model.parameters()]
    optimizer = make_optimizer(model)
    for i, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, 1e-9 * (-1) ** i)
    optimizer.step()
    for i, (old, new) in enumerate(zip(before, model.parameters())):
        # The first step of Adam: the bias-corrected moments are the gradient and its square.
        direction = (-1) ** i * 1e-9 / (1e-9 + 1e-10)
        expected = old * (1 - 2e-4 * 1e-4) - 2e-4 * direction
        torch.testing.assert_close(new.detach().double(), expected, rtol=1e-6, atol=1e-7)


def test_muon_takes_the_projections_of_the_blocks_and_nothing_else():
    model = small_model(rope_learnable="per_axis", absolute_position_shape=(4, 4, 1))
    names = {id(p): name for name, p in model.named_parameters()}
    chosen = {names[id(p)] for p in hidden_matrices(model)}
    attention = [f"{part}.{x}_proj" for part in ("time_attention", "space_mixing") for x in "qkvo"]
    projections = [*attention, *(f"space_mixing.{x}_proj" for x in ("gate", "up", "down"))]
    assert chosen == {f"model.layers.{layer}.{name}.weight" for layer in range(2) for name in projections}
    groups = make_optimizer(model, muon=True).param_groups
    assert [len(group["params"]) for group in groups] == [len(chosen), len(names) - len(chosen)]
    assert {id(p) for group in groups for p in group["params"]} == set(names)


def test_muon_without_blocks_is_refused():
    with pytest.raises(ValueError, match=r"muon: expected a model with Walrus blocks, found none; train it with AdamW"):
        make_optimizer(nn.Linear(2, 2), muon=True)


def train(model, optimizer, scheduler=None, steps=range(3)):
    for step in steps:
        for i, parameter in enumerate(model.parameters()):
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1000 * step + i))
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return [p.detach().clone() for p in model.parameters()]


def test_the_two_halves_step_as_torchs_muon_and_adamw_do():
    model, twin = small_model(), small_model()
    combined = make_optimizer(model, 3e-2, 0.1, muon=True)
    matrices = hidden_matrices(twin)
    taken = {id(p) for p in matrices}
    muon = torch.optim.Muon(matrices, 3e-2, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([p for p in twin.parameters() if id(p) not in taken], 3e-2, eps=1e-10, weight_decay=0.1)
    before = [p.detach().clone() for p in twin.parameters()]
    for step in range(3):
        found = train(model, combined, steps=[step])
        train(twin, muon, steps=[step])
        expected = train(twin, adamw, steps=[step])
    for parameter, start, a, b in zip(twin.parameters(), before, found, expected):
        if id(parameter) in taken:  # torch's iteration is in bfloat16, which has three digits
            assert (a - b).norm() < 0.02 * (b - start).norm()
        else:
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(12, 12), (7, 20), (20, 7)])
def test_muon_changes_the_singular_values_alone_and_by_its_polynomial(shape):
    direction = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    left, values, right = torch.linalg.svd(direction, full_matrices=False)
    values = values / values.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    expected = -1e-2 * 0.2 * math.sqrt(max(shape)) * left @ torch.diag(values) @ right
    torch.testing.assert_close(muon_change(direction, 1e-2), expected, rtol=0, atol=1e-12)


def test_muon_and_adamw_resume_exactly_under_one_schedule():
    def fresh():
        model = small_model()
        optimizer = make_optimizer(model, 1e-2, muon=True)
        return model, optimizer, make_scheduler(optimizer, 10)

    straight = train(*fresh(), steps=range(6))
    model, optimizer, scheduler = fresh()
    train(model, optimizer, scheduler, steps=range(3))
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == [1e-2 * published_schedule(3, 10)] * 2
    later, other, its_scheduler = fresh()
    later.load_state_dict(model.state_dict())
    other.load_state_dict(optimizer.state_dict())
    its_scheduler.load_state_dict(scheduler.state_dict())
    resumed = train(later, other, its_scheduler, steps=range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(straight, resumed))


@pytest.mark.parametrize("muon", [False, True])
def test_filling_the_state_of_unreached_parameters_changes_no_later_step(muon):
    def run(fill):
        model = small_model()
        optimizer = make_optimizer(model, 1e-2, muon=muon)
        for step, grid in enumerate([None, None, VOLUME]):  # planes alone at first
            if fill:
                fill_state(optimizer)
                assert all(optimizer.state[p] for p in model.parameters())
            inputs = small_inputs(seed=step, labels=True) if grid is None else small_inputs(grid, labels=True)
            model(**inputs).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return [p.detach().clone() for p in model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(run(False), run(True)))


def test_the_average_follows_its_recursion_in_float32():
    model = nn.Linear(3, 2, dtype=torch.bfloat16)
    average = ExponentialAverage(model, 0.5)
    expected = model.weight.detach().double()
    for count in range(1, 13):
        with torch.no_grad():
            model.weight.normal_(generator=torch.Generator().manual_seed(count))
        average.update()
        decay = min(0.5, (1 + count) / (10 + count))
        expected = decay * expected + (1 - decay) * model.weight.detach().double()
    found = average.state_dict()
    assert found["weight"].dtype == torch.float32
    assert found["updates"] == 12
    torch.testing.assert_close(found["weight"].double(), expected, rtol=1e-6, atol=1e-7)


def test_the_model_holds_the_average_inside_a_swap_only():
    model = nn.Linear(3, 2)
    average = ExponentialAverage(model, 0.9)
    with torch.no_grad():
        model.weight.add_(1.0)
    average.update()
    own, averaged = model.weight.detach().clone(), average.state_dict()["weight"].clone()
    with average.swap():
        assert torch.equal(model.weight, averaged)
    assert torch.equal(model.weight, own)
    assert not torch.equal(own, averaged)
    with pytest.raises(KeyError, match="evaluation failed"), average.swap():
        raise KeyError("evaluation failed")
    assert torch.equal(model.weight, own)
    assert torch.equal(average.state_dict()["weight"], averaged)


def test_an_average_is_copied_from_its_state():
    model = nn.Linear(3, 2)
    average, other = ExponentialAverage(model, 0.9), ExponentialAverage(nn.Linear(3, 2), 0.9)
    average.update()
    other.load_state_dict(average.state_dict())
    assert all(torch.equal(other.state_dict()[name], value) for name, value in average.state_dict().items())
    with pytest.raises(ValueError, match=r"averages: expected 3 names, found others: \['bias'"):
        average.load_state_dict({"weight": torch.zeros(2, 3), "updates": torch.tensor(1)})


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1])
def test_a_decay_outside_zero_and_one_is_refused(decay):
    with pytest.raises(ValueError, match=r"decay: expected a number between 0 and 1"):
        ExponentialAverage(nn.Linear(2, 2), decay)
