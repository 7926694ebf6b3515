"""Forecast an xarray data set (NetCDF, Zarr, ...) and write the forecast as one.

    python examples/own_xarray.py --model walrus-1.3b --file run.nc --boundaries x=periodic y=wall/open --output out.nc

Smaller, on a data set that it makes up, with a model of random weights:

    python examples/own_xarray.py --tiny --output runs/forecast.nc
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import xarray

from walrus_hf import WalrusConfig, WalrusForPrediction, WalrusPipeline, from_xarray, to_xarray

TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "stem_hidden_size": 8, "tokens_per_axis": 4}


def travelling_wave(frames: int = 8, cells: tuple[int, int] = (24, 16)) -> xarray.Dataset:
    """Dimensions time, x and y with coordinates in the units of the simulation."""
    time, x, y = (
        0.05 * np.arange(frames),
        (np.arange(cells[0]) + 0.5) / cells[0],
        (np.arange(cells[1]) + 0.5) / cells[1],
    )
    t, gx, gy = np.meshgrid(time, x, y, indexing="ij")
    pressure = np.sin(2 * np.pi * (gx - t)) * np.cos(np.pi * gy)
    return xarray.Dataset(
        {"pressure": (("time", "x", "y"), pressure, {"units": "Pa"})}, coords={"time": time, "x": x, "y": y}
    )


def parse_boundaries(given: list[str]) -> dict[str, tuple[str, str]]:
    """`x=periodic y=wall/open` -> a pair of sides an axis."""
    kinds = dict(entry.split("=", 1) for entry in given)
    return {axis: (kind.split("/")[0], kind.split("/")[-1]) for axis, kind in kinds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a checkpoint or a Hub repository")
    parser.add_argument("--file", help="what xarray.open_dataset takes")
    parser.add_argument("--boundaries", nargs="+", help="kind of each axis: wall, open, periodic, or low/high")
    parser.add_argument("--steps", type=int, default=10, help="frames to forecast")
    parser.add_argument("--output", type=Path, required=True, help="NetCDF file for the forecast")
    parser.add_argument("--tiny", action="store_true", help="a model of random weights, a data set that is made up")
    arguments = parser.parse_args()
    if arguments.tiny:
        dataset, boundaries = travelling_wave(), {"x": "periodic", "y": "wall"}
        torch.manual_seed(0)
        pipe = WalrusPipeline(WalrusForPrediction(WalrusConfig.tiny(**TINY)))
    elif arguments.model and arguments.file and arguments.boundaries:
        dataset, boundaries = xarray.open_dataset(arguments.file), parse_boundaries(arguments.boundaries)
        pipe = WalrusPipeline.from_pretrained(arguments.model)
    else:
        parser.error("expected --model, --file and --boundaries, or --tiny")
    trajectory = from_xarray(dataset, boundaries)
    forecast = to_xarray(pipe.predict(trajectory, arguments.steps, seed=0))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    forecast.to_netcdf(arguments.output)
    print(forecast)
    print("written:", arguments.output)


if __name__ == "__main__":
    main()
