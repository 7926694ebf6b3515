"""`python -m walrus_hf.bench train`: one training step (forward, backward, AdamW) beside the plain reading."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..configuration_walrus import WalrusConfig
from ..normalization import delta_scales, per_channel
from .cases import (
    MATRIX,
    Sides,
    both_sides,
    compared,
    in_turn,
    make_sides,
    matmul_peak,
    peak_and_shares,
    reference_flops,
)

LEARNING_RATE = 1e-12  # the weights of both sides stay what they are, so every round computes the same


def measure_training(
    config: WalrusConfig, case: Mapping[str, Any], repeats: int, matrix: int = MATRIX
) -> dict[str, float]:
    """Both sides on one case, with the same weights, shifts, loss and optimiser: seconds, ratios, shares, agreement.

    The fixed work behind the shares is three forward passes of the reference: a backward pass has twice the products.
    """
    sides = make_sides(config, case)
    runs = {"ours": training_step(sides.ours, ours_loss(sides)), "plain": training_step(sides.plain, plain_loss(sides))}
    losses = {name: run() for name, run in runs.items()}
    # The blocks hold the same numbers on both sides, in another order; the encoders differ by a folded factor.
    norms = {"ours": _gradient_norm(sides.ours.model.layers), "plain": _gradient_norm(sides.plain.blocks)}
    seconds = in_turn({"peak": matmul_peak(matrix), **runs}, repeats)
    return {
        **compared(seconds, 3 * reference_flops(sides, case), matrix), "loss": losses["ours"],
        "difference": abs(losses["ours"] / losses["plain"] - 1),
        "gradient_difference": abs(norms["ours"] / norms["plain"] - 1),
    }  # fmt: skip


def training_step(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], float]:
    """A function that makes one step and returns its loss."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)

    def step() -> float:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        return value.item()

    return step


def ours_loss(sides: Sides) -> Callable[[], Tensor]:
    return lambda: sides.ours(sides.values, sides.ids, labels=sides.labels, plan=sides.plan).loss


def plain_loss(sides: Sides) -> Callable[[], Tensor]:
    """The mean absolute error of the normalised deltas of all frames but the first (architecture, section 8)."""
    target = (sides.labels - sides.values) / per_channel(delta_scales(sides.values, sides.ours.config.scale_eps))
    return lambda: (sides.plain_delta() - target)[:, 1:].abs().mean()


def _gradient_norm(model: nn.Module) -> float:
    return torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]).item()


def describe(r: Mapping[str, float]) -> str:
    return (
        f"{both_sides(r)}; {peak_and_shares(r)}; losses differ by {r['difference']:.1e}, gradient norms by "
        f"{r['gradient_difference']:.1e}"
    )
