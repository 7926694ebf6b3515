"""Plans of tokenization, the padding and rolling that carry them out, and resampling.

The oracle is `literal`: architecture, section 3, step by step in numpy.
"""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from walrus_hf.jitter import (
    TokenizationPlan,
    boundary_flags,
    fourier_resample,
    make_plan,
    pad_and_roll,
    take_cyclic,
    unroll_and_crop,
    warn_unmeasured,
    with_shifts,
)

W, O, P = 0, 1, 2  # noqa: E741
SIDES = {
    "periodic": ((P, P), (P, P), (P, P)),
    "wall": ((W, W), (W, W), (W, W)),
    "open": ((O, O), (O, O), (O, O)),
    "wall low, open high": ((W, O), (W, O), (W, O)),
    "all kinds": ((W, O), (P, P), (O, W)),
    "periodic and open": ((P, P), (O, O), (P, P)),
}
GRIDS = [
    (16, 1, 1), (1, 9, 1), (1, 1, 33), (16, 24, 1), (11, 1, 31), (1, 66, 17), (40, 97, 1), (8, 9, 11), (16, 32, 10),
]  # fmt: skip
PAIRS = [(s1, s2) for s1 in range(1, 9) for s2 in range(1, 5)]


def plan_of(grid, sides=SIDES["periodic"], jitter=True, seed=0, layers=3, target=8, target_3d=4, **kwargs):
    generator = torch.Generator().manual_seed(seed)
    return make_plan(grid, sides, target, target_3d, jitter, layers, generator=generator, **kwargs)


def total_padding(n: int, pair: tuple[int, int], periodic: bool, jitter: bool) -> int:
    """Sum of the low and high padding of an axis: the kernels' overlap, room for jitter, and the last token's rest."""
    s1, s2 = pair
    total = 8 + s1 * (4 - 1) - s1 * s2
    if not periodic:
        total += -n % (s1 * s2)
        total += s1 * s2 if jitter and s1 * s2 > 1 else 0
    return total


