"""What a micro-batch costs: a count of floating point operations, and the step times that were measured since.

Nobody needs a clock to plan: costs are counted from the tokenization of a scenario's grid and the sizes of the model.
The published model has 40 layers of width 1408 with a gated MLP of 2816 and a stem of 352 (arXiv 2511.15684, Table 2;
the defaults of `WalrusConfig`), which makes 28 * 1408^2 operations a token and layer in linear maps, two a
multiply-add. What the machine does with them is `Hardware`. `CostTable` then replaces counted costs by measured ones.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..configuration_walrus import WalrusConfig
from ..data.index import ScenarioIndex
from ..data.scenarios import Scenario
from ..fields import BoundaryCondition
from ..jitter import TokenizationPlan, make_plan
from ..strides import is_volume

# Operations of a training step for each one of a forward pass: 1 forward, 2 backward, and half of the blocks are
# computed again (the published run kept the activations of every second block; arXiv 2511.15684, section 6).
TRAINING_FACTOR = 3.5
# How often the parameters of a sharded model cross the group in a micro-batch: gathered forward, gathered backward, and
# the gradients scattered.
GATHERS = 3
BYTES_PER_PARAMETER = 4  # the published run is in float32
# Share of a new measurement in the running mean of a step time, once there are enough to start from.
EWMA = 0.1
# Steps after which measured costs take effect, see `CostTable`.
INTERVAL = 100

Key = tuple[str, int, int]  # scenario, samples and input frames of a micro-batch


@dataclasses.dataclass(frozen=True)
class Hardware:
    """One GPU and its neighbours.

    Attributes:
        peak_flops: dense TF32 operations a second of an H100 SXM (NVIDIA's data sheet).
        efficiency: share of the peak that training reaches; assumed, one number for all operations.
        node_bandwidth: bytes a second and GPU within a node, assumed for NVLink (900 GB/s both ways, on paper).
        network_bandwidth: bytes a second and GPU between nodes, assumed for a 400 Gb/s InfiniBand card.
        exposed_all_reduce: share of the all-reduce between nodes that no computation hides; assumed.
        noise: spread of compute times, one-sided: a time is multiplied by `1 + noise * |normal number|`; assumed.
        overhead: seconds of each micro-batch that scale with nothing (launching, data, loss); assumed.
        attention_price: what an operation of attention costs compared with one of a linear map.
    """

    peak_flops: float = 495e12
    efficiency: float = 0.35
    node_bandwidth: float = 300e9
    network_bandwidth: float = 45e9
    exposed_all_reduce: float = 0.3
    noise: float = 0.03
    overhead: float = 0.12
    attention_price: float = 1.0


H100 = Hardware()


@dataclasses.dataclass(frozen=True)
class Shape:
    """A micro-batch of one GPU: samples, and input frames of each."""

    batch: int
    frames: int


@dataclasses.dataclass(frozen=True)
class Geometry:
    """What the cost of a sample depends on, beside the model.

    Attributes:
        grid: cells along H, W, D; singletons where there are fewer axes.
        boundaries: ids of the (low, high) side of the three axes.
        channels: fields and constants, each component counted, those of a plane lifted to 3D too.
    """

    grid: tuple[int, int, int]
    boundaries: tuple[tuple[int, int], ...]
    channels: int

    @classmethod
    def of_scenario(cls, scenario: Scenario) -> Geometry:
        """Of a scenario of the paper."""
        given = [scenario.boundary_conditions[axis] for axis in scenario.axes]
        sides = [(kind, kind) if isinstance(kind, str) else kind for kind in given]
        ranks = [*scenario.fields.values(), *scenario.constant_fields.values()]
        return cls._of(scenario.grid, sides, sum(3**rank for rank in ranks))

    @classmethod
    def of_index(cls, index: ScenarioIndex) -> Geometry:
        """Of files that were indexed."""
        sides = index.template.boundary_conditions
        channels = len(index.channels) + len(index.constants)
        return cls._of(index.template.grid, [sides[axis] for axis in index.template.axes], channels)

    @classmethod
    def _of(cls, grid: Sequence[int], sides: Sequence[Sequence[Any]], channels: int) -> Geometry:
        missing = 3 - len(grid)
        h, w, d = (*grid, *[1] * missing)
        ids = [(int(BoundaryCondition.parse(low)), int(BoundaryCondition.parse(high))) for low, high in sides]
        return cls((h, w, d), (*ids, *[(2, 2)] * missing), channels)

    @property
    def is_volume(self) -> bool:
        return is_volume(self.grid)


@functools.lru_cache(maxsize=1024)
def _tokenization(geometry: Geometry, tokens_per_axis: int, tokens_per_axis_3d: int, jitter: bool) -> TokenizationPlan:
    return make_plan(geometry.grid, geometry.boundaries, tokens_per_axis, tokens_per_axis_3d, jitter, num_layers=0)


def tokenization(geometry: Geometry, config: WalrusConfig) -> TokenizationPlan:
    """The plan that training makes for the geometry, with the extra token that jitter needs on axes that do not wrap.

    Raises:
        ValueError: a grid that cannot be tokenized.
    """
    return _tokenization(geometry, config.tokens_per_axis, config.tokens_per_axis_3d, config.jitter)


def micro_batch_tokens(geometry: Geometry, shape: Shape, config: WalrusConfig) -> int:
    """Tokens of all frames and samples of a micro-batch."""
    return shape.batch * shape.frames * tokenization(geometry, config).num_tokens


def forward_flops(geometry: Geometry, shape: Shape, config: WalrusConfig, attention_price: float = 1.0) -> float:
    """Operations of a forward pass of a micro-batch, two a multiply-add.

    `2 * (conv1 + conv2)` a frame for encoder and decoder, and for each token and layer `28 width^2` in linear maps (at
    an MLP of twice the width), `4 S width` in attention over the S tokens of a frame and `4 T width` over T frames.
    """
    plan = tokenization(geometry, config)
    width, stem, tokens = config.hidden_size, config.stem_hidden_size, plan.num_tokens
    first, second = config.patch_kernel_sizes
    # Cells between the two convolution stages: tokens * s2, and the overlap of the second kernel.
    axes = zip(plan.tokens, plan.strides, plan.grid)
    middle = math.prod((t - 1) * s2 + second for t, (_, s2), n in axes if n > 1)
    conv1 = 2 * middle * stem * geometry.channels * first**plan.ndim
    conv2 = 2 * tokens * width * stem * second**plan.ndim
    linear = 16 * width**2 + 6 * width * config.intermediate_size
    attention = attention_price * 4 * width * (tokens + shape.frames)
    blocks = tokens * config.num_hidden_layers * (linear + attention)
    return shape.batch * shape.frames * (2.0 * (conv1 + conv2) + blocks)


def parameter_bytes(config: WalrusConfig) -> int:
    """Of the weight matrices and kernels; norms and biases are less than a thousandth."""
    width, stem = config.hidden_size, config.stem_hidden_size
    first, second = config.patch_kernel_sizes
    block = 8 * width**2 + 3 * width * config.intermediate_size
    # Encoder and decoder, each for planes and for volumes.
    ends = 4 * stem * (config.vocab_size * first**3 + width * second**3)
    return BYTES_PER_PARAMETER * (config.num_hidden_layers * block + ends)


def micro_batch_cost(
    geometry: Geometry, shape: Shape, config: WalrusConfig, hardware: Hardware = H100, members: int = 4
) -> float:
    """Seconds of a micro-batch, forward and backward.

    The gathers of a sharded model (`members` GPUs) run while the GPU computes: the longer of the two counts.

    Raises:
        ValueError: a grid that cannot be tokenized.
    """
    flops = TRAINING_FACTOR * forward_flops(geometry, shape, config, hardware.attention_price)
    gathers = GATHERS * parameter_bytes(config) * (members - 1) / members / hardware.node_bandwidth
    return max(flops / (hardware.peak_flops * hardware.efficiency), gathers) + hardware.overhead


def all_reduce_cost(config: WalrusConfig, hardware: Hardware, groups: int, members: int) -> float:
    """Seconds that an optimiser step waits for the gradients of the other groups: a ring, each GPU with its shard."""
    crossing = 2 * (groups - 1) / groups * parameter_bytes(config) / members
    return hardware.exposed_all_reduce * crossing / hardware.network_bandwidth


@dataclasses.dataclass
class _Entry:
    predicted: float
    measured: float = 0.0
    count: int = -1  # measurements that are in; the first one, which holds compilation, is not


class CostTable:
    """Seconds of a micro-batch for each scenario and shape: counted at first, measured as training goes on.

    A plan for a step must be the same on every rank, whenever it is made. So measured costs take effect late: what has
    been measured up to the end of one interval of `interval` steps holds from the next but one on, and plans may be
    made at least `interval` steps ahead of training. All ranks must call `measure` for every step with the same numbers
    (say, the mean of all ranks). As long as some are unmeasured, their predictions are scaled to the measured ones.

    Args:
        predicted: seconds for each (scenario, batch, frames).
        interval: steps.

    Attributes:
        step: the next one to be measured.

    Raises:
        ValueError: costs that are not positive, or an interval below 1.
    """

    def __init__(self, predicted: Mapping[Key, float], interval: int = INTERVAL) -> None:
        if interval < 1:
            raise ValueError(f"interval: expected at least 1 step, found {interval}")
        for key, seconds in predicted.items():
            _check_seconds(key, seconds)
        self.interval, self.step = interval, 0
        self._entries = {key: _Entry(float(seconds)) for key, seconds in predicted.items()}
        first = self.estimates()
        self._in_force = {0: first, 1: first}

    def costs(self, step: int) -> dict[Key, float]:
        """Seconds that hold for a step.

        Raises:
            ValueError: the step lies so far ahead that its costs are not known yet, or behind.
        """
        number = step // self.interval
        if number not in self._in_force:
            known = [n * self.interval for n in sorted(self._in_force)]
            raise ValueError(
                f"step {step}: expected {known[0]} to {known[-1] + self.interval - 1}, whose costs are known; "
                "measure each step on this very table, and plan no further ahead"
            )
        return self._in_force[number]

    def measure(self, step: int, seconds: Mapping[Key, float]) -> None:
        """What micro-batches of a finished step took; may be empty. The same on all ranks.

        Raises:
            ValueError: an unknown scenario or shape, times that are not positive, or a step out of turn.
        """
        if step != self.step:
            raise ValueError(
                f"expected the measurements of step {self.step}, found those of step {step}; none is left out"
            )
        for key, found in seconds.items():
            _check_seconds(key, found)
            if key not in self._entries:
                raise ValueError(f"{key}: expected a micro-batch of this table, which has {sorted(self._entries)}")
        for key, found in seconds.items():
            entry = self._entries[key]
            entry.count += 1
            if entry.count:
                entry.measured += max(EWMA, 1 / entry.count) * (found - entry.measured)
        self.step += 1
        if self.step % self.interval == 0:
            number = step // self.interval
            self._in_force = {number + 1: self._in_force[number + 1], number + 2: self.estimates()}

    def estimates(self) -> dict[Key, float]:
        """The best that is known now, whether in force or not."""
        measured = [entry for entry in self._entries.values() if entry.count > 0]
        logs = [math.log(entry.measured / entry.predicted) for entry in measured]
        scale = math.exp(math.fsum(logs) / len(logs)) if logs else 1.0
        return {k: e.measured if e.count > 0 else scale * e.predicted for k, e in self._entries.items()}

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint, as JSON can hold it: plans go on from it exactly as without a stop."""
        return {
            "interval": self.interval,
            "step": self.step,
            "entries": [[*key, e.predicted, e.measured, e.count] for key, e in self._entries.items()],
            "in_force": {str(number): list(costs.values()) for number, costs in self._in_force.items()},
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> CostTable:
        """The table that `to_dict` wrote.

        Raises:
            ValueError: something else.
        """
        try:
            rows = [((str(name), int(b), int(t)), _Entry(p, m, int(n))) for name, b, t, p, m, n in state["entries"]]
            table = cls({key: entry.predicted for key, entry in rows}, int(state["interval"]))
            table._entries, table.step = dict(rows), int(state["step"])
            in_force = state["in_force"].items()
            table._in_force = {int(number): dict(zip(table._entries, costs, strict=True)) for number, costs in in_force}
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"expected a table of costs as `CostTable.to_dict` writes it, found {error!r}") from None
        return table


def _check_seconds(key: Key, seconds: float) -> None:
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"{key}: expected a cost in seconds above 0, found {seconds}")
