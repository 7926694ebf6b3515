"""From the records of trajectories to results.json, trajectories.parquet and table.md (see README.md)."""

from __future__ import annotations

import itertools
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..safe_files import whole_file
from . import physics
from .protocol import MEAN_OF_FIELDS, Protocol
from .statistics import median_curve, summary

COLUMNS = ("scenario", "source", "trajectory", "forecaster", "field", "lead_time", "vrmse", "nrmse", "digest")
Record = dict[str, Any]


def scenario_results(facts: dict[str, Any], records: Sequence[Record], protocol: Protocol) -> dict[str, Any]:
    """The entry of one scenario in results.json.

    Args:
        facts: what the files alone say.
        records: one for each trajectory, in order; those with an `"error"` could not be used.
    """
    used = [record for record in records if "error" not in record]
    about = dict(used[0]["about"]) if used else {"fields": [], "ranks": {}, "dt": None, "log_fields": []}
    # Of grids that the model cannot take, fields that it does not know are scored too, for the baselines.
    about["fields"] = [f for f in about["fields"] if all(f in record["about"]["fields"] for record in used)]
    transforms = {**facts["transforms"], "log_fields": about.pop("log_fields")}
    names = list(dict.fromkeys(name for record in used for name in record["forecasters"]))
    notes = [note for record in records for note in record["notes"]]
    notes += [f"trajectory {r['trajectory']} was left out: {r['error']}" for r in records if "error" in r]
    forecasters = {
        name: _forecaster_results([(r["trajectory"], r["forecasters"][name]) for r in used if name in r["forecasters"]],
                                  about["fields"], protocol)
        for name in names
    }  # fmt: skip
    for name, found in forecasters.items():
        if found["failures"]:
            first = min(failure["step"] for failure in found["failures"])
            notes.append(f"{name}: {len(found['failures'])} of {len(used)} forecasts failed, the first at step {first}")
    return {
        **facts, **about, "transforms": transforms, "trajectories": len(used), "forecasters": forecasters,
        "notes": [*facts["notes"], *dict.fromkeys(notes)],
    }  # fmt: skip


def _forecaster_results(
    records: Sequence[tuple[int, Record]], fields: Sequence[str], protocol: Protocol
) -> dict[str, Any]:
    scores = [record for _, record in records]
    steps = max(len(_curve(record, fields[0], "vrmse")) for record in scores)
    errors = {name: _padded([_curve(record, name, "vrmse") for record in scores], steps) for name in fields}
    errors[MEAN_OF_FIELDS] = np.mean(list(errors.values()), axis=0)
    return {
        "windows": {
            name: found for name, window in protocol.windows.items() if (found := _window(errors, window, protocol))
        },
        "lead_time": {name: _lead_time(values, protocol) for name, values in errors.items()},
        "spectra": _spectra(scores, fields),
        "physics": {
            "totals": _totals(scores, fields, steps),
            "divergence": _divergences(scores, steps),
            "correlation_time": {name: _correlation_time(scores, name, protocol) for name in fields},
        },
        "ensemble": _ensemble(scores, fields, steps, protocol),
        "failures": [{"trajectory": i, **record["failure"]} for i, record in records if record["failure"]],
    }


def _curve(record: Record, field: str, kind: str) -> list[float]:
    return record["fields"][field][kind]


def _padded(curves: Sequence[Sequence[float]], steps: int) -> np.ndarray:
    """(trajectories, steps), NaN behind the end of shorter ones."""
    values = np.full((len(curves), steps), np.nan)
    for row, curve in zip(values, curves):
        row[: len(curve)] = curve
    return values


