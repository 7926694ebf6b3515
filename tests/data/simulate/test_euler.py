"""The gas against exact solutions of Riemann problems, exact waves, conservation laws and symmetries."""

import numpy as np
import pytest
from scipy.optimize import brentq

from walrus_hf import WalrusProcessor, metrics
from walrus_hf.data.simulate.euler import euler_channel, euler_layers, euler_multi_quadrants, solve_euler

GAMMA = 1.4
PERIODIC, OPEN, WALLS = ({"x": kind, "y": kind} for kind in ("periodic", "open", "wall"))


def primitive(trajectory):
    """Density, velocity and pressure of every frame, in float64."""
    rho = trajectory.fields["density"].astype(np.float64)
    return rho, trajectory.fields["momentum"] / rho[..., None], trajectory.fields["pressure"].astype(np.float64)


def behind(state, pressure):
    """Density behind the wave that changes a (density, velocity, pressure) to `pressure`, and the velocity's change."""
    rho, _, p = state
    if pressure > p:  # a shock: Rankine and Hugoniot
        ratio, mu = pressure / p, (GAMMA - 1) / (GAMMA + 1)
        density = rho * (ratio + mu) / (mu * ratio + 1)
        return density, (pressure - p) * np.sqrt((density - rho) / (rho * density * (pressure - p)))
    density = rho * (pressure / p) ** (1 / GAMMA)  # a fan: isentropic, with a Riemann invariant
    return density, 2 / (GAMMA - 1) * (np.sqrt(GAMMA * pressure / density) - np.sqrt(GAMMA * p / rho))


def riemann(left, right, xi):
    """Exact solution (3, n) at the speeds xi = x / t between two states (density, velocity, pressure)."""
    mismatch = lambda p: behind(left, p)[1] + behind(right, p)[1] + right[1] - left[1]  # noqa: E731
    middle = brentq(mismatch, 1e-10, 1e5, xtol=1e-14)
    velocity = left[1] - behind(left, middle)[1]

    def left_half(state, xi, velocity):
        rho, u, p = state
        density, _ = behind(state, middle)
        sound, sound_behind = np.sqrt(GAMMA * p / rho), np.sqrt(GAMMA * middle / density)
        if middle > p:
            head = tail = (density * velocity - rho * u) / (density - rho)  # mass through the shock
        else:
            head, tail = u - sound, velocity - sound_behind
        fan_sound = (2 * sound + (GAMMA - 1) * (u - xi)) / (GAMMA + 1)
        fan_density = rho * (np.abs(fan_sound) / sound) ** (2 / (GAMMA - 1))
        fan = np.stack([fan_density, xi + fan_sound, p * (fan_density / rho) ** GAMMA])
        outside = np.array(state)[:, None]
        return np.where(xi < head, outside, np.where(xi < tail, fan, np.array([density, velocity, middle])[:, None]))

    mirrored = left_half((right[0], -right[1], right[2]), -xi, -velocity) * np.array([1, -1, 1])[:, None]
    return np.where(xi < velocity, left_half(left, xi, velocity), mirrored)


def tube(left, right, cells, time, axis=0):
    """L1 errors of density, velocity and pressure of a tube along an axis, broken in the middle, and its trajectory."""
    x = (np.arange(cells) + 0.5) / cells - 0.5
    rho, u, p = (np.repeat(np.where(x < 0, a, b)[:, None], 16, axis=1) for a, b in zip(left, right))
    velocity = np.stack([u, np.zeros_like(u)], axis=-1)
    if axis == 1:
        rho, velocity, p = rho.T, velocity.swapaxes(0, 1)[..., ::-1], p.T
    found = solve_euler(rho, velocity, p, 2, time, GAMMA, cell=1 / cells)
    rho, velocity, p = (values[-1] if axis == 0 else values[-1].swapaxes(0, 1) for values in primitive(found))
    profiles = np.stack([rho[:, 5], velocity[:, 5, axis], p[:, 5]])
    return np.abs(profiles - riemann(left, right, x / time)).mean(axis=1), found


