"""The plain reading of the architecture: what the model computes, written down paragraph by paragraph.

It is the oracle of the tests and the other side of every speed ratio, so it shares no code with the model: 3D
convolutions everywhere, flags as channels of every frame, all frames decoded, the token grid really rolled. Parameters
carry the published names. Only the published stride table is implemented; there is no drop path.

Shapes: B batch, T frames, C channels (fields), H W D cells or tokens of the three axes, N heads, E head size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..configuration_walrus import WalrusConfig

STRIDES = {1: (1, 1), 4: (2, 2), 8: (4, 2), 12: (6, 2), 16: (4, 4), 24: (6, 4), 32: (8, 4)}  # by cells per token
PERIODIC = 2  # wall 0, open 1


class PlainWalrus(nn.Module):
    """Fields in, forecasts of all frames out; only sizes are read from the configuration."""

    def __init__(self, config: WalrusConfig):
        super().__init__()
        names = config.field2id or {}
        self.flag_ids = [names[flag] for flag in ("bias_correction", "closed_boundary", "open_boundary")]
        self.targets = {1: config.tokens_per_axis, 2: config.tokens_per_axis, 3: config.tokens_per_axis_3d}
        self.vocabulary, self.eps = config.vocab_size, config.scale_eps
        self.encoder_dummy = nn.Parameter(torch.ones(1))
        self.embed = nn.ModuleDict({"2": Encoder(config), "3": Encoder(config)})
        if config.absolute_position_shape:
            self.ape = nn.Parameter(torch.zeros(1, 1, config.hidden_size, *config.absolute_position_shape))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.debed = nn.ModuleDict({"2": Decoder(config), "3": Decoder(config)})

    def forward(
        self,
        field_values: Tensor,
        field_ids: Tensor,
        boundary_conditions: Sequence[Sequence[int]],
        strides: Sequence[tuple[int, int]] | None = None,
        jitter: bool = False,
        patch_shifts: Sequence[int] = (0, 0, 0),
        layer_shifts: Sequence[Sequence[int]] | None = None,
        constant_values: Tensor | None = None,
        constant_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Forecast and normalised delta after every frame, both `(B, T, C, H, W, D)`.

        Args:
            field_values: `(B, T, C, H, W, D)` in their own units, `field_ids` `(C,)` in the vocabulary.
            boundary_conditions: low and high side of the three axes, wall 0, open 1, periodic 2.
            strides: of the two convolution stages along each axis; None takes them from the published table.
            jitter: whether walls are padded to make room for the shifts.
            patch_shifts, layer_shifts: cells by which the padded grid, tokens by which the token grid is rolled.
            constant_values: `(B, constants, H, W, D)`, `constant_ids` `(constants,)`.
        """
        batch, frames, _, *grid = field_values.shape
        axes = [i for i in range(3) if grid[i] > 1]
        periodic = [i for i in axes if boundary_conditions[i][0] == PERIODIC]
        walled = [i for i in axes if i not in periodic]
        kind = "3" if len(axes) == 3 else "2"

        # 1. Asymmetric normalisation
        x, ids = field_values, field_ids
        if constant_values is not None and constant_ids is not None:
            x = torch.cat([x, constant_values[:, None].expand(-1, frames, -1, -1, -1, -1)], 2)
            ids = torch.cat([ids, constant_ids])
        x = x / rms(x).clamp_min(self.eps)
        change = rms(field_values.diff(dim=1)).clamp_min(self.eps) if frames > 1 else torch.ones_like(x[:1, :1, :1])

        # 2. Strides
        if strides is None:
            strides = [STRIDES[n / self.targets[len(axes)]] if n > 1 else (1, 1) for n in grid]  # type: ignore[index]
        if not set(strides) <= set(STRIDES.values()):
            raise ValueError(f"strides: expected pairs of the published table, found {strides}")

        # 3. Padding, boundary flags, jitter
        overlap = [(8 + s1 * (4 - 1) - s1 * s2) // 2 for s1, s2 in strides]
        padding = [overlap[i] + (strides[i][0] * strides[i][1] // 2 if jitter else 0) for i in range(3)]
        zeros = [padding[i] if i in walled else 0 for i in range(3)]
        wraps = [overlap[i] if i in periodic else 0 for i in range(3)]
        x = pad((x * self.encoder_dummy).flatten(0, 1), zeros, "constant")  # (B * T, C, H, W, D) from here on
        flags = torch.zeros_like(x[0, :1]).repeat(3, 1, 1, 1)
        flags[0] = 1.0
        for i in walled:
            low, high = boundary_conditions[i]
            for side, start in ((low, 0), (high, x.shape[2 + i] - padding[i])):
                flags[1 + side].narrow(i, start, padding[i]).add_(1.0)
                flags[0].narrow(i, start, padding[i]).zero_()
        x = torch.cat([x, flags.expand(len(x), -1, -1, -1, -1)], 1)
        x = torch.roll(x, tuple(patch_shifts), (2, 3, 4))
        x = pad(x, wraps, "circular")

        # 4. Encoder
        gain = math.sqrt((self.vocabulary - 3) / len(ids))
        gains = x.new_tensor([gain] * (len(ids) + 1) + [1.0, 1.0])
        ids = torch.cat([ids, torch.tensor(self.flag_ids, device=ids.device)])
        x = self.embed[kind](x, ids, gains, strides, grid)
        # (B, T, H, W, D, hidden): one contiguous copy, else every linear map below is many small products.
        x = x.permute(0, 2, 3, 4, 1).contiguous().unflatten(0, (batch, frames))
        if hasattr(self, "ape"):
            x = x + self.ape.permute(0, 1, 3, 4, 5, 2)

        # 5. Blocks
        if layer_shifts is None:
            layer_shifts = [(0, 0, 0)] * len(self.blocks)
        for block, shifts in zip(self.blocks, layer_shifts, strict=True):
            x = block(torch.roll(x, tuple(shifts), (2, 3, 4)))
        x = torch.roll(x, [-sum(shifts) for shifts in zip(*layer_shifts)], (2, 3, 4))

        # 6. Decoder, then 3. undone
        x = self.debed[kind](x.flatten(0, 1).permute(0, 4, 1, 2, 3), field_ids, strides, grid, periodic)
        x = crop(x, wraps)
        x = torch.roll(x, [-shift for shift in patch_shifts], (2, 3, 4))
        delta = crop(x, zeros).unflatten(0, (batch, frames))
        return field_values + change * delta, delta


def rms(x: Tensor) -> Tensor:
    """Root mean square over frames and space: `(B, T, C, H, W, D)` -> `(B, 1, C, 1, 1, 1)`."""
    return x.square().mean((1, 3, 4, 5), keepdim=True).sqrt()


def pad(x: Tensor, cells: Sequence[int], mode: str) -> Tensor:
    h, w, d = cells
    return F.pad(x, (d, d, w, w, h, h), mode)


def crop(x: Tensor, cells: Sequence[int]) -> Tensor:
    for axis, n in enumerate(cells):
        x = x.narrow(2 + axis, n, x.shape[2 + axis] - 2 * n)
    return x


class Weight(nn.Module):
    """Holds a kernel, and a bias if there is one, under the published name."""

    def __init__(self, *shape: int, bias: int = 0):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape))
        self.bias = nn.Parameter(torch.zeros(bias)) if bias else None


class RMSNorm(nn.Module):
    """Each channel of each frame over its root mean square over space, times a learned weight."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """`(B * T, channels, H, W, D)`, or `(B, T, H, W, D, channels)`."""
        first = x.ndim == 5
        mean = x.square().mean((2, 3, 4), keepdim=True)
        weight = self.weight.view(-1, 1, 1, 1) if first else self.weight
        return x * (torch.rsqrt(mean + torch.finfo(x.dtype).eps) * weight)


class Encoder(nn.Module):
    def __init__(self, config: WalrusConfig):
        super().__init__()
        stem = config.stem_hidden_size
        self.proj1 = Weight(stem, config.vocab_size, 8, 8, 8)
        self.norm1 = RMSNorm(stem)
        self.proj2 = Weight(config.hidden_size, stem, 4, 4, 4)
        self.norm2 = RMSNorm(config.hidden_size)

    def forward(self, x: Tensor, ids: Tensor, gains: Tensor, strides: Sequence, grid: Sequence[int]) -> Tensor:
        """`(B * T, fields and flags, H, W, D)` -> `(B * T, hidden, tokens of H, W, D)`."""
        first, second = zip(*strides)
        weight1 = self.proj1.weight[:, ids] * gains.view(-1, 1, 1, 1)
        weight2: Tensor = self.proj2.weight
        for i in range(3):
            if grid[i] == 1:
                weight1, weight2 = weight1.sum(2 + i, keepdim=True), weight2.sum(2 + i, keepdim=True)
        x = F.silu(self.norm1(F.conv3d(x, weight1, stride=first)))
        return F.silu(self.norm2(F.conv3d(x, weight2, stride=second)))


class Decoder(nn.Module):
    def __init__(self, config: WalrusConfig):
        super().__init__()
        stem, vocabulary = config.stem_hidden_size, config.vocab_size
        self.proj1 = Weight(config.hidden_size, stem, 4, 4, 4)
        self.norm1 = RMSNorm(stem)
        self.proj2 = Weight(stem, vocabulary, 8, 8, 8, bias=vocabulary)

    def forward(self, x: Tensor, ids: Tensor, strides: Sequence, grid: Sequence[int], periodic: Sequence[int]):
        """`(B * T, hidden, tokens of H, W, D)` -> `(B * T, C, H, W, D)` on the padded grid."""
        first, second = zip(*strides)
        x = F.silu(self.norm1(transposed(x, self.proj1.weight, None, second, grid, periodic)))
        assert self.proj2.bias is not None
        return transposed(x, self.proj2.weight[:, ids], self.proj2.bias[ids], first, grid, periodic)


def transposed(
    x: Tensor, weight: Tensor, bias: Tensor | None, strides: Sequence[int], grid: Sequence[int], periodic: Sequence[int]
) -> Tensor:
    """Transposed convolution: singleton axes averaged, periodic ones wrapped around before and cropped after."""
    kernel = weight.shape[2]
    wraps = [-(-(kernel - s) // s) if i in periodic else 0 for i, s in enumerate(strides)]  # the ceiling
    for i in range(3):
        if grid[i] == 1:
            weight = weight.mean(2 + i, keepdim=True)
    x = F.conv_transpose3d(pad(x, wraps, "circular"), weight, bias, stride=strides)
    return crop(x, [q * s for q, s in zip(wraps, strides)])


class Block(nn.Module):
    def __init__(self, config: WalrusConfig):
        super().__init__()
        self.time_mixing = TimeMixing(config)
        self.space_mixing = SpaceMixing(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.time_mixing(x)
        return x + self.space_mixing(x)


class TimeMixing(nn.Module):
    """Causal attention over the frames at each token."""

    def __init__(self, config: WalrusConfig):
        super().__init__()
        width, self.heads, head = config.hidden_size, config.num_attention_heads, config.head_dim
        self.norm1 = RMSNorm(width)
        self.input_head = Weight(3 * width, width, 1, 1, 1, bias=3 * width)
        self.output_head = Weight(width, width, 1, 1, 1, bias=width)
        self.qnorm, self.knorm = nn.LayerNorm(head, eps=1e-5), nn.LayerNorm(head, eps=1e-5)
        self.rel_pos_bias = RelativePositions(self.heads)

    def forward(self, x: Tensor) -> Tensor:
        batch, frames = x.shape[:2]
        qkv = F.linear(self.norm1(x), self.input_head.weight.flatten(1), self.input_head.bias)
        qkv = qkv.reshape(batch, frames, -1, self.heads, 3, x.shape[-1] // self.heads)  # [q | k | v] in each head
        q, k, v = qkv.unbind(4)
        # (B, T, S, N, E) -> (B * S, N, T, E), S tokens of a frame
        q, k, v = (y.permute(0, 2, 3, 1, 4).flatten(0, 1) for y in (self.qnorm(q), self.knorm(k), v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.rel_pos_bias(frames))
        y = y.unflatten(0, (batch, -1)).permute(0, 3, 1, 2, 4).reshape(x.shape)
        return F.linear(y, self.output_head.weight.flatten(1), self.output_head.bias)


class RelativePositions(nn.Module):
    """The T5 bias of each head for the distance between two frames, minus infinity for keys ahead of the query."""

    def __init__(self, heads: int):
        super().__init__()
        self.relative_attention_bias = nn.Embedding(32, heads)

    def forward(self, frames: int) -> Tensor:
        """`(1, N, T, T)`"""
        table = self.relative_attention_bias.weight
        buckets = [[bucket(max(query - key, 0)) for key in range(frames)] for query in range(frames)]
        ahead = torch.ones(frames, frames, dtype=torch.bool, device=table.device).triu(1)
        bias = table[torch.tensor(buckets, device=table.device)].permute(2, 0, 1)
        return bias.masked_fill(ahead, -math.inf)[None]


def bucket(distance: int) -> int:
    if distance < 16:
        return distance
    return min(31, 16 + math.floor(math.log(distance / 16) / math.log(32 / 16) * 16))


class SpaceMixing(nn.Module):
    """Full attention over the tokens of a frame, in parallel with the gated MLP."""

    def __init__(self, config: WalrusConfig):
        super().__init__()
        width, inner, self.heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
        head = config.head_dim
        self.sizes = [inner, inner, width, width, width]  # value, gate, q, k, v
        self.norm1 = RMSNorm(width)
        self.fused_ff_qkv = nn.Linear(width, sum(self.sizes))
        self.ff_out = nn.Linear(inner, width)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.q_norm, self.k_norm = nn.LayerNorm(head, eps=1e-5), nn.LayerNorm(head, eps=1e-5)
        self.rotary_emb = RotaryEmbedding(head, config.rope_learnable == "per_axis")

    def forward(self, x: Tensor) -> Tensor:
        batch, frames, *tokens, width = x.shape
        value, gate, q, k, v = self.fused_ff_qkv(self.norm1(x)).split(self.sizes, -1)
        q, k, v = (y.reshape(batch * frames, -1, self.heads, width // self.heads) for y in (q, k, v))
        angles = self.rotary_emb(tokens)
        q, k = rotate(self.q_norm(q), angles), rotate(self.k_norm(k), angles)
        y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))  # (B * T, N, S, E)
        y = y.transpose(1, 2).reshape(x.shape)
        return self.attn_out(y) + self.ff_out(F.silu(gate) * value)


class RotaryEmbedding(nn.Module):
    """r / 2 frequencies for each axis, r being a quarter of the head."""

    def __init__(self, head: int, per_axis: bool):
        super().__init__()
        self.head, r = head, head // 4
        sets = [nn.Parameter(math.pi * torch.linspace(1, 128, r // 2)) for _ in range(3)]
        self.freqs: Any = nn.ParameterList(sets) if per_axis else sets[0]

    def forward(self, tokens: Sequence[int]) -> Tensor:
        """`(S, 1, E / 2)`: angles of the pairs of channels, those of H first, then W and D; the rest are not turned."""
        parts = []
        for axis, n in enumerate(tokens):
            frequencies = self.freqs if isinstance(self.freqs, Tensor) else self.freqs[axis]
            place = torch.linspace(-1, 1, n, dtype=frequencies.dtype, device=frequencies.device)
            shape = [n if i == axis else 1 for i in range(3)]
            parts.append((place.view(*shape, 1) * frequencies).expand(*tokens, -1))
        angles = torch.cat(parts, -1).flatten(0, 2)[:, None]
        return F.pad(angles, (0, self.head // 2 - angles.shape[-1]))


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turns the adjacent channels `(a, b)` of `(B * T, S, N, E)` by the angles `(S, 1, E / 2)`."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = angles.cos(), angles.sin()
    return torch.stack([a * cosine - b * sine, b * cosine + a * sine], -1).flatten(-2)


@torch.no_grad()
def draw_strong_weights(model: PlainWalrus, seed: int = 0) -> PlainWalrus:
    """Random weights with which every part matters: a fresh network would forecast persistence."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        z = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        if name == "encoder_dummy":
            parameter.fill_(1.07)
        elif "freqs" in name:
            continue  # constants, unless they were fine-tuned
        elif "relative_attention_bias" in name:
            parameter.copy_(0.5 * z)
        elif name.endswith("bias"):
            parameter.copy_(0.1 * z)
        elif z.ndim == 1:
            parameter.copy_(1.0 + 0.1 * z)
        else:
            inputs = 4 * len(z) if name.startswith("debed") else z[0].numel()
            parameter.copy_(z / math.sqrt(inputs))
    return model
