"""Adapters as folders that people share, and the base that they belong to.

An adapter folder holds what PEFT writes (`adapter_model.safetensors`, `adapter_config.json`), the processor, a card,
and `walrus_adapter.json`: what was added to the base before training, and by what the base is known again.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from torch import Tensor
from transformers.utils.peft_utils import find_adapter_config_file

from .adapters import Extension, without_deprecations
from .checkpoints import locate
from .configuration_walrus import WalrusConfig
from .modeling_walrus import WalrusForPrediction

RECORD_FILE = "walrus_adapter.json"
SAMPLES = 4  # values of a tensor by which it is known
# What makes two models compute the same from the same weights.
GEOMETRY = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "stem_hidden_size", "hidden_act",
    "patch_kernel_sizes", "field2id", "rope_learnable", "absolute_position_shape", "relative_attention_num_buckets",
    "relative_attention_max_distance", "layer_norm_eps", "seamless_decoder", "num_separate_fields",
)  # fmt: skip


def fingerprint(model: WalrusForPrediction) -> dict[str, Any]:
    """By what a bare model is known again: its geometry, and of each tensor the shape and a few values.

    Weights that are quantised or offloaded are left out, so that the same checkpoint is known in any precision.
    """
    settings = model.config.to_dict()
    tensors = {
        name: {"shape": list(p.shape), "values": _sampled(p)}
        for name, p in model.named_parameters()
        if p.is_floating_point() and p.device.type != "meta"
    }
    return {"config": json.loads(json.dumps({name: settings[name] for name in GEOMETRY})), "tensors": tensors}


def difference(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """What tells two fingerprints apart, in words; None where they are of one model."""
    for name, value in expected["config"].items():
        if found["config"].get(name) != value:
            return f"{name} {_brief(value)} expected, {_brief(found['config'].get(name))} found"
    for name, tensor in expected["tensors"].items():
        other = found["tensors"].get(name)
        if other is None:
            continue
        if other["shape"] != tensor["shape"]:
            return f"{name} of shape {tensor['shape']} expected, {other['shape']} found"
        # Half precision keeps two to three digits.
        if not all(math.isclose(a, b, rel_tol=1e-2, abs_tol=1e-6) for a, b in zip(tensor["values"], other["values"])):
            return f"other values in {name}"
    return None


@dataclasses.dataclass(frozen=True)
class AdapterRecord:
    """How an adapter's base was extended before training, and the fingerprint of the base before that."""

    extension: Extension
    base: Mapping[str, Any]

    def save(self, folder: Path) -> None:
        """Write `walrus_adapter.json`."""
        content = {"format": 1, "extension": dataclasses.asdict(self.extension), "base": self.base}
        (folder / RECORD_FILE).write_text(json.dumps(content) + "\n", encoding="utf-8")


def read_record(folder: Path) -> AdapterRecord | None:
    """The record of an adapter folder; None where PEFT alone wrote it.

    Raises:
        ValueError: an unreadable file.
    """
    file = folder / RECORD_FILE
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != 1:
            raise ValueError(f"format {content['format']!r}")
        shape = content["extension"]["absolute_position_shape"]
        settings = {**content["extension"], "absolute_position_shape": None if shape is None else tuple(shape)}
        return AdapterRecord(Extension(**settings), {name: content["base"][name] for name in ("config", "tensors")})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: expected what walrus_hf writes beside an adapter, found {error}") from None


def adapter_folder(name: str, revision: str | None) -> Path | None:
    """The folder of an adapter, downloaded where it lies on the Hub; None for anything else."""
    if Path(name).exists():
        return Path(name) if (Path(name) / "adapter_config.json").is_file() else None
    if Path(name).is_absolute() or name[:1] in ("~", ".") or name.count("/") != 1:  # no name of the Hub
        return None
    try:
        found = find_adapter_config_file(name, revision=revision)
        return None if found is None else Path(snapshot_download(name, revision=revision))
    except (OSError, ValueError):
        return None  # whoever looks for a checkpoint there says what is wrong


def adapter_config(folder: Path) -> Any:
    """PEFT's configuration of an adapter; it names the base."""
    try:
        from peft import PeftConfig
    except ImportError as error:
        raise ImportError(f"{folder} holds an adapter: pip install 'walrus-hf[finetune]' to load it") from error
    try:
        adapter = PeftConfig.from_pretrained(str(folder))
        base_name = adapter.base_model_name_or_path
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{folder}: expected an adapter_config.json of PEFT, found an unreadable one") from error
    if not base_name:
        raise ValueError(f"{folder}: expected the name of the base model in adapter_config.json, found none")
    return adapter


def check_base(folder: Path, found: Mapping[str, Any], base_name: str) -> AdapterRecord | None:
    """The record of an adapter; `ValueError` where its base had another fingerprint than `found`."""
    record = read_record(folder)
    reason = None if record is None else difference(record.base, found)
    if reason is not None:
        raise ValueError(
            f"{folder}: expected the base that this adapter was trained on, found another one in {base_name} "
            f"({reason}); name the right one in base_model_name_or_path of {folder / 'adapter_config.json'}"
        )
    return record


def described_fields(record: AdapterRecord | None, adapter: Any) -> Mapping[str, Any] | None:
    """The names that an adapter's base has once it is loaded; None where the base is not at hand.

    Args:
        adapter: PEFT's configuration of it.
    """
    if record is not None:
        return {**record.base["config"]["field2id"], **record.extension.new_fields}
    if not adapter.base_model_name_or_path:
        return None
    try:
        name = str(locate(adapter.base_model_name_or_path))
        return WalrusConfig.from_pretrained(name, revision=adapter.revision or "main").field2id
    except (OSError, ValueError):
        return None


def attach_adapter(model: Any, folder: Path, name: str) -> Any:
    from peft import PeftModel

    try:
        with without_deprecations():
            if isinstance(model, PeftModel):
                model.load_adapter(str(folder), name)
                return model
            return PeftModel.from_pretrained(model, str(folder), adapter_name=name)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{folder}: expected an adapter for this base, found one that cannot be loaded ({first_line(error)})"
        ) from error


def _sampled(tensor: Tensor) -> list[float]:
    """A few values at places that depend on the size alone, with four digits."""
    last = tensor.numel() - 1
    places = torch.tensor([i * last // (SAMPLES - 1) for i in range(SAMPLES)], device=tensor.device)
    values = tensor.detach().reshape(-1)[places].double().tolist()
    return [float(f"{value:.4g}") for value in values]


def _brief(value: Any) -> str:
    text = f"of {len(value)} names" if isinstance(value, dict) else repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
