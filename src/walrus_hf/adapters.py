"""What fine-tuning adds to a Walrus model: LoRA by presets, names of new fields, learnable positions."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import difflib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .convolutions import WalrusNewColumns, WalrusStridedConv, WalrusTransposedConv
from .fields import CLOSED_BOUNDARY, FLAG_NAMES, OPEN_BOUNDARY
from .layers import WalrusRotaryFrequencies, rotary_frequencies
from .modeling_walrus import WalrusForPrediction, WalrusPreTrainedModel
from .patching import WalrusAbsolutePosition, WalrusDecoder, WalrusEncoder
from .processing_walrus import WalrusProcessor

if TYPE_CHECKING:
    from peft import LoraConfig

ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
# What LoRA changes, and the settings of LoraConfig that make the variant. Encoder and decoder are no targets: their
# strides change with the grid, so they read their weights themselves and would ignore an adapter in silence.
PRESETS: dict[str, dict[str, Any]] = {
    "attention": {"target_modules": list(ATTENTION)},
    "mlp": {"target_modules": list(MLP)},
    "attention-mlp": {"target_modules": [*ATTENTION, *MLP]},
    "all-linear": {"target_modules": "all-linear"},
    "dora": {"target_modules": list(ATTENTION), "use_dora": True},
    "rslora": {"target_modules": list(ATTENTION), "use_rslora": True},
}
# Attention and MLP of a block run in parallel: without the MLP an adapter learns a third worse (examples/README.md).
DEFAULT_PRESET = "all-linear"


def lora_config(preset: str = DEFAULT_PRESET, rank: int = 16, **settings: Any) -> LoraConfig:
    """A `LoraConfig` of PEFT for Walrus.

    Args:
        preset: `"all-linear"`, of which `"attention"` (all projections of time and space attention) and `"mlp"` are
            parts; the same by names as `"attention-mlp"`, which some settings of PEFT need; or attention as `"dora"`
            or `"rslora"`. The last two also as settings on any preset.
        rank: of the update; `lora_alpha` is twice that unless given.
        **settings: of `LoraConfig`, such as `lora_dropout`, `rank_pattern`, `modules_to_save`.

    Raises:
        ValueError: no such preset.
        ImportError: PEFT is not installed.
    """
    try:
        from peft import LoraConfig
    except ImportError:
        raise ImportError("adapters need PEFT: pip install 'walrus-hf[finetune]'") from None
    return LoraConfig(**{"r": rank, "lora_alpha": 2 * rank, **PRESETS[preset_name(preset)], **settings})


def preset_name(preset: str) -> str:
    """Its key in `PRESETS`; `ValueError` where there is none."""
    name = preset.lower().replace("_", "-").replace("+", "-")
    if name not in PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, found {preset!r}")
    return name


def add_fields(
    model: nn.Module,
    processor: WalrusProcessor,
    names: Sequence[str],
    like: str | Mapping[str, str | None] | None = None,
) -> tuple[Any, WalrusProcessor]:
    """A model and a processor that know more fields; what they forecast of the old ones stays the same, to rounding.

    The old field columns and the interior flag's are multiplied by `sqrt((old - 3) / (new - 3))`, which the encoder's
    scale factor takes back (architecture, section 7).

    Args:
        model: a [`WalrusForPrediction`], or one with adapters of PEFT; it is not changed, and neither is `processor`.
        names: new names of scalars or components, such as `["tracer"]` or `["B_x", "B_y", "B_z"]`.
        like: a known field that new ones start as, the same for all or one for each; without one, the encoder starts
            from random columns as large as the others, and the forecast is that the field does not change.

    Raises:
        ValueError: names that are taken, or a `like` that is not known.
    """
    grown, settings = copy.deepcopy(model), copy.deepcopy(processor)
    settings.field2id = grow_vocabulary(grown, names, like)
    return grown, settings


def grow_vocabulary(
    model: nn.Module, names: Sequence[str], like: str | Mapping[str, str | None] | None = None
) -> dict[str, int]:
    """`add_fields` in place; the new vocabulary."""
    known = dict(bare_model(model).config.field2id or {})
    wanted = {name: like.get(name) if isinstance(like, Mapping) else like for name in names}
    _check_names(known, names, wanted)
    old, new = len(known), len(known) + len(names)
    # Of each new column the old one that it starts as.
    sources = [None if wanted[name] is None else known[str(wanted[name])] for name in names]
    factor = math.sqrt((old - len(FLAG_NAMES)) / (new - len(FLAG_NAMES)))
    unscaled = [known[CLOSED_BOUNDARY], known[OPEN_BOUNDARY]]
    vocabulary = {**known, **{name: old + i for i, name in enumerate(names)}}
    for module in model.modules():
        if isinstance(module, WalrusEncoder):
            module.state_names = new - len(FLAG_NAMES)
            _grow_encoder(module.proj1, sources, factor, unscaled)
        elif isinstance(module, WalrusDecoder):
            _grow_decoder(module.proj2, sources)
    for config in configs_of(model):
        separate = config.num_separate_fields
        config.field2id = vocabulary
        config.num_separate_fields = separate + len(names) if separate else 0
    return vocabulary


def separate_columns(model: nn.Module, count: int) -> None:
    """The columns of the last `count` names become modules `new_columns`, in place: adapters train and store them."""
    for module in model.modules():
        if isinstance(module, WalrusEncoder):
            _separate(module.proj1, count)
        elif isinstance(module, WalrusDecoder):
            _separate(module.proj2, count)
    for config in configs_of(model):
        config.num_separate_fields = count


def join_columns(model: nn.Module) -> None:
    """The reverse of `separate_columns`, once adapters are merged."""
    for module in list(model.modules()):
        if isinstance(module, WalrusStridedConv | WalrusTransposedConv) and module.new_columns is not None:
            module.weight = _parameter(torch.cat([module.weight, module.new_columns.weight], 1), module.weight)
            if module.new_columns.bias is not None:
                own: Any = module.bias
                module.bias = _parameter(torch.cat([own, module.new_columns.bias]), own)
            module.new_columns = None
    for config in configs_of(model):
        config.num_separate_fields = 0


@dataclasses.dataclass
class Extension:
    """What is added to a base model before it is fine-tuned; the same again before its adapter is loaded.

    Attributes:
        new_fields: name of a scalar or component -> the known field it starts as, or None.
        rope_learnable: None leaves the base as it is; `"shared"` or `"per_axis"`.
        absolute_position_shape: token grid of a learned absolute position embedding; None leaves the base as it is.
        scale_eps: smallest scale of fields and changes; the published fine-tuning has 1e-8.
    """

    new_fields: dict[str, str | None] = dataclasses.field(default_factory=dict)
    rope_learnable: str | None = None
    absolute_position_shape: tuple[int, ...] | None = None
    scale_eps: float = 1e-8

    def apply(self, model: WalrusForPrediction, separate: bool) -> list[str]:
        """Extend a bare model in place.

        Args:
            separate: whether the columns of new fields become modules of their own, as adapters need them.

        Returns:
            The names of the modules that came with it, for `modules_to_save` of PEFT.
        """
        added = []
        if self.new_fields:
            grow_vocabulary(model, list(self.new_fields), self.new_fields)
            if separate:
                separate_columns(model, len(self.new_fields))
            added.append("new_columns")
        if self.rope_learnable is not None:
            _learn_rotary_frequencies(model, self.rope_learnable)
            added.append("rotary_frequencies")
        if self.absolute_position_shape is not None:
            _add_absolute_position(model, self.absolute_position_shape)
            added.append("absolute_position")
        for config in configs_of(model):
            config.scale_eps = self.scale_eps
        return added


@contextlib.contextmanager
def restored_on_error(model: nn.Module) -> Iterator[None]:
    """After an error in the block the model has the modules, parameters and settings of before; no tensor is copied.

    Values that are written into a tensor stay: what extends a model makes new ones.
    """
    attributes = [vars(owner) for owner in (*model.modules(), *configs_of(model))]
    kept = [(found, dict(found)) for found in attributes]
    kept += [(inner, dict(inner)) for found in attributes for inner in found.values() if isinstance(inner, dict)]
    learns = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    except BaseException:
        for found, before in kept:
            found.clear()
            found.update(before)
        for parameter, learnt in learns:
            parameter.requires_grad_(learnt)
        raise


@contextlib.contextmanager
def without_deprecations() -> Iterator[None]:
    """Quiet about names of transformers whose successors the oldest version that we support does not have."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def bare_model(model: Any) -> WalrusForPrediction:
    """The Walrus model inside one with adapters, or the model itself."""
    return next(module for module in model.modules() if isinstance(module, WalrusForPrediction))


