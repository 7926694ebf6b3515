"""Convolutions whose strides change with the grid: the two stages of encoder and decoder (architecture, 4 and 6).

Shapes: n frames of all samples, H W D space.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .jitter import take_cyclic

CONVOLUTIONS: tuple[Callable, ...] = (F.conv1d, F.conv2d, F.conv3d)


class WalrusNewColumns(nn.Module):
    """Columns of the last names of the vocabulary: a module of its own, so that `modules_to_save` of PEFT can name it.

    Args:
        rows: of the weight, its other axis of channels.
        columns: how many names.
    """

    def __init__(self, rows: int, columns: int, kernel: int, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, columns, kernel, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(columns)) if bias else None

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """`(rows, n, k, k, k)` and `(n,)`, the columns of those numbers, counted from the first of these names."""
        return self.weight.index_select(1, ids), None if self.bias is None else self.bias.index_select(0, ids)


def select_columns(
    weight: Tensor, bias: Tensor | None, new_columns: nn.Module | None, ids: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Columns of a weight `(rows, names, k, k, k)` and of its bias `(names,)` by vocabulary ids `(n,)`."""
    if new_columns is None:
        return weight.index_select(1, ids), None if bias is None else bias.index_select(0, ids)
    old = weight.shape[1]
    known, known_bias = select_columns(weight, bias, None, ids.clamp(max=old - 1))
    new, new_bias = new_columns((ids - old).clamp(min=0))
    is_new = ids >= old
    chosen = torch.where(is_new.view(1, -1, 1, 1, 1), new, known)
    return chosen, None if known_bias is None or new_bias is None else torch.where(is_new, new_bias, known_bias)


