"""Walrus, the foundation model of continuum physics, as a Hugging Face model."""

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForTimeSeriesPrediction, AutoProcessor

from .configuration_walrus import WalrusConfig
from .fields import BoundaryCondition, Trajectory
from .jitter import TokenizationPlan
from .modeling_walrus import WalrusForPrediction, WalrusModel
from .processing_walrus import WalrusProcessor

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
    "WalrusProcessor",
]
