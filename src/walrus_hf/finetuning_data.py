"""Windows of a user's simulations for fine-tuning, whatever format they are in, and their split into two parts."""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .adapters import near_hint, near_names
from .data.collator import collate
from .data.fetching import read_arrays
from .data.index import ScenarioIndex, template_of
from .data.manifest import Manifest
from .data.reader import BatchReader
from .data.scenarios import Scenario
from .data.source_files import locate_source, open_source
from .data.statistics import RunningStatistics
from .data.streams import scenario_processor
from .data.well import OBSTACLE_MASK
from .fields import FLAG_NAMES, Trajectory, decimal_logarithm, fill_obstacles
from .finetuning_arrays import is_own_arrays, load_own_arrays
from .processing_walrus import WalrusProcessor

Source = str | os.PathLike | Trajectory | Sequence[Trajectory]
# Trajectories that are no larger than this together are read once and kept.
CACHE_BYTES = 2**30
END_BYTES = 2**16  # of a file, read at both ends to tell it from another


class Windows(abc.ABC):
    """All windows of a source: input frames and the frame after them, `stride` apart.

    Args:
        name: what messages and cards call the source.
        processor: vocabulary, own names, logarithms and scales.
        frames: input frames of a window.
        stride: distance of a window's frames.

    Attributes:
        span: frames from the first to the last of a window.
        rows: `(windows, 2)`: number of the trajectory, first frame.
    """

    rows: np.ndarray

    def __init__(self, name: str, processor: WalrusProcessor, frames: int, stride: int) -> None:
        self.name, self.processor, self.frames, self.stride = name, processor, frames, stride
        self.span = frames * stride

    @abc.abstractmethod
    def read(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """Model inputs with `labels`, a row for each window; `ValueError` names what cannot be used and where."""

    @abc.abstractmethod
    def trajectory(self, number: int) -> Trajectory:
        """A whole trajectory, in its own names and units."""


class TrajectoryWindows(Windows):
    """Windows of trajectories in memory, or memory-mapped."""

    def __init__(self, found: list[tuple[str, Trajectory]], *settings: Any) -> None:
        super().__init__(*settings)
        self.places, self.trajectories = [place for place, _ in found], [trajectory for _, trajectory in found]
        counts = [trajectory.num_frames - self.span for trajectory in self.trajectories]
        self.rows = np.array([(number, start) for number, count in enumerate(counts) for start in range(count)])

    def read(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        rows = []
        for number, start in self.rows[list(numbers)].tolist():
            whole, kept = self.trajectories[number], slice(start, start + self.span + 1, self.stride)
            fields = {name: np.array(values[kept]) for name, values in whole.fields.items()}
            try:
                inputs = dict(self.processor(dataclasses.replace(whole, fields=fields, ensemble=None)))
            except ValueError as error:
                raise ValueError(
                    f"{self.places[number]}, window of frames {start} to {start + self.span}: {error}"
                ) from error
            values = inputs.pop("field_values")
            rows.append({"field_values": values[:, :-1], "labels": values[:, 1:], **inputs})
        return collate(rows)

    def trajectory(self, number: int) -> Trajectory:
        return self.trajectories[number]


class IndexedWindows(Windows):
    """Windows of files of The Well and what else streams read, local or far away."""

    def __init__(self, manifest: Manifest, zeros: tuple[str, ...], *settings: Any) -> None:
        super().__init__(*settings)
        strides = (self.stride, self.stride)
        self.index = ScenarioIndex(self.name, manifest, self.frames + 1, strides, self.processor, zeros)
        files, trajectories, starts = self.index.locate(np.arange(self.index.num_windows))
        self.pairs = sorted(set(zip(files.tolist(), trajectories.tolist())))
        number_of = {pair: number for number, pair in enumerate(self.pairs)}
        owners = [number_of[pair] for pair in zip(files.tolist(), trajectories.tolist())]
        self.rows = np.stack([owners, starts], 1)
        self.reader = BatchReader([self.index], CACHE_BYTES)
        frames = sum(entry.frames * entry.trajectories for entry in manifest.files)
        self.is_kept = frames * self.index.frame_bytes <= CACHE_BYTES

    def read(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        descriptor: dict[str, Any] = {"source": 0, "windows": [], "parts": []}
        for owner, start in self.rows[list(numbers)].tolist():
            file, trajectory = self.pairs[owner]
            descriptor["windows"].append([file, trajectory, start, self.stride])
            descriptor["parts"].append([file, trajectory, [[0, self.index.manifest.files[file].frames]]])
        if not self.is_kept:
            del descriptor["parts"]  # the frames of each window, and no others
        return collate(self.reader.read(descriptor))

    def trajectory(self, number: int) -> Trajectory:
        file, trajectory = self.pairs[number]
        entry, index = self.index.manifest.files[file], self.index
        arrays = read_arrays(entry, *index.manifest.open(file, index.storage_options), trajectory, 0, entry.frames)
        arrays |= {name: np.zeros_like(arrays[name]) for name in index.zero_fields}
        mask = arrays.pop(OBSTACLE_MASK)[0] if OBSTACLE_MASK in arrays else None
        varying = {field.name for field in entry.fields if field.time_varying}
        return dataclasses.replace(
            index.template,
            fields={name: values for name, values in arrays.items() if name in varying},
            constant_fields={name: values[0] for name, values in arrays.items() if name not in varying},
            obstacle_mask=mask,
        )


@dataclasses.dataclass
class Opened:
    """A source whose names, grid and lengths are known, before any window is read.

    Attributes:
        name: of the source.
        template: its fields, axes and boundaries; the values may mean nothing.
        lengths: frames of each trajectory, with the place of it.
        scenario: whose name the source was given by.
        found: the trajectories, where they are not in files that streams read.
        manifest: the files, where they are.
    """

    name: str
    template: Trajectory
    lengths: list[tuple[str, int]]
    scenario: Scenario | None = None
    found: list[tuple[str, Trajectory]] = dataclasses.field(default_factory=list)
    manifest: Manifest | None = None

    def windows(self, frames: int, stride: int, processor: WalrusProcessor) -> Windows:
        """All windows; `ValueError` where a trajectory has none."""
        place, shortest = min(self.lengths, key=lambda length: length[1])
        if shortest <= frames * stride:
            raise ValueError(
                f"{place}: expected at least {frames * stride + 1} frames for {frames} input frames {stride} apart and "
                f"the frame after them, found {shortest}; ask for fewer frames or a smaller frame_stride"
            )
        settings = (self.name, processor, frames, stride)
        if self.manifest is None:
            return TrajectoryWindows(self.found, *settings)
        zeros = () if self.scenario is None else self.scenario.zero_fields
        return IndexedWindows(self.manifest, zeros, *settings)

    def identity(self) -> dict[str, Any]:
        """What must be the same where a run goes on: the files, or how the trajectories begin and end."""
        if self.manifest is None:
            parts: list[Any] = [_ends_digest(trajectory) for _, trajectory in self.found]
        else:
            parts = [_file_identity(self.manifest, number) for number in range(len(self.manifest.files))]
        return {"name": self.name, "parts": parts}


def open_data(source: Source, split: str = "train") -> Opened:
    """Look at a source.

    Args:
        source: a file, folder or URL of The Well's format, a scenario's name, a netCDF file or a folder of them, a YAML
            file that describes `.npy` arrays (finetuning_arrays.py), or trajectories.
        split: of a folder in The Well's layout.

    Raises:
        OSError, ValueError: files that cannot be read, or do not go together.
    """
    if isinstance(source, str | os.PathLike) and not is_own_arrays(source):
        manifest, scenario = open_source(source, split)
        lengths = [(manifest.url(n), entry.frames) for n, entry in enumerate(manifest.files)]
        name = Path(source).stem if scenario is None else scenario.name
        return Opened(name, template_of(manifest.files[0]), lengths, scenario, manifest=manifest)
    if isinstance(source, str | os.PathLike):
        found, name = load_own_arrays(source), Path(source).stem
    else:
        given = [source] if isinstance(source, Trajectory) else list(source)
        others = [item for item in given if not isinstance(item, Trajectory)]
        if others:
            raise ValueError(
                f"data: expected trajectories, or one file, folder or URL by itself, found {others[0]!r} in a list; "
                "put several files into one folder"
            )
        found = [(f"trajectory {n}", trajectory) for n, trajectory in enumerate(given)]
        name = (given[0].name if given else None) or "trajectories"
    if not found:
        raise ValueError("data: expected at least one trajectory, found none")
    for place, trajectory in found[1:]:
        first, other = _topology(found[0][1]), _topology(trajectory)
        for what, expected in first.items():
            if other[what] != expected:
                raise ValueError(
                    f"{place}: expected the fields, axes, grid and boundaries of {found[0][0]}, found another {what}: "
                    f"{other[what]} beside {expected}"
                )
    return Opened(name, found[0][1], [(place, trajectory.num_frames) for place, trajectory in found], found=found)


def has_split(source: Source, split: str) -> bool:
    """Whether a source has files of its own for that split."""
    if not isinstance(source, str | os.PathLike) or is_own_arrays(source):
        return False
    if locate_source(source, split).folders == locate_source(source, "train").folders:
        return False
    try:
        open_source(source, split)
    except FileNotFoundError:
        return False
    return True


def split_windows(windows: Windows) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of windows to train on and to validate on: the last tenth of the trajectories, at least one.

    Of a single trajectory, the windows in its last fifth are held out; no frame is in both parts.
    """
    trajectories, starts = windows.rows.T
    count = int(trajectories.max()) + 1
    if count > 1:
        held = trajectories >= count - max(1, round(0.1 * count))
        trained = ~held
    else:
        first = int(0.8 * (starts.max() + windows.span + 1))
        held, trained = starts >= first, starts + windows.span < first
        if not held.any() or not trained.any():
            raise ValueError(
                f"{windows.name}: expected more than one trajectory, or one long enough to hold a fifth of it out, "
                f"found one of {len(starts)} windows; give other data to validate on, or ask for fewer frames"
            )
    return np.flatnonzero(trained), np.flatnonzero(held)


def named_processor(
    processor: WalrusProcessor, opened: Opened, field_names: Mapping[str, str], log_fields: Sequence[str]
) -> WalrusProcessor:
    """A processor with the names and logarithms of a source.

    Raises:
        ValueError: fields that the data do not have.
    """
    _check_own_names("field_names", field_names, opened.template)
    _check_own_names("log_fields", log_fields, opened.template)
    named = processor if opened.scenario is None else scenario_processor(processor, opened.scenario)
    named.field_names = {**named.field_names, **field_names}
    named.log_fields = list(dict.fromkeys([*named.log_fields, *log_fields]))
    return named


def vocabulary_names(
    new_fields: Mapping[str, str | None], template: Trajectory, processor: WalrusProcessor
) -> dict[str, str | None]:
    """New names of the vocabulary, vectors and tensors by component, each with the known name it starts as.

    Args:
        new_fields: own name -> a known field, or None.

    Raises:
        ValueError: fields that the data do not have.
    """
    _check_own_names("new_fields", new_fields, template)
    names: dict[str, str | None] = {}
    for field, like in new_fields.items():
        name, rank = processor.field_names.get(field, field), template.rank(field)
        for parts in itertools.product("xyz", repeat=rank):
            suffix = f"_{''.join(parts)}" if rank else ""
            source = f"{like}{suffix}" if f"{like}{suffix}" in processor.field2id else like
            names[name + suffix] = source
    return names


def check_fields(processor: WalrusProcessor, template: Trajectory, name: str) -> None:
    """Refuse fields that the model does not know, all at once, with near names and what can be done.

    Raises:
        ValueError: at least one is unknown, or the fields are unusable otherwise.
    """
    known = [known for known in processor.field2id if known not in FLAG_NAMES]
    stems = sorted({known.rpartition("_")[0] for known in known if known.rpartition("_")[2] in ("x", "xx")})
    unknown = {
        field: near_names(processor.field_names.get(field, field), [*known, *stems])
        for field in (*template.fields, *template.constant_fields)
        if not _is_known(processor, template, field)
    }
    if unknown:
        listed = "; ".join(
            f"{field!r}{_as_named(processor, field)} "
            f"({'perhaps ' + ' or '.join(map(repr, near)) if near else 'nothing near'})"
            for field, near in unknown.items()
        )
        first = next(iter(unknown))
        raise ValueError(
            f"{name}: expected fields that the model knows, found {listed}. Map a field to one that it knows with "
            f"field_names={{{first!r}: NAME}} (--field-name {first}=NAME), teach it a new one with "
            f"new_fields={{{first!r}: None}} (--new-field {first}), or leave it out of the data"
        )
    try:
        processor.channels(template)
        processor.channels(template, constant=True)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def global_scales(windows: Windows, numbers: np.ndarray, eps: float) -> dict[str, dict[str, Any]]:
    """RMS of the fields and of their changes over `stride` frames, as the model reads them, over whole trajectories.

    Args:
        numbers: windows whose trajectories count.
        eps: smallest scale.

    Returns:
        `{"rms": {field: value}, "rms_delta": {field: value}}` for [`WalrusProcessor`].
    """
    used = sorted(set(windows.rows[numbers, 0].tolist()))
    statistics = RunningStatistics(len(windows.trajectory(used[0]).axes))
    for number in used:
        trajectory = windows.trajectory(number)
        fields = {name: _as_read(name, trajectory, windows.processor) for name in trajectory.fields}
        for phase in range(min(windows.stride, trajectory.num_frames)):
            statistics.add_trajectory_part({name: values[phase :: windows.stride] for name, values in fields.items()})
    return scales_of(statistics.as_stats(), eps)


def _as_read(name: str, trajectory: Trajectory, processor: WalrusProcessor) -> np.ndarray:
    """The values of a field that the model gets: logarithms, and zeros inside obstacles."""
    values, log = np.asarray(trajectory.fields[name]), name in processor.log_fields
    values = fill_obstacles(values, trajectory.obstacle_mask, 1 if log else 0, trajectory.rank(name))
    return decimal_logarithm(values) if log else values


def scales_of(stats: Mapping[str, Mapping[str, Any]], eps: float) -> dict[str, dict[str, Any]]:
    """Global scales out of statistics in The Well's layout; `ValueError` where they hold no RMS, as older ones do."""
    missing = sorted({"rms", "rms_delta"} - set(stats))
    if missing:
        raise ValueError(
            f"statistics: expected rms and rms_delta, found no {' and no '.join(missing)}; make them anew with "
            "`walrus-hf data stats`"
        )
    return {
        kind: {name: np.maximum(value, eps).tolist() for name, value in stats[kind].items()}
        for kind in ("rms", "rms_delta")
    }


def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """A permutation of `count` windows."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(1_000_003 * seed + epoch)).numpy()


def _check_own_names(setting: str, names: Iterable[str], template: Trajectory) -> None:
    """A name that the data do not have would be passed over in silence."""
    own = [*template.fields, *template.constant_fields]
    for name in names:
        if name not in own:
            hint = near_hint(name, own)
            raise ValueError(f"{setting}: expected fields of the data ({', '.join(own)}){hint}, found {name!r}")


def _as_named(processor: WalrusProcessor, field: str) -> str:
    name = processor.field_names.get(field, field)
    return "" if name == field else f" as {name!r}"


def _is_known(processor: WalrusProcessor, template: Trajectory, field: str) -> bool:
    """Whether the vocabulary has a field, or components of it, under the name that it is given."""
    name, rank = processor.field_names.get(field, field), template.rank(field)
    if field in processor.log_fields and f"log10_{name}" in processor.field2id:
        return True
    if name in processor.field2id and name not in FLAG_NAMES:
        return True  # as a vector, too: the processor says what is wrong
    if rank == 0:
        return any(f"{name}_{parts}" in processor.field2id for parts in ("x", "xx"))  # the same
    letters = ["".join(parts) for parts in itertools.product("xyz"[: len(template.axes)], repeat=rank)]
    axes = ["_".join(parts) for parts in itertools.product(template.axes, repeat=rank)]
    return any(all(f"{name}_{part}" in processor.field2id for part in parts) for parts in (letters, axes))


def _file_identity(manifest: Manifest, number: int) -> list[Any]:
    """Name, size, and what a store calls the version; of a local file, where that is a time that copies do not keep, a
    hash of its first and last bytes."""
    entry = manifest.files[number]
    if "://" in manifest.root:
        return [entry.path, entry.size, entry.version]
    file, _ = manifest.open(number)
    ends = file.read(0, min(END_BYTES, entry.size)) + file.read(max(entry.size - END_BYTES, 0), entry.size)
    return [entry.path, entry.size, hashlib.sha256(ends).hexdigest()]


def _ends_digest(trajectory: Trajectory) -> str:
    """A hash of the first and the last frame: cheap for arrays that are memory-mapped."""
    found = hashlib.sha256()
    for name in sorted(trajectory.fields):
        found.update(name.encode())
        found.update(np.asarray(trajectory.fields[name][[0, -1]]).tobytes())
    return found.hexdigest()


def _topology(trajectory: Trajectory) -> dict[str, Any]:
    """What trajectories of one source have in common, in words for a message."""
    return {
        "choice of fields and ranks": {name: trajectory.rank(name) for name in trajectory.fields},
        "choice of constant fields and ranks": {name: trajectory.rank(name) for name in trajectory.constant_fields},
        "choice of axes": trajectory.axes,
        "grid": trajectory.grid,
        "kind of boundary (ids of the low and high side of each axis)": trajectory.boundary_ids(),
        "choice of an obstacle mask or none": "none" if trajectory.obstacle_mask is None else "a mask",
    }
