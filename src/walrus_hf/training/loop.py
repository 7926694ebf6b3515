"""The pretraining loop: plan, read, forward, backward, step; the same on one CPU and on many nodes.

    sources -> plan of work -> descriptors -> batches -> micro-batches of a step -> optimiser -> metrics, checkpoints

Everything random follows from the seed and the address of what is drawn, so a run that was stopped goes on as if it had
not been, bit for bit, and on another number of processes to rounding.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, parse_flag_from_env, set_seed
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from ..configuration_walrus import WalrusConfig
from ..data.augment import uniform_hash
from ..data.index import ScenarioIndex
from ..data.reader import BatchReader
from ..modeling_walrus import WalrusForPrediction
from .arguments import PretrainingArguments
from .batches import PlannedReader, open_indexes, open_validation, planned_batches
from .checkpoints import load_checkpoint, refuse_other_run, resolve, save_checkpoint
from .costs import CostTable, Geometry, Key, Shape, micro_batch_cost
from .guards import GradientGuard, ReaderErrors, SpikeWatch, StopSignal, full_value
from .objective import TrainingModel
from .optim import ExponentialAverage, make_optimizer, make_scheduler
from .plan import StepWork, WorkPlan, WorkSource, micro_batch_shape
from .records import MetricsFile, StepTotals, Stopwatch
from .samples import SamplePlan
from .saving import save_model
from .topology import Topology, check_processes
from .trackers import chosen_trackers, flat, tracked
from .validation import Validation, prepare_inputs

# Settings that the steps after a stop must have in common with those before, beside model, processor and sources.
KEPT = (
    "seed", "mode", "model_name_or_path", "split", "batch_size", "frames", "stride_min", "stride_max", "tokens",
    "own_forecasts", "own_steps", "augment", "learning_rate", "weight_decay", "max_grad_norm", "muon", "ema_decay",
    "blocks_in_memory",
)  # fmt: skip

# What a random number is drawn for.
_JITTER, _DROP_PATH, _TOKENS, _OWN = range(4)


class Run:
    """Whatever a checkpoint holds: weights, optimiser, schedule, average, costs and guards.

    Args:
        accelerator: model and optimiser are prepared with it.
        arguments: of the run.
        indexes: of the sources.
    """

    def __init__(self, accelerator: Accelerator, arguments: PretrainingArguments, indexes: list[ScenarioIndex]) -> None:
        self.accelerator, self.arguments, self.indexes = accelerator, arguments, indexes
        self.steps = 0  # done so far
        self.seconds, self.began = 0.0, time.perf_counter()  # trained so far: agreed over ranks, and this rank's clock
        self.topology = Topology.from_accelerator(accelerator)
        self.config = arguments.config()
        self.processor = arguments.processor(self.config)
        set_seed(arguments.seed)
        asked = arguments.resume_from_checkpoint
        self.checkpoint = None if asked is None else resolve(asked, arguments.output_dir)
        # The weights of a checkpoint take the place of those that the run started from, which may be gone by now.
        begun = self.checkpoint is not None
        model = TrainingModel(WalrusForPrediction(self.config) if begun else arguments.first_model(self.config))
        if arguments.gradient_checkpointing:
            model.model.gradient_checkpointing_enable()
        optimizer = make_optimizer(model, arguments.learning_rate, arguments.weight_decay, muon=arguments.muon)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.scheduler = accelerator.prepare(
            make_scheduler(self.optimizer.optimizer, arguments.max_steps, self.share_over)
        )
        self.bare = accelerator.unwrap_model(self.model)
        self.average = ExponentialAverage(self.bare, arguments.ema_decay) if arguments.ema_decay else None
        self.sources = [WorkSource(index.name, self.shape_of(index)) for index in indexes]
        self.table = CostTable(self._predicted())
        self.gradients, self.spikes = GradientGuard(arguments.seed), SpikeWatch(arguments.seed)
        self.unread = ReaderErrors(arguments.reader_error_limit, arguments.seed)

    def share_over(self) -> float:
        """How much of `max_seconds` is over, from 0 to 1; the same on all ranks."""
        limit = self.arguments.max_seconds
        return 0.0 if limit is None else min(self.seconds / limit, 1.0)

    def shape_of(self, index: ScenarioIndex) -> Shape:
        """Of the micro-batches of a source."""
        given = self.arguments
        return micro_batch_shape(given.mode, Geometry.of_index(index).is_volume, given.batch_size, given.frames)

    def _predicted(self) -> dict[Key, float]:
        members, found = self.topology.members, {}
        for source, index in zip(self.sources, self.indexes):
            try:
                cost = micro_batch_cost(Geometry.of_index(index), source.shape, self.config, members=members)
            except ValueError as error:  # a grid that cannot be tokenized
                raise ValueError(f"source {source.name!r}: {error}") from error
            found[source.key] = cost
        return found

    def plan(self) -> WorkPlan:
        """On this run's table, so after `resume`."""
        given, here = self.arguments, self.topology
        return WorkPlan(
            self.sources, here.groups, here.members, self.table, given.mode, given.gradient_accumulation_steps,
            given.seed,
        )  # fmt: skip

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a run to go on where it stopped, as JSON values."""
        given, settings = self.arguments, WalrusConfig.__annotations__  # without those of any transformers model
        return json.loads(json.dumps({
            **{name: vars(given)[name] for name in KEPT}, "processor": self.processor.to_dict(),
            "model": {name: value for name, value in self.config.to_dict().items() if name in settings},
            "sources": [
                (index.name, index.num_windows, index.num_blocks, index.frames, index.template.grid,
                 index.template.boundary_ids(), [channel.name for channel in index.channels])
                for index in self.indexes
            ],
            "slots": self.topology.groups * given.gradient_accumulation_steps, "members": self.topology.members,
        }))  # fmt: skip

    def resume(self) -> int:
        """Load the checkpoint that was asked for; the steps done, 0 where there is none yet.

        Raises:
            ValueError: a checkpoint of a run with other settings or sources.
        """
        path = self.checkpoint
        if path is None:
            return 0
        state = load_checkpoint(self.accelerator, path, self._averages())
        for name, expected in self._identity().items():
            found = state["plan"].get(name)
            if found != expected:
                raise ValueError(f"{path}: {_other_run(name, expected, found)}")
        self.table = CostTable.from_dict(state["costs"])
        self.steps, self.seconds = int(state["step"]), state["seconds"]
        self.began -= self.seconds
        # The rate that was loaded is the one of the schedule of then: `max_steps` may be another now.
        schedule = self.scheduler.scheduler
        for group, rate, factor in zip(self.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas):
            group["lr"] = rate * factor(schedule.last_epoch)
        for name, guard in self._guards().items():
            guard.load_state_dict(state[name])
        return self.steps

    def save(self, step: int) -> Path:
        """A checkpoint after that many steps."""
        state = {"plan": self._identity(), "costs": self.table.to_dict(), "seconds": self.seconds}
        state |= {name: guard.state_dict() for name, guard in self._guards().items()}
        folder, keep = self.arguments.output_dir, self.arguments.keep_checkpoints
        return save_checkpoint(self.accelerator, folder, step, state, keep, self._averages())

    def _guards(self) -> dict[str, Any]:
        return {"gradients": self.gradients, "spikes": self.spikes, "unread": self.unread}

    def _averages(self) -> dict[str, Tensor] | None:
        return None if self.average is None else self.average.state_dict()

    def averaged(self) -> contextlib.AbstractContextManager:
        """The model holds the running average inside the block, where one is kept."""
        return contextlib.nullcontext() if self.average is None else self.average.swap()


def _other_run(name: str, expected: Any, found: Any) -> str:
    """Why a checkpoint is of another run."""
    if isinstance(expected, dict) and isinstance(found, dict):
        differing = [key for key in expected | found if expected.get(key) != found.get(key)]
        expected, found = ({key: side.get(key) for key in differing} for side in (expected, found))
    if name == "sources" and [source[0] for source in expected] == [source[0] for source in found]:
        expected, found = next((one, other) for one, other in zip(expected, found) if one != other)
        return (
            f"expected a source with windows, blocks, frames, grid, sides and channels {expected}, found {found}; "
            "resume on the same data, with cache_bytes in proportion to gradient_accumulation_steps (blocks follow)"
        )
    return (
        f"expected a run with {name} {expected}, found {found}; resume with the same settings (slots are groups times "
        "gradient_accumulation_steps), or start anew from its model (model_name_or_path)"
    )


def pretrain(arguments: PretrainingArguments) -> Path:
    """Train, validate and save; all ranks call it.

    Returns:
        `output_dir/model`, a folder for `WalrusPipeline.from_pretrained`; after SIGTERM or SIGUSR1 the checkpoint.

    Raises:
        ValueError: settings that contradict each other, the launch or the checkpoint; unusable sources.
        FileExistsError: the output folder holds a run, and it is not asked to go on with one.
        FileNotFoundError, OSError: sources or checkpoints that cannot be read.
        TrainingDiverged, TooManyReaderErrors: see guards.py.
    """
    if arguments.resume_from_checkpoint is None:
        refuse_other_run(Path(arguments.output_dir))
    accelerator = make_accelerator(arguments)
    check_strategy(accelerator, Topology.from_accelerator(accelerator), arguments.strategy)
    with StopSignal(accelerator) as stop, tracked(accelerator, arguments), from_scratch():
        with accelerator.local_main_process_first():  # it leaves manifests in the cache for the others
            indexes = open_indexes(arguments, arguments.config())
        run = Run(accelerator, arguments, indexes)
        stopped_at, errors = train(run, stop)
    if stopped_at is None:
        with run.averaged():
            written = save_model(accelerator, run.model, run.processor, arguments, run.steps, errors)
    return stopped_at or written


def train(run: Run, stop: StopSignal) -> tuple[Path | None, dict[str, dict[str, float]]]:
    """All steps from the checkpoint on, if one was asked for.

    Returns:
        The checkpoint of a run that was told to stop, else None; and the errors of the last step's validation.
    """
    given, accelerator = run.arguments, run.accelerator
    first = run.resume()
    plan = run.plan()
    reader = PlannedReader(
        BatchReader(run.indexes, given.cache_bytes, augmented=given.augment),
        [source.shape.batch for source in run.sources],
    )
    samples = SamplePlan(plan, run.indexes, given.blocks_in_memory)
    batches = planned_batches(samples, run.topology, reader, first, given.max_steps)
    validate = _validation(run)
    metrics = MetricsFile(Path(given.output_dir), first, accelerator.is_main_process)
    if first >= given.max_steps or run.share_over() == 1.0:
        accelerator.print(f"nothing is left to train after {first} steps: the model is written again")
        return None, _errors(run, validate)
    row: dict[str, Any] = {}
    with _bar(run, first) as bar:
        for step in range(first, given.max_steps):
            row = train_step(run, plan, batches, step)
            run.steps = done = step + 1
            stopped = stop.agreed()
            finished = done == given.max_steps or run.share_over() == 1.0
            if validate and (finished or _is_due(done, given.validation_steps)) and not stopped:
                row["validation"] = _errors(run, validate)
            metrics.write(row)
            accelerator.log(flat(row), step=done)
            _show(bar, run, row)
            if finished or stopped or _is_due(done, given.save_steps):
                checkpoint = run.save(done)
            if stopped:
                return checkpoint, {}
            if finished:
                break
    return None, row.get("validation", {})


def _errors(run: Run, validate: Validation | None) -> dict[str, dict[str, float]]:
    """Of the weights that would be saved now."""
    if validate is None:
        return {}
    with run.averaged():
        return validate(run.accelerator, run.model)


def make_accelerator(arguments: PretrainingArguments) -> Accelerator:
    """As the launcher configured it. The schedule counts optimiser steps, whatever the number of processes."""
    torch.set_float32_matmul_precision("high")  # TF32 where there is such a thing, as in the published run
    accelerator = Accelerator(
        step_scheduler_with_optimizer=False,
        # Nothing is exchanged in forward passes: groups run different numbers of them.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        log_with=chosen_trackers(arguments.log_with) or None,
        project_dir=arguments.output_dir,
    )
    check_processes(accelerator)
    if accelerator.is_fsdp2:
        # In bf16 Accelerate would cast the fields themselves, and their scales with them, and average gradients in it;
        # autocast does what is wanted.
        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()
    return accelerator


def check_strategy(accelerator: Accelerator, topology: Topology, asked: str | None) -> None:
    """Refuse to start under another strategy than the one asked for: Accelerate falls back to DDP in silence.

    Args:
        asked: for by the settings, if they do; else what the launcher was configured for counts.

    Raises:
        ValueError: another one is in force.
    """
    found = "hsdp" if topology.groups > 1 else "fsdp2"
    if not accelerator.is_fsdp2:
        found = "single" if topology.world_size == 1 else "ddp"
    launched_sharded = parse_flag_from_env("ACCELERATE_USE_FSDP")
    if (asked is not None and asked != found) or (launched_sharded and not accelerator.is_fsdp2):
        raise ValueError(
            f"strategy: expected {asked or 'fsdp2 or hsdp'}, found {found} with {topology.world_size} processes "
            f"({accelerator.distributed_type.value}); give the matching --config_file to `accelerate launch`"
        )


def train_step(run: Run, plan: WorkPlan, batches: Iterator[dict[str, Any]], step: int) -> dict[str, Any]:
    """One optimiser step: this rank's micro-batches, the update, and the row of metrics of all ranks."""
    began, here, accelerator = time.perf_counter(), run.topology, run.accelerator
    work, group = plan.step(step), plan.group_of(here.rank)[0]
    tokens, own = _tokens(run.arguments, step), _own_steps(run.arguments, step)
    totals = StepTotals(len(run.sources), run.config.vocab_size, plan.groups, accelerator.device)
    clock, numbers, passes, samples, unread = Stopwatch(accelerator.device), [], [], [], []
    run.model.train()
    for turn, expected in enumerate(work.groups[group]):
        batch = next(batches)
        if (batch["step"], batch["number"]) != (step, expected.source):
            raise RuntimeError(f"step {step}: expected a batch of source {expected.source}, found {batch['samples']}")
        generator, frames = _generator(batch, step), run.sources[expected.source].shape.frames
        cut = _first_frames(batch["inputs"], frames + own)
        inputs = prepare_inputs(cut, run.bare.model, accelerator.device, generator, tokens)
        clock.mark()
        with _synchronised(run.model, turn == len(work.groups[group]) - 1):
            with accelerator.autocast():  # which Accelerate leaves out of models that FSDP2 shards
                loss, channel_losses, _ = run.model(own_steps=own, generator=generator, **inputs)
            clock.mark()
            accelerator.backward(loss * (work.loss_scale * batch["weight"]))
        clock.mark()
        if batch["weight"]:
            totals.add(expected.source, loss, channel_losses, inputs, is_plain=not own)
            windows = len(inputs["field_values"])
            totals.parts["work"] += torch.tensor([windows, windows * frames, 0.0]).to(totals.vector)
        else:
            totals.parts["work"][2] += 1
            unread += batch["samples"]
        numbers.append(expected.source)
        passes.append(1 + own)
        samples += batch["samples"]
    norm, rate = _update(run, step, samples)
    times = clock.micro_batches(passes, last_waits=here.world_size > 1)
    totals.add_times(numbers, times, group, plan.members)
    totals.parts["elapsed"] += time.perf_counter() - run.began
    sums = totals.reduce(accelerator)
    run.seconds = float(sums["elapsed"][0]) / here.world_size
    _learn(run, step, sums, samples, unread)
    return _row(run, work, step, sums, norm, rate, time.perf_counter() - began)


