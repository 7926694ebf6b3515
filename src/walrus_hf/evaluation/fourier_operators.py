"""Fourier neural operators on the layers of `neuralop`: FNO as it stands there, and U-FNO after Wen et al. 2022.

Shapes: B batch, C channels, and one to three axes of cells; `sides` as in `unet.py`. Axes that are not periodic get
cells of zeros behind both ends, a part of the axis (domain padding), because a Fourier transform makes every axis a
ring. No coordinates are read, so on periodic axes the operators commute with shifts.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..fields import BoundaryCondition
from ..normalization import accurate
from .unet import CONVOLUTIONS, Sides, UNet

try:
    with warnings.catch_warnings():  # its import changes the filters of the whole process
        from neuralop.layers.padding import DomainPadding
        from neuralop.layers.spectral_convolution import SpectralConv
        from neuralop.models import FNO
except ImportError as error:
    raise ImportError("Fourier neural operators need the extra `eval`: pip install 'walrus-hf[eval]'") from error

# Zeros behind each end of an axis that is not periodic, in parts of the axis.
DOMAIN_PADDING = 0.125


class SpectralConvolution(SpectralConv):
    """neuralop's layer with its weights, for odd numbers of cells too.

    neuralop 2.0 shifts frequencies back with `fftshift`, which undoes itself on even axes only: on an odd one, all but
    the last, its output is off by one frequency, and where there are fewer frequencies than weights it takes those of
    other frequencies. On even axes with as many cells as modes, or more, the result is the same.
    """

    def forward(self, x: Tensor, output_shape: tuple[int, ...] | None = None) -> Tensor:
        """`(B, in_channels, *cells)` -> `(B, out_channels, *cells)`."""
        cells = x.shape[2:]
        axes = tuple(range(2, x.ndim))
        modes = torch.fft.rfftn(accurate(x), dim=axes, norm=self.fft_norm)
        weight = self.weight.to_tensor()  # (in, out, *modes)
        kept_modes, kept_weight = modes, weight
        places = []  # of the kept frequencies in the transform
        for axis, (n, kept) in enumerate(zip(modes.shape[2:], weight.shape[2:]), start=2):
            frequencies = torch.arange(min(n, kept), device=x.device)
            numbers = frequencies
            if axis < x.ndim - 1:  # the last axis of a real transform has no negative ones
                frequencies = frequencies - min(n, kept) // 2
                numbers = frequencies + kept // 2
            places.append(frequencies % n)
            kept_modes = kept_modes.index_select(axis, places[-1])
            kept_weight = kept_weight.index_select(axis, numbers)
        product = torch.einsum("bi...,io...->bo...", kept_modes, kept_weight)
        out = product.new_zeros(len(x), self.out_channels, *modes.shape[2:])
        index: tuple[Any, ...] = (slice(None), slice(None), *torch.meshgrid(*places, indexing="ij"))
        out[index] = product
        x = torch.fft.irfftn(out, s=cells, dim=axes, norm=self.fft_norm)
        return x if self.bias is None else x + self.bias


def domain_padding(sides: Sides) -> DomainPadding | None:
    """Padding of the axes that are not periodic; None where there are none."""
    parts = [0.0 if BoundaryCondition.PERIODIC in kinds else DOMAIN_PADDING for kinds in sides]
    return DomainPadding(parts) if any(parts) else None


class FourierOperator(nn.Module):
    """FNO (Li et al. 2021, arXiv 2010.08895): `neuralop.models.FNO` with four layers.

    Args:
        width: hidden channels.
        modes: frequencies kept along each axis, negative ones included.
    """

    def __init__(self, in_channels: int, out_channels: int, width: int, ndim: int, modes: int):
        super().__init__()
        self.fno = FNO(
            (modes,) * ndim, in_channels, out_channels, width, positional_embedding=None,
            conv_module=SpectralConvolution,
        )  # fmt: skip

    def forward(self, x: Tensor, sides: Sides) -> Tensor:
        """`(B, in_channels, *cells)` -> `(B, out_channels, *cells)`."""
        self.fno.domain_padding = domain_padding(sides)
        return self.fno(x)


class UFourierOperator(nn.Module):
    """U-FNO (Wen et al. 2022, arXiv 2109.03697): three Fourier layers, then three with a U-Net path beside.

    A layer is `gelu(spectral(x) + pointwise(x) [+ unet(x)])`; the paths have three levels of constant width, as there.
    """

    def __init__(self, in_channels: int, out_channels: int, width: int, ndim: int, modes: int, layers: int = 3):
        super().__init__()
        convolution = CONVOLUTIONS[ndim]
        self.lifting = convolution(in_channels, width, 1)
        self.spectral = nn.ModuleList(SpectralConvolution(width, width, (modes,) * ndim) for _ in range(2 * layers))
        self.pointwise = nn.ModuleList(convolution(width, width, 1) for _ in range(2 * layers))
        self.paths = nn.ModuleList(UNet(width, width, width, ndim, levels=3, growth=1) for _ in range(layers))
        self.projection1 = convolution(width, 2 * width, 1)
        self.projection2 = convolution(2 * width, out_channels, 1)

    def forward(self, x: Tensor, sides: Sides) -> Tensor:
        """`(B, in_channels, *cells)` -> `(B, out_channels, *cells)`."""
        padding = domain_padding(sides)
        x = self.lifting(x)
        x = x if padding is None else padding.pad(x)
        plain = len(self.spectral) - len(self.paths)
        for i, (spectral, pointwise) in enumerate(zip(self.spectral, self.pointwise)):
            following = spectral(x) + pointwise(x)
            if i >= plain:
                following = following + self.paths[i - plain](x, sides)
            x = F.gelu(following)
        x = x if padding is None else padding.unpad(x)
        return self.projection2(F.gelu(self.projection1(x)))
