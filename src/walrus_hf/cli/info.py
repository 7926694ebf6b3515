"""`walrus-hf info`: versions, device, a model's size, and what a grid costs."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import Device, Revision, Tokens

PACKAGES = (
    "walrus-hf",
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "peft",
    "h5py",
    "numpy",
    "xarray",
    "exponax",
)


def info(
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Checkpoint or adapter: folder, walrus-nano, or Hub. Default: 1.3B."),
    ] = None,
    grid: Annotated[str | None, typer.Option(help="Cells along each axis, e.g. 256x256 or 64x64x64.")] = None,
    boundaries: Annotated[
        str, typer.Option(help="wall, open or periodic: one for all axes, or one an axis, e.g. periodic,wall/open.")
    ] = "periodic",
    frames: Annotated[
        int | None,
        typer.Option(min=1, help="Input frames. Default: those of the checkpoint; of 1.3B 6, for volumes 3."),
    ] = None,
    channels: Annotated[int, typer.Option(min=1, help="Fields, each component of a vector counted.")] = 4,
    tokens_per_axis: Tokens = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Time and memory of a forecast of so many frames on --grid.")
    ] = None,
    finetune: Annotated[
        str | None, typer.Option(help="Memory of a fine-tuning step on --grid too: lora, full or head.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Of the adapter, for --finetune lora, as of walrus-hf finetune.")
    ] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Of the adapter, for --finetune lora. Default: 16.")] = None,
    revision: Revision = None,
    device: Device = None,
) -> None:
    """Show versions, device, parameter count, and for a grid its tokens, memory and time a step."""
    import torch

    from ..adapters import DEFAULT_PRESET, preset_name
    from ..configuration_walrus import WalrusConfig
    from ..loading import processor_for, usable_device
    from ..modeling_walrus import WalrusForPrediction

    if finetune is not None and (finetune not in ("lora", "full", "head") or grid is None):
        raise ValueError(f"--finetune: expected lora, full or head, and a --grid, found {finetune!r} and {grid!r}")
    for flag, value in (("--preset", preset), ("--rank", rank)):
        if value is not None and finetune != "lora":
            raise ValueError(f"{flag}: expected together with --finetune lora, found {finetune!r}")
    preset = preset_name(preset or DEFAULT_PRESET)
    if steps is not None and grid is None:
        raise ValueError(f"--steps: expected a --grid beside it, found {steps} alone")
    target = usable_device(device)
    config, adapter, own = WalrusConfig(), "", 0
    processor = processor_for(config)
    if model is not None:
        config, processor, adapter, own = _described(model, revision)
    plan = None
    if grid is not None:
        cells = _parse_grid(grid)
        plan = processor.plan(cells, _parse_boundaries(boundaries, len(cells)), tokens_per_axis, seed=0)
    _print_versions(target)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in WalrusForPrediction(config).parameters())
    typer.echo(
        f"\n{model or 'Walrus 1.3B (no checkpoint given)'}: {adapter}{parameters:,} parameters, "
        f"{config.num_hidden_layers} layers of width {config.hidden_size}, {config.vocab_size} names; "
        f"{4 * parameters / 2**30:.2f} GiB in float32, {2 * parameters / 2**30:.2f} GiB in bfloat16"
    )
    if plan is not None:
        typer.echo(f"\n{grid}: {plan}")
        frames = frames or processor.most_frames(cells)
        _print_costs(config, plan, frames, channels, parameters + own, steps, target)
        if finetune is not None:
            _print_finetuning(config, plan, frames, channels, finetune, preset, rank or 16)


def _described(model: str, revision: str | None) -> tuple[Any, Any, str, int]:
    """Configuration and processor of a checkpoint, or of an adapter with its base, which is told in words and size."""
    from ..adapter_files import adapter_config, adapter_folder
    from ..checkpoints import locate
    from ..hub import count_parameters
    from ..loading import load_config, load_processor

    name = locate(model)
    folder = adapter_folder(name, revision)
    if folder is None:
        return load_config(name, revision or "main"), load_processor(name, revision or "main"), "", 0
    adapter, own = adapter_config(folder), count_parameters(folder)
    base, of_base = locate(adapter.base_model_name_or_path), adapter.revision or "main"
    config = load_config(base, of_base)
    with_processor = (folder / "preprocessor_config.json").is_file()
    processor = load_processor(str(folder), "main") if with_processor else load_processor(base, of_base)
    return config, processor, _adapter_text(folder, adapter, own), own


def _adapter_text(folder: Path, adapter: Any, parameters: int) -> str:
    """What an adapter is and adds, up to the words that describe its base."""
    from ..adapter_files import read_record

    record, rank = read_record(folder), getattr(adapter, "r", None)
    variants = [name for name in ("DoRA", "rsLoRA") if getattr(adapter, f"use_{name.lower()}", False)]
    kind = f"{adapter.peft_type.value} adapter{' of rank ' + str(rank) if rank else ''}"
    fields = list(record.extension.new_fields) if record is not None else []
    return (
        f"{kind}{' (' + ', '.join(variants) + ')' if variants else ''}, {parameters:,} parameters of its own"
        f"{', new fields ' + ', '.join(fields) if fields else ''}; "
        f"{'any other base than its own is refused' if record is not None else 'no record of its base'}\n"
        f"{adapter.base_model_name_or_path}, its base: "
    )


def _print_versions(device) -> None:
    import torch

    for package in PACKAGES:
        try:
            typer.echo(f"{package:14} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            typer.echo(f"{package:14} not installed")
    kind = f"{platform.machine()}, {torch.get_num_threads()} threads"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else kind
    typer.echo(f"{'python':14} {platform.python_version()}\n{'device':14} {device} ({name})")


def _print_costs(config, plan, frames: int, channels: int, parameters: int, steps: int | None, device) -> None:
    from ..bench.flops import forward_flops
    from ..bench.prediction import fitted, forecast_bytes, measure_rates, step_seconds, step_work

    flops = forward_flops(config, plan, frames, channels, frames_to_keep=1)
    total, coefficients, rates = sum(flops.values()), fitted(), measure_rates(device)
    seconds = step_seconds(step_work(config, plan, frames, channels, rates), coefficients)
    typer.echo(
        f"one forecast step from {frames} frames of {channels} fields, in float32:\n"
        f"  {total / 1e9:,.0f} GFLOP ({', '.join(f'{part} {100 * n / total:.0f}%' for part, n in flops.items())})\n"
        f"  about {seconds:.3g} s at what this device does now: {rates.matmul / 1e9:,.0f} GFLOP/s in matrix products, "
        f"{rates.copy / 1e9:,.1f} GB/s in copies{'' if device.type == 'cpu' else ' (fitted on a CPU)'}"
    )
    memory = forecast_bytes(config, plan, frames, channels, parameters, steps or 1, coefficients)
    parts = ", ".join(f"{part} {size / 2**30:.2f}" for part, size in memory.items())
    if steps is not None:
        typer.echo(f"a forecast of {steps} steps:\n  about {steps * seconds:.3g} s, and a while to load")
    typer.echo(f"  about {sum(memory.values()) / 2**30:.2f} GiB: {parts}")


def _print_finetuning(config, plan, frames: int, channels: int, method: str, preset: str, rank: int) -> None:
    from ..finetuning_memory import LIBRARIES, finetuning_bytes

    found = finetuning_bytes(config, plan, frames, channels, method, preset, rank)
    trained = found.pop("trained")
    parts = ", ".join(f"{part} {size / 2**30:.2f}" for part, size in found.items())
    what = f"{method}, {preset} of rank {rank}" if method == "lora" else method
    typer.echo(
        f"one fine-tuning step ({what}, batch 1, gradient checkpointing), in float32:\n"
        f"  {trained:,} parameters trained\n"
        f"  about {(sum(found.values()) + LIBRARIES) / 2**30:.2f} GiB: {parts}, libraries {LIBRARIES / 2**30:.2f}"
    )


def _parse_grid(grid: str) -> list[int]:
    try:
        cells = [int(n) for n in grid.lower().split("x")]
    except ValueError:
        cells = []
    if not 1 <= len(cells) <= 3:
        raise ValueError(f"--grid: expected the cells of 1 to 3 axes such as 256x256, found {grid!r}")
    return cells


def _parse_boundaries(text: str, axes: int) -> dict[str, tuple[str, str]]:
    sides = [part.strip().split("/") for part in text.split(",")]
    sides = sides * axes if len(sides) == 1 else sides
    if len(sides) != axes or any(len(pair) > 2 for pair in sides):
        raise ValueError(
            f"--boundaries: expected one kind for all axes, or one for each of {axes} with commas, found {text!r}"
        )
    return {axis: (pair[0], pair[-1]) for axis, pair in zip("xyz", sides)}
