"""Statistics of a data set in one pass over its frames, in the layout of The Well's `stats.yaml`.

Definitions as in The Well's `scripts/compute_statistics.py`: for each field, and for each component of a vector or
tensor, over all trajectories, frames and cells alike: the mean, the standard deviation `std` (divided by the count, not
by one less) and `rms`, the root of the mean square; `mean_delta`, `std_delta` and `rms_delta` are those of the
differences between consecutive frames, for fields that vary in time. All in float64, of the numbers as they are given:
who trains on the logarithm of a field passes the logarithm.

Unlike there, nothing is read twice, no file has to fit into memory, and every cell weighs the same to the last digit.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..safe_files import write_text

KINDS = ("mean", "std", "rms", "mean_delta", "std_delta", "rms_delta")
# Cells at a time: their float64 copies stay in the processor's cache.
CHUNK = 1 << 16


@dataclasses.dataclass
class Moments:
    """Count, mean and sum of squared deviations from it, one a component; mergeable without loss of digits.

    Attributes:
        count: cells seen.
        mean: float64 `()`, `(d,)` or `(d, d)`.
        squares: sum of `(x - mean)^2`, same shape.
    """

    count: int
    mean: np.ndarray
    squares: np.ndarray

    @classmethod
    def none(cls, components: tuple[int, ...]) -> Moments:
        return cls(0, np.zeros(components), np.zeros(components))

    def merge(self, other: Moments) -> None:
        """Add what another one has seen (Chan, Golub and LeVeque 1979)."""
        count = self.count + other.count
        if not count:
            return
        difference = other.mean - self.mean
        share = other.count / count
        self.mean = self.mean + difference * share
        self.squares = self.squares + other.squares + difference**2 * (self.count * share)
        self.count = count

    def add(self, values: np.ndarray, minus: np.ndarray | None = None) -> None:
        """Add one frame `(*grid, *components)`, or its difference from another one."""
        components = self.mean.shape
        cells = values.reshape(-1, self.mean.size)
        others = None if minus is None else minus.reshape(-1, self.mean.size)
        for start in range(0, len(cells), CHUNK):
            stop = min(start + CHUNK, len(cells))
            mean, squares = np.empty(self.mean.size), np.empty(self.mean.size)
            for i in range(self.mean.size):
                x = cells[start:stop, i].astype(np.float64)
                if others is not None:
                    x -= others[start:stop, i]
                mean[i] = x.mean()
                x -= mean[i]
                squares[i] = np.square(x, out=x).sum()
            self.merge(Moments(stop - start, mean.reshape(components), squares.reshape(components)))

    def summary(self) -> dict[str, Any]:
        """`{"mean": ..., "std": ..., "rms": ...}` as numbers or nested lists."""
        variance = self.squares / self.count
        values = {"mean": self.mean, "std": np.sqrt(variance), "rms": np.sqrt(variance + self.mean**2)}
        return {kind: value.tolist() for kind, value in values.items()}


class RunningStatistics:
    """Collects the statistics of a data set, part by part.

    Parts of one trajectory are given in order, each frame once; trajectories in any order, on any number of collectors
    that are merged in the end:

        statistics = RunningStatistics(spatial_dims=2)
        for trajectory in ...:
            for i, frames in enumerate(parts of the trajectory):
                statistics.add_trajectory_part(frames, follows=i > 0)
            statistics.add_constant_fields(...)
        write_stats(statistics.as_stats(), "stats.yaml")

    Args:
        spatial_dims: axes of the grid, 1 to 3; what lies behind them are components.
    """

    def __init__(self, spatial_dims: int) -> None:
        if spatial_dims not in (1, 2, 3):
            raise ValueError(f"spatial_dims: expected 1, 2 or 3 axes of the grid, found {spatial_dims!r}")
        self.spatial_dims = int(spatial_dims)
        self.values: dict[str, Moments] = {}
        self.changes: dict[str, Moments] = {}  # of the fields that vary in time, no others
        self._last: dict[str, np.ndarray] = {}  # last frame of the trajectory under way
        self._frames = 0

    def add_trajectory_part(self, fields: Mapping[str, np.ndarray], follows: bool = False) -> None:
        """Add consecutive frames of one trajectory, all fields that vary in time together.

        Args:
            fields: name -> array `(frames, *grid[, d[, d]])`, real numbers, the same number of frames for all.
            follows: whether the first frame comes right after the last one of the previous part; its change from that
                one counts then. False begins a trajectory.

        Raises:
            ValueError: NaN or infinite numbers (field and frame are named), or shapes that do not fit together or what
                came before. Nothing of the part is counted then, and a trajectory under way is over.
        """
        last, first_frame = (self._last, self._frames) if follows else ({}, 0)
        self._last, self._frames = {}, 0
        if follows and not last:
            raise ValueError(
                "follows: expected an earlier part of the trajectory, found none; begin with follows=False"
            )
        arrays = {name: np.asarray(values) for name, values in fields.items()}
        frames = self._check_part(arrays, last)
        parts = {}
        for name, values in arrays.items():
            components = values.shape[1 + self.spatial_dims :]
            seen, changes = Moments.none(components), Moments.none(components)
            previous = last.get(name)
            for t, frame in enumerate(values):
                _add_frame(seen, f"field {name!r}, frame {first_frame + t}", frame)
                if previous is not None:
                    _add_frame(changes, f"field {name!r}, frame {first_frame + t}", frame, previous)
                previous = frame
            parts[name] = seen, changes
        for name, (seen, changes) in parts.items():
            self.values.setdefault(name, Moments.none(seen.mean.shape)).merge(seen)
            self.changes.setdefault(name, Moments.none(seen.mean.shape)).merge(changes)
        self._last = {name: values[-1].copy() for name, values in arrays.items()}
        self._frames = first_frame + frames

    def add_constant_fields(self, fields: Mapping[str, np.ndarray]) -> None:
        """Add fields that do not vary in time, once for each array that a file holds.

        Args:
            fields: name -> array `(*grid[, d[, d]])`.

        Raises:
            ValueError: as in [`add_trajectory_part`].
        """
        parts = {}
        for name, given in fields.items():
            values = np.asarray(given)
            components = self._components(name, values, lead=0)
            if name in self.changes:
                raise ValueError(
                    f"field {name!r}: constant here, but it varied in time before; give one of them another name"
                )
            parts[name] = Moments.none(components)
            _add_frame(parts[name], f"constant field {name!r}", values)
        for name, seen in parts.items():
            self.values.setdefault(name, Moments.none(seen.mean.shape)).merge(seen)

    def merge(self, other: RunningStatistics) -> None:
        """Add what another collector has seen; `other` stays as it is.

        Raises:
            ValueError: another number of axes, or a field of another kind under the same name.
        """
        if other.spatial_dims != self.spatial_dims:
            raise ValueError(
                f"expected statistics of grids of {self.spatial_dims} axes, found {other.spatial_dims}; keep them apart"
            )
        for name, moments in other.values.items():
            varies = name in other.changes
            if name in self.values and (
                self.values[name].mean.shape != moments.mean.shape or (name in self.changes) != varies
            ):
                raise ValueError(f"field {name!r}: of another rank, or constant on one side only; keep the two apart")
        for mine, theirs in ((self.values, other.values), (self.changes, other.changes)):
            for name, moments in theirs.items():
                mine.setdefault(name, Moments.none(moments.mean.shape)).merge(moments)

    def as_stats(self) -> dict[str, dict[str, Any]]:
        """The Well's layout: kind (`mean`, `std`, `rms` and those of `_delta`) -> field -> number, `[d]` or `[[d, d]]`.

        Raises:
            ValueError: nothing was added, or a field varies in time but no two consecutive frames were seen.
        """
        if not self.values:
            raise ValueError("expected statistics of at least one field, found none; add trajectories first")
        stats: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
        for name in sorted(self.values):
            for kind, value in self.values[name].summary().items():
                stats[kind][name] = value
        for name in sorted(self.changes):
            if not self.changes[name].count:
                raise ValueError(
                    f"field {name!r}: expected two consecutive frames at least, found none; add longer parts"
                )
            for kind, value in self.changes[name].summary().items():
                stats[f"{kind}_delta"][name] = value
        return stats

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists for a JSON file, every bit kept; a trajectory under way is over."""

        def plain(moments: dict[str, Moments]) -> dict[str, Any]:
            return {
                name: {"count": m.count, "mean": m.mean.tolist(), "squares": m.squares.tolist()}
                for name, m in moments.items()
            }

        return {"spatial_dims": self.spatial_dims, "values": plain(self.values), "changes": plain(self.changes)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunningStatistics:
        """The collector that `to_dict` wrote down.

        Raises:
            ValueError: another layout.
        """
        try:
            statistics = cls(data["spatial_dims"])
            for found, given in ((statistics.values, data["values"]), (statistics.changes, data["changes"])):
                for name, moments in given.items():
                    mean, squares = (np.asarray(moments[part], dtype=np.float64) for part in ("mean", "squares"))
                    found[name] = Moments(int(moments["count"]), mean, squares)
                    if mean.shape != squares.shape or not (np.isfinite(mean) & (squares >= 0)).all():
                        raise TypeError(f"mean {mean.tolist()} and squares {squares.tolist()}")
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"expected a dict from RunningStatistics.to_dict, found {error!r} in it") from None
        return statistics

    def _check_part(self, arrays: dict[str, np.ndarray], last: dict[str, np.ndarray]) -> int:
        """The number of frames."""
        if not arrays:
            raise ValueError("expected at least one field that varies in time, found none")
        if last and set(arrays) != set(last):
            raise ValueError(f"expected the fields of the part before ({', '.join(last)}), found {', '.join(arrays)}")
        frames = len(np.atleast_1d(next(iter(arrays.values()))))
        for name, values in arrays.items():
            self._components(name, values, lead=1)
            if len(values) != frames:
                raise ValueError(f"field {name!r}: expected {frames} frames as in the others, found {len(values)}")
            if last and values.shape[1:] != last[name].shape:
                raise ValueError(
                    f"field {name!r}: expected frames of shape {last[name].shape} as in the part before, found "
                    f"{values.shape[1:]}"
                )
            if name in self.values and name not in self.changes:
                raise ValueError(
                    f"field {name!r}: varies in time here, but it was constant before; rename one of the two"
                )
        return frames

    def _components(self, name: str, values: np.ndarray, lead: int) -> tuple[int, ...]:
        """Shape of the components of a field; refuses what is no field, or one of another rank than before."""
        components = values.shape[lead + self.spatial_dims :]
        if values.dtype.kind not in "biuf":
            raise ValueError(f"field {name!r}: expected real numbers, found dtype {values.dtype}")
        if values.ndim < lead + self.spatial_dims or len(components) > 2 or not values.size:
            expected = f"({'frames, ' * lead}{self.spatial_dims} axes of the grid[, d[, d]])"
            raise ValueError(f"field {name!r}: expected a shape of {expected} without empty axes, found {values.shape}")
        if name in self.values and self.values[name].mean.shape != components:
            raise ValueError(
                f"field {name!r}: expected components of shape {self.values[name].mean.shape} as before, found "
                f"{components}; rename one of the two"
            )
        return components


