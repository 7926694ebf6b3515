"""Any grid in, the same grid out; what a shift of the data does to tokens and forecast; the decoder's seam.

All models carry the strong weights of the golden cases: a fresh model forecasts persistence and would pass anything.
"""

import functools
import math

import pytest
import torch
import torch.nn.functional as F

from walrus_hf import WalrusForPrediction
from walrus_hf.convolutions import WalrusStridedConv, WalrusTransposedConv, transposed_convolution
from walrus_hf.jitter import make_plan, unroll_and_crop

from .test_parity import VOCAB, parity_model

pytestmark = pytest.mark.filterwarnings("ignore:grid .* is outside the published stride table")

PERIODIC, WALL, OPEN, MIXED = (2, 2), (0, 0), (1, 1), (0, 1)  # mixed: wall low, open high
LENGTHS = (8, 9, 11, 16, 31, 66, 97, 100)
NAMES = ("velocity_x", "pressure", "A")
IDS = torch.tensor([VOCAB[name] for name in NAMES])
TABLE = [(1, 1), (2, 2), (4, 2), (6, 2), (4, 4), (6, 4), (8, 4)]
PAIRS = [(s1, s2) for s1 in range(1, 9) for s2 in range(1, 5)]


@functools.cache
def strong_model(dtype: torch.dtype = torch.float32, target: int = 4, **kwargs) -> WalrusForPrediction:
    return parity_model(dtype, tokens_per_axis=target, tokens_per_axis_3d=min(target, 4), **kwargs).requires_grad_(
        False
    )


