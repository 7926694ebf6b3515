"""Convert the published checkpoint (`walrus.pt` and `extended_config.yaml`) into a folder for `from_pretrained`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from .configuration_walrus import WalrusConfig
from .fields import FLAG_NAMES
from .layers import rotary_frequencies
from .loading import processor_for
from .model_card import converted_card
from .modeling_walrus import WalrusForPrediction
from .safe_files import whole_folder

ENCODERS = {"2": "planar", "3": "volumetric"}
# Settings of the published code that this package implements with one value only.
REQUIRED = {
    "model.max_d": 3,
    "model.causal_in_time": True,
    "model.include_d": [2, 3],
    "model.encoder.base_kernel_size3d": [[8, 4]] * 3,
    "model.encoder.variable_downsample": True,
    "model.encoder.variable_deterministic_ds": True,
    "model.decoder.base_kernel_size3d": [[8, 4]] * 3,
    "model.processor.time_mixing.bias_type": "rel",
    "trainer.prediction_type": "delta",
}
# What a conversion writes: a folder that holds anything else is somebody's, and is never replaced.
WRITTEN = re.compile(
    r"config\.json|preprocessor_config\.json|README\.md|model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"
)


def convert_checkpoint(
    checkpoint: str | Path, extended_config: str | Path, output_dir: str | Path, overwrite: bool = False
) -> Path:
    """Write the folder that `WalrusPipeline.from_pretrained` loads: safetensors, configuration, processor and card.

    The checkpoint is read with `torch.load(weights_only=True)`, so a pickle never runs code, and mapped rather than
    copied into memory. The folder is built under a temporary name and moved into place.

    Args:
        checkpoint: the published `walrus.pt`, `{"app": {"model": state dict}}`.
        extended_config: the published `extended_config.yaml`.
        output_dir: a new or empty folder; with `overwrite` one of a former conversion is replaced.

    Returns:
        `output_dir`.

    Raises:
        ValueError: unreadable files, settings that are not implemented, tensors that are missing, surplus or misshapen.
        FileExistsError: `output_dir` holds something and `overwrite` is off, or something that no conversion wrote.
        OSError: the disk is full or the folder cannot be written.
    """
    checkpoint, output = Path(checkpoint), Path(output_dir).resolve()
    _check_output(output, overwrite)
    settings = _read_settings(Path(extended_config))
    state_dict = _read_state_dict(checkpoint)
    config = walrus_config(settings, state_dict)
    converted = published_state_dict_to_walrus(state_dict, config)
    with torch.device("meta"):
        model = WalrusForPrediction(config)
    model.load_state_dict(converted, assign=True)
    parameters = sum(p.numel() for p in model.parameters())
    card = converted_card(config, checkpoint.name, _sha256(checkpoint), parameters)
    with whole_folder(output) as temporary:
        model.save_pretrained(temporary)
        processor_for(config).save_pretrained(temporary)
        (temporary / "README.md").write_text(card, encoding="utf-8")
    return Path(output_dir)


def _check_output(output: Path, overwrite: bool) -> None:
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output}: expected a folder to write, found a file")
    found = sorted(file.name for file in output.iterdir()) if output.is_dir() else []
    if found and not overwrite:
        raise FileExistsError(f"{output} is not empty; choose another folder, or replace it with --overwrite")
    foreign = [name for name in found if not WRITTEN.fullmatch(name)]
    if foreign:
        raise FileExistsError(
            f"{output}: expected a folder of a former conversion to replace, found {foreign[0]!r} in it; "
            "choose another folder"
        )


def walrus_config(settings: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> WalrusConfig:
    """Configuration from the published settings and, for what only fine-tuned checkpoints have, from the tensors."""
    for path, expected in REQUIRED.items():
        found = _setting(settings, path)
        if found != expected:
            raise ValueError(f"{path}: expected {expected}, which alone is implemented, found {found}")
    heads = _whole(settings, "model.processor.space_mixing.num_heads")
    if heads != _whole(settings, "model.processor.time_mixing.num_heads"):
        raise ValueError("model.processor: expected as many heads in time_mixing as in space_mixing")
    width = _whole(settings, "model.hidden_dim")
    mlp = "model.processor.space_mixing.mlp_dim"
    fused = 4 * width if _setting(settings, mlp) is None else _whole(settings, mlp)
    vocabulary = _setting(settings, "data.field_index_map_override")
    if not isinstance(vocabulary, Mapping):
        raise ValueError(f"data.field_index_map_override: expected names with their ids, found {vocabulary!r}")
    try:
        return WalrusConfig(
            hidden_size=width,
            intermediate_size=fused // 2,  # the published number is the fused width of gate and value
            num_hidden_layers=_whole(settings, "model.processor_blocks"),
            num_attention_heads=heads,
            stem_hidden_size=_whole(settings, "model.intermediate_dim"),
            field2id=dict(vocabulary),
            drop_path_rate=_number(settings, "model.drop_path"),
            field_dropout=_number(settings, "model.input_field_drop"),
            jitter=_setting(settings, "model.jitter_patches"),
            rope_learnable=_rope_learnable(state_dict),
            absolute_position_shape=_absolute_position_shape(state_dict),
            scale_eps=_number(settings, "trainer.epsilon"),
        )
    except StrictDataclassError as error:
        raise ValueError(f"the configuration file describes no Walrus: {error.__cause__ or error}") from error


def _rope_learnable(state_dict: Mapping[str, Tensor]) -> str | None:
    if any(name.endswith("rotary_emb.freqs.0") for name in state_dict):
        return "per_axis"
    sets = [tensor for name, tensor in state_dict.items() if name.endswith("rotary_emb.freqs")]
    return None if all(_are_constants(tensor) for tensor in sets) else "shared"


def _absolute_position_shape(state_dict: Mapping[str, Tensor]) -> list[int] | None:
    if "ape" not in state_dict:
        return None
    shape = tuple(state_dict["ape"].shape)
    if len(shape) != 6:
        raise ValueError(
            f"the checkpoint does not fit its configuration: misshapen: ape {shape} instead of (1, 1, hidden, H, W, D)"
        )
    return list(shape[3:])


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
        converted[new + "rotary_frequencies.weight"] = torch.stack(sets)
    elif config.rope_learnable == "shared":
        converted[new + "rotary_frequencies.weight"] = source[old + "rotary_emb.freqs"][None].clone()
    elif not _are_constants(source[old + "rotary_emb.freqs"]):
        raise ValueError(
            f"{old}rotary_emb.freqs: expected the constants pi * linspace(1, 128), found trained values; "
            "convert with rope_learnable='shared'"
        )
    return converted


def _are_constants(frequencies: Tensor) -> bool:
    if frequencies.ndim != 1:
        return False
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
    whole = [
        f"{name} of {state_dict[name].dtype}"
        for name in expected
        if name in state_dict and not state_dict[name].is_floating_point()
    ]
    kinds = {"missing": missing, "surplus": surplus, "misshapen": misshapen, "not floating point": whole}
    problems = [f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names]
    if problems:
        raise ValueError(f"the checkpoint does not fit its configuration: {'; '.join(problems)}")


def _setting(settings: Mapping[str, Any], path: str) -> Any:
    value: Any = settings
    for key in path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise ValueError(f"the configuration file lacks {path}: expected the published extended_config.yaml")
        value = value[key]
    return value


def _whole(settings: Mapping[str, Any], path: str) -> int:
    value = _setting(settings, path)
    if type(value) is not int or value < 1:
        raise ValueError(f"{path}: expected a whole number of at least 1, found {value!r}")
    return value


def _number(settings: Mapping[str, Any], path: str) -> float:
    value = _setting(settings, path)
    try:
        return float(value)  # YAML reads 1e-5, without the point, as text
    except (TypeError, ValueError):
        raise ValueError(f"{path}: expected a number, found {value!r}") from None


def _read_settings(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected the published extended_config.yaml, found no such file")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a YAML file, found {str(error).splitlines()[0]}") from error
    if not isinstance(settings, Mapping):
        raise ValueError(f"{path}: expected the published extended_config.yaml, found no settings")
    return settings


def _read_state_dict(path: Path) -> Mapping[str, Tensor]:
    if path.is_dir():
        raise ValueError(f"{path}: expected the published walrus.pt, found a folder")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected the published walrus.pt, found no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle fails in many ways
        reason = "it holds more than tensors" if "weights_only" in str(error) else "it is damaged or of another kind"
        raise ValueError(
            f"{path}: expected a PyTorch checkpoint of plain tensors, but {reason}; download the published file again"
        ) from error
    app = content.get("app") if isinstance(content, Mapping) else None
    model = app.get("model") if isinstance(app, Mapping) else None
    if not isinstance(model, Mapping) or not all(isinstance(t, Tensor) for t in model.values()):
        raise ValueError(f"{path}: expected a checkpoint {{'app': {{'model': state dict}}}}, found {_outline(content)}")
    return model


def _outline(content: Any) -> str:
    return (
        f"a mapping with {', '.join(map(repr, list(content)[:5]))}"
        if isinstance(content, Mapping)
        else f"a {type(content).__name__}"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
