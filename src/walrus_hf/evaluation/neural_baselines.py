"""Networks that forecast the next frame as Walrus does: same inputs, scales, target and loss, other architecture.

Shapes: B batch, T frames, C channels of a batch, K fields that the network knows, H W D space, `cells` the axes among
them that have more than one cell.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.collator import collate
from ..fields import BoundaryCondition, Trajectory
from ..hub import tensors_digest
from ..loading import usable_device
from ..modeling_walrus import WalrusPredictionOutput, mask_state
from ..normalization import accurate, delta_scales, field_scales, per_channel
from ..processing_walrus import WalrusProcessor
from ..training.optim import make_optimizer, published_schedule
from .baseline_folders import save_folder
from .principal_components import check_context
from .unet import UNet

ARCHITECTURES = ("unet", "fno", "ufno")
# Resolution of the learning-rate schedule where time, not steps, is counted.
TICKS = 10**6


@dataclasses.dataclass(frozen=True)
class FieldLayout:
    """What a network is built for.

    Attributes:
        fields: vocabulary names of the fields that it reads and forecasts.
        constants: of those that it only reads.
        ndim: axes with more than one cell.
        frames: input frames; a forecast needs as many.
    """

    fields: tuple[str, ...]
    constants: tuple[str, ...]
    ndim: int
    frames: int

    @classmethod
    def of_stream(
        cls, stream: Iterable[Mapping[str, Any]], processor: WalrusProcessor | None = None, batches: int = 16
    ) -> FieldLayout:
        """The union of what the first batches of a stream hold.

        Raises:
            ValueError: batches with different numbers of axes: one network serves planes or volumes, not both.
        """
        names = _names(processor or WalrusProcessor())
        fields: dict[str, None] = {}
        constants: dict[str, None] = {}
        dimensions, frames = set(), 0
        for batch in itertools.islice(stream, batches):
            inputs = collate(batch)
            dimensions.add(len(_axes(inputs["field_values"])))
            frames = inputs["field_values"].shape[1]
            fields.update(dict.fromkeys(names[i] for i, real in _channels(inputs) if real))
            if "constant_ids" in inputs:
                constants.update(dict.fromkeys(names[i] for i in inputs["constant_ids"][0].tolist()))
        if len(dimensions) != 1:
            raise ValueError(
                f"stream: expected batches of one number of axes, found {sorted(dimensions) or 'no batch'}; train one "
                "baseline for planes and one for volumes"
            )
        return cls(tuple(fields), tuple(constants), dimensions.pop(), frames)


class FieldNetwork(nn.Module):
    """A network between fields that are scaled as Walrus scales them; `forward` takes the same inputs.

    Fields divided by their root mean square over the frames go in, all frames as channels; out comes the change to the
    next frame in units of the root mean square of the changes so far. A field of the layout that a batch lacks is zero.

    Args:
        architecture: one of `ARCHITECTURES`.
        width: channels, on the finest level of a U-Net.
        modes: frequencies along each axis for the Fourier operators; None: 16, in volumes 8.
        field2id: the vocabulary that the inputs' ids refer to.
        scale_eps: smallest scale, as in `WalrusConfig`.
    """

    def __init__(
        self,
        architecture: str,
        layout: FieldLayout,
        width: int,
        modes: int | None = None,
        field2id: Mapping[str, int] | None = None,
        scale_eps: float = 1e-5,
    ):
        super().__init__()
        if architecture not in ARCHITECTURES:
            raise ValueError(f"architecture: expected one of {', '.join(ARCHITECTURES)}, found {architecture!r}")
        if width < 2 or not 1 <= layout.ndim <= 3 or layout.frames < 2 or not layout.fields:
            raise ValueError(
                f"expected a width of at least 2, 1 to 3 axes, 2 frames and a field, found {width}, {layout}"
            )
        self.layout, self.scale_eps = layout, scale_eps
        ids = field2id or WalrusProcessor().field2id
        self.slots = {ids[name]: slot for slot, name in enumerate(layout.fields)}
        self.constant_slots = {ids[name]: slot for slot, name in enumerate(layout.constants)}
        self.names = {i: name for name, i in ids.items()}
        in_channels = layout.frames * len(layout.fields) + len(layout.constants)
        out_channels = len(layout.fields)
        if architecture == "unet":
            self.network: nn.Module = UNet(in_channels, out_channels, width, layout.ndim)
            return
        from .fourier_operators import FourierOperator, UFourierOperator

        operator = FourierOperator if architecture == "fno" else UFourierOperator
        modes = modes or (8 if layout.ndim == 3 else 16)
        self.network = operator(in_channels, out_channels, width, layout.ndim, modes)

    def forward(
        self,
        field_values: Tensor,
        field_ids: Tensor,
        boundary_conditions: Tensor | None = None,
        constant_values: Tensor | None = None,
        constant_ids: Tensor | None = None,
        padded_channels: Tensor | None = None,
        obstacle_mask: Tensor | None = None,
        labels: Tensor | None = None,
        value_scales: Tensor | None = None,
        change_scales: Tensor | None = None,
    ) -> WalrusPredictionOutput:
        """Forecast the frame after the last one; arguments and result as in [`WalrusForPrediction`].

        Returns:
            `prediction` and `delta` `(B, 1, C, H, W, D)`; with labels the mean absolute error of the delta, over the
            same cells and channels.

        Raises:
            ValueError: fields, axes or frames that the layout does not have.
        """
        if field_values.shape[1] < self.layout.frames:
            raise ValueError(
                f"field_values: expected at least {self.layout.frames} frames, those that this network was built for, "
                f"found {field_values.shape[1]}"
            )
        x = accurate(field_values[:, -self.layout.frames :])
        axes = _axes(x)
        if len(axes) != self.layout.ndim:
            raise ValueError(
                f"field_values: expected a grid of {self.layout.ndim} axes, found {tuple(x.shape[3:])}; train one "
                "baseline for planes and one for volumes"
            )
        inputs = {"field_ids": field_ids, "padded_channels": padded_channels}
        real = [c for c, (_, is_real) in enumerate(_channels(inputs)) if is_real]
        slots = _places(field_ids[0, real], self.slots, self.names, "field")
        values = field_scales(x, self.scale_eps) if value_scales is None else value_scales
        changes = delta_scales(x, self.scale_eps) if change_scales is None else change_scales
        cells = [x.shape[axis] for axis in axes]
        scaled = (x / per_channel(values))[:, :, real].flatten(3).unflatten(3, cells)  # (B, T, real, *cells)
        given = scaled.new_zeros(*x.shape[:2], len(self.slots), *cells)
        given[:, :, slots] = scaled
        given = given.flatten(1, 2)  # (B, T * K, *cells)
        if self.constant_slots:
            still = given.new_zeros(len(x), len(self.constant_slots), *cells)
            if constant_values is not None and constant_ids is not None:
                places = _places(constant_ids[0], self.constant_slots, self.names, "constant field")
                scales = field_scales(accurate(constant_values)[:, None], self.scale_eps)
                still[:, places] = (constant_values / scales[:, :, None, None, None]).flatten(2).unflatten(2, cells)
            given = torch.cat([given, still], 1)
        periodic = (int(BoundaryCondition.PERIODIC),) * 2
        kinds = [periodic] * 3 if boundary_conditions is None else boundary_conditions[0].tolist()
        out = self.network(given, [kinds[axis - 3] for axis in axes])  # (B, K, *cells)
        delta = x.new_zeros(len(x), 1, *x.shape[2:])
        delta[:, 0, real] = out[:, slots].flatten(2).unflatten(2, x.shape[3:]).to(delta)
        state = x[:, -1:]
        loss = None
        if labels is not None:
            target = (accurate(labels[:, -1:]) - state) / per_channel(changes)
            loss = mask_state(delta - target, padded_channels, obstacle_mask).abs().mean()
        return WalrusPredictionOutput(loss=loss, prediction=state + delta * per_channel(changes), delta=delta)


def parameter_count(module: nn.Module) -> int:
    """Real numbers in the parameters: a complex weight counts twice."""
    return sum(p.numel() * (2 if p.is_complex() else 1) for p in module.parameters())


def width_for(
    parameters: int, architecture: str, layout: FieldLayout, modes: int | None = None, tolerance: float = 0.1
) -> int:
    """The width whose network comes closest to a number of parameters.

    Raises:
        ValueError: the closest is more than `tolerance` away, as a part of the number.
    """

    field2id = {name: i for i, name in enumerate((*layout.fields, *layout.constants))}

    def count(width: int) -> int:
        with torch.device("meta"):
            return parameter_count(FieldNetwork(architecture, layout, width, modes, field2id))

    high = 2
    while count(high) < parameters:
        high *= 2
    low = max(high // 2, 2)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < parameters else (low, middle)
    width = min((low, high), key=lambda width: abs(count(width) - parameters))
    found = count(width)
    if abs(found - parameters) > tolerance * parameters:
        remedy = "" if architecture == "unet" else "lower modes, so that widths lie closer together, or "
        raise ValueError(
            f"{architecture}: expected a width with {parameters} parameters, give or take {tolerance:.0%}, found "
            f"{found} at width {width} as the closest; {remedy}compare with a larger model"
        )
    return width


def train(
    module: nn.Module,
    stream: Iterable[Mapping[str, Any]],
    seconds: float | None = None,
    steps: int | None = None,
    learning_rate: float = 1e-3,
    max_grad_norm: float = 1.0,
    muon: bool = False,
    bfloat16: bool = False,
) -> list[dict[str, float]]:
    """Train a network, a [`WalrusForPrediction`] as well as a baseline's, on the batches of a stream.

    AdamW or Muon, and the published schedule, whose progress is the part of the time that has passed. The clock starts
    when the first batch is there. On a GPU waiting for the others counts; on a CPU seconds are those that its cores
    work for this process, added up, so that two threads pass two a second, and other work on the machine none. Steps
    whose loss or gradient is not finite are left out.

    Args:
        module: called with the inputs of a batch; its output has a `loss`.
        stream: batches of `load_stream`, collated or not; `epochs=None` makes it endless.
        seconds, steps: how long; one of the two.
        muon: as in `make_optimizer`, for a Walrus.
        bfloat16: compute in it where `torch.autocast` deems it safe; weights stay what they are.

    Returns:
        One row a step: `step`, `loss`, `seconds`, `learning_rate`.

    Raises:
        ValueError: neither or both of seconds and steps, or a stream that ends before them.
    """
    if (seconds is None) == (steps is None) or (seconds or steps or 0) <= 0:
        raise ValueError(f"expected a number of seconds or of steps above 0, found seconds={seconds}, steps={steps}")
    device = next(module.parameters()).device
    clock = time.process_time if device.type == "cpu" else time.monotonic
    optimizer = make_optimizer(module, learning_rate, muon=muon)
    module.train()
    rows: list[dict[str, float]] = []
    begin = math.nan
    for batch in stream:
        inputs = {name: value.to(device) for name, value in collate(batch).items()}
        begin = clock() if not rows else begin
        part = len(rows) / steps if steps else (clock() - begin) / (seconds or 1.0)
        rate = learning_rate * published_schedule(int(TICKS * part), TICKS)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            loss = module(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(module.parameters(), max_grad_norm)
        if torch.isfinite(norm + loss.detach()):
            optimizer.step()
        passed = clock() - begin
        rows.append({"step": len(rows) + 1, "loss": loss.item(), "seconds": passed, "learning_rate": rate})
        if (steps and len(rows) >= steps) or (seconds and passed >= seconds):
            module.eval()
            return rows
    raise ValueError(
        f"stream: expected batches for {seconds or steps} {'seconds' if seconds else 'steps'}, found its end after "
        f"{len(rows)} batches; load it with epochs=None"
    )


class NeuralBaseline:
    """A network with `fit` and `predict`: U-Net, FNO or U-FNO.

    Args:
        architecture: one of `ARCHITECTURES`.
        layout: fields, axes and frames, e.g. `FieldLayout.of_stream(stream)`.
        width, modes, scale_eps: as in `FieldNetwork`.
        processor: names, logarithms and global scales, the same as the stream's; None: the published vocabulary. A
            scenario that is loaded by name adds its own: `data.streams.scenario_processor(processor, scenario)`.
        seed: of the weights.
        device: None takes a GPU if there is one.
    """

    def __init__(
        self,
        architecture: str,
        layout: FieldLayout,
        width: int = 32,
        modes: int | None = None,
        processor: WalrusProcessor | None = None,
        scale_eps: float = 1e-5,
        seed: int = 0,
        device: str | torch.device | None = None,
    ):
        self.name = architecture
        self.processor = processor or WalrusProcessor()
        self.settings = {"width": width, "modes": modes, "scale_eps": scale_eps}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.network = FieldNetwork(architecture, layout, width, modes, self.processor.field2id, scale_eps)
        self.network.to(usable_device(device)).eval()
        self.log: list[dict[str, float]] = []

    @classmethod
    def of_equal_size(
        cls, architecture: str, model: nn.Module, layout: FieldLayout, modes: int | None = None, **kwargs: Any
    ) -> NeuralBaseline:
        """One with as many parameters as a model, give or take 10%; `.parameters` says what was reached."""
        width = width_for(parameter_count(model), architecture, layout, modes)
        return cls(architecture, layout, width, modes, **kwargs)

    @property
    def parameters(self) -> int:
        return parameter_count(self.network)

    def fit(self, stream: Iterable[Mapping[str, Any]], seconds: float | None = None, **kwargs: Any) -> None:
        """Train for some seconds, on a CPU of its cores; `train` has the arguments, `log` receives its rows."""
        self.log += train(self.network, stream, seconds, **kwargs)

    @torch.no_grad()
    def predict(self, context: Trajectory, steps: int) -> Trajectory:
        """Forecast the frames that follow `context`, of which the last `layout.frames` are read.

        Returns:
            The forecast frames only. Frames after a NaN or overflow are NaN.

        Raises:
            ValueError: fields, axes or frames that the network was not built for.
        """
        frames = self.network.layout.frames
        check_context(context, steps, frames)
        recent = context.frames(context.num_frames - frames)
        inputs = self.processor(recent).to(next(self.network.parameters()).device)
        state = inputs.pop("field_values")
        forecast = np.full((1, steps, *state.shape[2:]), np.nan, dtype=np.float32)
        for step in range(steps):
            following = self.network(state, **inputs).prediction
            if "obstacle_mask" in inputs:
                following = following.masked_fill(inputs["obstacle_mask"][:, None, None], 0.0)
            values = following[0, 0].cpu().numpy()
            if not np.isfinite(values).all():
                break
            forecast[0, step] = values
            state = torch.cat([state[:, 1:], following], 1)
        return self.processor.postprocess(torch.from_numpy(forecast), recent)

    def save(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write a folder for `load_baseline`: weights, settings, processor, and the log of training."""
        settings = {**self.settings, "layout": dataclasses.asdict(self.network.layout)}
        weights = dict(self.network.named_parameters())
        save_folder(folder, self.name, settings, weights, self.processor, self.log, overwrite)

    def fingerprint(self) -> str:
        """A digest of the weights."""
        return tensors_digest(sorted(self.network.named_parameters()))

    @classmethod
    def restore(
        cls,
        architecture: str,
        settings: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        processor: WalrusProcessor,
        device: str | torch.device | None = None,
    ) -> NeuralBaseline:
        """The baseline of a saved folder; `ValueError` for weights that do not fit its settings."""
        given = dict(settings)
        layout = given.pop("layout")
        layout = FieldLayout(tuple(layout["fields"]), tuple(layout["constants"]), layout["ndim"], layout["frames"])
        baseline = cls(architecture, layout, processor=processor, device=device, **given)
        parameters = dict(baseline.network.named_parameters())
        wrong = [n for n in parameters.keys() | tensors.keys() if _shape(parameters, n) != _shape(tensors, n)]
        if wrong:
            raise ValueError(
                f"{architecture}: expected the weights of its settings, found others, such as {min(wrong)}"
            )
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(tensors[name])
        return baseline


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None


def _names(processor: WalrusProcessor) -> dict[int, str]:
    return {i: name for name, i in processor.field2id.items()}


def _axes(values: Tensor) -> list[int]:
    """The axes of `(B, T, C, H, W, D)` with more than one cell."""
    return [axis for axis in (3, 4, 5) if values.shape[axis] > 1]


def _channels(inputs: Mapping[str, Any]) -> list[tuple[int, bool]]:
    """Vocabulary id of each channel, and whether it is a real one, not a component that lifting to 3D added."""
    ids = inputs["field_ids"][0].tolist()
    padded = inputs.get("padded_channels")
    return list(zip(ids, [True] * len(ids) if padded is None else (~padded[0]).tolist()))


def _places(ids: Tensor, slots: Mapping[int, int], names: Mapping[int, str], what: str) -> Sequence[int]:
    unknown = [names.get(i, str(i)) for i in ids.tolist() if i not in slots]
    if unknown:
        known = ", ".join(names[i] for i in slots) or "none"
        raise ValueError(
            f"{what} {', '.join(unknown)}: expected one of those that the baseline was built for ({known}); build it "
            "with a FieldLayout that names all fields of the stream"
        )
    return [slots[i] for i in ids.tolist()]