def configs_of(model: nn.Module) -> Iterator[Any]:
    """The configuration of each Walrus module, once; usually there is one."""
    found = {id(m.config): m.config for m in model.modules() if isinstance(m, WalrusPreTrainedModel | WalrusDecoder)}
    yield from found.values()


def near_names(name: str, known: Sequence[str]) -> list[str]:
    """Known names that look like `name`, the nearest first."""
    lower = {candidate.lower(): candidate for candidate in known}
    return [lower[match] for match in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.5)]


def near_hint(name: str, known: Sequence[str]) -> str:
    """The near names in words, to stand behind what was expected; nothing where there are none."""
    near = near_names(name, known)
    return f", perhaps {' or '.join(map(repr, near))}" if near else ""


def _check_names(known: Mapping[str, int], names: Sequence[str], wanted: Mapping[str, str | None]) -> None:
    if not names or len(set(names)) < len(names):
        raise ValueError(f"names: expected at least one new field, each once, found {list(names)}")
    taken = [name for name in names if name in known]
    if taken:
        raise ValueError(f"names: expected names that the model does not know, found {', '.join(taken)}")
    for name, source in wanted.items():
        if source is not None and (source not in known or source in FLAG_NAMES):
            hint = near_hint(source, [name for name in known if name not in FLAG_NAMES])
            raise ValueError(f"like: expected for {name!r} a field that the model knows{hint}, found {source!r}")