def test_the_exact_solution_of_this_test_is_that_of_sods_tube():
    """Plateaus as in Toro's book, table 4.3."""
    density, velocity, pressure = riemann((1, 0, 1), (0.125, 0, 0.1), np.array([-1.3, 0.5, 1.2, 1.9]))
    np.testing.assert_allclose(density, [1, 0.42632, 0.26557, 0.125], atol=1e-5)
    np.testing.assert_allclose(velocity, [0, 0.92745, 0.92745, 0], atol=1e-5)
    np.testing.assert_allclose(pressure, [1, 0.30313, 0.30313, 0.1], atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
def test_sods_tube_converges_at_first_order_to_the_exact_solution(axis):
    coarse, _ = tube((1, 0, 1), (0.125, 0, 0.1), 64, 0.2, axis)
    fine, found = tube((1, 0, 1), (0.125, 0, 0.1), 128, 0.2, axis)
    assert (fine < [0.005, 0.009, 0.004]).all()
    assert (np.log2(coarse / fine) > 0.9).all()
    assert np.abs(found.fields["momentum"][..., 1 - axis]).max() == 0


@pytest.mark.parametrize(
    ("left", "right", "time", "bounds"),
    [
        ((1.0, 0.0, 1000.0), (1.0, 0.0, 0.01), 0.012, (0.12, 0.32, 6.0)),  # a pressure ratio of 1e5
        ((1.0, -2.0, 0.4), (1.0, 2.0, 0.4), 0.15, (0.008, 0.02, 0.004)),  # two fans and nearly a vacuum
        ((1.0, 5.0, 0.01), (1.0, -5.0, 0.01), 0.2, (0.1, 0.03, 0.3)),  # two shocks of a head-on collision
        ((1.0, 0.7, 1.0), (0.3, 0.7, 1.0), 0.25, (0.008, 1e-6, 1e-6)),  # a contact alone
    ],
)
def test_hard_riemann_problems_come_out_right_and_positive(left, right, time, bounds):
    errors, found = tube(left, right, 128, time)
    assert (errors < bounds).all()
    assert found.fields["density"].min() > 0
    assert found.fields["pressure"].min() > 0


def test_a_wave_of_density_is_carried_at_second_order():
    errors = []
    for n in (32, 64):
        x, y = np.meshgrid((np.arange(n) + 0.5) / n, (np.arange(3 * n // 2) + 0.5) / n, indexing="ij")
        stream = np.broadcast_to([1.0, 0.5], (*x.shape, 2))
        wave = lambda t: 1 + 0.3 * np.sin(2 * np.pi * ((x - t) + (y - 0.5 * t) / 1.5))  # noqa: B023, E731
        found = solve_euler(wave(0), stream, np.ones_like(x), 2, 0.25, boundary_conditions=PERIODIC)
        rho, velocity, pressure = primitive(found)
        errors.append(np.abs(rho[-1] - wave(0.25)).mean())
        np.testing.assert_allclose(velocity[-1], stream, atol=1e-6)
        np.testing.assert_allclose(pressure[-1], 1, atol=1e-6)
    assert errors[1] < 1e-3
    assert np.log2(errors[0] / errors[1]) > 1.75


@pytest.mark.slow
def test_the_order_of_a_wave_of_density_tends_to_two():
    errors = []
    for n in (64, 128, 256):
        x = np.repeat((np.arange(n) + 0.5)[:, None] / n, 16, axis=1)
        wave = lambda t: 1 + 0.3 * np.sin(2 * np.pi * (x - t))  # noqa: B023, E731
        stream = np.broadcast_to([1.0, 0.0], (n, 16, 2))
        found = solve_euler(wave(0), stream, np.ones_like(x), 2, 0.5, boundary_conditions=PERIODIC)
        errors.append(np.abs(found.fields["density"][-1] - wave(0.5)).mean())
    assert np.log2(errors[0] / errors[1]) > 1.8
    assert np.log2(errors[1] / errors[2]) > 1.9


def test_a_small_sound_wave_travels_at_the_speed_of_sound():
    x = np.repeat((np.arange(64) + 0.5)[:, None] / 64, 24, axis=1)
    rho, p = 1.3, 0.8
    c = np.sqrt(GAMMA * p / rho)
    wave = lambda t: 1e-3 * np.sin(2 * np.pi * (x - c * t))  # noqa: E731
    velocity = np.stack([c * wave(0), 0 * x], axis=-1)
    start = (rho * (1 + wave(0)), velocity, p + rho * c**2 * wave(0))
    found = solve_euler(*start, 2, 0.7, boundary_conditions=PERIODIC)
    assert np.abs(found.fields["pressure"][-1] - p - rho * c**2 * wave(0.7)).max() < 0.1 * rho * c**2 * 1e-3


def test_mass_momentum_and_energy_are_kept_in_a_periodic_box():
    found = euler_multi_quadrants(3, "periodic", grid=(40, 56), frames=10, dt=0.04)
    for name, values in found.fields.items():
        total = values.mean(axis=(1, 2), dtype=np.float64)
        if name == "pressure":
            assert np.abs(total - total[0]).max() > 1e-3
        else:
            np.testing.assert_allclose(total, np.broadcast_to(total[0], total.shape), atol=2e-7)


def test_walls_keep_mass_and_energy_and_turn_the_flow_around():
    x = (np.arange(32) + 0.5) / 32
    velocity = np.broadcast_to([0.5, 0.0], (32, 20, 2))
    start = np.ones((32, 20)), velocity, np.ones((32, 20))
    found = solve_euler(*start, 9, 0.2, boundary_conditions=WALLS)
    for name in ("density", "energy"):
        total = found.fields[name].mean(axis=(1, 2), dtype=np.float64)
        np.testing.assert_allclose(total, total[0], rtol=1e-6)
    momentum = found.fields["momentum"][..., 0].mean(axis=(1, 2))
    assert momentum.min() < -0.2
    assert np.abs(found.fields["momentum"][..., 1]).max() < 1e-6
    # The gas hits the wall at x = 1 as a shock of known strength, which runs back into it.
    pressure = brentq(lambda p: behind((1, 0, 1), p)[1] - 0.5, 1, 10)
    np.testing.assert_allclose(found.fields["pressure"][1][x > 0.9], pressure, rtol=0.02)


def test_a_channel_keeps_mass_energy_and_momentum_along_its_walls_and_nothing_crosses_them():
    found = euler_channel(3, grid=(40, 56), frames=12, dt=0.04)
    assert found.boundary_ids() == ((2, 2), (0, 0))
    momentum, density = found.fields["momentum"], found.fields["density"]
    for kept in (density, found.fields["energy"], momentum[..., 0]):
        total = kept.mean(axis=(1, 2), dtype=np.float64)
        np.testing.assert_allclose(total, np.full_like(total, total[0]), atol=2e-7)
    across = momentum[..., 1].mean(axis=(1, 2), dtype=np.float64)
    assert np.abs(across - across[0]).max() > 1e-4  # the walls push
    speed = np.abs(momentum[0, ..., 1] / density[0])
    assert speed[:, [0, -1]].max() < 0.1 * speed.max()


def test_a_channel_starts_smooth_moves_along_and_across_and_follows_its_seed():
    first, again, other = (euler_channel(seed, grid=(64, 48), frames=21) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.fields["density"], again.fields["density"])
    assert not np.allclose(first.fields["density"], other.fields["density"], atol=1e-2)
    start = first.fields["density"][0]
    assert np.abs(np.diff(start, axis=1)).max() < 0.3 * np.ptp(start)
    future = first.frames(1)
    errors = metrics.score(metrics.persistence(first.frames(0, 1), 20), future)
    growth = np.mean(list(errors.values()), axis=0)
    assert 0.05 < growth[0] < growth[3] < growth[9]


@pytest.mark.parametrize("boundary", ["periodic", "wall"])
def test_layers_keep_mass_energy_and_momentum_along_them_and_roll_up(boundary):
    found = euler_layers(3, boundary, grid=(56, 40), frames=31, dt=0.05)
    assert found.boundary_ids() == ((2, 2), (2, 2) if boundary == "periodic" else (0, 0))
    momentum = found.fields["momentum"]
    for kept in (found.fields["density"], found.fields["energy"], momentum[..., 0]):
        total = kept.mean(axis=(1, 2), dtype=np.float64)
        np.testing.assert_allclose(total, np.full_like(total, total[0]), atol=5e-7)
    across = np.square(momentum[..., 1], dtype=np.float64).mean(axis=(1, 2))
    assert across[-1] > 1.5 * across[0]
    pressure = found.fields["pressure"]
    assert np.ptp(pressure[0]) < 1e-6
    assert 0 < pressure[-1].std() < 0.1 * pressure.mean()


def test_a_layer_in_a_low_periodic_box_is_smooth_across_its_seam():
    for seed in range(20):
        density = euler_layers(seed, grid=(64, 16), frames=1).fields["density"][0]
        steps = np.abs(np.diff(density, axis=1, append=density[:, :1]))
        assert steps[:, -1].max() < 0.05 * steps.max()


def test_layers_have_two_kinds_of_sides():
    with pytest.raises(ValueError, match="boundary: expected 'periodic' or 'wall', found 'open'"):
        euler_layers(0, "open")


def test_the_wave_on_a_shear_layer_that_grows_fastest_grows_at_the_known_rate():
    """0.1897 U / d where the velocity is U tanh(y / d) and k d = 0.4446, without compression (Michalke 1964)."""
    n, speed, k = 48, 0.25, 2 * np.pi
    d = 0.4446 / k
    x, y = np.meshgrid((np.arange(n) + 0.5) / n, (np.arange(n) + 0.5) / n, indexing="ij")
    along = speed * (np.tanh((y - 0.25) / d) - np.tanh((y - 0.75) / d) - 1)
    velocity = np.stack([along, 1e-3 * np.sin(k * x) * np.cos(k * y)], axis=-1)
    found = solve_euler(np.ones((n, n)), velocity, np.full((n, n), 2.0), 3, 2.0, boundary_conditions=PERIODIC)
    wave = np.fft.fft(found.fields["momentum"][..., 1], axis=1)[:, 1]
    size = np.sqrt(np.square(np.abs(wave)).mean(axis=1))
    assert np.log(size[2] / size[1]) / 2.0 == pytest.approx(0.1897 * speed / d, rel=0.1)


def test_energy_is_that_of_the_pressure_and_the_motion():
    for gamma in (1.13, 1.76):
        found = euler_multi_quadrants(5, grid=(24, 32), frames=6, gamma=gamma)
        rho, velocity, pressure = primitive(found)
        energy = pressure / (gamma - 1) + 0.5 * rho * np.square(velocity).sum(axis=-1)
        np.testing.assert_allclose(found.fields["energy"], energy, rtol=1e-5)


@pytest.mark.parametrize("boundary_conditions", [PERIODIC, OPEN])
def test_a_uniform_stream_stays_as_it_is(boundary_conditions):
    velocity = np.broadcast_to([0.6, -0.3], (18, 22, 2))
    found = solve_euler(np.full((18, 22), 0.7), velocity, np.full((18, 22), 1.1), 5, 0.1, 1.3, boundary_conditions)
    rho, u, p = primitive(found)
    np.testing.assert_allclose(rho, 0.7, rtol=1e-6)
    np.testing.assert_allclose(u, np.broadcast_to(velocity, u.shape), rtol=1e-6)
    np.testing.assert_allclose(p, 1.1, rtol=1e-6)


@pytest.mark.parametrize("boundary_conditions", [PERIODIC, {"x": ("wall", "open"), "y": "periodic"}])
def test_mirrored_and_transposed_starts_give_mirrored_and_transposed_flows(boundary_conditions):
    start = euler_multi_quadrants(1, "periodic", grid=(24, 32), frames=4)
    rho, velocity, p = (values[-1] for values in primitive(start))
    x, y = boundary_conditions["x"], boundary_conditions["y"]
    plain = solve_euler(rho, velocity, p, 4, 0.05, boundary_conditions=boundary_conditions, cell=1 / 24)
    flipped = {"x": x if isinstance(x, str) else x[::-1], "y": y}
    mirrored = solve_euler(
        rho[::-1], velocity[::-1] * [-1, 1], p[::-1], 4, 0.05, boundary_conditions=flipped, cell=1 / 24
    )
    swapped = {"x": y, "y": x}
    turned = solve_euler(
        rho.T, velocity.swapaxes(0, 1)[..., ::-1], p.T, 4, 0.05, boundary_conditions=swapped, cell=1 / 24
    )
    for name in ("density", "energy", "pressure"):
        np.testing.assert_allclose(mirrored.fields[name], plain.fields[name][:, ::-1], atol=1e-6)
        np.testing.assert_allclose(turned.fields[name], plain.fields[name].swapaxes(1, 2), atol=1e-6)
    momentum = plain.fields["momentum"]
    np.testing.assert_allclose(mirrored.fields["momentum"], momentum[:, ::-1] * [-1, 1], atol=1e-6)
    np.testing.assert_allclose(turned.fields["momentum"], momentum.swapaxes(1, 2)[..., ::-1], atol=1e-6)
    assert np.abs(momentum[-1] - momentum[0]).max() > 0.1


def test_a_pulse_of_sound_leaves_through_open_sides_and_not_through_walls():
    x, y = np.meshgrid((np.arange(48) + 0.5) / 48, (np.arange(60) + 0.5) / 48, indexing="ij")
    pulse = 1e-2 * np.exp(-((x - 0.5) ** 2 + (y - 0.6) ** 2) / 0.1**2)
    left = {}
    for boundary_conditions in (OPEN, WALLS):
        found = solve_euler(1 + pulse / GAMMA, np.zeros((48, 60, 2)), 1 + pulse, 2, 1.2, GAMMA, boundary_conditions)
        rho, velocity, pressure = primitive(found)
        sound = np.square(pressure - 1) / (2 * GAMMA) + rho * np.square(velocity).sum(axis=-1) / 2
        left[boundary_conditions["x"]] = sound[-1].sum() / sound[0].sum()
    assert left["open"] < 0.01
    assert left["wall"] > 0.5


def test_a_seed_names_one_trajectory():
    first, again, other = (euler_multi_quadrants(seed, grid=(32, 40), frames=3) for seed in (3, 3, 4))
    for name, values in first.fields.items():
        np.testing.assert_array_equal(values, again.fields[name])
        assert not np.allclose(values, other.fields[name], atol=1e-2)
        assert values.dtype == np.float32
        assert values.shape == (3, 32, 40, 2)[: values.ndim]
    assert first.name == again.name == "euler_multi_quadrants_open_3" != other.name
    assert first.boundary_ids() == ((1, 1), (1, 1))
    for boundary, number in (("periodic", 2), ("wall", 0)):
        assert euler_multi_quadrants(3, boundary, grid=(16, 20), frames=1).boundary_ids() == ((number,) * 2,) * 2
    np.testing.assert_allclose(first.coordinates["y"], (np.arange(40) + 0.5) / 32)
    assert WalrusProcessor()(first)["field_values"].shape == (1, 3, 5 + 1, 32, 40, 1)  # momentum_z is padded


def test_the_first_frame_is_four_constant_quadrants():
    for seed in range(8):
        first = euler_multi_quadrants(seed, grid=(20, 30), frames=1).fields
        states = np.concatenate([first["density"][0, ..., None], first["momentum"][0]], axis=-1)
        assert len(np.unique(states.reshape(-1, 3), axis=0)) == 4


@pytest.mark.parametrize("boundary", ["open", "periodic", "wall"])
def test_neighbouring_frames_differ_visibly_and_ever_more_with_lead_time(boundary):
    growth = []
    for seed in range(3):
        trajectory = euler_multi_quadrants(seed, boundary, grid=(48, 64))
        assert (trajectory.num_frames, trajectory.dt) == (40, 0.015)
        future = trajectory.frames(17)
        errors = metrics.score(metrics.persistence(trajectory.frames(0, 17), future.num_frames), future)
        growth.append(np.mean(list(errors.values()), axis=0))
    growth = np.mean(growth, axis=0)
    assert 0.05 < growth[0] < 0.3
    assert growth[0] < growth[3] < growth[9] < growth[19]


def test_a_solution_that_loses_its_positive_pressure_is_refused():
    x = (np.arange(20) + 0.5)[:, None] / 20 * np.ones((20, 16))
    velocity = np.stack([np.where(x < 0.5, -60.0, 60.0), 0 * x], axis=-1)
    with pytest.raises(ValueError, match="diverged, density or pressure is not positive before frame 1"):
        solve_euler(np.ones_like(x), velocity, np.full_like(x, 1e-3), 2, 0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid": (64, 8)}, r"at least 16 each, found \(64, 8\)"),
        ({"frames": 0}, "frames: expected at least 1"),
        ({"dt": -0.1}, "dt: expected a positive"),
        ({"gamma": 1.0}, "gamma: expected a number above 1, found 1.0"),
        ({"boundary": "none"}, "boundary: expected 'open', 'periodic' or 'wall', found 'none'"),
    ],
)
def test_unusable_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        euler_multi_quadrants(0, **arguments)


def test_a_start_that_does_not_fit_is_refused():
    one, rest = np.ones((16, 20)), np.zeros((16, 20, 2))
    with pytest.raises(ValueError, match=r"velocity: expected shape \(16, 20, 2\), found \(20, 16, 2\)"):
        solve_euler(one, np.zeros((20, 16, 2)), one, 2, 0.1)
    with pytest.raises(ValueError, match="pressure: expected finite numbers"):
        solve_euler(one, rest, np.full((16, 20), np.nan), 2, 0.1)
    with pytest.raises(ValueError, match="density and pressure: expected positive numbers"):
        solve_euler(one, rest, 0 * one, 2, 0.1)
    with pytest.raises(ValueError, match="one side is periodic"):
        solve_euler(one, rest, one, 2, 0.1, boundary_conditions={"x": ("periodic", "open"), "y": "open"})
    with pytest.raises(ValueError, match="one entry for each axis"):
        solve_euler(one, rest, one, 2, 0.1, boundary_conditions={"x": "open"})
