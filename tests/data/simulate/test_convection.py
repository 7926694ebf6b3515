"""Convection against linear stability theory, published heat fluxes, exact decay, balances and symmetries."""

import numpy as np
import pytest
import torch
from scipy.linalg import eig
from scipy.optimize import brentq

from walrus_hf import WalrusProcessor, metrics
from walrus_hf.data.simulate import convection
from walrus_hf.data.simulate.convection import rayleigh_benard, solve_rayleigh_benard


def rms(values):
    return np.sqrt(np.mean(np.square(values, dtype=np.float64)))


def layer(height, length=2):
    """Cell centres x and y, the conducting state and no flow, on `length * height` x `height` cells."""
    x, y = np.meshgrid(*((np.arange(n) + 0.5) / height for n in (length * height, height)), indexing="ij")
    return x, y, 1 - y, np.zeros((*x.shape, 2))


def growth_rate(rayleigh, prandtl, k, degree=28):
    """Of the fastest mode exp(ikx + st) of a layer at rest between no-slip walls, by Chebyshev collocation."""
    n = degree + 1
    nodes, weights = np.cos(np.pi * np.arange(n) / degree), (-1.0) ** np.arange(n)
    weights[[0, -1]] *= 2
    slope = np.outer(weights, 1 / weights) / (nodes[:, None] - nodes + np.eye(n))
    slope = 2 * (slope - np.diag(slope.sum(axis=1)))  # on a layer of height 1
    one, none = np.eye(n), np.zeros((n, n))
    laplacian = slope @ slope - k**2 * one
    viscosity, diffusivity = np.sqrt(prandtl / rayleigh), 1 / np.sqrt(rayleigh * prandtl)
    a = np.block([[viscosity * laplacian @ laplacian, -(k**2) * one], [one, diffusivity * laplacian]])
    b = np.block([[laplacian, none], [none, one]])
    for row, condition in (
        (0, [one[0], none[0]]), (1, [slope[0], none[0]]), (n - 2, [slope[-1], none[0]]), (n - 1, [one[-1], none[0]]),
        (n, [none[0], one[0]]), (2 * n - 1, [none[0], one[-1]]),
    ):  # fmt: skip
        a[row], b[row] = np.concatenate(condition), 0
    found = eig(a, b, right=False)
    return found.real[np.isfinite(found) & (np.abs(found) < 1e3)].max()


def measured_rate(rayleigh, prandtl, height):
    """Growth of a small perturbation whose wavelength is two heights."""
    x, y, rest, still = layer(height)
    perturbed = rest + 1e-3 * np.sin(np.pi * y) * np.cos(np.pi * x)
    found = solve_rayleigh_benard(perturbed, still, 2, 4.0, rayleigh, prandtl, spin_up=8.0)
    first, second = (rms(velocity) for velocity in found.fields["velocity"])
    return np.log(second / first) / 4.0


def test_the_theory_of_this_test_gives_the_textbooks_critical_rayleigh_number():
    assert brentq(lambda rayleigh: growth_rate(rayleigh, 1.0, 3.117), 1000, 3000) == pytest.approx(1707.76, abs=0.01)


def test_a_layer_at_rest_is_stable_below_the_critical_rayleigh_number_and_unstable_above():
    assert measured_rate(1500, 1.0, 16) < -0.03
    assert measured_rate(2000, 1.0, 16) > 0.03


def test_perturbations_grow_at_the_rate_of_linear_theory_with_second_order():
    exact = growth_rate(3000, 0.71, np.pi)
    coarse, fine = measured_rate(3000, 0.71, 16), measured_rate(3000, 0.71, 24)
    assert fine == pytest.approx(exact, rel=0.02)
    assert np.log((coarse - exact) / (fine - exact)) / np.log(24 / 16) > 1.8
    assert (fine * 24**2 - coarse * 16**2) / (24**2 - 16**2) == pytest.approx(exact, rel=2e-3)


@pytest.fixture(scope="module")
def rolls():
    """Steady rolls at Ra = 10000 and Pr = 0.71 on 16 and on 24 cells."""
    found = {}
    for height in (16, 24):
        x, y, rest, still = layer(height)
        start = rest + 0.2 * np.sin(np.pi * y) * np.cos(np.pi * x)
        found[height] = solve_rayleigh_benard(start, still, 2, 2.0, 1e4, 0.71, spin_up=50.0)
    return found


