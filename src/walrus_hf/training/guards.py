"""What keeps a long run alive, or stops it with a report: bad gradients, loss spikes, signals, unreadable data.

Every decision rests on numbers that are the same on all ranks, so all ranks decide alike without another collective.
The states are plain numbers and strings, the same on all ranks, for `save_checkpoint`.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import statistics
import sys
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from accelerate import Accelerator

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class TrainingDiverged(RuntimeError):
    """The gradient was not finite at too many steps in a row."""


class TooManyReaderErrors(RuntimeError):
    """More batches than allowed could not be read."""


class GradientGuard:
    """Skips optimiser steps whose gradient is not finite, and stops the run when that goes on.

    Args:
        seed: of the run; with the step it determines every batch, so the report names both.
        limit: that many steps in a row end the run.
    """

    def __init__(self, seed: int, limit: int = 5):
        if limit < 1:
            raise ValueError(f"limit: expected at least 1, found {limit}")
        self.seed, self.limit = seed, limit
        self.skipped = 0
        self._row: list[int] = []
        self._samples: list[str] = []

    def admits(self, gradient_norm: Tensor, step: int, samples: Sequence[str] = ()) -> bool:
        """Whether to take the optimiser step.

        Args:
            gradient_norm: of the reduced gradient, so the same on all ranks: what `accelerator.clip_grad_norm_`
                returned, which is a DTensor under FSDP2.
            samples: names of this rank's batches, for the report.

        Raises:
            TrainingDiverged: the `limit`-th time in a row, on all ranks at once.
        """
        if math.isfinite(full_value(gradient_norm)):
            self._row, self._samples = [], []
            return True
        self.skipped += 1
        self._row.append(step)
        self._samples += samples
        if len(self._row) >= self.limit:
            steps = ", ".join(map(str, self._row))
            raise TrainingDiverged(
                f"the gradient norm was not finite at {len(self._row)} steps in a row: seed {self.seed}, steps "
                f"{steps}, samples of this rank: {_listed(self._samples)}; look at these samples, or start "
                f"anew with another seed or a lower learning rate"
            )
        return False

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "row": list(self._row)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.skipped, self._row, self._samples = int(state["skipped"]), list(state["row"]), []


class SpikeWatch:
    """Tells when a scenario's loss jumps: above its running mean by six median absolute deviations.

    Scenarios differ in the scale of their loss, so each is judged by its own history. A spike is reported, never
    skipped; it enters the history at the threshold, so that a lasting change stops being news after a while.

    Args:
        seed: of the run, for the report.
    """

    SMOOTHING = 0.05  # weight of a new loss in the running mean
    WINDOW = 64  # losses whose median absolute deviation is the spread
    WARM_UP = 32  # losses of a scenario before it is judged
    DEVIATIONS = 6.0
    SMALLEST_SPREAD = 0.01  # of the running mean: losses that hardly vary make no spikes of rounding errors

    def __init__(self, seed: int):
        self.seed = seed
        self.spikes = 0
        self._means: dict[str, float] = {}
        self._recent: dict[str, list[float]] = {}

    def observe(self, scenario: str, loss: float, step: int, samples: Sequence[str] = ()) -> str | None:
        """A report for the log if this loss is a spike, else None.

        Args:
            loss: mean over all ranks that drew the scenario at this step.
            samples: names of this rank's batches, for the report.
        """
        recent = self._recent.setdefault(scenario, [])
        threshold = math.inf
        if len(recent) >= self.WARM_UP:
            middle = statistics.median(recent)
            spread = statistics.median(abs(value - middle) for value in recent)
            mean = self._means[scenario]
            threshold = mean + self.DEVIATIONS * max(spread, self.SMALLEST_SPREAD * abs(mean))
        spike = not loss <= threshold or math.isinf(loss)  # a NaN is a spike at any time
        kept = min(loss, threshold) if math.isfinite(loss) else threshold
        if math.isfinite(kept):
            mean = self._means.get(scenario, kept)
            self._means[scenario] = mean + self.SMOOTHING * (kept - mean)
            recent.append(kept)
            del recent[: -self.WINDOW]
        if not spike:
            return None
        self.spikes += 1
        return (
            f"loss spike: {scenario} at {loss:.4g}, expected at most {threshold:.4g}; seed {self.seed}, step {step}, "
            f"samples of this rank: {_listed(samples)}"
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "spikes": self.spikes,
            "means": dict(self._means),
            "recent": {scenario: list(losses) for scenario, losses in self._recent.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.spikes = int(state["spikes"])
        self._means = dict(state["means"])
        self._recent = {scenario: list(losses) for scenario, losses in state["recent"].items()}


class StopSignal:
    """Turns SIGTERM and SIGUSR1 into a flag, so that a step is finished and saved before the process ends.

        with StopSignal(accelerator) as stop:
            for step in range(...):
                ...
                if stop.agreed():
                    save_checkpoint(...)
                    break

    Under a launcher the signal also comes when the launcher dies: `accelerate launch` of one process passes nothing
    on, and torchrun passes SIGTERM on but dies of SIGUSR1. Previous handlers are restored at the end of the block.
    """

    def __init__(self, accelerator: Accelerator | None = None):
        self.accelerator = accelerator
        self.requested = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignal:
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        if _LAUNCHED & os.environ.keys():
            _signal_at_death_of_parent(signal.SIGTERM)
        return self

    def __exit__(self, *exception: object) -> None:
        if _LAUNCHED & os.environ.keys():
            _signal_at_death_of_parent(0)
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True  # nothing else: it may come in the middle of anything

    def agreed(self) -> bool:
        """True on all ranks as soon as one has got a signal.

        With an accelerator this is a collective, which every rank calls at the same place of the same step.
        """
        if self.accelerator is None:
            return self.requested
        if self.requested:
            self.accelerator.set_trigger()
        return self.accelerator.check_trigger()


# Set by torchrun, and by `accelerate launch` of one process, for the processes that they start.
_LAUNCHED = {"TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"}
_PR_SET_PDEATHSIG = 1


def _signal_at_death_of_parent(number: int) -> None:
    """Ask Linux for a signal when the parent process ends; other systems have no such thing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number))


