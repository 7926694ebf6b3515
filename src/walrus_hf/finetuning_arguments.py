"""What `fit` is told."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from .adapters import DEFAULT_PRESET, lora_config, near_hint
from .finetuning_loop import Schedule

METHODS = ("lora", "full", "head")
LEARNING_RATES = {"lora": 1e-3, "full": 1e-4, "head": 1e-3}
OPTIONAL = ("frames", "validation_steps", "patience", "save_steps")  # numbers that may be None


def check_known(what: str, given: Iterable[str], owner: Any) -> None:
    """Refuse misspelt settings: the words of Python for them name no near one.

    Args:
        owner: a dataclass, or one's instance, that has the known ones.
    """
    known = [field.name for field in dataclasses.fields(owner)]
    for name in given:
        if name not in known:
            hint = near_hint(name, known)
            raise TypeError(f"{what}: expected known settings{hint}, found {name!r}")


@dataclasses.dataclass
class FinetuningArguments:
    """Settings of `fit`.

    Args:
        method: `"lora"` trains an adapter, `"full"` all weights, `"head"` the decoder.
        preset, rank: of [`lora_config`]; `lora` holds more settings of `LoraConfig`.
        max_steps: optimiser steps at most.
        batch_size: windows of a micro-batch, on each process.
        gradient_accumulation_steps: micro-batches of a step.
        learning_rate: None is 1e-3 for adapters and heads and 1e-4 for all weights (paper, B.2).
        frames: input frames, at least 2; None is the processor's context, or what the trajectories hold.
        frame_stride: distance of the frames; forecasts are then as far apart.
        field_names, log_fields: own names of fields, as in [`WalrusProcessor`].
        new_fields: own name -> a known field that it starts as, or None; for fields that the model does not know.
        normalization: `"sample"`, the scales of the given frames; `"global"`, RMS of the data to train on, stored in
            the processor; or the path of a `stats.yaml` that holds them, which does not go with own `log_fields`.
        rope_learnable: `"shared"` or `"per_axis"` makes the rotary frequencies learnable.
        absolute_position: learn an absolute position embedding for the data's grid (anisotropic domains).
        validation_steps: steps between validations; None is a twentieth of `max_steps`.
        validation_batches: batches of held-out windows in a validation, at most.
        patience: validations in a row without an improvement that end the run; None never ends it early.
        save_steps: steps between checkpoints; None is `validation_steps`.
        gradient_checkpointing: compute blocks again in the backward pass: less memory, a third more time.
        optimizer: `"adamw"`, or `"adamw-8bit"` (needs bitsandbytes).
        quantization: `"4bit"` loads the base in four bits (QLoRA; needs bitsandbytes, and the base by name). Tested on
            CPUs; this project has had no GPU to run either on.
        rollout_steps: lead times of the forecasts before and after.
        seed: everything that is drawn follows from it.
        resume: go on from the last checkpoint in the output folder, if there is one.
        overwrite: replace what a former run left in the output folder; its result stays until there is a new one.
    """

    method: str = "lora"
    preset: str = DEFAULT_PRESET
    rank: int = 16
    lora: dict[str, Any] = dataclasses.field(default_factory=dict)
    max_steps: int = 1000
    batch_size: int = 2
    gradient_accumulation_steps: int = 1
    learning_rate: float | None = None
    weight_decay: float = 1e-4
    max_grad_norm: float = 10.0
    frames: int | None = None
    frame_stride: int = 1
    field_names: dict[str, str] = dataclasses.field(default_factory=dict)
    log_fields: Sequence[str] = ()
    new_fields: dict[str, str | None] = dataclasses.field(default_factory=dict)
    normalization: str = "sample"
    rope_learnable: str | None = None
    absolute_position: bool = False
    validation_steps: int | None = None
    validation_batches: int = 16
    patience: int | None = 5
    save_steps: int | None = None
    gradient_checkpointing: bool = True
    optimizer: str = "adamw"
    quantization: str | None = None
    rollout_steps: int = 20
    seed: int = 0
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        choices = {
            "method": METHODS, "optimizer": ("adamw", "adamw-8bit"), "quantization": (None, "4bit"),
            "rope_learnable": (None, "shared", "per_axis"),
        }  # fmt: skip
        for name, known in choices.items():
            if vars(self)[name] not in known:
                raise ValueError(f"{name}: expected one of {', '.join(map(str, known))}, found {vars(self)[name]!r}")
        self._check_names()
        self._check_numbers()
        if self.method != "lora" and (self.lora or self.preset != DEFAULT_PRESET or self.rank != type(self).rank):
            raise ValueError(
                f"preset, rank, lora: expected method 'lora' beside them, found {self.method!r}, which trains no "
                "adapter; leave them out"
            )
        if self.quantization and self.method != "lora":
            raise ValueError(
                f"quantization: expected method 'lora', found {self.method!r}; other weights need all bits"
            )

    def _check_names(self) -> None:
        """What stands for names of fields or settings is of the right kind, and settings of LoRA exist."""
        if isinstance(self.log_fields, str):
            raise ValueError(
                f"log_fields: expected a list of names such as [{self.log_fields!r}], found {self.log_fields!r}"
            )
        for name in ("lora", "field_names", "new_fields"):
            if not isinstance(vars(self)[name], Mapping):
                raise ValueError(f"{name}: expected a dictionary, found {vars(self)[name]!r}")
        if self.lora:
            check_known("lora", self.lora, lora_config())

    def _check_numbers(self) -> None:
        least = {
            "rank": 1, "max_steps": 1, "batch_size": 1, "gradient_accumulation_steps": 1, "frames": 2,
            "frame_stride": 1, "validation_steps": 1, "validation_batches": 1, "patience": 1, "save_steps": 1,
            "rollout_steps": 1, "seed": 0,
        }  # fmt: skip
        for name, bound in least.items():
            value = vars(self)[name]
            if value is None and name in OPTIONAL:
                continue
            if not isinstance(value, Integral) or isinstance(value, bool) or value < bound:
                raise ValueError(f"{name}: expected a whole number of at least {bound}, found {value!r}")
        rate = 1.0 if self.learning_rate is None else self.learning_rate
        for name, value in (("learning_rate", rate), ("max_grad_norm", self.max_grad_norm)):
            if not isinstance(value, Real) or not value > 0:
                raise ValueError(f"{name}: expected a number above 0, found {value!r}")
        if not isinstance(self.weight_decay, Real) or not self.weight_decay >= 0:
            raise ValueError(f"weight_decay: expected a number of at least 0, found {self.weight_decay!r}")

    def schedule(self) -> Schedule:
        every = self.validation_steps or max(1, self.max_steps // 20)
        return Schedule(
            self.max_steps, self.batch_size, self.gradient_accumulation_steps, self.max_grad_norm, every,
            self.validation_batches, self.patience, self.save_steps or every, self.seed,
        )  # fmt: skip

    @property
    def rate(self) -> float:
        """The learning rate that is used."""
        return LEARNING_RATES[self.method] if self.learning_rate is None else self.learning_rate

    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to go on where it stopped, as JSON values."""
        free = ("resume", "overwrite", "save_steps")
        return json.loads(json.dumps({name: value for name, value in vars(self).items() if name not in free}))
