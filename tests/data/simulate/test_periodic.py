"""The simulations against exact solutions, conservation laws and the equations evaluated by another route."""

import sys

import numpy as np
import pytest

pytest.importorskip("exponax")
import jax
from scipy.integrate import solve_ivp

from walrus_hf import metrics
from walrus_hf.data.simulate import gray_scott, shear_flow, solve_gray_scott, solve_shear_flow
from walrus_hf.data.simulate import periodic as simulate

from .oracles import derivative, rms, taylor_green

# Few different grids and numbers of frames: each is compiled once, which takes far longer than a solution.
LAYERS = {"grid": (48, 64), "frames": 20}  # enough cells for shear layers
STREAM, STREAM_FRAMES = (40, 24), 6
MIXTURE, MIXTURE_FRAMES = (32, 48), 12
PATTERN = {"grid": (24, 32), "frames": 8}


@pytest.fixture(scope="module")
def flow():
    return shear_flow(seed=5, **LAYERS, viscosity=1e-3)


def test_a_taylor_green_vortex_drifts_with_the_mean_flow_and_decays_at_the_exact_rate():
    viscosity, drift, dt = 0.01, np.array([0.7, -0.4]), 0.2
    x, y = np.meshgrid((np.arange(40) + 0.5) / 40, (np.arange(24) + 0.5) / 40, indexing="ij")
    a, b = 2 * np.pi, 2 * np.pi / 0.6
    start, _ = taylor_green(x, y, a, b, 0.06)
    found = solve_shear_flow(start + drift, np.zeros(STREAM), STREAM_FRAMES, dt, viscosity)
    for n in range(STREAM_FRAMES):
        t = n * dt
        amplitude = 0.06 * np.exp(-viscosity * (a**2 + b**2) * t)
        velocity, pressure = taylor_green(x - drift[0] * t, y - drift[1] * t, a, b, amplitude)
        np.testing.assert_allclose(found.fields["velocity"][n], velocity + drift, atol=2e-5)
        np.testing.assert_allclose(found.fields["pressure"][n], pressure, atol=2e-5)
    assert rms(velocity) < 0.7 * rms(start)


def test_a_tracer_wave_in_a_uniform_stream_is_carried_and_diffuses_exactly():
    x, y = np.meshgrid(np.arange(40) / 40, np.arange(24) / 40, indexing="ij")
    k, stream = np.array([2 * np.pi, 2 * 2 * np.pi / 0.6]), np.array([1.0, 0.5])
    velocity = np.broadcast_to(stream, (*STREAM, 2))
    found = solve_shear_flow(velocity, np.cos(k[0] * x + k[1] * y), STREAM_FRAMES, dt=0.1, viscosity=2e-3)
    phase = k[0] * (x - stream[0] * 0.5) + k[1] * (y - stream[1] * 0.5)
    expected = np.exp(-2e-3 * (k @ k) * 0.5) * np.cos(phase)
    np.testing.assert_allclose(found.fields["tracer"][-1], expected, atol=1e-4)


def test_the_flow_is_free_of_divergence(flow):
    u, v = flow.fields["velocity"][..., 0], flow.fields["velocity"][..., 1]
    divergence = derivative(u, -2, 1 / 48) + derivative(v, -1, 1 / 48)
    assert rms(divergence) < 1e-5 * rms(derivative(u, -1, 1 / 48))


def test_energy_decays_in_every_frame_and_the_tracer_is_conserved(flow):
    energy = np.square(flow.fields["velocity"], dtype=np.float64).sum(axis=-1).mean(axis=(1, 2))
    assert (np.diff(energy) < 0).all()
    tracer = flow.fields["tracer"].astype(np.float64)
    np.testing.assert_allclose(tracer.mean(axis=(1, 2)), tracer[0].mean(), rtol=2e-6)
    assert tracer.min() > -0.02
    assert tracer.max() < 1.02
    assert (np.diff(tracer.var(axis=(1, 2))) < 0).all()


