"""What forecasts: the model, rolled out a batch at a time and a step at a time, and anything that has `predict`."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ..data.scenarios import Scenario
from ..data.streams import scenario_processor
from ..fields import Trajectory
from ..hub import tensors_digest
from ..jitter import warn_unmeasured
from ..pipeline_walrus import WalrusPipeline
from ..processing_walrus import WalrusProcessor
from ..rollouts import hidden_changes, member_rollouts, other_stride, small_changes

# Fields of one frame, each `(members, *grid, ...)`.
Frame = dict[str, np.ndarray]


class Forecaster(Protocol):
    """What can be evaluated beside a model: it is trained before, and wrapping one takes this method alone.

    One that was trained, or whose settings change its forecasts, also has the `fingerprint()` of `TrainedForecaster`:
    without it, an evaluation that was begun with others goes on as if they were the same.
    """

    def predict(self, context: Trajectory, steps: int) -> Trajectory:
        """The `steps` frames after the context, with the same fields; members, if there are any, in `.ensemble`.

        Raises:
            ValueError: this context cannot be forecast; counted as a failure at the first step.
        """


@runtime_checkable
class TrainedForecaster(Protocol):
    """A forecaster that says what its forecasts depend on, so that a resumed evaluation notices another one."""

    def fingerprint(self) -> str:
        """A digest of all that was learnt, and settings in words."""


class WalrusForecaster:
    """A pipeline, read as one scenario wants it.

    Args:
        pipe: model and processor.
        scenario: whose names, logarithms and zero fields are taken; None takes the processor as it is.
        ensemble_size, jitter, tokens_per_axis: as in `WalrusPipeline.predict`.
        frame_stride: distance of the frames that it is given.

    Attributes:
        notes: what the scenario's data had that the model cannot take, in words.
    """

    def __init__(
        self,
        pipe: WalrusPipeline,
        scenario: Scenario | None,
        ensemble_size: int = 1,
        jitter: bool | None = None,
        tokens_per_axis: int | None = None,
        frame_stride: int = 1,
    ) -> None:
        self.model = pipe.model
        self.processor = pipe.processor if scenario is None else scenario_processor(pipe.processor, scenario)
        self.zero_fields = () if scenario is None else scenario.zero_fields
        self.ensemble_size = ensemble_size
        self.jitter, self.tokens_per_axis = self.processor.jitter if jitter is None else jitter, tokens_per_axis
        line = other_stride(self.processor, frame_stride)
        self.notes = [] if line is None else [line]

    def readable(self, context: Trajectory) -> Trajectory:
        """The context with the fields that the model knows; what is left out is noted, once.

        Raises:
            ValueError: nothing is left, or a grid that cannot be tokenized.
        """
        left_out = self._unknown(context)
        fields = {name: values for name, values in context.fields.items() if name not in left_out}
        constants = {
            name: np.zeros_like(values) if name in self.zero_fields else values
            for name, values in context.constant_fields.items()
            if name not in left_out
        }
        if not fields:
            raise ValueError(f"the model's vocabulary has none of the fields {', '.join(context.fields)}")
        kept = Trajectory(
            fields, context.boundary_conditions, constants, context.axes, context.dt, context.name, context.time,
            context.coordinates, context.obstacle_mask, grid_type=context.grid_type,
        )  # fmt: skip
        self.processor.channels(kept)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            plan = self.processor.plan(kept.grid, kept.boundary_conditions, self.tokens_per_axis, jitter=False)
            warn_unmeasured(plan, set())  # the processor warns of a grid once
        lines = [f"field {name!r} is not in the model's vocabulary: left out and not scored" for name in left_out]
        for line in [*lines, *(str(warning.message) for warning in caught)]:
            self.note(line)
        return kept

    def note(self, line: str) -> None:
        if line not in self.notes:
            self.notes.append(line)

    def _unknown(self, context: Trajectory) -> list[str]:
        unknown = []
        for constant, arrays in ((False, context.fields), (True, context.constant_fields)):
            for name, values in arrays.items():
                alone = {name: values[-1:]} if not constant else {"": np.zeros((1, *context.grid))}
                only = Trajectory(
                    alone, context.boundary_conditions, {name: values} if constant else {}, context.axes
                )  # fmt: skip
                try:
                    self.processor.channels(only, constant)
                except ValueError as error:
                    if str(error).startswith("unknown field"):
                        unknown.append(name)
        return unknown

    def rollout(self, contexts: Sequence[Trajectory], steps: int, seed: int) -> Iterator[list[Frame | str]]:
        """Forecast alike contexts together, and yield the frames of all of them, a step at a time.

        Memory does not grow with the steps. Each context gets what `WalrusPipeline.predict(context, steps,
        ensemble_size, seed, jitter, tokens_per_axis)` gives it alone, up to the rounding of larger batches. A context
        whose forecast is not finite any more goes on as it is; the others do not notice. In the place of a context
        that cannot be read stands the reason.
        """
        frames = self.processor.most_frames(contexts[0].grid)
        recent = [context.frames(max(context.num_frames - frames, 0)) for context in contexts]
        found: list[Frame | str] = [""] * len(recent)
        given = {}
        for row, context in enumerate(recent):
            try:
                given[row] = self.processor(context)
            except ValueError as error:
                found[row] = " ".join(str(error).split())
        if not given:
            yield from itertools.repeat(found, steps)
            return
        members = self._members(list(given.values()), recent[0], steps, seed)
        for _ in range(steps):
            # (members, batch, channels, H, W, D)
            state = torch.stack([next(member).float().cpu() for member in members])
            for place, row in enumerate(given):
                found[row] = self._frame(state[:, place], recent[row])
            yield list(found)

    def _members(self, given: Sequence[Any], alike: Trajectory, steps: int, seed: int) -> list[Iterator[Tensor]]:
        """A rollout of the whole batch for each member."""
        inputs = {name: torch.cat([one[name] for one in given]) for name in given[0]}
        eps = self.model.config.scale_eps
        for field in small_changes(self.processor, inputs, alike, eps):
            self.note(
                f"field {field!r} changes by less than the model's smallest scale of {eps:g} a frame: its forecast is "
                "noise"
            )
        for field in hidden_changes(self.processor, inputs, alike):
            self.note(f"field {field!r} changes by less a frame than float32 tells apart: its forecast is noise")
        generators = [torch.Generator().manual_seed(seed + member) for member in range(self.ensemble_size)]
        return member_rollouts(
            self.model, self.processor, inputs, alike, steps, generators, self.tokens_per_axis, self.jitter
        )

    def _frame(self, state: Tensor, context: Trajectory) -> Frame:
        """`(members, channels, H, W, D)` by own names and in own units."""
        with np.errstate(over="ignore", invalid="ignore"):
            found = self.processor.postprocess(state[:, None], context)
        if found.ensemble is None:
            return dict(found.fields)  # (1 step, ...) is (1 member, ...)
        return {name: values[:, 0] for name, values in found.ensemble.items()}


def predicted_frames(forecaster: Forecaster, contexts: Sequence[Trajectory], steps: int) -> Iterator[list[Frame | str]]:
    """The same for anything that has `predict`, one context after the other; a text is the reason of a failure."""
    found: list[Trajectory | str] = []
    for context in contexts:
        try:
            found.append(_checked(forecaster.predict(context, steps), context, steps))
        except ValueError as error:
            found.append(" ".join(str(error).split()))
    for step in range(steps):
        yield [forecast if isinstance(forecast, str) else _frame_of(forecast, step) for forecast in found]


def _frame_of(forecast: Trajectory, step: int) -> Frame:
    if forecast.ensemble is None:
        return {name: values[step : step + 1] for name, values in forecast.fields.items()}
    return {name: values[:, step] for name, values in forecast.ensemble.items()}


def _checked(forecast: Trajectory, context: Trajectory, steps: int) -> Trajectory:
    """A forecast that does not answer the question is a mistake in the forecaster, and stops the evaluation."""
    shapes = {name: (steps, *values.shape[1:]) for name, values in context.fields.items()}
    found = {name: values.shape for name, values in forecast.fields.items()}
    if found != shapes:
        raise TypeError(f"expected a forecast of fields and shapes {shapes}, found {found}")
    return forecast


def describe_model(name: str, pipe: WalrusPipeline) -> dict[str, Any]:
    """Name, size and a hash over all weights and buffers, so that a resumed evaluation goes on with the same model."""
    parameters = list(pipe.model.parameters())
    return {
        "name": name,
        "class": type(pipe.model).__name__,
        "parameters": sum(p.numel() for p in parameters),
        "dtype": str(parameters[0].dtype).removeprefix("torch."),
        "weights": tensors_digest(sorted(pipe.model.state_dict().items())),
        "processor": _settings(pipe.processor),
    }


def _settings(processor: WalrusProcessor) -> dict[str, Any]:
    kept = ("tokens_per_axis", "tokens_per_axis_3d", "jitter", "context_frames", "context_frames_3d", "field_names",
            "log_fields", "global_scales", "hold_scales")  # fmt: skip
    return {name: value for name, value in processor.to_dict().items() if name in kept}
