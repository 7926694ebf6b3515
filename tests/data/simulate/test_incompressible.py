"""The incompressible flows against exact solutions, the equations by another route, and exponax's own steppers."""

import numpy as np
import pytest

pytest.importorskip("exponax")
import exponax
import jax

from walrus_hf.data.simulate import kolmogorov_flow, solve_incompressible, turbulence_2d, turbulence_3d
from walrus_hf.data.simulate.common import smooth_noise

from .oracles import derivative, rms, taylor_green


def curl(velocity, cell):
    """(..., H, W, D, 3) of the same, by derivatives in float64."""
    d = [[derivative(velocity[..., i], axis, cell) for axis in (-3, -2, -1)] for i in range(3)]
    return np.stack([d[2][1] - d[1][2], d[0][2] - d[2][0], d[1][0] - d[0][1]], axis=-1)


def momentum_residual(velocity, pressure, viscosity, drag, cell, dt):
    """What is left of the momentum equation at the middle one of three close frames: the force on a unit of mass."""
    before, now, after = velocity.astype(np.float64)
    d = now.shape[-1]
    left = np.empty_like(now)
    for i in range(d):
        gradient = [derivative(now[..., i], axis, cell) for axis in range(d)]
        advection = sum(now[..., axis] * gradient[axis] for axis in range(d))
        friction = viscosity * sum(derivative(gradient[axis], axis, cell) for axis in range(d)) - drag * now[..., i]
        acceleration = (after[..., i] - before[..., i]) / (2 * dt)
        left[..., i] = acceleration + advection + derivative(pressure[1], i, cell) - friction
    return left


# One grid and number of frames for each dimension where nothing else is called for: each is compiled only once.
PLANE, VOLUME = (32, 48), (20, 30, 40)
VISCOSITY, DRAG, DT = 5e-3, 0.2, 2e-3


@pytest.fixture(scope="module")
def turbulence():
    """Three frames so close that their differences are derivatives in time."""
    return turbulence_3d(seed=2, grid=VOLUME, frames=3, dt=DT, viscosity=2 * VISCOSITY)


@pytest.fixture(scope="module")
def eddies():
    """The same in the plane, with a force."""
    return kolmogorov_flow(seed=3, grid=PLANE, frames=3, dt=DT, viscosity=VISCOSITY, drag=DRAG)


@pytest.fixture(scope="module")
def decaying():
    """And without one."""
    return turbulence_2d(seed=2, grid=PLANE, frames=3, dt=DT, viscosity=VISCOSITY)


def test_a_taylor_green_vortex_drifts_and_decays_by_friction_and_drag():
    viscosity, drag, drift = 0.01, 0.3, np.array([0.7, -0.4])
    x, y = np.meshgrid(np.arange(32) / 32, np.arange(48) / 32, indexing="ij")
    a, b = 2 * np.pi, 2 * np.pi / 1.5
    start, _ = taylor_green(x, y, a, b, 0.1)
    found = solve_incompressible(start + drift, 3, 0.4, viscosity, drag)
    for n in range(3):
        t = 0.4 * n
        moved = drift * (1 - np.exp(-drag * t)) / drag  # the mean flow slows down too
        amplitude = 0.1 * np.exp(-(viscosity * (a**2 + b**2) + drag) * t)
        velocity, pressure = taylor_green(x - moved[0], y - moved[1], a, b, amplitude)
        expected = velocity + drift * np.exp(-drag * t)
        np.testing.assert_allclose(found.fields["velocity"][n], expected, atol=2e-5)
        np.testing.assert_allclose(found.fields["pressure"][n], pressure, atol=2e-5)
    assert found.fields["velocity"].shape == (3, *PLANE, 2)
    assert rms(velocity) < 0.6 * rms(start)


def test_an_abc_flow_in_a_box_of_unequal_sides_drifts_and_decays_as_one():
    viscosity, drift, k = 5e-3, np.array([0.5, -0.3, 0.8]), 4 * np.pi
    x, y, z = np.meshgrid(*(np.arange(n) / 20 for n in VOLUME), indexing="ij")

    def abc(x, y, z, a=0.3, b=0.2, c=0.1):  # its vorticity is k times itself
        sin, cos = np.sin, np.cos
        u = a * sin(k * z) + c * cos(k * y), b * sin(k * x) + a * cos(k * z), c * sin(k * y) + b * cos(k * x)
        return np.stack(u, axis=-1)

    found = solve_incompressible(abc(x, y, z) + drift, 3, 0.2, viscosity)
    for n in range(3):
        t = 0.2 * n
        swirl = np.exp(-viscosity * k**2 * t) * abc(x - drift[0] * t, y - drift[1] * t, z - drift[2] * t)
        pressure = -0.5 * np.square(swirl).sum(axis=-1)
        np.testing.assert_allclose(found.fields["velocity"][n], swirl + drift, atol=5e-5)
        np.testing.assert_allclose(found.fields["pressure"][n], pressure - pressure.mean(), atol=5e-5)
    assert rms(swirl) < 0.9 * rms(abc(x, y, z))


