"""The protocol: everything that decides what an evaluation measures, stated and saved with its numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..data.scenarios import SPLITS
from ..metrics import EPS

# Lead times that the published evaluation averages over (arXiv 2511.15684, section 5): first and last step.
WINDOWS: Mapping[str, tuple[int, int]] = {
    "1": (1, 1), "1:10": (1, 10), "11:30": (11, 30), "1:20": (1, 20), "21:60": (21, 60),
}  # fmt: skip
MEAN_OF_FIELDS = "mean of fields"
# Trajectories that share the shifts of their jitter, because a batch has one tokenization. Batches stay within a group,
# so a forecast does not depend on the size of the batch.
GROUP = 8
SEEDS = (
    f"trajectory i of a scenario, counted from 0, is forecast with the seed {{seed}} + 1000 * (i // {GROUP}), member m "
    "of its ensemble with that plus m, as in WalrusPipeline.predict"
)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a model is evaluated.

    Args:
        start: first frame to forecast, counted from 0 (published: 17). Where fewer frames follow than are wanted, the
            last start that leaves them.
        steps: frames to forecast; None: as many as follow, at most to the end of the last window.
        windows: name -> first and last lead time, counted from 1, both included; or the pairs alone, as
            `WalrusPipeline.evaluate` takes them.
        frame_stride: every so many frames are read and forecast, beginning with the first; start, steps, windows and
            lead times count those.
        split: of sources that have splits.
        max_trajectories: the first so many of each scenario; None: all.
        seed: of the jitter (`SEEDS`).
        ensemble_size: members that differ in their jitter; errors are those of their mean.
        jitter, tokens_per_axis: None takes the checkpoint's.
        resamples, level: of the bootstrap intervals over trajectories (percentiles).
        bootstrap_seed: of the resampling.

    Raises:
        ValueError: numbers that make no sense.
    """

    start: int = 17
    steps: int | None = None
    windows: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=lambda: dict(WINDOWS))
    split: str = "test"
    max_trajectories: int | None = None
    seed: int = 0
    ensemble_size: int = 1
    jitter: bool | None = None
    tokens_per_axis: int | None = None
    resamples: int = 1000
    level: float = 0.95
    bootstrap_seed: int = 0
    frame_stride: int = 1
    name: str = "walrus"

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split: expected one of {', '.join(SPLITS)}, found {self.split!r}")
        if self.start < 2:
            raise ValueError(
                f"start: expected at least 2, with 2 frames before it to forecast from, found {self.start}"
            )
        counts = {
            "steps": self.steps, "max_trajectories": self.max_trajectories, "ensemble_size": self.ensemble_size,
            "resamples": self.resamples, "frame_stride": self.frame_stride,
        }  # fmt: skip
        for name, count in counts.items():
            if count is not None and count < 1:
                raise ValueError(f"{name}: expected at least 1, found {count}")
        if not 0 < self.level < 1:
            raise ValueError(f"level: expected a share between 0 and 1, found {self.level}")
        if not self.windows:
            raise ValueError("windows: expected at least one, found none")
        if not isinstance(self.windows, Mapping):
            object.__setattr__(self, "windows", _named_windows(self.windows))
        for name, (first, last) in self.windows.items():
            if not 1 <= first <= last:
                raise ValueError(f"window {name!r}: expected 1 <= first step <= last step, found {first} and {last}")

    def start_and_steps(self, frames: int) -> tuple[int, int]:
        """First frame to forecast, and how many, in a trajectory of `frames` frames (at least 3)."""
        start = max(2, min(self.start, frames - (self.steps or 1)))
        wanted = self.steps or max(last for _, last in self.windows.values())
        return start, min(wanted, frames - start)

    def seed_of(self, trajectory: int) -> int:
        return self.seed + 1000 * (trajectory // GROUP)

    def to_json(self) -> dict[str, Any]:
        """As it stands in results.json."""
        given = dataclasses.asdict(self)
        bootstrap = {
            "resamples": given.pop("resamples"), "level": given.pop("level"), "seed": given.pop("bootstrap_seed"),
        }  # fmt: skip
        return {
            "name": given.pop("name"),
            **given,
            "windows": {name: list(window) for name, window in self.windows.items()},
            "bootstrap": bootstrap,
            "seeds": SEEDS.format(seed=self.seed),
            "metric": "vrmse",
            "eps": EPS,
            "masks": "cells inside obstacles are left out of all means over cells, and zero in spectra and divergences",
        }


def _named_windows(pairs: Iterable[Any]) -> dict[str, tuple[int, int]]:
    """`[(1, 1), (1, 10)]` -> `{"1": (1, 1), "1:10": (1, 10)}`."""
    try:
        return {str(first) if first == last else f"{first}:{last}": (first, last) for first, last in pairs}
    except (TypeError, ValueError):
        raise ValueError(
            f'windows: expected name -> (first, last) such as {{"1:10": (1, 10)}}, or such pairs, found {pairs!r}'
        ) from None


def parse_windows(given: Sequence[str]) -> dict[str, tuple[int, int]]:
    """`["1", "1:10"]` -> `{"1": (1, 1), "1:10": (1, 10)}`; `ValueError` for anything else."""
    windows = {}
    for text in given:
        parts = text.split(":")
        if not 1 <= len(parts) <= 2 or not all(part.isascii() and part.isdigit() for part in parts):
            raise ValueError(f"window {text!r}: expected a lead time or two, such as 1 or 11:30")
        first, last = int(parts[0]), int(parts[-1])
        windows[str(first) if first == last else f"{first}:{last}"] = (first, last)
    return windows