def _generator(batch: dict[str, Any], step: int) -> torch.Generator:
    """Of the jitter; also sets the seed of what the model drops. Both follow from the address of the micro-batch."""

    def seed(purpose: int) -> int:
        return int(uniform_hash((purpose, *batch["key"]), np.array(step)) * 2**53)

    torch.manual_seed(seed(_DROP_PATH))
    return torch.Generator().manual_seed(seed(_JITTER))


def _tokens(arguments: PretrainingArguments, step: int) -> int | None:
    """The target of a step, or groups with unlike ones would wait for each other; None is the model's."""
    if arguments.tokens is None:
        return None
    return arguments.tokens[int(_drawn(arguments, _TOKENS, step) * len(arguments.tokens))]


def _own_steps(arguments: PretrainingArguments, step: int) -> int:
    """Steps that the model forecasts before the loss, the same in all micro-batches of a step; 0 for most or all."""
    drawn, share = _drawn(arguments, _OWN, step), arguments.own_forecasts
    return 1 + int(drawn / share * arguments.own_steps) if drawn < share else 0


def _first_frames(inputs: dict[str, Any], frames: int) -> dict[str, Any]:
    """A batch without the frames of its windows, and their labels, that no forecast needs."""
    return {**inputs, **{name: inputs[name][:, :frames] for name in ("field_values", "labels")}}