class WalrusStridedConv(nn.Module):
    """Convolution whose strides change with the grid; along singleton axes the kernel is summed.

    Args:
        new_columns: how many of the last input columns are parameters of their own.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, new_columns: int = 0):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels - new_columns, kernel, kernel, kernel))
        self.new_columns = WalrusNewColumns(out_channels, new_columns, kernel, bias=False) if new_columns else None

    def forward(
        self,
        x: Tensor,
        strides: Sequence[int],
        collapsed: Sequence[bool],
        ids: Tensor | None = None,
        gain: Tensor | float | None = None,
    ) -> Tensor:
        """`(n, channels, H, W, D)` -> `(n, out, H', W', D')`, without padding.

        Args:
            collapsed: axes of one cell, along which the kernel is summed.
            ids: input columns of the weight that belong to the channels of `x`; None takes all.
            gain: factor of the columns, one for each channel or one for all.
        """
        weight = self.weight if ids is None else select_columns(self.weight, None, self.new_columns, ids)[0]
        if gain is not None:
            weight = weight * (gain.view(1, -1, 1, 1, 1) if isinstance(gain, Tensor) else gain)
        singles = [2 + i for i in range(3) if collapsed[i]]
        if len(singles) == 3:
            return torch.einsum("ncxyz,oc->no", x, weight.sum(singles))[:, :, None, None, None]
        if singles:
            weight, x = weight.sum(singles), x.squeeze(singles)
        y = CONVOLUTIONS[2 - len(singles)](x, weight, stride=[strides[i] for i in range(3) if not collapsed[i]])
        for axis in singles:
            y = y.unsqueeze(axis)
        return y


class WalrusTransposedConv(nn.Module):
    """Transposed convolution with the strides of the encoder; along singleton axes the kernel is averaged.

    Args:
        new_columns: how many of the last output columns are parameters of their own.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, bias: bool, new_columns: int = 0):
        super().__init__()
        self.kernel = kernel
        own = out_channels - new_columns
        self.weight = nn.Parameter(torch.empty(in_channels, own, kernel, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(own)) if bias else None
        self.new_columns = WalrusNewColumns(in_channels, new_columns, kernel, bias) if new_columns else None

    def forward(
        self,
        x: Tensor,
        strides: Sequence[int],
        grid: Sequence[int],
        periodic: Sequence[bool],
        seamless: bool,
        ids: Tensor | None = None,
    ) -> Tensor:
        """`(n, channels, H', W', D')` -> `(n, out, H, W, D)`.

        An axis of length m becomes `m * s + kernel - s`; with `seamless` a periodic axis becomes exactly `m * s`.

        Args:
            grid: cells of the data; its singleton axes are averaged over.
            periodic: axes that are wrapped around before, so that their ends see each other (architecture, section 6).
            ids: output columns that are wanted; None gives all.
        """
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if ids is not None:
            weight, bias = select_columns(weight, bias, self.new_columns, ids)
        axes = [i for i in range(3) if grid[i] > 1]
        singles = [2 + i for i in range(3) if grid[i] == 1]
        lengths = [x.shape[2 + i] for i in axes]
        sizes = [length * strides[i] + self.kernel - strides[i] for i, length in zip(axes, lengths)]
        for n, i in enumerate(axes):
            if periodic[i]:
                wrap = -(-(self.kernel - strides[i]) // strides[i])
                sizes[n] = lengths[n] * strides[i] if seamless else sizes[n]
                x = take_cyclic(x, i - 3, -wrap, lengths[n] + (wrap if seamless else 2 * wrap))
        if singles:
            weight, x = weight.mean(singles), x.squeeze(singles)
        y = transposed_convolution(x, weight, bias, [strides[i] for i in axes], [periodic[i] for i in axes])
        for axis in singles:
            y = y.unsqueeze(axis)
        for i, size in zip(axes, sizes):
            y = y.narrow(i - 3, 0, size)
        return y


def transposed_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    strides: Sequence[int],
    wrapped: Sequence[bool] = (False, False, False),
) -> Tensor:
    """Transposed convolution over 1 to 3 axes as a convolution and a pixel shuffle, several times faster on a CPU.

    Cell `s * i + p` of the result is the sum over m of `x[i - m] * weight[s * m + p]`: for each phase p an ordinary
    convolution with every s-th value of the kernel. A kernel that s does not divide is filled up with zeros.

    Args:
        x: `(n, in, *space)`.
        weight: `(in, out, *kernel)`, all kernel sides equal.
        wrapped: axes that were padded for their M taps: cells that miss one of them, at both ends, are not computed.

    Returns:
        `(n, out, ...)`, `m * s + M * s - s` cells long for an axis of m cells, where `M = ceil(kernel / s)`; on a
        wrapped axis without the first and the last `M * s - s` of them.
    """
    d = len(strides)
    n, inputs, outputs, kernel = len(x), *weight.shape[:3]
    taps = [-(-kernel // s) for s in strides]  # M
    fill = [extra for s, m in zip(reversed(strides), reversed(taps)) for extra in (0, m * s - kernel)]
    weight = F.pad(weight, fill) if any(fill) else weight
    weight = weight.reshape(inputs, outputs, *[size for pair in zip(taps, strides) for size in pair])
    weight = weight.flip([2 + 2 * i for i in range(d)])
    # (in, out, M1, s1, M2, s2, ...) -> (out, s1, s2, ..., in, M1, M2, ...)
    weight = weight.permute(1, *[3 + 2 * i for i in range(d)], 0, *[2 + 2 * i for i in range(d)])
    weight = weight.reshape(outputs * math.prod(strides), inputs, *taps)
    if bias is not None:
        bias = bias.repeat_interleave(math.prod(strides))
    padding = [0 if inner else m - 1 for m, inner in zip(taps, wrapped)]
    y = CONVOLUTIONS[d - 1](x, weight, bias, padding=padding)
    space = y.shape[2:]
    y = y.reshape(n, outputs, *strides, *space)
    # (n, out, s1, s2, ..., i1, i2, ...) -> (n, out, i1, s1, i2, s2, ...)
    y = y.permute(0, 1, *[axis for i in range(d) for axis in (2 + d + i, 2 + i)])
    return y.reshape(n, outputs, *[s * m for s, m in zip(strides, space)])
