from .configuration_walrus import WalrusConfig
from .modeling_walrus import WalrusForPrediction, WalrusModel
