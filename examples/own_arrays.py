"""Forecast arrays of your own: what a trajectory needs, names of your own, walls, obstacles, frames further apart.

    python examples/own_arrays.py --model walrus-1.3b

Smaller, with a model of random weights:

    python examples/own_arrays.py --tiny

The flow is made up: a vortex in a channel that drifts past a round obstacle. Put your arrays in its place.
"""

import argparse

import numpy as np
import torch

from walrus_hf import Trajectory, WalrusConfig, WalrusForPrediction, WalrusPipeline

TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "stem_hidden_size": 8, "tokens_per_axis": 4}


def drifting_vortex(frames: int, cells: tuple[int, int], dt: float) -> Trajectory:
    """Arrays (frames, x, y), components last; a constant field; a mask of cells inside an obstacle."""
    x, y = np.meshgrid(*[(np.arange(n) + 0.5) / n for n in cells], indexing="ij")
    t = dt * np.arange(frames)[:, None, None]
    dx, dy = (x - 0.2 - t + 0.5) % 1 - 0.5, y - 0.5
    strength = np.exp(-(dx**2 + dy**2) / 0.02)
    u = np.stack([1 - 4 * dy * strength, 4 * dx * strength], axis=-1)  # (frames, x, y, 2)
    return Trajectory(
        fields={"rho": 1 + 0.1 * strength, "velocity": u},
        constant_fields={"speed_of_sound": np.full(cells, 10.0)},
        boundary_conditions={"x": "periodic", "y": "wall"},
        obstacle_mask=(x - 0.7) ** 2 + (y - 0.3) ** 2 < 0.1**2,
        dt=dt,
        name="drifting vortex",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a checkpoint or a Hub repository")
    parser.add_argument("--tiny", action="store_true", help="a model of random weights, a small grid")
    arguments = parser.parse_args()
    if arguments.tiny:
        torch.manual_seed(0)
        pipe = WalrusPipeline(WalrusForPrediction(WalrusConfig.tiny(**TINY)))
    elif arguments.model:
        pipe = WalrusPipeline.from_pretrained(arguments.model)
    else:
        parser.error("expected --model or --tiny")
    pipe.processor.field_names["rho"] = "density"  # own name -> the vocabulary's

    given = drifting_vortex(12, (24, 16) if arguments.tiny else (256, 128), dt=0.02)
    print(given)
    print(pipe.processor.plan(given.grid, given.boundary_conditions, seed=0))
    forecast = pipe.predict(given, prediction_length=4, seed=0)
    print("velocity of the forecast:", forecast.fields["velocity"].shape, "from time", round(forecast.time, 3), "on")
    far = pipe.predict(given, prediction_length=2, frame_stride=3, frames=4, seed=0)
    print("every third frame:", far.fields["rho"].shape, "frames", round(far.dt, 3), "apart")
    assert not forecast.fields["velocity"][:, given.obstacle_mask].any()


if __name__ == "__main__":
    main()
