"""Walrus: a space-time transformer that forecasts fields on grids (arXiv 2511.15684).

The forward pass reads as the data flows: scale -> resample -> pad, flag, roll -> encoder -> blocks -> decoder ->
un-roll, crop -> resample back -> add the scaled delta.

Shapes: B batch, T frames, C channels (fields), H W D space, S tokens of a frame.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .caching import WalrusTimeCache
from .configuration_walrus import WalrusConfig
from .convolutions import WalrusNewColumns, WalrusStridedConv, WalrusTransposedConv
from .fields import BoundaryCondition
from .input_checks import check_cache, check_ids, check_inputs, check_keywords, check_past, check_plan
from .jitter import (
    TokenizationPlan,
    fourier_resample,
    make_plan,
    make_plan_on_host,
    take_cyclic,
    traceable,
    unroll_and_crop,
    warn_unmeasured,
    with_shifts,
)
from .layers import (
    WalrusBlock,
    WalrusOutputLinear,
    WalrusRMSNorm,
    WalrusRotaryFrequencies,
    WalrusSpaceMixing,
    rotary_frequencies,
)
from .normalization import accurate, delta_scales, field_scales, per_channel
from .patching import WalrusAbsolutePosition, WalrusDecoders, WalrusEmbeddings


@dataclass
class WalrusPredictionOutput(ModelOutput):
    r"""
    loss (`torch.Tensor`, *optional*, returned when `labels` is given):
        Mean absolute error of the normalised delta over all frame positions but the first.
    prediction (`torch.Tensor` of shape `(batch, frames, channels, H, W, D)`):
        The next state at every frame position, in the fields' own units, float32 or better.
    delta (`torch.Tensor` of shape `(batch, frames, channels, H, W, D)`):
        The change to the next state in units of the delta scale.
    hidden_states (`tuple(torch.Tensor)`, *optional*):
        The token stream `(batch, frames, tokens, hidden)` before the first and after every layer.
    attentions (`tuple(torch.Tensor)`, *optional*):
        Spatial attention of every layer, `(batch * frames, heads, tokens, tokens)`.
    """

    loss: Tensor | None = None
    prediction: Tensor | None = None
    delta: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class WalrusPreTrainedModel(PreTrainedModel):
    config: WalrusConfig
    config_class = WalrusConfig
    base_model_prefix = "model"
    main_input_name = "field_values"
    input_modalities = "field_values"
    supports_gradient_checkpointing = True
    _no_split_modules = ["WalrusEncoder", "WalrusBlock", "WalrusDecoder"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": WalrusBlock,
        "attentions": OutputRecorder(WalrusSpaceMixing, index=1),
    }
    # The loss is a plain mean: Trainer must divide it by the accumulation steps.
    accepts_loss_kwargs = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's defaults, but output projections start at `initializer_range` of their usual size."""
        if isinstance(module, nn.Linear | WalrusStridedConv | WalrusTransposedConv | WalrusNewColumns):
            # kaiming_uniform(a=sqrt(5)), what nn.Linear and the convolutions draw from
            bound = 1.0 / math.sqrt(module.weight[0].numel())
            if isinstance(module, WalrusOutputLinear):
                bound *= self.config.initializer_range
            init.uniform_(module.weight, -bound, bound)
            if not isinstance(module, WalrusStridedConv) and module.bias is not None:
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, WalrusRMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        elif isinstance(module, WalrusAbsolutePosition):
            init.normal_(module.weight, std=5e-3)
        elif isinstance(module, WalrusRotaryFrequencies):
            constants = torch.tensor(rotary_frequencies(module.weight.shape[1]))
            init.copy_(module.weight, constants.expand_as(module.weight))


