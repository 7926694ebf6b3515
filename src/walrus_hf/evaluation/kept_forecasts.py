"""Forecasts that are kept for pictures, in memory up to a bound and then as files of The Well."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..data.well_writer import save_well
from ..fields import Trajectory
from .forecasters import Frame

# Of the forecast's frames; later ones are left out.
KEPT_BYTES = 128 * 2**20


class KeptForecast:
    """The first frames of a forecast and their truth.

    Args:
        context: what is forecast.
    """

    def __init__(self, context: Trajectory) -> None:
        self.context = context
        self.forecast: list[dict[str, np.ndarray]] = []
        self.truth: list[dict[str, np.ndarray]] = []
        self.bytes_left = KEPT_BYTES

    def add(self, frame: Frame | str, truth: Mapping[str, np.ndarray]) -> None:
        """The mean of the members, where there is room."""
        if isinstance(frame, str):
            return
        size = sum(values[0].nbytes for values in frame.values())
        self.bytes_left -= size
        if self.bytes_left < 0 and self.forecast:
            self.bytes_left = 0
            return
        self.forecast.append({name: values.mean(axis=0, dtype=np.float32) for name, values in frame.items()})
        self.truth.append({name: np.array(values, dtype=np.float32) for name, values in truth.items()})

    def write(self, folder: Path, stem: str) -> None:
        """`<stem>-forecast.hdf5` and `<stem>-truth.hdf5`; nothing where there is no frame."""
        if not self.forecast:
            return
        folder.mkdir(exist_ok=True)
        for kind, frames in (("forecast", self.forecast), ("truth", self.truth)):
            fields = {name: np.stack([frame[name] for frame in frames]) for name in frames[0]}
            time = self.context.time + self.context.num_frames * self.context.dt
            found = dataclasses.replace(self.context, fields=fields, time=time)
            save_well(found, folder / f"{stem}-{kind}.hdf5", overwrite=True)
