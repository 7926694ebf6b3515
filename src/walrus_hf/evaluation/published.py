"""The paper's numbers, shipped as data: what an evaluation of the same scenario is printed beside."""

from __future__ import annotations

import functools
import json
from importlib.resources import files
from typing import Any


@functools.cache
def published_results() -> dict[str, Any]:
    """The content of `published_results.json`: `source`, `caveats` and `entries`.

    Each entry has `table`, `scenario` (name in `SCENARIOS`, or None), `data_set` (the paper's name), `model`, `window`,
    `value` (None where it was not reported or could not be read) and `note`.
    """
    return json.loads(files(__package__).joinpath("published_results.json").read_text(encoding="utf-8"))


def published_for(scenario: str) -> list[dict[str, Any]]:
    """The entries with a value of one scenario, without its name."""
    return [
        {name: value for name, value in entry.items() if name != "scenario"}
        for entry in published_results()["entries"]
        if entry["scenario"] == scenario and entry["value"] is not None
    ]