def _drawn(arguments: PretrainingArguments, purpose: int, step: int) -> float:
    """A number from 0 to 1 that follows from the step alone, whoever computes it."""
    return float(uniform_hash((arguments.seed, purpose), np.array(step)))


@contextlib.contextmanager
def _synchronised(model: nn.Module, is_last: bool) -> Iterator[None]:
    """Gradients meet between groups after the last micro-batch of a step, and only then."""
    if isinstance(model, FSDPModule):
        model.set_requires_all_reduce(is_last)
    with contextlib.ExitStack() as stack:
        if isinstance(model, DistributedDataParallel) and not is_last:
            stack.enter_context(model.no_sync())
        yield


def _update(run: Run, step: int, samples: list[str]) -> tuple[float, float]:
    """Clip, step unless the gradient is not finite; the norm before clipping, and the learning rate."""
    norm = run.accelerator.clip_grad_norm_(run.model.parameters(), run.arguments.max_grad_norm)
    rate = run.optimizer.param_groups[0]["lr"]
    if run.gradients.admits(norm, step, samples):
        run.optimizer.step()
        if run.average is not None:
            run.average.update()
    run.optimizer.zero_grad()
    run.scheduler.step()  # the rate is a function of the step, skipped or not
    return full_value(norm), rate


def _learn(run: Run, step: int, sums: dict[str, np.ndarray], samples: list[str], unread: list[str]) -> None:
    """Give the guards and the table of costs what all ranks have found; raises on all of them at once."""
    run.unread.add(round(sums["work"][2]), step, unread)
    seconds = {}
    for number, source in enumerate(run.sources):
        if sums["plain_count"][number]:  # after own forecasts losses are larger, and would hide what is a spike
            loss = float(sums["plain_loss"][number] / sums["plain_count"][number])
            report = run.spikes.observe(source.name, loss, step, samples)
            if report and run.accelerator.is_main_process:
                tqdm.write(report)
        if sums["timed"][number]:
            seconds[source.key] = float(sums["seconds"][number] / sums["timed"][number])
    run.table.measure(step, seconds)


