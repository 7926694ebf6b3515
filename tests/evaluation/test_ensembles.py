"""Scores of ensembles against their definitions, and against ensembles that are calibrated by construction."""

import numpy as np
import pytest

pytest.importorskip("scoringrules")

from walrus_hf.evaluation.ensembles import crps, rank_counts, spread_and_skill


@pytest.fixture(scope="module")
def calibrated():
    """Eight members and a truth drawn alike: (members, cells, components) and (cells, components)."""
    rng = np.random.default_rng(0)
    centre = 3 * rng.normal(size=(40_000, 2))
    return centre + rng.normal(size=(8, 40_000, 2)), centre + rng.normal(size=(40_000, 2))


def test_crps_is_the_fair_estimate_over_the_spread_of_the_truth():
    rng = np.random.default_rng(1)
    members, truth = rng.normal(size=(5, 60, 3)), rng.normal(2, 4, size=(60, 3))
    error = np.abs(members - truth).mean(axis=0)
    pairs = np.abs(members[:, None] - members[None]).sum(axis=(0, 1)) / (2 * 5 * 4)
    expected = ((error - pairs).mean(axis=0) / truth.std(axis=0, ddof=1)).mean()
    assert crps(members, truth) == pytest.approx(expected, rel=1e-6)


def test_spread_equals_skill_where_members_and_truth_are_drawn_alike(calibrated):
    spread, skill = spread_and_skill(*calibrated)
    assert np.sqrt(9 / 8 * spread / skill) == pytest.approx(1, abs=0.01)
    narrow, skill = spread_and_skill(
        calibrated[0].mean(0) + 0.5 * (calibrated[0] - calibrated[0].mean(0)), calibrated[1]
    )
    assert np.sqrt(9 / 8 * narrow / skill) == pytest.approx(0.5, abs=0.01)


def test_the_skill_of_an_ensemble_is_the_squared_vrmse_of_its_mean():
    rng = np.random.default_rng(2)
    members, truth = rng.normal(size=(4, 100, 1)), rng.normal(size=(100, 1))
    expected = ((members.mean(0) - truth) ** 2).mean() / (truth.var(ddof=1) + 1e-7)
    assert spread_and_skill(members, truth)[1] == pytest.approx(expected)


def test_ranks_are_flat_where_calibrated_and_u_shaped_where_members_are_too_alike(calibrated):
    members, truth = calibrated
    frequencies = rank_counts(members, truth) / truth.size
    np.testing.assert_allclose(frequencies, 1 / 9, atol=0.005)
    alike = rank_counts(members.mean(0) + 0.3 * (members - members.mean(0)), truth)
    assert min(alike[0], alike[-1]) > 2 * alike[4]


def test_ties_count_in_equal_parts():
    members = np.array([0.0, 1.0, 1.0, 2.0]).reshape(4, 1, 1)
    np.testing.assert_allclose(rank_counts(members, np.array([[1.0]])), [0, 1 / 3, 1 / 3, 1 / 3, 0])
    np.testing.assert_allclose(rank_counts(members, np.array([[3.0]])), [0, 0, 0, 0, 1])
