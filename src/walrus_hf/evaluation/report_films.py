"""Films of a report: frames of the kept forecasts, coarsened until the page has a reasonable size."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..data.well import WellInfo, load_well, well_info
from ..fields import Trajectory
from ..films import strips
from ..panels import View, planes, row_from

# Cells along the longer side of a picture, and frames of a film: the first that keep a page below MAX_PIXELS. A pixel
# costs about a byte in the page.
SIZES = ((128, 40), (96, 32), (64, 24), (48, 16), (32, 12), (24, 8))
MAX_PIXELS = 24_000_000
LINE_FRAMES = 20  # of one-dimensional data, whose frames are plots
READABLE = (OSError, ValueError, KeyError)


@dataclasses.dataclass
class Source:
    """A kept forecast of a results folder, and the page's name of what made it."""

    folder: Path
    entry: Mapping[str, Any]
    forecaster: str

    @property
    def scenario(self) -> str:
        return self.entry["scenario"]

    def path(self, kind: str) -> Path:
        """Of the `forecast` or the `truth`; results folders are data, so a name may not lead out of them."""
        path = (self.folder / str(self.entry[kind])).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise ValueError(f"{self.entry[kind]!r} leads out of the results")
        return path


def films(sources: Iterable[Source]) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """Films by scenario, as the page's script reads them, and lines about files that could not be read.

    A film is `trajectory`, `forecaster`, `dt`, `steps` (lead times in steps, one a frame), `every` (of how many cells
    one is shown), and `fields`: field -> view -> `label`, `unit`, `error` and `strips` (see `walrus_hf.films.Strip`).
    """
    readable, notes = [], []
    for source in sources:
        try:
            readable.append((source, well_info(source.path("forecast"))))
        except READABLE as error:
            notes.append(_unreadable(source, error))
    cells, frames = next(size for size in (*SIZES, SIZES[-1]) if _fits([i for _, i in readable], *size))
    found: dict[str, list[dict[str, Any]]] = {}
    for source, info in readable:
        try:
            found.setdefault(source.scenario, []).append(_film(source, info, cells, frames))
        except READABLE as error:
            notes.append(_unreadable(source, error))
    return {name: made for name, made in found.items() if made}, notes


def _fits(infos: Iterable[WellInfo], cells: int, frames: int) -> bool:
    if (cells, frames) == SIZES[-1]:
        return True
    return sum(_pixels(info, cells, frames) for info in infos) <= MAX_PIXELS


def _pixels(info: WellInfo, cells: int, frames: int) -> int:
    """Of the truth, the forecast and the error of all fields."""
    if len(info.axes) == 1:  # plots compress well
        return len(info.fields) * LINE_FRAMES * 20_000
    sides = sorted(-(-n // _every(info.grid, cells)) for n in info.grid)
    return len(info.fields) * len(_views(info.axes)) * 3 * min(info.frames, frames) * sides[-1] * sides[-2]


def _every(grid: Iterable[int], cells: int) -> int:
    return -(-max(grid) // cells)


def _views(axes: tuple[str, ...]) -> list[View]:
    if len(axes) < 3:
        return [View()]
    return [*(View("slice", axis) for axis in reversed(axes)), View("maximum", axes[-1])]


def _film(source: Source, info: WellInfo, cells: int, frames: int) -> dict[str, Any]:
    every, count = (_every(info.grid, cells), frames) if len(info.axes) > 1 else (1, LINE_FRAMES)
    forecast, truth = load_well(source.path("forecast")), load_well(source.path("truth"))
    shown = np.unique(np.linspace(0, forecast.num_frames - 1, min(count, forecast.num_frames)).round().astype(int))
    predicted, real = _some_frames(forecast, shown), _some_frames(truth, shown)
    return {
        "trajectory": source.entry["trajectory"], "forecaster": source.forecaster, "dt": forecast.dt, "every": every,
        "steps": (shown + 1).tolist(),
        "fields": {name: dict(_field(name, predicted, real, every)) for name in forecast.fields},
    }  # fmt: skip


def _some_frames(trajectory: Trajectory, frames: np.ndarray) -> Trajectory:
    fields = {name: values[frames] for name, values in trajectory.fields.items()}
    return dataclasses.replace(trajectory, fields=fields, ensemble=None)


def _field(name: str, forecast: Trajectory, truth: Trajectory, every: int) -> Iterator[tuple[str, dict[str, Any]]]:
    if name not in truth.fields or truth.fields[name].shape != forecast.fields[name].shape:
        raise ValueError(f"the truth has no field {name!r} of the forecast's shape")
    for view in _views(forecast.axes):
        # Every n-th cell and not the mean of n cells, which would hide what differs from cell to cell.
        cut = (slice(None), *[slice(None, None, every)] * min(len(forecast.axes), 2))
        seen = [values[cut] for values in planes(name, forecast, truth, view)]
        row = row_from(name, seen, forecast)
        title = view.title(forecast.axes) if len(forecast.axes) == 3 else ""
        made = [dataclasses.asdict(strip) for strip in strips(row, forecast)]
        yield title, {"label": row.label, "unit": row.unit, "error": row.error_label, "strips": made}


def _unreadable(source: Source, error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{source.scenario}, trajectory {source.entry.get('trajectory')}: no pictures ({text})"
