"""A U-Net for fields on grids of any size, with padding that follows the boundaries.

Shapes: B batch, C channels, and one to three axes of cells. `sides` holds the boundary kinds of each axis, `(low side,
high side)`: a periodic side goes on with the cells of the other end, an open one repeats its last cell, a wall has
zeros behind it, which let the network see where it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..fields import BoundaryCondition

CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
Sides = Sequence[Sequence[int]]


def cell_beyond(x: Tensor, axis: int, high: bool, kind: int) -> Tensor:
    """The cell that follows the last one of an axis, or with `high=False` the one before its first."""
    first, last = 0, x.shape[axis] - 1
    if kind == BoundaryCondition.PERIODIC:
        return x.narrow(axis, first if high else last, 1)
    edge = x.narrow(axis, last if high else first, 1)
    return edge if kind == BoundaryCondition.OPEN else torch.zeros_like(edge)


def add_halo(x: Tensor, sides: Sides) -> Tensor:
    """One cell more at both ends of each axis: `(B, C, *cells)` -> `(B, C, *(cells + 2))`."""
    for i, (low, high) in enumerate(sides):
        axis = i - len(sides)
        x = torch.cat([cell_beyond(x, axis, False, low), x, cell_beyond(x, axis, True, high)], axis)
    return x


def make_even(x: Tensor, sides: Sides) -> Tensor:
    """One cell more at the high end of each axis with an odd number of cells."""
    for i, (_, high) in enumerate(sides):
        axis = i - len(sides)
        if x.shape[axis] % 2:
            x = torch.cat([x, cell_beyond(x, axis, True, high)], axis)
    return x


def double(x: Tensor, cells: Sequence[int]) -> Tensor:
    """Each cell twice along each axis, cut to `cells`. Unlike linear interpolation, it has no seam on periodic axes."""
    for i, n in enumerate(cells):
        axis = i - len(cells)
        x = x.repeat_interleave(2, axis).narrow(axis, 0, n)
    return x


class ConvolutionPair(nn.Module):
    """Twice: convolution over three cells an axis, normalisation over channels and space, GELU."""

    def __init__(self, in_channels: int, out_channels: int, ndim: int):
        super().__init__()
        convolution = CONVOLUTIONS[ndim]
        self.conv1 = convolution(in_channels, out_channels, 3)
        self.norm1 = nn.GroupNorm(1, out_channels)
        self.conv2 = convolution(out_channels, out_channels, 3)
        self.norm2 = nn.GroupNorm(1, out_channels)

    def forward(self, x: Tensor, sides: Sides) -> Tensor:
        x = F.gelu(self.norm1(self.conv1(add_halo(x, sides))))
        return F.gelu(self.norm2(self.conv2(add_halo(x, sides))))


class UNet(nn.Module):
    """Ronneberger et al. 2015 (arXiv 1505.04597), with the changes usual for fields (PDEArena, arXiv 2209.15616).

    Halving is a convolution of two cells, doubling repeats cells; an axis of n cells has `ceil(n / 2)` on the next
    level, so no size is refused and none is padded at the start.

    Args:
        width: channels of the finest level.
        ndim: axes, 1 to 3.
        levels: grids from fine to coarse.
        growth: channels of a level over those of the finer one.
    """

    def __init__(self, in_channels: int, out_channels: int, width: int, ndim: int, levels: int = 4, growth: int = 2):
        super().__init__()
        convolution = CONVOLUTIONS[ndim]
        widths = [width * growth**level for level in range(levels)]
        self.first = ConvolutionPair(in_channels, width, ndim)
        self.halve = nn.ModuleList(convolution(a, b, 2, stride=2) for a, b in itertools.pairwise(widths))
        self.down = nn.ModuleList(ConvolutionPair(b, b, ndim) for b in widths[1:])
        self.narrow = nn.ModuleList(convolution(b, a, 1) for a, b in itertools.pairwise(widths))
        self.up = nn.ModuleList(ConvolutionPair(2 * a, a, ndim) for a in widths[:-1])
        self.last = convolution(width, out_channels, 1)

    def forward(self, x: Tensor, sides: Sides) -> Tensor:
        """`(B, in_channels, *cells)` -> `(B, out_channels, *cells)`."""
        x = self.first(x, sides)
        finer = []
        for halve, pair in zip(self.halve, self.down):
            finer.append(x)
            x = pair(halve(make_even(x, sides)), sides)
        for narrow, pair, skip in zip(reversed(self.narrow), reversed(self.up), reversed(finer)):
            x = double(narrow(x), skip.shape[2:])
            x = pair(torch.cat([skip, x], 1), sides)
        return self.last(x)
