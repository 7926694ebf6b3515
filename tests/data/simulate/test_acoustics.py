"""Sound against travelling and standing waves, impedances at a jump, reflection laws and energy."""

import numpy as np
import pytest

from walrus_hf import WalrusProcessor, metrics
from walrus_hf.data.simulate import acoustics
from walrus_hf.data.simulate.acoustics import acoustic_scattering, solve_acoustics

WALLS, OPEN = ({"x": kind, "y": kind} for kind in ("wall", "open"))


def bell(x):
    """A pulse about 0.2 wide, zero to double precision half a length away."""
    return np.exp(-((x / 0.06) ** 2))


def centres(grid, cell):
    return np.meshgrid(*((np.arange(n) + 0.5) * cell for n in grid), indexing="ij")


def energy(trajectory):
    """Of each frame: (p^2 / (rho c^2) + rho u^2) / 2, summed over the cells."""
    rho, c = (trajectory.constant_fields[name].astype(np.float64) for name in ("density", "speed_of_sound"))
    pressure, velocity = (trajectory.fields[name].astype(np.float64) for name in ("pressure", "velocity"))
    return (pressure**2 / (rho * c**2) + rho * np.square(velocity).sum(axis=-1)).sum(axis=(1, 2)) / 2


def pulse_through(rho, c, n, time, axis=0, start=0.3, boundary_conditions=WALLS):
    """Frames 0 and 1 along the axis, (2, n) pressure and velocity, of a pulse that runs from `start` to higher places.

    `rho` and `c` are pairs: of the lower and of the upper half.
    """
    x, _ = centres((n, 16), 1 / n)
    medium = [np.where(x < 0.5, *pair) for pair in (rho, c)]
    pressure = bell(x - start)
    velocity = np.stack([pressure / (rho[0] * c[0]), np.zeros_like(x)], axis=-1)
    if axis == 1:
        pressure, velocity, *medium = pressure.T, velocity.swapaxes(0, 1)[..., ::-1], *(m.T for m in medium)
    sides = {"x": boundary_conditions["x"], "y": "wall"}
    found = solve_acoustics(
        pressure, velocity, *medium, 2, time, sides if axis == 0 else {"x": sides["y"], "y": sides["x"]}, 1 / n
    )
    p, u = found.fields["pressure"], found.fields["velocity"][..., axis]
    assert np.abs(found.fields["velocity"][..., 1 - axis]).max() == 0
    return (p[:, :, 3], u[:, :, 3]) if axis == 0 else (p[:, 3], u[:, 3])


@pytest.mark.parametrize("axis", [0, 1])
def test_a_pulse_travels_unchanged_at_the_speed_of_sound_with_second_order(axis):
    rho, c, time = 2.0, 1.5, 0.25
    errors = []
    for n in (64, 128):
        pressure, velocity = pulse_through((rho, rho), (c, c), n, time, axis)
        exact = bell((np.arange(n) + 0.5) / n - 0.3 - c * time)
        errors.append(max(np.abs(pressure[1] - exact).max(), rho * c * np.abs(velocity[1] - exact / (rho * c)).max()))
    assert errors[1] < 0.02
    assert np.log2(errors[0] / errors[1]) > 1.8


@pytest.mark.parametrize("axis", [0, 1])
def test_a_jump_of_the_medium_reflects_and_transmits_as_the_impedances_say(axis):
    rho, c, time, n = (1.0, 6.0), (1.6, 0.7), 0.25, 256
    z = rho[0] * c[0], rho[1] * c[1]
    reflected, transmitted = (z[1] - z[0]) / (z[1] + z[0]), 2 * z[1] / (z[1] + z[0])
    x = (np.arange(n) + 0.5) / n
    pressure, velocity = pulse_through(rho, c, n, time, axis)
    ahead = bell(x - 0.3 - c[0] * time)
    back = reflected * bell(1 - x - 0.3 - c[0] * time)
    through = transmitted * bell(0.5 + (x - 0.5) * c[0] / c[1] - 0.3 - c[0] * time)
    np.testing.assert_allclose(pressure[1], np.where(x < 0.5, ahead + back, through), atol=0.03)
    np.testing.assert_allclose(velocity[1], np.where(x < 0.5, (ahead - back) / z[0], through / z[1]), atol=0.02)
    assert np.abs(back).max() > 0.25
    assert through.max() > 0.9


