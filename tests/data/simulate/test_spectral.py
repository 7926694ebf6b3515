"""Burgers, waves and tracers against exact solutions and exponax's own steppers; what holds for all new scenarios."""

import functools
import sys

import numpy as np
import pytest

pytest.importorskip("exponax")
import exponax
import jax
from scipy.linalg import expm

from walrus_hf import metrics
from walrus_hf.data.simulate import (
    advection_diffusion_3d,
    burgers,
    kolmogorov_flow,
    solve_advection_diffusion,
    solve_burgers,
    solve_wave,
    turbulence_3d,
    wave,
)
from walrus_hf.data.simulate.common import smooth_noise
from walrus_hf.processing_walrus import WalrusProcessor

from .oracles import derivative, rms

# Few different grids and numbers of frames: each is compiled once. Burgers is solved on twice the cells.
LINE, PLANE, FINE, VOLUME, SMALL_VOLUME = (48,), (32, 40), (64, 80), (24, 30, 36), (16, 20, 18)
SCENARIOS = [(burgers, PLANE), (wave, PLANE), (kolmogorov_flow, PLANE), (turbulence_3d, SMALL_VOLUME),
             (advection_diffusion_3d, VOLUME), (burgers, LINE), (wave, LINE)]  # fmt: skip
GRIDS = {1: (64,), 2: (64, 64), 3: (32, 32, 32)}  # the defaults of planes and volumes
each_scenario = pytest.mark.parametrize(
    ("simulate", "grid"), SCENARIOS, ids=lambda value: getattr(value, "__name__", "")
)


@functools.cache
def sixteen_frames(simulate, seed, **grid):
    """On the default grid unless another one is given. Several tests look at one trajectory; none may change it."""
    return simulate(seed, frames=16, **grid)


def plane(grid):
    """Positions with x 1 long and square cells."""
    return np.meshgrid(np.arange(grid[0]) / grid[0], np.arange(grid[1]) / grid[0], indexing="ij")


# Burgers


def cole_hopf(x, y, t, viscosity):
    """Exact: minus twice the viscosity times the gradient of the logarithm of a solution of the heat equation."""
    heat, slopes = 1.0, np.zeros((*x.shape, 2))
    for amplitude, phase, k in ((0.5, 0.3, (1, 0)), (0.2, 1.0, (0, 2)), (0.2, 2.0, (2, -1))):
        wavevector = 2 * np.pi * np.array([k[0], k[1] / 1.25])
        angle = wavevector[0] * x + wavevector[1] * y + phase
        amplitude *= np.exp(-viscosity * (wavevector @ wavevector) * t)
        heat = heat + amplitude * np.cos(angle)
        slopes -= amplitude * np.sin(angle)[..., None] * wavevector
    return -2 * viscosity * slopes / heat[..., None]


def test_burgers_follows_cole_and_hopf_on_a_drift():
    viscosity, drift = 0.05, np.array([0.5, -0.8])
    x, y = plane(FINE)
    found = solve_burgers(cole_hopf(x, y, 0.0, viscosity) + drift, 3, 0.1, viscosity).fields["velocity"]
    for n in range(3):
        t = 0.1 * n
        expected = cole_hopf(x - drift[0] * t, y - drift[1] * t, t, viscosity) + drift
        np.testing.assert_allclose(found[n], expected, atol=2e-4)
    assert rms(found[-1] - drift) < 0.5 * rms(found[0] - drift)


def test_burgers_on_a_line_follows_cole_and_hopf():
    x, viscosity = np.arange(96) / 96, 0.02

    def exact(t):
        amplitude = 0.9 * np.exp(-viscosity * 4 * np.pi**2 * t)
        slope = 2 * np.pi * amplitude * np.sin(2 * np.pi * x)
        return 2 * viscosity * slope / (1 + amplitude * np.cos(2 * np.pi * x))

    found = solve_burgers(exact(0.0)[:, None], 3, 0.2, viscosity)
    assert found.grid == (96,)
    assert found.axes == ("x",)
    for n in range(3):
        np.testing.assert_allclose(found.fields["velocity"][n, :, 0], exact(0.2 * n), atol=2e-4)
    assert rms(exact(0.4)) < 0.9 * rms(exact(0.0))


