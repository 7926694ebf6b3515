"""Diagnostics against closed forms, against Parseval, and against The Well's own spectral error."""

import types

import numpy as np
import pytest
import torch

from walrus_hf import Trajectory
from walrus_hf.evaluation import physics

PERIODIC, WALL = (2, 2), (0, 0)


def waves(shape, *numbers):
    """A sum of cosines with the given numbers of waves along the axes."""
    axes = np.meshgrid(*(2 * np.pi * np.arange(n) / n for n in shape), indexing="ij")
    return sum(np.cos(sum(k * x for k, x in zip(ks, axes))) for ks in numbers)


@pytest.mark.parametrize("grid", [(17,), (12, 15), (9, 14), (6, 5, 8)])
def test_the_power_of_all_bands_is_the_mean_square(grid):
    values = np.random.default_rng(0).normal(1, 2, size=(*grid, 2))
    edges = physics.octave_edges(grid)
    power = physics.band_power(values, len(grid), edges)
    assert power.shape == (len(edges) - 1,)
    np.testing.assert_allclose(power.sum(), (values**2).sum(axis=-1).mean())
    np.testing.assert_allclose(power[0], (values.mean(axis=tuple(range(len(grid)))) ** 2).sum())


@pytest.mark.parametrize(("wave", "band"), [((1, 0), 1), ((0, 2), 2), ((3, 0), 2), ((4, 0), 3), ((0, 8), 4)])
def test_a_wave_lies_in_the_octave_of_its_wavenumber(wave, band):
    power = physics.band_power(waves((32, 32), wave), 2, physics.octave_edges((32, 32)))
    np.testing.assert_allclose(power[band], 0.5)
    np.testing.assert_allclose(np.delete(power, band), 0, atol=1e-20)


def test_wavenumbers_count_along_the_longest_axis():
    # 2 waves along 16 cells are as short as 4 along 32.
    power = physics.band_power(waves((32, 16), (0, 2)), 2, physics.octave_edges((32, 16)))
    np.testing.assert_allclose(power[3], 0.5)


@pytest.mark.parametrize("grid", [(20, 31), (9, 10, 12)])
def test_the_spectral_error_equals_the_wells(grid):
    well = pytest.importorskip("the_well.benchmark.metrics.spectral")
    rng = np.random.default_rng(1)
    forecast, truth = rng.normal(size=(2, *grid, 3))
    meta = types.SimpleNamespace(n_spatial_dims=len(grid))
    found = well.binned_spectral_mse.eval(*(torch.from_numpy(x)[None] for x in (forecast, truth)), meta)
    edges = np.logspace(np.log10(2 * np.pi / max(grid)), np.log10(np.pi * np.sqrt(len(grid)) + 1e-6), 4)
    edges[0] = 0
    power = physics.band_power(forecast - truth, len(grid), edges * max(grid) / (2 * np.pi))
    expected = [float(found[f"spectral_error_mse_per_bin_{i}"].sum()) for i in range(3)]
    np.testing.assert_allclose(power, expected, rtol=1e-5)


def test_a_vortex_has_no_divergence_and_a_source_has():
    x, y = np.meshgrid(2 * np.pi * np.arange(24) / 24, 2 * np.pi * np.arange(16) / 16, indexing="ij")
    sizes = (2 * np.pi / 24, 2 * np.pi / 16)
    source = np.stack([np.cos(x), np.cos(y)], -1)
    assert physics.relative_divergence(source, sizes, (PERIODIC, PERIODIC)) == pytest.approx(1, rel=1e-12)
    square = np.meshgrid(*[2 * np.pi * np.arange(24) / 24] * 2, indexing="ij")
    vortex = np.stack([np.sin(square[0]) * np.cos(square[1]), -np.cos(square[0]) * np.sin(square[1])], -1)
    assert physics.relative_divergence(vortex, (sizes[0],) * 2, (PERIODIC, PERIODIC)) < 1e-12
    shear = np.stack([np.sin(y), np.zeros_like(y)], -1)
    assert physics.relative_divergence(shear, sizes, (PERIODIC, PERIODIC)) == 0


