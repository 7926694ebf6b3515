"""A small model that forecasts nonsense with strong weights, and files of simulations for it."""

import dataclasses

import numpy as np
import pytest
import torch

from walrus_hf import Trajectory, WalrusPipeline, save_well
from walrus_hf.evaluation import Protocol

from ..test_parity import parity_model

WINDOWS = {"1": (1, 1), "1:4": (1, 4), "3:6": (3, 6)}
QUICK = Protocol(start=6, windows=WINDOWS, resamples=50)


def noise(frames=12, seed=0, grid=(16, 12), sides=("wall", "open"), name="runs", **fields):
    """Fields that wander: H != W, a periodic axis and two kinds of sides."""
    rng = np.random.default_rng(seed)
    fields = fields or {
        "pressure": 5 + rng.normal(size=(frames, *grid)).cumsum(0),
        "velocity": rng.normal(size=(frames, *grid, len(grid))).cumsum(0),
    }
    axes = ("x", "y", "z")[: len(grid)]
    kinds = dict(zip(axes, ("periodic", sides, "wall")))
    return Trajectory(fields, kinds, axes=axes, dt=0.5, name=f"{name}_{seed}")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WALRUS_HF_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def pipe() -> WalrusPipeline:
    return WalrusPipeline(parity_model(torch.float32, tokens_per_axis=4, tokens_per_axis_3d=2))


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> str:
    """Three trajectories of 12 frames."""
    return str(save_well([noise(seed=i) for i in range(3)], tmp_path_factory.mktemp("runs") / "runs.hdf5"))


@dataclasses.dataclass
class Named:
    """A forecaster of one's own: `predict` is a function."""

    function: object

    def predict(self, context, steps):
        return self.function(context, steps)
