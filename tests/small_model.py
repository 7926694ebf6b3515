"""A small model with strong random weights and inputs that fit it, for the tests of the Hugging Face contract."""

import torch

from walrus_hf import WalrusConfig, WalrusForPrediction

NAMES = ("closed_boundary", "open_boundary", "bias_correction", *"abcdefghi")
WALL_OPEN = [[0, 1], [2, 2], [2, 2]]
PERIODIC = [[2, 2]] * 3
ALL_PARTS = {"rope_learnable": "per_axis", "absolute_position_shape": (4, 4, 1)}
PLANE, VOLUME = (16, 24, 1), (8, 16, 8)


def small_config(**kwargs) -> WalrusConfig:
    small = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "stem_hidden_size": 8, "tokens_per_axis": 4, "tokens_per_axis_3d": 4, "jitter": False,
        "field2id": {name: i for i, name in enumerate(NAMES)}, "drop_path_rate": 0.0, "initializer_range": 1.0,
    }  # fmt: skip
    return WalrusConfig(**{**small, **kwargs})


def small_model(seed: int = 0, **kwargs) -> WalrusForPrediction:
    torch.manual_seed(seed)
    return WalrusForPrediction(small_config(**kwargs)).eval()


def small_inputs(grid=PLANE, batch: int = 2, frames: int = 3, seed: int = 0, labels: bool = False, sides=None) -> dict:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(batch, frames + 1, 3, *grid, generator=generator)
    inputs = {"field_values": values[:, :-1], "field_ids": torch.tensor([[3, 7, 5]] * batch)}
    if labels:
        inputs["labels"] = values[:, 1:]
    if sides is not None:
        inputs["boundary_conditions"] = torch.tensor([sides] * batch)
    return inputs
