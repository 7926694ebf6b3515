"""Bootstrap intervals against scipy's, and with forecasts that failed."""

import numpy as np
import pytest

from walrus_hf.evaluation import Protocol
from walrus_hf.evaluation.statistics import median_curve, summary


@pytest.mark.parametrize(("kind", "statistic"), [("median", np.median), ("mean", np.mean)])
def test_intervals_are_those_of_scipy(kind, statistic):
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(0).lognormal(size=41)
    found = summary(values, Protocol(resamples=4000, level=0.9))
    expected = stats.bootstrap(
        (values,), statistic, n_resamples=4000, confidence_level=0.9, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert found[kind] == pytest.approx(statistic(values))
    width = expected.high - expected.low
    assert found[f"{kind}_low"] == pytest.approx(expected.low, abs=0.1 * width)
    assert found[f"{kind}_high"] == pytest.approx(expected.high, abs=0.1 * width)


def test_the_same_protocol_draws_the_same_interval():
    values = np.random.default_rng(1).normal(size=9)
    assert summary(values, Protocol()) == summary(values, Protocol())
    assert summary(values, Protocol()) != summary(values, Protocol(bootstrap_seed=1))


def test_a_failed_forecast_counts_as_infinitely_wrong():
    found = summary(np.array([1.0, 2.0, 3.0, np.inf, 4.0]), Protocol())
    assert found["median"] == 3
    assert found["mean"] == np.inf
    assert np.isfinite(found["median_low"])
    assert found["median_high"] == np.inf
    assert summary(np.array([1.0, np.inf, np.inf]), Protocol())["median"] == np.inf


def test_one_trajectory_has_no_interval():
    found = summary(np.array([2.0]), Protocol())
    assert (found["median"], found["mean"]) == (2, 2)
    assert np.isnan([found["median_low"], found["mean_high"]]).all()


def test_a_curve_counts_the_trajectories_that_are_still_there():
    values = np.array([[1.0, 2.0, np.nan], [3.0, np.nan, np.nan]])
    middle, low, _ = median_curve(values, Protocol())
    np.testing.assert_array_equal(middle, [2, 2, np.nan])
    np.testing.assert_array_equal(np.isnan(low), [False, True, True])
