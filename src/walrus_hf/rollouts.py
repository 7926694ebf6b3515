"""How a forecast of a trajectory is set up: one rollout for each member, each with shifts of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .fields import Trajectory
from .normalization import delta_scales
from .processing_walrus import WalrusProcessor


def member_rollouts(
    model: Any,
    processor: WalrusProcessor,
    inputs: Mapping[str, Tensor],
    trajectory: Trajectory,
    num_steps: int,
    generators: Sequence[torch.Generator | None],
    tokens_per_axis: int | None = None,
    jitter: bool | None = None,
    **held: Any,
) -> list[Iterator[Tensor]]:
    """A rollout for each generator; nothing is computed before its first step, and it holds its last frames alone.

    Args:
        model: a [`WalrusForPrediction`], or one with adapters.
        inputs: of the processor, a batch of B trajectories that are alike.
        trajectory: one of them, for grid and boundary conditions.
        generators: of the shifts; None is torch's default one.
        tokens_per_axis, jitter: None takes the processor's setting.
        held: `use_cache`, `cache_steps` and `hold_scales`, as in `WalrusForPrediction.rollout`; the last is the
            processor's unless given.

    Returns:
        Iterators over `num_steps` states `(B, C, H, W, D)`, on the device of the model.
    """
    device = device_of(model)
    # The plan holds the boundary conditions.
    moved = {name: value.to(device) for name, value in inputs.items() if name != "boundary_conditions"}
    held = {"hold_scales": processor.hold_scales, **held}
    plans = [
        processor.plan(
            trajectory.grid, trajectory.boundary_conditions, tokens_per_axis, jitter,
            seed=int(torch.randint(2**62, (1,), generator=generator)),
        )
        for generator in generators
    ]  # fmt: skip
    return [
        model.rollout(**moved, num_steps=num_steps, plan=plan, generator=generator, **held)
        for plan, generator in zip(plans, generators, strict=True)
    ]


def device_of(model: nn.Module) -> torch.device:
    """Where inputs go; weights that are offloaded stand on no device."""
    return next((p.device for p in model.parameters() if p.device.type != "meta"), torch.device("cpu"))


def small_changes(
    processor: WalrusProcessor, inputs: Mapping[str, Tensor], trajectory: Trajectory, smallest: float
) -> dict[str, float]:
    """Fields whose change a frame is below the model's smallest scale, and that change: their forecast is noise.

    None where the scales are given. The least change of a batch and of a field's components counts.
    """
    found: dict[str, float] = {}
    if "change_scales" not in inputs:
        changes = delta_scales(inputs["field_values"], 0.0)  # (B, C)
        for channel, column in zip(processor.channels(trajectory), changes.T.tolist()):
            for change in column:
                if 0 < change < smallest:
                    found[channel.field] = min(change, found.get(channel.field, change))
    return found


def other_stride(processor: WalrusProcessor, given: int = 1) -> str | None:
    """What to know before the model is given frames so far apart, where it was fine-tuned on others; else None."""
    stride = processor.trained_stride
    if stride in (1, given):
        return None
    found = "consecutive ones" if given == 1 else f"some {given} apart"
    return (
        f"the model was fine-tuned on frames {stride} apart and is given {found}: unless those are as far "
        f"apart in time, it has not learnt this; give it one frame in {stride} (frame_stride={stride} of predict, "
        f"--frame-stride {stride} of walrus-hf forecast and walrus-hf evaluate)"
    )


def hidden_changes(processor: WalrusProcessor, inputs: Mapping[str, Tensor], trajectory: Trajectory) -> list[str]:
    """Fields whose change a frame float32, in which the model reads them, does not tell apart at their magnitude.

    Such as a pressure of 100 kPa that changes by a thousandth of a Pa: what is left of the change is rounding. In a
    batch one such sample is enough.
    """
    values = inputs["field_values"]  # (B, T, C, H, W, D)
    largest = values.abs().amax((1, 3, 4, 5))  # (B, C)
    steps = torch.nextafter(largest, torch.tensor(torch.inf)) - largest
    hidden = (delta_scales(values, 0.0) < steps).any(0).tolist()  # (C,)
    found = []
    for channel, below in zip(processor.channels(trajectory), hidden):
        if below and channel.component is not None and channel.field not in found:
            index: tuple[Any, ...] = (..., *channel.component)
            given = trajectory.fields[channel.field][index]  # (T, *grid), in float64 perhaps
            if trajectory.obstacle_mask is not None:
                given = given[:, ~trajectory.obstacle_mask]
            given = np.asarray(given, dtype=np.float64)  # yes and no have no difference
            moves = abs(given[1:] - given[:-1]).max(initial=0)
            if moves > 1e-12 * abs(given).max(initial=0):  # else it stands still but for the rounding of float64
                found.append(channel.field)
    return found


def not_finite(processor: WalrusProcessor, state: np.ndarray, trajectory: Trajectory) -> str | None:
    """Why a forecast state `(C, H, W, D)` ends a forecast, to stand behind "the forecast"; None if it is finite.

    A finite logarithm may be one of a number that float32 does not hold, which is refused in what is given, too.
    """
    if not np.isfinite(state).all():
        return "is not finite"
    for channel, values in zip(processor.channels(trajectory), state):
        with np.errstate(over="ignore"):
            if channel.log and np.isinf(10.0 ** values.max(keepdims=True)).any():  # an array, so as not to become wider
                largest = float(np.finfo(np.float32).max)
                return f"is not finite (field {channel.field!r} passes {largest:.3g}, the largest number of float32)"
    return None
