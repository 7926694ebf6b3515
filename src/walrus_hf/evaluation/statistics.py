"""Medians and means over trajectories, with bootstrap intervals."""

from __future__ import annotations

import numpy as np

from .protocol import Protocol


def draws(trajectories: int, protocol: Protocol) -> np.ndarray:
    """Which trajectories each resample holds: (resamples, trajectories), a function of the protocol and the number."""
    rng = np.random.default_rng(protocol.bootstrap_seed)
    return rng.integers(trajectories, size=(protocol.resamples, trajectories))


def interval(resampled: np.ndarray, level: float) -> np.ndarray:
    """Percentiles (2, ...) of a statistic of the resamples (resamples, ...); NaN where one of them is.

    Of the values themselves, never between two: one of them may be infinite.
    """
    tail = (1 - level) / 2
    return np.quantile(resampled, [tail, 1 - tail], axis=0, method="inverted_cdf")


def median(values: np.ndarray) -> np.ndarray:
    """Over the first axis; infinite where the upper half is."""
    with np.errstate(invalid="ignore"):
        return np.median(values, axis=0)


def mean(values: np.ndarray) -> np.ndarray:
    """Over the first axis; infinite where one value is, NaN where infinite ones differ in sign."""
    with np.errstate(invalid="ignore"):
        return values.mean(axis=0)


def summary(values: np.ndarray, protocol: Protocol) -> dict[str, float]:
    """Median and mean of values (trajectories,) with their intervals; a single trajectory has none."""
    found = {"median": float(median(values)), "mean": float(mean(values))}
    for kind, statistic in (("median", median), ("mean", mean)):
        low, high = np.nan, np.nan
        if len(values) > 1:
            low, high = interval(statistic(values[draws(len(values), protocol)].T), protocol.level)
        found |= {f"{kind}_low": float(low), f"{kind}_high": float(high)}
    return found


def median_curve(values: np.ndarray, protocol: Protocol) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Median and interval at each lead time of values (trajectories, steps), NaN where a trajectory has ended."""
    steps = values.shape[1]
    middle, low, high = np.full(steps, np.nan), np.full(steps, np.nan), np.full(steps, np.nan)
    for step in range(steps):
        there = values[~np.isnan(values[:, step]), step]
        if len(there):
            found = summary(there, protocol)
            middle[step], low[step], high[step] = found["median"], found["median_low"], found["median_high"]
    return middle, low, high
