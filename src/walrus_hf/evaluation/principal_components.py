"""Principal components with linear dynamics, fitted to the batches of a stream."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.collator import collate
from ..fields import Trajectory
from ..hub import tensors_digest
from ..processing_walrus import WalrusProcessor
from .baseline_folders import save_folder

# Singular values and spreads below this part of the largest one are noise of float32.
RANK_TOLERANCE = 1e-6


class PrincipalComponents:
    """Principal components of the frames of a data set, and a ridge regression of their next change.

    The regression sees the components of the last frames; forecasts are the last frame and the change that the
    components say. Fields are brought to one size by their root mean square over the data set.

    One data set of one grid, with `stride_range=(1, 1)`: the map is that of one time step.

    Args:
        components: how many at most.
        processor: names, logarithms and global scales, the same as the stream's; None: the published vocabulary.
        seed: of the randomised decomposition.
    """

    name = "pca"

    def __init__(self, components: int = 64, processor: WalrusProcessor | None = None, seed: int = 0):
        if components < 1:
            raise ValueError(f"components: expected at least 1, found {components}")
        self.components, self.seed = components, seed
        self.processor = processor or WalrusProcessor()
        self.frames = 0
        self.layout: dict[str, Any] = {}  # names and grid
        self.arrays: dict[str, np.ndarray] = {}

    @property
    def parameters(self) -> int:
        return sum(array.size for array in self.arrays.values())

    def fit(
        self,
        stream: Iterable[Mapping[str, Any]],
        seconds: float | None = None,
        windows: int = 2048,
        max_bytes: int = 2**28,
    ) -> None:
        """Read windows for some seconds, at most `windows` of them and `max_bytes` of frames; then solve.

        Raises:
            ImportError: scikit-learn is missing.
            ValueError: batches that differ in fields, grid or time step.
        """
        try:
            from sklearn.decomposition import PCA
            from sklearn.linear_model import RidgeCV
            from sklearn.model_selection import GroupKFold
        except ImportError:
            raise ImportError("principal components need the extra `eval`: pip install 'walrus-hf[eval]'") from None
        read = self._read(stream, seconds, windows, max_bytes)
        frames = np.concatenate([part for part, _ in read])  # (windows, T, channels, cells)
        groups = [trajectory for part, trajectories in read for trajectory in trajectories]
        scales = np.sqrt(np.mean(np.square(frames, dtype=np.float64), axis=(0, 1, 3)))  # (channels,)
        scales[scales == 0] = 1.0
        flat = (frames / scales[:, None]).reshape(-1, frames.shape[2] * frames.shape[3])
        pca = PCA(min(self.components, *flat.shape), random_state=self.seed)
        codes = pca.fit_transform(flat)
        spread = codes.std(axis=0)
        if not spread[0]:
            raise ValueError("stream: expected frames that change, found equal ones")
        codes = codes[:, spread > RANK_TOLERANCE * spread[0]] / spread[0]
        codes = codes.reshape(*frames.shape[:2], -1)  # (windows, T, components)
        # Windows of one trajectory are too alike to judge a regression by each other.
        folds = GroupKFold(min(5, len(set(groups))))
        given, change = codes[:, :-1].reshape(len(codes), -1), codes[:, -1] - codes[:, -2]
        regression = RidgeCV(
            np.logspace(-10, 4, 8), cv=list(folds.split(given, change, groups)), scoring="neg_mean_squared_error"
        )
        regression.fit(given, change)
        self.frames = frames.shape[1] - 1
        self.arrays = {
            "scales": scales, "mean": pca.mean_, "components": pca.components_[: codes.shape[2]], "unit": spread[:1],
            "coefficients": regression.coef_, "intercept": regression.intercept_,
        }  # fmt: skip

    def predict(self, context: Trajectory, steps: int) -> Trajectory:
        if not self.arrays:
            raise ValueError("pca: expected a fitted baseline; call fit(stream, seconds) or load one")
        check_context(context, steps, self.frames)
        recent = context.frames(context.num_frames - self.frames)
        inputs = self.processor(recent)
        values, real = inputs["field_values"], _real(inputs)
        found = self._layout_of(inputs)
        if found != self.layout:
            raise ValueError(f"pca: expected the fields and the grid it was fitted to, {self.layout}, found {found}")
        a = self.arrays
        frames = values[0, :, real].flatten(2).double().numpy() / a["scales"][:, None]  # (T, channels, cells)
        frames = frames.reshape(len(frames), -1)
        codes = (frames - a["mean"]) @ a["components"].T / a["unit"]  # (T, components)
        first = codes[-1]
        forecast = torch.zeros(1, steps, *values.shape[2:])
        with np.errstate(over="ignore", invalid="ignore"):  # a forecast that grows beyond all bounds
            for step in range(steps):
                change = a["coefficients"] @ codes.reshape(-1) + a["intercept"]
                codes = np.concatenate([codes[1:], codes[-1:] + change])
                frame = frames[-1] + ((codes[-1] - first) * a["unit"]) @ a["components"]
                frame = frame.reshape(len(a["scales"]), -1) * a["scales"][:, None]
                frame = torch.from_numpy(frame if np.isfinite(frame).all() else np.full_like(frame, np.nan))
                forecast[0, step, real] = frame.float().unflatten(1, values.shape[3:])
        return self.processor.postprocess(forecast, recent)

    def save(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write a folder for `load_baseline`."""
        if not self.arrays:
            raise ValueError("pca: expected a fitted baseline to save; call fit(stream, seconds) first")
        settings = {"components": self.components, "frames": self.frames, "layout": self.layout}
        save_folder(folder, self.name, settings, self._tensors(), self.processor, [], overwrite)

    def fingerprint(self) -> str:
        """A digest of what was fitted."""
        return tensors_digest(sorted(self._tensors().items()))

    def _tensors(self) -> dict[str, Tensor]:
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in self.arrays.items()}

    @classmethod
    def restore(
        cls, settings: dict[str, Any], tensors: dict[str, Tensor], processor: WalrusProcessor
    ) -> PrincipalComponents:
        """The baseline of a saved folder."""
        baseline = cls(settings["components"], processor)
        baseline.frames, baseline.layout = settings["frames"], settings["layout"]
        baseline.arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        return baseline

    def _read(
        self, stream: Iterable[Mapping[str, Any]], seconds: float | None, windows: int, max_bytes: int
    ) -> list[tuple[np.ndarray, list[str]]]:
        """Frames of each batch `(B, T + 1, channels, cells)`, and the trajectory that each row is from."""
        read: list[tuple[np.ndarray, list[str]]] = []
        first: dict[str, Any] = {}
        begin, size, count = time.monotonic(), 0, 0
        for batch in stream:
            inputs, origin = collate(batch), batch.get("window", [])
            strides = sorted({window["stride"] for window in origin})
            if len(strides) > 1:
                raise ValueError(
                    f"stream: expected windows of one time step for principal components, found strides {strides}; "
                    "load it with stride_range=(1, 1)"
                )
            found = {**self._layout_of(inputs), "strides": strides}
            first = first or found
            if found != first:
                raise ValueError(
                    f"stream: expected windows of one data set, grid and time step for principal components, found "
                    f"{first} and {found}; load one source with stride_range=(1, 1)"
                )
            whole = torch.cat([inputs["field_values"], inputs["labels"][:, -1:]], 1)[:, :, _real(inputs)]
            trajectories = [f"{window['file']} {window['trajectory']}" for window in origin]
            read.append((whole.flatten(3).numpy(), trajectories or [str(count + row) for row in range(len(whole))]))
            size, count = size + read[-1][0].nbytes, count + len(whole)
            if size >= max_bytes or count >= windows or (seconds and time.monotonic() - begin >= seconds):
                break
        if len({trajectory for _, trajectories in read for trajectory in trajectories}) < 2:
            raise ValueError(f"stream: expected windows of at least 2 trajectories, found {count} windows of fewer")
        first.pop("strides")
        self.layout = first
        return read

    def _layout_of(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        names = {i: name for name, i in self.processor.field2id.items()}
        ids = inputs["field_ids"][0, _real(inputs)].tolist()
        return {"fields": [names[i] for i in ids], "grid": list(inputs["field_values"].shape[3:])}


def check_context(context: Trajectory, steps: int, frames: int) -> None:
    """`ValueError` for too few frames to forecast from, NaN or infinity, or no step."""
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, found {steps}")
    if context.num_frames < frames:
        raise ValueError(f"context: expected at least {frames} frames to forecast from, found {context.num_frames}")
    context.check_finite()


def _real(inputs: Mapping[str, Any]) -> list[int]:
    """Channels that are no components added by lifting to 3D."""
    padded = inputs["padded_channels"][0]
    return torch.nonzero(~padded).flatten().tolist()