def random_fields(grid, frames: int = 2, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    fields = torch.randn(1, frames, len(NAMES), *grid, generator=generator, dtype=torch.float64).cumsum(1)
    return (fields + torch.tensor([0.0, 3.0, -1.0], dtype=torch.float64).view(1, 1, 3, 1, 1, 1)).to(dtype)


def forecast(model, x, sides=(PERIODIC,) * 3, **kwargs):
    boundaries = torch.tensor([sides] * len(x))
    return model(field_values=x, field_ids=IDS.expand(len(x), -1), boundary_conditions=boundaries, **kwargs)


def check_grid(grid, sides, **kwargs):
    """Same grid, finite, and a forecast that is more than the input."""
    x = random_fields(grid)
    for jitter in (False, True):
        output = forecast(strong_model(**kwargs), x, sides, jitter=jitter, generator=torch.Generator().manual_seed(1))
        assert output.prediction.shape == output.delta.shape == x.shape, (grid, sides, jitter)
        assert output.prediction.isfinite().all(), (grid, sides, jitter)
        assert output.delta.square().mean().sqrt() > 0.05, (grid, sides, jitter)


# --- same grid out as in ---


@pytest.mark.parametrize("sides", [PERIODIC, WALL, OPEN, MIXED], ids=["periodic", "wall", "open", "wall-open"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_lines_of_any_length_come_back_along_any_axis(axis, sides):
    for cells in LENGTHS:
        check_grid([cells if i == axis else 1 for i in range(3)], (sides,) * 3)


@pytest.mark.parametrize("sides", [(PERIODIC, WALL), (MIXED, PERIODIC), (PERIODIC, PERIODIC), (OPEN, MIXED)], ids=str)
@pytest.mark.parametrize("single", [0, 1, 2])
def test_planes_of_any_size_come_back_whichever_axis_they_lack(single, sides):
    for cells in zip(LENGTHS, (11, 100, 8, 97, 66, 9, 16, 31)):
        grid, boundaries = list(cells), list(sides)
        grid.insert(single, 1)
        boundaries.insert(single, PERIODIC)
        check_grid(grid, boundaries)


@pytest.mark.parametrize(
    "sides",
    [(PERIODIC,) * 3, (WALL, MIXED, PERIODIC), (PERIODIC, OPEN, PERIODIC), (MIXED, (1, 0), OPEN)],
    ids=str,
)
def test_volumes_of_any_size_come_back(sides):
    for grid in ((8, 9, 11), (16, 31, 9), (11, 8, 31), (9, 16, 34)):
        check_grid(grid, sides)


def test_a_periodic_axis_of_384_cells_returns_384_cells():
    plan = strong_model(target=32).model.make_plan(random_fields((384, 1, 1)))
    assert (plan.lengths, plan.strides[0], plan.tokens[0]) == ((384, 1, 1), (6, 2), 32)
    check_grid((384, 1, 1), (PERIODIC,) * 3, target=32)
    check_grid((1, 384, 24), (PERIODIC, PERIODIC, WALL))  # resampled to 192


def test_no_grid_explodes_into_one_token_per_cell():
    # cells -> tokens at a target of 4 an axis, counted in the token stream itself
    for grid, kind in (((97, 1, 1), PERIODIC), ((97, 66, 1), WALL), ((31, 1, 61), PERIODIC), ((1, 67, 1), MIXED)):
        output = forecast(strong_model(), random_fields(grid), (kind,) * 3, jitter=False, output_hidden_states=True)
        axes = sum(n > 1 for n in grid)
        assert output.hidden_states[-1].shape[2] <= 6**axes


# --- the identity part ---


@functools.cache
def silent_model() -> WalrusForPrediction:
    """A model whose decoder answers zero."""
    model = parity_model(torch.float32, tokens_per_axis=4, tokens_per_axis_3d=4).requires_grad_(False)
    for parameter in model.decoder.parameters():
        parameter.zero_()
    return model


@pytest.mark.parametrize("grid", [(97, 1, 1), (31, 66, 1), (1, 13, 97), (11, 13, 17), (32, 16, 1)], ids=str)
def test_a_zero_delta_forecasts_the_input_bit_for_bit_on_resampled_grids_too(grid):
    x = random_fields(grid)
    plan = silent_model().model.make_plan(x)
    assert plan.resampled == (grid != (32, 16, 1))
    assert torch.equal(forecast(silent_model(), x, jitter=True).prediction, x)


def test_waves_that_a_resampled_grid_cannot_hold_pass_through_unchanged():
    x = random_fields((97, 1, 1))
    output = forecast(strong_model(), x, jitter=False)
    scale = (x[:, 1:] - x[:, :-1]).square().mean((1, 3, 4, 5)).sqrt().view(1, 1, 3, 1, 1, 1)
    torch.testing.assert_close(output.prediction - x, output.delta * scale, rtol=1e-4, atol=1e-5)
    # 97 cells are forecast on 96: the delta has waves up to 48, the forecast keeps those of the input.
    assert torch.fft.rfft(output.delta.double(), dim=3).shape[3] == 49
    assert strong_model().model.make_plan(x).lengths == (96, 1, 1)


# --- planes ---


@pytest.mark.parametrize("grid", [(16, 24, 1), (16, 1, 24), (1, 16, 24)], ids=str)
def test_a_plane_runs_through_the_planar_encoder_and_decoder_alone(grid):
    model = parity_model(torch.float32, tokens_per_axis=4, tokens_per_axis_3d=4)
    forecast(model, random_fields(grid), jitter=False).delta.square().sum().backward()
    for part in (model.model.embeddings, model.decoder):
        assert all(p.grad is not None and p.grad.any() for p in part.planar.parameters())
        assert not any(p.grad.any() for p in part.volumetric.parameters())  # zeros: data parallel training wants them


@pytest.mark.parametrize("order", [(0, 2, 1), (2, 1, 0), (1, 2, 0), (2, 0, 1)], ids=str)
def test_a_plane_with_its_axes_renamed_is_forecast_alike_by_a_model_with_its_axes_renamed(order):
    """`order`: new axis -> old axis. The kernels and the rotary channels of the axes change places with the axes."""
    model = parity_model(torch.float64, tokens_per_axis=4).requires_grad_(False)
    renamed = parity_model(torch.float64, tokens_per_axis=4).requires_grad_(False)
    head, rotated = model.config.head_dim, model.config.head_dim // 4
    channels = list(range(head))
    for new, old in enumerate(order):
        channels[new * rotated : (new + 1) * rotated] = range(old * rotated, (old + 1) * rotated)
    rows = [n * head + c for n in range(model.config.num_attention_heads) for c in channels]
    for parameter in (p for p in renamed.parameters() if p.ndim == 5):
        parameter.copy_(parameter.permute(0, 1, *[2 + old for old in order]).clone())
    for layer in renamed.model.layers:
        for name in ("q_proj", "k_proj"):
            linear = getattr(layer.space_mixing, name)
            linear.weight.copy_(linear.weight[rows].clone())
            linear.bias.copy_(linear.bias[rows].clone())
        for norm in (layer.space_mixing.q_norm, layer.space_mixing.k_norm):
            norm.weight.copy_(norm.weight[channels].clone())
            norm.bias.copy_(norm.bias[channels].clone())

    def rename(values):
        return tuple(values[old] for old in order)

    grid, sides, shifts = (16, 24, 1), (MIXED, PERIODIC, PERIODIC), (3, -7, 0)
    x = random_fields(grid, dtype=torch.float64)
    given = forecast(model, x, sides, patch_shifts=shifts, layer_shifts=[(0, 2, 0), (0, 1, 0)]).delta
    swapped = forecast(
        renamed, x.permute(0, 1, 2, *[3 + old for old in order]), rename(sides),
        patch_shifts=rename(shifts), layer_shifts=[rename((0, 2, 0)), rename((0, 1, 0))],
    ).delta  # fmt: skip
    torch.testing.assert_close(swapped, given.permute(0, 1, 2, *[3 + old for old in order]), rtol=0, atol=1e-9)
    # and the weights matter: the model as it was says something else
    other = forecast(model, x.permute(0, 1, 2, *[3 + old for old in order]), rename(sides), patch_shifts=rename(shifts))
    assert (other.delta - swapped).abs().max() > 0.1


# --- whole-patch shifts ---


def still_plan(pair, tokens: int, sides=(PERIODIC,) * 3):
    grid = (pair[0] * pair[1] * tokens, 1, 8)
    return make_plan(grid, sides, 4, 4, False, 2, strides=(pair, (1, 1), (2, 1)))


def decoded(model, tokens, plan):
    """`(1, frames, H', D', hidden)` -> `(1, frames, channels, H, W, D)`"""
    return unroll_and_crop(model.decoder(tokens.flatten(2, 3), IDS, plan), plan)


def random_tokens(plan, frames: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, frames, plan.tokens[0], plan.tokens[2], 32, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("s1", range(1, 9))
def test_the_encoder_follows_whole_patch_shifts_exactly_where_the_second_stride_is_4(s1):
    model, plan = strong_model(torch.float64), still_plan((s1, 4), 5)
    x = random_fields(plan.grid, dtype=torch.float64)

    def encode(fields):
        return model.model.embeddings(fields, IDS, plan).unflatten(2, (plan.tokens[0], plan.tokens[2]))

    for shift in (1, 3):
        found = encode(x.roll(4 * s1 * shift, 3))
        torch.testing.assert_close(found, encode(x).roll(shift, 2), rtol=0, atol=1e-10)
    assert (encode(x.roll(2 * s1, 3)) - encode(x)).abs().max() > 0.1  # half a patch is another matter


@pytest.mark.parametrize("pair", [(s1, 4) for s1 in range(4, 9)], ids=str)
def test_the_published_decoder_follows_whole_patch_shifts_exactly_where_the_second_stride_is_4(pair):
    model = strong_model(torch.float64)
    plan = make_plan((pair[0] * 4 * 6, 1, 1), (PERIODIC,) * 3, 4, 4, False, 2, strides=(pair, (1, 1), (1, 1)))
    tokens = random_tokens(plan)
    expected = decoded(model, tokens, plan).roll(2 * pair[0] * 4, 3)
    torch.testing.assert_close(decoded(model, tokens.roll(2, 2), plan), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_the_seamless_decoder_follows_whole_patch_shifts_exactly_at_every_pair_of_strides(pair):
    model, plan = strong_model(torch.float64, seamless_decoder=True), still_plan(pair, 5)
    tokens = random_tokens(plan)
    before = decoded(model, tokens, plan)
    assert before.shape[3:] == plan.grid
    assert before.std() > 0.1
    for shift in (1, 3):
        expected = before.roll(shift * pair[0] * pair[1], 3)
        torch.testing.assert_close(decoded(model, tokens.roll(shift, 2), plan), expected, rtol=0, atol=1e-10)
    expected = before.roll(2, 5)  # along D as well, whose strides are (2, 1)
    torch.testing.assert_close(decoded(model, tokens.roll(1, 3), plan), expected, rtol=0, atol=1e-10)


def seam(pair, seamless: bool) -> torch.Tensor:
    """Error of each cell under a shift by one patch, in units of the rms of the decoded field."""
    model = strong_model(torch.float64, seamless_decoder=seamless)
    plan = make_plan((pair[0] * pair[1] * 32, 1, 1), (PERIODIC,) * 3, 32, 16, False, 2, strides=(pair, (1, 1), (1, 1)))
    tokens = random_tokens(plan, frames=16)
    before, after = decoded(model, tokens, plan), decoded(model, tokens.roll(1, 2), plan)
    error = after.roll(-pair[0] * pair[1], 3) - before
    centred = before - before.mean((1, 3), keepdim=True)
    return (error.square().mean((0, 1, 4, 5)) / centred.square().mean((0, 1, 3, 4, 5))[:, None]).mean(0).sqrt()


def test_at_strides_2_2_the_published_decoder_has_a_seam_and_the_seamless_one_has_none():
    published, seamless = seam((2, 2), False), seam((2, 2), True)
    interior = published[8:-8].max()
    # The interior is not exact either: the published norm counts two cells of 66 twice.
    assert min(published[0], published[-1]) > 0.5
    assert min(published[0], published[-1]) > 15 * interior
    assert seamless.max() < 1e-10


@pytest.mark.parametrize("pair", [(4, 2), (4, 4)], ids=str)
def test_at_strides_4_2_and_4_4_there_is_no_seam(pair):
    error = seam(pair, False)
    # What is left at (4, 2) is the norm, which counts two cells twice: it is small and no larger at the ends.
    assert error.max() < 0.25
    assert max(error[0], error[-1]) < 1.5 * error[8:-8].max() + 1e-10


@pytest.mark.parametrize("pair", [(4, 4), (6, 4), (8, 4), (5, 4)], ids=str)
def test_without_overlapping_norms_the_seamless_decoder_changes_nothing(pair):
    plan = make_plan((pair[0] * 4 * 6, 1, 1), (PERIODIC,) * 3, 4, 4, False, 2, strides=(pair, (1, 1), (1, 1)))
    tokens = random_tokens(plan)
    published, seamless = (
        decoded(strong_model(torch.float64, seamless_decoder=s), tokens, plan) for s in (False, True)
    )
    torch.testing.assert_close(seamless, published, rtol=0, atol=1e-12)


@pytest.mark.parametrize("jitter", [True, False])
@pytest.mark.parametrize("grid", [(16, 24, 1), (33, 1, 1)], ids=str)
def test_between_walls_the_seamless_decoder_is_the_published_one(grid, jitter):
    x = random_fields(grid, dtype=torch.float64)
    published, seamless = (
        forecast(
            strong_model(torch.float64, seamless_decoder=s), x, (MIXED, WALL, WALL), jitter=jitter,
            generator=torch.Generator().manual_seed(3),
        ).delta
        for s in (False, True)
    )  # fmt: skip
    torch.testing.assert_close(seamless, published, rtol=0, atol=1e-12)


@pytest.mark.parametrize("strides", [((2, 2), (4, 2)), ((3, 3), (5, 2)), ((6, 2), (7, 3))], ids=str)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_transposed_convolutions_are_those_of_torch(dims, strides):
    generator = torch.Generator().manual_seed(0)
    for stride, kernel in zip(zip(*strides), (8, 4)):
        stride = [*stride, 2][:dims]
        x = torch.randn(2, 3, *(5, 4, 3)[:dims], generator=generator, dtype=torch.float64)
        weight = torch.randn(3, 2, *[kernel] * dims, generator=generator, dtype=torch.float64)
        bias = torch.randn(2, generator=generator, dtype=torch.float64)
        expected = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dims - 1](
            x, weight, bias, stride=stride
        )
        found = transposed_convolution(x, weight, bias, stride)[(..., *[slice(n) for n in expected.shape[2:]])]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("single", [0, 1, 2])
def test_along_a_single_cell_the_encoder_sums_its_kernel_and_the_decoder_averages_it(single):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 12, 17)
    collapsed = [i == single for i in range(3)]
    strides = [1 if alone else s for alone, s in zip(collapsed, (4, 2, 4))]
    kept = [s for s, alone in zip(strides, collapsed) if not alone]
    encoder, decoder = WalrusStridedConv(3, 5, 8), WalrusTransposedConv(3, 5, 8, bias=True)
    for parameter in (*encoder.parameters(), *decoder.parameters()):
        torch.nn.init.normal_(parameter)
    found = encoder(x.unsqueeze(2 + single), strides, collapsed)
    expected = F.conv2d(x, encoder.weight.sum(2 + single), stride=kept)
    torch.testing.assert_close(found.squeeze(2 + single), expected, rtol=1e-4, atol=1e-4)
    grid = [1 if alone else 48 for alone in collapsed]
    found = decoder(x.unsqueeze(2 + single), strides, grid, [False] * 3, False)
    expected = F.conv_transpose2d(x, decoder.weight.mean(2 + single), decoder.bias, stride=kept)
    torch.testing.assert_close(found.squeeze(2 + single), expected, rtol=1e-4, atol=1e-4)


# --- the compute dial and chance ---


def test_strides_are_the_compute_dial():
    x = random_fields((32, 48, 1))
    counts = []
    for pair in ((8, 4), (4, 4), (4, 2), (2, 2)):
        output = forecast(strong_model(), x, jitter=False, strides=(pair, pair, (1, 1)), output_hidden_states=True)
        assert output.prediction.shape == x.shape
        counts.append(output.hidden_states[0].shape[2])
    # 48 is no multiple of 32: that axis is resampled to the nearest one.
    assert counts == [1 * 2, 2 * 3, 4 * 6, 8 * 12]


@pytest.mark.parametrize(("target", "tokens"), [(4, 4 * 4), (8, 8 * 8), (16, 16 * 16)])
def test_the_default_of_the_dial_stands_in_the_config(target, tokens):
    output = forecast(strong_model(target=target), random_fields((32, 64, 1)), jitter=False, output_hidden_states=True)
    assert output.hidden_states[0].shape == (1, 2, tokens, 32)


def test_forecasts_are_reproducible_by_the_seed_of_the_generator():
    x, model = random_fields((24, 16, 1)), strong_model()

    def run(seed):
        generator = torch.Generator().manual_seed(seed)
        return forecast(model, x, (MIXED, PERIODIC, PERIODIC), jitter=True, generator=generator).prediction

    assert torch.equal(run(5), run(5))
    assert not torch.equal(run(5), run(6))
    torch.manual_seed(5)
    first, second = (forecast(model, x, jitter=True).prediction for _ in range(2))
    torch.manual_seed(5)
    assert torch.equal(forecast(model, x, jitter=True).prediction, first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("sides", [(PERIODIC,) * 3, (WALL, PERIODIC, PERIODIC), (PERIODIC, MIXED, PERIODIC)], ids=str)
@pytest.mark.parametrize("grid", [(16, 24, 1), (16, 24, 8)], ids=str)
def test_layer_shifts_roll_the_token_grid_before_each_layer_and_are_undone_after_the_last(grid, sides):
    """Oracle: the model without layer shifts, its token grid rolled by hand."""
    x = random_fields(grid, dtype=torch.float64)
    shifts = [
        [s if sides[i] == PERIODIC and grid[i] > 1 else 0 for i, s in enumerate(row)] for row in ((1, 3, 2), (2, 1, 1))
    ]
    given = {"sides": sides, "patch_shifts": (1, -2, 0)}
    rolled = forecast(strong_model(torch.float64), x, **given, layer_shifts=shifts).delta

    model = parity_model(torch.float64, tokens_per_axis=4, tokens_per_axis_3d=4).requires_grad_(False)
    boundaries = torch.tensor([sides])
    tokens = model.model.make_plan(x, boundaries, patch_shifts=(1, -2, 0)).tokens

    def roll(hidden, by):
        return hidden.unflatten(2, tokens).roll(list(by), (2, 3, 4)).flatten(2, 4)

    for layer, shift in zip(model.model.layers, shifts):
        layer.register_forward_pre_hook(lambda module, args, shift=shift: (roll(args[0], shift), *args[1:]))
    back = [-sum(column) for column in zip(*shifts)]
    model.model.layers[-1].register_forward_hook(lambda module, args, output: roll(output, back))
    by_hand = forecast(model, x, **given, layer_shifts=[[0, 0, 0]] * 2).delta
    torch.testing.assert_close(rolled, by_hand, rtol=0, atol=1e-10)
    still = forecast(strong_model(torch.float64), x, **given, layer_shifts=[[0, 0, 0]] * 2).delta
    assert (rolled - still).abs().max() > 1e-3  # rolls are no symmetry: positions are absolute at the ends


def test_a_roll_of_periodic_data_and_a_patch_shift_are_the_same():
    x, model = random_fields((16, 24, 1), dtype=torch.float64), strong_model(torch.float64)
    still = [[0, 0, 0]] * 2
    for shift in ((5, 0, 0), (0, -7, 0), (3, 4, 0)):
        shifted = forecast(model, x, patch_shifts=shift, layer_shifts=still).delta
        rolled = forecast(model, x.roll(shift, (3, 4, 5)), patch_shifts=(0, 0, 0), layer_shifts=still).delta
        torch.testing.assert_close(shifted, rolled.roll([-s for s in shift], (3, 4, 5)), rtol=0, atol=1e-10)


def test_a_roll_of_periodic_data_and_a_patch_shift_are_the_same_at_the_widest_strides():
    x, model = random_fields((96, 64, 1), dtype=torch.float64), strong_model(torch.float64)
    given = {"strides": ((8, 4), (8, 4), (1, 1)), "layer_shifts": [[0, 0, 0]] * 2}
    shifted = forecast(model, x, patch_shifts=(5, -7, 0), **given).delta
    rolled = forecast(model, x.roll((5, -7), (3, 4)), patch_shifts=(0, 0, 0), **given).delta
    torch.testing.assert_close(shifted, rolled.roll((-5, 7), (3, 4)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("sides", [((0, 3), WALL, WALL), ((2, 0), PERIODIC, PERIODIC)], ids=str)
def test_unusable_boundaries_are_refused_before_any_computation(sides):
    with pytest.raises(ValueError, match=r"boundary condition|both sides or on neither"):
        forecast(strong_model(), random_fields((16, 24, 1)), sides)


@pytest.mark.parametrize("grid", [(7, 16, 1), (16, 16, 2), (1, 1, 1)], ids=str)
def test_axes_shorter_than_the_kernel_are_refused(grid):
    with pytest.raises(ValueError, match=r"8 (or more )?cells"):
        forecast(strong_model(), random_fields(grid))


def test_an_outermost_token_of_a_wall_sees_the_wall():
    # The same fields between walls and between open ends: the flags alone differ, and they differ in the forecast.
    x = random_fields((16, 24, 1), dtype=torch.float64)
    deltas = [forecast(strong_model(torch.float64), x, (kind, WALL, WALL), jitter=False).delta for kind in (WALL, OPEN)]
    assert math.sqrt((deltas[0] - deltas[1]).square().mean()) > 1e-2