def test_a_shock_of_burgers_has_the_exact_profile_and_runs_at_the_mean_of_both_sides():
    viscosity, left, right = 0.01, 1.0, 0.2
    mean, jump = (left + right) / 2, left - right
    x = plane(FINE)[0]

    def profile(t):
        position = (x - 0.4 - mean * t + 0.5) % 1 - 0.5
        return position, mean - jump / 2 * np.tanh(jump * position / (4 * viscosity))

    position, start = profile(0.0)
    way_back = ((position - 0.3) % 1) / 0.4  # a gentle slope from right to left makes it periodic
    start = np.where(way_back < 1, mean - jump / 2 * np.cos(np.pi * way_back), start)
    found = solve_burgers(np.stack([start, 0 * start], axis=-1), 3, 0.05, viscosity).fields["velocity"]
    for n in (1, 2):
        position, expected = profile(0.05 * n)
        near = np.abs(position) < 0.12
        np.testing.assert_allclose(found[n, ..., 0][near], expected[near], atol=2e-3)
    assert np.abs(found[2] - found[0]).max() > 0.3


def test_a_turning_flow_obeys_the_equation_of_burgers():
    viscosity, dt, cell = 1e-2, 1e-3, 1 / FINE[0]
    rng = np.random.default_rng(3)
    start = 0.4 * np.stack([smooth_noise(rng, FINE, cell, 0.3) for _ in range(2)], axis=-1)
    late = solve_burgers(start, 3, 0.1, viscosity).fields["velocity"][-1]
    before, now, after = solve_burgers(late, 3, dt, viscosity).fields["velocity"].astype(np.float64)
    for i in (0, 1):
        along = [derivative(now[..., i], axis, cell) for axis in (0, 1)]
        carried = now[..., 0] * along[0] + now[..., 1] * along[1]
        friction = viscosity * (derivative(along[0], 0, cell) + derivative(along[1], 1, cell))
        assert rms((after[..., i] - before[..., i]) / (2 * dt) + carried - friction) < 2e-3 * rms(carried)
        assert rms(friction) > 0.2 * rms(carried)
    assert rms(late - start) > 0.5 * rms(late)


def test_no_component_of_burgers_leaves_the_range_of_its_start_and_slopes_steepen_first():
    for seed in range(2):
        velocity = sixteen_frames(burgers, seed).fields["velocity"]
        low, high = velocity[0].min(axis=(0, 1)), velocity[0].max(axis=(0, 1))
        assert (velocity > low - 0.01).all()
        assert (velocity < high + 0.01).all()
        steepest = np.abs(np.diff(velocity[..., 0], axis=1)).max(axis=(1, 2))
        assert steepest.max() > 1.3 * steepest[0]


# Waves


def test_a_plane_wave_of_sound_runs_along_its_oblique_direction():
    speed = 1.3
    x, y = plane((24, 36))
    k = 2 * np.pi * np.array([2, 1 / 1.5])
    direction = k / np.linalg.norm(k)

    def at(t):
        pressure = np.sin(k[0] * x + k[1] * y - speed * np.linalg.norm(k) * t)
        return pressure, pressure[..., None] * direction / speed

    found = solve_wave(*at(0.0), 5, 0.13, speed)
    for n in range(5):
        pressure, velocity = at(0.13 * n)
        np.testing.assert_allclose(found.fields["pressure"][n], pressure, atol=2e-5)
        np.testing.assert_allclose(found.fields["velocity"][n], velocity, atol=2e-5)


