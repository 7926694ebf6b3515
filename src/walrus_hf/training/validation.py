"""One-step errors on held-out windows: the model's, and those of the forecast that nothing changes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..data.index import ScenarioIndex
from ..data.reader import BatchReader
from ..jitter import make_plan
from ..metrics import vrmse
from ..modeling_walrus import WalrusForPrediction
from .batches import PlannedReader
from .optim import reshard

# Of height, width and depth in (B, C, H, W, D).
SPACE = (2, 3, 4)
# Of the jitter: the same at every validation, so that two of them differ by the weights alone.
SEED = 20_000


class Validation:
    """The same windows of each source at every call, spread evenly over its split, at the smallest stride.

    Args:
        indexes: one for each source, of windows with the context that training gives the source.
        batch_sizes: windows of a batch of each source.
        batches: of each source; the ranks share them.
        cache_bytes: memory for frames.
    """

    def __init__(
        self, indexes: Sequence[ScenarioIndex], batch_sizes: Sequence[int], batches: int, cache_bytes: int
    ) -> None:
        self.indexes, self.batches = list(indexes), batches
        self.read = PlannedReader(BatchReader(self.indexes, cache_bytes), batch_sizes)
        self.windows = []
        for index, size in zip(self.indexes, batch_sizes, strict=True):
            spread = np.linspace(0, index.num_windows - 1, batches * size).round().astype(np.int64)
            rows = np.stack([*index.locate(spread), index.strides(spread, np.zeros(len(spread)))], axis=1)
            self.windows.append(rows.reshape(batches, size, 4).tolist())

    def __call__(self, accelerator: Accelerator, model: nn.Module) -> dict[str, dict[str, float]]:
        """VRMSE of the frame after the last one, mean over windows and channels that are not padding.

        A collective: all ranks run as many forward passes of each source.

        Args:
            model: prepared; `model(plan=..., **inputs)` returns the last forecast `(B, C, H, W, D)` as its third value.

        Returns:
            source -> `{"vrmse": the model's, "persistence": that of the last frame}`, over what could be read; NaN
            where nothing could.
        """
        training = model.training
        model.eval()
        try:
            sums = torch.zeros(len(self.indexes), 3, dtype=torch.float64, device=accelerator.device)
            for number in range(len(self.indexes)):
                for turn in range(math.ceil(self.batches / accelerator.num_processes)):
                    batch = turn * accelerator.num_processes + accelerator.process_index
                    found = self._errors(accelerator, model, number, batch % self.batches)
                    if batch < self.batches:  # else a forward pass for company
                        sums[number] += found.to(accelerator.device)
            sums = accelerator.reduce(sums, "sum")
        finally:
            model.train(training)
            reshard(model)
        means = (sums[:, :2] / sums[:, 2:]).tolist()
        return {
            index.name: {"vrmse": error, "persistence": still} for index, (error, still) in zip(self.indexes, means)
        }

    @torch.no_grad()
    def _errors(self, accelerator: Accelerator, model: nn.Module, number: int, batch: int) -> Tensor:
        read = self.read({"source": number, "windows": self.windows[number][batch]})
        inputs = read["inputs"]
        generator = torch.Generator().manual_seed(SEED + batch)
        bare: Any = accelerator.unwrap_model(model)
        with accelerator.autocast():
            _, _, forecast = model(**prepare_inputs(inputs, bare.model, accelerator.device, generator))
        # What could not be read is forecast for company alone, and counts for nothing.
        return error_sums(forecast, inputs) if read["weight"] else torch.zeros(3, dtype=torch.float64)


def error_sums(forecast: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """Sums of VRMSE over windows and channels that are not padding: the forecast's, persistence's, and how many.

    Args:
        forecast: of the frame after the last one, `(B, C, H, W, D)`.
        inputs: of the model, with `labels`. Cells in obstacles count as forecast without error.
    """
    forecast, truth, last = (
        x.float().cpu() for x in (forecast, inputs["labels"][:, -1], inputs["field_values"][:, -1])
    )
    if "obstacle_mask" in inputs:
        inside = inputs["obstacle_mask"][:, None].cpu()
        forecast, last = torch.where(inside, truth, forecast), torch.where(inside, truth, last)
    kept = ~inputs["padded_channels"].cpu().numpy()
    errors, still = (vrmse(x.numpy(), truth.numpy(), SPACE)[kept] for x in (forecast, last))
    return torch.tensor([errors.sum(), still.sum(), kept.sum()], dtype=torch.float64)


def prepare_inputs(
    inputs: dict[str, Tensor],
    model: WalrusForPrediction,
    device: torch.device,
    generator: torch.Generator,
    tokens_per_axis: int | None = None,
) -> dict[str, Any]:
    """A batch on the device, with its tokenization planned on the host: boundary conditions need no trip back.

    Args:
        generator: the shifts of the jitter are drawn from it.
        tokens_per_axis: target along an axis, for volumes as much less as in the configuration; default, its own.
    """
    values, sides = inputs["field_values"], inputs["boundary_conditions"]
    if tokens_per_axis is None:
        plan = model.model.make_plan(values, sides, generator=generator)
    else:
        config = model.config
        in_volumes = max(round(tokens_per_axis * config.tokens_per_axis_3d / config.tokens_per_axis), 1)
        plan = make_plan(
            values.shape[3:], sides[0].tolist(), tokens_per_axis, in_volumes, config.jitter, config.num_hidden_layers,
            generator=generator,
        )  # fmt: skip
    rest = {name: value for name, value in inputs.items() if name != "boundary_conditions"}
    return {"plan": plan, **{name: value.to(device, non_blocking=True) for name, value in rest.items()}}
