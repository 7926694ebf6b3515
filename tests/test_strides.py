"""Compute-adaptive strides: the published table, and grids of any length beside it."""

import math

import pytest

from walrus_hf.strides import (
    PUBLISHED_STRIDES,
    STRIDES_OF_PATCH,
    TOLERANCE,
    axis_strides,
    check_strides,
    choose_strides,
)

# Written down once more from the paper, so that a change in the package shows.
TABLE = {1: (1, 1), 4: (2, 2), 8: (4, 2), 12: (6, 2), 16: (4, 4), 24: (6, 4), 32: (8, 4)}
PATCHES = sorted({s1 * s2 for s1 in range(1, 9) for s2 in range(1, 5)})
TARGETS = (32, 16, 4)
PRIMES = [n for n in range(8, 600) if all(n % k for k in range(2, math.isqrt(n) + 1))]


def distance(tokens: int, target: int) -> float:
    return abs(math.log(tokens / target))


def patches_within_tolerance(length: int, target: int) -> list[int]:
    """Cells per token that divide a periodic axis and land within 1.5x of the target, in whole numbers."""
    return [p for p in PATCHES if length % p == 0 and 2 * target <= 3 * (length // p) <= 4.5 * target]


def test_the_table_is_the_published_one():
    assert PUBLISHED_STRIDES == TABLE
    assert TOLERANCE == 1.5


@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize("target", [32, 16])
def test_published_sizes_get_the_published_strides(target, periodic):
    for patch, strides in TABLE.items():
        assert axis_strides(patch * target, periodic, target) == (patch * target, strides)


def test_every_product_has_strides_within_their_limits():
    assert list(STRIDES_OF_PATCH) == PATCHES
    for patch, (s1, s2) in STRIDES_OF_PATCH.items():
        assert s1 * s2 == patch
        assert 1 <= s1 <= 8
        assert 1 <= s2 <= 4
        if patch in TABLE:
            assert (s1, s2) == TABLE[patch]


def test_among_equal_products_even_strides_win_then_the_ratio_of_the_kernels():
    for patch, chosen in STRIDES_OF_PATCH.items():
        pairs = [(a, b) for a in range(1, 9) for b in range(1, 5) if a * b == patch]
        even = [(a, b) for a, b in pairs if a % 2 == b % 2 == 0] or pairs
        closest = min(abs(math.log2(a / b / 2)) for a, b in even)
        best = [(a, b) for a, b in even if abs(math.log2(a / b / 2)) < closest + 1e-6]
        # (4, 1) would be as good as (2, 2) but for its odd second stride; a tie of ratios goes to the smaller s1
        assert chosen == min(best), (patch, pairs)


@pytest.mark.parametrize("target", TARGETS)
def test_every_periodic_length_has_a_dividing_patch_or_the_nearest_length_that_has_one(target):
    for cells in range(8, 601):
        length, (s1, s2) = axis_strides(cells, True, target)
        if cells % target == 0 and cells // target in TABLE:
            assert (length, (s1, s2)) == (cells, TABLE[cells // target])
            continue
        goal, patch = min(target, cells), s1 * s2
        assert length % patch == 0, cells
        assert goal / 1.5 <= length // patch <= goal * 1.5, cells
        # By trial of every length: none nearer fits, and of two equally near ones the longer is taken.
        fitting = (
            [n for n in range(1, 32 * 48 + 1) if patches_within_tolerance(n, goal)] if cells > 1.5 * goal else [cells]
        )
        assert length == min(fitting, key=lambda n: (abs(n - cells), -n)), cells
        found = [
            (round(distance(length // p, goal), 9), -(length // p)) for p in patches_within_tolerance(length, goal)
        ]
        assert (round(distance(length // patch, goal), 9), -(length // patch)) == min(found), cells


@pytest.mark.parametrize("target", TARGETS)
def test_every_wall_to_wall_length_gets_the_token_count_nearest_to_the_target(target):
    for cells in range(8, 601):
        length, (s1, s2) = axis_strides(cells, False, target)
        patch, goal = s1 * s2, min(target, cells)
        tokens = -(-cells // patch)
        assert length == cells
        if cells % target == 0 and cells // target in TABLE:
            assert (s1, s2) == TABLE[cells // target]
        best = min((round(distance(-(-cells // p), goal), 9), cells // -p) for p in PATCHES)
        assert (round(distance(tokens, goal), 9), -tokens) == best, cells
        # Of patches with equally many tokens the smallest needs the least padding.
        assert patch == min(p for p in PATCHES if -(-cells // p) == tokens), cells
        if cells <= 32 * goal:
            assert goal / 1.5 <= tokens <= goal * 1.5, cells


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("periodic", [True, False])
def test_no_axis_explodes_into_one_token_per_cell(periodic, target):
    for cells in range(8, 601):
        length, (s1, s2) = axis_strides(cells, periodic, target)
        assert (s1 * s2 == 1) <= (cells <= 1.5 * target), cells
        assert -(-length // (s1 * s2)) <= max(1.5 * target, -(-cells // 32)), cells


def test_of_two_equally_near_lengths_the_longer_is_taken():
    assert patches_within_tolerance(126, 32)
    assert patches_within_tolerance(128, 32)
    assert axis_strides(127, True, 32)[0] == 128


@pytest.mark.parametrize(
    ("cells", "periodic", "target", "expected"),
    [
        (384, True, 32, (384, (6, 2))),
        (384, False, 32, (384, (6, 2))),
        (64, True, 32, (64, (2, 1))),
        (66, True, 32, (66, (2, 1))),
        (66, False, 32, (66, (2, 1))),
        (100, True, 32, (100, (2, 2))),  # 25 tokens of 4: 100 / 3 is no whole number
        (100, False, 32, (100, (3, 1))),  # 34 tokens of 3, the last one filled up
        (97, True, 32, (96, (3, 1))),
        (97, False, 32, (97, (3, 1))),
        (127, True, 32, (128, (2, 2))),
        (127, False, 32, (127, (2, 2))),
        (48, True, 32, (48, (2, 1))),
        (9, True, 4, (9, (3, 1))),
        (66, True, 4, (64, (4, 4))),
        (8, True, 32, (8, (1, 1))),
        (33, True, 32, (33, (1, 1))),
    ],
)
def test_known_lengths_get_known_strides(cells, periodic, target, expected):
    assert axis_strides(cells, periodic, target) == expected


@pytest.mark.parametrize("target", TARGETS)
def test_periodic_primes_are_resampled_as_soon_as_one_token_per_cell_is_too_many(target):
    for prime in PRIMES:
        length, _ = axis_strides(prime, True, target)
        assert (length == prime) == (prime <= 1.5 * target), prime
        if prime <= 1.5 * target * 32:
            assert abs(length - prime) <= max(2, 0.1 * prime), prime


def test_huge_periodic_axes_are_resampled_to_what_the_target_allows():
    length, (s1, s2) = axis_strides(100_003, True, 32)
    assert (length, (s1, s2)) == (48 * 32, (8, 4))
    # A wall cannot be resampled, so its axis keeps the longest patches there are.
    assert axis_strides(100_003, False, 32) == (100_003, (8, 4))


@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize("cells", range(2, 8))
def test_axes_shorter_than_the_first_kernel_are_refused(cells, periodic):
    with pytest.raises(ValueError, match=f"expected at least 8 cells on an axis \\(or a single one\\), found {cells}"):
        axis_strides(cells, periodic, 32)


def test_single_cells_are_not_tokenized():
    assert axis_strides(1, False, 32) == axis_strides(1, True, 1) == (1, (1, 1))


def test_volumes_have_a_target_of_their_own():
    cells = (64, 128, 256)
    assert choose_strides(cells, [True] * 3)[1] == ((2, 2), (4, 2), (4, 4))
    assert choose_strides((64, 128, 1), [True] * 3)[1] == ((2, 1), (2, 2), (1, 1))
    assert choose_strides((1, 128, 256), [True] * 3)[1] == ((1, 1), (2, 2), (4, 2))
    assert choose_strides(cells, [True] * 3, tokens_per_axis=4, tokens_per_axis_3d=64)[1] == ((1, 1), (2, 1), (2, 2))


def test_only_periodic_axes_change_their_length():
    assert choose_strides((97, 97, 1), (True, False, False)) == ((96, 97, 1), ((3, 1), (3, 1), (1, 1)))


def test_a_target_below_one_token_is_refused():
    with pytest.raises(ValueError, match="expected at least one token per axis, found 0"):
        choose_strides((64, 64, 1), [True] * 3, tokens_per_axis=0)


@pytest.mark.parametrize(
    ("strides", "message"),
    [
        (((2, 2), (2, 2)), "expected one pair for each of the 3 axes, found 2"),
        (((9, 2), (2, 2), (1, 1)), r"1 <= s1 <= 8 .*found \(9, 2\) for an axis of 64 cells"),
        (((2, 5), (2, 2), (1, 1)), r"1 <= s2 <= 4.*found \(2, 5\) for an axis of 64 cells"),
        (((2, 2), (0, 2), (1, 1)), r"found \(0, 2\) for an axis of 48 cells"),
        (((2, 2), (2, 2), (2, 1)), r"\(1, 1\) on singleton axes; found \(2, 1\) for an axis of 1 cells"),
    ],
)
def test_strides_given_by_a_caller_are_checked(strides, message):
    with pytest.raises(ValueError, match=message):
        check_strides(strides, (64, 48, 1))


def test_good_strides_come_back_as_plain_integers():
    assert check_strides([[8.0, 4], (3, 3), (1, 1)], (64, 48, 1)) == ((8, 4), (3, 3), (1, 1))
