"""The plain reading of the architecture matches the golden numbers, and the model matches it where they are silent."""

import math

import pytest
import torch

from walrus_hf import WalrusForPrediction
from walrus_hf.bench.plain import STRIDES, PlainWalrus, bucket, draw_strong_weights
from walrus_hf.convert import published_names, published_state_dict_to_walrus
from walrus_hf.layers import WalrusTimeAttention
from walrus_hf.strides import PUBLISHED_STRIDES

from ..fixtures.formula import CASES, published_state_dict
from ..small_model import small_config
from ..test_parity import assert_golden, model_inputs, parity_config

WALL, OPEN, PERIODIC = (0, 0), (1, 1), (2, 2)


def on_the_plain_side(inputs: dict) -> dict:
    """Inputs of the model as the plain reading takes them: the rows of a batch that are all equal, once."""
    plain = dict(inputs)
    for name in ("field_ids", "constant_ids", "boundary_conditions"):
        if name in plain:
            plain[name] = plain[name][0]
    plain["boundary_conditions"] = plain["boundary_conditions"].tolist()
    return plain


def both_sides(config, seed: int = 0) -> tuple[PlainWalrus, WalrusForPrediction]:
    plain = draw_strong_weights(PlainWalrus(config), seed).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if "freqs" in name and config.rope_learnable:
                parameter.mul_(1 + 0.3 * torch.rand(parameter.shape, generator=generator, dtype=torch.float64))
            elif "freqs" in name:  # in full precision, as the model has them
                parameter.copy_(math.pi * torch.linspace(1, 128, len(parameter), dtype=torch.float64))
    ours = WalrusForPrediction(config).double().eval()
    ours.load_state_dict(published_state_dict_to_walrus(plain.state_dict(), config))
    return plain, ours


@pytest.mark.parametrize("case", CASES["cases"], ids=[case["name"] for case in CASES["cases"]])
def test_every_golden_case_is_matched(case):
    model = PlainWalrus(parity_config()).double()
    model.load_state_dict({name: torch.from_numpy(values) for name, values in published_state_dict().items()})
    with torch.no_grad():
        prediction, delta = model(**on_the_plain_side(model_inputs(case, torch.float64)))
    assert_golden(delta, case["expected"]["delta"], torch.float64)
    assert_golden(prediction, case["expected"]["prediction"], torch.float64)


# What the golden cases leave out: (grid, sides of H, W, D, frames, changes of the small configuration).
# Four tokens an axis: the cells of an axis over 4 pick its strides from the published table.
BEYOND = {
    "strides (6,2) and (8,4)": ((48, 128, 1), (PERIODIC, PERIODIC, PERIODIC), 2, {}),
    "strides (6,2) and (8,4) between walls": ((48, 128, 1), (WALL, OPEN, PERIODIC), 2, {}),
    "strides (6,4) and (4,4)": ((96, 64, 1), (PERIODIC, (1, 0), PERIODIC), 2, {}),
    "strides (6,2) and (2,2) in a volume": ((48, 16, 16), ((0, 1), PERIODIC, PERIODIC), 1, {}),
    "strides (1,1)": ((8, 32, 1), (PERIODIC, WALL, PERIODIC), 2, {"tokens_per_axis": 8}),
    "20 frames": ((16, 16, 1), (PERIODIC, WALL, PERIODIC), 20, {}),
    "one axis": ((1, 32, 1), (PERIODIC, PERIODIC, PERIODIC), 3, {}),
    "one axis between a wall and an open side": ((1, 1, 32), (PERIODIC, PERIODIC, (0, 1)), 3, {}),
    "shared learned frequencies": ((16, 32, 1), (PERIODIC, PERIODIC, PERIODIC), 2, {"rope_learnable": "shared"}),
    "frequencies per axis": ((16, 32, 16), (PERIODIC, WALL, PERIODIC), 1, {"rope_learnable": "per_axis"}),
    "absolute position": ((16, 32, 1), (PERIODIC, PERIODIC, PERIODIC), 2, {"absolute_position_shape": (4, 4, 1)}),
    "heads with channels that are left alone": ((32, 16, 1), (PERIODIC, OPEN, PERIODIC), 2, {"num_attention_heads": 1}),
}  # fmt: skip


