"""Random orientations of a batch, and random numbers that depend on nothing but their address.

A rotation by quarter turns maps a uniform grid onto itself, so a batch is turned exactly: cells move, components of
vectors and tensors change places and signs, and nothing is interpolated. There are 24 such rotations of space. A plane
is a box with one cell along its last axis, so it can come to lie in any orientation; its walls turn along.

Only proper rotations are drawn, as for the published weights. Pseudovectors such as a magnetic field follow the law of
vectors under these, but not under reflections.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

LETTERS = "xyz"
ANGULAR = ("r", "theta", "phi")  # last part of the names of curvilinear components, such as velocity_log_r
VALUES = {"field_values": "field_ids", "labels": "field_ids", "constant_values": "constant_ids"}
PER_CHANNEL = ("padded_channels", "value_scales", "change_scales")  # (B, C): they follow the channels of field_values
GAMMA = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd


@dataclasses.dataclass(frozen=True)
class Rotation:
    """A rotation of space by quarter turns: new axis `i` is old axis `axes[i]`, reversed where `signs[i]` is -1.

    The values of a vector field move along: `u'[i] = signs[i] * u[axes[i]]`.

    Args:
        axes: a permutation of (0, 1, 2).
        signs: three of 1 and -1, such that the determinant is 1.

    Raises:
        ValueError: no signed permutation, or a reflection.
    """

    axes: tuple[int, int, int] = (0, 1, 2)
    signs: tuple[int, int, int] = (1, 1, 1)

    def __post_init__(self) -> None:
        if sorted(self.axes) != [0, 1, 2] or len(self.signs) != 3 or not set(self.signs) <= {1, -1}:
            raise ValueError(f"expected axes that permute (0, 1, 2) and three signs of 1 or -1, found {self}")
        if round(np.linalg.det(self.matrix())) != 1:
            raise ValueError(f"expected a proper rotation (determinant 1), found a reflection: {self}; turn one sign")

    def matrix(self) -> np.ndarray:
        """`R` (3, 3), integers, with `u' = R u`."""
        matrix = np.zeros((3, 3), dtype=np.int64)
        matrix[range(3), self.axes] = self.signs
        return matrix

    def inverse(self) -> Rotation:
        """The rotation that takes back this one."""
        old = [self.axes.index(i) for i in range(3)]
        return Rotation((old[0], old[1], old[2]), (self.signs[old[0]], self.signs[old[1]], self.signs[old[2]]))


def _proper_rotations() -> tuple[Rotation, ...]:
    found = []
    for axes in itertools.permutations(range(3), 3):
        crossings = sum(axes[i] > axes[j] for i, j in itertools.combinations(range(3), 2))
        for signs in itertools.product((1, -1), (1, -1), (1, -1)):
            if math.prod(signs) == (-1) ** crossings:
                found.append(Rotation(axes, signs))
    return tuple(found)


ROTATIONS: tuple[Rotation, ...] = _proper_rotations()  # all 24; the first one is the identity


def augment(
    batch: Mapping[str, Any], key: Sequence[int], id2field: Mapping[int, str], grid_type: str = "cartesian"
) -> dict[str, Any]:
    """Turn a batch by one rotation drawn from `key`; all samples alike, because a turn changes the shape of the grid.

    Args:
        batch: model inputs, see [`rotate`]; left as it is.
        key: address of the draw, such as (seed, epoch, window).
        id2field: names of the vocabulary by id.
        grid_type: The Well's; other grids than "cartesian" have no such symmetry and are returned as they are, and so
            are batches with components along curvilinear axes (`velocity_theta`, `magnetic_field_log_r`, ...).

    Raises:
        ValueError: an id that the vocabulary lacks, samples of different fields in one batch.
    """
    if grid_type != "cartesian" or _angular(_names(batch, id2field)):
        return dict(batch)
    return rotate(batch, draw_rotation(key, admissible(batch, id2field)), id2field)


def draw_rotation(key: Sequence[int], candidates: Sequence[Rotation] = ROTATIONS) -> Rotation:
    """One of `candidates`, all equally likely; a pure function of `key` (integers, modulo 2^64) and their order."""
    # Words of fixed width, and how many: SeedSequence itself cannot tell (1,) from (1, 0).
    words = np.array([len(key), *(operator.index(word) % 2**64 for word in key)], dtype="<u8")
    bits = np.random.Philox(np.random.SeedSequence(words.view("<u4").tolist())).random_raw()
    return candidates[int(bits) % len(candidates)]


def admissible(batch: Mapping[str, Any], id2field: Mapping[int, str]) -> list[Rotation]:
    """The rotations that need no component that the batch lacks, in the order of `ROTATIONS`.

    All 24 where every vector has three and every tensor nine components, as lifted planes do. Where the vocabulary has
    no `velocity_z`, for one, the eight that keep the z axis, in either direction. A lone diagonal component of a tensor
    that the vocabulary does not know otherwise (`c_zz`) counts as a scalar, as it does for the published weights.
    Only the identity where a component lies along a curvilinear axis.
    """
    groups = _names(batch, id2field)
    if _angular(groups):
        return [Rotation()]
    vocabulary = set(id2field.values())
    return [
        rotation
        for rotation in ROTATIONS
        if all(source in names for names in groups for source, _ in _sources(names, rotation, vocabulary))
    ]


def rotate(batch: Mapping[str, Any], rotation: Rotation, id2field: Mapping[int, str]) -> dict[str, Any]:
    """Turn a batch: space, components, boundary conditions, constant fields and obstacles.

    Channels keep their ids and places; values move between the components of one vector or tensor, as `R u` and
    `R T R^T`, and what marks a component (`padded_channels`) moves with it.

    Args:
        batch: `field_values` and `labels` (B, T, C, H, W, D), `field_ids`, `padded_channels`, `value_scales` and
            `change_scales` (B, C), `boundary_conditions` (B, 3, 2), `constant_values` (B, K, H, W, D), `constant_ids`
            (B, K), `obstacle_mask` (B, H, W, D), on the CPU; all but `field_ids` optional. Other entries are passed on.
        rotation: one of [`admissible`].
        id2field: names of the vocabulary by id.

    Returns:
        A new dict. Turned tensors are new and contiguous; the batch stays as it is.

    Raises:
        ValueError: a component that the rotation needs and the batch lacks, an id that the vocabulary lacks, samples of
            different fields in one batch.
    """
    groups = _names(batch, id2field)
    if _angular(groups) and rotation != Rotation():
        raise ValueError(
            f"expected components along x, y and z, found curvilinear ones in {groups}; leave the batch as it is"
        )
    turned = dict(batch)
    vocabulary = set(id2field.values())
    laws = {key: _law(names, rotation, vocabulary) for key, names in zip(("field_ids", "constant_ids"), groups)}
    padded = batch["padded_channels"][0].tolist() if "padded_channels" in batch else []
    # A negative zero would be another bit pattern: padding stays plain zero.
    laws["field_ids"] = [(i, 1 if padded and padded[i] else sign) for i, sign in laws["field_ids"]]
    for key, ids in VALUES.items():
        if key in batch:
            turned[key] = _turn_channels(batch[key], rotation, laws[ids])
    for key in PER_CHANNEL:
        if key in batch:
            turned[key] = batch[key][:, [i for i, _ in laws["field_ids"]]]
    if "obstacle_mask" in batch:
        turned["obstacle_mask"] = torch.from_numpy(_turn(batch["obstacle_mask"].numpy(), rotation).copy())
    if "boundary_conditions" in batch:
        sides = batch["boundary_conditions"].numpy()[:, rotation.axes]
        sides = np.where(np.array(rotation.signs)[:, None] < 0, sides[..., ::-1], sides)
        turned["boundary_conditions"] = torch.from_numpy(np.ascontiguousarray(sides))
    return turned


def uniform_hash(key: Sequence[int], ids: np.ndarray) -> np.ndarray:
    """One number for each id, uniform on [0, 1): a pure function of `key` and the id, for any order and subset of ids.

    Strides are drawn and windows shuffled with it (`np.argsort(uniform_hash(key, ids))`). Numbers of different keys are
    independent, and so are those of keys of different lengths.

    Args:
        key: integers, taken modulo 2^64; their order matters.
        ids: int64, any shape.

    Returns:
        float64 of the shape of `ids`: multiples of 2^-53.
    """
    state = np.array([len(key)], dtype=np.uint64)
    for word in key:
        state = _mix((state + GAMMA) ^ np.uint64(operator.index(word) % 2**64))
    hashed = _mix(np.asarray(ids, dtype=np.int64).view(np.uint64) * GAMMA + state)
    # A second round under another state: sequences of two keys are then no shifts of each other.
    hashed = _mix(hashed ^ _mix(~state))
    return (hashed >> np.uint64(11)).reshape(np.shape(ids)) * 2.0**-53


def _mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014): a bijection of 64-bit words, modulo 2^64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _names(batch: Mapping[str, Any], id2field: Mapping[int, str]) -> list[list[str]]:
    """Channel names of the fields, and of the constant fields."""
    groups = []
    for key in ("field_ids", "constant_ids"):
        ids = batch[key] if key in batch else torch.zeros((1, 0), dtype=torch.long)
        if not bool((ids == ids[:1]).all()):
            raise ValueError(f"{key}: expected the same fields in all samples of a batch, found {ids.tolist()}")
        unknown = [i for i in ids[0].tolist() if i not in id2field]
        if unknown:
            raise ValueError(f"{key}: expected ids of the vocabulary, found {unknown}; pass the id2field of the model")
        groups.append([id2field[i] for i in ids[0].tolist()])
    return groups


def _angular(groups: list[list[str]]) -> bool:
    return any(name.rpartition("_")[2] in ANGULAR for names in groups for name in names)


def _component(name: str, vocabulary: set[str]) -> tuple[str, tuple[int, ...]]:
    """`("velocity_", (0,))` for velocity_x, `("D_", (0, 1))` for D_xy, `(name, ())` for a scalar."""
    stem, _, suffix = name.rpartition("_")
    if not stem or len(suffix) not in (1, 2) or not set(suffix) <= set(LETTERS):
        return name, ()
    if suffix[0] == suffix[-1] and len(suffix) == 2:
        others = {f"{stem}_{a}{b}" for a, b in itertools.product(LETTERS, repeat=2)} - {name}
        if not others & vocabulary:
            return name, ()
    return f"{stem}_", tuple(LETTERS.index(letter) for letter in suffix)


def _sources(names: list[str], rotation: Rotation, vocabulary: set[str]) -> list[tuple[str, int]]:
    """For each channel the name of the one whose values it takes, and their sign."""
    sources = []
    for name in names:
        stem, index = _component(name, vocabulary)
        source = stem + "".join(LETTERS[rotation.axes[i]] for i in index)
        sources.append((source, math.prod(rotation.signs[i] for i in index)))
    return sources


def _law(names: list[str], rotation: Rotation, vocabulary: set[str]) -> list[tuple[int, int]]:
    """For each channel the place of the one whose values it takes, and their sign."""
    law = []
    for source, sign in _sources(names, rotation, vocabulary):
        if source not in names:
            raise ValueError(f"{rotation} needs {source!r}, which the batch lacks; choose one of admissible(...)")
        law.append((names.index(source), sign))
    return law


def _turn(values: np.ndarray, rotation: Rotation) -> np.ndarray:
    """A view of `(..., H, W, D)` from the new axes."""
    lead = values.ndim - 3
    moved = values.transpose(*range(lead), *(lead + axis for axis in rotation.axes))
    directions: tuple[Any, ...] = tuple(slice(None, None, sign) for sign in rotation.signs)
    return moved[..., *directions]


def _turn_channels(tensor: Tensor, rotation: Rotation, law: list[tuple[int, int]]) -> Tensor:
    """Turn `(..., C, H, W, D)` with one pass over memory: NumPy reads through reversed axes, PyTorch copies first."""
    values = tensor.numpy()
    cells = values.shape[-3:]
    turned = np.empty((*values.shape[:-3], *(cells[axis] for axis in rotation.axes)), dtype=values.dtype)
    # Reading a volume along its first axis jumps from cache line to cache line (10 times slower for 128 x 128 x 256).
    far = rotation.axes[2] == 0 and min(cells) > 1
    for channel, (source, sign) in enumerate(law):
        taken = values[..., source, :, :, :]
        if far:
            taken = np.ascontiguousarray(taken.swapaxes(-3, -2)).swapaxes(-3, -2)
        if sign < 0:
            np.negative(_turn(taken, rotation), out=turned[..., channel, :, :, :])
        else:
            turned[..., channel, :, :, :] = _turn(taken, rotation)
    return torch.from_numpy(turned)
