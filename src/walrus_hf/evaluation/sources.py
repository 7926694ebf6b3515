"""What is evaluated: the trajectories of a scenario, read frame by frame, and the line that says why one cannot be.

source (name, file, folder, URL) -> `EvaluatedScenario` -> `EvaluatedTrajectory` -> context, then truth in chunks
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..data.fetching import read_arrays
from ..data.flowbench import load_flowbench
from ..data.manifest import FileManifest, Manifest
from ..data.remote import join_inside
from ..data.scenarios import SCENARIOS, Scenario
from ..data.source_files import open_source
from ..data.well import load_well
from ..fields import BoundaryCondition, Trajectory
from .protocol import GROUP, Protocol

# Frames that forecasters are given, at most: more than any model here reads.
CONTEXT_FRAMES = 16
# Truth is read in chunks of about this size, for all trajectories of a batch.
CHUNK_BYTES = 16 * 2**20


@dataclasses.dataclass(frozen=True)
class EvaluatedTrajectory:
    """One trajectory and where its forecast begins. `number` counts those of the scenario, from 0."""

    number: int
    file: int
    row: int
    start: int
    steps: int


class EvaluatedScenario:
    """The trajectories of one source.

    Args:
        name: safe as part of a file name.
        source: what was asked for.
        manifest: its files.
        scenario: the published one that it is, if any.
        protocol: says how many trajectories, and where forecasts begin.
    """

    def __init__(
        self, name: str, source: str, manifest: Manifest, scenario: Scenario | None, protocol: Protocol
    ) -> None:
        self.name, self.source, self.manifest, self.scenario = name, source, manifest, scenario
        self.split = _split_of(manifest, source, protocol.split)
        self.notes: list[str] = []
        self.stride = protocol.frame_stride * (1 if scenario is None else scenario.time_stride)
        found = [(file, row) for file, entry in enumerate(manifest.files) for row in range(entry.trajectories)]
        self.trajectories = []
        self.frames = [-(-manifest.files[file].frames // self.stride) for file, _ in found][: protocol.max_trajectories]
        for number, ((file, row), frames) in enumerate(zip(found, self.frames)):
            if frames >= 3:
                start, steps = protocol.start_and_steps(frames)
                self.trajectories.append(EvaluatedTrajectory(number, file, row, start, steps))
        self._note_lengths(protocol)
        self._note_what_differs()
        self._open = functools.lru_cache(maxsize=4)(manifest.open)

    def entry(self, trajectory: EvaluatedTrajectory) -> FileManifest:
        return self.manifest.files[trajectory.file]

    def batches(self, size: int, done: set[int]) -> Iterator[list[EvaluatedTrajectory]]:
        """Trajectories that are still to do, at most `size` alike ones at a time, none across a group of jitter."""
        batch: list[EvaluatedTrajectory] = []
        for trajectory in self.trajectories:
            if trajectory.number in done:
                continue
            if batch and (len(batch) == size or self._kind(batch[0]) != self._kind(trajectory)):
                yield batch
                batch = []
            batch.append(trajectory)
        if batch:
            yield batch

    def _kind(self, trajectory: EvaluatedTrajectory) -> tuple[Any, ...]:
        """What trajectories of one batch have in common."""
        entry = self.entry(trajectory)
        fields = sorted((f.name, f.rank, f.time_varying) for f in entry.fields)
        return (
            trajectory.number // GROUP, trajectory.start, trajectory.steps, entry.axes, entry.grid,
            entry.boundaries_of(trajectory.row), entry.grid_type, fields, entry.geometry is None,
        )  # fmt: skip

    def context(self, trajectory: EvaluatedTrajectory) -> Trajectory:
        """The frames before the start, at most `CONTEXT_FRAMES`.

        Raises:
            ValueError: a file that cannot be used.
        """
        entry, first = self.entry(trajectory), max(trajectory.start - CONTEXT_FRAMES, 0)
        begin, frames = first * self.stride, (trajectory.start - 1 - first) * self.stride + 1
        url = self.manifest.url(trajectory.file)
        if entry.format == "flowbench":
            geometry = None if entry.geometry is None else join_inside(self.manifest.root, entry.geometry)
            found = load_flowbench(url, begin, frames, geometry)
        else:
            found = load_well(url, trajectory.row, begin, frames)
        return dataclasses.replace(
            found,
            fields={name: values[:: self.stride] for name, values in found.fields.items()},
            dt=found.dt * self.stride,
            ensemble=None,
        )

    def truth(self, trajectory: EvaluatedTrajectory, first: int, stop: int) -> dict[str, np.ndarray]:
        """Fields `(stop - first, *grid, ...)` at the lead times `first + 1` to `stop`."""
        entry = self.entry(trajectory)
        begin = (trajectory.start + first) * self.stride
        end = (trajectory.start + stop - 1) * self.stride + 1
        arrays = read_arrays(entry, *self._open(trajectory.file), trajectory.row, begin, end)
        return {f.name: arrays[f.name][:: self.stride] for f in entry.fields if f.time_varying}

    def chunk_frames(self, batch: Sequence[EvaluatedTrajectory]) -> int:
        """Frames of truth that are read at a time."""
        entry = self.entry(batch[0])
        if entry.format == "flowbench":  # an archive is always read from its front
            return batch[0].steps
        size = sum(field.frame_bytes for field in entry.fields if field.time_varying) or 1  # reading refuses none
        return max(1, min(batch[0].steps, CHUNK_BYTES // (size * len(batch) * self.stride)))

    def identity(self) -> dict[str, Any]:
        """What must be the same where an evaluation goes on."""
        files = [[entry.path, entry.size, entry.version] for entry in self.manifest.files]
        return {"name": self.name, "source": self.source, "root": self.manifest.root, "files": files}

    def describe(self) -> dict[str, Any]:
        """The part of results.json that follows from the files alone."""
        entry = self.manifest.files[0]
        scenario = self.scenario
        starts = [t.start for t in self.trajectories]
        return {
            "source": self.source,
            "split": self.split,
            "title": None if scenario is None else scenario.title,
            "grid": list(entry.grid),
            "axes": list(entry.axes),
            "boundary_conditions": {
                axis: [BoundaryCondition(side).name.lower() for side in sides]
                for axis, sides in zip(entry.axes, entry.boundaries_of(0))
            },
            "frames": [min(self.frames), max(self.frames)],
            "start": max(starts, key=starts.count) if starts else None,
            "steps": max((t.steps for t in self.trajectories), default=0),
            "transforms": {
                "zero_fields": [] if scenario is None else list(scenario.zero_fields),
                "field_names": {} if scenario is None else dict(scenario.field_names),
                "time_stride": self.stride,
            },
        }

    def _note_lengths(self, protocol: Protocol) -> None:
        short = len(self.frames) - len(self.trajectories)
        if short:
            self.notes.append(
                f"{short} of {len(self.frames)} trajectories are too short to forecast: expected at least 3 frames, "
                f"found {min(self.frames)}"
            )
        for start in sorted({t.start for t in self.trajectories} - {protocol.start}):
            moved = [t for t in self.trajectories if t.start == start]
            self.notes.append(
                f"start moved from frame {protocol.start} to {start} in {len(moved)} of {len(self.frames)} "
                f"trajectories, which have {self.frames[moved[0].number]} frames"
            )
        self._note_windows(protocol)
        grids = sorted({entry.grid for entry in self.manifest.files})
        if len(grids) > 1:
            self.notes.append(f"files on {len(grids)} grids, {', '.join(' x '.join(map(str, g)) for g in grids)}")

    def _note_windows(self, protocol: Protocol) -> None:
        """Windows that not all trajectories cover, and how to reach more of them."""
        steps = [trajectory.steps for trajectory in self.trajectories]
        uncovered: dict[int, list[str]] = {}
        for name, (_, last) in protocol.windows.items():
            uncovered.setdefault(sum(n >= last for n in steps), []).append(name)
        for covered, names in sorted(uncovered.items()):
            if covered < len(steps):
                self.notes.append(
                    f"window{'s' * (len(names) > 1)} {', '.join(names)}: covered by {covered} of {len(steps)} "
                    f"trajectories, the shortest of which have {min(steps)} steps from their start"
                )
        longest = max(steps, default=0)
        within = {name: last for name, (_, last) in protocol.windows.items() if longest < last <= max(self.frames) - 2}
        if steps and within and protocol.steps is None:
            self.notes.append(f"--steps {max(within.values())} would begin earlier and cover {', '.join(within)}")

    def _note_what_differs(self) -> None:
        """From the published scenario that this is."""
        if self.scenario is None:
            return
        expected = set(self.scenario.fields) | set(self.scenario.constant_fields)
        missing = expected - {f.name for entry in self.manifest.files for f in entry.fields}
        if missing:
            self.notes.append(f"missing in the data: {', '.join(sorted(missing))}, which {self.scenario.title} has")
        grid = self.manifest.files[0].grid
        if grid != self.scenario.grid:
            there, here = (" x ".join(map(str, cells)) for cells in (self.scenario.grid, grid))
            self.notes.append(f"{self.scenario.title} was published on {there}, these data are on {here}")


def open_scenarios(
    sources: Sequence[str | os.PathLike], protocol: Protocol, base_path: str | os.PathLike | None = None
) -> list[EvaluatedScenario]:
    """One for each source, or more where its files differ in axes or fields; names are made unique.

    Raises:
        ValueError, OSError: a source that is not there or cannot be used.
    """
    scenarios: list[EvaluatedScenario] = []
    names: set[str] = set()
    for source in sources:
        manifest, asked = open_source(source, protocol.split, base_path)
        stem = re.sub(r"\.(hdf5|h5|npz|json)$", "", os.fspath(source).rstrip("/").rpartition("/")[2])
        parts = _alike_parts(manifest)
        for part in parts:
            scenario = asked or published_scenario(part)
            own = stem if len(parts) == 1 else f"{stem}-{part.files[0].dataset_name}"
            name = _unique(own if scenario is None else scenario.name, names)
            scenarios.append(EvaluatedScenario(name, os.fspath(source), part, scenario, protocol))
    return scenarios


def _split_of(manifest: Manifest, source: str, split: str) -> str | None:
    """The split that files were read from; None where they have none, as a single file, or do not tell it."""
    named = manifest.scenario is not None and not source.endswith(".json")  # a manifest may be of any split
    return split if named or manifest.root.rstrip("/").endswith(f"data/{split}") else None


def _alike_parts(manifest: Manifest) -> list[Manifest]:
    """The files of a source with the same axes and fields, in order of their first."""
    parts: dict[Any, list[FileManifest]] = {}
    for entry in manifest.files:
        fields = sorted((field.name, field.rank, field.time_varying) for field in entry.fields)
        parts.setdefault((entry.axes, tuple(fields)), []).append(entry)
    return [dataclasses.replace(manifest, files=tuple(files)) for files in parts.values()]


def _unique(wanted: str, names: set[str]) -> str:
    """A name that is safe in file names, with a number where it is taken."""
    name = stem = re.sub(r"[^A-Za-z0-9_.-]", "_", wanted) or "data"
    number = 1
    while name in names:
        number += 1
        name = f"{stem}-{number}"
    names.add(name)
    return name


def published_scenario(manifest: Manifest) -> Scenario | None:
    """The scenario that files given by their path are of: the same data set name, axes, grid and fields."""
    first = manifest.files[0]
    scenario = SCENARIOS.get(first.dataset_name)
    varying = {field.name: field.rank for field in first.fields if field.time_varying}
    found = (first.axes, first.grid, varying)
    if scenario is None or found != (scenario.axes, scenario.grid, dict(scenario.fields)):
        return None
    return scenario


def digest(context: Trajectory) -> str:
    """Tells trajectories apart: a hash of the last given frame."""
    found = hashlib.sha256()
    for name in sorted(context.fields):
        found.update(name.encode())
        found.update(np.ascontiguousarray(context.fields[name][-1], dtype="<f4").tobytes())
    return found.hexdigest()[:16]
