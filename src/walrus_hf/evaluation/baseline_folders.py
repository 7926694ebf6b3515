"""Trained baselines as folders: `baseline.json`, `baseline.safetensors`, the processor, and the log of training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..processing_walrus import WalrusProcessor
from ..safe_files import whole_folder

FORMAT = "walrus_hf.baseline/1"
SETTINGS, WEIGHTS, LOG = "baseline.json", "baseline.safetensors", "metrics.jsonl"
WRITTEN = {SETTINGS, WEIGHTS, LOG, "preprocessor_config.json"}


def save_folder(
    folder: str | Path,
    kind: str,
    settings: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    processor: WalrusProcessor,
    log: Sequence[Mapping[str, float]],
    overwrite: bool,
) -> None:
    """Write the folder under a temporary name and move it into place.

    Raises:
        FileExistsError: the folder holds something and `overwrite` is off, or something that this function never wrote.
    """
    folder = Path(folder).resolve()
    found = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    if folder.is_file() or (found and not overwrite):
        raise FileExistsError(f"{folder} exists; choose another folder, or replace it with overwrite=True")
    if found - WRITTEN:
        raise FileExistsError(
            f"{folder}: expected the folder of a baseline to replace, found {min(found - WRITTEN)!r} in it; choose "
            "another folder"
        )
    with whole_folder(folder) as temporary:
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, temporary / WEIGHTS)
        processor.save_pretrained(temporary)
        content = {"format": FORMAT, "kind": kind, "settings": settings, "versions": _versions()}
        (temporary / SETTINGS).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        (temporary / LOG).write_text("".join(json.dumps(row) + "\n" for row in log), encoding="utf-8")


def load_folder(folder: Path) -> tuple[str, dict[str, Any], dict[str, Tensor], WalrusProcessor]:
    """Kind, settings, tensors and processor of a folder that `save_folder` wrote.

    Raises:
        ValueError: a folder that is something else, or damaged.
    """
    try:
        content = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}")
        processor = WalrusProcessor.from_pretrained(folder)
        return content["kind"], content["settings"], load_file(folder / WEIGHTS), processor
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(
            f"{folder}: expected the folder of a trained baseline, written by its save, found one that cannot be read "
            f"({type(error).__name__}: {error})"
        ) from error


def _versions() -> dict[str, str]:
    return {"walrus_hf": version("walrus-hf"), "torch": torch.__version__}
