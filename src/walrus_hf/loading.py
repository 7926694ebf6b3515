"""Configuration, weights and processor of a checkpoint, each refused in a sentence where it is not whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers.configuration_utils import PreTrainedConfig

from .adapter_files import first_line
from .configuration_walrus import WalrusConfig
from .modeling_walrus import WalrusForPrediction
from .processing_walrus import WalrusProcessor


def processor_for(config: WalrusConfig) -> WalrusProcessor:
    """A processor with the vocabulary and the tokenization of a model configuration."""
    return WalrusProcessor(
        field2id=config.field2id,
        tokens_per_axis=config.tokens_per_axis,
        tokens_per_axis_3d=config.tokens_per_axis_3d,
        jitter=config.jitter,
        num_hidden_layers=config.num_hidden_layers,
    )


def usable_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, or a GPU if there is one; `ValueError` for one that this machine lacks."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device: expected one that this machine has, such as 'cpu', found {str(device)!r} ({first_line(error)})"
        ) from error
    if found.type == "meta":
        raise ValueError(
            "device: expected one that this machine has, such as 'cpu', found 'meta' (it holds no numbers)"
        )
    return found


def check_model_type(name: str, revision: str | None = None) -> None:
    """`ValueError` for a checkpoint of another architecture, `FileNotFoundError` where there is none."""
    path = Path(name).expanduser()
    if path.is_file():
        raise ValueError(f"{name}: expected the folder of a checkpoint, found a file")
    if path.is_dir() and not (path / "config.json").is_file():
        raise ValueError(f"{name}: expected the folder of a checkpoint, found one without a config.json")
    if not path.is_dir() and (path.is_absolute() or name[:1] in ("~", ".") or name.count("/") > 1):
        raise FileNotFoundError(f"{name}: expected the folder of a checkpoint, found none; check the path")
    try:
        config, _ = PreTrainedConfig.get_config_dict(name, revision=revision or "main")
        found = config.get("model_type")
    except (OSError, AttributeError, TypeError) as error:  # the latter two: JSON, but no mapping
        if path.is_dir():
            raise ValueError(f"{name}: expected a config.json with settings, found an unreadable one") from error
        raise FileNotFoundError(
            f"{name}: expected a folder or a Hub repository with a Walrus checkpoint, found no such folder and nothing "
            f"on the Hub ({first_line(error)}); check the name, the connection, and for a private repository the token "
            "(`hf auth login`)"
        ) from error
    if found != WalrusConfig.model_type:
        raise ValueError(f"{name}: expected a checkpoint of model type 'walrus', found {found!r}")


def load_config(name: str, revision: str = "main") -> WalrusConfig:
    """The configuration of a checkpoint.

    Raises:
        ValueError, FileNotFoundError: what is no Walrus checkpoint, or settings that make no sense.
    """
    check_model_type(name, revision)
    try:
        return WalrusConfig.from_pretrained(name, revision=revision)
    except StrictDataclassError as error:
        reason = first_line(error.__cause__ or error)
        raise ValueError(f"{name}: expected the settings of a Walrus model in its config.json: {reason}") from error


def load_model(
    name: str, revision: str = "main", dtype: str | torch.dtype = "auto", config: WalrusConfig | None = None
) -> WalrusForPrediction:
    """The model, with every weight from the checkpoint: transformers would fill missing ones with random numbers.

    Args:
        config: in place of the checkpoint's, with a geometry that its weights have.

    Raises:
        ValueError, FileNotFoundError: what is no whole Walrus checkpoint.
    """
    check_model_type(name, revision)
    try:
        loaded: Any = WalrusForPrediction.from_pretrained(
            name, config=config, revision=revision, dtype=dtype, use_safetensors=True, ignore_mismatched_sizes=True,
            output_loading_info=True,
        )  # fmt: skip
    except (OSError, SafetensorError, StrictDataclassError) as error:
        reason = first_line(error.__cause__ or error)
        raise ValueError(
            f"{name}: expected a whole checkpoint of safetensors, found one that cannot be loaded ({reason}); "
            "save or download it again"
        ) from error
    model, report = loaded
    problems = [
        f"{len(report[kind])} {kind.partition('_')[0]} such as {_weight_name(sorted(report[kind])[0])}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if report[kind]
    ]
    if problems and config is not None:
        raise ValueError(f"{name}: expected the weights that the given settings describe, found {'; '.join(problems)}")
    if problems:
        raise ValueError(
            f"{name}: expected the weights that its config.json describes, found {'; '.join(problems)}; "
            "save or download the folder again"
        )
    return model


def load_processor(name: str, revision: str) -> WalrusProcessor:
    try:
        return WalrusProcessor.from_pretrained(name, revision=revision)
    except OSError as error:
        raise ValueError(
            f"{name}: expected a preprocessor_config.json beside the weights, found none that can be read; write it "
            "with the save_pretrained of the model's WalrusProcessor"
        ) from error


def _weight_name(key: Any) -> str:
    return key if isinstance(key, str) else str(key[0])  # mismatched ones come with their shapes
