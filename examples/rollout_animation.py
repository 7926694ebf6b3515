"""Forecast a simulation that the model has not seen, and look at it: film, panels, spectra, error against lead time.

    python examples/rollout_animation.py --output pictures
    python examples/rollout_animation.py --output pictures --film mp4 --overwrite
    python examples/rollout_animation.py --model runs/tiny/model --scenario turbulence_3d --output volumes
    python examples/rollout_animation.py --tiny --output pictures        # random weights, seconds on a CPU

Of volumes the film shows the largest value along the last axis, and volume.png slices across all three.
Needs the extras `plot` and `sim`: pip install -e '.[plot,sim]'
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from walrus_hf import WalrusConfig, WalrusForPrediction, WalrusPipeline
from walrus_hf.data import simulate
from walrus_hf.metrics import persistence, score
from walrus_hf.plotting import animate, plot_error_growth, plot_panels, plot_spectra, plot_volume

SIMULATIONS = {"shear_flow": simulate.shear_flow, "turbulence_3d": simulate.turbulence_3d}
# As the demo and examples/simulate.py simulate them.
SETTINGS = {"shear_flow": {"grid": (64, 64)}, "turbulence_3d": {"grid": (16, 16, 16), "dt": 0.025}}
FIRST = 8  # frames to forecast from


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="walrus-nano", help="folder of a checkpoint, or a Hub repository")
    parser.add_argument("--scenario", choices=SIMULATIONS, default="shear_flow")
    parser.add_argument("--output", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--film", choices=("gif", "mp4"), default="gif")
    parser.add_argument("--steps", type=int, default=24, help="frames to forecast")
    parser.add_argument("--trajectories", type=int, default=5, help="how many, for the median and range of the error")
    parser.add_argument("--overwrite", action="store_true", help="replace existing pictures")
    parser.add_argument(
        "--tiny", action="store_true", help="random weights and few frames: shows the way, not the skill"
    )
    given = parser.parse_args()
    if given.tiny:
        given.steps, given.trajectories = 4, 1
    return given


def forecasts(pipe: WalrusPipeline, given: argparse.Namespace):
    """For each trajectory what went before, the forecast, and the truth."""
    for seed in range(given.trajectories):
        whole = SIMULATIONS[given.scenario](1000 + seed, frames=FIRST + given.steps, **SETTINGS[given.scenario])
        context = whole.frames(0, FIRST)
        yield context, pipe.predict(context, given.steps, seed=seed, progress=False), whole.frames(FIRST)


def error_curves(results: list) -> dict[str, dict[str, np.ndarray]]:
    """forecaster -> field -> (3, steps): median, lowest and highest VRMSE over the trajectories."""

    def curve(found: list[np.ndarray]) -> np.ndarray:
        return np.stack([np.median(found, axis=0), np.min(found, axis=0), np.max(found, axis=0)])

    scores = {
        "Walrus": [score(forecast, truth) for _, forecast, truth in results],
        "persistence": [score(persistence(context, truth.num_frames), truth) for context, _, truth in results],
    }
    return {who: {name: curve([s[name] for s in found]) for name in found[0]} for who, found in scores.items()}


def main() -> None:
    given = arguments()
    given.output.mkdir(parents=True, exist_ok=True)
    if given.tiny:
        pipe = WalrusPipeline(WalrusForPrediction(WalrusConfig.tiny(tokens_per_axis=4, tokens_per_axis_3d=2)))
    else:
        pipe = WalrusPipeline.from_pretrained(given.model)
    results = list(forecasts(pipe, given))
    _, forecast, truth = results[0]
    forecast.name = truth.name = given.scenario
    again = {"overwrite": given.overwrite}
    volume = len(forecast.axes) == 3
    view = "maximum" if volume else "slice"
    written = [
        animate(forecast, truth, given.output / f"film.{given.film}", view=view, **again),
        plot_panels(forecast, truth, given.output / "panels.png", view=view, **again),
        plot_spectra(forecast, truth, given.output / "spectra.png", field="velocity", **again),
        plot_error_growth(error_curves(results), given.output / "error_growth.png", dt=forecast.dt, **again),
    ]
    if volume:
        step = forecast.num_frames // 2
        written.append(plot_volume(forecast, truth, given.output / "volume.png", step, field="velocity", **again))
    for path in written:
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