def test_velocity_and_pressure_satisfy_the_momentum_equation():
    viscosity, dt, cell = 2e-3, 2e-3, 1 / 48
    whole = shear_flow(seed=1, **LAYERS, dt=0.05, viscosity=viscosity)
    start, tracer = whole.fields["velocity"][10], whole.fields["tracer"][10]
    close = solve_shear_flow(start, tracer, LAYERS["frames"], dt=dt, viscosity=viscosity)
    velocity, pressure = close.fields["velocity"][:3].astype(np.float64), close.fields["pressure"]
    for component in (0, 1):
        before, now, after = velocity[..., component]
        gradient = [derivative(now, axis, cell) for axis in (0, 1)]
        advection = velocity[1, ..., 0] * gradient[0] + velocity[1, ..., 1] * gradient[1]
        friction = viscosity * sum(derivative(g, axis, cell) for axis, g in enumerate(gradient))
        force = -derivative(pressure[1], component, cell)
        residual = (after - before) / (2 * dt) + advection - force - friction
        assert rms(residual) < 2e-3 * rms(advection)
        assert rms(friction) > 2e-2 * rms(advection)
        assert rms(force) > 0.1 * rms(advection)


def test_pressure_has_no_mean_and_satisfies_its_poisson_equation(flow):
    pressure, velocity, cell = flow.fields["pressure"], flow.fields["velocity"], 1 / 48
    laplacian = sum(derivative(derivative(pressure, axis, cell), axis, cell) for axis in (-2, -1))
    source = 0.0  # minus the divergence of the acceleration, in flux form
    for i, first in enumerate((-2, -1)):
        for j, second in enumerate((-2, -1)):
            flux = velocity[..., i].astype(np.float64) * velocity[..., j]
            source = source - derivative(derivative(flux, first, cell), second, cell)
    assert rms(laplacian - source) < 5e-3 * rms(source)
    np.testing.assert_allclose(pressure.mean(axis=(1, 2)), 0, atol=1e-6)


def test_a_well_mixed_gray_scott_follows_its_ordinary_differential_equation():
    feed, kill = 0.03, 0.02

    def rates(_, state):
        a, b = state
        return feed * (1 - a) - a * b * b, a * b * b - (feed + kill) * b

    times = np.arange(MIXTURE_FRAMES) * 10.0
    exact = solve_ivp(rates, (0, times[-1]), (0.6, 0.3), t_eval=times, rtol=1e-9, atol=1e-11).y
    grid = np.ones(MIXTURE)
    found = solve_gray_scott(0.6 * grid, 0.3 * grid, MIXTURE_FRAMES, 10.0, feed, kill)
    for name, values in zip("AB", exact):
        np.testing.assert_allclose(found.fields[name][:, 5, 7], values, atol=1e-3)
        np.testing.assert_allclose(np.ptp(found.fields[name], axis=(1, 2)), 0, atol=1e-5)


def test_without_reaction_each_substance_diffuses_at_its_own_rate():
    k, t = 2 * np.pi / 0.5, 20.0 * (MIXTURE_FRAMES - 1)
    wave = np.broadcast_to(np.cos(k * np.arange(32) / 64)[:, None], MIXTURE)
    only_a = solve_gray_scott(0.5 + 0.3 * wave, 0 * wave, MIXTURE_FRAMES, 20.0, feed=0.0, kill=0.0).fields["A"][-1]
    only_b = solve_gray_scott(0 * wave, 0.5 + 0.3 * wave, MIXTURE_FRAMES, 20.0, feed=0.0, kill=0.0).fields["B"][-1]
    np.testing.assert_allclose(only_a, 0.5 + 0.3 * wave * np.exp(-2e-5 * k**2 * t), atol=1e-5)
    np.testing.assert_allclose(only_b, 0.5 + 0.3 * wave * np.exp(-1e-5 * k**2 * t), atol=1e-5)