def _row(
    run: Run, work: StepWork, step: int, sums: dict[str, np.ndarray], norm: float, rate: float, seconds: float
) -> dict[str, Any]:
    """The step's object in metrics.jsonl; `step` counts the steps done."""
    fields = {i: name for name, i in (run.config.field2id or {}).items()}
    samples, frames, _ = sums["work"].tolist()
    count, busy = sums["count"].sum(), sums["group_seconds"]
    return {
        "step": step + 1,
        "loss": float(sums["loss"].sum() / count) if count else math.nan,
        "losses": {
            source.name: float(loss / n) for source, loss, n in zip(run.sources, sums["loss"], sums["count"]) if n
        },
        "field_losses": {
            fields[i]: float(loss / n) for i, (loss, n) in enumerate(zip(sums["field_loss"], sums["field_count"])) if n
        },
        "learning_rate": float(rate),
        "grad_norm": norm,
        "seconds": seconds,
        "samples_per_second": samples / seconds,
        "frames_per_second": frames / seconds,
        "predicted_utilisation": work.balance,
        "measured_utilisation": float(busy.mean() / busy.max()),
        "skipped": run.gradients.skipped,
        "reader_errors": run.unread.count,
    }


def _validation(run: Run) -> Validation | None:
    given = run.arguments
    indexes = open_validation(given, run.config)
    if not indexes:
        return None
    sizes = [run.shape_of(index).batch for index in indexes]
    return Validation(indexes, sizes, given.validation_batches, given.cache_bytes)


@contextlib.contextmanager
def from_scratch() -> Iterator[None]:
    """Without warnings of grids where the published weights were never measured, and of how Accelerate sets up DDP."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
        warnings.filterwarnings("ignore", message=".* is outside the published stride table")
        yield


def _is_due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


def _bar(run: Run, first: int) -> tqdm:
    given, hidden = run.arguments, not run.accelerator.is_main_process
    if given.max_seconds is None:
        return tqdm(total=given.max_steps, initial=first, desc="pretrain", unit="step", disable=hidden)
    shape = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
    return tqdm(
        total=given.max_seconds, initial=run.seconds, desc="pretrain", unit="s", bar_format=shape, disable=hidden
    )


def _show(bar: tqdm, run: Run, row: dict[str, Any]) -> None:
    bar.set_postfix(
        scenario=",".join(row["losses"]), loss=f"{row['loss']:.3g}", lr=f"{row['learning_rate']:.1e}",
        samples=f"{row['samples_per_second']:.1f}/s", utilisation=f"{row['measured_utilisation']:.0%}",
    )  # fmt: skip
    limit = run.arguments.max_seconds
    bar.update(1 if limit is None else min(run.seconds, limit) - bar.n)
