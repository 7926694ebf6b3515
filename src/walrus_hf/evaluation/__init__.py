"""Measure forecasts by a stated protocol, compare two models, and say what was published (README.md)."""

from .comparing import compare
from .evaluator import evaluate
from .forecasters import Forecaster
from .protocol import WINDOWS, Protocol
from .published import published_for, published_results

__all__ = [
    "WINDOWS",
    "Forecaster",
    "Protocol",
    "compare",
    "evaluate",
    "published_for",
    "published_results",
]