def test_a_standing_wave_between_walls_keeps_its_exact_frequency_at_second_order():
    rho, c = 1.7, 1.2
    errors = []
    for n in (16, 32):
        x, y = centres((n, 3 * n // 2), 1 / n)
        k = 2 * np.pi, np.pi / 1.5
        omega = c * np.hypot(*k)
        shape = np.cos(k[0] * x) * np.cos(k[1] * y)
        slopes = np.stack(
            [k[0] * np.sin(k[0] * x) * np.cos(k[1] * y), k[1] * np.cos(k[0] * x) * np.sin(k[1] * y)], axis=-1
        )
        medium = np.full(x.shape, rho), np.full(x.shape, c)
        found = solve_acoustics(shape, 0 * slopes, *medium, 9, 0.1, WALLS)
        t = 0.1 * np.arange(9)[:, None, None]
        pressure_error = np.abs(found.fields["pressure"] - shape * np.cos(omega * t)).max()
        velocity = slopes * np.sin(omega * t[..., None]) / (rho * omega)
        errors.append([pressure_error, rho * c * np.abs(found.fields["velocity"] - velocity).max()])
    errors = np.array(errors)
    assert (errors[1] < 0.02).all()
    assert (np.log2(errors[0] / errors[1]) > 1.8).all()


def test_pressure_doubles_at_a_wall_where_no_flow_crosses():
    n, c = 128, 1.0
    pressure, velocity = pulse_through((1.0, 1.0), (c, c), n, 0.7 / c)  # the pulse's middle arrives at x = 1
    assert pressure[1][-1] == pytest.approx(2, abs=0.02)
    assert abs(velocity[1][-1]) < 0.01
    pressure, velocity = pulse_through((1.0, 1.0), (c, c), n, 1.0 / c)  # and is back at 0.7, upright
    exact = bell((np.arange(n) + 0.5) / n - 0.7)
    np.testing.assert_allclose(pressure[1], exact, atol=0.05)
    np.testing.assert_allclose(velocity[1], -exact, atol=0.05)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_pulse_that_meets_an_open_side_head_on_leaves_with_an_echo_of_second_order(axis):
    echoes = []
    for n in (64, 128):
        pressure, velocity = pulse_through((3.0, 3.0), (1.3, 1.3), n, 1.1, axis, boundary_conditions=OPEN)
        echoes.append(max(np.abs(pressure[1]).max(), 3.0 * 1.3 * np.abs(velocity[1]).max()))
    assert echoes[1] < 1.5e-3
    assert np.log2(echoes[0] / echoes[1]) > 1.7


def test_an_open_side_reflects_a_slanted_beam_by_the_law_of_its_angle():
    """A packet along y of standing waves across x; each of its wavelengths arrives at an angle of its own."""
    n, across, along, width = 32, 3 * np.pi, 4 * np.pi, 0.35
    x, y = centres((n, 3 * n), 1 / n)
    k = np.linspace(0.5 * along, 1.5 * along, 200)
    omega, amplitude = np.hypot(across, k), np.exp(-(((k - along) * width / 2) ** 2))
    phase = k * (y[0, :, None] - 1.5)
    pressure = np.cos(across * x) * (np.cos(phase) @ amplitude)
    velocity = np.stack(
        [
            -across * np.sin(across * x) * (np.sin(phase) @ (amplitude / omega)),
            np.cos(across * x) * (np.cos(phase) @ (amplitude * k / omega)),
        ],
        axis=-1,
    )
    medium = np.ones_like(x)
    before, after = energy(solve_acoustics(pressure, velocity, medium, medium, 2, 4.2))
    law = np.average(((1 - k / omega) / (1 + k / omega)) ** 2, weights=amplitude**2)
    assert after / before == pytest.approx(law, rel=0.05)


def test_walls_keep_the_energy_and_open_sides_only_lose_it():
    rng = np.random.default_rng(0)
    x, y = centres((64, 80), 1 / 64)
    smooth = bell(np.hypot(x - 0.4, y - 0.5) / 2) + bell(np.hypot(x - 0.7, y - 0.9) / 3)
    rho, c = np.where(x + 0.3 * y < 0.6, *rng.uniform(1, 3, 2)), np.where(y < 0.7, *rng.uniform(1, 2, 2))
    start = smooth, np.zeros((64, 80, 2)), rho, c
    closed = energy(solve_acoustics(*start, 40, 0.05, WALLS))
    np.testing.assert_allclose(closed, closed[0], rtol=0.02)
    assert closed[-8:].mean() == pytest.approx(closed[2:10].mean(), rel=3e-3)
    leaving = energy(solve_acoustics(*start, 40, 0.05))
    assert (np.diff(leaving) < 1e-3 * leaving[0]).all()
    assert leaving[-1] < 0.5 * leaving[0]
    assert energy(solve_acoustics(*start, 40, 0.05, OPEN))[-1] < 0.05 * leaving[0]


def test_transposed_starts_give_transposed_sound():
    start = acoustic_scattering(2, grid=(20, 28), frames=5)
    p, u = start.fields["pressure"][-1], start.fields["velocity"][-1]
    rho, c = start.constant_fields.values()
    plain = solve_acoustics(p, u, rho, c, 4, 0.03, {"x": "wall", "y": ("wall", "open")}, 0.1)
    turned = solve_acoustics(
        p.T, u.swapaxes(0, 1)[..., ::-1], rho.T, c.T, 4, 0.03, {"x": ("wall", "open"), "y": "wall"}, 0.1
    )
    np.testing.assert_allclose(turned.fields["pressure"], plain.fields["pressure"].swapaxes(1, 2), atol=1e-6)
    swapped = plain.fields["velocity"].swapaxes(1, 2)[..., ::-1]
    np.testing.assert_allclose(turned.fields["velocity"], swapped, atol=1e-6)


def test_a_seed_names_one_trajectory():
    first, again, other = (acoustic_scattering(seed, grid=(32, 40), frames=3) for seed in (3, 3, 4))
    for name, values in {**first.fields, **first.constant_fields}.items():
        np.testing.assert_array_equal(values, {**again.fields, **again.constant_fields}[name])
        assert not np.allclose(values, {**other.fields, **other.constant_fields}[name], atol=1e-2)
        assert values.dtype == np.float32
    assert first.fields["velocity"].shape == (3, 32, 40, 2)
    assert first.constant_fields["density"].shape == (32, 40)
    assert first.name == again.name == "acoustic_scattering_3" != other.name
    assert first.boundary_ids() == ((0, 0), (1, 1))
    half_open = acoustic_scattering(
        3, grid=(32, 40), frames=3, boundary_conditions={"x": ("wall", "open"), "y": "wall"}
    )
    assert half_open.boundary_ids() == ((0, 1), (0, 0))
    np.testing.assert_allclose(first.coordinates["x"], -1 + (np.arange(32) + 0.5) / 16)
    np.testing.assert_allclose(first.coordinates["y"], -1.25 + (np.arange(40) + 0.5) / 16)
    assert WalrusProcessor()(first)["constant_values"].shape == (1, 2, 32, 40, 1)


def test_the_medium_has_one_jump_and_a_bulk_modulus_of_four():
    directions, sharp = set(), 0
    for seed in range(30):
        start = acoustic_scattering(seed, grid=(32, 40), frames=1)
        rho, c = start.constant_fields.values()
        np.testing.assert_allclose(rho * c**2, 4, rtol=1e-5)
        assert rho.min() > 0.5
        assert rho.max() < 10
        assert start.fields["pressure"].min() >= 0
        assert start.fields["pressure"].max() > 0.2
        assert not start.fields["velocity"].any()
        steps = [np.abs(np.diff(np.log(rho), axis=axis)).mean(axis=1 - axis) for axis in (0, 1)]
        direction = int(np.argmax([step.max() for step in steps]))
        directions.add(direction)
        sharp += steps[direction].max() > 5 * np.sort(steps[direction])[-2]
    assert directions == {0, 1}
    assert sharp > 20  # elsewhere both media are nearly as dense, or noisy


def test_twice_the_refinement_confirms_the_frames(monkeypatch):
    found = [acoustic_scattering(seed, grid=(48, 56), frames=31) for seed in range(3)]
    monkeypatch.setattr(acoustics, "REFINEMENT", 2 * acoustics.REFINEMENT)
    finer = [acoustic_scattering(seed, grid=(48, 56), frames=31) for seed in range(3)]
    for coarse, fine in zip(found, finer):
        for name, values in coarse.fields.items():
            error, change = values - fine.fields[name], values - values[:1]
            assert np.sqrt(np.square(error[-1]).mean()) < 0.05 * np.sqrt(np.square(change[-1]).mean())


def test_sound_stays_in_a_closed_box():
    closed, opened = (
        acoustic_scattering(1, grid=(32, 24), frames=2, dt=3.0, boundary_conditions={"x": "wall", "y": y})
        for y in ("wall", "open")
    )
    # Walls keep the integral of pressure, whatever the medium: the flow across them is zero.
    before, after = closed.fields["pressure"].astype(float).mean((1, 2))
    np.testing.assert_allclose(after, before, rtol=1e-5)
    assert abs(opened.fields["pressure"][1].mean()) < 0.5 * before


def test_neighbouring_frames_differ_visibly_and_ever_more_with_lead_time():
    growth = []
    for seed in range(4):
        trajectory = acoustic_scattering(seed, grid=(48, 64))
        assert (trajectory.num_frames, trajectory.dt) == (40, 0.01)
        future = trajectory.frames(17)
        errors = metrics.score(metrics.persistence(trajectory.frames(0, 17), future.num_frames), future)
        growth.append(np.mean(list(errors.values()), axis=0))
    growth = np.mean(growth, axis=0)
    assert 0.05 < growth[0] < 0.3
    assert growth[0] < growth[3] < growth[9] < growth[19]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid": (64, 8)}, r"at least 16 each, found \(64, 8\)"),
        ({"frames": 0}, "frames: expected at least 1"),
        ({"dt": 0.0}, "dt: expected a positive"),
        (
            {"boundary_conditions": {"x": "periodic", "y": "wall"}},
            "boundary_conditions: expected 'wall' or 'open' sides",
        ),
    ],
)
def test_unusable_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        acoustic_scattering(0, **arguments)


def test_a_start_that_does_not_fit_is_refused():
    one, rest = np.ones((16, 20)), np.zeros((16, 20, 2))
    with pytest.raises(ValueError, match=r"velocity: expected shape \(16, 20, 2\), found \(16, 20\)"):
        solve_acoustics(one, one, one, one, 2, 0.1)
    with pytest.raises(ValueError, match="pressure: expected finite numbers"):
        solve_acoustics(np.inf * one, rest, one, one, 2, 0.1)
    with pytest.raises(ValueError, match="density and speed_of_sound: expected positive numbers"):
        solve_acoustics(one, rest, one, -one, 2, 0.1)
    with pytest.raises(ValueError, match="expected 'wall' or 'open' sides"):
        solve_acoustics(one, rest, one, one, 2, 0.1, {"x": "periodic", "y": "wall"})
    with pytest.raises(ValueError, match="cell: expected a positive number"):
        solve_acoustics(one, rest, one, one, 2, 0.1, cell=0.0)