def test_a_pulse_at_rest_splits_into_the_two_halves_of_d_alembert():
    speed = 0.8
    grid = (20, 80)
    y = plane(grid)[1]

    def pulse(position):
        return np.exp(-((((position - 1.0 + 2) % 4 - 2) / 0.25) ** 2))

    found = solve_wave(pulse(y), np.zeros((*grid, 2)), 6, 0.2, speed, spin_up=0.1)
    for n in range(6):
        t = 0.1 + 0.2 * n
        right, left = 0.5 * pulse(y - speed * t), 0.5 * pulse(y + speed * t)
        np.testing.assert_allclose(found.fields["pressure"][n], right + left, atol=2e-5)
        np.testing.assert_allclose(found.fields["velocity"][n, ..., 1], (right - left) / speed, atol=2e-5)
        np.testing.assert_allclose(found.fields["velocity"][n, ..., 0], 0, atol=1e-6)


def test_two_shapes_on_a_line_run_through_each_other():
    speed, x = 0.9, (np.arange(64) + 0.5) / 64

    def right(t):
        return np.sin(2 * np.pi * (x - speed * t)) + 0.5 * np.cos(6 * np.pi * (x - speed * t))

    def left(t):
        return 0.7 * np.sin(4 * np.pi * (x + speed * t) + 1)

    velocity = (right(0) - left(0))[:, None] / speed
    found = solve_wave(right(0) + left(0), velocity, 5, 0.13, speed)
    for n in range(5):
        t = 0.13 * n
        np.testing.assert_allclose(found.fields["pressure"][n], right(t) + left(t), atol=2e-5)
        np.testing.assert_allclose(found.fields["velocity"][n, :, 0], (right(t) - left(t)) / speed, atol=2e-5)


def test_waves_from_any_start_agree_with_exponax_and_keep_their_energy():
    n, speed, dt = 32, 0.9, 0.07
    rng = np.random.default_rng(0)
    pressure = 0.3 + smooth_noise(rng, (n, n), 1 / n, 0.3)
    velocity = np.stack([smooth_noise(rng, (n, n), 1 / n, 0.3) for _ in range(2)], axis=-1)
    found = solve_wave(pressure, velocity, 4, dt, speed)
    rate = -(speed**2) * (derivative(velocity[..., 0], 0, 1 / n) + derivative(velocity[..., 1], 1, 1 / n))

    @jax.jit  # as one: its operations one by one take longer to compile
    def rollout(state):
        return exponax.rollout(exponax.stepper.Wave(2, 1.0, n, dt, speed_of_sound=speed), 3, include_init=True)(state)

    expected = np.asarray(rollout(np.float32(np.stack([pressure, rate]))))
    np.testing.assert_allclose(found.fields["pressure"], expected[:, 0], atol=1e-4)
    energy = np.square(found.fields["pressure"] / speed) + np.square(found.fields["velocity"]).sum(axis=-1)
    np.testing.assert_allclose(energy.mean(axis=(1, 2)), energy[0].mean(), rtol=1e-5)
    assert rms(found.fields["pressure"][1] - found.fields["pressure"][0]) > 0.2


def test_a_vortex_makes_no_sound():
    x, y = plane((24, 16))
    stream = np.sin(2 * np.pi * x) * np.cos(3 * np.pi * y)
    velocity = np.stack([derivative(stream, 1, 1 / 24), -derivative(stream, 0, 1 / 24)], axis=-1)
    found = solve_wave(np.zeros((24, 16)), velocity, 3, 1.0, 1.0)
    np.testing.assert_allclose(found.fields["velocity"], np.stack([velocity] * 3), atol=1e-5)
    np.testing.assert_allclose(found.fields["pressure"], 0, atol=1e-5)


