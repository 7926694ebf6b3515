"""A base that knows nothing and simulations that a few steps can learn, for the tests of fine-tuning."""

from pathlib import Path

import numpy as np

from walrus_hf import Trajectory, WalrusPipeline

from .small_model import small_model

NAMES = (
    "closed_boundary",
    "open_boundary",
    "bias_correction",
    "pressure",
    "velocity_x",
    "velocity_y",
    "velocity_z",
    "C",
)
QUICK = {"max_steps": 2, "frames": 3, "rollout_steps": 2, "learning_rate": 1e-2, "validation_batches": 2}


def decaying(seed: int, frames: int = 10, grid=(16, 24), **kwargs) -> Trajectory:
    """Smooth fields that fade by a third a frame: something that a few steps can learn."""
    rng = np.random.default_rng(seed)
    fade, x, y = 0.7 ** np.arange(frames), np.arange(grid[0]) / grid[0], np.arange(grid[1]) / grid[1]
    waves = [np.outer(np.cos(2 * np.pi * x + a), np.cos(np.pi * y + b)) for a, b in rng.uniform(0, 6, (3, 2))]
    pressure, velocity = fade[:, None, None] * waves[0], fade[:, None, None, None] * np.stack(waves[1:], -1)
    sides = {"x": "periodic", "y": ("wall", "open")}
    return Trajectory({"pressure": pressure, "velocity": velocity}, sides, name=f"decay_{seed}", **kwargs)


RUNS = [decaying(seed) for seed in range(4)]


def write_base(path: Path) -> str:
    """A checkpoint with jitter; returns its folder."""
    model = small_model(field2id={name: i for i, name in enumerate(NAMES)}, initializer_range=0.5, jitter=True)
    WalrusPipeline(model).save_pretrained(path)
    return str(path)
