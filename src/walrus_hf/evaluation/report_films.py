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

# Cells along the longer side of a picture, and frames of a film: the first that keep the page's films below MAX_PIXELS.
# A pixel is at most about a byte in a PNG and 4/3 in the page, so the films of a page have at most some 32 MB.
SIZES = ((128, 40), (96, 32), (64, 24), (48, 16), (32, 12), (24, 8))
MAX_PIXELS = 24_000_000
ALL_TRAJECTORIES = 3  # of the sizes: before pictures get coarser than those, only the first of each scenario is shown
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


Readable = tuple[Source, WellInfo]


@dataclasses.dataclass
class Films:
    """What `films` found.

    Attributes:
        by_scenario: the films, as the page's script reads them.
        notes: lines about files that could not be read.
        first_only: trajectories but the first of each scenario and forecaster were left out.
    """

    by_scenario: dict[str, list[dict[str, Any]]]
    notes: list[str]
    first_only: bool


def films(sources: Iterable[Source]) -> Films:
    """Films of the kept forecasts.

    A film is `trajectory`, `forecaster`, `dt`, `steps` (lead times in steps, one a frame), `every` (of how many cells
    one is shown), and `fields`: field -> view -> `label`, `unit`, `error` and `strips` (see `walrus_hf.films.Strip`).
    """
    readable: list[Readable] = []
    notes: list[str] = []
    for source in sources:
        try:
            readable.append((source, well_info(source.path("forecast"))))
        except READABLE as error:
            notes.append(_unreadable(source, error))
    chosen, (cells, frames) = _choose(readable)
    found: dict[str, list[dict[str, Any]]] = {}
    for source, info in chosen:
        try:
            found.setdefault(source.scenario, []).append(_film(source, info, cells, frames))
        except READABLE as error:
            notes.append(_unreadable(source, error))
    return Films({name: made for name, made in found.items() if made}, notes, len(chosen) < len(readable))


def _choose(readable: list[Readable]) -> tuple[list[Readable], tuple[int, int]]:
    """Which of the forecasts are shown, and in which size."""
    first = {(source.scenario, source.forecaster): (source, info) for source, info in reversed(readable)}
    few = [pair for pair in readable if pair in first.values()]
    for shown, sizes in ((readable, SIZES[:ALL_TRAJECTORIES]), (few, SIZES[ALL_TRAJECTORIES - 1 :])):
        for size in sizes:
            if sum(_pixels(info, *size) for _, info in shown) <= MAX_PIXELS:
                return shown, size
    return few, SIZES[-1]


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
