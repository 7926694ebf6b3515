"""Walrus, the foundation model of continuum physics, as a Hugging Face model."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForTimeSeriesPrediction, AutoProcessor

from .configuration_walrus import WalrusConfig
from .fields import BoundaryCondition, Trajectory
from .jitter import TokenizationPlan
from .modeling_walrus import WalrusForPrediction, WalrusModel
from .pipeline_walrus import WalrusPipeline
from .processing_walrus import WalrusProcessor

if TYPE_CHECKING:
    from .data.well import load_well
    from .data.well_writer import save_well
    from .data.xarray_io import from_xarray, to_xarray

# exist_ok: a checkpoint that brings its own copy of this code may have been loaded before.
AutoConfig.register(WalrusConfig.model_type, WalrusConfig, exist_ok=True)
AutoModel.register(WalrusConfig, WalrusModel, exist_ok=True)
AutoModelForTimeSeriesPrediction.register(WalrusConfig, WalrusForPrediction, exist_ok=True)
AutoProcessor.register(WalrusConfig, WalrusProcessor, exist_ok=True)
AutoFeatureExtractor.register(WalrusConfig, feature_extractor_class=WalrusProcessor, exist_ok=True)

__all__ = [
    "BoundaryCondition",
    "TokenizationPlan",
    "Trajectory",
    "WalrusConfig",
    "WalrusForPrediction",
    "WalrusModel",
    "WalrusPipeline",
    "WalrusProcessor",
    "from_xarray",
    "load_well",
    "save_well",
    "to_xarray",
]

# Loaded at first use: they import h5py, which a model does not need.
_AT_FIRST_USE = {
    "load_well": ".data.well",
    "save_well": ".data.well_writer",
    "from_xarray": ".data.xarray_io",
    "to_xarray": ".data.xarray_io",
}


def __getattr__(name: str) -> Any:
    if name not in _AT_FIRST_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_AT_FIRST_USE[name], __name__), name)
