"""Simulations in and out: files of The Well, xarray, streams for training, scenarios, simulated data (README.md)."""

from . import simulate
from .collator import collate
from .index import ScenarioIndex
from .manifest import Manifest, build_manifest, load_manifest
from .plan import StreamPlan
from .reader import BatchReader
from .scenarios import SCENARIOS, Scenario
from .streams import load_stream, open_source

__all__ = [
    "SCENARIOS",
    "BatchReader",
    "Manifest",
    "Scenario",
    "ScenarioIndex",
    "StreamPlan",
    "build_manifest",
    "collate",
    "load_manifest",
    "load_stream",
    "open_source",
    "simulate",
]
