"""Floating point operations of one forward pass, by parts; what `info` and `bench` divide by time."""

from __future__ import annotations

import math

from ..configuration_walrus import WalrusConfig
from ..jitter import TokenizationPlan

ITEM = 4  # bytes of a number


def forward_flops(
    config: WalrusConfig, plan: TokenizationPlan, frames: int, channels: int, frames_to_keep: int = 0
) -> dict[str, float]:
    """Operations (two a multiply-add) of one sample, by part: encoder, linears, attention, decoder.

    Args:
        frames: input frames.
        channels: fields and lifted components; constants and boundary flags are left out, being one frame's work.
        frames_to_keep: as in the model: 0 forecasts after every frame.
    """
    width, inner, stem = config.hidden_size, config.intermediate_size, config.stem_hidden_size
    tokens, keep, d = plan.num_tokens, frames_to_keep or frames, plan.ndim
    first, second = config.patch_kernel_sizes
    # Cells between the two convolution stages: tokens * s2, and the overlap of the second kernel.
    middle = math.prod((t - 1) * s2 + second for t, (_, s2), n in zip(plan.tokens, plan.strides, plan.grid) if n > 1)
    stem_work = 2 * middle * stem * channels * first**d
    token_work = 2 * tokens * width * stem * second**d
    layers, linears, attention = config.num_hidden_layers, 0.0, 0.0
    for layer in range(layers):
        kept = keep if layer == layers - 1 else frames
        linears += 2 * tokens * (2 * width**2 * (frames + kept) + kept * (4 * width**2 + 3 * width * inner))
        attention += 4 * kept * tokens * width * (tokens + frames)
    return {
        "encoder": frames * (stem_work + token_work),
        "linears": linears,
        "attention": attention,
        "decoder": keep * (stem_work + token_work),
    }


def forward_bytes(config: WalrusConfig, plan: TokenizationPlan, frames: int, channels: int) -> dict[str, float]:
    """Bytes that live beside the weights in one forecast step of one sample in float32, by part.

    The encoder and a block do not peak together: the most is `fields` and the larger one of them. Work space of
    libraries, and kernels that are laid out anew for the strides, are not in it.
    """
    width, stem, second = config.hidden_size, config.stem_hidden_size, config.patch_kernel_sizes[1]
    middle = math.prod((t - 1) * s2 + second for t, (_, s2), n in zip(plan.tokens, plan.strides, plan.grid) if n > 1)
    wrapped = math.prod(n + sum(added) for n, added in zip(plan.lengths, plan.wrap_padding))
    stream = frames * plan.num_tokens * ITEM
    return {
        "fields": 2 * frames * channels * math.prod(plan.grid) * ITEM,  # given and scaled
        # The fields wrapped along one axis after another, or the first stage, its norm and its activation.
        "encoder": frames * ITEM * max(2 * channels * wrapped, 3 * middle * stem),
        # Input, norm, the MLP's output, queries, keys and values as projected and turned, what attention makes of them,
        # their sum; the output of the last frame. Or input, norm, output and both halves of a wide MLP.
        "block": stream * max((12 + 1 / frames) * width, 5 * width + 3 * config.intermediate_size),
    }


def working_bytes(config: WalrusConfig, plan: TokenizationPlan, frames: int, channels: int) -> float:
    """The most of `forward_bytes` that lives at once."""
    found = forward_bytes(config, plan, frames, channels)
    return found["fields"] + max(found["encoder"], found["block"])


def moved_bytes(config: WalrusConfig, plan: TokenizationPlan, frames: int, channels: int) -> float:
    """What a forecast step reads and writes outside of products, up to a factor: what its parts make, each once."""
    found = forward_bytes(config, plan, frames, channels)
    made = (9 + 1 / frames) * config.hidden_size + 3 * config.intermediate_size
    blocks = config.num_hidden_layers * frames * plan.num_tokens * ITEM * made
    return found["fields"] + found["encoder"] + blocks