@pytest.mark.parametrize("jitter", [False, True], ids=["still", "jitter"])
@pytest.mark.parametrize("name", BEYOND)
def test_the_model_matches_the_plain_reading_where_the_golden_numbers_are_silent(name, jitter):
    grid, sides, frames, changes = BEYOND[name]
    config = small_config(**changes)
    plain, ours = both_sides(config)
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(2, frames, 3, *grid, generator=generator, dtype=torch.float64).cumsum(1)
    inputs = {
        "field_values": values * torch.tensor([1.0, 30.0, 0.01]).view(3, 1, 1, 1) + 2.0,
        "field_ids": torch.tensor([[3, 7, 5]] * 2),
        "constant_values": torch.randn(2, 1, *grid, generator=generator, dtype=torch.float64),
        "constant_ids": torch.tensor([[9]] * 2),
        "boundary_conditions": torch.tensor([sides] * 2),
        "jitter": jitter,
    }
    if jitter and config.absolute_position_shape is None:
        plan = ours.model.make_plan(values, inputs["boundary_conditions"], None, True, None, None, generator)
        assert any(plan.patch_shifts)
        inputs |= {"patch_shifts": plan.patch_shifts, "layer_shifts": plan.layer_shifts}
    with torch.no_grad():
        prediction, delta = plain(**on_the_plain_side(inputs))
        if "patch_shifts" not in inputs:  # jitter without shifts: the wider padding alone
            inputs |= {"patch_shifts": (0, 0, 0), "layer_shifts": [(0, 0, 0)] * 2} if jitter else {}
        output = ours(**inputs)
    assert delta.square().mean().sqrt() > 0.01
    torch.testing.assert_close(output.delta, delta, rtol=0, atol=1e-10)
    torch.testing.assert_close(output.prediction, prediction, rtol=1e-10, atol=1e-10)


def test_gradients_reach_the_inputs_alike():
    plain, ours = both_sides(small_config())
    values = torch.randn(1, 3, 2, 16, 32, 1, dtype=torch.float64, requires_grad=True)
    sides, ids = [WALL, PERIODIC, PERIODIC], torch.tensor([3, 7])
    expected = torch.autograd.grad(plain(values, ids, sides)[1].square().sum(), values)[0]
    found = torch.autograd.grad(ours(values, ids[None], torch.tensor([sides])).delta.square().sum(), values)[0]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())


def test_distances_of_16_frames_and_more_share_buckets_as_the_model_counts_them():
    config = small_config()
    attention = WalrusTimeAttention(config)
    with torch.no_grad():
        attention.relative_attention_bias.weight.copy_(torch.arange(32.0)[:, None].expand(-1, 4))
    found = attention.relative_bias(80, 1)[0, 0, 0].flip(0)  # by distance
    assert found.tolist() == [bucket(distance) for distance in range(80)]
    assert [bucket(distance) for distance in (15, 16, 17, 18, 31, 32, 79)] == [15, 16, 17, 18, 31, 31, 31]


@pytest.mark.parametrize(
    "changes", [{}, {"rope_learnable": "shared"}, {"rope_learnable": "per_axis", "absolute_position_shape": (4, 2, 1)}]
)
def test_parameters_carry_the_published_names_and_shapes(changes):
    config = small_config(**changes)
    found = {name: tuple(tensor.shape) for name, tensor in PlainWalrus(config).state_dict().items()}
    assert found == published_names(config)


def test_strides_outside_the_published_table_are_refused():
    assert STRIDES == PUBLISHED_STRIDES
    plain = PlainWalrus(small_config())
    with pytest.raises(ValueError, match="published table"):
        plain(torch.zeros(1, 1, 1, 36, 16, 1), torch.tensor([3]), [PERIODIC] * 3, [(3, 3), (2, 2), (1, 1)])
    with pytest.raises(KeyError):
        plain(torch.zeros(1, 1, 1, 36, 16, 1), torch.tensor([3]), [PERIODIC] * 3)
