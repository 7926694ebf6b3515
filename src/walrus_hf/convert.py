"""Convert the published checkpoint (`walrus.pt` and `extended_config.yaml`) into a folder for `from_pretrained`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .configuration_walrus import WalrusConfig
from .fields import FLAG_NAMES
from .layers import rotary_frequencies

ENCODERS = {"2": "planar", "3": "volumetric"}


def published_names(config: WalrusConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that the published state dict of this geometry holds."""
    width, stem, heads = config.hidden_size, config.stem_hidden_size, config.num_attention_heads
    vocab, head, inner = config.vocab_size, config.head_dim, config.intermediate_size
    first, second = config.patch_kernel_sizes
    shapes: dict[str, tuple[int, ...]] = {"encoder_dummy": (1,)}
    if config.absolute_position_shape:
        shapes["ape"] = (1, 1, width, *config.absolute_position_shape)
    for d in ENCODERS:
        shapes |= {
            f"embed.{d}.proj1.weight": (stem, vocab, first, first, first),
            f"embed.{d}.norm1.weight": (stem,),
            f"embed.{d}.proj2.weight": (width, stem, second, second, second),
            f"embed.{d}.norm2.weight": (width,),
            f"debed.{d}.proj1.weight": (width, stem, second, second, second),
            f"debed.{d}.norm1.weight": (stem,),
            f"debed.{d}.proj2.weight": (stem, vocab, first, first, first),
            f"debed.{d}.proj2.bias": (vocab,),
        }
    for i in range(config.num_hidden_layers):
        time, space = f"blocks.{i}.time_mixing.", f"blocks.{i}.space_mixing."
        shapes |= {
            time + "norm1.weight": (width,),
            time + "input_head.weight": (3 * width, width, 1, 1, 1),
            time + "input_head.bias": (3 * width,),
            time + "output_head.weight": (width, width, 1, 1, 1),
            time + "output_head.bias": (width,),
            time + "rel_pos_bias.relative_attention_bias.weight": (config.relative_attention_num_buckets, heads),
            space + "norm1.weight": (width,),
            space + "fused_ff_qkv.weight": (2 * inner + 3 * width, width),
            space + "fused_ff_qkv.bias": (2 * inner + 3 * width,),
            space + "ff_out.weight": (width, inner),
            space + "ff_out.bias": (width,),
            space + "attn_out.weight": (width, width),
        }
        for norm in (time + "qnorm", time + "knorm", space + "q_norm", space + "k_norm"):
            shapes |= {f"{norm}.weight": (head,), f"{norm}.bias": (head,)}
        count = head // 4 // 2
        if config.rope_learnable == "per_axis":
            shapes |= {f"{space}rotary_emb.freqs.{axis}": (count,) for axis in range(3)}
        else:
            shapes[space + "rotary_emb.freqs"] = (count,)
    return shapes


def published_state_dict_to_walrus(state_dict: Mapping[str, Tensor], config: WalrusConfig) -> dict[str, Tensor]:
    """State dict of [`WalrusForPrediction`] from the published one.

    The scalar `encoder_dummy` is folded into the field columns of the encoders; rotary frequencies are dropped where
    `config.rope_learnable` is None, after a check that they are the constants.

    Raises:
        ValueError: names every missing, surplus or misshapen tensor.
    """
    _check_names(state_dict, published_names(config))
    converted: dict[str, Tensor] = {}
    dummy = state_dict["encoder_dummy"]
    fields = [i for name, i in (config.field2id or {}).items() if name not in FLAG_NAMES]
    for d, ours in ENCODERS.items():
        columns = state_dict[f"embed.{d}.proj1.weight"].clone()
        columns[:, fields] *= dummy.to(columns)
        converted[f"model.embeddings.{ours}.proj1.weight"] = columns
        for name in ("norm1.weight", "proj2.weight", "norm2.weight"):
            converted[f"model.embeddings.{ours}.{name}"] = state_dict[f"embed.{d}.{name}"]
        for name in ("proj1.weight", "norm1.weight", "proj2.weight", "proj2.bias"):
            converted[f"decoder.{ours}.{name}"] = state_dict[f"debed.{d}.{name}"]
    if "ape" in state_dict:
        converted["model.absolute_position.weight"] = state_dict["ape"][0, 0].permute(1, 2, 3, 0).contiguous()
    for i in range(config.num_hidden_layers):
        converted |= _time_attention(
            state_dict, f"blocks.{i}.time_mixing.", f"model.layers.{i}.time_attention.", config
        )
        converted |= _space_mixing(state_dict, f"blocks.{i}.space_mixing.", f"model.layers.{i}.space_mixing.", config)
    return converted


