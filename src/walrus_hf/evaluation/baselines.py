"""Baselines: what a model must beat. Each has `predict(context, steps)`; those that learn have `fit(stream, seconds)`.

Persistence, linear extrapolation and dynamic mode decomposition know nothing but the frames they are given. Principal
components with linear dynamics (`principal_components.py`), U-Net, FNO and U-FNO (`neural_baselines.py`) learn from the
batches of a stream.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from .. import metrics
from ..fields import Trajectory
from .baseline_folders import load_folder
from .principal_components import RANK_TOLERANCE, PrincipalComponents, check_context


class Persistence:
    """The last frame again and again."""

    name, parameters = "persistence", 0

    def predict(self, context: Trajectory, steps: int) -> Trajectory:
        return metrics.persistence(context, steps)


class LinearExtrapolation:
    """The last change again and again: frame k is `last + k * (last - the one before)`."""

    name, parameters = "linear_extrapolation", 0

    def predict(self, context: Trajectory, steps: int) -> Trajectory:
        check_context(context, steps, 2)
        fields = {}
        for name, values in context.fields.items():
            last = values[-1].astype(np.float64)
            change = last - values[-2]
            fields[name] = np.stack([(last + k * change).astype(kind_of(values)) for k in range(1, steps + 1)])
        return following(context, fields)


class DynamicModeDecomposition:
    """Exact dynamic mode decomposition (Tu et al. 2014, arXiv 1312.0041) of the frames that are given.

    The linear map that takes each frame to the next, in the space that the frames span, goes on from the last frame.
    Fields are brought to one size by their root mean square.

    Args:
        max_growth: bound of the modulus of the map's eigenvalues, the growth of a mode in a frame. Without it the few
            frames of a context often have a mode that outgrows all else; None leaves them as they are.
    """

    name, parameters = "dmd", 0

    def __init__(self, max_growth: float | None = 1.0):
        self.max_growth = max_growth

    def fingerprint(self) -> str:
        """Its one setting: what it knows else comes from the context."""
        return f"max_growth={self.max_growth}"

    def predict(self, context: Trajectory, steps: int) -> Trajectory:
        check_context(context, steps, 2)
        fields = {name: values.astype(np.float64) for name, values in context.fields.items()}
        if context.obstacle_mask is not None:
            for values in fields.values():
                values[:, context.obstacle_mask] = 0.0
        scales = {name: np.sqrt(np.mean(values**2)) or 1.0 for name, values in fields.items()}
        frames = np.concatenate([(v / scales[n]).reshape(len(v), -1) for n, v in fields.items()], axis=1)
        forecast = linear_forecast(frames, steps, self.max_growth)
        parts = np.split(forecast, np.cumsum([values[0].size for values in fields.values()])[:-1], axis=1)
        found = {}
        with np.errstate(over="ignore"):
            for (name, values), part in zip(context.fields.items(), parts):
                part *= scales[name]
                found[name] = part.reshape(steps, *values.shape[1:]).astype(kind_of(values))
        return following(context, found)


def linear_forecast(frames: np.ndarray, steps: int, max_growth: float | None = None) -> np.ndarray:
    """Frames `(T, n)` -> the next `(steps, n)`, by their exact dynamic mode decomposition."""
    before, after = frames[:-1].T, frames[1:].T  # (n, T - 1)
    u, singular, vt = np.linalg.svd(before, full_matrices=False)
    rank = int((singular > RANK_TOLERANCE * singular[0]).sum())
    if not rank:  # all frames are zero
        return np.repeat(frames[-1:], steps, axis=0)
    u, lift = u[:, :rank], after @ (vt[:rank].T / singular[:rank])  # coordinates -> the frame after: (n, rank)
    step, start = u.T @ lift, u.T @ frames[-1]  # the map between coordinates
    values, vectors = np.linalg.eig(step)
    if max_growth is not None and np.abs(values).max() > max_growth * (1 + RANK_TOLERANCE):
        bounded = values / np.maximum(np.abs(values) / max_growth, 1.0)
        step = np.real(vectors * bounded @ np.linalg.pinv(vectors))
    forecast = np.empty((steps, frames.shape[1]))
    with np.errstate(over="ignore", invalid="ignore"):
        for row in forecast:
            row[:] = lift @ start
            start = step @ start
    return forecast


def load_baseline(name_or_folder: str | Path, device: str | None = None) -> Any:
    """A baseline from the folder that its `save` wrote, or one that needs no training, by name.

    Args:
        name_or_folder: a folder, or `"persistence"`, `"linear_extrapolation"` or `"dmd"`.
        device: of networks; None takes a GPU if there is one.

    Raises:
        FileNotFoundError: no such folder, and no such name.
        ValueError: a folder that is damaged, or of another kind.
    """
    if str(name_or_folder) in WITHOUT_TRAINING and not Path(name_or_folder).exists():
        return WITHOUT_TRAINING[str(name_or_folder)]()
    folder = Path(name_or_folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{name_or_folder}: expected the folder of a trained baseline or one of {', '.join(WITHOUT_TRAINING)}"
        )
    kind, settings, tensors, processor = load_folder(folder)
    if kind == PrincipalComponents.name:
        return PrincipalComponents.restore(settings, tensors, processor)
    from .neural_baselines import ARCHITECTURES, NeuralBaseline

    if kind not in ARCHITECTURES:
        raise ValueError(f"{folder}: expected a baseline of {', '.join(('pca', *ARCHITECTURES))}, found {kind!r}")
    return NeuralBaseline.restore(kind, settings, tensors, processor, device)


WITHOUT_TRAINING: dict[str, type] = {
    kind.name: kind for kind in (Persistence, LinearExtrapolation, DynamicModeDecomposition)
}


def following(context: Trajectory, fields: dict[str, np.ndarray]) -> Trajectory:
    """Forecast arrays as the trajectory that follows `context`."""
    return dataclasses.replace(
        context, fields=fields, ensemble=None, time=context.time + context.num_frames * context.dt
    )


def kind_of(values: np.ndarray) -> np.dtype:
    """The dtype of a forecast: that of the field, or float32 for whole numbers and half precision."""
    return np.result_type(values.dtype, np.float32)
