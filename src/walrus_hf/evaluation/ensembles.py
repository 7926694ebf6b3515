"""Scores of ensembles, by scoringrules: CRPS, spread and skill, rank histogram (extra `eval`)."""

from __future__ import annotations

import numpy as np

from ..metrics import EPS


def crps(members: np.ndarray, truth: np.ndarray) -> float:
    """CRPS over the standard deviation of the truth, mean over cells and components.

    The fair estimator, which does not reward small ensembles (Ferro 2014); the standard deviation as in VRMSE, so that
    for one member it is the normalised mean absolute error.

    Args:
        members: `(members, cells, components)`.
        truth: `(cells, components)`.
    """
    import scoringrules

    truth = np.asarray(truth, dtype=np.float64)
    members = np.moveaxis(np.asarray(members, dtype=np.float64), 0, -1)
    found = scoringrules.crps_ensemble(truth, members, estimator="fair", backend="numpy")
    return float((found.mean(axis=0) / np.sqrt(truth.var(axis=0, ddof=1) + EPS)).mean())


def spread_and_skill(members: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Variance of the members, and squared error of their mean, over the variance of the truth; means over components.

    Their ratio, `sqrt((m + 1) / m * spread / skill)`, is 1 for a calibrated ensemble (Fortin et al. 2014).

    Args:
        members: `(members, cells, components)`, at least two.
        truth: `(cells, components)`.
    """
    members, truth = np.asarray(members, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    variance = truth.var(axis=0, ddof=1) + EPS
    spread = members.var(axis=0, ddof=1).mean(axis=0) / variance
    skill = ((members.mean(axis=0) - truth) ** 2).mean(axis=0) / variance
    return float(spread.mean()), float(skill.mean())


def rank_counts(members: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """How many cells and components have 0, 1, ... members below the truth: (members + 1,), flat where calibrated.

    A truth that equals members counts in equal parts for the ranks that it could have.
    """
    below = (members < truth).sum(axis=0)
    ties = (members == truth).sum(axis=0)
    share = 1.0 / (ties + 1)
    ranks = np.arange(len(members) + 1).reshape(-1, *[1] * truth.ndim)
    inside = (below <= ranks) & (ranks <= below + ties)
    return (inside * share).reshape(len(ranks), -1).sum(axis=1)
