"""Simulations in and out: files of The Well, xarray, streams for training, scenarios, simulated data (README.md)."""

from . import simulate
from .collator import collate
from .index import ScenarioIndex
from .manifest import Manifest, load_manifest
from .plan import StreamPlan
from .reader import BatchReader
from .scenarios import SCENARIOS, Scenario
from .source_files import build_manifest, open_source
from .streams import load_stream

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