class WalrusModel(WalrusPreTrainedModel):
    """Encoder and blocks: raw fields in, token stream out."""

    def __init__(self, config: WalrusConfig):
        super().__init__(config)
        self.embeddings: nn.Module = WalrusEmbeddings(config)
        self.absolute_position = WalrusAbsolutePosition(config) if config.absolute_position_shape else None
        last = max(config.num_hidden_layers - 1, 1)
        self.layers = nn.ModuleList(
            WalrusBlock(config, config.drop_path_rate * i / last) for i in range(config.num_hidden_layers)
        )
        self.gradient_checkpointing = False
        self._warned_grids: set = set()
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The module that holds both encoders."""
        return self.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings = value

    def make_plan(
        self,
        field_values: Tensor,
        boundary_conditions: Tensor | None = None,
        strides: Sequence[Sequence[int]] | None = None,
        jitter: bool | None = None,
        patch_shifts: Sequence[int] | None = None,
        layer_shifts: Sequence[Sequence[int]] | None = None,
        generator: torch.Generator | None = None,
    ) -> TokenizationPlan:
        """Plan the tokenization of a batch: the only place where `boundary_conditions` is read on the host.

        Arguments as in `forward`. Shifts that are given switch jitter on unless `jitter=False`.
        """
        if jitter is None:
            jitter = self.config.jitter or patch_shifts is not None or layer_shifts is not None
        if boundary_conditions is None:
            sides = [[int(BoundaryCondition.PERIODIC)] * 2] * 3
        else:
            sides, *others = boundary_conditions.tolist()
            if any(other != sides for other in others):
                raise ValueError("boundary_conditions: all samples of a batch must have the same boundaries")
        if not jitter:
            rolls = None if patch_shifts is None else [patch_shifts]
            for name, rows in (("patch_shifts", rolls), ("layer_shifts", layer_shifts)):
                if rows is not None and any(int(shift) for row in rows for shift in row):
                    raise ValueError(f"{name} were given with jitter=False: leave out one of the two")
        make = make_plan if boundary_conditions is None and not jitter else make_plan_on_host
        plan = make(
            field_values.shape[3:], sides, self.config.tokens_per_axis, self.config.tokens_per_axis_3d, jitter,
            self.config.num_hidden_layers, strides, generator, patch_shifts, layer_shifts,
        )  # fmt: skip
        warn_unmeasured(plan, self._warned_grids)
        return plan

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        field_values: Tensor,
        field_ids: Tensor,
        boundary_conditions: Tensor | None = None,
        constant_values: Tensor | None = None,
        constant_ids: Tensor | None = None,
        plan: TokenizationPlan | None = None,
        strides: Sequence[Sequence[int]] | None = None,
        jitter: bool | None = None,
        patch_shifts: Sequence[int] | None = None,
        layer_shifts: Sequence[Sequence[int]] | None = None,
        generator: torch.Generator | None = None,
        value_scales: Tensor | None = None,
        frames_to_keep: int = 0,
        past_key_values: WalrusTimeCache | None = None,
        padded_channels: Tensor | None = None,
        obstacle_mask: Tensor | None = None,
        change_scales: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        r"""Encode fields and mix the tokens; arguments as in [`WalrusForPrediction`].

        `padded_channels`, `obstacle_mask` and `change_scales` are there so that a processor's output serves both
        models; what comes after the tokens reads them, not this.

        Returns `last_hidden_state` `(batch, frames, tokens, hidden)`, with the last `frames_to_keep` frames only if
        that is given.
        """
        check_keywords(kwargs)
        check_inputs(
            field_values, field_ids, constant_values, constant_ids, padded_channels=padded_channels,
            obstacle_mask=obstacle_mask,
        )  # fmt: skip
        if frames_to_keep and not 0 < frames_to_keep <= field_values.shape[1]:
            raise ValueError(f"frames_to_keep: expected 0 to {field_values.shape[1]} frames, found {frames_to_keep}")
        check_past(past_key_values, plan, value_scales)
        if plan is None:
            check_ids(self.config.vocab_size, field_ids=field_ids, constant_ids=constant_ids)
            plan = self.make_plan(
                field_values, boundary_conditions, strides, jitter, patch_shifts, layer_shifts, generator
            )
        plan = traceable(plan)
        check_plan(plan, field_values, len(self.layers))
        if value_scales is None:
            value_scales = field_scales(field_values, self.config.scale_eps)
        fields = self._network_input(accurate(field_values) / per_channel(value_scales), plan)
        if self.training and self.config.field_dropout:
            shape = (*fields.shape[:1], 1, fields.shape[2], 1, 1, 1)
            fields = fields * (torch.rand(shape, device=fields.device) >= self.config.field_dropout)
        constants = None
        if constant_values is not None:
            scales = field_scales(constant_values[:, None], self.config.scale_eps)
            constants = self._network_input(accurate(constant_values) / scales[:, :, None, None, None], plan)
        hidden_states = self.embeddings(
            fields, field_ids[0], plan, constants, None if constant_ids is None else constant_ids[0]
        )
        if self.absolute_position is not None:
            hidden_states = self.absolute_position(hidden_states, plan)
        # Only time attention mixes frames, so the last block can do without the frames that nobody reads.
        recorded = kwargs.get("output_hidden_states", self.config.output_hidden_states) or kwargs.get(
            "output_attentions", self.config.output_attentions
        )
        keep = [0] * (len(self.layers) - 1) + [0 if recorded else frames_to_keep]
        caches = [None] * len(keep) if past_key_values is None else past_key_values.layers
        for layer, positions, last, cache in zip(self.layers, self._positions(plan, hidden_states), keep, caches):
            hidden_states = layer(hidden_states, positions, last, cache, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states[:, -frames_to_keep:])

    def _network_input(self, x: Tensor, plan: TokenizationPlan) -> Tensor:
        if plan.resampled:
            x = fourier_resample(x, plan.lengths)
        return x.to(next(self.embeddings.parameters()).dtype)

    def _positions(self, plan: TokenizationPlan, like: Tensor) -> Iterator[list[Tensor]]:
        """For each layer the positions of the tokens along H, W and D, in [-1, 1].

        Rolling the token grid changes nothing but where a token stands, so the positions are rolled instead: no token
        moves, and nothing has to be un-rolled after the last layer (architecture, section 5).
        """
        dtype = torch.promote_types(like.dtype, torch.float32)
        still = [torch.linspace(-1.0, 1.0, n, dtype=dtype, device=like.device) for n in plan.tokens]
        total = [0, 0, 0]
        for shifts in plan.layer_shifts[: len(self.layers)]:
            total = [(a + b) % n for a, b, n in zip(total, shifts, plan.tokens)]
            yield [take_cyclic(p, 0, shift, n) for p, shift, n in zip(still, total, plan.tokens)]


class WalrusForPrediction(WalrusPreTrainedModel):
    """Walrus with its decoder: the next state of the fields at every frame position."""

    def __init__(self, config: WalrusConfig):
        super().__init__(config)
        self.model = WalrusModel(config)
        self.decoder = WalrusDecoders(config)
        self.post_init()

    @can_return_tuple
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
        plan: TokenizationPlan | None = None,
        strides: Sequence[Sequence[int]] | None = None,
        jitter: bool | None = None,
        patch_shifts: Sequence[int] | None = None,
        layer_shifts: Sequence[Sequence[int]] | None = None,
        generator: torch.Generator | None = None,
        value_scales: Tensor | None = None,
        change_scales: Tensor | None = None,
        frames_to_keep: int = 0,
        past_key_values: WalrusTimeCache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> WalrusPredictionOutput:
        r"""Forecast the frame after each input frame.

        Within one batch all rows of `field_ids`, `constant_ids`, `padded_channels` and `boundary_conditions` are equal.

        Args:
            field_values (`torch.Tensor` of shape `(batch, frames, channels, H, W, D)`):
                Raw fields in their own units; absent axes have one cell.
            field_ids (`torch.LongTensor` of shape `(batch, channels)`):
                Vocabulary id of each channel.
            boundary_conditions (`torch.LongTensor` of shape `(batch, 3, 2)`, *optional*):
                Low and high side of each axis: wall 0, open 1, periodic 2. `None` is periodic everywhere. Read on the
                host once to make a plan; give `plan` instead where that must not happen.
            constant_values (`torch.Tensor` of shape `(batch, constants, H, W, D)`, *optional*):
                Fields that do not change in time; read, never forecast.
            constant_ids (`torch.LongTensor` of shape `(batch, constants)`, *optional*):
                Vocabulary id of each constant field.
            padded_channels (`torch.BoolTensor` of shape `(batch, channels)`, *optional*):
                Components that exist only because a plane was lifted to 3D; not scored.
            obstacle_mask (`torch.BoolTensor` of shape `(batch, H, W, D)`, *optional*):
                True inside obstacles; those cells are not scored.
            labels (`torch.Tensor` of shape `(batch, frames, channels, H, W, D)`, *optional*):
                The frame after each input frame, or after the `frames_to_keep` last ones alone.
            plan (`TokenizationPlan`, *optional*):
                Replaces `boundary_conditions`, `strides`, `jitter` and the shifts.
            strides (*optional*):
                `((s1, s2),) * 3`, strides of the two convolution stages along each axis; `None` chooses them from the
                grid and `config.tokens_per_axis`.
            jitter (`bool`, *optional*):
                Random shifts of the grid and of the token grid; `None` is `config.jitter`.
            patch_shifts (*optional*):
                3 integers that fix the roll of the padded grid.
            layer_shifts (*optional*):
                `(layers, 3)` integers that fix the rolls of the token grid.
            generator (`torch.Generator`, *optional*):
                Source of the shifts.
            value_scales (`torch.Tensor` of shape `(batch, channels)`, *optional*):
                Replaces the root mean square of the given frames, for models with global normalisation.
            change_scales (`torch.Tensor` of shape `(batch, channels)`, *optional*):
                The same for the root mean square of the change between frames.
            frames_to_keep (`int`, *optional*, defaults to 0):
                Forecast only after the last `frames_to_keep` frames, and skip the work that only the others need; 0
                forecasts after every frame. Hidden states and attentions, where asked for, are those of all frames.
            past_key_values (`WalrusTimeCache`, *optional*):
                Frames read before these, which are appended to them; `plan`, `value_scales` and `change_scales` must be
                those of the earlier frames.
        """
        check_keywords(kwargs)
        check_past(past_key_values, plan, value_scales, change_scales)
        check_inputs(
            field_values, field_ids, constant_values, constant_ids, labels=labels, padded_channels=padded_channels,
            obstacle_mask=obstacle_mask, frames_to_keep=frames_to_keep,
        )  # fmt: skip
        # The plan is made here, before anything that is compiled, exported or checkpointed.
        if plan is None:
            check_ids(self.config.vocab_size, field_ids=field_ids, constant_ids=constant_ids)
            plan = self.model.make_plan(
                field_values, boundary_conditions, strides, jitter, patch_shifts, layer_shifts, generator
            )
        outputs = self.model(
            field_values, field_ids, constant_values=constant_values, constant_ids=constant_ids, plan=plan,
            value_scales=value_scales, frames_to_keep=frames_to_keep, past_key_values=past_key_values, **kwargs,
        )  # fmt: skip
        plan = traceable(plan)
        if change_scales is None:
            change_scales = delta_scales(field_values, self.config.scale_eps)
        delta = unroll_and_crop(self.decoder(outputs.last_hidden_state, field_ids[0], plan), plan)
        if plan.resampled:
            delta = fourier_resample(delta, plan.grid)
        state = accurate(field_values[:, -frames_to_keep:])  # all frames where frames_to_keep is 0
        delta = delta.to(state)  # the decoder may stand on another device
        prediction = state + delta * per_channel(change_scales)
        loss = None
        if labels is not None:
            kept = labels[:, -frames_to_keep:]
            target = (kept.to(state) - state) / per_channel(change_scales)
            # The first frame has no context, so its forecast is not scored where there are others.
            skip = 1 if state.shape[1] == field_values.shape[1] > 1 else 0
            loss = mask_state(delta - target, padded_channels, obstacle_mask)[:, skip:].abs().mean()
        return WalrusPredictionOutput(
            loss=loss,
            prediction=prediction,
            delta=delta,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def rollout(
        self,
        field_values: Tensor,
        field_ids: Tensor,
        num_steps: int,
        boundary_conditions: Tensor | None = None,
        constant_values: Tensor | None = None,
        constant_ids: Tensor | None = None,
        padded_channels: Tensor | None = None,
        obstacle_mask: Tensor | None = None,
        plan: TokenizationPlan | None = None,
        generator: torch.Generator | None = None,
        use_cache: bool = False,
        cache_steps: int = 1,
        hold_scales: bool = False,
        **kwargs,
    ) -> Iterator[Tensor]:
        """Forecast step by step: yields the next state `(batch, channels, H, W, D)`, `num_steps` times.

        Each step forecasts from the last frames, appends the result and drops the oldest frame; unless held, scales and
        shifts are renewed at every step (architecture, section 8). A given `plan` serves the first step and lends its
        geometry to the others. Other arguments as in `forward`; padded components and obstacle cells are reset to zero.
        No gradients are kept, drop path is off, and memory does not grow with `num_steps`.

        With `use_cache`, scales and shifts are held for `cache_steps` steps, of which all but the first compute their
        newest frame alone. They forecast from a window that grows by their frames: dropping the oldest one would change
        what the others attended to. Then all is renewed from the last frames.

        With `hold_scales`, the scales of the given frames stay in force for all steps, so errors that make the changes
        grow cannot make the scales grow with them; scales among the arguments do the same.
        """
        check_cache(use_cache, cache_steps)
        state = mask_state(accurate(field_values), None, obstacle_mask)
        if hold_scales:
            for name, scales in (("value_scales", field_scales), ("change_scales", delta_scales)):
                if kwargs.get(name) is None:
                    kwargs[name] = scales(state.detach(), self.config.scale_eps)  # (batch, channels)
        geometry = {
            name: kwargs.pop(name) for name in ("strides", "jitter", "patch_shifts", "layer_shifts") if name in kwargs
        }
        held: dict = {}
        for step in range(num_steps):
            renewed = step % cache_steps == 0
            with torch.no_grad():
                if plan is None:
                    check_ids(self.config.vocab_size, field_ids=field_ids, constant_ids=constant_ids)
                    plan = self.model.make_plan(state, boundary_conditions, generator=generator, **geometry)
                elif step and renewed:
                    fixed = {name: geometry.get(name) for name in ("patch_shifts", "layer_shifts")}
                    plan = with_shifts(plan, generator, **fixed)
                if renewed and cache_steps > 1:
                    most = state.shape[1] + min(cache_steps, num_steps - step) - 1
                    held = {
                        "value_scales": field_scales(state, self.config.scale_eps),
                        "change_scales": delta_scales(state, self.config.scale_eps),
                        "past_key_values": WalrusTimeCache(len(self.model.layers), most),
                    }
                training = self.training
                self.eval()
                try:
                    output = self(
                        state if renewed else state[:, -1:], field_ids, constant_values=constant_values,
                        constant_ids=constant_ids, plan=plan, frames_to_keep=1, return_dict=True, **{**held, **kwargs},
                    )  # fmt: skip
                finally:
                    self.train(training)
                following = mask_state(output.prediction, padded_channels, obstacle_mask)
                state = torch.cat([state[:, 1:], following], 1)
            yield following[:, 0]

    def predict(self, field_values: Tensor, field_ids: Tensor, num_steps: int, **kwargs) -> Tensor:
        """All steps of `rollout` at once: `(batch, num_steps, channels, H, W, D)`."""
        if num_steps < 1:
            raise ValueError(f"num_steps: expected at least 1, found {num_steps}")
        return torch.stack(list(self.rollout(field_values, field_ids, num_steps, **kwargs)), 1)


def mask_state(x: Tensor, padded_channels: Tensor | None, obstacle_mask: Tensor | None) -> Tensor:
    """`(B, T, C, H, W, D)` with padded components and obstacle cells set to zero."""
    if padded_channels is not None:
        x = x.masked_fill(padded_channels[:, None, :, None, None, None], 0.0)
    if obstacle_mask is not None:
        x = x.masked_fill(obstacle_mask[:, None, None], 0.0)
    return x


__all__ = ["WalrusForPrediction", "WalrusModel", "WalrusPreTrainedModel", "WalrusPredictionOutput"]
