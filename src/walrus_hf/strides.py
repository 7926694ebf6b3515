"""Compute-adaptive tokenization: convolutional stride modulation (CSM, arXiv 2507.09264).

The two convolution stages keep their kernels; only their strides change with the grid, so that about the same number
of tokens comes out of any grid. `tokens_per_axis` is the one compute dial.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

KERNELS = (8, 4)
Strides = tuple[int, int]

# Cells per token -> strides of the two stages (published code, choose_kernel_size_deterministic).
PUBLISHED_STRIDES: dict[int, Strides] = {
    1: (1, 1), 4: (2, 2), 8: (4, 2), 12: (6, 2), 16: (4, 4), 24: (6, 4), 32: (8, 4),
}  # fmt: skip
MIN_CELLS = 8
# How far from the target the tokens of a periodic axis may lie before the axis is resampled instead.
TOLERANCE = 1.5


def _split(product: int) -> Strides:
    """The strides whose product is `product`: even paddings first, then the kernels' own ratio of 2, then small s1.

    For every entry of the published table this is the published pair.
    """
    pairs = [
        (s1, product // s1) for s1 in range(1, KERNELS[0] + 1) if product % s1 == 0 and product // s1 <= KERNELS[1]
    ]

    def preference(pair: Strides) -> tuple[bool, float, int]:
        s1, s2 = pair
        uneven = (KERNELS[0] + 3 * s1 - product) % 2 == 1 or product % 2 == 1
        # Even strides keep both stages' paddings even, not only their sum.
        return uneven or s1 % 2 + s2 % 2 > 0, round(abs(math.log2(s1 / s2 / 2)), 6), s1

    return min(pairs, key=preference)


# Every number of cells per token that two strides s1 <= 8, s2 <= 4 can make.
STRIDES_OF_PATCH: dict[int, Strides] = {
    product: _split(product) for product in sorted({a * b for a in range(1, 9) for b in range(1, 5)})
}


def _nearest(candidates: Sequence[tuple[int, int]], target: int) -> int:
    """Cells per token of the (tokens, cells) candidate nearest to the target in ratio; a tie goes to more tokens."""
    return min(candidates, key=lambda c: (round(abs(math.log(c[0] / target)), 9), -c[0]))[1]


def axis_strides(cells: int, periodic: bool, target: int) -> tuple[int, Strides]:
    """`(length, strides)` of one axis; `length` differs from `cells` only where a periodic axis must be resampled.

    1. One cell: `(1, 1)`. A length that the published table knows: its strides.
    2. Else the token count nearest to `min(target, cells)` in ratio, a tie going to more tokens. A non-periodic axis
       may take any patch, the last token being filled up with padding. The patch of a periodic axis must divide it
       and land within 1.5x of the target; if none does, the axis is resampled to the nearest length that has one
       (a tie going to the longer length).

    Raises:
        ValueError: an axis of 2 to 7 cells, which is shorter than the first kernel.
    """
    if cells == 1:
        return 1, (1, 1)
    if cells < MIN_CELLS:
        raise ValueError(f"expected at least {MIN_CELLS} cells on an axis (or a single one), found {cells}")
    if cells % target == 0 and cells // target in PUBLISHED_STRIDES:
        return cells, PUBLISHED_STRIDES[cells // target]
    target = min(target, cells)
    if not periodic:
        # -(-a // b) is the ceiling: the last token may reach beyond the data.
        patch = _nearest([(-(-cells // patch), patch) for patch in STRIDES_OF_PATCH], target)
        return cells, STRIDES_OF_PATCH[patch]
    longest = math.floor(TOLERANCE * target) * max(STRIDES_OF_PATCH)
    start = min(cells, longest)
    for distance in range(start):
        for length in (start + distance, start - distance):
            fitting = [
                (length // patch, patch)
                for patch in STRIDES_OF_PATCH
                if length % patch == 0 and target / TOLERANCE <= length // patch <= target * TOLERANCE
            ]
            if fitting:
                return length, STRIDES_OF_PATCH[_nearest(fitting, target)]
    raise ValueError(f"no strides for a periodic axis of {cells} cells at {target} tokens; change tokens_per_axis")


def is_volume(grid: Sequence[int]) -> bool:
    """Whether all three axes have more than one cell; anything else is read as a plane."""
    return sum(n > 1 for n in grid) == 3


def token_target(grid: Sequence[int], tokens_per_axis: int, tokens_per_axis_3d: int) -> int:
    """Tokens to aim at along each axis: `tokens_per_axis_3d` where all three axes have several cells."""
    target = tokens_per_axis_3d if is_volume(grid) else tokens_per_axis
    if target < 1:
        raise ValueError(f"expected at least one token per axis, found {target}")
    return target


def choose_strides(
    grid: Sequence[int], periodic: Sequence[bool], tokens_per_axis: int = 32, tokens_per_axis_3d: int = 16
) -> tuple[tuple[int, ...], tuple[Strides, ...]]:
    """Lengths that the network sees and strides of the two stages, for each axis of `grid` (H, W, D).

    Args:
        grid: cells along each axis; singleton axes are not tokenized.
        periodic: whether each axis is periodic.
        tokens_per_axis: target for grids with one or two non-singleton axes, `tokens_per_axis_3d` for three.
    """
    target = token_target(grid, tokens_per_axis, tokens_per_axis_3d)
    chosen = [axis_strides(n, is_periodic, target) for n, is_periodic in zip(grid, periodic, strict=True)]
    return tuple(length for length, _ in chosen), tuple(strides for _, strides in chosen)


def check_strides(strides: Sequence[Sequence[int]], grid: Sequence[int]) -> tuple[Strides, ...]:
    """Strides given by a caller as three pairs of plain integers; `ValueError` where they cannot be used."""
    pairs = tuple((int(s1), int(s2)) for s1, s2 in strides)
    if len(pairs) != 3:
        raise ValueError(f"strides: expected one pair for each of the 3 axes, found {len(pairs)}")
    for n, (s1, s2) in zip(grid, pairs):
        if not (1 <= s1 <= KERNELS[0] and 1 <= s2 <= KERNELS[1]) or (n == 1 and (s1, s2) != (1, 1)):
            raise ValueError(
                f"strides: expected 1 <= s1 <= {KERNELS[0]} and 1 <= s2 <= {KERNELS[1]}, and (1, 1) on singleton axes; "
                f"found {(s1, s2)} for an axis of {n} cells"
            )
    return pairs
