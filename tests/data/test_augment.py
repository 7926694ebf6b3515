"""Batches turn exactly: space, components, walls, constants and obstacles; draws depend on their key alone."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from walrus_hf.data.augment import ROTATIONS, Rotation, admissible, augment, draw_rotation, rotate, uniform_hash
from walrus_hf.fields import PUBLISHED_FIELDS, Trajectory
from walrus_hf.processing_walrus import WalrusProcessor

NAMES = dict(enumerate(PUBLISHED_FIELDS))
IDS = {name: i for i, name in NAMES.items()}
IDENTITY = Rotation((0, 1, 2), (1, 1, 1))
VECTOR = ("velocity_x", "velocity_y", "velocity_z")
MAGNETIC = ("magnetic_field_x", "magnetic_field_y", "magnetic_field_z")
TENSOR = tuple(f"D_{a}{b}" for a in "xyz" for b in "xyz")
GRID = (5, 4, 3)
GOLDEN_DRAWS = [0, 3, 21, 15, 4, 4, 16, 12]


def make_batch(values, names, constants=None, constant_names=(), **more):
    """`values`: (B, T, C, H, W, D)."""
    batch = {
        "field_values": torch.as_tensor(values, dtype=torch.float32),
        "field_ids": torch.tensor([[IDS[name] for name in names]] * len(values)),
        "padded_channels": torch.zeros((len(values), len(names)), dtype=torch.bool),
        "boundary_conditions": torch.full((len(values), 3, 2), 2),
        **more,
    }
    if constants is not None:
        batch["constant_values"] = torch.as_tensor(constants, dtype=torch.float32)
        batch["constant_ids"] = torch.tensor([[IDS[name] for name in constant_names]] * len(values))
    return batch


def random_batch(names, grid=GRID, rows=2, frames=3, seed=0, **more):
    rng = np.random.default_rng(seed)
    return make_batch(rng.normal(size=(rows, frames, len(names), *grid)), names, **more)


def matrix_of(rotation):
    """The 3 x 3 matrix from the law in words: new component i is old component axes[i], times its sign."""
    return np.array([[rotation.signs[i] * (rotation.axes[i] == j) for j in range(3)] for i in range(3)])


def centres(grid):
    """Positions of the cells (H, W, D, 3) about the middle of the box; multiples of 1/2, so that sums are exact."""
    axes = [np.arange(n) + 0.5 - n / 2 for n in grid]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def channels_of(values):
    """(H, W, D[, 3[, 3]]) as channels (n, H, W, D)."""
    return np.moveaxis(values.reshape(*values.shape[:3], -1), -1, 0)


def scalar(x):
    return np.sin(x[..., 0] + 2 * x[..., 1]) + x[..., 2] ** 3


def vector(x):
    return np.stack([x[..., 1] * x[..., 2], np.cos(x[..., 0]), x[..., 0] + x[..., 1] ** 2], axis=-1)


def tensor(x):
    return vector(x)[..., :, None] * np.stack([x[..., 0], x[..., 2] ** 2, np.sin(x[..., 1])], axis=-1)[..., None, :] + 1


def same_bits(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes()


# --- the group -----------------------------------------------------------------------------------------------------


def test_there_are_24_different_rotations_and_none_reflects():
    matrices = [rotation.matrix() for rotation in ROTATIONS]
    assert len({m.tobytes() for m in matrices}) == len(ROTATIONS) == 24
    for rotation, m in zip(ROTATIONS, matrices):
        np.testing.assert_array_equal(m, matrix_of(rotation))
        np.testing.assert_array_equal(m @ m.T, np.eye(3))
        assert round(np.linalg.det(m)) == 1
    assert ROTATIONS[0] == IDENTITY


def test_two_turns_after_each_other_are_the_turn_of_the_product():
    by_matrix = {r.matrix().tobytes(): r for r in ROTATIONS}
    batch = random_batch(("pressure", *VECTOR, *TENSOR), rows=1, frames=1)
    table = []
    for i, first in enumerate(ROTATIONS):
        once = rotate(batch, first, NAMES)
        for j, second in enumerate(ROTATIONS):
            product = by_matrix[(second.matrix() @ first.matrix()).tobytes()]
            table.append(ROTATIONS.index(product))
            if (i + j) % 3:  # a third of the table turns real data too
                continue
            both, at_once = rotate(once, second, NAMES), rotate(batch, product, NAMES)
            assert same_bits(both["field_values"], at_once["field_values"])
    square = np.array(table).reshape(24, 24)
    assert all(sorted(row) == list(range(24)) for row in [*square, *square.T])


@pytest.mark.parametrize("rotation", ROTATIONS, ids=str)
def test_the_inverse_restores_every_bit(rotation):
    names = ("pressure", *VECTOR, *TENSOR)
    batch = random_batch(names, grid=(6, 5, 1), obstacle_mask=torch.rand(2, 6, 5, 1) > 0.5)
    batch["boundary_conditions"] = torch.tensor([[[0, 1], [1, 0], [2, 2]]] * 2)
    for i, name in enumerate(names):
        if "z" in name.rpartition("_")[2]:
            batch["field_values"][:, :, i] = 0.0
            batch["padded_channels"][:, i] = True
    back = rotate(rotate(batch, rotation, NAMES), rotation.inverse(), NAMES)
    for key, value in batch.items():
        assert same_bits(back[key], value), key


@pytest.mark.parametrize(
    ("axes", "signs"),
    [((0, 1, 2), (1, 1, -1)), ((1, 0, 2), (1, 1, 1)), ((0, 0, 2), (1, 1, 1)), ((0, 1, 2), (1, 1, 2))],
)
def test_a_reflection_is_no_rotation(axes, signs):
    with pytest.raises(ValueError, match="expected"):
        Rotation(axes, signs)


# --- the tensor law ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rotation", ROTATIONS, ids=str)
def test_analytic_fields_turn_as_R_u_of_R_inverse_x(rotation):
    names = ("pressure", *VECTOR, *TENSOR)
    r = matrix_of(rotation)
    old = centres(GRID)
    fields = np.concatenate([channels_of(f(old)) for f in (scalar, vector, tensor)])
    turned = rotate(make_batch(fields[None, None], names), rotation, NAMES)["field_values"][0, 0]
    new = centres(turned.shape[1:])
    there = new @ r  # R^-1 x'
    expected = np.concatenate([
        channels_of(scalar(there)),
        channels_of(np.einsum("ij,...j->...i", r, vector(there))),
        channels_of(np.einsum("ik,...kl,jl->...ij", r, tensor(there), r)),
    ])  # fmt: skip
    np.testing.assert_array_equal(turned.numpy(), expected.astype(np.float32))


def central(values, axis):
    return (np.roll(values, -1, axis) - np.roll(values, 1, axis)) / 2


def curl(u):
    """(3, H, W, D), periodic, central differences."""
    d = [[central(u[i], axis) for axis in range(3)] for i in range(3)]
    return np.stack([d[2][1] - d[1][2], d[0][2] - d[2][0], d[1][0] - d[0][1]])


@pytest.mark.parametrize("rotation", ROTATIONS, ids=str)
def test_invariants_turn_as_scalars_and_a_curl_as_a_vector(rotation):
    names = ("pressure", *VECTOR, *MAGNETIC, *TENSOR)
    batch = random_batch(names, grid=(6, 5, 4), rows=1, frames=1)
    u = batch["field_values"][0, 0, 1:4].double().numpy()
    batch["field_values"][0, 0, 4:7] = torch.as_tensor(curl(u))
    t = batch["field_values"][0, 0, 7:].double().numpy().reshape(3, 3, 6, 5, 4)

    def invariants(u, t):
        divergence = sum(central(u[i], i) for i in range(3))
        return [divergence, (u**2).sum(0), np.einsum("ii...", t), np.einsum("ij...,ij...", t, t),
                np.einsum("i...,ij...,j...", u, t, u)]  # fmt: skip

    turned = rotate(batch, rotation, NAMES)["field_values"][0, 0].double().numpy()
    u2, b2, t2 = turned[1:4], turned[4:7], turned[7:].reshape(3, 3, *turned.shape[1:])
    for before, after in zip(invariants(u, t), invariants(u2, t2)):
        as_scalar = make_batch(before[None, None, None], ("pressure",))
        expected = rotate(as_scalar, rotation, NAMES)["field_values"][0, 0, 0].numpy()
        np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(b2, curl(u2), atol=1e-6)


def test_channels_keep_their_ids_and_places_in_any_order_of_names():
    names = ("D_zx", "velocity_z", "pressure", *(n for n in TENSOR if n != "D_zx"), "velocity_x", "velocity_y")
    ordered = ("pressure", *VECTOR, *TENSOR)
    batch = random_batch(names)
    sorted_batch = make_batch(batch["field_values"][:, :, [names.index(n) for n in ordered]], ordered)
    for rotation in ROTATIONS:
        turned, expected = rotate(batch, rotation, NAMES), rotate(sorted_batch, rotation, NAMES)
        assert torch.equal(turned["field_ids"], batch["field_ids"])
        assert torch.equal(turned["field_values"][:, :, [names.index(n) for n in ordered]], expected["field_values"])


# --- the rest of the batch -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rotation", ROTATIONS, ids=str)
def test_each_wall_turns_with_its_face(rotation):
    sides = torch.tensor([[[0, 1], [2, 2], [1, 0]], [[1, 1], [0, 1], [2, 2]]])
    turned = rotate(random_batch(VECTOR, boundary_conditions=sides), rotation, NAMES)["boundary_conditions"]
    for row, axis, side in itertools.product(range(2), range(3), range(2)):
        normal = np.zeros(3, dtype=int)
        normal[axis] = 2 * side - 1
        outward = matrix_of(rotation) @ normal
        new_axis = int(np.abs(outward).argmax())
        assert turned[row, new_axis, int(outward[new_axis] > 0)] == sides[row, axis, side]
    assert turned.dtype == torch.long


@pytest.mark.parametrize("rotation", ROTATIONS, ids=str)
def test_constants_obstacles_and_labels_turn_alike(rotation):
    names = ("pressure", *VECTOR)
    rng = np.random.default_rng(1)
    batch = random_batch(
        names, frames=2, labels=torch.as_tensor(rng.normal(size=(2, 2, 4, *GRID)), dtype=torch.float32),
        constants=rng.normal(size=(2, 4, *GRID)), constant_names=(*MAGNETIC, "speed_of_sound"),
        obstacle_mask=torch.as_tensor(rng.random((2, *GRID)) > 0.5),
    )  # fmt: skip
    turned = rotate(batch, rotation, NAMES)
    for key in ("labels", "field_values"):
        alone = rotate(make_batch(batch[key], names), rotation, NAMES)
        assert torch.equal(turned[key], alone["field_values"]), key
    as_frame = rotate(make_batch(batch["constant_values"][:, None], (*MAGNETIC, "speed_of_sound")), rotation, NAMES)
    assert torch.equal(turned["constant_values"], as_frame["field_values"][:, 0])
    as_scalar = rotate(make_batch(batch["obstacle_mask"][:, None, None], ("pressure",)), rotation, NAMES)
    assert turned["obstacle_mask"].dtype == torch.bool
    assert torch.equal(turned["obstacle_mask"], as_scalar["field_values"][:, 0, 0] > 0.5)
    assert all(value.is_contiguous() for value in turned.values())


def test_the_input_stays_as_it_is_and_other_entries_are_passed_on():
    batch = random_batch(("pressure", *VECTOR), obstacle_mask=torch.rand(2, *GRID) > 0.5, source="shear_flow", window=7)
    before = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
    for rotation in ROTATIONS:
        turned = rotate(batch, rotation, NAMES)
        assert (turned["source"], turned["window"]) == ("shear_flow", 7)
        turned["field_values"].zero_()
    assert batch.keys() == before.keys()
    assert all(same_bits(batch[k], v) for k, v in before.items() if isinstance(v, torch.Tensor))


@pytest.mark.parametrize("kind", ["frames", "constants"])
def test_large_volumes_turn_as_small_ones(kind):
    # Reading along the first axis of a volume takes another way through memory; compare with torch's own.
    grid = (32, 16, 24)
    batch = random_batch(VECTOR, grid=grid, rows=1, frames=1)
    for rotation in ROTATIONS:
        values = batch["field_values"].permute(0, 1, 2, *(3 + a for a in rotation.axes))
        values = values.flip([3 + i for i in range(3) if rotation.signs[i] < 0])[:, :, list(rotation.axes)]
        expected = values * torch.tensor(rotation.signs).reshape(3, 1, 1, 1)
        if kind == "frames":
            found = rotate(batch, rotation, NAMES)["field_values"]
        else:
            constants = random_batch(
                ("pressure",), grid=grid, rows=1, constants=batch["field_values"][0], constant_names=VECTOR
            )
            found = rotate(constants, rotation, NAMES)["constant_values"][None]
        assert torch.equal(found, expected)


# --- planes --------------------------------------------------------------------------------------------------------


def plane_inputs(sides=("wall", "open"), obstacle=True):
    rng = np.random.default_rng(3)
    fields = {"pressure": rng.normal(size=(2, 6, 4)), "velocity": rng.normal(size=(2, 6, 4, 2)),
              "D": rng.normal(size=(2, 6, 4, 2, 2))}  # fmt: skip
    mask = rng.random((6, 4)) > 0.8 if obstacle else None
    return Trajectory(fields, {"x": sides, "y": "periodic"}, obstacle_mask=mask)


def test_a_plane_comes_to_lie_in_each_orientation_and_its_padding_turns_along():
    inputs = dict(WalrusProcessor()(plane_inputs()))
    assert len(admissible(inputs, NAMES)) == 24
    shapes, padded_vectors = set(), set()
    for rotation in ROTATIONS:
        turned = rotate(inputs, rotation, NAMES)
        flat = rotation.axes.index(2)  # where the singleton axis went
        assert turned["field_values"].shape[3 + flat] == 1
        assert turned["boundary_conditions"][0, flat].tolist() == [2, 2]
        names = [NAMES[i] for i in turned["field_ids"][0].tolist()]
        letter = "xyz"[flat]
        padded = turned["padded_channels"][0].tolist()
        assert padded == [letter in name.rpartition("_")[2] and name != "pressure" for name in names]
        zeros = turned["field_values"][:, :, padded]
        assert zeros.numpy().tobytes() == bytes(zeros.numpy().nbytes)  # no negative zeros either
        rest = turned["field_values"][:, :, [not p for p in padded]]
        outside = (~turned["obstacle_mask"]).float()[:, None, None]
        assert (rest.abs().amax((0, 1)) * outside[0, 0] > 0).sum() == len(rest[0, 0]) * int(outside.sum())
        shapes.add(tuple(turned["field_values"].shape[3:]))
        padded_vectors.add(names[[n in VECTOR and p for n, p in zip(names, padded)].index(True)])
    assert shapes == {(6, 4, 1), (4, 6, 1), (6, 1, 4), (4, 1, 6), (1, 6, 4), (1, 4, 6)}
    assert padded_vectors == set(VECTOR)


def test_a_quarter_turn_in_the_plane_is_that_of_the_trajectory():
    plane = plane_inputs(obstacle=False)
    processor = WalrusProcessor()
    quarter = np.array([[0, -1], [1, 0]])  # x' = -y, y' = x
    turned_fields = {
        "pressure": np.rot90(plane.fields["pressure"], axes=(1, 2)),
        "velocity": np.rot90(plane.fields["velocity"], axes=(1, 2)) @ quarter.T,
        "D": quarter @ np.rot90(plane.fields["D"], axes=(1, 2)) @ quarter.T,
    }
    expected = processor(Trajectory(turned_fields, {"x": "periodic", "y": ("wall", "open")}))
    found = rotate(processor(plane), Rotation((1, 0, 2), (-1, 1, 1)), NAMES)
    assert found.keys() == expected.keys()
    for key in expected:
        assert torch.equal(found[key], expected[key]), key


def test_scales_of_components_move_with_them_and_without_signs():
    scales = {"pressure": 3.0, "velocity": [5.0, 7.0], "D": [[1.0, 2.0], [4.0, 8.0]]}
    inputs = WalrusProcessor(global_scales={"rms": scales, "rms_delta": scales})(plane_inputs())
    turned = rotate(inputs, Rotation((2, 0, 1), (-1, -1, 1)), NAMES)
    # x' = -z, y' = -x, z' = y; padded components have scale 1.
    assert turned["value_scales"][0, 1:4].tolist() == [1, 5, 7]
    assert turned["change_scales"][0, 4:].tolist() == [1, 1, 1, 1, 1, 2, 1, 4, 8]


# --- what may be turned --------------------------------------------------------------------------------------------


def test_without_a_z_component_only_turns_that_keep_the_z_axis_are_admissible():
    names = {0: "pressure", 1: "velocity_x", 2: "velocity_y"}
    batch = {"field_values": torch.randn(1, 2, 3, 4, 6, 1), "field_ids": torch.tensor([[0, 1, 2]])}
    found = admissible(batch, names)
    assert found == [r for r in ROTATIONS if r.axes[2] == 2]
    assert len(found) == 8
    assert len({augment(batch, (0, 0, w), names)["field_values"].numpy().tobytes() for w in range(200)}) == 8
    with pytest.raises(ValueError, match=r"needs 'velocity_z', which the batch lacks"):
        rotate(batch, Rotation((2, 0, 1), (1, 1, 1)), names)


def test_a_lone_c_zz_is_a_scalar_but_a_lone_component_of_a_known_tensor_is_not():
    lone = random_batch(("c_zz", "pressure"))
    assert admissible(lone, NAMES) == list(ROTATIONS)
    for rotation in ROTATIONS:
        as_scalars = rotate(make_batch(lone["field_values"], ("density", "pressure")), rotation, NAMES)
        assert torch.equal(rotate(lone, rotation, NAMES)["field_values"], as_scalars["field_values"])
    assert admissible(random_batch(("D_zz",)), NAMES) == [r for r in ROTATIONS if r.axes[2] == 2]
    assert admissible(random_batch(("velocity_x",)), NAMES) == [r for r in ROTATIONS if r.axes[0] == 0]


def test_constant_vectors_restrict_the_turns_too():
    batch = random_batch(("pressure",), constants=np.ones((2, 2, *GRID)), constant_names=("momentum_x", "momentum_y"))
    assert len(admissible(batch, NAMES)) == 8


@pytest.mark.parametrize("name", ["velocity_theta", "velocity_r", "magnetic_field_log_r", "velocity_phi"])
def test_components_along_curvilinear_axes_are_left_alone(name):
    batch = random_batch(("pressure", name))
    assert admissible(batch, NAMES) == [IDENTITY]
    for window in range(20):
        assert augment(batch, (0, 0, window), NAMES)["field_values"] is batch["field_values"]
    with pytest.raises(ValueError, match="curvilinear"):
        rotate(batch, ROTATIONS[5], NAMES)


@pytest.mark.parametrize("grid_type", ["spherical", "logspherical"])
def test_other_grids_are_left_alone(grid_type):
    batch = random_batch(("pressure", *VECTOR))
    for window in range(20):
        found = augment(batch, (0, 0, window), NAMES, grid_type)
        assert found.keys() == batch.keys()
        assert all(found[key] is batch[key] for key in batch)


def test_unknown_ids_and_mixed_batches_are_refused():
    batch = random_batch(VECTOR)
    with pytest.raises(ValueError, match=r"expected ids of the vocabulary, found \[5, 6\]"):
        admissible(batch, {IDS["velocity_x"]: "velocity_x"})
    batch["field_ids"][1, 0] = IDS["pressure"]
    with pytest.raises(ValueError, match="expected the same fields in all samples"):
        augment(batch, (0,), NAMES)


# --- The Well's own augmentation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
def test_turns_agree_with_the_rotations_of_the_well(dims):
    augmentation = pytest.importorskip("the_well.data.augmentation")
    grid = GRID[:dims]
    table = augmentation.PROPER_2D_ROTATIONS if dims == 2 else augmentation.PROPER_3D_ROTATIONS
    batch = random_batch(("pressure", *VECTOR, *TENSOR), grid=(*grid, *[1] * (3 - dims)), rows=1, frames=2)
    batch["boundary_conditions"] = torch.tensor([[[0, 1], [1, 0], [2, 2]]])
    keep = [i for i, name in enumerate(("pressure", *VECTOR, *TENSOR)) if dims == 3 or "z" not in name]
    values = batch["field_values"][0].reshape(2, 13, *grid)
    seen = set()
    for permutation, mask in table:
        space = range(2, 2 + dims)
        vectors = values[:, 1 : 1 + dims].permute(0, *space, 1)
        tensors = values[:, 4:].unflatten(1, (3, 3))[:, :dims, :dims].permute(0, *(i + 1 for i in space), 1, 2)
        theirs = augmentation.RandomRotation90.rotate90(
            {
                "variable_fields": {0: {"p": values[:, 0]}, 1: {"u": vectors}, 2: {"D": tensors}},
                "constant_fields": {0: {}, 1: {}, 2: {}},
                "boundary_conditions": batch["boundary_conditions"][0, :dims],
            },
            torch.tensor(permutation),
            torch.tensor(mask),
        )
        rotation = Rotation((*permutation, 2)[:3], (*(1 - 2 * m for m in mask), 1)[:3])
        seen.add(rotation)
        turned = rotate(batch, rotation, NAMES)
        found = turned["field_values"][0, :, keep].flatten(2 + dims)[..., 0] if dims == 2 else turned["field_values"][0]
        fields = theirs["variable_fields"]
        expected = torch.cat([fields[0]["p"][..., None], fields[1]["u"], fields[2]["D"].flatten(-2)], dim=-1)
        assert torch.equal(found, expected.movedim(-1, 1))
        assert torch.equal(turned["boundary_conditions"][0, :dims], theirs["boundary_conditions"])
    assert len(seen) == len(table)
    if dims == 3:
        assert seen == set(ROTATIONS)


# --- random numbers ------------------------------------------------------------------------------------------------


def test_draws_are_a_function_of_the_key_alone_and_touch_no_global_state():
    batch = random_batch(("pressure", *VECTOR))
    numpy_state, torch_state = str(np.random.get_state()), torch.get_rng_state()  # noqa: NPY002
    first = [augment(batch, (1, 2, window), NAMES)["field_values"] for window in range(5)]
    np.random.seed(7)  # noqa: NPY002
    torch.manual_seed(7)
    numpy_seeded = str(np.random.get_state())  # noqa: NPY002
    again = [augment(batch, (1, 2, window), NAMES)["field_values"] for window in reversed(range(5))][::-1]
    assert all(same_bits(a, b) for a, b in zip(first, again))
    assert str(np.random.get_state()) == numpy_seeded != numpy_state  # noqa: NPY002
    torch.set_rng_state(torch_state)
    # Runs must stay reproducible from one release to the next.
    assert [ROTATIONS.index(draw_rotation((0, 0, w))) for w in range(8)] == GOLDEN_DRAWS


def test_all_rotations_are_equally_likely_and_neighbouring_keys_independent():
    draws = np.array([[ROTATIONS.index(draw_rotation((0, epoch, w))) for w in range(4000)] for epoch in range(2)])
    assert stats.chisquare(np.bincount(draws.ravel(), minlength=24)).pvalue > 1e-3
    for left, right in ((draws[0], draws[1]), (draws[:, :-1], draws[:, 1:])):
        table = np.bincount((left * 24 + right).ravel(), minlength=576).reshape(24, 24)
        assert stats.chi2_contingency(table).pvalue > 1e-3


def test_keys_that_differ_in_length_order_or_far_bits_draw_apart():
    keys = [(1,), (1, 0), (0, 1), (1, 0, 0), (2**32,), (0,), (2**63, 5), (5, 2**63), (-1,), (2**64 - 2,)]
    hashes = [tuple(uniform_hash(key, np.arange(4))) for key in keys]
    assert len(set(hashes)) == len(keys)
    candidates = [Rotation()] * 2**20
    places = list(range(2**20))
    assert len({draw_rotation(key, places) for key in keys}) == len(keys)
    assert draw_rotation((3,), candidates) == IDENTITY
    with pytest.raises(TypeError):
        uniform_hash((1.5,), np.arange(4))
    with pytest.raises(TypeError):
        draw_rotation((1.5,))


def splitmix64(state):
    """The published generator on Python integers: the output that follows `state`."""
    z = (state + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_the_hash_is_built_from_splitmix64():
    assert splitmix64(1234567) == 6457827717110365317  # a published test vector
    gamma = 0x9E3779B97F4A7C15

    def mix(z):
        return splitmix64((z - gamma) % 2**64)

    def expected(key, i):
        state = len(key)
        for word in key:
            state = mix(((state + gamma) % 2**64) ^ (word % 2**64))
        return (mix(mix((i * gamma + state) % 2**64) ^ mix(~state % 2**64)) >> 11) / 2**53

    ids = np.array([[0, 1, 2**62], [-1, -(2**63), 12345]])
    for key in ((), (0,), (3, -4), (2**64 - 1, 7, 9)):
        found = uniform_hash(key, ids)
        assert found.dtype == np.float64
        assert found.tolist() == [[expected(key, i) for i in row] for row in ids.tolist()]
    assert uniform_hash((1,), np.int64(5)).shape == ()
    assert uniform_hash((1,), np.empty((0, 2), dtype=np.int64)).shape == (0, 2)


def test_hashes_do_not_depend_on_order_or_company():
    ids = np.random.default_rng(0).permutation(10_000)
    everything = uniform_hash((4, 2), np.arange(10_000))
    np.testing.assert_array_equal(uniform_hash((4, 2), ids), everything[ids])
    np.testing.assert_array_equal(uniform_hash((4, 2), ids[::-3]), everything[ids[::-3]])


def test_hashes_are_uniform_and_independent_along_ids_and_keys():
    n, bins = 100_000, 16
    ids = np.arange(n)
    for spacing in (1, 2**20, 2**40):
        u = uniform_hash((0, 0), ids * spacing)
        assert 0 <= u.min() < u.max() < 1
        assert stats.kstest(u, "uniform").pvalue > 1e-3
        assert stats.chisquare(np.bincount((u * 256).astype(int), minlength=256)).pvalue > 1e-3
    # No id draws the same under all keys.
    over_keys = np.array([uniform_hash((key,), ids[:100]) for key in range(1000)])
    assert min(stats.kstest(column, "uniform").pvalue for column in over_keys.T) > 1e-5
    u = [uniform_hash(key, ids) for key in ((0, 0), (0, 1), (1, 0), (0, 2**32))]
    pairs = [*itertools.combinations(u, 2), (u[0][:-1], u[0][1:]), (u[0][:-2], u[0][2:]), (u[1][:-1], u[0][1:])]
    for left, right in pairs:
        table = np.bincount((left * bins).astype(int) * bins + (right * bins).astype(int), minlength=bins**2)
        assert stats.chisquare(table).pvalue > 1e-3
        assert abs(np.corrcoef(left, right)[0, 1]) < 4 / np.sqrt(n)


def test_every_bit_of_an_id_moves_half_of_the_bits_of_its_hash():
    ids = np.arange(2000, dtype=np.int64)

    def bits(values):
        return (values * 2.0**53).astype(np.int64)

    before = bits(uniform_hash((9,), ids))
    for bit in range(63):
        flipped = bits(uniform_hash((9,), ids ^ np.int64(1 << bit))) ^ before
        share = np.unpackbits(flipped.view(np.uint8)).sum() / (53 * len(ids))
        assert abs(share - 0.5) < 0.01, bit