def heat_fluxes(trajectory):
    """Over that of conduction (Nusselt numbers) at the lower and the upper wall, of each frame."""
    buoyancy = trajectory.fields["buoyancy"].astype(np.float64)
    height = buoyancy.shape[2]
    return 2 * height * (1 - buoyancy[..., 0]).mean(axis=1), 2 * height * buoyancy[..., -1].mean(axis=1)


def test_steady_rolls_carry_the_published_heat_and_as_much_in_as_out(rolls):
    """2.661 by Clever and Busse, J. Fluid Mech. 65 (1974), for rolls that are 1.008 heights wide instead of 1."""
    for found in rolls.values():
        assert rms(found.fields["velocity"][1] - found.fields["velocity"][0]) < 1e-5
        lower, upper = heat_fluxes(found)
        np.testing.assert_allclose(lower, upper, rtol=1e-4)
    coarse, fine = (heat_fluxes(rolls[height])[0][-1] for height in (16, 24))
    assert fine == pytest.approx(2.661, rel=0.01)
    assert (fine * 24**2 - coarse * 16**2) / (24**2 - 16**2) == pytest.approx(2.661, rel=0.004)


def test_steady_rolls_dissipate_the_work_of_buoyancy_which_is_the_convective_heat_flux(rolls):
    viscosity, diffusivity = np.sqrt(0.71 / 1e4), 1 / np.sqrt(0.71 * 1e4)
    buoyancy, velocity = (rolls[24].fields[name][-1].astype(np.float64) for name in ("buoyancy", "velocity"))
    work = (velocity[..., 1] * buoyancy).mean()
    walled = np.concatenate([-velocity[:, :1], velocity, -velocity[:, -1:]], axis=1)
    in_y = np.square(np.diff(walled, axis=1) * 24)
    in_y = (in_y[:, :-1] + in_y[:, 1:]).mean() / 2 * velocity.shape[-1]
    in_x = np.square((np.roll(velocity, -1, axis=0) - velocity) * 24).mean() * velocity.shape[-1]
    assert viscosity * (in_x + in_y) == pytest.approx(work, rel=0.02)
    assert 1 + work / diffusivity == pytest.approx(heat_fluxes(rolls[24])[0][-1], rel=0.01)


def test_the_flow_is_free_of_divergence_and_no_volume_crosses_a_height():
    found = rayleigh_benard(1, grid=(40, 24), frames=6)
    u, v = np.moveaxis(found.fields["velocity"].astype(np.float64), -1, 0)
    # Frames are means over opposite faces; so are these differences, and what is left is a mean of divergences.
    in_x = 24 * (np.roll(u, -1, axis=1) - np.roll(u, 1, axis=1))[..., 1:-1] / 2
    in_y = 24 * (v[..., 2:] - v[..., :-2]) / 2
    in_x = (in_x[..., 2:] + 2 * in_x[..., 1:-1] + in_x[..., :-2]) / 4
    in_y = (np.roll(in_y, -1, axis=1) + 2 * in_y + np.roll(in_y, 1, axis=1))[..., 1:-1] / 4
    assert rms(in_x + in_y) < 1e-5 * rms(in_x)
    np.testing.assert_allclose(v.mean(axis=1), 0, atol=1e-7)


def test_on_the_faces_the_divergence_is_rounding_however_long_the_flow_runs():
    equations = convection._Layer((24, 16), 0.01, 0.01)
    state = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 24, 16)))
    state[1, :, 0] = 0
    equations.project(state)
    u, v, _ = equations.advance(state, 4.0, "test").numpy()
    divergence = np.roll(u, -1, axis=0) - u + np.diff(v, axis=1, append=0)
    assert rms(divergence) < 1e-13
    assert rms(u) > 0.01
    assert not v[:, 0].any()


