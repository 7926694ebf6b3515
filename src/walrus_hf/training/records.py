"""What a step leaves behind: sums over all ranks in one collective, times of micro-batches, and metrics.jsonl."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from ..safe_files import write_text

METRICS_FILE = "metrics.jsonl"
# Time of a backward pass in forward passes, where no micro-batch of a step can tell.
BACKWARD = 2.0


class StepTotals:
    """Sums over the micro-batches of a step; after `reduce`, over those of all ranks.

    Args:
        sources, fields, groups: how many there are.
        device: where losses are summed up, so that nothing waits for them.

    Attributes:
        parts: views of the one vector that is reduced: `loss` and `count` (sources,), `plain_loss` and `plain_count`
            (sources,) of micro-batches without own forecasts, `seconds` and `timed` (sources,), `field_loss` and
            `field_count` (fields,), `group_seconds` (groups,), `work` (samples, frames, unread), `elapsed` seconds of
            the run.
    """

    def __init__(self, sources: int, fields: int, groups: int, device: torch.device) -> None:
        self.sizes = {
            "loss": sources, "count": sources, "plain_loss": sources, "plain_count": sources, "seconds": sources,
            "timed": sources, "field_loss": fields, "field_count": fields, "group_seconds": groups, "work": 3,
            "elapsed": 1,
        }  # fmt: skip
        self.vector = torch.zeros(sum(self.sizes.values()), dtype=torch.float64, device=device)
        self.parts = dict(zip(self.sizes, self.vector.split(list(self.sizes.values()))))

    def add(
        self, number: int, loss: Tensor, channel_losses: Tensor, inputs: Mapping[str, Tensor], is_plain: bool = True
    ) -> None:
        """A micro-batch that was read; `channel_losses` (C,). A plain one starts from given frames."""
        for part in ("", "plain_") if is_plain else ("",):
            self.parts[f"{part}loss"][number] += loss.detach()
            self.parts[f"{part}count"][number] += 1
        kept = (~inputs["padded_channels"][0]).double()
        ids = inputs["field_ids"][0]
        self.parts["field_loss"].index_add_(0, ids, channel_losses.double() * kept)
        self.parts["field_count"].index_add_(0, ids, kept)

    def add_times(self, numbers: Sequence[int], seconds: Sequence[float], group: int, members: int) -> None:
        """Seconds of this rank's micro-batches, in order."""
        for number, spent in zip(numbers, seconds, strict=True):
            self.parts["seconds"][number] += spent
            self.parts["timed"][number] += 1
        self.parts["group_seconds"][group] += math.fsum(seconds) / members

    def reduce(self, accelerator: Accelerator) -> dict[str, np.ndarray]:
        """The sums over all ranks: the one collective of a step beside those of the gradient."""
        total = accelerator.reduce(self.vector, "sum").cpu().numpy()
        return dict(zip(self.sizes, np.split(total, np.cumsum(list(self.sizes.values()))[:-1])))


class Stopwatch:
    """Marks on the device's own time line, which cost no waiting; on a CPU the clock."""

    def __init__(self, device: torch.device) -> None:
        self.is_cuda = device.type == "cuda"
        self.marks: list[Any] = []

    def mark(self) -> None:
        if self.is_cuda:
            self.marks.append(torch.cuda.Event(enable_timing=True))
            self.marks[-1].record()
        else:
            self.marks.append(time.perf_counter())

    def micro_batches(self, passes: Sequence[int], last_waits: bool) -> list[float]:
        """Seconds of each micro-batch, from marks before it, after its forward and after its backward pass.

        Args:
            passes: forward passes of each, of which the last one has gradients.
            last_waits: the last backward pass also averages gradients over ranks, and so waits for them: its time is
                taken from its forward pass and the proportion of the others. The device must be done with the step.
        """
        before, middle, after = (self.marks[i::3] for i in range(3))
        forward = [self._between(a, b) for a, b in zip(before, middle)]
        backward = [self._between(a, b) for a, b in zip(middle, after)]
        if last_waits:
            one = [spent / count for spent, count in zip(forward, passes, strict=True)]
            others = math.fsum(one[:-1])
            backward[-1] = one[-1] * (math.fsum(backward[:-1]) / others if others else BACKWARD)
        return [a + b for a, b in zip(forward, backward)]

    def _between(self, first: Any, second: Any) -> float:
        return first.elapsed_time(second) / 1000 if self.is_cuda else second - first


class MetricsFile:
    """`metrics.jsonl`: one JSON object a step, written by the main process.

    Args:
        folder: of the run.
        step: steps done so far; rows beyond them, from before a restart, are dropped.
        is_main_process: others write nothing.
    """

    def __init__(self, folder: Path, step: int, is_main_process: bool) -> None:
        self.path, self.is_main_process = folder / METRICS_FILE, is_main_process
        if not is_main_process:
            return
        folder.mkdir(parents=True, exist_ok=True)
        kept = [line for line in _complete_lines(self.path) if json.loads(line)["step"] <= step]
        write_text(self.path, "".join(f"{line}\n" for line in kept))

    def write(self, row: Mapping[str, Any]) -> None:
        if self.is_main_process:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(_as_json(row), allow_nan=False) + "\n")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run."""
    return [json.loads(line) for line in _complete_lines(folder / METRICS_FILE)]


def _complete_lines(path: Path) -> Iterable[str]:
    """A crash may have left half a line at the end."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    return text[: text.rfind("\n") + 1].splitlines()


def _as_json(value: Any) -> Any:
    """JSON knows no NaN and no infinity: None stands for both."""
    if isinstance(value, Mapping):
        return {key: _as_json(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