def test_from_rest_a_kolmogorov_force_builds_up_the_laminar_flow():
    viscosity, drag, strength, k = 0.05, 0.1, 0.2, 2 * np.pi * 2 / 1.5
    y = np.broadcast_to(np.arange(48) / 32, PLANE)
    force = np.stack([strength * np.sin(k * y), np.zeros(PLANE)], axis=-1)
    found = solve_incompressible(np.zeros((*PLANE, 2)), 3, 0.1, viscosity, drag, force, spin_up=0.05)
    rate = viscosity * k**2 + drag
    for n in range(3):
        speed = strength / rate * (1 - np.exp(-rate * (0.05 + 0.1 * n)))
        np.testing.assert_allclose(found.fields["velocity"][n, ..., 0], speed * np.sin(k * y), atol=1e-6)
        np.testing.assert_allclose(found.fields["velocity"][n, ..., 1], 0, atol=1e-6)
    np.testing.assert_allclose(found.fields["pressure"], 0, atol=1e-6)


def test_a_force_that_is_a_gradient_moves_nothing_and_is_held_by_the_pressure():
    x, y = np.meshgrid(np.arange(32) / 32, np.arange(48) / 32, indexing="ij")
    kx, ky = 2 * np.pi, 2 * np.pi / 1.5
    potential = np.cos(kx * x) * np.sin(ky * y)
    gradient = [-kx * np.sin(kx * x) * np.sin(ky * y), ky * np.cos(kx * x) * np.cos(ky * y)]
    found = solve_incompressible(np.zeros((*PLANE, 2)), 3, 1.0, 0.01, force=np.stack(gradient, axis=-1))
    np.testing.assert_allclose(found.fields["velocity"], 0, atol=1e-5)
    np.testing.assert_allclose(found.fields["pressure"][1], potential, atol=1e-5)


def test_a_forced_eddying_flow_agrees_with_exponax():
    n, viscosity, drag, strength, time = 32, 5e-3, 0.2, 1.0, 0.5
    rng = np.random.default_rng(0)
    start = 0.4 * np.stack([smooth_noise(rng, (n, n), 1 / n, 0.3) for _ in range(2)], axis=-1)
    y = np.broadcast_to(np.arange(n) / n, (n, n))
    force = np.stack([strength * np.sin(2 * np.pi * 2 * y), np.zeros((n, n))], axis=-1)
    velocity = solve_incompressible(start, 2, time, viscosity, drag, force).fields["velocity"]
    vorticity = derivative(velocity[..., 1], -2, 1 / n) - derivative(velocity[..., 0], -1, 1 / n)

    @jax.jit  # as one: its operations one by one take longer to compile
    def rollout(state):
        # exponax's state is minus the vorticity, and its force is meant for a box 2 pi long.
        stepper = exponax.stepper.KolmogorovFlowVorticity(
            2, 1.0, n, 0.01, diffusivity=viscosity, drag=-drag, injection_mode=2,
            injection_scale=-2 * np.pi * strength, order=4, dealiasing_fraction=0.9,
        )  # fmt: skip
        return exponax.repeat(stepper, 50)(state)

    expected = np.asarray(rollout(np.float32(-vorticity[:1])))
    assert rms(-vorticity[1] - expected[0]) < 5e-3 * rms(expected)
    assert rms(vorticity[1] - vorticity[0]) > 0.5 * rms(expected)


def test_kolmogorov_flow_obeys_the_momentum_equation_with_a_force_along_x_that_is_a_sine_of_y(eddies):
    velocity, pressure = eddies.fields["velocity"], eddies.fields["pressure"]
    force = momentum_residual(velocity, pressure, VISCOSITY, DRAG, 1 / 32, DT)
    profile = force[..., 0].mean(axis=0)
    assert rms(force[..., 0] - profile) < 0.02 * rms(profile)
    assert rms(force[..., 1]) < 0.02 * rms(profile)
    power = np.abs(np.fft.rfft(profile)) ** 2
    assert power.max() > 0.999 * power.sum()
    assert 2 <= np.argmax(power) / 1.5 <= 4
    # the flow is not the laminar one, whose velocity is along x and the same all along it
    assert rms(velocity[..., 1]) > 0.3 * rms(velocity[..., 0])


