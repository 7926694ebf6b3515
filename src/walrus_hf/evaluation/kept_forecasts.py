"""Forecasts that are kept for pictures, in memory up to a bound and then as files of The Well."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..data.well_writer import save_well
from ..fields import Trajectory
from .forecasters import Frame

# Of the forecast's frames; later ones are left out.
KEPT_BYTES = 64 * 2**20


class KeptForecast:
    """The first frames of a forecast and their truth.

    Args:
        context: what is forecast.
        steps: lead times that will come; as many as fit into `KEPT_BYTES` are kept, at least one.
    """

    def __init__(self, context: Trajectory, steps: int) -> None:
        self.context, self.count = context, 0
        shapes = {name: values.shape[1:] for name, values in context.fields.items()}
        frame_bytes = 4 * sum(math.prod(shape) for shape in shapes.values())
        self.room = max(1, min(steps, KEPT_BYTES // frame_bytes))
        self.forecast, self.truth = (
            {name: np.empty((self.room, *shape), dtype=np.float32) for name, shape in shapes.items()} for _ in range(2)
        )

    def add(self, frame: Frame | str, truth: Mapping[str, np.ndarray]) -> None:
        """The mean of the members, where there is room."""
        if isinstance(frame, str) or self.count == self.room:
            return
        for name, values in truth.items():
            self.forecast[name][self.count] = frame[name].mean(axis=0)
            self.truth[name][self.count] = values
        self.count += 1

    def write(self, folder: Path, stem: str) -> None:
        """`<stem>-forecast.hdf5` and `<stem>-truth.hdf5`; nothing where there is no frame."""
        if not self.count:
            return
        folder.mkdir(exist_ok=True)
        for kind, frames in (("forecast", self.forecast), ("truth", self.truth)):
            fields = {name: values[: self.count] for name, values in frames.items()}
            time = self.context.time + self.context.num_frames * self.context.dt
            found = dataclasses.replace(self.context, fields=fields, time=time)
            save_well(found, folder / f"{stem}-{kind}.hdf5", overwrite=True)
