"""Checkpoints that are complete or not there: written aside, verified, moved into place, old ones pruned afterwards.

    output_dir/step-00001000/training_state.json   step, world, files with their sizes, and the loop's own state
                             model.safetensors     or pytorch_model_fsdp_0/ in shards, and the optimiser alike
                             scheduler.bin, random_states_<rank>.pkl
                             averages/             where running averages are kept
    output_dir/tmp-00001200/                       being written, or left by a crash: never read, removed at a save
    output_dir/tmp-replaced-step-00001000/         makes room for one of the same step: counts until that is in place

The loop's state is the same on all ranks and holds JSON values only. Accelerate's `register_for_checkpointing` is not
used: it keeps rank 0's object and gives it to every rank.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from torch import Tensor, nn

from .optim import fill_state
from .records import METRICS_FILE

STATE_FILE = "training_state.json"
AVERAGES = "averages"
FORMAT = 3
# What a save that was killed leaves behind.
TEMPORARY = re.compile(r"tmp-\d+|tmp-(replaced|pruned)-step-\d+")
REPLACED = "tmp-replaced-"


def save_checkpoint(
    accelerator: Accelerator,
    folder: str | os.PathLike,
    step: int,
    state: Mapping[str, Any],
    keep: int = 3,
    averages: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write `folder/step-<step>`; all ranks call it at the same step.

    Args:
        folder: on a file system that all nodes share.
        step: optimiser steps done.
        state: seed, cost table, states of the guards, ...: JSON values, the same on all ranks.
        keep: complete checkpoints to keep, this one included; older ones are removed once this one is in place.
        averages: `ExponentialAverage.state_dict()`.

    Returns:
        The folder of the checkpoint.

    Raises:
        ValueError: state that JSON would change, or that differs between ranks; before anything is written.
        RuntimeError: called inside an accumulation window.
        OSError: a file is missing or has another size than was written; older checkpoints are untouched.
    """
    folder, name = Path(folder), f"{step:08d}"
    _check_state(state, "state")
    if keep < 1:
        raise ValueError(f"keep: expected at least 1, found {keep}")
    if not accelerator.sync_gradients:
        raise RuntimeError("save_checkpoint: gradients are being accumulated; save after the optimiser step")
    _check_same(accelerator, step, state)  # waits for all ranks, too
    temporary = folder / f"tmp-{name}"
    if accelerator.is_main_process:
        for leftover in folder.glob("tmp-*"):
            if leftover.is_dir() and TEMPORARY.fullmatch(leftover.name):  # others are somebody's own
                final = _place_of_replaced(leftover)
                if final is None or final.exists():
                    shutil.rmtree(leftover)
                else:
                    os.rename(leftover, final)  # it may be the only one
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    if not temporary.is_dir():
        raise OSError(f"{temporary}: rank 0 has made this folder, rank {accelerator.process_index} does not see it; "
                      f"give an output folder on a file system that all nodes share")  # fmt: skip
    _save_state(accelerator, temporary)
    if averages is not None:
        with _one_process_is_fine():
            dcp.save(dict(averages), checkpoint_id=temporary / AVERAGES)
    accelerator.wait_for_everyone()
    final = folder / f"step-{name}"
    if accelerator.is_main_process:
        _write_manifest(accelerator, temporary, step, state, _next_number(folder))
        _commit(temporary, final)
        _prune(folder, keep)
    accelerator.wait_for_everyone()
    return final


def refuse_other_run(folder: Path) -> None:
    """`FileExistsError` where a run is at home that a new one would replace."""
    steps, metrics = _step_folders(folder), folder / METRICS_FILE
    if steps or (metrics.is_file() and metrics.stat().st_size):
        found = steps[-1].name if steps else metrics.name
        raise FileExistsError(
            f"{folder}: expected an output folder without a run, found {found}; go on with it "
            "(resume_from_checkpoint: latest), or give another output_dir"
        )


