"""The loop of fine-tuning: steps, validation, early stopping, and checkpoints of what is trained.

Every draw follows from the seed and the step, so a run that was interrupted ends where an uninterrupted one does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from .adapters import bare_model
from .finetuning_data import Windows, epoch_order
from .training.checkpoints import load_checkpoint, resolve, save_checkpoint
from .training.guards import GradientGuard, StopSignal, full_value
from .training.optim import make_scheduler
from .training.records import MetricsFile
from .training.validation import SEED, error_sums, prepare_inputs


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long and how fast. See `FinetuningArguments` for what is not explained here.

    Attributes:
        validation_batches: batches of held-out windows, spread evenly, the same at every validation.
        patience: validations in a row without an improvement that end the run; None never does.
    """

    max_steps: int
    batch_size: int
    gradient_accumulation_steps: int
    max_grad_norm: float
    validation_steps: int
    validation_batches: int
    patience: int | None
    save_steps: int
    seed: int


@dataclasses.dataclass
class Progress:
    """What a run knows of itself; JSON values, for checkpoints.

    Attributes:
        validations: `{"step", "vrmse", "persistence"}` each, the first before any step.
        best_step: of the smallest VRMSE.
        notes: what the caller keeps along with a run.
    """

    validations: list[dict[str, float]] = dataclasses.field(default_factory=list)
    best_step: int = 0
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)
    step: int = 0
    stopped: bool = False  # by a signal, before it was done

    def since_best(self) -> int:
        """Validations since the best one."""
        return sum(row["step"] > self.best_step for row in self.validations)


