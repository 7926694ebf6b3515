"""The physics processor: named fields to model inputs and back, and the plan of their tokenization."""

import dataclasses
import difflib
import inspect
import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.feature_extraction_utils import BatchFeature, FeatureExtractionMixin

from .fields import (
    FLAG_NAMES,
    PUBLISHED_FIELDS,
    BoundaryCondition,
    Trajectory,
    check_trajectory,
    decimal_logarithm,
    fill_obstacles,
    fill_unusable,
)
from .jitter import TokenizationPlan, make_plan, warn_unmeasured
from .strides import is_volume

LETTERS = "xyz"
# Beyond this the squares of the RMS scale leave float32.
LARGEST = 1e18


@dataclasses.dataclass(frozen=True)
class Channel:
    """One input channel: where it comes from and what the vocabulary calls it.

    Attributes:
        name: vocabulary name.
        field: name in the trajectory.
        component: index into the trailing component axes; None for a component that exists only because the data was
            lifted to 3D, and is zero.
        log: whether the model sees the decimal logarithm.
    """

    name: str
    field: str
    component: tuple[int, ...] | None = ()
    log: bool = False


class WalrusProcessor(FeatureExtractionMixin):
    """Turns a [`Trajectory`] into model inputs, plans its tokenization, and turns forecasts back.

    Vectors and tensors become channels, named by position for cartesian axes: the component along the first axis is
    `velocity_x`, because the model knows an axis by its place. Data with fewer than three axes is lifted to 3D: the
    given axes first, singletons last, missing vector components as zeros that are marked in `padded_channels`.

    Args:
        field2id: field vocabulary of the model; None is the published one.
        tokens_per_axis, tokens_per_axis_3d: targets of the tokenization; the compute dial.
        jitter: whether plans draw random shifts.
        num_hidden_layers: for how many layers plans draw token rolls; a model with fewer layers uses the first.
        context_frames, context_frames_3d: the most frames that a forecast starts from (published: 6, volumes 3).
        field_names: own field name -> vocabulary name, e.g. `{"rho": "density", "u": "velocity"}`.
        log_fields: own names of positive fields whose decimal logarithm the model reads and forecasts; the vocabulary
            name is then `log10_<name>` where there is one.
        global_scales: `{"rms": {field: value}, "rms_delta": {field: value}}` in the layout of The Well's `stats.yaml`,
            a number or one a component, by own names (of the logarithm for log fields); replaces the scales of the
            given frames, for models trained that way.
        hold_scales: keep the scales of the given frames through a forecast. The published rollout renews them at each
            step. Global scales win.
        trained_stride: distance of the frames that the model was fine-tuned on. Above 1, whoever gives it consecutive
            frames is warned; nothing else follows from it.
    """

    model_input_names = [  # noqa: RUF012
        "field_values", "field_ids", "boundary_conditions", "constant_values", "constant_ids", "padded_channels",
        "obstacle_mask",
    ]  # fmt: skip

    def __init__(
        self,
        field2id: Mapping[str, int] | None = None,
        tokens_per_axis: int = 32,
        tokens_per_axis_3d: int = 16,
        jitter: bool = True,
        num_hidden_layers: int = 40,
        context_frames: int = 6,
        context_frames_3d: int = 3,
        field_names: Mapping[str, str] | None = None,
        log_fields: Sequence[str] = (),
        global_scales: Mapping[str, Mapping[str, Any]] | None = None,
        hold_scales: bool = False,
        trained_stride: int = 1,
        **kwargs,
    ):
        counts = {
            "tokens_per_axis": tokens_per_axis, "tokens_per_axis_3d": tokens_per_axis_3d,
            "num_hidden_layers": num_hidden_layers, "context_frames": context_frames,
            "context_frames_3d": context_frames_3d, "trained_stride": trained_stride,
        }  # fmt: skip
        for name, count in counts.items():
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"{name}: expected a whole number of at least 1, found {count!r}")
        if isinstance(log_fields, str):
            raise ValueError(f"log_fields: expected a list of names such as [{log_fields!r}], found {log_fields!r}")
        _check_settings(kwargs)
        self.field2id = dict(field2id) if field2id else {name: i for i, name in enumerate(PUBLISHED_FIELDS)}
        self.tokens_per_axis = tokens_per_axis
        self.tokens_per_axis_3d = tokens_per_axis_3d
        self.jitter = jitter
        self.num_hidden_layers = num_hidden_layers
        self.context_frames = context_frames
        self.context_frames_3d = context_frames_3d
        self.field_names = dict(field_names or {})
        self.log_fields = list(log_fields)
        self.global_scales = {kind: dict(values) for kind, values in global_scales.items()} if global_scales else None
        self.hold_scales = hold_scales
        self.trained_stride = trained_stride
        self._warned_grids: set = set()
        super().__init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        output.pop("_warned_grids")  # what this process has warned of is no setting
        return output

    def most_frames(self, grid: Sequence[int]) -> int:
        """The most frames that a forecast on this grid starts from; only axes of more than one cell count."""
        return self.context_frames_3d if is_volume(grid) else self.context_frames

    def plan(
        self,
        grid: Sequence[int],
        boundary_conditions: Mapping[str, Any] | Sequence | Tensor,
        tokens_per_axis: int | None = None,
        jitter: bool | None = None,
        seed: int | None = None,
    ) -> TokenizationPlan:
        """Plan the tokenization of a grid of 1 to 3 axes.

        Args:
            boundary_conditions: as in [`Trajectory`] (a dict in the order of the axes), or ids `(axes, 2)`.
            tokens_per_axis: overrides the processor's target, for planes and volumes alike.
            jitter: overrides the processor's setting.
            seed: makes the shifts reproducible; None draws from torch's default generator.

        Raises:
            ValueError: an axis of 2 to 7 cells, boundaries that do not fit the grid, a half-periodic axis, no tokens.
        """
        cells = [int(n) for n in grid]
        if not 1 <= len(cells) <= 3:
            raise ValueError(f"grid: expected 1 to 3 axes, found {cells}")
        sides = _sides(boundary_conditions)
        if len(sides) not in (len(cells), 3):
            raise ValueError(
                f"boundary_conditions: expected one entry for each of {len(cells)} axes, found {len(sides)}"
            )
        missing = 3 - len(cells)
        sides = sides[: len(cells)] + [(int(BoundaryCondition.PERIODIC),) * 2] * missing
        plan = make_plan(
            cells + [1] * missing,
            sides,
            self.tokens_per_axis if tokens_per_axis is None else tokens_per_axis,
            self.tokens_per_axis_3d if tokens_per_axis is None else tokens_per_axis,
            self.jitter if jitter is None else jitter,
            self.num_hidden_layers,
            generator=None if seed is None else torch.Generator().manual_seed(seed),
        )
        warn_unmeasured(plan, self._warned_grids)
        return plan

    def __call__(
        self, trajectory: Trajectory, plan: TokenizationPlan | None = None, return_tensors: str = "pt"
    ) -> BatchFeature:
        """Model inputs for one trajectory, as a batch of one.

        Returns:
            `field_values` `(1, T, C, H, W, D)` float32, `field_ids` and `padded_channels` `(1, C)`,
            `boundary_conditions` `(1, 3, 2)`; where the trajectory has them `constant_values` `(1, K, H, W, D)` with
            `constant_ids` `(1, K)`, and `obstacle_mask` `(1, H, W, D)`; `value_scales` and `change_scales` `(1, C)`
            where the processor holds global scales; `plan` if one is given.

        Raises:
            ValueError: no trajectory, unknown fields, missing components, NaN, infinite or unusably large values.
        """
        check_trajectory(trajectory)
        if return_tensors != "pt":
            raise ValueError(f"return_tensors: only 'pt' is supported, found {return_tensors!r}")
        channels = self.channels(trajectory)
        constants = self.channels(trajectory, constant=True)
        trajectory.check_finite()
        data: dict[str, Any] = self.static_inputs(trajectory)
        obstacle = trajectory.obstacle_mask
        data["field_values"] = stack_channels(
            channels, trajectory.fields, (trajectory.num_frames, *trajectory.grid), obstacle
        )[None]
        if obstacle is not None:
            data["obstacle_mask"] = torch.from_numpy(_lift(obstacle, len(trajectory.axes)).copy())[None]
        if constants:
            data["constant_values"] = stack_channels(
                constants, trajectory.constant_fields, (1, *trajectory.grid), obstacle, constant=True
            )
        if plan is not None:
            grid = (*trajectory.grid, *[1] * (3 - len(trajectory.grid)))
            sides = data["boundary_conditions"][0].tolist()
            kinds = [pair for pair, n in zip(plan.boundaries, grid) if n > 1]
            if plan.grid != grid or kinds != [tuple(pair) for pair, n in zip(sides, grid) if n > 1]:
                raise ValueError(f"plan: made for another grid or other boundaries ({plan.grid}) than {trajectory}")
            data["plan"] = plan
        return BatchFeature(data)

    def static_inputs(self, trajectory: Trajectory) -> dict[str, Tensor]:
        """The inputs that follow from names, axes and boundaries alone, as a batch of one.

        Returns:
            `field_ids` and `padded_channels` `(1, C)`, `boundary_conditions` `(1, 3, 2)`; where the trajectory has
            constant fields `constant_ids` `(1, K)`; where the processor holds global scales `value_scales` and
            `change_scales` `(1, C)`.
        """
        channels = self.channels(trajectory)
        constants = self.channels(trajectory, constant=True)
        sides = [*trajectory.boundary_ids(), *[(int(BoundaryCondition.PERIODIC),) * 2] * (3 - len(trajectory.axes))]
        data = {
            "field_ids": self._ids(channels),
            "padded_channels": torch.tensor([[channel.component is None for channel in channels]]),
            "boundary_conditions": torch.tensor([sides]),
        }
        if constants:
            data["constant_ids"] = self._ids(constants)
        if self.global_scales is not None:
            data["value_scales"] = self._global(channels, "rms")
            data["change_scales"] = self._global(channels, "rms_delta")
        return data

    def postprocess(self, prediction: Tensor, trajectory: Trajectory) -> Trajectory:
        """Forecast frames as a trajectory with the names, axes and rank of the one they follow.

        Args:
            prediction: `(members, steps, channels, H, W, D)` in the order of `channels(trajectory)`. Several members
                become `ensemble`, and their mean the fields.
            trajectory: what the forecast started from; the first forecast frame follows its last one.
        """
        channels = self.channels(trajectory)
        values = prediction.detach().float().cpu().numpy()
        lifted = (*trajectory.grid, *[1] * (3 - len(trajectory.grid)))
        if values.ndim != 6 or values.shape[2:] != (len(channels), *lifted):
            expected = f"(members, steps, {', '.join(map(str, (len(channels), *lifted)))})"
            raise ValueError(f"prediction: expected {expected} for this trajectory, found {values.shape}")
        # (members, steps, channels, *grid)
        values = values.reshape(*values.shape[:3], *trajectory.grid)
        members = {
            name: _gather([(i, c) for i, c in enumerate(channels) if c.field == name], values, trajectory)
            for name in trajectory.fields
        }
        if trajectory.obstacle_mask is not None:
            for member in members.values():
                member[:, :, trajectory.obstacle_mask] = 0.0
        return dataclasses.replace(
            trajectory,
            fields={name: m[0] if len(m) == 1 else m.mean(0) for name, m in members.items()},
            ensemble=members if len(values) > 1 else None,
            time=trajectory.time + trajectory.num_frames * trajectory.dt,
        )

    def channels(self, trajectory: Trajectory, constant: bool = False) -> list[Channel]:
        """The channels of the (constant) fields of a trajectory, in the order of the model inputs.

        Raises:
            ValueError: a name that the vocabulary lacks (with near names), or a vector given in part.
        """
        found: list[Channel] = []
        axes = trajectory.axes
        apart: dict[str, int] = {}  # stem -> rank of vectors and tensors whose components are fields of their own
        for field in trajectory.constant_fields if constant else trajectory.fields:
            log = field in self.log_fields
            name = self._vocabulary_name(field, log)
            rank = trajectory.rank(field)
            if rank:
                found += self._vector_channels(name, field, rank, axes, log)
                continue
            stem, index = self._component_of(name, axes)
            if stem:
                name = self._component_names(stem, axes, len(index))[index]
                apart[stem] = len(index)
            self._require(name, field, scalar=True)
            found.append(Channel(name, field, log=log))
        real = {channel.name for channel in found if channel.component is not None}
        found = [channel for channel in found if channel.component is not None or channel.name not in real]
        for stem, rank in apart.items():
            found += self._padding_of(stem, rank, axes, {channel.name for channel in found})
        names = [channel.name for channel in found]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"fields {', '.join(twice)}: given twice; the model reads every name of its vocabulary once, so rename "
                "one of the two or leave it out"
            )
        return found

    def _vocabulary_name(self, field: str, log: bool) -> str:
        name = self.field_names.get(field, field)
        return f"log10_{name}" if log and f"log10_{name}" in self.field2id else name

    def _component_names(self, stem: str, axes: tuple[str, ...], rank: int) -> dict[tuple[int, ...], str]:
        """Names of all components in 3D by their indices: `{(0,): "velocity_x", (1,): "velocity_y", ...}`.

        Letters go by position, for `("x", "z")` planes too: the model knows an axis by its place. Curvilinear axes keep
        their own names where the vocabulary has them.
        """
        suffixes, joint = tuple(LETTERS), ""
        if not set(axes) <= set(LETTERS) and all(
            f"{stem}_{'_'.join(parts)}" in self.field2id for parts in itertools.product(axes, repeat=rank)
        ):
            suffixes, joint = (*axes, *LETTERS[len(axes) :]), "_"
        return {
            index: f"{stem}_{joint.join(suffixes[i] for i in index)}"
            for index in itertools.product(range(3), repeat=rank)
        }

    def _vector_channels(self, name: str, field: str, rank: int, axes: tuple[str, ...], log: bool) -> list[Channel]:
        """Components in the order x, y, z; those that the grid lacks are padded where the vocabulary has them."""
        if name in self.field2id:
            raise ValueError(
                f"field {field!r}: expected a scalar (frames, {', '.join(axes)}), found "
                f"{'a vector' if rank == 1 else 'a tensor'} with components behind the axes; cut them off or rename it"
            )
        channels = []
        for index, component in self._component_names(name, axes, rank).items():
            if max(index) < len(axes):
                self._require(component, field)
                channels.append(Channel(component, field, index, log))
            elif component in self.field2id:
                channels.append(Channel(component, field, None))
        return channels

    def _component_of(self, name: str, axes: tuple[str, ...]) -> tuple[str, tuple[int, ...]]:
        """`("velocity", (0,))` for a component that is a field of its own; `("", ())` for a scalar."""
        stem = name.rpartition("_")[0]
        if self._component_names(stem, axes, 1)[0,] == f"{stem}_x":  # named by letters, not by curvilinear axes
            # Letters that name axes go to those axes' places; on axes of other names they stand for places themselves.
            named = axes if set(axes) <= set(LETTERS) else ()
            order = [*named, *(letter for letter in LETTERS if letter not in named)]
            stem, _, suffix = name.rpartition("_")
            whole = len(suffix) in (1, 2) and all(
                f"{stem}_{''.join(parts)}" in self.field2id for parts in itertools.product(LETTERS, repeat=len(suffix))
            )
            if stem and whole and set(suffix) <= set(LETTERS):
                return stem, tuple(order.index(letter) for letter in suffix)
            return "", ()
        for i, axis in enumerate(axes):
            stem = name.removesuffix(f"_{axis}")
            if stem != name and self._component_names(stem, axes, 1)[i,] == name:
                return stem, (i,)
        return "", ()

    def _padding_of(self, stem: str, rank: int, axes: tuple[str, ...], given: set[str]) -> list[Channel]:
        """What lifting adds to a vector or tensor whose components are fields of their own."""
        padding = []
        for index, name in self._component_names(stem, axes, rank).items():
            if name in given:
                continue
            if max(index) < len(axes):
                missing = "".join(axes[i] for i in index)
                raise ValueError(
                    f"field {stem!r}: its component {missing!r} is missing; give all {len(axes) ** rank} components "
                    f"on the axes {', '.join(axes)}, or one array with {len(axes)} components"
                    + (" an index" if rank == 2 else "")
                )
            if name in self.field2id:
                padding.append(Channel(name, stem, None))
        return padding

    def _require(self, name: str, field: str, scalar: bool = False) -> None:
        if name in self.field2id and name not in FLAG_NAMES:
            return
        known = [known for known in self.field2id if known not in FLAG_NAMES]
        if scalar and any(f"{name}_{parts}" in self.field2id for parts in ("x", "xx")):
            raise ValueError(
                f"field {field!r}: expected a vector or tensor, one component an axis in trailing dimensions, found a "
                "scalar: stack its components along a last axis"
            )
        stems = {known.rpartition("_")[0] for known in known if known.rpartition("_")[2] in (*LETTERS, "xx")}
        candidates = {candidate.lower(): candidate for candidate in [*known, *sorted(stems)]}
        near = difflib.get_close_matches(self.field_names.get(field, field).lower(), candidates, n=3, cutoff=0.5)
        raise ValueError(
            f"unknown field {field!r}" + (f" (as {name!r})" if name != field else "")
            + f": expected one of the model's {len(known)} field names"
            + (f", perhaps {' or '.join(repr(candidates[n]) for n in near)}" if near else "")
            + f"; map it to one with field_names={{{field!r}: NAME}} (--field-name {field}=NAME), or leave it out"
        )  # fmt: skip

    def _ids(self, channels: list[Channel]) -> Tensor:
        return torch.tensor([[self.field2id[channel.name] for channel in channels]])

    def _global(self, channels: list[Channel], kind: str) -> Tensor:
        scales = []
        for channel in channels:
            if channel.component is None:
                scales.append(1.0)  # zeros stay zeros
                continue
            given = (self.global_scales or {}).get(kind, {}).get(channel.field)
            value = np.asarray(np.nan if given is None else given, dtype=np.float64)
            if value.ndim == len(channel.component) and all(i < n for i, n in zip(channel.component, value.shape)):
                value = value[channel.component]
            if value.ndim or not 0 < value < np.inf:
                raise ValueError(
                    f"global_scales[{kind!r}]: expected for field {channel.field!r} a positive number or one for each "
                    f"component, found {given}"
                )
            scales.append(float(value))
        return torch.tensor([scales])