def test_waves_of_a_seed_obey_the_wave_equation_at_one_speed_of_sound():
    speeds = []
    for seed in range(6):
        dt, cell = 1e-3, 1 / 48
        found = wave(seed, grid=(48, 64), frames=3, dt=dt).fields
        pressure = found["pressure"].astype(np.float64)
        curvature = sum(derivative(derivative(pressure[1], axis, cell), axis, cell) for axis in (0, 1))
        acceleration = (pressure[0] - 2 * pressure[1] + pressure[2]) / dt**2
        squared = np.vdot(acceleration, curvature) / np.vdot(curvature, curvature)
        assert rms(acceleration - squared * curvature) < 0.03 * rms(acceleration)
        speeds.append(np.sqrt(squared))
        assert rms(found["velocity"][0]) > 0.2 * rms(pressure[0])  # let go a while before
    assert 0.7 < min(speeds) < max(speeds) < 1.2
    assert np.ptp(speeds) > 0.1


# Tracer in a volume


def test_a_cloud_in_a_uniform_stream_is_carried_and_spreads_as_a_gaussian():
    grid, diffusivity, stream, width = VOLUME, 5e-3, np.array([0.6, -0.4, 0.3]), 0.1
    lengths = np.array(grid) / 24
    positions = np.meshgrid(*(np.arange(n) / 24 for n in grid), indexing="ij")

    def cloud(t):
        variance = width**2 + 2 * diffusivity * t
        density = 1.0
        for x, length, speed in zip(positions, lengths, stream):
            distance = (x - length / 2 - speed * t + length / 2) % length - length / 2
            images = sum(np.exp(-((distance + shift * length) ** 2) / (2 * variance)) for shift in (-1, 0, 1))
            density = density * images * width / np.sqrt(variance)
        return density

    found = solve_advection_diffusion(cloud(0.0), np.broadcast_to(stream, (*grid, 3)), 3, 0.4, diffusivity)
    for n in range(3):
        np.testing.assert_allclose(found.fields["tracer"][n], cloud(0.4 * n), atol=2e-3)
    assert found.fields["tracer"][-1].max() < 0.6


def test_a_wave_in_a_shear_flow_tilts_as_its_exact_modes_do():
    """Along x, the tracer stays one wave whose amplitude is a linear equation along z, solved by scipy's `expm`."""
    diffusivity, t = 4e-3, 0.6
    k, z = 2 * np.pi, np.arange(36) / 24
    shear = 0.8 * np.sin(2 * np.pi * z / 1.5)
    slope = derivative(np.eye(36), 0, 1 / 24)
    generator = diffusivity * (slope @ slope - k**2 * np.eye(36)) - 1j * k * np.diag(shear)
    amplitude = expm(generator * t) @ np.ones(36)
    x = np.broadcast_to((np.arange(24) / 24)[:, None, None], VOLUME)
    velocity = np.zeros((*VOLUME, 3))
    velocity[..., 0] = shear
    found = solve_advection_diffusion(np.cos(k * x), velocity, 3, t / 2, diffusivity).fields["tracer"]
    np.testing.assert_allclose(found[-1], (amplitude * np.exp(1j * k * x)).real, atol=1e-4)
    assert np.ptp(np.angle(amplitude)) > 2


def test_the_amount_of_tracer_stays_and_its_variance_falls_by_diffusion_alone():
    dt, cell, diffusivity = 2e-3, 1 / 24, 4e-3
    found = advection_diffusion_3d(1, grid=VOLUME, frames=3, dt=dt, diffusivity=diffusivity)
    tracer, velocity = found.fields["tracer"].astype(np.float64), found.constant_fields["velocity"]
    np.testing.assert_allclose(tracer.mean(axis=(1, 2, 3)), tracer[0].mean(), rtol=1e-6)
    gradients = [derivative(tracer[1], axis, cell) for axis in range(3)]
    loss = (np.square(tracer[0]).mean() - np.square(tracer[2]).mean()) / (2 * dt)
    assert loss == pytest.approx(2 * diffusivity * sum(np.square(g).mean() for g in gradients), rel=0.01)
    carried = sum(velocity[..., axis] * gradients[axis] for axis in range(3))
    spread = diffusivity * sum(derivative(g, axis, cell) for axis, g in enumerate(gradients))
    assert rms((tracer[2] - tracer[0]) / (2 * dt) + carried - spread) < 0.02 * rms(carried)
    divergence = [derivative(velocity[..., axis], axis, cell) for axis in range(3)]
    np.testing.assert_allclose(divergence, 0, atol=1e-4)