def literal(x: np.ndarray, plan: TokenizationPlan) -> tuple[np.ndarray, np.ndarray]:
    """Pad, flag, roll, pad circularly: `(channels, H, W, D)` -> the channels and the three flags."""
    axes = [i for i in range(3) if x.shape[1 + i] > 1]
    halves = {}
    for i in axes:
        total = total_padding(x.shape[1 + i], plan.strides[i], plan.boundaries[i][0] == P, plan.jitter)
        halves[i] = (total // 2, total - total // 2)
    walls = [i for i in axes if plan.boundaries[i][0] != P]
    x = np.pad(x, [(0, 0)] + [halves[i] if i in walls else (0, 0) for i in range(3)])
    flags = np.zeros((3, *x.shape[1:]))
    flags[0] = 1
    for i in walls:
        moved = np.moveaxis(flags, 1 + i, 1)  # a view: (3, cells of axis i, ...)
        low, high = halves[i]
        n = moved.shape[1]
        for side, cells in ((0, range(low)), (1, range(n - high, n))):
            for cell in cells:
                moved[1 + plan.boundaries[i][side], cell] += 1
                moved[0, cell] = 0
    both = np.concatenate([x, flags])
    for i in axes:
        both = np.roll(both, plan.patch_shifts[i], axis=1 + i)
    both = np.pad(
        both, [(0, 0)] + [halves[i] if i in axes and i not in walls else (0, 0) for i in range(3)], mode="wrap"
    )
    return both[:-3], both[-3:]


def check_against_literal(plan: TokenizationPlan, channels: int = 2) -> None:
    x = torch.randn(channels, *plan.lengths, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected, expected_flags = literal(x.numpy(), plan)
    padded = pad_and_roll(x, plan)
    assert padded.shape == expected.shape, plan
    np.testing.assert_array_equal(padded.numpy(), expected)
    flags = boundary_flags(plan, x)
    assert flags.dtype == x.dtype
    np.testing.assert_array_equal(flags.expand_as(torch.from_numpy(expected_flags)).numpy(), expected_flags)
    restored = unroll_and_crop(padded, plan)
    assert torch.equal(restored, x), plan


# --- padding, flags and rolls ---


@pytest.mark.parametrize("jitter", [True, False], ids=["jitter", "still"])
@pytest.mark.parametrize("sides", SIDES.values(), ids=SIDES)
def test_padding_flags_and_rolls_follow_the_text_and_are_undone_exactly(sides, jitter):
    for grid in GRIDS:
        for seed in range(3):
            check_against_literal(plan_of(grid, sides, jitter, seed))


@pytest.mark.parametrize("sides", SIDES.values(), ids=SIDES)
def test_every_pair_of_strides_is_undone_exactly_with_odd_paddings_too(sides):
    overlapping = PAIRS[:-1]  # all but (8, 4)
    for k, (s1, s2) in enumerate(overlapping):
        other = overlapping[(7 * k + 3) % len(overlapping)]
        for jitter in (True, False):
            plan = plan_of((29, 41, 1), sides, jitter, seed=k, strides=((s1, s2), other, (1, 1)))
            check_against_literal(plan, channels=1)
    sums = {(8 + 3 * s1 - s1 * s2) % 2 for s1, s2 in PAIRS}
    assert sums == {0, 1}


@pytest.mark.parametrize("shift", [-15, 1, 31])
def test_periodic_axes_without_overlap_are_rolled_too(shift):
    plan = plan_of((64, 96, 1), SIDES["periodic"], strides=((8, 4), (8, 4), (1, 1)), patch_shifts=(shift, 2 - shift, 0))
    assert plan.wrap_padding == ((0, 0),) * 3
    check_against_literal(plan)


@pytest.mark.parametrize("shift", range(-15, 16, 5))
def test_chosen_shifts_are_carried_out_and_undone(shift):
    plan = plan_of((32, 40, 1), ((W, O), (P, P), (P, P)), patch_shifts=(shift % 7 - 3, 4 * shift, 0))
    assert plan.patch_shifts == (shift % 7 - 3, 4 * shift, 0)
    check_against_literal(plan)


def test_corners_of_walls_hold_sums_of_flags():
    plan = plan_of((32, 32, 1), ((W, W), (W, O), (P, P)), jitter=False, strides=((2, 2), (2, 2), (1, 1)))
    flags = boundary_flags(plan, torch.zeros(()))
    assert plan.zero_padding[:2] == ((5, 5), (5, 5))
    assert flags[:, 0, 0, 0].tolist() == [0, 2, 0]  # wall meets wall
    assert flags[:, 0, -1, 0].tolist() == [0, 1, 1]  # wall meets open
    assert flags[:, 0, 20, 0].tolist() == [0, 1, 0]
    assert flags[:, 20, -1, 0].tolist() == [0, 0, 1]
    assert flags[:, 20, 20, 0].tolist() == [1, 0, 0]


def test_gradients_pass_through_padding_and_back():
    plan = plan_of((16, 11, 1), SIDES["all kinds"])
    x = torch.randn(1, *plan.lengths, requires_grad=True)
    unroll_and_crop(pad_and_roll(x, plan), plan).square().sum().backward()
    assert torch.equal(x.grad, 2 * x.detach())


def test_leading_dimensions_and_dtypes_are_kept():
    plan = plan_of((16, 11, 1), SIDES["all kinds"])
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        x = torch.randn(2, 3, 4, *plan.lengths).to(dtype)
        padded = pad_and_roll(x, plan)
        assert (padded.dtype, padded.shape[:3]) == (dtype, (2, 3, 4))
        assert torch.equal(unroll_and_crop(padded, plan), x)


@pytest.mark.parametrize("start", [-23, -7, -1, 0, 1, 6, 7, 30])
@pytest.mark.parametrize("length", [1, 6, 7, 8, 15, 29])
def test_cells_of_a_ring_are_taken_modulo_its_length(start, length):
    x = torch.arange(14).view(2, 7)
    expected = x.numpy().take(range(start, start + length), axis=1, mode="wrap")
    np.testing.assert_array_equal(take_cyclic(x, 1, start, length).numpy(), expected)
    np.testing.assert_array_equal(take_cyclic(x, 1, torch.tensor(start), length).numpy(), expected)


# --- numbers of tokens and paddings ---


def tokens_by_convolution(cells: int, pair: tuple[int, int]) -> int:
    x = torch.zeros(1, 1, cells)
    x = F.conv1d(x, torch.zeros(1, 1, 8), stride=pair[0])
    return F.conv1d(x, torch.zeros(1, 1, 4), stride=pair[1]).shape[-1]


def cells_by_transposed_convolution(tokens: int, pair: tuple[int, int]) -> int:
    x = F.conv_transpose1d(torch.zeros(1, 1, tokens), torch.zeros(1, 1, 4), stride=pair[1])
    return F.conv_transpose1d(x, torch.zeros(1, 1, 8), stride=pair[0]).shape[-1]


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_planned_tokens_are_what_the_convolutions_return(pair):
    for sides in (SIDES["periodic"], SIDES["wall low, open high"]):
        for jitter in (True, False):
            for n in (8, 9, 31, 64, 97):
                plan = plan_of((n, 1, 1), sides, jitter, strides=(pair, (1, 1), (1, 1)))
                padded = plan.lengths[0] + sum(plan.zero_padding[0]) + sum(plan.wrap_padding[0])
                assert padded == plan.lengths[0] + total_padding(plan.lengths[0], pair, sides[0][0] == P, jitter)
                assert plan.tokens == (tokens_by_convolution(padded, pair), 1, 1)
                assert cells_by_transposed_convolution(plan.tokens[0], pair) == padded
                low, high = (a + b for a, b in zip(plan.zero_padding[0], plan.wrap_padding[0]))
                assert 0 <= high - low <= 1
                assert plan.num_tokens == plan.tokens[0]


@pytest.mark.parametrize("target", [32, 16, 4])
@pytest.mark.parametrize("kind", [W, P])
def test_tokens_of_any_length_are_what_the_convolutions_return(kind, target):
    for n in range(8, 200, 3):
        plan = plan_of((1, n, 1), ((kind, kind),) * 3, jitter=n % 2 == 0, target=target)
        padded = plan.lengths[1] + sum(plan.zero_padding[1]) + sum(plan.wrap_padding[1])
        assert plan.tokens[1] == tokens_by_convolution(padded, plan.strides[1]), n


@pytest.mark.parametrize("pair", [(1, 1), (2, 2), (4, 2), (6, 2), (4, 4), (6, 4), (8, 4)], ids=str)
def test_published_strides_have_the_published_paddings(pair):
    s1, s2 = pair
    overlap, room = (8 + s1 * (4 - 1) - s1 * s2) // 2, s1 * s2 // 2
    n = 32 * s1 * s2
    still, jittered = (plan_of((n, n, 1), ((W, W), (P, P), (P, P)), jitter, target=32) for jitter in (False, True))
    assert still.strides == jittered.strides == (pair, pair, (1, 1))
    assert still.zero_padding == ((overlap, overlap), (0, 0), (0, 0))
    assert jittered.zero_padding == ((overlap + room, overlap + room), (0, 0), (0, 0))
    assert still.wrap_padding == jittered.wrap_padding == ((0, 0), (overlap, overlap), (0, 0))
    assert still.tokens == (32, 32, 1)
    assert jittered.tokens == (33 if s1 * s2 > 1 else 32, 32, 1)


# --- shifts ---


def drawn_shifts(plan: TokenizationPlan, count: int = 2000) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    return np.array([with_shifts(plan, generator).patch_shifts for _ in range(count)])


def test_patch_shifts_fill_exactly_the_stated_ranges():
    # periodic, padded length n: [-(n // 2 - 1), n // 2 - 1]; other axes: [-(p - 1), p - 1]; patches of one: none
    plan = plan_of((16, 32, 24), ((P, P), (W, O), (P, P)), target_3d=8)
    (low, high), (n, _, d) = plan.zero_padding[1], plan.lengths
    assert low == high == (8 + 6 - 4) // 2 + 2
    drawn = drawn_shifts(plan)
    for axis, most in ((0, n // 2 - 1), (1, low - 1), (2, d // 2 - 1)):
        assert sorted(set(drawn[:, axis])) == list(range(-most, most + 1))


def test_uneven_paddings_are_each_used_up_to_their_last_cell():
    plan = plan_of((27, 1, 1), SIDES["wall"], strides=((3, 3), (1, 1), (1, 1)))
    assert plan.zero_padding[0] == (8, 9)
    assert sorted(set(drawn_shifts(plan)[:, 0])) == list(range(-7, 9))


def test_odd_periodic_lengths_follow_the_same_rule():
    plan = plan_of((27, 1, 1), strides=((3, 3), (1, 1), (1, 1)))
    assert sorted(set(drawn_shifts(plan)[:, 0])) == list(range(-12, 13))


@pytest.mark.parametrize("kind", [W, P])
def test_patches_of_one_cell_and_single_cells_are_never_shifted(kind):
    plan = plan_of((8, 16, 1), ((kind, kind),) * 3)
    assert plan.patch_sizes == (1, 2, 1)
    drawn = drawn_shifts(plan, 300)
    assert not drawn[:, 0].any()
    assert drawn[:, 1].any()
    assert not drawn[:, 2].any()


def test_layer_shifts_fill_the_tokens_of_periodic_axes_and_leave_walls_alone():
    plan = plan_of((16, 32, 24), ((P, P), (W, W), (P, P)), target_3d=8, layers=3000)
    rolls = np.array(plan.layer_shifts)
    assert rolls.shape == (3000, 3)
    assert sorted(set(rolls[:, 0])) == list(range(plan.tokens[0]))
    assert set(rolls[:, 1]) == {0}
    assert sorted(set(rolls[:, 2])) == list(range(plan.tokens[2]))


def test_all_shifts_are_equally_likely():
    drawn = drawn_shifts(plan_of((16, 1, 1)), 7000)[:, 0]  # 15 values
    counts = np.bincount(drawn + 7, minlength=15)
    expected = 7000 / 15
    assert ((counts - expected) ** 2 / expected).sum() < 42.6  # chi squared, 14 degrees of freedom, 1 in 10,000


def test_without_jitter_nothing_is_shifted():
    plan = plan_of((16, 32, 24), SIDES["all kinds"], jitter=False)
    assert plan.patch_shifts == (0, 0, 0)
    assert plan.layer_shifts == ((0, 0, 0),) * 3


def test_plans_are_reproducible_by_seed_and_by_generator():
    grid, sides = (16, 32, 24), SIDES["all kinds"]
    assert plan_of(grid, sides, seed=7) == plan_of(grid, sides, seed=7)
    assert plan_of(grid, sides, seed=7) != plan_of(grid, sides, seed=8)
    torch.manual_seed(3)
    first = make_plan(grid, sides, 8, 4, True, 3)
    second = make_plan(grid, sides, 8, 4, True, 3)
    torch.manual_seed(3)
    assert make_plan(grid, sides, 8, 4, True, 3) == first != second


def test_a_generator_of_its_own_leaves_the_default_one_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    plan_of((16, 32, 24))
    assert torch.equal(torch.get_rng_state(), before)


def test_new_shifts_keep_the_geometry_of_a_plan():
    plan = plan_of((16, 32, 24), SIDES["all kinds"])
    other = with_shifts(plan, torch.Generator().manual_seed(99))
    assert other != plan
    names = [f.name for f in dataclasses.fields(plan) if f.name not in ("patch_shifts", "layer_shifts")]
    assert all(getattr(other, name) == getattr(plan, name) for name in names)
    fixed = with_shifts(plan, patch_shifts=(1, 2, 3), layer_shifts=[[0, 2, 0]] * 3)
    assert (fixed.patch_shifts, fixed.layer_shifts) == ((1, 2, 3), ((0, 2, 0),) * 3)


@pytest.mark.parametrize(
    ("shifts", "message"),
    [
        ({"patch_shifts": (7, 0, 0)}, r"axis H is not periodic and has 7 and 7 cells .* between -6 and 6; found 7"),
        ({"patch_shifts": (-7, 0, 0)}, r"axis H .* between -6 and 6; found -7"),
        ({"layer_shifts": [[0, 0, 0]] * 2}, "layer_shifts: expected 3 rows, one for each layer, found 2"),
        ({"layer_shifts": [[1, 0, 0]] * 3}, "layer_shifts: the token grid can be rolled along periodic axes only"),
    ],
)
def test_shifts_that_would_roll_data_around_a_wall_are_refused(shifts, message):
    plan = plan_of((32, 32, 1), ((W, O), (P, P), (P, P)))
    assert plan.zero_padding[0] == (7, 7)
    with pytest.raises(ValueError, match=message):
        with_shifts(plan, **shifts)
    assert with_shifts(plan, patch_shifts=(6, 1000, 0)).patch_shifts == (6, 1000, 0)


# --- the plan as an object ---


def test_a_plan_is_frozen_hashable_and_made_of_plain_numbers():
    plan, same = (plan_of((16, 32, 24), SIDES["all kinds"]) for _ in range(2))
    assert len({plan, same}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.tokens = (1, 1, 1)

    def leaves(value):
        return [leaf for part in value for leaf in leaves(part)] if isinstance(value, tuple) else [value]

    assert {type(leaf) for leaf in leaves(dataclasses.astuple(plan))} <= {int, bool}


def test_plans_made_from_numpy_and_torch_numbers_are_equal():
    plain = plan_of((16, 32, 1), ((W, O), (P, P), (P, P)))
    sides = np.array([[W, O], [P, P], [P, P]])
    assert plan_of(torch.Size((16, 32, 1)), sides.tolist()) == plain
    assert plan_of(np.array((16, 32, 1)), sides) == plain


def test_the_printed_plan_tells_each_axis_on_one_line():
    text = str(plan_of((97, 20, 1), ((P, P), (W, O), (P, P)), patch_shifts=(5, -3, 0), target=32))
    first, height, width = text.splitlines()
    plan = plan_of((97, 20, 1), ((P, P), (W, O), (P, P)), target=32)
    assert first == f"{plan.num_tokens} tokens a frame, jitter on"
    for part in ("H: 97 cells", "resampled to 96", "periodic", f"strides {plan.strides[0]}", "shift 5"):
        assert part in height
    for part in ("W: 20 cells", "wall / open", f"padding {plan.zero_padding[1]}", "shift -3"):
        assert part in width


def test_singleton_axes_have_no_boundaries():
    assert plan_of((16, 32, 1), ((W, W), (P, P), (W, P))) == plan_of((16, 32, 1), ((W, W), (P, P), (O, O)))


@pytest.mark.parametrize(
    ("grid", "sides", "message"),
    [
        ((1, 1, 1), SIDES["wall"], r"at least one axis of 8 or more cells, found \(1, 1, 1\)"),
        ((16, 7, 1), SIDES["wall"], "expected at least 8 cells on an axis .* found 7"),
        ((16, 16, 1), ((W, W), (P, W), (W, W)), "axis W: one side is periodic and the other is not"),
        ((16, 16, 1), ((W, W), (3, 3), (W, W)), "expected a boundary condition .* found 3"),
        ((16, 16, 1), ((W, W), (W, W)), r"expected \(low, high\) for each of the 3 axes"),
        ((16, 16, 1), ((W,), (W, W), (W, W)), r"expected \(low, high\) for each of the 3 axes"),
    ],
)
def test_grids_and_boundaries_that_cannot_be_tokenized_are_refused(grid, sides, message):
    with pytest.raises(ValueError, match=message):
        plan_of(grid, sides)


# --- warnings ---


def warnings_of(grid, sides=SIDES["periodic"], warned=None, **kwargs) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_unmeasured(
            plan_of(grid, sides, **{"target": 32, "target_3d": 16, **kwargs}), set() if warned is None else warned
        )
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    "grid", [(128, 256, 1), (384, 384, 1), (1, 512, 1024), (32, 1, 768), (64, 64, 64), (128, 256, 16), (1, 1, 256)]
)
def test_grids_of_the_published_table_plan_in_silence(grid):
    for sides in SIDES.values():
        assert warnings_of(grid, sides) == []


@pytest.mark.parametrize("grid", [(64, 64, 1), (66, 128, 1), (128, 96, 1), (97, 1, 1), (48, 64, 64), (128, 127, 1)])
def test_other_grids_warn_that_accuracy_there_is_unmeasured(grid):
    for sides in SIDES.values():
        (message,) = warnings_of(grid, sides)
        assert str(grid) in message
        assert "unmeasured" in message


def test_a_grid_warns_once_and_another_grid_once_more():
    warned: set = set()
    counts = [len(warnings_of(grid, warned=warned)) for grid in ((66, 66, 1), (66, 66, 1), (66, 97, 1), (66, 66, 1))]
    assert counts == [1, 0, 1, 0]


def test_a_resampled_grid_says_so():
    assert "resampled to (96, 128, 1)" in warnings_of((97, 128, 1))[0]
    assert "resampled" not in warnings_of((97, 128, 1), SIDES["wall"])[0]


@pytest.mark.parametrize("grid", [(100, 128, 1), (132, 132, 1), (128, 144, 1), (72, 64, 64)])
def test_a_published_patch_on_an_unpublished_length_warns_too(grid):
    plan = plan_of(grid, target=32, target_3d=16)
    assert {4, 8} >= set(plan.patch_sizes) - {1}
    assert len(warnings_of(grid)) == 1


# --- resampling by Fourier interpolation ---


def waves(n: int, modes: dict[int, tuple[float, float]], offset: float = 0.7) -> torch.Tensor:
    """A sum of waves on a ring of n cells, from its formula."""
    x = 2 * np.pi * np.arange(n) / n
    return torch.tensor(offset + sum(a * np.cos(k * x) + b * np.sin(k * x) for k, (a, b) in modes.items()))


BAND = {1: (0.3, -1.0), 2: (1.5, 0.2), 5: (-0.4, 0.9), 7: (0.1, 0.3)}


@pytest.mark.parametrize("old", [16, 17, 33, 97, 100])
@pytest.mark.parametrize("new", [16, 17, 32, 96, 101])
def test_band_limited_waves_are_resampled_exactly_in_both_directions(old, new):
    for axis in range(3):
        shape = [3, 2, 3]
        shape[axis] = -1
        x, expected = (waves(n, BAND).view([-1 if i == axis else 1 for i in range(3)]) for n in (old, new))
        size = list(x.shape)
        size[axis] = new
        found = fourier_resample(x[None], size)
        assert found.shape[1:] == torch.Size(size)
        torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-12)


def test_planes_and_volumes_are_resampled_axis_by_axis():
    old, new = (20, 33, 18), (24, 32, 17)
    product = [
        torch.einsum("i,j,k->ijk", *(waves(n, BAND, offset=i + 0.2) for i, n in enumerate(size))) for size in (old, new)
    ]
    found = fourier_resample(product[0].expand(2, 3, *old), new)
    torch.testing.assert_close(found, product[1].expand(2, 3, *new), rtol=0, atol=1e-11)
    torch.testing.assert_close(fourier_resample(found, old), product[0].expand(2, 3, *old), rtol=0, atol=1e-11)


@pytest.mark.parametrize(("old", "new"), [(16, 20), (16, 17), (16, 32), (10, 16)])
def test_the_highest_wave_of_an_even_ring_becomes_a_cosine_on_a_longer_one_and_comes_back(old, new):
    x = waves(old, {1: (1.0, 2.0), old // 2: (0.8, 0.0)})
    longer = fourier_resample(x.view(-1, 1, 1), (new, 1, 1)).flatten()
    torch.testing.assert_close(longer, waves(new, {1: (1.0, 2.0), old // 2: (0.8, 0.0)}), rtol=0, atol=1e-12)
    torch.testing.assert_close(fourier_resample(longer.view(-1, 1, 1), (old, 1, 1)).flatten(), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("old", "new"), [(20, 16), (17, 16), (32, 8), (33, 32)])
def test_a_wave_that_falls_on_the_highest_one_of_a_shorter_ring_keeps_its_values(old, new):
    modes = {2: (0.5, 0.5), new // 2: (0.8, 0.0)}
    x = waves(old, modes)
    torch.testing.assert_close(
        fourier_resample(x.view(1, -1, 1), (1, new, 1)).flatten(), waves(new, modes), rtol=0, atol=1e-12
    )


def test_waves_beyond_the_shorter_ring_are_left_out_not_folded_back():
    modes = {1: (1.0, -0.5)}
    x = waves(40, modes | {13: (2.0, 2.0), 20: (1.0, 0.0)})
    found = fourier_resample(x.view(1, 1, -1), (1, 1, 16)).flatten()
    torch.testing.assert_close(found, waves(16, modes), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("old", "new"), [(97, 96), (97, 98), (8, 9), (384, 192)])
def test_constants_stay_constant(old, new):
    x = torch.full((2, old, 1, 3), 3.25, dtype=torch.float64)
    torch.testing.assert_close(fourier_resample(x, (new, 1, 3)), torch.full((2, new, 1, 3), 3.25, dtype=torch.float64))


def test_a_grid_that_keeps_its_size_is_the_very_same_tensor():
    x = torch.randn(2, 9, 8, 1)
    assert fourier_resample(x, (9, 8, 1)) is x


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_resampling_runs_in_float32_or_better(dtype):
    x = waves(17, BAND).to(dtype).view(-1, 1, 1)
    found = fourier_resample(x, (16, 1, 1))
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    reference = fourier_resample(x.double(), (16, 1, 1))
    torch.testing.assert_close(found.double(), reference, rtol=0, atol=1e-14 if dtype == torch.float64 else 2e-6)