class ReaderErrors:
    """Counts batches that could not be read and were substituted, in the whole world.

    Args:
        limit: more than that many end the run.
        seed: of the run, for the report.
    """

    def __init__(self, limit: int, seed: int):
        self.limit, self.seed = limit, seed
        self.count = 0

    def add(self, new: int, step: int, samples: Sequence[str] = ()) -> None:
        """Count the errors of a step.

        Args:
            new: substituted batches of all ranks together, so that all ranks stop at the same step.
            samples: names of those of this rank, for the report.

        Raises:
            TooManyReaderErrors: on all ranks at once.
        """
        self.count += new
        if self.count > self.limit:
            raise TooManyReaderErrors(
                f"{self.count} batches could not be read, at most {self.limit} are allowed: seed {self.seed}, step "
                f"{step}, samples of this rank: {_listed(samples)}; see the warnings above for the causes"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count = int(state["count"])


def substitute(batch: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
    """What to train on where a batch could not be read, and its weight 0.0: `loss = weight * model(**batch).loss`.

    The rank still runs forward and backward, so the others do not wait for it; its gradients are zero, and finite.

    Args:
        batch: an earlier batch of the same scenario, for its shapes, fields and boundary conditions.

    Returns:
        The same inputs with every floating-point tensor set to zero, and the weight 0.0.
    """
    blank = {
        name: torch.zeros_like(value) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in batch.items()
    }
    return blank, 0.0


def _listed(samples: Sequence[str]) -> str:
    return ", ".join(samples) or "none given"


def full_value(scalar: Tensor) -> float:
    """A scalar as a number on the host, the same on all ranks; a collective if it is a DTensor."""
    return float(scalar.full_tensor() if isinstance(scalar, DTensor) else scalar)