def _grow_encoder(conv: WalrusStridedConv, sources: list[int | None], factor: float, unscaled: list[int]) -> None:
    """Scale the columns of a weight `(stem, names, 8, 8, 8)` and append new ones."""
    old = conv.weight.shape[1]
    factors = torch.full((old,), factor, dtype=conv.weight.dtype, device=conv.weight.device)
    factors[unscaled] = 1.0
    conv.weight = _parameter(conv.weight * factors.view(1, -1, 1, 1, 1), conv.weight)
    holders: list[Any] = [conv]
    if conv.new_columns is not None:
        holders = [m for m in conv.new_columns.modules() if isinstance(m, WalrusNewColumns)]
        for columns in holders:
            columns.weight = _parameter(columns.weight * factor, columns.weight)
    size = conv.weight.detach().float().square().mean().sqrt().to(conv.weight.dtype)
    generator = torch.Generator().manual_seed(old)
    for holder in holders:
        columns = []
        for source in sources:
            if source is None:
                noise = torch.randn(conv.weight[:, 0].shape, generator=generator)
                columns.append(noise.to(conv.weight) * size)
            else:
                columns.append(conv.weight[:, source] if source < old else holder.weight[:, source - old])
        holder.weight = _parameter(torch.cat([holder.weight, torch.stack(columns, 1)], 1), holder.weight)


def _grow_decoder(conv: WalrusTransposedConv, sources: list[int | None]) -> None:
    """Append columns to a weight `(stem, names, 8, 8, 8)` and its bias; a field without a source does not change."""
    old = conv.weight.shape[1]
    base: Any = conv
    holders: list[Any] = [conv]
    if conv.new_columns is not None:
        holders = [m for m in conv.new_columns.modules() if isinstance(m, WalrusNewColumns)]
    for holder in holders:
        columns, biases = [], []
        for source in sources:
            if source is None:
                columns.append(torch.zeros_like(conv.weight[:, 0]))
                biases.append(conv.weight.new_zeros(()))
            else:
                owner, column = (base, source) if source < old else (holder, source - old)
                columns.append(owner.weight[:, column])
                biases.append(owner.bias[column])
        holder.weight = _parameter(torch.cat([holder.weight, torch.stack(columns, 1)], 1), holder.weight)
        holder.bias = _parameter(torch.cat([holder.bias, torch.stack(biases)]), holder.bias)


def _separate(conv: WalrusStridedConv | WalrusTransposedConv, count: int) -> None:
    rows, names, kernel = conv.weight.shape[:3]
    bias = conv.bias if isinstance(conv, WalrusTransposedConv) else None
    columns = WalrusNewColumns(rows, count, kernel, bias is not None)
    columns.weight = _parameter(conv.weight[:, names - count :], conv.weight)
    conv.weight = _parameter(conv.weight[:, : names - count], conv.weight)
    if bias is not None:
        columns.bias = _parameter(bias[names - count :], bias)
        conv.bias = _parameter(bias[: names - count], bias)
    conv.new_columns = columns


def _learn_rotary_frequencies(model: WalrusForPrediction, kind: str) -> None:
    """Learnable frequencies that start at what the model has: the constants, or one set for each axis."""
    sets = {"shared": 1, "per_axis": 3}[kind]
    for layer in model.model.layers:
        mixing: Any = layer.space_mixing
        like = mixing.q_proj.weight.device
        learned = WalrusRotaryFrequencies(sets, mixing.num_frequencies).to(like)
        with torch.no_grad():
            if mixing.rotary_frequencies is None:
                learned.weight.copy_(torch.tensor(rotary_frequencies(mixing.num_frequencies)))
            elif len(mixing.rotary_frequencies.weight) > sets:
                raise ValueError(
                    "rope_learnable: expected 'per_axis' for a model that has learned it so, found 'shared'"
                )
            else:
                learned.weight.copy_(mixing.rotary_frequencies.weight)
        mixing.rotary_frequencies = learned
    for config in configs_of(model):
        config.rope_learnable = kind


def _add_absolute_position(model: WalrusForPrediction, shape: Sequence[int]) -> None:
    """A learned embedding `(H, W, D, hidden)` of the token grid, drawn from N(0, 5e-3) as published."""
    if model.model.absolute_position is not None:
        raise ValueError("absolute_position: the model has one already; fine-tune it without asking for another")
    for config in configs_of(model):
        config.absolute_position_shape = list(shape)
    position = WalrusAbsolutePosition(model.config)
    noise = torch.randn(position.weight.shape, generator=torch.Generator().manual_seed(0))
    position.weight = nn.Parameter(5e-3 * noise.to(next(model.model.embeddings.parameters())))
    model.model.absolute_position = position


def _parameter(values: Tensor, like: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(values.detach().clone().contiguous(), requires_grad=like.requires_grad)
