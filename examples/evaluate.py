"""Measure a model by the published protocol beside baselines, with and without jitter, and compare the two.

    python examples/evaluate.py --model walrus-nano --data demo-output/unseen --output runs/evaluation

Smaller, on waves that it simulates itself, with a model of random weights:

    python examples/evaluate.py --tiny --output runs/evaluation-tiny

The command line does the same:

    walrus-hf evaluate --model walrus-nano --data demo-output/unseen --output runs/evaluation/jitter
    walrus-hf evaluate --model walrus-nano --data demo-output/unseen --no-jitter --output runs/evaluation/still
    walrus-hf compare runs/evaluation/still runs/evaluation/jitter
"""

import argparse
from pathlib import Path

import torch

from walrus_hf import WalrusConfig, WalrusForPrediction, WalrusPipeline
from walrus_hf.data import simulate
from walrus_hf.evaluation import Protocol, compare, evaluate
from walrus_hf.evaluation.baselines import load_baseline
from walrus_hf.evaluation.protocol import MEAN_OF_FIELDS

TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "stem_hidden_size": 8, "tokens_per_axis": 4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a checkpoint or a Hub repository")
    parser.add_argument("--data", nargs="+", help="files, folders, URLs or names of scenarios")
    parser.add_argument("--output", type=Path, required=True, help="folder for the two evaluations")
    parser.add_argument("--tiny", action="store_true", help="a model of random weights on small waves")
    parser.add_argument("--overwrite", action="store_true", help="replace former evaluations")
    arguments = parser.parse_args()
    if arguments.tiny:
        simulate.write_simulations(
            "wave", arguments.output, 3, split="test", grid=(24, 16), frames=30, overwrite=arguments.overwrite
        )
        arguments.data = [arguments.output / "wave"]
        torch.manual_seed(0)
        pipe = WalrusPipeline(WalrusForPrediction(WalrusConfig.tiny(**TINY)))
    elif arguments.model and arguments.data:
        pipe = WalrusPipeline.from_pretrained(arguments.model)
    else:
        parser.error("expected --model and --data, or --tiny")

    baselines = {name: load_baseline(name) for name in ("linear_extrapolation", "dmd")}
    for name, jitter in (("still", False), ("jitter", True)):
        results = evaluate(
            pipe, arguments.data, arguments.output / name, Protocol(jitter=jitter), baselines,
            model_name=arguments.model, overwrite=arguments.overwrite,
        )  # fmt: skip
        print(f"\n{name}: median VRMSE by lead time")
        for scenario, found in results["scenarios"].items():
            for who, scores in found["forecasters"].items():
                windows = {window: fields[_summary(fields)]["median"] for window, fields in scores["windows"].items()}
                print(f"  {scenario}, {who}: " + ", ".join(f"{w} {value:.4f}" for w, value in windows.items()))
            for note in found["notes"]:
                print(f"  {scenario}: {note}")

    print("\njitter against none, on the same trajectories (negative: jitter is better)")
    for row in compare(arguments.output / "still", arguments.output / "jitter")["rows"]:
        interval = f"[{row['low']:+.4f}, {row['high']:+.4f}]"
        print(f"  {row['scenario']}, {row['field']}, steps {row['window']}: {row['difference']:+.4f} {interval}")


def _summary(fields: dict) -> str:
    """The mean of the fields; a single field is its own."""
    return MEAN_OF_FIELDS if MEAN_OF_FIELDS in fields else next(iter(fields))


if __name__ == "__main__":
    main()
