"""How much faster training goes when its work is shared out well: each mode in turn, measured beside the prediction.

On the two cores of a machine (a few minutes; nothing else should run there):

    python examples/simulate.py runs/simulated
    ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1 accelerate launch --num_processes 2 \\
        --config_file examples/accelerate_configs/ddp.yaml -m walrus_hf.training.compare \\
        --config examples/configs/tiny.yaml --output_dir runs/compare

A few steps of each mode tell what its micro-batches take. The plan deals by that, and the prediction follows from it:
groups wait for the slowest one, and nothing else takes time. Then the modes take turns, so that a machine that is slow
for a while is slow for all of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from accelerate import PartialState

from ..data.reader import BatchReader
from .arguments import PretrainingArguments, parse_arguments
from .batches import PlannedReader, open_indexes, planned_batches
from .costs import CostTable
from .loop import Run, from_scratch, make_accelerator, train_step
from .plan import MODES, Mode, WorkPlan
from .samples import SamplePlan

# Steps of each mode before anything counts: the first ones also warm up, the others are measured.
TRIAL_STEPS = 6


class Result(NamedTuple):
    """Of one mode: seconds of a step, and samples and frames a step."""

    measured: list[float]
    predicted: float
    samples: float
    frames: float


class Contender:
    """A run in one mode, which goes on step by step."""

    def __init__(self, arguments: PretrainingArguments, mode: Mode) -> None:
        self.arguments = dataclasses.replace(arguments, mode=mode)
        self.run = Run(make_accelerator(arguments), self.arguments, open_indexes(self.arguments, arguments.config()))
        self.measured: list[float] = []
        self.predicted: list[float] = []
        self.counted: list[tuple[int, int]] = []
        self._begin()
        self.train(TRIAL_STEPS)
        self.run.table = CostTable(self.run.table.estimates())
        self._begin()

    def _begin(self) -> None:
        self.step, self.plan = 0, self.run.plan()
        shapes = [source.shape for source in self.run.sources]
        reader = PlannedReader(
            BatchReader(self.run.indexes, self.arguments.cache_bytes, augmented=self.arguments.augment),
            [shape.batch for shape in shapes],
        )
        samples = SamplePlan(self.plan, self.run.indexes, self.arguments.blocks_in_memory)
        self.batches = planned_batches(samples, self.run.topology, reader, 0, self.arguments.max_steps)

    def train(self, steps: int) -> None:
        """Some steps more."""
        for _ in range(steps):
            train_step(self.run, self.plan, self.batches, self.step)
            self.step += 1

    def race(self, steps: int) -> None:
        """Some steps more, on the clock."""
        self.predicted += [self.plan.step(step).costs.max() for step in range(self.step, self.step + steps)]
        self.counted += [_work(self.plan, step) for step in range(self.step, self.step + steps)]
        self.run.accelerator.wait_for_everyone()
        began = time.perf_counter()
        self.train(steps)
        self.run.accelerator.wait_for_everyone()
        self.measured.append((time.perf_counter() - began) / steps)

    def result(self) -> Result:
        samples, frames = np.mean(self.counted, axis=0)
        return Result(self.measured, float(np.mean(self.predicted)), float(samples), float(frames))


def compare(
    arguments: PretrainingArguments, modes: Sequence[Mode], rounds: int, round_steps: int
) -> dict[Mode, Result]:
    """Rounds of all modes; a collective."""
    with from_scratch():
        contenders = {mode: Contender(arguments, mode) for mode in modes}
        for _ in range(rounds):
            for contender in contenders.values():
                contender.race(round_steps)
    return {mode: contender.result() for mode, contender in contenders.items()}


def _work(plan: WorkPlan, step: int) -> tuple[int, int]:
    """Samples and frames of a step, over all processes."""
    shapes = [plan.sources[item.source].shape for group in plan.step(step).groups for item in group]
    samples = plan.members * sum(shape.batch for shape in shapes)
    return samples, plan.members * sum(shape.batch * shape.frames for shape in shapes)


def _print(results: dict[Mode, Result]) -> None:
    first, base = next(iter(results.items()))
    print(f"\nSteps a second relative to {first}; `predicted` knows the times of micro-batches alone")
    print(f"{'mode':14}{'s/step':>9}{'predicted':>11}{'ratio':>9}{'predicted':>11}{'samples/s':>11}{'frames/s':>10}")
    for mode, found in results.items():
        # Round by round: what slows the machine down for a while slows both.
        ratio = statistics.median(a / b for a, b in zip(base.measured, found.measured))
        print(
            f"{mode:14}{statistics.median(found.measured):9.3f}{found.predicted:11.3f}{ratio:8.2f}x"
            f"{base.predicted / found.predicted:10.2f}x{ratio * found.samples / base.samples:10.2f}x"
            f"{ratio * found.frames / base.frames:9.2f}x"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare modes of sharing out work; further flags are pretraining's.")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["independent", "reference", "balanced"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--round_steps", type=int, default=8)
    own, others = parser.parse_known_args()
    arguments = dataclasses.replace(parse_arguments(others), log_with=["none"])
    results = compare(arguments, own.modes, own.rounds, own.round_steps)
    state = PartialState()
    if state.is_main_process:
        _print(results)
    state.destroy_process_group()


if __name__ == "__main__":
    main()
