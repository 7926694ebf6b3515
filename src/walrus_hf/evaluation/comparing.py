"""Two evaluations side by side: differences on the same trajectories, with bootstrap intervals (extra `eval`)."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..hub import read_results
from .folder import RESULTS, TRAJECTORIES
from .protocol import MEAN_OF_FIELDS, Protocol
from .results import window_means
from .statistics import median, summary

if TYPE_CHECKING:
    import pandas

# What two evaluations must have in common. The rest of a protocol says how the model was run, and may be compared.
MEASURED = ("name", "split", "start", "steps", "frame_stride", "windows", "metric", "eps", "masks")
RUN = ("seed", "ensemble_size", "jitter", "tokens_per_axis")


def compare(
    first: str | os.PathLike, second: str | os.PathLike, forecasters: tuple[str, str] = ("model", "model")
) -> dict[str, Any]:
    """Paired differences of VRMSE, second minus first: negative where the second is better.

    Args:
        first, second: folders of evaluations, or their results.json.
        forecasters: whose errors are compared, of the first and of the second.

    Returns:
        `{"rows": [{"scenario", "field", "window", "count", "first", "second", "difference", "low", "high", "better",
        "failed"}], "notes": [...]}`: medians over the `count` trajectories that both have, the median of the
        differences with its interval, the share of trajectories where the second is better, and how many failed in
        `[first, second]`, counted as infinite errors; where both failed there is no difference, and both are left out
        of the median.

    Raises:
        FileNotFoundError, ValueError: no results, results of different protocols, no scenario or trajectory in common.
        ImportError: the extra `eval` is not installed.
    """
    one, other = read_results(Path(first).expanduser()), read_results(Path(second).expanduser())
    _refuse_others(one["protocol"], other["protocol"])
    protocol = _protocol(one["protocol"])
    notes = [
        f"{name}: {one['protocol'].get(name)} in the first, {other['protocol'].get(name)} in the second"
        for name in RUN
        if one["protocol"].get(name) != other["protocol"].get(name)
    ]
    names = [name for name in one["scenarios"] if name in other["scenarios"]]
    if not names:
        raise ValueError(
            f"expected a scenario in common, found {', '.join(one['scenarios'])} and {', '.join(other['scenarios'])}"
        )
    tables = [load_trajectories(path) for path in (first, second)]
    rows: list[dict[str, Any]] = []
    for name in names:
        if not all((table["scenario"] == name).any() for table in tables):
            notes.append(f"{name}: left out, no trajectory of it could be used in one of the two")
            continue
        missing = [
            f"{who!r} in the {place}, which has {', '.join(known)}"
            for table, who, place in zip(tables, forecasters, ("first", "second"))
            if who not in (known := sorted(set(table.loc[table["scenario"] == name, "forecaster"])))
        ]
        if missing:
            notes.append(f"{name}: left out, expected forecasts of {' and of '.join(missing)}")
            continue
        transforms = [results["scenarios"][name]["transforms"]["log_fields"] for results in (one, other)]
        if set(transforms[0]) != set(transforms[1]):
            raise ValueError(f"scenario {name!r}: expected the same logarithms, found {transforms[0]}, {transforms[1]}")
        errors = [_errors(table, name, who) for table, who in zip(tables, forecasters)]
        rows += _scenario_rows(name, errors[0], errors[1], protocol, notes)
    if not rows:
        raise ValueError("expected trajectories in common, found none: " + "; ".join(notes))
    return {"rows": rows, "notes": notes}


def load_trajectories(path: str | os.PathLike) -> pandas.DataFrame:
    """trajectories.parquet beside results.json."""
    try:
        import pandas
    except ImportError:
        raise ImportError("comparisons need the extra `eval`: pip install 'walrus-hf[eval]'") from None
    file = _folder(path) / TRAJECTORIES
    if not file.is_file():
        raise FileNotFoundError(f"{path}: expected {TRAJECTORIES} beside {RESULTS}, found none; evaluate again")
    return pandas.read_parquet(file)


def _folder(path: str | os.PathLike) -> Path:
    path = Path(path).expanduser()
    return path.parent if path.name == RESULTS else path


def _refuse_others(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    one, other = ({"frame_stride": 1, **stated} for stated in (one, other))  # older results do not state it
    for name in MEASURED:
        if one.get(name) != other.get(name):
            raise ValueError(
                f"expected two evaluations by the same protocol, found {name} {one.get(name)} and {other.get(name)}; "
                "evaluate one of them again"
            )


def _protocol(stated: Mapping[str, Any]) -> Protocol:
    bootstrap = stated["bootstrap"]
    return Protocol(
        windows={name: (first, last) for name, (first, last) in stated["windows"].items()},
        resamples=bootstrap["resamples"], level=bootstrap["level"], bootstrap_seed=bootstrap["seed"],
    )  # fmt: skip


def _errors(table: pandas.DataFrame, scenario: str, forecaster: str) -> dict[str, pandas.DataFrame]:
    """field -> VRMSE by (trajectory, digest) and lead time."""
    mine = table[(table["scenario"] == scenario) & (table["forecaster"] == forecaster)]
    return {
        str(field): part.pivot(index=["trajectory", "digest"], columns="lead_time", values="vrmse")
        for field, part in mine.groupby("field", sort=False)
    }


def _scenario_rows(
    name: str,
    first: dict[str, pandas.DataFrame],
    second: dict[str, pandas.DataFrame],
    protocol: Protocol,
    notes: list[str],
) -> list[dict[str, Any]]:
    one, other = _trajectories(first), _trajectories(second)
    common, most = one.intersection(other).sort_values(), max(len(one), len(other))
    if len(common) < most:
        notes.append(f"{name}: {len(common)} of {most} trajectories are the same in both; the others are left out")
    if common.empty:
        return []
    both = [field for field in first if field in second]
    # Files of one scenario may have other fields than its rest.
    fields = [field for field in both if common.isin(first[field].index.intersection(second[field].index)).all()]
    for left_out, why in (
        (set(first) ^ set(second), "one of the two does not have"),
        (set(both) - set(fields), "not all trajectories have"),
    ):
        if left_out:
            notes.append(f"{name}: left out {', '.join(sorted(left_out))}, which {why}")
    if not fields:
        return []
    errors = [_arrays(table, fields, common) for table in (first, second)]
    if len(fields) > 1:
        for table in errors:
            table[MEAN_OF_FIELDS] = np.mean(list(table.values()), axis=0)
    return [
        row
        for field in errors[0]
        for window in protocol.windows
        if (row := _row(name, field, window, errors[0][field], errors[1][field], protocol))
    ]


def _trajectories(table: dict[str, pandas.DataFrame]) -> pandas.Index:
    """Those that have any field."""
    return functools.reduce(lambda one, other: one.union(other), (found.index for found in table.values()))


def _arrays(
    table: dict[str, pandas.DataFrame], fields: Sequence[str], trajectories: pandas.Index
) -> dict[str, np.ndarray]:
    """field -> errors (trajectories, steps): as many steps in each field, NaN behind the end of shorter ones."""
    steps = range(1, 1 + max(table[field].columns.max() for field in fields))
    return {
        field: np.asarray(table[field].reindex(index=trajectories, columns=steps), dtype=np.float64) for field in fields
    }


def _row(
    scenario: str, field: str, window: str, first: np.ndarray, second: np.ndarray, protocol: Protocol
) -> dict[str, Any] | None:
    a, b = (window_means(values, protocol.windows[window]) for values in (first, second))
    there = ~(np.isnan(a) | np.isnan(b))
    if not there.any():
        return None
    a, b = a[there], b[there]
    both = np.isinf(a) & np.isinf(b)
    found: dict[str, Any] = {"median": np.nan, "median_low": np.nan, "median_high": np.nan}
    if not both.all():
        found = summary(b[~both] - a[~both], protocol)
    return {
        "scenario": scenario, "field": field, "window": window, "count": len(a), "first": float(median(a)),
        "second": float(median(b)), "difference": found["median"], "low": found["median_low"],
        "high": found["median_high"], "better": float((b < a).mean()),
        "failed": [int(np.isinf(a).sum()), int(np.isinf(b).sum())],
    }  # fmt: skip
