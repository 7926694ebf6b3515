"""What a pretraining run is told: a YAML file, and flags that override it."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import field
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
import yaml
from transformers.hf_argparser import HfArgumentParser

from ..checkpoints import locate
from ..configuration_walrus import WalrusConfig
from ..hub import check_repository_name
from ..loading import load_config, load_model, processor_for
from ..modeling_walrus import WalrusForPrediction
from ..processing_walrus import WalrusProcessor
from .plan import MODES, Mode, micro_batch_shape

ATTENTION = "attn_implementation"  # which is no field of a configuration
STRATEGIES = ("single", "ddp", "fsdp2", "hsdp")


@dataclasses.dataclass
class PretrainingArguments:
    """Settings of a pretraining run; the defaults are the published ones (arXiv 2511.15684, appendices A and B.1)."""

    sources: list[str] = field(
        default_factory=list, metadata={"help": "Scenarios, files, folders, manifests or URLs to train on."}
    )
    output_dir: str = field(
        default="pretraining", metadata={"help": "Folder for checkpoints, metrics.jsonl and the model."}
    )
    base_path: str | None = field(
        default=None, metadata={"help": "Folder or URL that holds scenarios as <name>/data/<split>; else the Hub."}
    )
    split: str = field(default="train", metadata={"help": "Split to train on."})
    validation_split: str = field(
        default="valid", metadata={"help": "Split to validate on; sources without one are not validated."}
    )
    seed: int = field(default=0, metadata={"help": "Weights, plan, jitter and augmentation follow from it."})
    max_steps: int = field(default=1000, metadata={"help": "Optimiser steps."})
    max_seconds: float | None = field(
        default=None,
        metadata={"help": "Train that long at most; the schedule follows the clock, so no run equals another."},
    )
    model_size: str = field(default="walrus-1.3b", metadata={"help": "tiny, half or walrus-1.3b."})
    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Start from these weights instead of random ones, with their geometry instead of a size's: a "
            "folder, walrus-nano, or a Hub repository."
        },
    )
    model: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Settings of WalrusConfig on top of the size's, in YAML."}
    )
    mode: Mode = field(default="balanced", metadata={"help": f"How work is shared out: {', '.join(MODES)}."})
    gradient_accumulation_steps: int = field(
        default=4, metadata={"help": "Micro-batches of each shard group in a step (their mean if variable)."}
    )
    batch_size: int = field(default=2, metadata={"help": "Windows of a plane in a micro-batch; volumes take half."})
    frames: int = field(
        default=6, metadata={"help": "Input frames of a plane; volumes take half (but in the mode variable)."}
    )
    stride_min: int = field(default=1, metadata={"help": "Smallest distance of a window's frames."})
    stride_max: int = field(default=5, metadata={"help": "Largest distance of a window's frames."})
    tokens: list[int] | None = field(
        default=None,
        metadata={
            "help": "Tokens along an axis, drawn from these for each step; volumes take as much less as in the "
            "configuration. The default is the configuration's own target."
        },
    )
    own_forecasts: float = field(
        default=0.0,
        metadata={
            "help": "Share of steps that start from the model's own forecasts, so that it learns to go on "
            "from its errors. None in the published recipe."
        },
    )
    own_steps: int = field(
        default=1,
        metadata={
            "help": "Most steps that these forecast before; drawn from 1 on. All windows are as many frames longer; "
            "distances that do not fit into a trajectory any more are left out."
        },
    )
    augment: bool = field(
        default=True, metadata={"help": "Rotate each batch; planes may come to stand anywhere in space."}
    )
    learning_rate: float = field(default=2e-4, metadata={"help": "Base learning rate."})
    weight_decay: float = field(default=1e-4, metadata={"help": "AdamW's."})
    max_grad_norm: float = field(default=10.0, metadata={"help": "Gradients are clipped to it."})
    muon: bool = field(default=False, metadata={"help": "Muon for the matrices of the blocks, AdamW for the rest."})
    ema_decay: float | None = field(
        default=None, metadata={"help": "Decay of an exponential average of the weights; it is validated and saved."}
    )
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Compute blocks again in the backward pass."})
    strategy: str | None = field(
        default=None, metadata={"help": f"Refuse to start unless this is in force: {', '.join(STRATEGIES)}."}
    )
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "latest, or the folder of a checkpoint."}
    )
    save_steps: int = field(default=1000, metadata={"help": "Steps between checkpoints."})
    keep_checkpoints: int = field(default=3, metadata={"help": "Older ones are removed."})
    validation_steps: int = field(
        default=1000, metadata={"help": "Steps between validations; 0 is none but at the end."}
    )
    validation_batches: int = field(default=8, metadata={"help": "Batches of each source in a validation."})
    log_with: list[str] | None = field(
        default=None,
        metadata={"help": "Trackers: trackio (the default, if installed), tensorboard, wandb, ..., or none."},
    )
    reader_error_limit: int = field(
        default=20, metadata={"help": "Micro-batches that could not be read before everybody stops."}
    )
    cache_bytes: int = field(default=2**30, metadata={"help": "Memory for frames, in each process."})
    blocks_in_memory: int = field(default=4, metadata={"help": "Blocks whose windows are mixed."})
    push_to_hub: str | None = field(
        default=None, metadata={"help": "Repository that the trained model is pushed to at the end."}
    )

    def __post_init__(self) -> None:
        for name, known in (("mode", MODES), ("model_size", ("tiny", "half", "walrus-1.3b"))):
            if vars(self)[name] not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, found {vars(self)[name]!r}")
        if self.strategy is not None and self.strategy not in STRATEGIES:
            raise ValueError(f"strategy: expected one of {', '.join(STRATEGIES)}, found {self.strategy!r}")
        if not isinstance(self.model, dict):
            raise ValueError(
                f"model: expected settings of WalrusConfig such as {{hidden_size: 64}}, found {self.model!r}; "
                "weights to start from are named by model_name_or_path, sizes by model_size"
            )
        if self.push_to_hub is not None:
            check_repository_name(self.push_to_hub)
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise ValueError(f"max_seconds: expected a time above 0, found {self.max_seconds}")
        if self.tokens is not None and not (self.tokens and min(self.tokens) >= 1):
            raise ValueError(f"tokens: expected one number or more, each at least 1, found {self.tokens}")
        if not 0 <= self.own_forecasts <= 1:
            raise ValueError(f"own_forecasts: expected a share between 0 and 1, found {self.own_forecasts}")
        least = {
            "max_steps": 1, "gradient_accumulation_steps": 1, "batch_size": 1, "frames": 2, "own_steps": 1,
            "save_steps": 1, "stride_min": 1, "keep_checkpoints": 1, "validation_batches": 1, "blocks_in_memory": 1,
            "reader_error_limit": 0, "seed": 0, "cache_bytes": 0, "validation_steps": 0,
        }  # fmt: skip
        if not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm: expected a norm above 0, found {self.max_grad_norm}")
        if not 0 <= self.learning_rate < math.inf:
            raise ValueError(f"learning_rate: expected a finite rate of at least 0, found {self.learning_rate}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay: expected a finite number of at least 0, found {self.weight_decay}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(
                f"ema_decay: expected a decay from 0, which keeps no average, to below 1, found {self.ema_decay}"
            )
        for name, bound in least.items():
            if vars(self)[name] < bound:
                raise ValueError(f"{name}: expected at least {bound}, found {vars(self)[name]}")
        if self.own_steps > 1 and not self.own_forecasts:
            raise ValueError(
                f"own_steps: expected own_forecasts above 0 beside it, found own_steps {self.own_steps} alone; set "
                "their share, such as own_forecasts 0.5, or leave own_steps out"
            )
        if self.stride_max < self.stride_min:
            raise ValueError(f"stride_max: expected at least stride_min={self.stride_min}, found {self.stride_max}")

    def config(self) -> WalrusConfig:
        """The geometry of the model to train.

        Raises:
            ValueError, FileNotFoundError: a `model_name_or_path` that holds no Walrus model; settings that there are
                not, or that make no sense.
        """
        unknown = set(self.model) - {setting.name for setting in dataclasses.fields(WalrusConfig)} - {ATTENTION}
        if unknown:
            raise ValueError(f"model: expected settings of WalrusConfig, found {', '.join(sorted(unknown))}")
        if self.model_name_or_path is not None:
            start = load_config(locate(self.model_name_or_path))
            return WalrusConfig(**{**start.to_dict(), **self.model})
        make: dict[str, Callable[..., WalrusConfig]] = {
            "tiny": WalrusConfig.tiny,
            "half": WalrusConfig.half,
            "walrus-1.3b": WalrusConfig,
        }
        return make[self.model_size](**self.model)

    def processor(self, config: WalrusConfig) -> WalrusProcessor:
        """What reads the sources and is saved with the model: its tokenization, and how the start's reads fields."""
        made = processor_for(config)
        if self.model_name_or_path is not None:
            start = WalrusProcessor.from_pretrained(locate(self.model_name_or_path))
            made.field_names, made.log_fields = start.field_names, start.log_fields
            made.global_scales, made.hold_scales = start.global_scales, start.hold_scales
        made.context_frames = self.frames
        made.context_frames_3d = micro_batch_shape(self.mode, True, self.batch_size, self.frames).frames
        made.hold_scales = made.hold_scales or self.own_forecasts > 0  # as own forecasts do in training
        return made

    def first_model(self, config: WalrusConfig) -> WalrusForPrediction:
        """With random weights, or those that training starts from, in float32.

        Raises:
            ValueError: weights of another geometry than the configuration's.
        """
        if self.model_name_or_path is None:
            return WalrusForPrediction(config)
        return load_model(locate(self.model_name_or_path), dtype=torch.float32, config=config)

    @property
    def extra_frames(self) -> int:
        """Of a window, for forecasts before the loss."""
        return self.own_steps if self.own_forecasts else 0