def test_the_divergence_near_walls_and_on_oblong_cells_is_exact_for_linear_flow():
    x, y, z = np.meshgrid(0.5 * np.arange(5), 2.0 * np.arange(6), 3.0 * np.arange(7), indexing="ij")
    sizes, sides = (0.5, 2.0, 3.0), (WALL, WALL, WALL)
    assert physics.relative_divergence(np.stack([2 * x, -y, -z], -1), sizes, sides) < 1e-12
    # (x, y, z): divergence 3, gradient sqrt(3).
    assert physics.relative_divergence(np.stack([x, y, z], -1), sizes, sides) == pytest.approx(np.sqrt(3))


def test_only_fields_that_should_be_solenoidal_are_asked_for_their_divergence():
    vector, scalar = np.zeros((1, 4, 4, 2)), np.zeros((1, 4, 4))
    fields = {"u": vector, "velocity": vector, "momentum": vector, "density": scalar}
    plane = Trajectory(fields, {"x": "wall", "y": "wall"})
    assert physics.divergence_fields(plane, {"u": "magnetic_field"}) == ["u", "velocity"]
    sphere = Trajectory(fields, {"x": "wall", "y": "wall"}, grid_type="spherical")
    assert physics.divergence_fields(sphere, {}) == []


def test_the_change_of_a_total_is_measured_by_the_size_of_the_field():
    rng = np.random.default_rng(2)
    before = rng.normal(3, 1, size=(6, 8))
    free = np.ones((6, 8), bool)
    free[0] = False
    later = rng.permutation(before[1:].ravel()).reshape(5, 8)
    moved = np.concatenate([rng.normal(size=(1, 8)), later])  # the same values elsewhere, anything in the obstacle
    assert physics.total_change(moved, before, free) == pytest.approx(0, abs=1e-12)
    size = np.sqrt((before[1:] ** 2).mean())
    assert physics.total_change(before - 0.3, before, free) == pytest.approx(-0.3 / size)
    vector = np.stack([before, 2 * before], -1)
    size = np.sqrt((vector[1:] ** 2).sum(-1).mean())
    assert physics.total_change(vector + np.array([0.3, 0.4]), vector, free) == pytest.approx(0.5 / size)


def test_correlation_is_pearsons_mean_over_components():
    a, b = np.random.default_rng(3).normal(size=(2, 50, 2))
    expected = np.mean([np.corrcoef(a[:, i], b[:, i])[0, 1] for i in range(2)])
    assert physics.correlation(a, b) == pytest.approx(expected)
    assert physics.correlation(5 - 2 * a, a) == pytest.approx(-1)


def test_components_in_which_the_truth_does_not_vary_are_left_out_of_the_correlation():
    noise, truth = np.random.default_rng(4).normal(size=(2, 99, 2))
    truth[:, 1] = 0.1
    alone = np.corrcoef(noise[:, 0], truth[:, 0])[0, 1]
    assert physics.correlation(noise, truth) == pytest.approx(alone)
    assert np.isnan(physics.correlation(noise, np.full((99, 2), 0.1)))


def test_a_forecast_that_has_gone_flat_is_not_correlated():
    truth = np.random.default_rng(5).normal(size=(99, 1))
    assert physics.correlation(np.full((99, 1), 0.1), truth) == 0
    assert physics.correlation_time(np.array([0.9, 0.0])) == 2


@pytest.mark.parametrize(
    ("correlations", "time"), [([0.99, 0.9, 0.79, 0.95], 3), ([0.99, 0.9], 3), ([0.5], 1), ([np.nan, 0.9, 0.1], 3)]
)
def test_the_correlation_time_is_the_first_lead_time_without_correlation(correlations, time):
    assert physics.correlation_time(np.array(correlations)) == time


def test_without_any_correlation_there_is_no_correlation_time():
    assert np.isnan(physics.correlation_time(np.full(3, np.nan)))
