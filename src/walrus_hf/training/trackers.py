"""Metrics on dashboards, through Accelerate: trackio where it is installed and nothing else was named.

`metrics.jsonl` is written in any case (records.py).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from tqdm.auto import tqdm

from .arguments import PretrainingArguments

PROJECT = "walrus_hf"
DEFAULT, NONE = "trackio", "none"


def chosen_trackers(log_with: Sequence[str] | None) -> list[str]:
    """Names for `Accelerator(log_with=...)`, which passes over packages that are not installed.

    Args:
        log_with: as asked for; `none` is no tracker, None the default.

    Raises:
        ValueError: a tracker that Accelerate does not know, or whose package is not installed.
    """
    if log_with is None:
        return [DEFAULT] if find_spec(DEFAULT) else []
    asked = [name for name in log_with if name != NONE]
    for name in asked:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
            raise ValueError(f"log_with: expected {NONE}, or some of {known}, found {name!r}")
        if name not in map(str, get_available_trackers()):
            raise ValueError(f"log_with: expected a tracker that is installed, found {name!r}; pip install {name}")
    return asked


@contextlib.contextmanager
def tracked(accelerator: Accelerator, arguments: PretrainingArguments) -> Iterator[None]:
    """Trackers run inside the block, named after the output folder, and are finished however it ends."""
    names = chosen_trackers(arguments.log_with)
    if arguments.log_with is None and not names and accelerator.is_main_process:
        tqdm.write(f"metrics go to metrics.jsonl alone; pip install {DEFAULT} for a dashboard")
    if names:
        plain = {name: value for name, value in vars(arguments).items() if isinstance(value, int | float | str)}
        run = os.path.basename(os.path.abspath(arguments.output_dir))
        own = {
            "trackio": {"name": run, "resume": "allow"},
            "wandb": {"name": run, "dir": arguments.output_dir},
        }
        accelerator.init_trackers(PROJECT, config=plain, init_kwargs=own)
    try:
        yield
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()


def flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """A row of metrics for trackers, which have `step` already: `losses/shear_flow` and so on."""
    found: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}/")
        elif name != "step":
            found[f"{prefix}{name}"] = value
    return found
