"""Fronts and patterns of one substance, against exact solutions, ordinary differential equations and exponax."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp

pytest.importorskip("exponax")
import exponax
import jax

from walrus_hf import metrics
from walrus_hf.data.simulate import (
    reaction_diffusion,
    solve_reaction_diffusion,
    solve_swift_hohenberg,
    swift_hohenberg,
)
from walrus_hf.data.simulate.common import smooth_noise

from .oracles import derivative, rms

GRID, FRAMES = (48, 32), 21  # the same wherever nothing else is called for: each is compiled only once
NOISE = 0.2 * smooth_noise(np.random.default_rng(1), GRID, 1 / 48, shortest=0.2)
SIMULATIONS = [reaction_diffusion, swift_hohenberg]


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.8])
def test_a_front_has_the_exact_profile_and_speed_of_nagumo(threshold):
    diffusivity, rate, cells = 2e-4, 4.0, (256, 16)
    width, speed = np.sqrt(2 * diffusivity / rate), np.sqrt(rate * diffusivity / 2) * (1 - 2 * threshold)
    x = np.broadcast_to(np.arange(256)[:, None] / 256, cells)

    def band(time):  # two fronts that go apart, or together
        place = 0.25 + speed * time
        return 1 / (1 + np.exp((np.abs(x - 0.5) - place) / width))

    found = solve_reaction_diffusion(band(0.0), 6, 0.6, diffusivity, threshold, rate).fields["A"]
    for n in range(6):
        np.testing.assert_allclose(found[n], band(0.6 * n), atol=2e-3)


def test_a_well_mixed_substance_follows_its_ordinary_differential_equation():
    threshold = 0.3
    for start, rate in ((0.2, 4.0), (0.4, 4.0), (0.9, 4.0), (0.4, 60.0)):
        found = solve_reaction_diffusion(np.full(GRID, start), FRAMES, 0.1, 1e-3, threshold, rate).fields["A"]
        exact = solve_ivp(
            lambda _, a, rate=rate: rate * a * (1 - a) * (a - threshold),
            (0, 2.1),
            [start],
            t_eval=0.1 * np.arange(FRAMES),
            rtol=1e-8,
        )
        np.testing.assert_allclose(found.mean(axis=(1, 2)), exact.y[0], atol=2e-4)
        assert np.ptp(found[-1]) < 1e-5


def test_weak_waves_grow_and_fade_at_the_rates_of_swift_and_hohenberg():
    x, y = np.meshgrid(np.arange(48) / 48, np.arange(32) / 48, indexing="ij")
    wavelength, growth = 0.2, 0.3
    for number in ((5, 0), (3, 2), (0, 1)):
        wave = 1e-4 * np.cos(2 * np.pi * (number[0] * x + 1.5 * number[1] * y))
        squared = wavelength**2 * (number[0] ** 2 + (1.5 * number[1]) ** 2)
        rate = growth - (1 - squared) ** 2
        found = solve_swift_hohenberg(wave, FRAMES, 0.15, wavelength, growth).fields["A"]
        for n in range(FRAMES):
            np.testing.assert_allclose(found[n], np.exp(0.15 * n * rate) * wave, atol=2e-7)


def test_stripes_saturate_at_the_known_amplitude():
    growth = 0.05
    x = np.broadcast_to(np.arange(48)[:, None] / 48, GRID)
    found = solve_swift_hohenberg(0.02 * np.cos(2 * np.pi * 6 * x), FRAMES, 10.0, 1 / 6, growth).fields["A"][-1]
    assert found.max() == pytest.approx(np.sqrt(4 * growth / 3), rel=5e-3)  # to first order in the growth


def test_patterns_that_grow_fast_take_smaller_steps():
    for growth in (2.0, 5.0):
        coarse = solve_swift_hohenberg(NOISE, FRAMES, 0.16, 0.25, growth).fields["A"]
        fine = solve_swift_hohenberg(NOISE, FRAMES, 0.016, 0.25, growth).fields["A"]
        assert rms(coarse[2] - fine[20]) < 2e-3 * rms(fine[20])
        assert rms(fine[20]) > 1.5 * rms(NOISE)


@pytest.mark.parametrize("asymmetry", [0.0, 0.7])
def test_the_energy_of_a_pattern_never_rises(asymmetry):
    growth, wavelength = 0.4, 0.25
    found = (
        solve_swift_hohenberg(2.5 * NOISE, FRAMES, 0.8, wavelength, growth, asymmetry).fields["A"].astype(np.float64)
    )
    laplacian = sum(derivative(derivative(found, axis, 1 / 48), axis, 1 / 48) for axis in (1, 2))
    bent = found + laplacian * (wavelength / (2 * np.pi)) ** 2
    density = 0.5 * bent**2 - 0.5 * growth * found**2 - asymmetry * found**3 / 3 + found**4 / 4
    energy = density.mean(axis=(1, 2))
    assert (np.diff(energy) < 1e-8).all()
    assert energy[0] - energy[-1] > 0.01


def rollout(stepper, box, start, **coefficients):
    """Half a time unit of exponax's own stepper. Compiled as one: its operations one by one take longer to compile."""

    @jax.jit
    def run(state):
        order = {"order": 4, "dealiasing_fraction": 0.9}
        return exponax.repeat(stepper(2, box, len(start), 0.01, **order, **coefficients), 50)(state)

    return np.asarray(run(np.float32(start[None]))[0])