def window_means(errors: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    """Means over a window of errors (trajectories, steps); NaN for trajectories that do not cover it."""
    first, last = window
    if last > errors.shape[1]:
        return np.full(len(errors), np.nan)
    return errors[:, first - 1 : last].mean(axis=1)


def _window(errors: Mapping[str, np.ndarray], window: tuple[int, int], protocol: Protocol) -> dict[str, Any]:
    found = {}
    for name, values in errors.items():
        means = window_means(values, window)
        means = means[~np.isnan(means)]
        if len(means):
            counts = {"count": len(means), "failed": int(np.isinf(means).sum())}
            found[name] = {**summary(means, protocol), **counts}
    return found


def _lead_time(values: np.ndarray, protocol: Protocol) -> dict[str, list]:
    middle, low, high = median_curve(values, protocol)
    return {
        "step": list(range(1, values.shape[1] + 1)), "median": middle.tolist(), "low": low.tolist(),
        "high": high.tolist(), "count": (~np.isnan(values)).sum(axis=0).tolist(),
    }  # fmt: skip


def _spectra(scores: Sequence[Record], fields: Sequence[str]) -> dict[str, Any]:
    edges = scores[0]["spectra"]["edges"]
    alike = [record["spectra"]["fields"] for record in scores if record["spectra"]["edges"] == edges]
    found: dict[str, Any] = {}
    for name in fields:
        steps = sorted({int(step) for spectra in alike for step in spectra[name]})
        found[name] = {
            str(step): {
                kind: np.median([s[name][str(step)][kind] for s in alike if str(step) in s[name]], axis=0).tolist()
                for kind in ("error", "truth", "forecast")
            }
            for step in steps
        }
    return {"bands": [list(band) for band in itertools.pairwise(edges)], "fields": found}


def _totals(scores: Sequence[Record], fields: Sequence[str], steps: int) -> dict[str, Any]:
    found = {}
    for name in fields:
        curves = {
            "truth": _padded([_curve(r, name, "truth_total") for r in scores], steps),
            "forecast": _padded([_curve(r, name, "total") for r in scores], steps),
        }
        if not np.isnan(curves["truth"]).all():
            found[name] = _medians(curves)
    return found


def _divergences(scores: Sequence[Record], steps: int) -> dict[str, Any]:
    names = scores[0]["divergence"]
    return {
        name: _medians({
            kind: _padded([r["divergence"][name][kind] for r in scores], steps) for kind in ("truth", "forecast")
        })
        for name in names
    }  # fmt: skip


def _medians(curves: Mapping[str, np.ndarray]) -> dict[str, list]:
    """Medians over those that are there: a forecast that failed has no total any more."""
    found: dict[str, list] = {"step": list(range(1, curves["truth"].shape[1] + 1))}
    for kind, values in curves.items():
        found[kind] = [
            float(np.median(column[~np.isnan(column)])) if not np.isnan(column).all() else math.nan
            for column in values.T
        ]
    return found


def _correlation_time(scores: Sequence[Record], name: str, protocol: Protocol) -> dict[str, Any]:
    """Over the trajectories whose truth varies: nothing correlates with a constant one."""
    times = np.array([record["correlation_time"][name] for record in scores], dtype=np.float64)
    lengths = np.array([len(_curve(record, name, "vrmse")) for record in scores])
    there = ~np.isnan(times)
    times, lengths = times[there], lengths[there]
    found = dict.fromkeys(("median", "median_low", "median_high"), math.nan)
    if len(times):
        found = summary(times, protocol)
    return {
        "threshold": physics.CORRELATED, "median": found["median"], "low": found["median_low"],
        "high": found["median_high"], "not_reached": int((times > lengths).sum()), "count": len(times),
    }  # fmt: skip


def _ensemble(scores: Sequence[Record], fields: Sequence[str], steps: int, protocol: Protocol) -> dict[str, Any] | None:
    having = [record["members"] for record in scores if record["members"]]
    if not having:
        return None
    members = len(having[0][fields[0]]["ranks"][0]) - 1
    found = {}
    for name in fields:
        kinds = {kind: _padded([m[name][kind] for m in having], steps) for kind in ("crps", "spread", "skill")}
        there = ~np.isnan(kinds["crps"]).all(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            spread, skill = (_column_means(kinds[kind]) for kind in ("spread", "skill"))
            ratio = np.sqrt((members + 1) / members * spread / skill)
        found[name] = {
            "step": (np.flatnonzero(there) + 1).tolist(),
            "crps": median_curve(kinds["crps"], protocol)[0][there].tolist(),
            "spread": np.sqrt(spread)[there].tolist(),
            "spread_skill": ratio[there].tolist(),
            "rank_histogram": _rank_histograms([m[name]["ranks"] for m in having], protocol),
        }
    return {"members": members, "fields": found}


def _column_means(values: np.ndarray) -> np.ndarray:
    """Means over the trajectories that are there: squares are averaged before the root is taken."""
    there = ~np.isnan(values)
    return np.where(there, values, 0.0).sum(axis=0) / there.sum(axis=0)


def _rank_histograms(ranks: Sequence[Sequence[Sequence[float]]], protocol: Protocol) -> dict[str, list[float]]:
    found = {}
    for name, (first, last) in protocol.windows.items():
        counts = [np.sum(r[first - 1 : last], axis=0) for r in ranks if len(r) >= last]
        if counts:
            total = np.sum(counts, axis=0)
            found[name] = (total / total.sum()).tolist()
    return found


def rows_of(name: str, source: str, records: Sequence[Record]) -> dict[str, list]:
    """The columns of trajectories.parquet of one scenario."""
    columns: dict[str, list] = {column: [] for column in COLUMNS}
    for record in records:
        for forecaster, scores in record.get("forecasters", {}).items():
            for field, kinds in scores["fields"].items():
                steps = len(kinds["vrmse"])
                same = {
                    "scenario": name, "source": source, "trajectory": record["trajectory"], "forecaster": forecaster,
                    "field": field, "digest": record["digest"],
                }  # fmt: skip
                for column, value in same.items():
                    columns[column] += [value] * steps
                columns["lead_time"] += range(1, steps + 1)
                columns["vrmse"] += kinds["vrmse"]
                columns["nrmse"] += kinds["nrmse"]
    return columns


def table_lines(
    scenario: Mapping[str, Any], windows: Iterable[str], statistic: str = "median", intervals: bool = True
) -> list[list[str]]:
    """Rows of the table of one scenario, the head first: field, who, and VRMSE by window of lead time."""
    windows = list(windows)
    rows = [["field", "forecast", *windows]]
    fields = [*scenario["fields"], MEAN_OF_FIELDS] if len(scenario["fields"]) > 1 else scenario["fields"]
    for field in fields:
        for who, found in scenario["forecasters"].items():
            cells = [_cell(found["windows"].get(w, {}).get(field), statistic, intervals) for w in windows]
            rows.append([field, who, *cells])
    published = [entry for entry in scenario["published"] if entry["window"] in windows and statistic == "median"]
    for table, who in sorted(
        {(e["table"], e["model"]) for e in published}, key=lambda k: (k[0], k[1] != "Walrus", k[1])
    ):
        values = {e["window"]: _number(e["value"]) for e in published if (e["table"], e["model"]) == (table, who)}
        rows.append(["published", f"{who} ({table})", *(values.get(w, "") for w in windows)])
    return rows


def _cell(found: Mapping[str, Any] | None, statistic: str, intervals: bool) -> str:
    if found is None:
        return "-"
    text = _number(found[statistic])
    low, high = found[f"{statistic}_low"], found[f"{statistic}_high"]
    if intervals and low is not None and not math.isnan(low):
        text += f" [{_number(low)}, {_number(high)}]"
    return text + (f" ({found['failed']} of {found['count']} failed)" if found["failed"] else "")


def _number(value: float | None) -> str:
    return f"{value:.4f}" if value is not None and math.isfinite(value) else "inf"


def markdown(results: Mapping[str, Any]) -> str:
    """table.md: medians and means of each scenario, and the notes."""
    windows, level = results["protocol"]["windows"], results["protocol"]["bootstrap"]["level"]
    lines = [f"# VRMSE of {results['model']['name']}", "", f"By lead time in steps, with {100 * level:g} % intervals."]
    for name, scenario in results["scenarios"].items():
        lines += ["", f"## {name}"]
        for statistic in ("median", "mean") if scenario["trajectories"] else ():
            lines += ["", f"{title(scenario, statistic)}:", "", *_rows(table_lines(scenario, windows, statistic))]
        if scenario["trajectories"]:
            lines += ["", f"At step {scenario['steps']}, medians (truth / forecast):", "", *_rows(_physics(scenario))]
        if scenario["notes"]:
            lines += ["", *(f"- {note}" for note in scenario["notes"])]
    return "\n".join([*lines, ""])


def _rows(table: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown, its head first."""
    align = ["---", "---", *["---:"] * (len(table[0]) - 2)]
    lines = []
    for row in (table[0], align, *table[1:]):
        # Names come from files.
        lines.append("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in row) + " |")
    return lines


def _physics(scenario: Mapping[str, Any]) -> list[list[str]]:
    """What is measured beside the error, at the last lead time."""
    rows = [["field", "forecast", "change of the total", "divergence", "correlated until step", "spread/skill"]]
    for field in scenario["fields"]:
        for who, found in scenario["forecasters"].items():
            physics, ensemble = found["physics"], found["ensemble"]
            pairs = [_pair(physics[kind].get(field)) for kind in ("totals", "divergence")]
            time = physics["correlation_time"][field]
            until = _until(time["median"], scenario["steps"])
            ratio = "" if ensemble is None else _number(ensemble["fields"][field]["spread_skill"][-1])
            rows.append([field, who, *pairs, until, ratio])
    return rows


def _until(time: float, steps: int) -> str:
    if math.isnan(time):
        return "-"
    return "the end" if time > steps else f"{time - 1:g}"


def _pair(curves: Mapping[str, Any] | None) -> str:
    if curves is None:
        return ""
    return " / ".join("failed" if math.isnan(x) else f"{x:.3g}" for x in (curves["truth"][-1], curves["forecast"][-1]))


def title(scenario: Mapping[str, Any], statistic: str = "median") -> str:
    n = scenario["trajectories"]
    return (
        f"{statistic.capitalize()} VRMSE over {n} {'trajectory' if n == 1 else 'trajectories'}" if n else "No forecast"
    )


def note_lines(results: Mapping[str, Any]) -> list[str]:
    return [f"{name}: {note}" for name, scenario in results["scenarios"].items() for note in scenario["notes"]]


def versions() -> dict[str, str]:
    return {
        "walrus_hf": version("walrus-hf"), "torch": torch.__version__, "numpy": np.__version__,
        "python": platform.python_version(),
    }  # fmt: skip


def write_parquet(path: Path, tables: Iterable[Mapping[str, list]]) -> None:
    """All rows of all scenarios (extra `eval`)."""
    import pandas

    frames = [pandas.DataFrame(table) for table in tables]
    whole = pandas.concat(frames).astype({"trajectory": "int64", "lead_time": "int64"})
    with whole_file(path) as temporary:
        whole.to_parquet(temporary, index=False)