def test_turbulence_obeys_the_momentum_equation_without_a_force(turbulence):
    velocity, pressure = turbulence.fields["velocity"], turbulence.fields["pressure"]
    force = momentum_residual(velocity, pressure, 2 * VISCOSITY, 0.0, 1 / 20, DT)
    for component in range(3):
        assert rms(force[..., component]) < 0.02 * rms(derivative(pressure[1], component, 1 / 20))


def test_turbulence_loses_energy_at_twice_the_viscosity_times_the_enstrophy(turbulence):
    velocity = turbulence.fields["velocity"].astype(np.float64)
    energy = 0.5 * np.square(velocity).sum(axis=-1).mean(axis=(1, 2, 3))
    enstrophy = 0.5 * np.square(curl(velocity[1], 1 / 20)).sum(axis=-1).mean()
    assert (energy[0] - energy[2]) / (2 * DT) == pytest.approx(2 * 2 * VISCOSITY * enstrophy, rel=0.01)


def test_turbulence_in_a_plane_loses_energy_and_enstrophy_to_friction_alone(decaying):
    """No stretching of vortices: both fall at twice the viscosity times the next one of the series."""
    fields = decaying.fields
    force = momentum_residual(fields["velocity"], fields["pressure"], VISCOSITY, 0.0, 1 / 32, DT)
    assert rms(force) < 0.02 * rms(derivative(fields["pressure"][1], 0, 1 / 32))

    def series(velocity):  # energy, enstrophy, palinstrophy
        curl = derivative(velocity[..., 1], -2, 1 / 32) - derivative(velocity[..., 0], -1, 1 / 32)
        slopes = [derivative(curl, axis, 1 / 32) for axis in (-2, -1)]
        halves = np.square(velocity, dtype=np.float64).sum(-1), np.square(curl), np.square(slopes[0]) + slopes[1] ** 2
        return [0.5 * half.mean(axis=(1, 2)) for half in halves]

    energy, enstrophy, palinstrophy = series(fields["velocity"])
    assert (energy[0] - energy[2]) / (2 * DT) == pytest.approx(2 * VISCOSITY * enstrophy[1], rel=0.01)
    assert (enstrophy[0] - enstrophy[2]) / (2 * DT) == pytest.approx(2 * VISCOSITY * palinstrophy[1], rel=0.01)


def test_all_flows_are_free_of_divergence_and_keep_their_momentum(turbulence, eddies, decaying):
    for flow, cell in ((turbulence, 1 / 20), (eddies, 1 / 32), (decaying, 1 / 32)):
        velocity = flow.fields["velocity"]
        d = velocity.shape[-1]
        terms = [derivative(velocity[..., i], i - d, cell) for i in range(d)]
        assert rms(sum(terms)) < 1e-5 * rms(terms[0])
        np.testing.assert_allclose(velocity.reshape(3, -1, d).mean(axis=1, dtype=np.float64), 0, atol=1e-6)
        np.testing.assert_allclose(flow.fields["pressure"].reshape(3, -1).mean(axis=1), 0, atol=1e-6)


def test_twice_the_cells_give_the_same_kolmogorov_flow():
    coarse = kolmogorov_flow(seed=3, grid=PLANE, frames=3, viscosity=VISCOSITY)
    fine = kolmogorov_flow(seed=3, grid=(64, 96), frames=3, viscosity=VISCOSITY)
    for name, values in coarse.fields.items():
        difference = values - fine.fields[name][:, ::2, ::2]
        assert rms(difference) < 0.02 * rms(values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"velocity": np.zeros((16, 20, 3))}, r"or \(H, W, D, 3\), found \(16, 20, 3\)"),
        ({"force": np.zeros((20, 16, 2))}, r"and \(20, 16, 2\)"),
        ({"velocity": np.full((16, 20, 2), np.nan)}, "velocity: expected finite"),
        ({"velocity": np.zeros((16, 8, 2))}, r"at least 16 each, found \(16, 8\)"),
        ({"drag": -0.1}, "drag and spin_up: expected numbers that are not negative, found -0.1"),
        ({"spin_up": np.inf}, "spin_up: expected finite"),
        ({"viscosity": 0.0}, "viscosity: expected a positive"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(arguments, message):
    given = {"velocity": np.zeros((16, 20, 2)), "frames": 2, "dt": 0.1, "viscosity": 1e-3}
    with pytest.raises(ValueError, match=message):
        solve_incompressible(**{**given, **arguments})


def test_a_diverged_flow_is_refused_at_once():
    wild = 1e25 * np.random.default_rng(0).normal(size=(*PLANE, 2))
    with pytest.raises(ValueError, match="wild: the solution diverged, velocity is not finite in frame 1"):
        solve_incompressible(wild, 3, 1.0, 1e-3, name="wild")