def _time_attention(source: Mapping[str, Tensor], old: str, new: str, config: WalrusConfig) -> dict[str, Tensor]:
    converted = {new + "norm.weight": source[old + "norm1.weight"]}
    # The published map holds [q | k | v] inside each head: (heads, 3, head size) rows.
    rows = (config.num_attention_heads, 3, config.head_dim)
    weight = source[old + "input_head.weight"].flatten(1).unflatten(0, rows)
    bias = source[old + "input_head.bias"].unflatten(0, rows)
    for i, name in enumerate(("q_proj", "k_proj", "v_proj")):
        converted[f"{new}{name}.weight"] = weight[:, i].flatten(0, 1).contiguous()
        converted[f"{new}{name}.bias"] = bias[:, i].flatten().contiguous()
    converted[new + "o_proj.weight"] = source[old + "output_head.weight"].flatten(1)
    converted[new + "o_proj.bias"] = source[old + "output_head.bias"]
    bias_name = "relative_attention_bias.weight"
    converted[new + bias_name] = source[f"{old}rel_pos_bias.{bias_name}"]
    for ours, theirs in (("q_norm", "qnorm"), ("k_norm", "knorm")):
        for leaf in ("weight", "bias"):
            converted[f"{new}{ours}.{leaf}"] = source[f"{old}{theirs}.{leaf}"]
    return converted


def _space_mixing(source: Mapping[str, Tensor], old: str, new: str, config: WalrusConfig) -> dict[str, Tensor]:
    converted = {new + "norm.weight": source[old + "norm1.weight"]}
    width, inner = config.hidden_size, config.intermediate_size
    # The published map is [value | gate | q | k | v].
    parts = {"up_proj": inner, "gate_proj": inner, "q_proj": width, "k_proj": width, "v_proj": width}
    for leaf in ("weight", "bias"):
        pieces = source[f"{old}fused_ff_qkv.{leaf}"].split(list(parts.values()))
        converted |= {f"{new}{name}.{leaf}": piece.clone() for name, piece in zip(parts, pieces)}
        converted[f"{new}down_proj.{leaf}"] = source[f"{old}ff_out.{leaf}"]
        for norm in ("q_norm", "k_norm"):
            converted[f"{new}{norm}.{leaf}"] = source[f"{old}{norm}.{leaf}"]
    converted[new + "o_proj.weight"] = source[old + "attn_out.weight"]
    if config.rope_learnable == "per_axis":
        sets = [source[f"{old}rotary_emb.freqs.{axis}"] for axis in range(3)]
        converted[new + "rotary_frequencies"] = torch.stack(sets)
    elif config.rope_learnable == "shared":
        converted[new + "rotary_frequencies"] = source[old + "rotary_emb.freqs"][None].clone()
    elif not _are_constants(source[old + "rotary_emb.freqs"]):
        raise ValueError(
            f"{old}rotary_emb.freqs: expected the constants pi * linspace(1, 128), found trained values; "
            "convert with rope_learnable='shared'"
        )
    return converted


def _are_constants(frequencies: Tensor) -> bool:
    expected = torch.tensor(rotary_frequencies(len(frequencies)), dtype=torch.float64)
    # bfloat16 checkpoints hold the constants to three digits.
    return torch.allclose(frequencies.double(), expected, rtol=1e-2 if frequencies.dtype == torch.bfloat16 else 1e-5)


def _check_names(state_dict: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    missing = [name for name in expected if name not in state_dict]
    surplus = [name for name in state_dict if name not in expected]
    misshapen = [
        f"{name} {tuple(state_dict[name].shape)} instead of {shape}"
        for name, shape in expected.items()
        if name in state_dict and tuple(state_dict[name].shape) != shape
    ]
    problems = [
        f"{kind}: {', '.join(names)}"
        for kind, names in (("missing", missing), ("surplus", surplus), ("misshapen", misshapen))
        if names
    ]
    if problems:
        raise ValueError(f"the checkpoint does not fit its configuration: {'; '.join(problems)}")