def test_the_tracer_stays_between_zero_and_one():
    for seed in range(3):
        tracer = sixteen_frames(advection_diffusion_3d, seed).fields["tracer"]
        assert tracer.min() > -0.02
        assert tracer.max() < 1.02
        assert np.ptp(tracer[0]) > 0.7


# Turbulence


def test_slopes_of_the_velocity_are_skewed_as_in_experiments_on_turbulence():
    """About -0.4 (Batchelor and Townsend 1947, and since); it is 0 in the noise before the first frame."""
    skewness = []
    for seed in range(3):
        velocity = sixteen_frames(turbulence_3d, seed).fields["velocity"][0]
        slopes = [derivative(velocity[..., i], i, 1 / 32) for i in range(3)]
        skewness += [np.mean(slope**3) / np.mean(slope**2) ** 1.5 for slope in slopes]
    assert -0.55 < np.mean(skewness) < -0.25


# All


@each_scenario
def test_a_seed_names_one_trajectory_that_the_processor_accepts(simulate, grid):
    first, again, other = (simulate(seed, grid=grid, frames=3) for seed in (3, 3, 4))
    for name, values in first.fields.items():
        np.testing.assert_array_equal(values, again.fields[name])
        assert not np.allclose(values, other.fields[name], atol=1e-2)
        assert values.dtype == np.float32
        assert values.shape[: 1 + len(grid)] == (3, *grid)
    assert first.name == again.name != other.name
    assert first.boundary_ids() == ((2, 2),) * len(grid)
    assert all(np.allclose(np.diff(cells), 1 / grid[0]) for cells in first.coordinates.values())
    inputs = WalrusProcessor()(first)
    assert inputs["field_values"].shape[3:] == (*grid, 1, 1)[:3]
    assert np.isfinite(inputs["field_values"].numpy()).all()


@each_scenario
def test_neighbouring_frames_differ_visibly_and_ever_more_with_lead_time(simulate, grid):
    growth = []
    for seed in range(2):
        trajectory = sixteen_frames(simulate, seed, **({"grid": (64,)} if len(grid) == 1 else {}))
        assert trajectory.grid == GRIDS[len(grid)]
        future = trajectory.frames(6)
        errors = metrics.score(metrics.persistence(trajectory.frames(0, 6), future.num_frames), future)
        for error in errors.values():
            assert 0.02 < error[0] < 0.3
        growth.append(np.mean(list(errors.values()), axis=0))
    growth = np.mean(growth, axis=0)
    assert growth[0] < growth[1] < growth[3] < growth[9]
    assert growth[9] > 0.3


@pytest.mark.parametrize(
    ("simulate", "grid"), [(burgers, PLANE), (wave, PLANE), (kolmogorov_flow, PLANE), (advection_diffusion_3d, VOLUME)]
)
def test_users_who_switched_jax_to_64_bits_get_the_same_in_float32(simulate, grid):
    expected = simulate(2, grid=grid, frames=3)
    with jax.enable_x64(True):
        found = simulate(2, grid=grid, frames=3)
    for name, values in expected.fields.items():
        assert found.fields[name].dtype == np.float32
        np.testing.assert_allclose(found.fields[name], values, atol=2e-3)


@each_scenario
def test_unusable_arguments_are_refused(simulate, grid):
    with pytest.raises(ValueError, match=f"at least 16 each, found {(*grid[:-1], 8)}".replace("(", r"\(")[:-1]):
        simulate(0, grid=(*grid[:-1], 8))
    with pytest.raises(ValueError, match="three" if len(grid) == 3 else "two"):
        simulate(0, grid=(32,) * (2 if len(grid) == 3 else 3))
    with pytest.raises(ValueError, match=r"grid: expected .* numbers of cells.*, found 48"):
        simulate(0, grid=48)
    with pytest.raises(ValueError, match="frames: expected at least 1"):
        simulate(0, grid=grid, frames=0)
    for dt in (0.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="dt: expected a positive"):
            simulate(0, grid=grid, dt=dt)