def _check_settings(others: Mapping[str, Any]) -> None:
    """What transformers or a later version keeps in a file may come; what looks like a misspelt setting is told."""
    known = list(inspect.signature(WalrusProcessor.__init__).parameters)
    for name in others:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
        if near:
            warnings.warn(f"setting {name!r} is not known and changes nothing: perhaps {near[0]!r}", stacklevel=3)


def _sides(boundary_conditions: Mapping[str, Any] | Sequence | Tensor) -> list[tuple[int, ...]]:
    if isinstance(boundary_conditions, str):
        raise ValueError(f"boundary_conditions: expected one entry for each axis, found {boundary_conditions!r}")
    if isinstance(boundary_conditions, Mapping):
        given = list(boundary_conditions.values())
    elif isinstance(boundary_conditions, Tensor | np.ndarray):
        given = boundary_conditions.tolist()
    else:
        given = list(boundary_conditions)
    pairs = [(sides, sides) if np.ndim(sides) == 0 else tuple(sides) for sides in given]
    return [tuple(int(BoundaryCondition.parse(side)) for side in pair) for pair in pairs]


def _lift(values: np.ndarray, spatial: int) -> np.ndarray:
    """Singleton axes behind the spatial ones, which come last: `(..., *grid)` -> `(..., H, W, D)`."""
    return values.reshape(*values.shape, *[1] * (3 - spatial))