def parse_arguments(arguments: Sequence[str] | None = None) -> PretrainingArguments:
    """Settings from `--config FILE.yaml` and flags; a flag wins over the file.

    Raises:
        ValueError: unknown settings in the file, or values that make no sense.
        SystemExit: unknown flags, as argparse does it.
    """
    parser = HfArgumentParser(PretrainingArguments, conflict_handler="resolve")  # type: ignore[arg-type]
    parser.add_argument(  # instead of one that could read no dictionary
        "--model", type=_settings, default={}, help="Settings of WalrusConfig on top of the size's, in YAML."
    )
    parser.add_argument("--config", type=Path, help="YAML file with these settings.")
    given, _ = parser.parse_known_args(arguments)
    if given.config is not None:
        parser.set_defaults(**read_recipe(given.config))
    settings = vars(parser.parse_args(arguments))
    settings.pop("config")
    found = PretrainingArguments(**settings)
    if not found.sources:
        raise ValueError("sources: expected at least one, found none; name them in the recipe or with --sources A B")
    return found


def _settings(text: str) -> Any:
    """A flag in YAML; `ArgumentTypeError` for what is none."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"expected YAML, found {text!r} ({error.__class__.__name__})") from error


def read_recipe(path: Path) -> dict[str, Any]:
    """The settings of a YAML file."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: expected YAML, found {' '.join(str(error).split())}") from error
    known = {setting.name for setting in dataclasses.fields(PretrainingArguments)}
    if not isinstance(content, dict) or not set(content) <= known:
        found = sorted(set(content) - known) if isinstance(content, dict) else content
        raise ValueError(f"{path}: expected settings among {', '.join(sorted(known))}, found {found}")
    kinds = get_type_hints(PretrainingArguments)
    try:
        return {name: _typed(name, value, kinds[name]) for name, value in content.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _typed(name: str, value: Any, kind: Any) -> Any:
    """The value as a setting of that type; a single one where a list is expected is a list of one.

    YAML takes 3e-3 for a text, and users a whole number for a real one.
    """
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if value is None and NoneType in kinds:
        return None
    for option in kinds:
        if get_origin(option) is list:
            return [_typed(name, item, get_args(option)[0]) for item in (value if isinstance(value, list) else [value])]
        if option is float and type(value) in (int, float, str):
            with contextlib.suppress(ValueError):
                return float(value)
        wanted = {dict: dict, Literal: str}.get(get_origin(option), option)
        if type(value) is wanted:
            return value
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", NoneType: "nothing"}
    expected = " or ".join(
        words.get(option, "settings" if get_origin(option) is dict else "a text") for option in kinds
    )
    raise ValueError(f"{name}: expected {expected}, found {value!r}")
