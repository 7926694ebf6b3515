"""Scores of one forecast of one trajectory, added up step by step: nothing of the size of a frame is kept."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from ..fields import Trajectory, decimal_logarithm, fill_obstacles
from ..metrics import nrmse, vrmse
from . import ensembles, physics
from .forecasters import Frame

PER_STEP = ("vrmse", "nrmse", "correlation", "total", "truth_total")


class TrajectoryGrid:
    """What scores need to know of a trajectory: cells, spacing, boundaries, and its last frame before the forecast."""

    def __init__(self, context: Trajectory, log_fields: Collection[str], names: Mapping[str, str]) -> None:
        self.dims, self.grid = len(context.axes), context.grid
        self.obstacles = context.obstacle_mask
        self.free = np.ones(self.grid, bool) if self.obstacles is None else ~self.obstacles
        self.log_fields = log_fields
        self.edges = physics.octave_edges(self.grid)
        self.spacing, self.sides = physics.spacings(context), context.boundary_ids()
        self.last = {name: values[-1] for name, values in context.fields.items()}
        self.conserving = context.grid_type == "cartesian"  # on other grids cells differ in size
        self.divergence_fields = physics.divergence_fields(context, names)

    def transformed(self, name: str, values: np.ndarray) -> np.ndarray:
        if name not in self.log_fields:
            return values
        with np.errstate(divide="ignore", invalid="ignore"):
            return decimal_logarithm(values)

    def cells(self, values: np.ndarray) -> np.ndarray:
        """`(*grid, ...)` -> (free cells, components)."""
        return values[self.free].reshape(int(self.free.sum()), -1)

    def total_change(self, name: str, values: np.ndarray) -> float:
        return physics.total_change(values, self.last[name], self.free) if self.conserving else float("nan")

    def divergence(self, values: np.ndarray) -> float:
        return physics.relative_divergence(self._filled(values), self.spacing, self.sides)

    def power(self, values: np.ndarray) -> np.ndarray:
        return physics.band_power(self._filled(values), self.dims, self.edges)

    def _filled(self, values: np.ndarray) -> np.ndarray:
        """Zero inside obstacles."""
        return fill_obstacles(values, self.obstacles, components=values.ndim - self.dims)


class TruthFrame:
    """One frame of the truth as scores need it, made once for all forecasters.

    `fields` are as the model reads them: logarithms where it reads logarithms.
    """

    def __init__(self, fields: Mapping[str, np.ndarray], grid: TrajectoryGrid, with_spectra: bool) -> None:
        self.fields = {name: grid.transformed(name, values) for name, values in fields.items()}
        self.cells = {name: grid.cells(values) for name, values in self.fields.items()}
        self.variance = {n: float(np.var(x, axis=0, dtype=np.float64).max()) for n, x in self.cells.items()}
        self.varies = {name: bool(physics.varying(values).any()) for name, values in self.cells.items()}
        self.totals = {name: grid.total_change(name, values) for name, values in fields.items()}
        self.divergence = {name: grid.divergence(fields[name]) for name in grid.divergence_fields}
        self.power = {name: grid.power(values) for name, values in self.fields.items()} if with_spectra else None


class Scores:
    """Collects the scores of one forecaster on one trajectory; `record()` is plain numbers and lists.

    Args:
        grid: of the trajectory.
        fields: which are scored.
        steps: lead times that will come.
        spectra_steps: lead times, from 1, whose spectra are taken.
    """

    def __init__(
        self, grid: TrajectoryGrid, fields: Collection[str], steps: int, spectra_steps: Collection[int]
    ) -> None:
        self.grid, self.steps, self.spectra_steps = grid, steps, set(spectra_steps)
        self.values = {name: {kind: np.full(steps, np.nan) for kind in PER_STEP} for name in fields}
        self.varies = dict.fromkeys(fields, False)
        self.divergence = {
            name: {"truth": np.full(steps, np.nan), "forecast": np.full(steps, np.nan)}
            for name in grid.divergence_fields
            if name in self.values
        }
        self.spectra: dict[str, dict[str, dict[str, list[float]]]] = {name: {} for name in fields}
        self.members: dict[str, dict[str, list]] = {}
        self.failure: dict[str, Any] | None = None

    def add(self, step: int, frame: Frame | str, truth: TruthFrame) -> None:
        """Score lead time `step`, counted from 1; after a failure nothing more is counted."""
        for name in self.values:
            self.values[name]["truth_total"][step - 1] = truth.totals[name]
            self.varies[name] |= truth.varies[name]
        for name, found in self.divergence.items():
            found["truth"][step - 1] = truth.divergence[name]
        if self.failure is None:
            self.failure = self._failure(step, frame)
        if self.failure is not None or isinstance(frame, str):
            for name in self.values:
                self.values[name]["vrmse"][step - 1] = self.values[name]["nrmse"][step - 1] = np.inf
            return
        for name in self.values:
            self._add_field(step, name, frame[name], truth)

    def _failure(self, step: int, frame: Frame | str) -> dict[str, Any] | None:
        if isinstance(frame, str):
            return {"step": step, "reason": frame}
        for name in self.values:
            values = frame[name][:, self.grid.free]
            if not np.isfinite(values).all():
                return {"step": step, "reason": f"field {name!r} is not finite"}
            if name in self.grid.log_fields and not (values > 0).all():
                return {"step": step, "reason": f"field {name!r} is not positive, and has no logarithm"}
        return None

    def _add_field(self, step: int, name: str, members: np.ndarray, truth: TruthFrame) -> None:
        """`members` is (members, *grid, ...) in own units."""
        grid, found = self.grid, self.values[name]
        own = members[0] if len(members) == 1 else members.mean(axis=0)
        mean = grid.transformed(name, own)
        cells, true_cells = grid.cells(mean), truth.cells[name]
        found["vrmse"][step - 1] = vrmse(cells, true_cells, (0,)).mean()
        found["nrmse"][step - 1] = nrmse(cells, true_cells, (0,)).mean()
        found["correlation"][step - 1] = physics.correlation(cells, true_cells)
        found["total"][step - 1] = grid.total_change(name, own)
        if name in self.divergence:
            self.divergence[name]["forecast"][step - 1] = grid.divergence(own)
        every = [mean] if len(members) == 1 else [grid.transformed(name, member) for member in members]
        if step in self.spectra_steps and truth.power is not None:
            # Of the members, not of their mean, which is smoother than any of them.
            power = np.mean([grid.power(member) for member in every], axis=0)
            error = grid.power(np.subtract(mean, truth.fields[name], dtype=np.float64))
            kinds = {"error": error, "truth": truth.power[name], "forecast": power}
            self.spectra[name][str(step)] = {kind: values.tolist() for kind, values in kinds.items()}
        if len(members) > 1:
            self._add_members(name, np.stack([grid.cells(member) for member in every]), true_cells)

    def _add_members(self, name: str, members: np.ndarray, truth: np.ndarray) -> None:
        kept = self.members.setdefault(name, {"crps": [], "spread": [], "skill": [], "ranks": []})
        spread, skill = ensembles.spread_and_skill(members, truth)
        kept["crps"].append(ensembles.crps(members, truth))
        kept["spread"].append(spread)
        kept["skill"].append(skill)
        kept["ranks"].append(ensembles.rank_counts(members, truth).tolist())

    def record(self) -> dict[str, Any]:
        fields = {
            name: {kind: values.tolist() for kind, values in kinds.items()} for name, kinds in self.values.items()
        }
        times = {name: physics.correlation_time(self._correlations(name)) for name in self.values}
        divergence = {name: {k: v.tolist() for k, v in kinds.items()} for name, kinds in self.divergence.items()}
        return {
            "fields": fields, "correlation_time": times, "divergence": divergence,
            "spectra": {"edges": self.grid.edges.tolist(), "fields": self.spectra}, "members": self.members,
            "failure": self.failure,
        }  # fmt: skip

    def _correlations(self, name: str) -> np.ndarray:
        """A forecast that failed is not correlated any more, if its truth ever varies over the cells."""
        found = self.values[name]["correlation"].copy()
        if self.failure is not None and self.varies[name]:
            found[self.failure["step"] - 1 :] = 0.0
        return found
