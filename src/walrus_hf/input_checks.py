"""What a forward pass refuses: tensors, ids and plans that do not belong together, and misspelt arguments.

Shapes: B batch, T frames, C channels (fields), H W D space.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from transformers.utils import TransformersKwargs

from .caching import WalrusTimeCache
from .jitter import TokenizationPlan


def check_inputs(
    field_values: Tensor,
    field_ids: Tensor,
    constant_values: Tensor | None,
    constant_ids: Tensor | None,
    labels: Tensor | None = None,
    padded_channels: Tensor | None = None,
    obstacle_mask: Tensor | None = None,
    frames_to_keep: int = 0,
) -> None:
    """Shapes. Other ones would often be broadcast, and give a number that is wrong; a mask may hold for all samples."""
    if field_values.ndim != 6:
        raise ValueError(
            f"field_values: expected (batch, frames, channels, H, W, D), found shape {tuple(field_values.shape)}"
        )
    batch, frames, channels, *grid = field_values.shape
    if min(frames, channels) < 1:
        raise ValueError(f"field_values: expected at least one frame and one channel, found {frames} and {channels}")
    if (constant_values is None) != (constant_ids is None):
        raise ValueError("constant_values and constant_ids: expected both or neither")
    _check_shape("field_ids", field_ids, "(batch, channels)", (batch, channels))
    if labels is None or not frames_to_keep or labels.shape[1:2] != (frames_to_keep,):  # of the kept frames alone
        frames_to_keep = frames
    _check_shape(
        "labels", labels, "(batch, frames, channels, H, W, D)", (batch, frames_to_keep, *field_values.shape[2:])
    )
    if padded_channels is not None and padded_channels.shape[:1] != (1,):
        _check_shape("padded_channels", padded_channels, "(batch, channels)", (batch, channels))
    if obstacle_mask is not None and obstacle_mask.shape[:1] != (1,):
        _check_shape("obstacle_mask", obstacle_mask, "(batch, H, W, D)", (batch, *grid))
    if constant_values is not None and constant_ids is not None:
        if constant_ids.ndim != 2 or constant_ids.shape[0] != batch or not constant_ids.shape[1]:
            raise ValueError(
                f"constant_ids: expected (batch, constants) {(batch, 'one or more')}, found {tuple(constant_ids.shape)}"
            )
        constants = (batch, constant_ids.shape[1], *grid)
        _check_shape("constant_values", constant_values, "(batch, constants, H, W, D)", constants)


def _check_shape(name: str, given: Tensor | None, axes: str, expected: tuple[int, ...]) -> None:
    if given is not None and given.shape != expected:
        raise ValueError(f"{name}: expected {axes} {expected}, found {tuple(given.shape)}")


def check_ids(vocabulary: int, **given: Tensor | None) -> None:
    """Read on the host, as the boundaries are where no plan is given: the encoder looks at the first row alone."""
    if torch.compiler.is_compiling():
        return
    for name, ids in given.items():
        if ids is None or type(ids) is not Tensor or ids.is_meta or not ids.numel():  # others may hold no numbers
            continue
        if ids.is_floating_point() or ids.min() < 0 or ids.max() >= vocabulary:
            raise ValueError(
                f"{name}: expected whole numbers from 0 to {vocabulary - 1}, found {ids.tolist()}; they may be ids of "
                "another vocabulary: load_stream takes the model's own with processor=pipe.processor"
            )
        if (ids != ids[:1]).any():
            raise ValueError(f"{name}: expected the same fields in all samples of a batch, found {ids.tolist()}")


def check_keywords(given: Iterable[str]) -> None:
    """A misspelt argument must not be swallowed: `boundary_condition=` would forecast a periodic box."""
    # use_cache: transformers' training code hands it to every model.
    unknown = set(given) - set(TransformersKwargs.__annotations__) - {"return_dict", "use_cache"}
    if unknown:
        raise TypeError(f"unexpected arguments: {', '.join(sorted(unknown))}")


def check_cache(use_cache: bool, cache_steps: int) -> None:
    if not isinstance(cache_steps, int) or cache_steps < 1:
        raise ValueError(f"cache_steps: expected a whole number of at least 1, found {cache_steps}")
    if cache_steps > 1 and not use_cache:
        raise ValueError(f"cache_steps={cache_steps} holds scales and jitter: expected use_cache=True beside it")


def check_past(past: WalrusTimeCache | None, *held: object) -> None:
    if past is not None and past.frames and any(value is None for value in held):
        raise ValueError(
            "past_key_values: frames that follow others need the plan, value_scales and change_scales of those"
        )


def check_plan(plan: TokenizationPlan, field_values: Tensor, layers: int) -> None:
    if plan.grid != tuple(field_values.shape[3:]):
        raise ValueError(f"plan: made for a grid of {plan.grid}, the fields have {tuple(field_values.shape[3:])}")
    if len(plan.layer_shifts) < layers:
        raise ValueError(f"plan: has shifts for {len(plan.layer_shifts)} layers, the model has {layers}")