@pytest.mark.parametrize(
    ("simulate", "parameter"),
    [
        (burgers, "viscosity"),
        (kolmogorov_flow, "viscosity"),
        (turbulence_3d, "viscosity"),
        (advection_diffusion_3d, "diffusivity"),
    ],
)
def test_friction_and_diffusion_must_be_positive(simulate, parameter):
    for value in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"{parameter}: expected a positive number, found {value}"):
            simulate(0, **{parameter: value})


def test_starts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"velocity \(H, W, 2\) or \(H, 1\), found \(16, 20\)"):
        solve_burgers(np.zeros((16, 20)), 2, 0.1, 1e-2)
    with pytest.raises(ValueError, match="velocity: expected finite"):
        solve_burgers(np.full((16, 20, 2), np.inf), 2, 0.1, 1e-2)
    with pytest.raises(ValueError, match=r"found \(16, 20\) and \(20, 16, 2\)"):
        solve_wave(np.zeros((16, 20)), np.zeros((20, 16, 2)), 2, 0.1, 1.0)
    with pytest.raises(ValueError, match=r"or \(H, 1\), found \(16, 2\)"):
        solve_burgers(np.zeros((16, 2)), 2, 0.1, 1e-2)
    with pytest.raises(ValueError, match=r"found \(16,\) and \(16,\)"):
        solve_wave(np.zeros(16), np.zeros(16), 2, 0.1, 1.0)
    with pytest.raises(ValueError, match="speed_of_sound: expected a positive"):
        solve_wave(np.zeros((16, 20)), np.zeros((16, 20, 2)), 2, 0.1, 0.0)
    with pytest.raises(ValueError, match=r"found \(16, 16, 20\) and \(16, 16, 20\)"):
        solve_advection_diffusion(np.zeros((16, 16, 20)), np.zeros((16, 16, 20)), 2, 0.1, 1e-2)
    with pytest.raises(ValueError, match="tracer: expected finite"):
        solve_advection_diffusion(np.full((16, 16, 20), np.nan), np.zeros((16, 16, 20, 3)), 2, 0.1, 1e-2)


def test_a_shock_too_thin_for_the_cells_is_refused_with_field_and_frame():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"thin: the solution diverged, velocity is not finite in frame \d"):
        solve_burgers(rng.normal(size=(*FINE, 2)), 3, 1.0, 1e-5, name="thin")


def test_the_message_names_the_extra_where_exponax_is_missing_but_waves_go_without(monkeypatch):
    monkeypatch.setitem(sys.modules, "exponax.etdrk", None)
    for simulate, grid in SCENARIOS:
        if simulate is wave:
            assert simulate(0, grid=(17, 19), frames=2).num_frames == 2
            continue
        with pytest.raises(ImportError, match=r"walrus-hf\[sim\]"):
            simulate(0, grid=(17, 19, 18)[: len(grid)], frames=2)


def test_smooth_noise_is_the_same_on_more_cells_and_has_no_waves_shorter_than_asked():
    coarse = smooth_noise(np.random.default_rng(0), (16, 24), 1 / 16, shortest=0.25)
    fine = smooth_noise(np.random.default_rng(0), (32, 48), 1 / 32, shortest=0.25)
    np.testing.assert_allclose(fine[::2, ::2], coarse, atol=1e-6)
    assert coarse.mean() == pytest.approx(0, abs=1e-12)
    assert rms(coarse) == pytest.approx(1)
    k = np.hypot(*np.meshgrid(np.fft.fftfreq(32, 1 / 32), np.fft.fftfreq(48, 1 / 32), indexing="ij"))
    power = np.abs(np.fft.fft2(fine)) ** 2
    assert power[k > 6].max() < 1e-12 * power.max()