def stack_channels(
    channels: list[Channel],
    arrays: Mapping[str, np.ndarray],
    shape: tuple[int, ...],
    obstacle_mask: np.ndarray | None = None,
    constant: bool = False,
) -> Tensor:
    """`(T, C, H, W, D)` float32 from the arrays of a trajectory; `shape` is `(T, *grid)`.

    Inside obstacles there are zeros, as in forecasts, whatever the arrays hold: another value would be a jump that sets
    the scale. `constant` fields have zeros only in place of what cannot be used there.

    Raises:
        ValueError: NaN, infinite or unusably large values, or a logarithm of what is not positive, outside obstacles.
    """
    stacked = np.zeros((shape[0], len(channels), *shape[1:]), dtype=np.float32)
    for i, channel in enumerate(channels):
        if channel.component is None:
            continue
        index: tuple[Any, ...] = (..., *channel.component)
        values = arrays[channel.field][index]
        limit = float(np.finfo(np.float32).max) if channel.log else LARGEST  # forecasts come back as float32
        if constant:
            values = fill_unusable(values, obstacle_mask, channel.log, limit)
        else:
            values = fill_obstacles(values, obstacle_mask, 1 if channel.log else 0)
        smallest, largest = float(values.min()), float(values.max())
        if not np.isfinite([smallest, largest]).all():
            raise ValueError(f"field {channel.field!r}: expected finite numbers, found NaN or infinity; leave them out")
        if max(-smallest, largest) > limit:
            raise ValueError(
                f"field {channel.field!r}: expected magnitudes up to {limit:.3g}, found {max(-smallest, largest):.3g}; "
                "rescale its units" + ("" if channel.log else " or take it as a logarithm (log_fields)")
            )
        if channel.log:
            if not smallest > 0:
                raise ValueError(
                    f"field {channel.field!r}: expected positive values for a logarithm, found {smallest:g}; "
                    "raise them to a small positive floor, or take the field out of log_fields"
                )
            values = decimal_logarithm(values)
        stacked[:, i] = values
    return torch.from_numpy(_lift(stacked, len(shape) - 1))


def _gather(channels: list[tuple[int, Channel]], values: np.ndarray, trajectory: Trajectory) -> np.ndarray:
    """One field of the members, `(members, steps, *grid[, components])`, from `(members, steps, channels, *grid)`."""
    real = [(i, channel) for i, channel in channels if channel.component is not None]
    rank = len(real[0][1].component or ())
    field = np.empty((*values.shape[:2], *trajectory.grid, *[len(trajectory.axes)] * rank), dtype=np.float32)
    for i, channel in real:
        component = values[:, :, i]
        index: tuple[Any, ...] = (..., *(channel.component or ()))
        field[index] = 10.0**component if channel.log else component
    return field


__all__ = ["WalrusProcessor"]