def load_checkpoint(
    accelerator: Accelerator, path: str | os.PathLike, averages: Mapping[str, Tensor] | None = None
) -> dict[str, Any]:
    """Load model, optimiser and schedule that were given to `accelerator.prepare`, and return the loop's state.

    The number of processes may differ from the one that saved. Random states belong to ranks, so only a world of the
    same size finds all of them again.

    Args:
        averages: `ExponentialAverage.state_dict()`, filled in place.

    Returns:
        What was given as `state`, and `step`.

    Raises:
        FileNotFoundError, ValueError: no checkpoint, a damaged one, one of another strategy or another model.
    """
    path = Path(path)
    manifest = verify_checkpoint(path)
    strategy = _strategy(accelerator)
    if manifest["strategy"] != strategy:
        raise ValueError(
            f"{path}: was written by a run with {manifest['strategy']}, this one has {strategy}; launch it as that "
            f"one, or start a new run from the saved model"
        )
    if averages is not None and not (path / AVERAGES).is_dir():
        raise ValueError(f"{path}: holds no running averages; resume without them")
    try:
        _load_state(accelerator, path)
        if averages is not None:
            with _one_process_is_fine():
                dcp.load(dict(averages), checkpoint_id=path / AVERAGES)
    except (RuntimeError, KeyError, ValueError, FileNotFoundError, dcp.CheckpointException) as error:
        cause = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{path}: does not fit this model and optimiser, resume with the settings it was written with; {cause}"
        ) from error
    return {**manifest["state"], "step": manifest["step"]}


def resolve(resume_from: str | os.PathLike, output_dir: str | os.PathLike) -> Path | None:
    """The checkpoint that `--resume_from_checkpoint latest|PATH` means; None where `latest` finds no checkpoint yet.

    Raises:
        FileNotFoundError, ValueError: a path without a complete checkpoint; `latest` where all checkpoints are damaged,
            since starting anew would throw a run away.
    """
    if os.fspath(resume_from) != "latest":
        path = Path(resume_from)
        verify_checkpoint(path)
        return path
    latest = latest_checkpoint(output_dir)
    damaged = _step_folders(Path(output_dir))
    if latest is None and damaged:
        verify_checkpoint(damaged[-1])
    return latest


def latest_checkpoint(folder: str | os.PathLike) -> Path | None:
    """The complete checkpoint that was written last, or None.

    That is not always the highest step: after going back to an earlier checkpoint, the newer timeline counts.
    """
    complete = _complete(Path(folder))
    return complete[-1] if complete else None


