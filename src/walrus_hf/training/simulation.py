"""How busy a cluster would be: steps of each mode, simulated from the cost model (costs.py). Nothing here ran on a GPU.

Each simulated step draws and deals its micro-batches exactly as training does (plan.py). Members of a group wait for
each other in every micro-batch, groups for each other once a step. Compute times are multiplied by one-sided noise;
`balance` is without it.

Modes are compared with naive sampling: adaptive tokens, every GPU draws by itself, no shapes are adapted, and gradients
are averaged after each micro-batch. The paper claims a throughput 262% above a naive use of FSDP (arXiv 2511.15684,
section 4.2) and does not say of what. Frames a second of `reference` come nearest to its 3.62x; that is a
consistency check of the model, no proof.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..configuration_walrus import WalrusConfig
from ..data.scenarios import SCENARIOS, Scenario, find_scenario
from .costs import H100, Geometry, Hardware, all_reduce_cost, micro_batch_cost, micro_batch_tokens
from .plan import MODES, Mixture, Mode, longest_first, micro_batch_shape

PUBLISHED_RATIO = 3.62  # "+262%"
BATCH, CONTEXT, ACCUMULATION = 2, 6, 4  # of the published run
STEPS = 10_000
# Share of the steps that is simulated for each assumption that is varied: 1 / this.
SENSITIVITY_SHARE = 10
VARIED: Mapping[str, tuple[float, ...]] = {
    "attention_price": (0.5, 2.0, 3.0), "efficiency": (0.2, 0.5), "noise": (0.0, 0.1),
}  # fmt: skip
# Micro-batches simulated at once.
CHUNK = 400_000
RATES = ("samples", "frames", "tokens")


@dataclasses.dataclass(frozen=True)
class Work:
    """Micro-batches of the scenarios in one mode, each (scenarios,): seconds of one GPU, and what it gets done."""

    seconds: np.ndarray
    samples: np.ndarray
    frames: np.ndarray
    tokens: np.ndarray


@dataclasses.dataclass(frozen=True)
class Cluster:
    """GPUs and what runs on them."""

    gpus: int
    gpus_per_node: int = 4
    config: WalrusConfig = dataclasses.field(default_factory=WalrusConfig)
    hardware: Hardware = H100

    def __post_init__(self) -> None:
        if self.gpus_per_node < 1:
            raise ValueError(f"gpus_per_node: expected at least 1, found {self.gpus_per_node}")
        if self.gpus < 1 or self.gpus % self.gpus_per_node:
            raise ValueError(
                f"gpus: expected a multiple of {self.gpus_per_node}, the GPUs of a node, found {self.gpus}; "
                "change one of the two"
            )

    @property
    def groups(self) -> int:
        return self.gpus // self.gpus_per_node


def scenarios_of(names: Sequence[str]) -> list[Scenario]:
    """Scenarios by name; all of pretraining where none is named.

    Raises:
        ValueError: an unknown name, or one that comes twice.
    """
    if not names:
        return [scenario for scenario in SCENARIOS.values() if scenario.stage == "pretraining"]
    if len(set(names)) < len(names):
        twice = [name for name in dict.fromkeys(names) if list(names).count(name) > 1]
        raise ValueError(f"scenarios: expected each once, found {', '.join(twice)} more than once")
    return [find_scenario(name) for name in names]


def work_of(mode: Mode, scenarios: Sequence[Scenario], cluster: Cluster) -> Work:
    """What micro-batches of the scenarios cost and do in a mode."""
    geometries = [Geometry.of_scenario(scenario) for scenario in scenarios]
    shapes = [micro_batch_shape(mode, geometry.is_volume, BATCH, CONTEXT) for geometry in geometries]
    config, members = cluster.config, cluster.gpus_per_node
    both = list(zip(geometries, shapes))
    return Work(
        np.array([micro_batch_cost(g, shape, config, cluster.hardware, members) for g, shape in both]),
        np.array([shape.batch for shape in shapes]),
        np.array([shape.batch * shape.frames for shape in shapes]),
        np.array([micro_batch_tokens(g, shape, config) for g, shape in both]),
    )


def simulate_mode(
    mode: Mode, scenarios: Sequence[Scenario], cluster: Cluster, steps: int = STEPS, seed: int = 0
) -> dict[str, float]:
    """Metrics of one mode, averaged over steps.

    Returns:
        `balance`: mean over maximum of the groups' costs (of the GPUs', where each draws by itself), without noise.
        `utilisation`: share of the time in which a GPU works on its own micro-batches, and does not wait.
        `step_seconds`; `samples_per_second`, `frames_per_second`, `tokens_per_second`, of the whole cluster.
        `micro_batches_per_group`: the most that a group runs in a step, averaged.
    """
    work, alone = work_of(mode, scenarios, cluster), mode == "independent"
    groups = cluster.gpus if alone else cluster.groups
    members = 1 if alone else cluster.gpus_per_node
    accumulation = 1 if alone else ACCUMULATION
    mixture = Mixture([1.0] * len(scenarios), groups * accumulation, seed, mode in ("balanced", "variable"))
    waiting = all_reduce_cost(cluster.config, cluster.hardware, cluster.groups, cluster.gpus_per_node)
    rng = np.random.default_rng([seed, MODES.index(mode)])
    noise, overhead = cluster.hardware.noise, cluster.hardware.overhead
    drawn = np.zeros(len(scenarios))
    balance = seconds = most = 0.0
    chunk = max(1, CHUNK // (groups * accumulation))
    for first in range(0, steps, chunk):
        numbers = np.arange(first, min(first + chunk, steps))
        labels = _labels(mode, mixture, numbers, work.seconds, groups)
        there = labels >= 0
        costs = np.where(there, work.seconds[labels], 0.0)
        of_group = costs.sum(axis=2)
        balance += (of_group.mean(axis=1) / of_group.max(axis=1)).sum()
        most += there.sum(axis=2).max(axis=1).sum()
        slowest = np.zeros(costs.shape)
        for _ in range(members):
            np.maximum(slowest, np.abs(rng.standard_normal(costs.shape)), out=slowest)
        of_group = of_group + (noise * slowest * (costs - overhead * there)).sum(axis=2)
        seconds += of_group.max(axis=1).sum() + len(numbers) * waiting
        drawn += np.bincount(labels[there], minlength=len(scenarios))
    metrics = {
        "balance": float(balance / steps),
        "utilisation": float(drawn @ work.seconds / groups / seconds),
        "step_seconds": float(seconds / steps),
        "micro_batches_per_group": float(most / steps),
    }
    for name, amount in zip(RATES, (work.samples, work.frames, work.tokens)):
        metrics[f"{name}_per_second"] = float(drawn @ amount * members / seconds)
    return metrics


def _labels(mode: Mode, mixture: Mixture, steps: np.ndarray, costs: np.ndarray, groups: int) -> np.ndarray:
    """Scenarios of the micro-batches, (steps, groups, most of a group), -1 where a group has fewer."""
    if not mixture.stratified:
        return mixture.labels(steps).reshape(len(steps), groups, -1)
    capacity = mixture.slots // groups if mode == "balanced" else None
    dealt = [longest_first(counts, costs, groups, capacity) for counts in mixture.counts(steps)]
    widest = max(len(deal.sources) for deals in dealt for deal in deals)
    rows = [[*deal.sources, *[-1] * (widest - len(deal.sources))] for deals in dealt for deal in deals]
    repeats = [deal.groups for deals in dealt for deal in deals]
    return np.repeat(np.array(rows), repeats, axis=0).reshape(len(steps), groups, widest)


def simulate(
    scenarios: Sequence[Scenario], cluster: Cluster, steps: int = STEPS, seed: int = 0, modes: Sequence[Mode] = MODES
) -> dict[str, dict[str, float]]:
    """Metrics of the modes, and `samples_per_second_ratio` and so on: relative to naive sampling.

    Raises:
        ValueError: fewer steps than 1, or a negative seed.
    """
    if steps < 1 or seed < 0:
        raise ValueError(f"expected at least 1 step and a seed of 0 or more, found {steps} and {seed}")
    naive = simulate_mode("independent", scenarios, cluster, steps, seed)
    found: dict[str, dict[str, float]] = {}
    for mode in modes:
        metrics = naive if mode == "independent" else simulate_mode(mode, scenarios, cluster, steps, seed)
        ratios = {f"{n}_per_second_ratio": metrics[f"{n}_per_second"] / naive[f"{n}_per_second"] for n in RATES}
        found[mode] = {**metrics, **ratios}
    return found


def sensitivity(
    scenarios: Sequence[Scenario], cluster: Cluster, steps: int = STEPS, seed: int = 0
) -> list[dict[str, Any]]:
    """Frames a second relative to naive sampling, of `reference` and `balanced`, with one assumption changed at a time.

    Returns:
        A row for each change: `assumption`, `value`, `reference`, `balanced`. Takes a tenth of `steps` for each.
    """
    rows: list[dict[str, Any]] = []
    fewer = max(steps // SENSITIVITY_SHARE, 1)
    for assumption, values in VARIED.items():
        for value in values:
            hardware = dataclasses.replace(cluster.hardware, **{assumption: value})
            changed = dataclasses.replace(cluster, hardware=hardware)
            found = simulate(scenarios, changed, fewer, seed, ("reference", "balanced"))
            ratios = {mode: metrics["frames_per_second_ratio"] for mode, metrics in found.items()}
            rows.append({"assumption": assumption, "value": value, **ratios})
    return rows