def test_both_agree_with_exponax():
    start = smooth_noise(np.random.default_rng(2), (48, 48), 1 / 48, shortest=0.25)
    ours = solve_reaction_diffusion((1 + start) / 2, 2, 0.5, 1e-3, threshold=0.5, rate=4.0).fields["A"]
    # A = (1 + u) / 2 turns the reaction into u - u^3.
    coefficients = {"first_order_coefficient": 1.0, "third_order_coefficient": -1.0}
    theirs = rollout(exponax.stepper.reaction.AllenCahn, 1.0, start, diffusivity=1e-3, **coefficients)
    assert rms(2 * ours[1] - 1 - theirs) < 2e-3 * rms(theirs)
    assert rms(ours[1] - ours[0]) > 0.05

    ours = solve_swift_hohenberg(start, 2, 0.5, 0.25, growth=0.4).fields["A"]
    box = 2 * np.pi * 4  # in which their pattern is 2 pi long
    coefficients = {"critical_number": 1.0, "polynomial_coefficients": (0.0, 0.0, 0.0, -1.0)}
    theirs = rollout(exponax.stepper.reaction.SwiftHohenberg, box, start, reactivity=0.4, **coefficients)
    assert rms(ours[1] - theirs) < 2e-3 * rms(theirs)
    assert rms(ours[1] - ours[0]) > 0.05


def test_a_substance_stays_between_zero_and_one_and_ends_as_much_or_little_of_it():
    finals = []
    for seed in range(6):
        found = reaction_diffusion(seed, grid=GRID, frames=FRAMES, dt=0.2).fields["A"]
        assert found.min() > -0.03
        assert found.max() < 1.03
        finals.append(((found[-1] < 0.2) | (found[-1] > 0.8)).mean() - ((found[0] < 0.2) | (found[0] > 0.8)).mean())
    assert np.mean(finals) > 0.2


def test_patterns_have_the_wavelength_that_was_asked_for():
    found = swift_hohenberg(3, grid=GRID, frames=FRAMES, dt=1.0, wavelength=0.16).fields["A"][-1]
    power = np.abs(np.fft.fft2(found)) ** 2
    k = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n, 1 / 48) for n in GRID), indexing="ij"))
    assert (k * power).sum() / power.sum() == pytest.approx(1 / 0.16, rel=0.1)


@pytest.mark.parametrize("simulate", SIMULATIONS)
def test_a_seed_names_one_trajectory_and_errors_of_persistence_grow(simulate):
    first, again, other = (simulate(seed, grid=GRID, frames=FRAMES) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.fields["A"], again.fields["A"])
    assert not np.allclose(first.fields["A"], other.fields["A"], atol=1e-2)
    assert first.fields["A"].shape == (FRAMES, *GRID)
    assert first.fields["A"].dtype == np.float32
    growth = metrics.score(metrics.persistence(first.frames(0, 1), 20), first.frames(1))["A"]
    assert 0.005 < growth[0] < growth[3] < growth[9]


@pytest.mark.parametrize(
    ("solve", "arguments", "message"),
    [
        (solve_reaction_diffusion, (np.zeros((16, 20, 3)), 2, 0.1, 1e-3, 0.5), r"expected A \(H, W\), found \(16, 20"),
        (solve_reaction_diffusion, (np.zeros((16, 8)), 2, 0.1, 1e-3, 0.5), "at least 16 each"),
        (solve_reaction_diffusion, (np.full((16, 20), np.nan), 2, 0.1, 1e-3, 0.5), "A: expected finite"),
        (solve_reaction_diffusion, (np.zeros((16, 20)), 2, 0.1, 0.0, 0.5), "diffusivity: expected a positive"),
        (solve_reaction_diffusion, (np.zeros((16, 20)), 2, 0.1, 1e-3, np.inf), "threshold: expected finite"),
        (solve_swift_hohenberg, (np.zeros((16, 20)), 2, 0.1, -1.0, 0.5), "wavelength: expected a positive"),
        (solve_swift_hohenberg, (np.zeros((16, 20)), 2, 0.1, 0.2, np.nan), "growth: expected finite"),
        (swift_hohenberg, (0, GRID, 2, 0.5, 0.01), r"wavelength: expected 3 cells \(0.0625\) to the length of x \(1\)"),
        (swift_hohenberg, (0, GRID, 2, 0.5, np.nan), "to the length of x .*, found nan"),
        (reaction_diffusion, (0, GRID, 2, -0.5), "dt: expected a positive"),
        (solve_swift_hohenberg, (NOISE, FRAMES, 0.16, 0.25, 20.0), "diverged, A is not finite in frame 13"),
    ],
)
def test_what_cannot_be_solved_is_refused(solve, arguments, message):
    with pytest.raises(ValueError, match=message):
        solve(*arguments)