def write_stats(stats: Mapping[str, Mapping[str, Any]], path: str | os.PathLike, overwrite: bool = False) -> Path:
    """Write statistics as YAML, as The Well does.

    Args:
        stats: from [`RunningStatistics.as_stats`].
        path: the local file, `stats.yaml` beside the folder `data` by The Well's custom.
        overwrite: replace a file that is there. It stays as it is until the new one is complete.

    Returns:
        The path.

    Raises:
        FileExistsError: the file is there and `overwrite` is False.
        OSError: the folder is missing, the disk is full, ...; no part of a file is left.
        ValueError: another layout.
    """
    target = Path(path)
    _check_layout(stats, "stats")
    if target.is_dir():
        raise IsADirectoryError(f"{target}: expected the path of a file, found a directory; add a file name")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target}: expected no file, found one; pass overwrite=True to replace it")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target}: expected an existing folder {target.parent}, found none; make it first")
    text = yaml.safe_dump({kind: dict(fields) for kind, fields in stats.items()})
    write_text(target, text)
    return target


def read_stats(path: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """Read a local `stats.yaml`; older ones of The Well hold `mean` and `std` only.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: no YAML, or another layout.
    """
    try:
        stats = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{os.fspath(path)}: expected a stats.yaml, found text that is no YAML ({reason})") from None
    _check_layout(stats, os.fspath(path))
    return stats


def _add_frame(moments: Moments, what: str, frame: np.ndarray, previous: np.ndarray | None = None) -> None:
    """Add a frame or a change, and refuse it if it leaves no finite moments (what was added is then of no use)."""
    with np.errstate(over="ignore", invalid="ignore"):
        moments.add(frame, previous)
    if np.isfinite(moments.mean).all() and np.isfinite(moments.squares).all():
        return
    bad = frame.size - int(np.isfinite(frame).sum())
    if bad:
        raise ValueError(
            f"{what}: expected finite numbers, found {bad} NaN or infinite of {frame.size}; leave the trajectory "
            "out or mend the file"
        )
    largest = float(np.abs(frame.astype(np.float64)).max())
    raise ValueError(
        f"{what}: expected numbers whose squares float64 can hold, found {largest:.3g}; rescale its units or take its "
        "logarithm"
    )


def _check_layout(stats: Any, where: str) -> None:
    if not isinstance(stats, Mapping) or not stats or not set(stats) <= set(KINDS):
        found = list(stats) if isinstance(stats, Mapping) else type(stats).__name__
        raise ValueError(f"{where}: expected statistics by kind ({', '.join(KINDS)}), found {found}")
    for kind, fields in stats.items():
        if not isinstance(fields, Mapping):
            raise ValueError(f"{where}: expected under {kind!r} one entry a field, found {type(fields).__name__}")
        for name, value in fields.items():
            try:
                array = np.asarray(value)
            except ValueError:  # ragged lists
                array = np.asarray("")
            usable = array.dtype.kind in "iuf" and array.ndim <= 2 and array.size and np.isfinite(array).all()
            if not usable:
                raise ValueError(
                    f"{where}: expected for {kind!r} of {name!r} a finite number, or a list for a vector or tensor, "
                    f"found {value!r} (YAML reads 1e-5 as text: write 1.0e-5)"
                )