def residuals(height, dt=0.02, rayleigh=2e4, prandtl=2.0):
    """Of both momentum equations and of heat, over the size of their advection, away from the walls."""
    x, y, rest, still = layer(height)
    start = rest + 0.2 * np.sin(np.pi * y) * np.cos(np.pi * x) + 0.1 * np.sin(2 * np.pi * y) * np.sin(2 * np.pi * x)
    found = solve_rayleigh_benard(start, still, 3, dt, rayleigh, prandtl, spin_up=7.0)
    np.testing.assert_allclose(found.fields["pressure"].mean(axis=(1, 2)), 0, atol=1e-7)
    buoyancy, pressure, velocity = (found.fields[n].astype(np.float64) for n in ("buoyancy", "pressure", "velocity"))
    u, v = velocity[..., 0], velocity[..., 1]

    def slopes(values):
        in_x = (np.roll(values, -1, axis=0) - np.roll(values, 1, axis=0)) * height / 2
        return in_x[:, 1:-1], (values[:, 2:] - values[:, :-2]) * height / 2

    def laplacian(values):
        in_x = np.roll(values, -1, axis=0) - 2 * values + np.roll(values, 1, axis=0)
        return (in_x[:, 1:-1] + np.diff(values, n=2, axis=1)) * height**2

    viscosity, diffusivity = np.sqrt(prandtl / rayleigh), 1 / np.sqrt(prandtl * rayleigh)
    push = slopes(pressure[1])
    found_residuals = []
    for values, spread, force in (
        (u, viscosity, -push[0]), (v, viscosity, buoyancy[1, :, 1:-1] - push[1]), (buoyancy, diffusivity, 0),
    ):  # fmt: skip
        before, now, after = values
        change = (after - before)[:, 1:-1] / (2 * dt)
        advection = u[1, :, 1:-1] * slopes(now)[0] + v[1, :, 1:-1] * slopes(now)[1]
        inside = slice(height // 8, -height // 8)
        residual = change + advection - spread * laplacian(now) - force
        found_residuals.append(rms(residual[:, inside]) / rms(advection[:, inside]))
        assert rms(change[:, inside]) > 0.1 * rms(advection[:, inside])
    return np.array(found_residuals)


def test_frames_satisfy_the_equations_of_momentum_and_heat_with_second_order():
    coarse, fine = residuals(20), residuals(32)
    assert (fine < 0.05).all()
    assert (np.log(coarse / fine) / np.log(32 / 20) > 1.6).all()


def test_the_conducting_layer_stays_at_rest_under_its_own_weight():
    _, y, rest, still = layer(20, length=1)
    found = solve_rayleigh_benard(rest, still, 3, 5.0, 1e6, 0.7)
    assert np.abs(found.fields["velocity"]).max() < 1e-10
    np.testing.assert_allclose(found.fields["buoyancy"], np.broadcast_to(rest, (3, 20, 20)), atol=1e-6)
    weight = y - y**2 / 2
    np.testing.assert_allclose(
        found.fields["pressure"], np.broadcast_to(weight - weight.mean(), (3, 20, 20)), atol=1e-6
    )


def test_shear_and_warmth_that_vary_with_height_alone_decay_at_their_exact_rates():
    rayleigh, prandtl, time = 500.0, 3.0, 1.5
    errors = []
    for height in (16, 32):
        _, y, rest, still = layer(height, length=1)
        wave = np.sin(np.pi * y)
        still[..., 0] = wave
        found = solve_rayleigh_benard(rest + 0.2 * wave, still, 2, time, rayleigh, prandtl)
        shear = np.exp(-np.sqrt(prandtl / rayleigh) * np.pi**2 * time) * wave
        warmth = 0.2 * np.exp(-(np.pi**2) * time / np.sqrt(prandtl * rayleigh)) * wave
        errors.append(
            [
                np.abs(found.fields["velocity"][-1, ..., 0] - shear).max(),
                np.abs(found.fields["buoyancy"][-1] - rest - warmth).max(),
            ]
        )
        assert np.abs(found.fields["velocity"][-1, ..., 1]).max() < 1e-10
    assert (np.array(errors[1]) < 1e-3).all()
    assert (np.log2(np.array(errors[0]) / errors[1]) > 1.8).all()


def test_mirrored_shifted_and_inverted_layers_give_mirrored_shifted_and_inverted_flows():
    start = rayleigh_benard(4, grid=(40, 24), frames=1).fields
    buoyancy, velocity = start["buoyancy"][0], start["velocity"][0]
    plain, mirrored, shifted, inverted = (
        solve_rayleigh_benard(b, v, 3, 0.5, 1e5, 0.7).fields
        for b, v in (
            (buoyancy, velocity),
            (buoyancy[::-1], velocity[::-1] * [-1, 1]),
            (np.roll(buoyancy, 7, axis=0), np.roll(velocity, 7, axis=0)),
            (1 - buoyancy[:, ::-1], velocity[:, ::-1] * [1, -1]),
        )
    )
    np.testing.assert_allclose(mirrored["buoyancy"], plain["buoyancy"][:, ::-1], atol=1e-5)
    np.testing.assert_allclose(mirrored["velocity"], plain["velocity"][:, ::-1] * [-1, 1], atol=1e-5)
    np.testing.assert_allclose(mirrored["pressure"], plain["pressure"][:, ::-1], atol=1e-5)
    np.testing.assert_allclose(shifted["velocity"], np.roll(plain["velocity"], 7, axis=1), atol=1e-5)
    np.testing.assert_allclose(inverted["buoyancy"], 1 - plain["buoyancy"][:, :, ::-1], atol=1e-5)
    np.testing.assert_allclose(inverted["velocity"], plain["velocity"][:, :, ::-1] * [1, -1], atol=1e-5)
    assert np.abs(plain["velocity"][-1] - plain["velocity"][0]).max() > 0.05


def test_a_seed_names_one_trajectory():
    first, again, other = (rayleigh_benard(seed, grid=(36, 20), frames=3) for seed in (3, 3, 4))
    for name, values in first.fields.items():
        np.testing.assert_array_equal(values, again.fields[name])
        assert not np.allclose(values, other.fields[name], atol=1e-2)
        assert values.dtype == np.float32
        assert values.shape == (3, 36, 20, 2)[: values.ndim]
    assert first.name == again.name == "rayleigh_benard_3" != other.name
    assert first.boundary_ids() == ((2, 2), (0, 0))
    np.testing.assert_allclose(first.coordinates["x"], (np.arange(36) + 0.5) / 20)
    assert WalrusProcessor()(first)["field_values"].shape == (1, 3, 4 + 1, 36, 20, 1)  # velocity_z is padded


def test_every_seed_shows_convection_between_the_buoyancies_of_the_walls():
    for seed in range(6):
        found = rayleigh_benard(seed, grid=(48, 24), frames=6)
        assert found.fields["buoyancy"].min() > -0.05
        assert found.fields["buoyancy"].max() < 1.05
        assert rms(found.fields["velocity"]) > 0.03
        assert np.mean(heat_fluxes(found)) > 2


def test_rayleigh_and_prandtl_number_come_from_the_seed_unless_given():
    drawn = rayleigh_benard(5, grid=(24, 16), frames=2)
    given = rayleigh_benard(5, grid=(24, 16), frames=2, rayleigh=2e4, prandtl=0.7)
    less = rayleigh_benard(5, grid=(24, 16), frames=2, rayleigh=1e3, prandtl=0.7)
    assert rms(drawn.fields["velocity"] - given.fields["velocity"]) > 1e-2
    assert rms(less.fields["velocity"]) < 0.2 * rms(given.fields["velocity"])


def test_neighbouring_frames_differ_visibly_and_ever_more_with_lead_time():
    growth = []
    for seed in range(4):
        trajectory = rayleigh_benard(seed)
        assert (trajectory.num_frames, trajectory.dt, trajectory.grid) == (40, 0.25, (64, 32))
        future = trajectory.frames(17)
        errors = metrics.score(metrics.persistence(trajectory.frames(0, 17), future.num_frames), future)
        growth.append(np.mean(list(errors.values()), axis=0))
    growth = np.mean(growth, axis=0)
    assert 0.03 < growth[0] < 0.2
    assert growth[0] < growth[3] < growth[9] < growth[19]


def test_a_diverged_solution_is_refused():
    _, _, rest, still = layer(16)
    with pytest.raises(ValueError, match="mine: the solution diverged, or needs more than 100000 steps"):
        solve_rayleigh_benard(rest, still + 1e200, 2, 0.1, 1e5, 1.0, name="mine")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid": (64, 8)}, r"at least 16 each, found \(64, 8\)"),
        ({"frames": 0}, "frames: expected at least 1"),
        ({"dt": 0.0}, "dt: expected a positive"),
        ({"rayleigh": -1.0}, "rayleigh: expected a positive number"),
        ({"prandtl": 0.0}, "prandtl: expected a positive number"),
    ],
)
def test_unusable_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        rayleigh_benard(0, **arguments)


def test_a_start_that_does_not_fit_is_refused():
    _, _, rest, still = layer(16)
    with pytest.raises(ValueError, match=r"velocity: expected shape \(32, 16, 2\), found \(16, 32, 2\)"):
        solve_rayleigh_benard(rest, still.swapaxes(0, 1), 2, 0.1, 1e5, 1.0)
    with pytest.raises(ValueError, match="buoyancy: expected finite numbers"):
        solve_rayleigh_benard(rest * np.nan, still, 2, 0.1, 1e5, 1.0)
    with pytest.raises(ValueError, match="spin_up: expected a time of at least 0"):
        solve_rayleigh_benard(rest, still, 2, 0.1, 1e5, 1.0, spin_up=-1.0)
