"""Fine-tuning: `fit(pipeline, "my_simulations/")` returns a new pipeline, and leaves the given one as it is.

base + extension (new fields, learnable positions) -> adapter, head or all weights -> loop -> best weights -> folder
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedType
from torch import nn

from .adapter_files import AdapterRecord, fingerprint
from .adapters import Extension, add_fields, bare_model, configs_of, join_columns, lora_config, without_deprecations
from .checkpoints import locate
from .data.statistics import read_stats
from .finetuning_arguments import FinetuningArguments, check_known
from .finetuning_data import (
    Opened,
    Source,
    Windows,
    check_fields,
    global_scales,
    has_split,
    named_processor,
    open_data,
    scales_of,
    split_windows,
    vocabulary_names,
)
from .finetuning_loop import Tuning
from .finetuning_results import CHECKPOINTS, Rollouts, check_folder, clear_folder, write_results
from .layers import WalrusDropPath
from .modeling_walrus import WalrusForPrediction
from .pipeline_walrus import WalrusPipeline
from .processing_walrus import WalrusProcessor
from .strides import is_volume
from .training.topology import check_processes

__all__ = ["FinetuningArguments", "add_fields", "fit", "lora_config"]

COMPARED = 4  # held-out trajectories that are forecast before and after


def fit(
    model: WalrusPipeline | WalrusForPrediction | str | os.PathLike,
    data: Source,
    output_dir: str | os.PathLike | None = None,
    validation: Source | None = None,
    **settings: Any,
) -> WalrusPipeline:
    """Fine-tune on simulations; under `accelerate launch` all processes call it.

    Args:
        model: what to start from; it is not changed. A folder or Hub id saves the memory of a copy.
        data: a file, folder or URL of The Well's format, a scenario's name, netCDF, a YAML file that describes `.npy`
            arrays, or trajectories.
        output_dir: folder for the result, checkpoints, metrics, a card and pictures; None keeps nothing.
        validation: data to validate on; None takes the split `valid` of `data`, or holds out a tenth of its
            trajectories.
        **settings: of [`FinetuningArguments`].

    Returns:
        A new pipeline with the best weights found; `WalrusPipeline.from_pretrained(output_dir)` gives the same. Of a
        run that a signal stopped, the state it was stopped in, which is not saved as a result.

    Raises:
        ValueError: settings or data that cannot be used; fields that the model does not know, with near ones; a NaN,
            with file and place.
        TypeError: unknown settings, with near ones.
        FileExistsError: the output folder holds something else than a run that `resume` or `overwrite` is for.
    """
    check_known("fit", settings, FinetuningArguments)
    given = FinetuningArguments(**settings)
    _require_bitsandbytes(given)
    folder = None if output_dir is None else Path(output_dir)
    accelerator = Accelerator(step_scheduler_with_optimizer=False)
    has_old = _check_start(accelerator, folder, given)
    pipe, base_name = _own_copy(model, given, accelerator.device)
    if folder is not None:
        _check_base(folder, base_name, given)
    data_parts = _open_parts(copy.deepcopy(pipe.processor), data, validation, given)
    base = fingerprint(pipe.model)
    model_to_train, record = _prepare_model(pipe, data_parts, base_name, base, given)
    identity = given.identity() | {"base": _digest(base), "processes": accelerator.num_processes}
    tuning, rollout = _prepare_run(accelerator, model_to_train, data_parts, folder, given, identity)
    result = WalrusPipeline(model_to_train, data_parts.processor, record, base=None if record is None else pipe)
    if not (given.resume and tuning.resume()):
        tuning.progress.notes["before"] = rollout.errors(accelerator, result)
        if has_old and folder is not None:
            _make_room(accelerator, folder)
    progress = tuning.run()
    if not progress.stopped:
        progress.notes["after"] = rollout.errors(accelerator, result)
        if given.method == "head":
            join_columns(result.model)
        if folder is not None and accelerator.is_main_process:
            write_results(folder, result, tuning, rollout, base_name, data_parts.opened.name, given)
    accelerator.wait_for_everyone()
    result.model.eval()
    return result


def _digest(found: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def _check_start(accelerator: Accelerator, folder: Path | None, given: FinetuningArguments) -> bool:
    """Every process checks how it was launched and the output folder, before one of them changes anything in it.

    Returns:
        Whether a former run has to make room.
    """
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ValueError(
            f"fit: expected processes that hold the whole model each, found {accelerator.distributed_type.value}; "
            "launch it with examples/accelerate_configs/ddp.yaml"
        )
    check_processes(accelerator)
    has_old = check_folder(folder, given)
    accelerator.wait_for_everyone()
    return has_old


def _check_base(folder: Path, base_name: str, given: FinetuningArguments) -> None:
    """An output folder must leave its base alone, and an adapter needs one that can be found again."""
    base = Path(locate(base_name)) if base_name else None
    if base is not None and base.is_dir() and folder.is_dir() and folder.samefile(base):
        raise ValueError(
            f"{folder}: expected another folder than the model's own, which is never changed, found that one; choose "
            "another output_dir (--output)"
        )
    if given.method == "lora" and base is None:
        raise ValueError("output_dir: an adapter names its base, but this model was not loaded from anywhere; save it "
                         "with save_pretrained and load it, or give its folder as `model`")  # fmt: skip


def _make_room(accelerator: Accelerator, folder: Path) -> None:
    """Not before settings, model and data have shown that they can be used: a typo must not cost a former run."""
    if accelerator.is_main_process:
        clear_folder(folder)
    accelerator.wait_for_everyone()


@dataclasses.dataclass
class Parts:
    """The data of a run, read through one processor.

    Attributes:
        trained, held: windows, and the numbers of those that are used.
        new_names: of the vocabulary, with the known names they start as.
    """

    opened: Opened
    opened_held: Opened
    processor: WalrusProcessor
    new_names: dict[str, str | None]
    frames: int
    own_validation: bool

    def windows(self, given: FinetuningArguments, eps: float) -> tuple[Windows, np.ndarray, Windows, np.ndarray]:
        """Windows to train on, windows to validate on, with global scales in the processor where those are wanted."""
        windows = self.opened.windows(self.frames, given.frame_stride, self.processor)
        trained, held = np.arange(len(windows.rows)), np.arange(0)
        if not self.own_validation:
            trained, held = split_windows(windows)
        if given.normalization != "sample":
            self.processor.global_scales = _scales(windows, trained, given, eps)
            windows = self.opened.windows(self.frames, given.frame_stride, self.processor)
        if not self.own_validation:
            return windows, trained, windows, held
        others = self.opened_held.windows(self.frames, given.frame_stride, self.processor)
        return windows, trained, others, np.arange(len(others.rows))


def _own_copy(model: Any, given: FinetuningArguments, device: torch.device) -> tuple[WalrusPipeline, str]:
    """A pipeline that may be changed, and the name of the base for its adapter."""
    if isinstance(model, str | os.PathLike):
        name = os.fspath(model)
        if given.quantization:
            pipe = _load_quantized(name, device)
        else:
            pipe = WalrusPipeline.from_pretrained(name, device="cpu")
    elif given.quantization:
        raise ValueError(
            "quantization: expected the folder or Hub id of the base, found a model that is loaded already"
        )
    else:
        pipe = model if isinstance(model, WalrusPipeline) else WalrusPipeline(model)
    if not isinstance(pipe.model, WalrusForPrediction):
        raise ValueError(
            "model: expected one without an adapter; merge it first (WalrusPipeline.merge_adapter) and save it"
        )
    if pipe is model or not isinstance(model, str | os.PathLike):
        pipe = WalrusPipeline(copy.deepcopy(pipe.model), copy.deepcopy(pipe.processor))
    name = pipe.model.name_or_path
    return pipe, str(Path(name).absolute()) if name and Path(name).exists() else name


def _load_quantized(name: str, device: torch.device) -> WalrusPipeline:
    """The base in four bits, as QLoRA wants it (arXiv 2305.14314)."""
    from bitsandbytes.nn import Linear4bit
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )  # fmt: skip
    folder = locate(name)
    model = WalrusForPrediction.from_pretrained(folder, quantization_config=settings, device_map={"": device})
    model.name_or_path = name
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # Packed for a CPU at the first evaluation, a layer would pass no gradient on ever after (0.50).
            module.support_avx512bf16_for_cpu = False
    return WalrusPipeline(model, WalrusProcessor.from_pretrained(folder))


def _require_bitsandbytes(given: FinetuningArguments) -> None:
    for name, setting in (("quantization", given.quantization), ("optimizer", given.optimizer)):
        if setting in ("4bit", "adamw-8bit") and find_spec("bitsandbytes") is None:
            raise ImportError(
                f"{name}: {setting} needs bitsandbytes (on a CPU 0.50 or newer): pip install bitsandbytes"
            )


def _open_parts(
    processor: WalrusProcessor, data: Source, validation: Source | None, given: FinetuningArguments
) -> Parts:
    opened = open_data(data)
    if validation is None and has_split(data, "valid"):
        held = open_data(data, "valid")
    else:
        held = opened if validation is None else open_data(validation, "valid")
    own = held is not opened
    processor = named_processor(processor, opened, given.field_names, given.log_fields)
    _check_stats_file(processor, opened, given)
    names = vocabulary_names(given.new_fields, opened.template, processor)
    old = processor.field2id
    processor.field2id = {**old, **{name: len(old) + i for i, name in enumerate(names)}}
    for part in (opened, held):
        check_fields(processor, part.template, part.name)
    processor.trained_stride = given.frame_stride
    volume = is_volume(opened.template.grid)
    context = processor.most_frames(opened.template.grid)
    shortest = min(length for part in (opened, held) for _, length in part.lengths)
    frames = given.frames or max(2, min(context, (shortest - 1) // given.frame_stride))
    processor.context_frames, processor.context_frames_3d = (
        (processor.context_frames, frames) if volume else (frames, processor.context_frames_3d)
    )
    return Parts(opened, held, processor, names, frames, own)


def _prepare_model(
    pipe: WalrusPipeline, parts: Parts, base_name: str, base: dict[str, Any], given: FinetuningArguments
) -> tuple[Any, AdapterRecord | None]:
    """The model with what is added to it, and with gradients asked for where it is to learn."""
    model, template = pipe.model, parts.opened.template
    shape = None
    if given.absolute_position:
        shape = parts.processor.plan(template.grid, template.boundary_conditions, jitter=None, seed=0).tokens
    extension = Extension(parts.new_names, given.rope_learnable, shape)
    torch.manual_seed(given.seed)  # PEFT draws the adapter
    added = extension.apply(model, separate=given.method != "full")
    for config in configs_of(model):
        config.drop_path_rate = 0.0  # as the published fine-tuning
    for module in model.modules():
        if isinstance(module, WalrusDropPath):
            module.drop_prob = 0.0
    if given.gradient_checkpointing:
        with without_deprecations():
            model.gradient_checkpointing_enable({"use_reentrant": False})
    if given.method != "lora":
        model.requires_grad_(given.method == "full")
        if given.method == "head":
            model.decoder.requires_grad_(True)
            for name, module in model.named_modules():
                if name.rpartition(".")[2] in added:
                    module.requires_grad_(True)
        _freeze_unreached(model, template)
        return model, None
    from peft import get_peft_model, prepare_model_for_kbit_training

    if given.quantization:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    saved = [*given.lora.get("modules_to_save", ()), *added]
    others = {name: value for name, value in given.lora.items() if name != "modules_to_save"}
    config = lora_config(given.preset, given.rank, **others, modules_to_save=saved or None)
    bare_model(model).name_or_path = base_name  # PEFT takes it from there
    config.revision = vars(model.config).get("_commit_hash")
    with without_deprecations():
        adapted: Any = get_peft_model(model, config)
    _freeze_unreached(adapted, template)
    return adapted, AdapterRecord(extension, base)


def _freeze_unreached(model: nn.Module, template: Any) -> None:
    """Encoder and decoder of volumes get no gradient from planes, and the other way round."""
    unreached = "planar" if is_volume(template.grid) else "volumetric"
    bare = bare_model(model)
    for ends in (bare.model.embeddings, bare.decoder):
        for name, parameter in ends.named_parameters():
            if unreached in name.split("."):
                parameter.requires_grad_(False)


def _prepare_run(
    accelerator: Accelerator, model: Any, parts: Parts, folder: Path | None, given: FinetuningArguments,
    identity: dict[str, Any],
) -> tuple[Tuning, Rollouts]:  # fmt: skip
    windows, trained, held_windows, held = parts.windows(given, bare_model(model).config.scale_eps)
    optimizer = _optimizer(model, given)
    # A run that is resumed draws the same windows of the same data.
    identity |= {
        name: _digest({**opened.identity(), "windows": np.bincount(part.rows[:, 0]).tolist()})
        for name, opened, part in (
            ("data", parts.opened, windows),
            ("validation", parts.opened_held, held_windows),
        )
    }
    checkpoints = None if folder is None else folder / CHECKPOINTS
    tuning = Tuning(
        accelerator, model, optimizer, windows, trained, (held_windows, held), given.schedule(), checkpoints,
        identity,
    )  # fmt: skip
    owners = held_windows.rows[held, 0]
    numbers = sorted(set(owners.tolist()))[:COMPARED]
    first = [int(held_windows.rows[held[owners == number], 1].min()) for number in numbers]
    return tuning, Rollouts(held_windows, numbers, first, given.rollout_steps)


def _optimizer(model: nn.Module, given: FinetuningArguments) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if given.optimizer == "adamw":
        return torch.optim.AdamW(parameters, given.rate, eps=1e-10, weight_decay=given.weight_decay)
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(parameters, given.rate, weight_decay=given.weight_decay)


def _scales(windows: Windows, trained: np.ndarray, given: FinetuningArguments, eps: float) -> dict[str, Any]:
    if given.normalization == "global":
        return global_scales(windows, trained, eps)
    return scales_of(read_stats(given.normalization), eps)


def _check_stats_file(processor: WalrusProcessor, opened: Opened, given: FinetuningArguments) -> None:
    """Refuse a stats.yaml that is not there, or holds the scales of something else than what the model reads."""
    if given.normalization in ("sample", "global"):
        return
    path = Path(given.normalization)
    if not path.is_file():
        raise ValueError(
            f"normalization: expected 'sample', 'global' or the path of a stats.yaml, found {given.normalization!r}"
        )
    if given.frame_stride != 1:
        raise ValueError(
            f"normalization: {path} holds changes from frame to frame, but frame_stride is {given.frame_stride}; take "
            "'global', which measures them at that distance"
        )
    # Of a published scenario `walrus-hf data stats` takes the logarithms itself.
    known = () if opened.scenario is None else opened.scenario.log_fields
    logs = [name for name in processor.log_fields if name in opened.template.fields and name not in known]
    if logs:
        raise ValueError(
            f"normalization: {path} holds scales of values as they are, but the model reads the logarithm of "
            f"{', '.join(logs)} (log_fields); take 'global', which measures that"
        )