def verify_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """The manifest of a checkpoint whose files are all there, with the sizes that were written.

    Raises:
        FileNotFoundError: no such folder, or not a checkpoint.
        ValueError: an unreadable manifest, or files that are missing or cut short.
    """
    path = Path(path)
    file = path / STATE_FILE
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: expected the folder of a checkpoint, found none; `latest` finds the last one")
    if not file.is_file():
        raise FileNotFoundError(f"{path}: expected {STATE_FILE}, found none; the checkpoint is incomplete, use another")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        found, sizes = manifest["format"], dict(manifest["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: expected the manifest of a checkpoint, found {error}; use another one") from error
    if found != FORMAT:
        raise ValueError(
            f"{file}: expected format {FORMAT}, found {found!r}; use the version of the package that wrote it"
        )
    for name, size in sizes.items():
        actual = (path / name).stat().st_size if (path / name).is_file() else None
        if actual != size:
            raise ValueError(
                f"{path / name}: expected {size} bytes, found {'no file' if actual is None else actual}; "
                f"the checkpoint is damaged, use another one"
            )
    return manifest


def _write_manifest(accelerator: Accelerator, folder: Path, step: int, state: Mapping[str, Any], number: int) -> None:
    """List the files of a finished checkpoint, after checking that nothing is missing, and sync them to disk."""
    sizes = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        _sync(file)
        sizes[file.relative_to(folder).as_posix()] = file.stat().st_size
    # Accelerate passes over a missing random state in silence.
    required = [f"random_states_{rank}.pkl" for rank in range(accelerator.num_processes)]
    absent = [name for name in required if not sizes.get(name)]
    if absent:
        raise OSError(f"{folder}: rank 0 misses {absent[0]}; is the output folder shared by all nodes, and not full?")
    manifest = {
        "format": FORMAT, "number": number, "step": step, "strategy": _strategy(accelerator),
        "processes": accelerator.num_processes, "files": sizes, "state": state,
    }  # fmt: skip
    file = folder / STATE_FILE
    file.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    _sync(file)
    verify_checkpoint(folder)


def _commit(temporary: Path, final: Path) -> None:
    """Move a verified checkpoint into place; one of the same step, from before a restart, makes room.

    Whoever is killed between the two moves finds the older one under its other name (`_step_folders`).
    """
    replaced = final.with_name(REPLACED + final.name)
    if final.exists():
        os.rename(final, replaced)
    os.rename(temporary, final)
    _sync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _prune(folder: Path, keep: int) -> None:
    """Remove complete checkpoints but the last `keep`; damaged ones are left to their owner."""
    for path in _complete(folder)[:-keep]:
        # Renamed first: half removed, it must not look like a damaged checkpoint.
        doomed = path.with_name(f"tmp-pruned-{path.name}")
        os.rename(path, doomed)
        shutil.rmtree(doomed)


def _complete(folder: Path) -> list[Path]:
    """Checkpoints that pass verification, in the order in which they were written."""
    found = []
    for path in _step_folders(folder):
        try:
            found.append((verify_checkpoint(path)["number"], path))
        except (FileNotFoundError, ValueError):
            continue
    return [path for _, path in sorted(found)]


def _step_folders(folder: Path) -> list[Path]:
    """Also what made room for a checkpoint that never came."""
    places = {path: _place_of_replaced(path) for path in folder.glob(f"{REPLACED}step-*")}
    left = [path for path, place in places.items() if place is not None and not place.exists()]
    return sorted(path for path in [*folder.glob("step-*"), *left] if path.is_dir())


def _place_of_replaced(path: Path) -> Path | None:
    """Where a checkpoint was that made room; None for other folders."""
    name = path.name.removeprefix(REPLACED)
    return path.with_name(name) if name != path.name else None


def _next_number(folder: Path) -> int:
    complete = _complete(folder)
    return verify_checkpoint(complete[-1])["number"] + 1 if complete else 0


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _strategy(accelerator: Accelerator) -> str:
    """How the weights are spread: what a checkpoint must have in common with the run that loads it."""
    if accelerator.is_fsdp2:
        return "FSDP2"
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        return accelerator.distributed_type.value
    return "whole weights on each process"


def _save_state(accelerator: Accelerator, folder: Path) -> None:
    """Accelerate's `save_state`, but with the names of the bare model, so that another world size can load it."""

    def bare(models: list[nn.Module], weights: list[dict], _: str) -> None:
        for i in range(len(weights)):  # none under FSDP2, where names are bare already
            weights[i] = accelerator.unwrap_model(models[i], keep_torch_compile=False).state_dict()

    _fill_optimizers(accelerator)
    hook = accelerator.register_save_state_pre_hook(bare)
    try:
        accelerator.save_state(os.fspath(folder))
    finally:
        hook.remove()


def _load_state(accelerator: Accelerator, folder: Path) -> None:
    def bare(models: list[nn.Module], _: str) -> None:
        models[:] = [accelerator.unwrap_model(model, keep_torch_compile=False) for model in models]

    _fill_optimizers(accelerator)
    hook = accelerator.register_load_state_pre_hook(bare)
    try:
        accelerator.load_state(os.fspath(folder))
    finally:
        hook.remove()


def _fill_optimizers(accelerator: Accelerator) -> None:
    if accelerator.is_fsdp2:
        for optimizer in accelerator._optimizers:
            fill_state(optimizer)


@contextmanager
def _one_process_is_fine() -> Iterator[None]:
    """Without torch's warning, at each save, that one process is alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _check_same(accelerator: Accelerator, step: int, state: Mapping[str, Any]) -> None:
    """All ranks come with the same step and state: only rank 0's is written, and every rank will load it."""
    text = json.dumps([step, state], sort_keys=True)
    digests = gather_object([hashlib.sha256(text.encode()).hexdigest()])
    others = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    if others:
        raise ValueError(
            f"state: expected the same step and state on all ranks, found others than rank 0's on ranks {others}; "
            f"save what does not depend on the rank, and derive the rest from the seed and the step"
        )


def _check_state(value: Any, where: str) -> None:
    """Refuse what JSON cannot hold or would give back changed, such as whole numbers as keys."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{where}: expected strings as keys, found {key!r}; JSON would make it a string")
            _check_state(inner, f"{where}[{key!r}]")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            _check_state(inner, f"{where}[{i}]")
    elif value is not None and not isinstance(value, str | int | float | bool):
        raise ValueError(
            f"{where}: expected None, a string, number, list or dictionary, found {type(value).__name__}; "
            f"convert it first"
        )
