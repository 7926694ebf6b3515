"""Asymmetric RMS normalisation (arXiv 2511.15684, section 3.1): fields and their changes have scales of their own."""

from __future__ import annotations

import torch
from torch import Tensor

_OVER_FRAMES_AND_SPACE = (1, 3, 4, 5)


def accurate(x: Tensor) -> Tensor:
    """`x` in float32 or better: scales in lower precision ruin a forecast."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def field_scales(x: Tensor, eps: float) -> Tensor:
    """Root mean square of each field over frames and space, at least `eps`.

    `x`: `(B, T, C, H, W, D)` -> `(B, C)`. No mean is taken off.
    """
    return _root_mean_square(accurate(x)).clamp_min(eps)


def delta_scales(x: Tensor, eps: float) -> Tensor:
    """Root mean square of the change from frame to frame, at least `eps`; 1 where there is a single frame.

    `x`: `(B, T, C, H, W, D)` -> `(B, C)`.
    """
    x = accurate(x)
    if x.shape[1] == 1:
        return x.new_ones(x.shape[0], x.shape[2])
    return _root_mean_square(x[:, 1:] - x[:, :-1]).clamp_min(eps)


def _root_mean_square(x: Tensor) -> Tensor:
    # Sums of squares leave float32 from about 1e16 on; a power of two that is taken out first changes no digit.
    largest = x.detach().abs().amax(_OVER_FRAMES_AND_SPACE, keepdim=True)
    unit = torch.where(largest > 0, torch.exp2(largest.log2().floor()), torch.ones_like(largest))
    return (x / unit).square().mean(_OVER_FRAMES_AND_SPACE).sqrt() * unit[:, 0, :, 0, 0, 0]


def per_channel(scales: Tensor) -> Tensor:
    """`(B, C)` -> `(B, 1, C, 1, 1, 1)`, to multiply fields with."""
    return scales[:, None, :, None, None, None]