def test_without_feed_and_kill_the_reaction_keeps_the_sum_of_both_substances():
    rng = np.random.default_rng(0)
    a, b = simulate._spots(rng, MIXTURE, 1 / 64)
    found = solve_gray_scott(a, b, MIXTURE_FRAMES, 10.0, feed=0.0, kill=0.0).fields
    total = (found["A"].astype(np.float64) + found["B"]).mean(axis=(1, 2))
    np.testing.assert_allclose(total, (a + b).mean(), rtol=1e-5)
    assert found["B"][-1].mean() > 1.5 * b.mean()


@pytest.mark.parametrize(("solve", "size"), [(shear_flow, LAYERS), (gray_scott, PATTERN)])
def test_a_seed_names_one_trajectory(solve, size):
    first, again, other = (solve(seed, **size) for seed in (3, 3, 4))
    for name, values in first.fields.items():
        np.testing.assert_array_equal(values, again.fields[name])
        assert not np.allclose(values, other.fields[name], atol=1e-2)
        assert values.dtype == np.float32
        assert values.shape[:3] == (size["frames"], *size["grid"])
    assert first.name == again.name != other.name
    assert first.boundary_ids() == ((2, 2), (2, 2))


@pytest.mark.parametrize(("solve", "dt"), [(shear_flow, 0.05), (gray_scott, 10.0)])
def test_neighbouring_frames_differ_visibly_and_ever_more_with_lead_time(solve, dt):
    growth = []
    for seed in range(4):
        trajectory = solve(seed)
        assert trajectory.dt == dt
        future = trajectory.frames(17)
        errors = metrics.score(metrics.persistence(trajectory.frames(0, 17), future.num_frames), future)
        growth.append(np.mean(list(errors.values()), axis=0))
    growth = np.mean(growth, axis=0)
    assert 0.03 < growth[0] < 0.15
    assert growth[0] < growth[3] < growth[9] < growth[19]
    assert growth[9] > 0.3


def test_gray_scott_keeps_concentrations_between_zero_and_one_and_draws_every_regime():
    trajectories = [gray_scott(seed, **PATTERN, dt=20.0) for seed in range(20)]
    values = np.stack([trajectory.fields[name] for trajectory in trajectories for name in "AB"])
    assert values.min() > -0.002
    assert values.max() < 1.002
    assert {t.name.split("_")[2] for t in trajectories} == set(simulate.GRAY_SCOTT_REGIMES)


def test_users_who_switched_jax_to_64_bits_get_the_same_flow_in_float32():
    expected = shear_flow(seed=2, grid=STREAM, frames=STREAM_FRAMES)
    with jax.enable_x64(True):
        found = shear_flow(seed=2, grid=STREAM, frames=STREAM_FRAMES)
    assert found.fields["velocity"].dtype == np.float32
    np.testing.assert_allclose(found.fields["velocity"], expected.fields["velocity"], atol=1e-5)


def test_a_diverged_solution_is_refused_with_field_and_frame():
    with pytest.raises(ValueError, match="diverged, A is not finite in frame 1"):
        solve_gray_scott(np.full(MIXTURE, 1e9), np.full(MIXTURE, 1e9), MIXTURE_FRAMES, 10.0, 0.03, 0.06)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid": (64, 8)}, r"at least 16 each, found \(64, 8\)"),
        ({"grid": (64, 64, 64)}, "two numbers of cells"),
        ({"frames": 0}, "frames: expected at least 1"),
        ({"dt": 0.0}, "dt: expected a positive"),
        ({"viscosity": -1.0}, "viscosity: expected a positive"),
    ],
)
def test_unusable_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        shear_flow(0, **arguments)


def test_a_start_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"found \(16, 20, 2\) and \(20, 16\)"):
        solve_shear_flow(np.zeros((16, 20, 2)), np.zeros((20, 16)), 2, 0.1, 1e-3)
    with pytest.raises(ValueError, match="finite"):
        solve_shear_flow(np.full((16, 20, 2), np.nan), np.zeros((16, 20)), 2, 0.1, 1e-3)


def test_the_message_names_the_extra_where_exponax_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "exponax.etdrk", None)
    with pytest.raises(ImportError, match=r"walrus-hf\[sim\]"):
        shear_flow(0, grid=(17, 19))
