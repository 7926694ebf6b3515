"""From fields to tokens and back: strided convolutions whose strides follow the grid (arXiv 2511.15684, section 3).

Shapes: B batch, T frames, C channels (fields), H W D space, S tokens of a frame.
"""

import math

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.activations import ACT2FN

from .configuration_walrus import WalrusConfig
from .convolutions import WalrusStridedConv, WalrusTransposedConv
from .fields import FLAG_NAMES
from .jitter import TokenizationPlan, boundary_flags, pad_and_roll, take_cyclic
from .layers import WalrusRMSNorm


class WalrusEncoder(nn.Module):
    """Two strided convolutions from fields to tokens, one encoder for planes and one for volumes."""

    def __init__(self, config: WalrusConfig):
        super().__init__()
        first, second = config.patch_kernel_sizes
        new = config.num_separate_fields
        self.proj1 = WalrusStridedConv(config.vocab_size, config.stem_hidden_size, first, new)
        self.norm1 = WalrusRMSNorm(config.stem_hidden_size)
        self.proj2 = WalrusStridedConv(config.stem_hidden_size, config.hidden_size, second)
        self.norm2 = WalrusRMSNorm(config.hidden_size)
        self.act_fn = ACT2FN[config.hidden_act]
        self.state_names = config.vocab_size - len(FLAG_NAMES)
        self.flag_ids = config.flag_ids

    def forward(
        self,
        fields: Tensor,
        field_ids: Tensor,
        plan: TokenizationPlan,
        constants: Tensor | None = None,
        constant_ids: Tensor | None = None,
    ) -> Tensor:
        """Scaled fields `(B, T, C, H, W, D)` and constants `(B, constants, H, W, D)` -> `(B, T, S, hidden)`."""
        batch, frames = fields.shape[:2]
        single = [n == 1 for n in plan.grid]
        first, second = zip(*plan.strides)
        channels = len(field_ids) + (0 if constant_ids is None else len(constant_ids))
        # Fewer channels than the vocabulary holds would make a weaker signal (architecture, section 4).
        gain = math.sqrt(self.state_names / channels)
        x = self.proj1(pad_and_roll(fields.flatten(0, 1), plan), first, single, field_ids, gain)
        if constants is not None and constant_ids is not None:
            # Constants and flags are the same in all frames: one convolution each serves them all.
            still = self.proj1(pad_and_roll(constants, plan), first, single, constant_ids, gain)
            x = x + still.repeat_interleave(frames, 0)
        flags = boundary_flags(plan, x)
        flag_gain = flags.new_tensor([gain, 1.0, 1.0])
        flag_ids = torch.tensor(self.flag_ids, device=x.device)
        x = x + self.proj1(flags[None], first, plan.periodic, flag_ids, flag_gain)
        x = self.act_fn(self.norm1(x, channel_dim=1))
        x = self.act_fn(self.norm2(self.proj2(x, second, single), channel_dim=1))
        # One contiguous copy with the channels last makes every linear map below a single matrix product.
        return x.flatten(2).transpose(1, 2).contiguous().unflatten(0, (batch, frames))


class WalrusEmbeddings(nn.Module):
    """The encoders of planes (one or two axes) and of volumes (three axes)."""

    def __init__(self, config: WalrusConfig):
        super().__init__()
        self.planar = WalrusEncoder(config)
        self.volumetric = WalrusEncoder(config)

    def forward(self, fields: Tensor, field_ids: Tensor, plan: TokenizationPlan, constants=None, constant_ids=None):
        used, unused = (self.volumetric, self.planar) if plan.ndim == 3 else (self.planar, self.volumetric)
        return with_zero_gradients(used(fields, field_ids, plan, constants, constant_ids), unused)


class WalrusAbsolutePosition(nn.Module):
    """Learned absolute position embedding for anisotropic domains, bound to one token grid."""

    def __init__(self, config: WalrusConfig):
        super().__init__()
        shape = config.absolute_position_shape or ()
        self.weight = nn.Parameter(torch.empty(*shape, config.hidden_size))

    def forward(self, tokens: Tensor, plan: TokenizationPlan) -> Tensor:
        if tuple(self.weight.shape[:3]) != plan.tokens:
            raise ValueError(
                f"absolute position embedding: trained for a token grid of {tuple(self.weight.shape[:3])}, this grid "
                f"{plan.grid} makes {plan.tokens}; set strides or tokens_per_axis to match"
            )
        return tokens + self.weight.flatten(0, 2)


class WalrusDecoder(nn.Module):
    """Two transposed convolutions from tokens back to the cells of the padded grid."""

    def __init__(self, config: WalrusConfig):
        super().__init__()
        first, second = config.patch_kernel_sizes
        self.proj1 = WalrusTransposedConv(config.hidden_size, config.stem_hidden_size, second, bias=False)
        self.norm1 = WalrusRMSNorm(config.stem_hidden_size)
        new = config.num_separate_fields
        self.proj2 = WalrusTransposedConv(config.stem_hidden_size, config.vocab_size, first, True, new)
        self.act_fn = ACT2FN[config.hidden_act]
        self.config = config

    def forward(self, tokens: Tensor, field_ids: Tensor, plan: TokenizationPlan) -> Tensor:
        """`(B, T, S, hidden)` -> `(B, T, C, H, W, D)` on the padded grid of the plan."""
        batch, frames = tokens.shape[:2]
        seamless = self.config.seamless_decoder
        x = tokens.flatten(0, 1).transpose(1, 2).unflatten(2, plan.tokens)  # (B * T, hidden, tokens of H, W, D)
        first, second = zip(*plan.strides)
        wrapped = [periodic and n > 1 for periodic, n in zip(plan.periodic, plan.grid)]
        x = self.proj1(x, second, plan.grid, wrapped, seamless)
        x = self.act_fn(self.norm1(x, channel_dim=1))
        x = self.proj2(x, first, plan.grid, wrapped, seamless, field_ids)
        if seamless:
            for i, (low, high) in enumerate(plan.wrap_padding):
                if wrapped[i]:
                    x = take_cyclic(x, i - 3, 0, plan.lengths[i] + low + high)
        return x.unflatten(0, (batch, frames))


class WalrusDecoders(nn.Module):
    """The decoders of planes and of volumes: one module, so that PEFT's `modules_to_save=["decoder"]` can name it."""

    def __init__(self, config: WalrusConfig):
        super().__init__()
        self.planar = WalrusDecoder(config)
        self.volumetric = WalrusDecoder(config)

    def forward(self, tokens: Tensor, field_ids: Tensor, plan: TokenizationPlan) -> Tensor:
        used, unused = (self.volumetric, self.planar) if plan.ndim == 3 else (self.planar, self.volumetric)
        return used(with_zero_gradients(tokens, unused), field_ids, plan)


def with_zero_gradients(tokens: Tensor, unused: nn.Module) -> Tensor:
    """`tokens`, from which trainable parameters of a module that a batch does not reach get a gradient of zeros.

    Data parallel training and PEFT expect one for each parameter. Parameters on other devices, offloaded or sharded are
    left out; the pretraining loop sees to the sharded ones.
    """
    if not torch.is_grad_enabled():
        return tokens
    learning = [p for p in unused.parameters() if p.requires_grad and p.device == tokens.device]
    if not learning or any(isinstance(p, DTensor) for p in learning):
        return tokens
    return tokens + 0.0 * torch.stack([p.sum() for p in learning]).sum().to(tokens.dtype)
