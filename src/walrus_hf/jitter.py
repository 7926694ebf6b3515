"""Plans of tokenization and patch jitter (arXiv 2511.15684, section 3.2), and the padding that carries them out.

A plan holds every number that depends on the grid, the boundaries and chance, as plain integers. It is made once,
outside of any compiled or checkpointed region; `pad_and_roll` and `unroll_and_crop` only follow it.
"""

from __future__ import annotations

import ast
import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor

from .fields import BoundaryCondition, check_sides
from .strides import KERNELS, PUBLISHED_STRIDES, Strides, check_strides, choose_strides, token_target

Triple = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class TokenizationPlan:
    """How one grid becomes tokens. Every entry has one value (or pair) for each of the axes H, W, D.

    Attributes:
        grid: cells of the data.
        boundaries: ids of the (low, high) side; singleton axes are periodic.
        lengths: cells that the network sees; other than `grid` only where a periodic axis is resampled.
        target: tokens that were aimed at along each axis.
        strides: of the two convolution stages.
        zero_padding: cells of zeros (low, high), on non-periodic axes.
        wrap_padding: cells wrapped around (low, high), on periodic axes.
        tokens: tokens along the axis.
        jitter: whether the padding leaves room for shifts.
        patch_shifts: cells by which the padded grid is rolled.
        layer_shifts: for each layer the tokens by which the token grid is rolled before it.

    Plans that differ in their shifts alone share one compiled graph, see `traceable`.
    """

    grid: Triple
    boundaries: tuple[tuple[int, int], ...]
    lengths: Triple
    target: int
    strides: tuple[Strides, ...]
    zero_padding: tuple[tuple[int, int], ...]
    wrap_padding: tuple[tuple[int, int], ...]
    tokens: Triple
    jitter: bool
    patch_shifts: Triple
    layer_shifts: tuple[Triple, ...]

    # The same for `traceable`. Not fields: equality, hash and `dataclasses.asdict` are about the integers above.
    _geometry: ClassVar[str] = ""
    _shifts: ClassVar[Tensor | None] = None

    def __post_init__(self) -> None:
        if torch.compiler.is_dynamo_compiling():
            return
        geometry = [getattr(self, field.name) for field in dataclasses.fields(self)[:-2]]
        object.__setattr__(self, "_geometry", repr(geometry))
        shifts = torch.tensor([self.patch_shifts, *self.layer_shifts], dtype=torch.int64, device="cpu")
        object.__setattr__(self, "_shifts", shifts)

    @property
    def ndim(self) -> int:
        """Number of non-singleton axes."""
        return sum(n > 1 for n in self.grid)

    @property
    def num_tokens(self) -> int:
        """Tokens of one frame."""
        return self.tokens[0] * self.tokens[1] * self.tokens[2]

    @property
    def patch_sizes(self) -> Triple:
        """Cells per token."""
        return _triple(s1 * s2 for s1, s2 in self.strides)

    @property
    def periodic(self) -> tuple[bool, ...]:
        return tuple(low == BoundaryCondition.PERIODIC for low, _ in self.boundaries)

    @property
    def resampled(self) -> bool:
        return self.lengths != self.grid

    @property
    def published(self) -> bool:
        """Whether these are strides of the published table, which the published models were trained with.

        The table counts cells per token: of other models, with other targets, it says nothing.
        """
        return not self.resampled and all(
            n == 1 or (n % self.target == 0 and PUBLISHED_STRIDES.get(n // self.target) == pair)
            for n, pair in zip(self.grid, self.strides)
        )

    def __str__(self) -> str:
        lines = [f"{self.num_tokens} tokens a frame, jitter {'on' if self.jitter else 'off'}"]
        for i, axis in enumerate("HWD"):
            if self.grid[i] == 1:
                continue
            low, high = (BoundaryCondition(side).name.lower() for side in self.boundaries[i])
            pads = self.wrap_padding[i] if self.periodic[i] else self.zero_padding[i]
            network = f" (resampled to {self.lengths[i]})" if self.lengths[i] != self.grid[i] else ""
            lines.append(
                f"  {axis}: {self.grid[i]} cells{network}, {low if low == high else f'{low} / {high}'}: "
                f"{self.tokens[i]} tokens of {self.patch_sizes[i]} cells, strides {self.strides[i]}, "
                f"padding {pads}, shift {self.patch_shifts[i]}"
            )
        return "\n".join(lines)


# To `torch.export` a plan is a constant: the exported program carries its geometry and its shifts.
pytree.register_pytree_node(
    TokenizationPlan,
    flatten_fn=lambda plan: ([], plan),
    unflatten_fn=lambda _, plan: plan,
    flatten_with_keys_fn=lambda plan: ([], plan),
    serialized_type_name=f"{TokenizationPlan.__module__}.TokenizationPlan",
    to_dumpable_context=lambda plan: repr(dataclasses.astuple(plan)),
    from_dumpable_context=lambda text: TokenizationPlan(*ast.literal_eval(text)),
)
torch.serialization.add_safe_globals([TokenizationPlan])  # a saved program holds its example inputs


def make_plan(
    grid: Sequence[int],
    boundaries: Sequence[Sequence[int]],
    tokens_per_axis: int,
    tokens_per_axis_3d: int,
    jitter: bool,
    num_layers: int,
    strides: Sequence[Sequence[int]] | None = None,
    generator: torch.Generator | None = None,
    patch_shifts: Sequence[int] | None = None,
    layer_shifts: Sequence[Sequence[int]] | None = None,
) -> TokenizationPlan:
    """Choose strides and paddings for a grid `(H, W, D)` and draw (or take) the shifts.

    Args:
        boundaries: (low, high) ids of the 3 axes; those of singleton axes are ignored.
        strides: `((s1, s2),) * 3`; None chooses them. A periodic axis is resampled to the nearest multiple.
        generator: where the shifts are drawn from; None takes torch's default generator.
        patch_shifts, layer_shifts: fix the shifts, 3 and `(num_layers, 3)` integers.

    Raises:
        ValueError: axes of 2 to 7 cells, a half-periodic axis, unusable strides or shifts.
    """
    cells = _triple(grid)
    if max(cells) == 1:
        raise ValueError(f"expected a grid with at least one axis of 8 or more cells, found {cells}")
    sides = _check_boundaries(boundaries, cells)
    periodic = [low == BoundaryCondition.PERIODIC for low, _ in sides]
    target = token_target(cells, tokens_per_axis, tokens_per_axis_3d)
    if strides is None:
        lengths, pairs = choose_strides(cells, periodic, tokens_per_axis, tokens_per_axis_3d)
    else:
        pairs = check_strides(strides, cells)
        lengths = tuple(
            max(round(n / (s1 * s2)), 1) * s1 * s2 if wraps else n for n, wraps, (s1, s2) in zip(cells, periodic, pairs)
        )
    zero, wrap, tokens = [], [], []
    for n, wraps, pair in zip(lengths, periodic, pairs):
        overlap, room = _padding(n, wraps, pair, jitter)
        zero.append((0, 0) if wraps else (_halves(overlap + room)))
        wrap.append(_halves(overlap) if wraps else (0, 0))
        tokens.append((n + room) // (pair[0] * pair[1]))
    plan = TokenizationPlan(
        grid=cells, boundaries=sides, lengths=_triple(lengths), target=target, strides=pairs, zero_padding=tuple(zero),
        wrap_padding=tuple(wrap), tokens=_triple(tokens), jitter=jitter, patch_shifts=(0, 0, 0),
        layer_shifts=((0, 0, 0),) * num_layers,
    )  # fmt: skip
    return with_shifts(plan, generator, patch_shifts, layer_shifts)


# Chance and boundaries are read by the host: a compiler steps out of its graph for them, or refuses where it may not.
make_plan_on_host = torch.compiler.disable(
    make_plan, reason="a tokenization plan is made on the host: pass plan= to compile without graph breaks"
)


def with_shifts(
    plan: TokenizationPlan,
    generator: torch.Generator | None = None,
    patch_shifts: Sequence[int] | None = None,
    layer_shifts: Sequence[Sequence[int]] | None = None,
) -> TokenizationPlan:
    """The same plan with newly drawn shifts, or with the given ones; without jitter none are drawn."""
    low, high = shift_ranges(plan)
    if patch_shifts is None:
        patch_shifts = [_draw(a, b, 1, generator)[0] for a, b in zip(low[0], high[0])]
    else:
        patch_shifts = _check_patch_shifts(plan, patch_shifts)
    if layer_shifts is None:
        rolls = high[-1] if plan.layer_shifts else (0, 0, 0)
        layer_shifts = list(zip(*(_draw(0, most, len(plan.layer_shifts), generator) for most in rolls)))
    else:
        _check_layer_shifts(plan, layer_shifts)
    return dataclasses.replace(
        plan, patch_shifts=_triple(patch_shifts), layer_shifts=tuple(_triple(row) for row in layer_shifts)
    )


def shift_ranges(plan: TokenizationPlan) -> tuple[list[Triple], list[Triple]]:
    """Smallest and largest shifts that jitter draws, `(1 + layers, 3)` each: of the patches, then before each layer."""
    low, high = zip(*(_shift_range(plan, i) for i in range(3)))
    rolls = _triple(plan.tokens[i] - 1 if plan.jitter and plan.periodic[i] else 0 for i in range(3))
    layers = len(plan.layer_shifts)
    return [_triple(low), *[(0, 0, 0)] * layers], [_triple(high), *[rolls] * layers]


def traceable(plan: TokenizationPlan) -> TokenizationPlan:
    """The plan as a graph of `torch.compile` may read it; outside of one, or made inside, the plan itself.

    The compiler takes integers that change for sizes and makes symbols of them, which takes it minutes to trace. So the
    geometry goes in as text, which is a constant (another geometry is another graph), and the shifts as a tensor (other
    shifts are the same graph).
    """
    if not torch.compiler.is_dynamo_compiling() or plan._shifts is None:
        return plan
    patch_shifts, *layer_shifts = [tuple(row.unbind()) for row in plan._shifts.unbind()]
    return TokenizationPlan(*[*_parse(plan._geometry), patch_shifts, tuple(layer_shifts)])


@torch.compiler.assume_constant_result
def _parse(geometry: str) -> Any:
    return ast.literal_eval(geometry)


def warn_unmeasured(plan: TokenizationPlan, warned: set[Triple]) -> None:
    """Warns once for each grid that the published table lacks; `warned` remembers the grids."""
    if not plan.published and plan.grid not in warned:
        warned.add(plan.grid)
        warnings.warn(
            f"grid {plan.grid} is outside the published stride table: it runs with strides {plan.strides}"
            + (f", resampled to {plan.lengths}" if plan.resampled else "")
            + ", of which published results say nothing: unless the model's card does, accuracy there is unmeasured",
            stacklevel=3,
        )


def pad_and_roll(x: Tensor, plan: TokenizationPlan) -> Tensor:
    """`(..., H, W, D)` on the lengths of the plan -> the padded, jittered grid that the encoder reads."""
    pads: list[int] = []
    for i in (2, 1, 0):  # F.pad counts from the last axis
        low, high = plan.zero_padding[i]
        # The roll of a zero-padded axis never reaches the data, so it is a shift of the padding.
        shift = 0 if plan.periodic[i] or _traced(plan) else plan.patch_shifts[i]
        pads += [low + shift, high - shift]
    x = F.pad(x, pads) if any(pads) else x
    for i, (low, high) in enumerate(plan.wrap_padding):
        if plan.periodic[i] and plan.grid[i] > 1:  # also where the kernels do not overlap: the roll remains
            x = take_cyclic(x, i - 3, -low - plan.patch_shifts[i], plan.lengths[i] + low + high)
        elif not plan.periodic[i] and _traced(plan):
            x = take_cyclic(x, i - 3, -plan.patch_shifts[i], x.shape[i - 3])
    return x


def unroll_and_crop(y: Tensor, plan: TokenizationPlan) -> Tensor:
    """Exact inverse of `pad_and_roll`: `(..., padded grid)` -> `(..., H, W, D)` on the lengths of the plan."""
    for i, n in enumerate(plan.lengths):
        shift, low = plan.patch_shifts[i], plan.zero_padding[i][0] + plan.wrap_padding[i][0]
        if plan.periodic[i]:
            y = take_cyclic(y.narrow(i - 3, low, n), i - 3, shift, n)
        else:
            y = take_cyclic(y, i - 3, low + shift, n)
    return y


def boundary_flags(plan: TokenizationPlan, like: Tensor) -> Tensor:
    """Flags [interior, wall, open] of the padded, jittered grid: `(3, H', W', D')` with dtype and device of `like`.

    Flags do not vary along periodic and singleton axes: these have one cell here, for the caller to broadcast.
    Flags of the axes add up in corners (arXiv 2511.15684, A.4).
    """
    size = [1 if plan.periodic[i] else plan.lengths[i] + sum(plan.zero_padding[i]) for i in range(3)]
    flags = like.new_zeros(3, *size)
    flags[0] = 1.0
    for i, (low, high) in enumerate(plan.zero_padding):
        if plan.periodic[i]:
            continue
        for side, start, width in ((0, 0, low), (1, size[i] - high, high)):
            flags[1 + plan.boundaries[i][side]].narrow(i, start, width).add_(1.0)
            flags[0].narrow(i, start, width).zero_()
    for i in range(3):
        if not plan.periodic[i]:
            flags = take_cyclic(flags, i - 3, -plan.patch_shifts[i], size[i])
    return flags


def take_cyclic(x: Tensor, dim: int, start: int | Tensor, length: int) -> Tensor:
    """`length` cells of a periodic axis from `start` on: roll, circular padding and cropping in one copy.

    A `start` that is a tensor (see `traceable`) gathers; the pieces of an integer are faster outside of a compiler.
    """
    n = x.shape[dim]
    if isinstance(start, Tensor):
        return x.index_select(dim, (torch.arange(length, device=x.device) + start) % n)
    start %= n
    if start == 0 and length == n:
        return x
    pieces = []
    while length > 0:
        count = min(n - start, length)
        pieces.append(x.narrow(dim, start, count))
        length, start = length - count, 0
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)


def fourier_resample(x: Tensor, size: Sequence[int]) -> Tensor:
    """Band-limited interpolation of `(..., H, W, D)` along the axes whose length changes; float32 or better."""
    for i, n in enumerate(size):
        dim, old = i - 3, x.shape[i - 3]
        if n == old:
            continue
        x = x if x.dtype == torch.float64 else x.float()
        spectrum = torch.fft.rfft(x, dim=dim).narrow(dim, 0, min(old, n) // 2 + 1)
        if min(old, n) % 2 == 0:
            # The highest wave of an even grid stands for +k and -k: it is halved when the grid grows (the other half
            # is its mirror image) and doubled when the grid shrinks onto it.
            weight = torch.ones(spectrum.shape[dim], dtype=x.dtype, device=x.device)
            weight[-1] = 0.5 if n > old else 2.0
            spectrum = spectrum * weight.view(-1, *[1] * (2 - i))
        x = torch.fft.irfft(spectrum, n=n, dim=dim) * (n / old)
    return x


def _traced(plan: TokenizationPlan) -> bool:
    return isinstance(plan.patch_shifts[0], Tensor)


def _triple(values) -> Triple:
    h, w, d = (int(v) for v in values)
    return h, w, d


def _halves(total: int) -> tuple[int, int]:
    # Off the published table the sum may be odd; the high side takes the extra cell, else a token would be lost.
    return total // 2, total - total // 2


def _padding(n: int, periodic: bool, strides: Strides, jitter: bool) -> tuple[int, int]:
    """Cells added for the overlap of the kernels, and those added to make room for tokens and jitter."""
    s1, s2 = strides
    patch = s1 * s2
    overlap = KERNELS[0] + s1 * (KERNELS[1] - 1) - patch
    if n == 1:
        return 0, 0
    if periodic:
        return overlap, 0
    return overlap, -n % patch + (patch if jitter and patch > 1 else 0)


def _check_boundaries(boundaries: Sequence[Sequence[int]], cells: Triple) -> tuple[tuple[int, int], ...]:
    if len(boundaries) != 3 or any(len(sides) != 2 for sides in boundaries):
        raise ValueError(f"boundary_conditions: expected (low, high) for each of the 3 axes, found {boundaries}")
    checked = []
    for axis, n, sides in zip("HWD", cells, boundaries):
        low, high = (int(BoundaryCondition.PERIODIC if n == 1 else BoundaryCondition.parse(side)) for side in sides)
        check_sides(axis, low, high)
        checked.append((low, high))
    return tuple(checked)


def _shift_range(plan: TokenizationPlan, i: int) -> tuple[int, int]:
    """Smallest and largest shift of axis `i` that jitter draws."""
    if not plan.jitter or plan.patch_sizes[i] <= 1 or plan.grid[i] == 1:
        return 0, 0
    if plan.periodic[i]:
        most = plan.lengths[i] // 2 - 1
        return -most, most
    low, high = plan.zero_padding[i]
    return -(low - 1), high - 1


def _check_patch_shifts(plan: TokenizationPlan, shifts: Sequence[int]) -> Triple:
    if len(shifts) != 3:
        raise ValueError(f"patch_shifts: expected 3 whole numbers, for H, W and D, found {len(shifts)}")
    checked = _triple(shifts)
    for i, shift in enumerate(checked):
        low, high = plan.zero_padding[i]
        if not plan.periodic[i] and not -low < shift < max(high, 1):
            raise ValueError(
                f"patch_shifts: axis {'HWD'[i]} is not periodic and has {low} and {high} cells of padding, so its "
                f"shift must lie between {1 - low} and {high - 1}; found {shift}"
            )
    return checked


def _check_layer_shifts(plan: TokenizationPlan, shifts: Sequence[Sequence[int]]) -> None:
    layers = len(plan.layer_shifts)
    if len(shifts) != layers:
        raise ValueError(f"layer_shifts: expected {layers} rows, one for each layer, found {len(shifts)}")
    if any(shift and not wraps for row in shifts for shift, wraps in zip(row, plan.periodic)):
        raise ValueError("layer_shifts: the token grid can be rolled along periodic axes only, expected 0 elsewhere")


def _draw(low: int, high: int, count: int, generator: torch.Generator | None) -> list[int]:
    if low == high == 0:
        return [0] * count
    device = generator.device if generator is not None else "cpu"
    return torch.randint(low, high + 1, (count,), generator=generator, device=device).tolist()
