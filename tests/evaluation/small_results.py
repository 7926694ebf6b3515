"""Results as `walrus-hf evaluate` writes them, made by hand: planes, a volume and a line, with hostile names."""

import json

import numpy as np

from walrus_hf import Trajectory, save_well

MEAN = "mean of fields"
# What a page must show as it stands: it closes the script, and runs code where markup is made of it.
HOSTILE = """</script><img src=x onerror="document.title='owned'">"""
HOSTILE_FIELD = """<img src=x onerror="document.title='owned'">&amp;"""
GRIDS = {"planes": (12, 8), "volume": (8, 6, 4), "line": (32,)}
STEPS = 6


def write_results(folder, hostile=True, factor=1.0, scenarios=tuple(GRIDS)):
    """A folder with three scenarios; errors of the model are `factor` times step / 10 and those of persistence twice.

    Every forecast is the truth plus 0.25 at each cell; the truth is `truth_at`.
    """
    folder.mkdir(parents=True)
    (folder / "forecasts").mkdir()
    entries, files = {}, []
    for kind in scenarios:
        name = HOSTILE if hostile and kind == "planes" else kind
        fields = ["pressure", HOSTILE_FIELD if hostile else "density"]
        entries[name] = _scenario(kind, fields, factor)
        stem = f"forecasts/{kind}-0"
        for what, shift in (("truth", 0.0), ("forecast", 0.25)):
            save_well(_trajectory(kind, fields, shift), folder / f"{stem}-{what}.hdf5")
        files.append({"scenario": name, "trajectory": 0, "forecaster": "model",
                      "forecast": f"{stem}-forecast.hdf5", "truth": f"{stem}-truth.hdf5"})  # fmt: skip
    entries["nothing"] = {
        **_scenario("line", [], factor), "forecasters": {}, "trajectories": 0, "dt": None, "grid": None, "steps": None,
        "notes": ["trajectory 0 was left out: too short"],
    }  # fmt: skip
    results = {
        "format": "walrus_hf.evaluation/1",
        "protocol": {"name": "walrus", "start": 17, "seed": 3, "windows": {"1": [1, 1], "1:5": [1, 5], "1:20": [1, 20]},
                     "bootstrap": {"resamples": 1000, "level": 0.95, "seed": 0}},
        "model": {"name": HOSTILE if hostile else "walrus-nano", "parameters": 1234567},
        "versions": {"walrus_hf": "0.1.0", "torch": "2.13.0"}, "device": "cpu", "notes": [],
        "scenarios": entries, "forecast_files": files,
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return folder


def truth_at(step, grid):
    """Values of the frame at lead time `step` (from 1): they grow along the first axis and with the step."""
    along = np.arange(grid[0], dtype=np.float32).reshape(-1, *[1] * (len(grid) - 1))
    return np.broadcast_to(1 + step + along, grid).copy()


def _trajectory(kind, fields, shift):
    grid = GRIDS[kind]
    values = np.stack([truth_at(step, grid) for step in range(1, STEPS + 1)]) + shift
    axes = tuple("xyz"[: len(grid)])
    return Trajectory(dict.fromkeys(fields, values), dict.fromkeys(axes, "periodic"), axes=axes, dt=0.5, time=8.5)


def _scenario(kind, fields, factor):
    grid = GRIDS[kind]
    forecasters = fields and {
        "model": _forecaster(fields, 0.1 * factor, members=2),
        "persistence": _forecaster(fields, 0.2, members=0),
        "u_net": _forecaster(fields, 0.05, members=0, failed=True),
    }
    published = [
        {"table": "Table 1", "data_set": kind, "model": "Walrus", "window": "1", "value": 0.02, "note": None},
        {"table": "Table 1", "data_set": kind, "model": "Walrus", "window": "1:20", "value": 0.5, "note": "as read"},
        {
            "table": "Table 7",
            "data_set": kind,
            "model": "Walrus",
            "window": "whole trajectory",
            "value": 0.7,
            "note": None,
        },
        {"table": "Table 1", "data_set": kind, "model": "DPOT-H", "window": "1:5", "value": 0.2, "note": None},
        {"table": "Table 1", "data_set": kind, "model": "Poseidon-L", "window": "1:5", "value": None, "note": "lost"},
    ]
    return {
        "source": f"{kind}.hdf5", "title": "Planes of Old" if kind == "planes" else None, "grid": list(grid),
        "axes": list("xyz"[: len(grid)]), "boundary_conditions": {a: ["periodic"] * 2 for a in "xyz"[: len(grid)]},
        "dt": 0.5, "trajectories": 3, "frames": [23, 23], "start": 17, "steps": STEPS, "fields": fields,
        "ranks": dict.fromkeys(fields, 0), "transforms": {"log_fields": []}, "obstacle_cells": 0.0,
        "forecasters": forecasters, "published": published if kind == "planes" else [],
        "notes": ["start moved from 19 to 17"] if kind == "planes" else [],
    }  # fmt: skip


def _forecaster(fields, size, members, failed=False):
    steps = list(range(1, STEPS + 1))
    curve = [size * step for step in steps]
    if failed:
        curve[3:] = [None] * 3
    window = {w: _window(np.mean(curve[:n]) if None not in curve[:n] else None) for w, n in (("1", 1), ("1:5", 5))}
    names = [*fields, MEAN]
    pair = {"step": steps, "truth": [0.0] * STEPS, "forecast": curve}
    spectrum = {"truth": [2.0, 1.0, 0.1], "forecast": [2.0, 0.9, 0.01], "error": [0.0, 0.1, 0.09]}
    ensemble = {
        "members": members,
        "fields": {
            name: {"step": steps, "crps": curve, "spread": curve, "spread_skill": [0.9] * STEPS,
                   "rank_histogram": {"1": [0.5, 0.2, 0.3]}}
            for name in fields
        },
    }  # fmt: skip
    return {
        "windows": {w: dict.fromkeys(names, found) for w, found in window.items()},
        "lead_time": {
            name: {"step": steps, "median": curve, "low": [v and 0.8 * v for v in curve],
                   "high": [v and 1.2 * v for v in curve], "count": [3] * STEPS}
            for name in names
        },
        "spectra": {"bands": [[0, 1], [1, 2], [2, 4]],
                    "fields": {name: {"1": spectrum, "6": spectrum} for name in fields}},
        "physics": {"totals": {fields[0]: pair}, "divergence": {}, "correlation_time": {
            fields[0]: {"threshold": 0.8, "median": 4.0, "low": 3.0, "high": 7.0, "not_reached": 1, "count": 3}}},
        "ensemble": ensemble if members else None,
        "failures": [{"trajectory": 1, "step": 4, "reason": f"not finite {HOSTILE}"}] if failed else [],
    }  # fmt: skip


def _window(value):
    if value is None:
        return {"median": None, "median_low": None, "median_high": None, "mean": None, "mean_low": None,
                "mean_high": None, "count": 3, "failed": 2}  # fmt: skip
    return {"median": value, "median_low": 0.8 * value, "median_high": 1.2 * value, "mean": 1.1 * value,
            "mean_low": 0.9 * value, "mean_high": 1.3 * value, "count": 3, "failed": 0}  # fmt: skip