class TrainedPart(nn.Module):
    """A model whose state is its trained parameters alone: a checkpoint need not hold the base."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.trained = {f"model.{name}" for name, p in model.named_parameters() if p.requires_grad}

    def forward(self, **inputs: Any) -> Any:
        return self.model(**inputs)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        state = super().state_dict(*args, **kwargs)
        return {name: value for name, value in state.items() if name in self.trained}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        found = super().load_state_dict(state_dict, strict=False, assign=assign)
        missing = [name for name in found.missing_keys if name in self.trained]
        if strict and (missing or found.unexpected_keys):
            raise RuntimeError(f"expected {len(self.trained)} trained parameters, found other names in the checkpoint")
        return type(found)(missing, found.unexpected_keys)


class Tuning:
    """One run over one set of windows.

    Args:
        model: its trainable parameters ask for gradients, no others.
        optimizer: of those.
        windows, trained, held: the windows of one source and the numbers to train on; `held` are windows and numbers to
            validate on, of the same or another source.
        folder: for checkpoints and metrics; None keeps none.
        identity: settings that must be the same for a checkpoint to go on.

    Attributes:
        held: the numbers that are scored, of `held_count` to validate on.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        windows: Windows,
        trained: np.ndarray,
        held: tuple[Windows, np.ndarray],
        schedule: Schedule,
        folder: Path | None,
        identity: dict[str, Any],
    ) -> None:
        self.accelerator, self.windows, self.trained, self.schedule = accelerator, windows, trained, schedule
        self.held_windows, held_numbers = held
        self.folder, self.identity, self.progress = folder, identity, Progress()
        self.model, self.optimizer = accelerator.prepare(TrainedPart(model), optimizer)
        self.scheduler = accelerator.prepare(make_scheduler(self.optimizer.optimizer, schedule.max_steps))
        self.bare = bare_model(model)
        self.part: TrainedPart = accelerator.unwrap_model(self.model)
        self.best = {name: value.detach().cpu().clone() for name, value in self.part.state_dict().items()}
        self.guard = GradientGuard(schedule.seed)
        self.held_count = len(held_numbers)
        count = min(schedule.validation_batches * schedule.batch_size, self.held_count)
        self.held = held_numbers[np.linspace(0, len(held_numbers) - 1, count).round().astype(int)]

    def resume(self) -> bool:
        """Go on from the last checkpoint of the folder, if there is one."""
        path = None if self.folder is None else resolve("latest", self.folder)
        if path is None:
            return False
        state = load_checkpoint(self.accelerator, path, self.best)
        differing = [name for name, value in self.identity.items() if state["identity"].get(name) != value]
        if differing:
            values = {name: repr(state["identity"].get(name)) for name in differing}
            listed = ", ".join(
                f"{name} {value}" if len(value) < 60 else f"its {name}" for name, value in values.items()
            )
            raise ValueError(f"{path}: expected a run with {listed}, found another; resume with the same")
        self.progress = Progress(**state["progress"])
        self.guard.load_state_dict(state["guard"])
        return True

    def run(self) -> Progress:
        """All steps that are left. The best weights are in the model afterwards, unless a signal stopped the run."""
        given, progress = self.schedule, self.progress
        hidden = not self.accelerator.is_main_process
        validated = progress.validations[-1]["step"] if progress.validations else -1
        if validated < 0 or (self._is_due(given.validation_steps) and validated < progress.step):
            self._validate()  # the first one, or one that a signal came before
        metrics = None if self.folder is None else MetricsFile(self.folder, progress.step, not hidden)
        bar = tqdm(total=given.max_steps, initial=progress.step, desc="fine-tune", unit="step", disable=hidden)
        with bar, self._signals() as stop:
            while progress.step < given.max_steps and not self._is_over():
                row = self._step(progress.step)
                progress.step += 1
                stopped = stop is not None and stop.agreed()
                if self._is_due(given.validation_steps) and not stopped:
                    row["validation"] = self._validate()
                if metrics is not None:
                    metrics.write(row)
                bar.set_postfix(loss=f"{row['loss']:.3g}", vrmse=f"{progress.validations[-1]['vrmse']:.4f}")
                bar.update()
                if self.folder is not None and (stopped or self._is_due(given.save_steps)):
                    self._save()
                if stopped:
                    progress.stopped = True
                    return progress
        self.part.load_state_dict(self.best)
        return progress

    def _is_due(self, every: int) -> bool:
        return self.progress.step % every == 0 or self.progress.step == self.schedule.max_steps

    def _is_over(self) -> bool:
        return self.schedule.patience is not None and self.progress.since_best() >= self.schedule.patience

    def _step(self, step: int) -> dict[str, Any]:
        given, total = self.schedule, 0.0
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        self.model.train()
        samples: list[str] = []
        for turn in range(given.gradient_accumulation_steps):
            number = (step * given.gradient_accumulation_steps + turn) * ranks + rank
            numbers = self._numbers(number)
            # For each draw: what the model drops, and the shifts of the jitter.
            seed = (given.seed * 1_000_003 + number) % 2**61
            torch.manual_seed(2 * seed)
            inputs = self._inputs(self.windows, numbers, torch.Generator().manual_seed(2 * seed + 1))
            is_last = turn == given.gradient_accumulation_steps - 1
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(self.model):
                loss = self.model(**inputs).loss
                self.accelerator.backward(loss / given.gradient_accumulation_steps)
            total += loss.detach() / given.gradient_accumulation_steps
            samples.append(f"windows {numbers.tolist()} of {self.windows.name}")
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        norm = self.accelerator.clip_grad_norm_(parameters, given.max_grad_norm)
        rate = self.optimizer.param_groups[0]["lr"]
        if self.guard.admits(norm, step, samples):
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        loss = float(self.accelerator.reduce(torch.as_tensor(total), "mean"))
        return {"step": step + 1, "loss": loss, "learning_rate": float(rate), "grad_norm": full_value(norm)}

    def _numbers(self, micro_batch: int) -> np.ndarray:
        """The windows of a micro-batch, counted over steps and ranks: each epoch is a permutation, dealt out."""
        given = self.schedule
        places = micro_batch * given.batch_size + np.arange(given.batch_size)
        epochs, places = np.divmod(places, len(self.trained))
        orders = {epoch: epoch_order(given.seed, epoch, len(self.trained)) for epoch in set(epochs.tolist())}
        return np.array([self.trained[orders[e][p]] for e, p in zip(epochs.tolist(), places.tolist())])

    def _inputs(self, windows: Windows, numbers: np.ndarray, generator: torch.Generator) -> dict[str, Any]:
        inputs = windows.read(numbers.tolist())
        return prepare_inputs(inputs, self.bare, self.accelerator.device, generator)

    def _validate(self) -> dict[str, float]:
        """One-step VRMSE of held-out windows, mean over windows and channels that are not padding; all ranks share."""
        training = self.model.training
        self.model.eval()
        sums = torch.zeros(3, dtype=torch.float64)
        size, ranks = self.schedule.batch_size, self.accelerator.num_processes
        batches = [self.held[i : i + size] for i in range(0, len(self.held), size)]
        with torch.no_grad():
            for number, batch in list(enumerate(batches))[self.accelerator.process_index :: ranks]:
                sums += self._errors(batch, torch.Generator().manual_seed(SEED + number))
        self.model.train(training)
        error, still, count = self.accelerator.reduce(sums.to(self.accelerator.device), "sum").tolist()
        found = {"step": self.progress.step, "vrmse": error / count, "persistence": still / count}
        before = self.progress.validations
        best = min((row["vrmse"] for row in before if math.isfinite(row["vrmse"])), default=math.inf)
        if not before or found["vrmse"] < best:
            self.progress.best_step = self.progress.step
            for name, value in self.part.state_dict().items():
                self.best[name].copy_(value)
        before.append(found)
        return found

    def _errors(self, batch: np.ndarray, generator: torch.Generator) -> Tensor:
        inputs = self._inputs(self.held_windows, batch, generator)
        # Not through the prepared model: the ranks need not have equally many batches.
        return error_sums(self.part(**inputs, frames_to_keep=1).prediction[:, -1], inputs)

    def _save(self) -> None:
        state = {
            "progress": dataclasses.asdict(self.progress), "identity": self.identity, "guard": self.guard.state_dict()
        }  # fmt: skip
        assert self.folder is not None
        save_checkpoint(self.accelerator, self.folder, self.progress.step, state, 1, self.best)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[StopSignal | None]:
        """SIGTERM finishes the step and saves, where there is a folder to save in; only the main thread can listen."""
        if self.folder is None or threading.current_thread() is not threading.main_thread():
            yield None
            return
        with StopSignal(self.accelerator) as stop:
            yield stop
