"""What `walrus-hf evaluate` writes to results.json, small: two scenarios, two forecasters, one failed window."""

from collections.abc import Mapping
from typing import Any


def scores(median: float | None) -> dict[str, Any]:
    low, high = (None, None) if median is None else (0.9 * median, 1.2 * median)
    return {
        "median": median, "median_low": low, "median_high": high, "mean": median, "mean_low": low, "mean_high": high,
        "count": 3, "failed": 2 if median is None else 0,
    }  # fmt: skip


def small_results(model: Mapping[str, Any]) -> dict[str, Any]:
    """Results of a model as `evaluation.forecasters.describe_model` describes it."""
    planes = {
        "source": "shear_flow", "split": "test", "start": 17, "title": "Shear Flow", "grid": [256, 512],
        "trajectories": 3, "fields": ["tracer", "velocity"],
        "forecasters": {
            "model": {"windows": {"1": {"mean of fields": scores(0.0123)}, "1:20": {"mean of fields": scores(None)}}},
            "persistence": {"windows": {"1": {"mean of fields": scores(0.25)}}},
        },
        "notes": [],
    }  # fmt: skip
    own = {
        "source": "/home/somebody/secret/mine.hdf5", "split": None, "start": 9, "title": None, "grid": [16, 24],
        "trajectories": 3, "fields": ["a"],
        "forecasters": {"model": {"windows": {"1": {"a": scores(0.5)}, "1:20": {"a": scores(0.75)}}}},
        "notes": [
            "start moved from frame 17 to 9 in 3 of 3 trajectories, which have 29 frames",
            "trajectory 3 was left out: /home/somebody/secret/mine.hdf5: expected numbers, found NaN",
        ],
    }  # fmt: skip
    return {
        "format": "walrus_hf.evaluation/1",
        "protocol": {
            "name": "walrus", "split": "test", "start": 17, "steps": None, "windows": {"1": [1, 1], "1:20": [1, 20]},
            "seed": 0, "ensemble_size": 1, "jitter": True, "bootstrap": {"resamples": 1000, "level": 0.95, "seed": 0},
        },
        "model": dict(model),
        "versions": {"walrus_hf": "0.1.0"},
        "device": "cpu",
        "scenarios": {"shear_flow": planes, "mine": own},
        "notes": [],
        "forecast_files": [{"scenario": "mine", "forecast": "forecasts/mine-0-forecast.hdf5"}],
    }  # fmt: skip
