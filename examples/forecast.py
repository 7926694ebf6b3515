"""Forecast a simulation file, compare with what the file goes on to hold, and draw both.

    python examples/forecast.py --model walrus-nano --file demo-output/unseen/shear_flow.hdf5 --output runs/one

Smaller, on a wave that it simulates itself, with a model of random weights:

    python examples/forecast.py --tiny --output runs/forecast-tiny
"""

import argparse
from pathlib import Path

import torch

from walrus_hf import WalrusConfig, WalrusForPrediction, WalrusPipeline, load_well, save_well
from walrus_hf.data import simulate
from walrus_hf.metrics import persistence
from walrus_hf.plotting import animate

TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "stem_hidden_size": 8, "tokens_per_axis": 4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a checkpoint or a Hub repository")
    parser.add_argument("--file", help="simulation in The Well's HDF5: a path or URL")
    parser.add_argument("--context", type=int, default=6, help="frames to forecast from")
    parser.add_argument("--steps", type=int, default=16, help="frames to forecast")
    parser.add_argument("--output", type=Path, required=True, help="folder for the forecast and its film")
    parser.add_argument("--tiny", action="store_true", help="a model of random weights on a small wave")
    arguments = parser.parse_args()
    if arguments.tiny:
        (arguments.file,) = simulate.write_simulations("wave", arguments.output, 1, grid=(24, 16), overwrite=True)
        torch.manual_seed(0)
        pipe = WalrusPipeline(WalrusForPrediction(WalrusConfig.tiny(**TINY)))
    elif arguments.model and arguments.file:
        pipe = WalrusPipeline.from_pretrained(arguments.model)
    else:
        parser.error("expected --model and --file, or --tiny")

    truth = load_well(arguments.file, frames=arguments.context + arguments.steps)
    context = truth.frames(0, arguments.context)
    forecast = pipe.predict(context, truth.num_frames - arguments.context, seed=0)
    print(forecast)
    still = pipe.evaluate(persistence(context, forecast.num_frames), truth)
    for field, scores in pipe.evaluate(forecast, truth).items():
        print(field, ", ".join(f"steps {w}: {v:.4f} (persistence {still[field][w]:.4f})" for w, v in scores.items()))
    arguments.output.mkdir(parents=True, exist_ok=True)
    print("written:", save_well(forecast, arguments.output / "forecast.hdf5", overwrite=True))
    print(
        "written:",
        animate(forecast, truth.frames(arguments.context), arguments.output / "forecast.gif", overwrite=True),
    )


if __name__ == "__main__":
    main()
