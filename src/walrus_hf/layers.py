"""The parts of a Walrus block: norms, rotary and relative positions, time attention, space attention beside the MLP.

Shapes: B batch, T frames, S tokens of a frame, N heads, E head size.
"""

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .caching import WalrusLayerCache
from .configuration_walrus import WalrusConfig


class WalrusRMSNorm(nn.Module):
    """Divides each channel of each frame by its root mean square over space, then weighs it.

    This is the published behaviour: the normalisation runs over space, not over channels (architecture, section 4).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor, channel_dim: int = -1) -> Tensor:
        """`x`: `(B, T, S, channels)`, or with `channel_dim=1` `(B * T, channels, *space)`."""
        space = (-2,) if channel_dim == -1 else tuple(range(2, x.ndim))
        weight = self.weight if channel_dim == -1 else self.weight.view(-1, *[1] * (x.ndim - 2))
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        scale = torch.rsqrt(wide.square().mean(space, keepdim=True) + torch.finfo(wide.dtype).eps)
        return (x * (scale * weight)).to(x.dtype)


class WalrusOutputLinear(nn.Linear):
    """A linear map onto the token stream; a class of its own because it starts at `config.initializer_range`."""


class WalrusDropPath(nn.Module):
    """Stochastic depth: drops the residual branch of whole samples in training (arXiv 1603.09382).

    Draws from torch's default generator, whose state gradient checkpointing restores.
    """

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep = 1.0 - self.drop_prob
        kept = torch.rand(x.shape[0], *[1] * (x.ndim - 1), dtype=torch.float32, device=x.device) < keep
        return x * (kept / keep).to(x.dtype)


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """`(batch, N, tokens, E)` each -> `(batch, tokens, N, E)` and the weights `(batch, N, tokens, tokens)`."""
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    weights = weights.to(value.dtype)
    return torch.matmul(weights, value).transpose(1, 2), weights


def rotary_frequencies(count: int) -> list[float]:
    """`pi * linspace(1, 128, count)`: published frequencies for positions in [-1, 1]."""
    return [math.pi * (1.0 + 127.0 * i / max(count - 1, 1)) for i in range(count)]


def rotary_table(frequencies: Sequence[Tensor], positions: Sequence[Tensor], heads: int, head_dim: int) -> Tensor:
    """Cosine and sine `(N, S, E // 2, 2)` that turn adjacent pairs of channels by their axis' angle in each head.

    Args:
        frequencies: one tensor `(F,)` for each of the axes H, W, D.
        positions: positions of the tokens along each axis, `(n,)`, in [-1, 1].

    The first 2 F channels belong to H, the next to W and D; the rest are left alone.
    """
    grid = [len(p) for p in positions]
    parts = []
    for axis, (f, p) in enumerate(zip(frequencies, positions)):
        shape = [1, 1, 1, len(f)]
        shape[axis] = len(p)
        parts.append(torch.outer(p, f).view(shape).expand(*grid, -1))
    rest = head_dim // 2 - sum(len(f) for f in frequencies)
    parts.append(torch.zeros_like(parts[0][..., :1]).expand(*grid, rest))
    angles = torch.cat(parts, -1).view(-1, head_dim // 2)
    return torch.stack([angles.cos(), angles.sin()], -1).expand(heads, -1, -1, -1).contiguous()


def apply_rotary(x: Tensor, table: Tensor) -> Tensor:
    """`x`: `(batch, N, S, E)`, adjacent channels being the real and imaginary part; float32 or better inside.

    Attention on a CPU is faster where the tokens of a head lie together in memory. A product is laid out as its first
    factor, so the table, which holds every head, brings them together without a copy.
    """
    pairs = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (-1, 2))  # (batch, N, S, E // 2, 2)
    if torch.compiler.is_compiling():  # compilers know no complex numbers, and fuse this
        real, imaginary = pairs.unbind(-1)
        cosine, sine = table.unbind(-1)
        turned = torch.stack([real * cosine - imaginary * sine, imaginary * cosine + real * sine], -1)
    else:  # one pass over memory
        turned = torch.view_as_real(torch.view_as_complex(table) * torch.view_as_complex(pairs))
    return turned.flatten(-2).to(x.dtype)


# Numbers in the token stream from which on training keeps less. Of smaller ones a step takes little memory anyway, and
# computing twice what the caches hold costs a sixth of its time.
RECOMPUTED_FROM = 2**21


def recompute(module: nn.Module, function: Callable[..., Tensor], x: Tensor, *arguments: int) -> Tensor:
    """`function(x, ...)` of a module in training; what it needs for the backward pass is computed again there.

    Kept, it would take more memory than all else in a block. Compilers decide by themselves what they keep.
    """
    keeps = not module.training or not torch.is_grad_enabled() or torch.compiler.is_compiling()
    if keeps or x.numel() < RECOMPUTED_FROM:
        return function(x, *arguments)
    return checkpoint(function, x, *arguments, use_reentrant=False)


class WalrusAttention(nn.Module):
    """Projections, query and key norms and rotary frequencies that time and space attention have in common."""

    def __init__(self, config: WalrusConfig, output_bias: bool):
        super().__init__()
        self.config = config
        self.num_heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        width = config.hidden_size
        self.norm = WalrusRMSNorm(width)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.o_proj = WalrusOutputLinear(width, width, bias=output_bias)
        self.q_norm = nn.LayerNorm(self.head_dim, eps=config.layer_norm_eps)
        self.k_norm = nn.LayerNorm(self.head_dim, eps=config.layer_norm_eps)

    def split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim))  # (B, T, S, N, E)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs):
        """`(batch, N, tokens, E)` each -> `(batch, tokens, N, E)` and, from eager attention, the weights."""
        interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        return interface(self, query, key, value, mask, scaling=self.scaling, dropout=0.0, **kwargs)


class WalrusTimeAttention(WalrusAttention):
    """Causal attention over the frames at each token, with a T5 relative position bias (architecture, section 5)."""

    def __init__(self, config: WalrusConfig):
        super().__init__(config, output_bias=True)
        self.relative_attention_bias = nn.Embedding(config.relative_attention_num_buckets, config.num_attention_heads)

    def relative_bias(self, frames: int, queries: int) -> Tensor:
        """Additive mask `(1, N, queries, frames)` for the last `queries` of `frames` frames; the future is -inf."""
        buckets, furthest = self.config.relative_attention_num_buckets, self.config.relative_attention_max_distance
        near = buckets // 2
        device = self.relative_attention_bias.weight.device
        distance = torch.arange(frames - queries, frames, device=device)[:, None] - torch.arange(frames, device=device)
        far = distance.clamp_min(near).float().div(near).log().div(math.log(furthest / near)).mul(buckets - near)
        bucket = torch.where(distance < near, distance, (near + far.long()).clamp_max(buckets - 1)).clamp_min(0)
        bias = self.relative_attention_bias(bucket).permute(2, 0, 1)  # (N, queries, frames)
        return bias.masked_fill(distance < 0, float("-inf"))[None]

    def forward(
        self, hidden_states: Tensor, frames_to_keep: int, cache: WalrusLayerCache | None = None, **kwargs
    ) -> Tensor:
        """`(B, T, S, hidden)` -> `(B, frames_to_keep, S, hidden)`, the attention of the last frames.

        With a `cache`, to the frames in it as well, and these frames are appended to it.
        """
        batch, _, tokens, width = hidden_states.shape
        x = self.norm(hidden_states)
        last = x[:, -frames_to_keep:]

        def per_token(heads: Tensor) -> Tensor:  # (B, T, S, N, E) -> (B * S, N, T, E)
            return heads.permute(0, 2, 3, 1, 4).flatten(0, 1)

        query = per_token(self.q_norm(self.split_heads(self.q_proj(last))))
        key = self.k_norm(self.split_heads(self.k_proj(x)))
        value = self.split_heads(self.v_proj(x))
        if cache is not None:
            key, value = cache.extend(key, value)
        mask = self.relative_bias(key.shape[1], frames_to_keep).to(query.dtype)
        attended, _ = self.attend(query, per_token(key), per_token(value), mask, **kwargs)  # (B * S, T kept, N, E)
        # Turned back after the linear map, which wants its rows as they lie in memory.
        return self.o_proj(attended.reshape(batch, tokens, frames_to_keep, width)).transpose(1, 2)


class WalrusRotaryFrequencies(nn.Module):
    """Learned rotary frequencies of one layer; a module, so that PEFT can name it.

    Args:
        sets: 1 for all axes, or 3.
        count: frequencies of a set.
    """

    def __init__(self, sets: int, count: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(sets, count))

    def forward(self, like: Tensor) -> list[Tensor]:
        """The frequencies of H, W and D in the type of `like`."""
        return list(self.weight.to(like.dtype).expand(3, -1))


class WalrusSpaceMixing(WalrusAttention):
    """Full attention over the tokens of a frame, in parallel with a gated MLP (architecture, section 5)."""

    def __init__(self, config: WalrusConfig):
        super().__init__(config, output_bias=False)
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = WalrusOutputLinear(config.intermediate_size, config.hidden_size)
        self.act_fn = ACT2FN[config.hidden_act]
        self.num_frequencies = self.head_dim // 4 // 2
        sets = {None: 0, "shared": 1, "per_axis": 3}[config.rope_learnable]
        self.rotary_frequencies = WalrusRotaryFrequencies(sets, self.num_frequencies) if sets else None

    def frequencies(self, like: Tensor) -> Sequence[Tensor]:
        if self.rotary_frequencies is not None:
            return self.rotary_frequencies(like)
        return [like.new_tensor(rotary_frequencies(self.num_frequencies))] * 3

    def forward(self, hidden_states: Tensor, positions: Sequence[Tensor], **kwargs) -> tuple[Tensor, Tensor | None]:
        """`(B, T, S, hidden)` -> the same, and the attention weights `(B * T, N, S, S)` where eager attention runs."""
        x = self.norm(hidden_states)
        # Before attention: backward comes here last, when what attention kept is gone.
        gated = recompute(self, self.mlp, x)
        table = rotary_table(self.frequencies(positions[0]), positions, self.num_heads, self.head_dim)

        def per_frame(heads: Tensor) -> Tensor:  # (B, T, S, N, E) -> (B * T, N, S, E)
            return heads.flatten(0, 1).transpose(1, 2)

        query = apply_rotary(per_frame(self.q_norm(self.split_heads(self.q_proj(x)))), table)
        key = apply_rotary(per_frame(self.k_norm(self.split_heads(self.k_proj(x)))), table)
        value = per_frame(self.split_heads(self.v_proj(x)))
        attended, weights = self.attend(query, key, value, None, **kwargs)  # (B * T, S, N, E)
        return self.o_proj(attended.reshape(x.shape)) + gated, weights

    def mlp(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class WalrusBlock(GradientCheckpointingLayer):
    """Time attention, then space attention beside the MLP, each with its residual."""

    def __init__(self, config: WalrusConfig, drop_path: float):
        super().__init__()
        self.time_attention = WalrusTimeAttention(config)
        self.space_mixing = WalrusSpaceMixing(config)
        self.drop_path = WalrusDropPath(drop_path)

    def forward(
        self,
        hidden_states: Tensor,
        positions: Sequence[Tensor],
        frames_to_keep: int = 0,
        cache: WalrusLayerCache | None = None,
        **kwargs,
    ) -> Tensor:
        """`(B, T, S, hidden)` -> `(B, T or frames_to_keep, S, hidden)`.

        Only time attention mixes frames, so whoever needs the last frames alone skips the work of the others.
        """
        keep = frames_to_keep or hidden_states.shape[1]
        attention = functools.partial(self.time_attention, cache=cache, **kwargs)
        # A cache must not be extended again.
        mixed = recompute(self, attention, hidden_states, keep) if cache is None else attention(hidden_states, keep)
        hidden_states = hidden_states[:, -keep:] + self.drop_path(mixed)
        mixed, _ = self.space_mixing(hidden_states, positions, **kwargs)
        return hidden_states + self.drop_path(mixed)
