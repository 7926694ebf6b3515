"""What the members of an ensemble know: CRPS, spread against skill, and ranks of the truth.

    python examples/ensemble.py --model walrus-nano --data demo-output/unseen --members 8

Smaller, on waves that it simulates itself, with a model of random weights:

    python examples/ensemble.py --tiny

Members differ in the jitter of their patches alone. A spread/skill below 1, and ranks that pile up at both ends, say
that they are more sure of themselves than they should be: their spread is not the uncertainty of the forecast.
"""

import argparse
import tempfile

import torch

from walrus_hf import WalrusConfig, WalrusForPrediction, WalrusPipeline
from walrus_hf.data import simulate
from walrus_hf.evaluation import Protocol, evaluate

TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "stem_hidden_size": 8, "tokens_per_axis": 4}
LEAD_TIMES = (1, 5, 10, 20, 40, 60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a checkpoint or a Hub repository")
    parser.add_argument("--data", nargs="+", help="files, folders, URLs or names of scenarios")
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--output", help="folder for the evaluation; without it, it is only printed")
    parser.add_argument("--tiny", action="store_true", help="a model of random weights on small waves")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.tiny:
            arguments.data = simulate.write_simulations("wave", folder, 2, split="test", grid=(24, 16), frames=30)
            torch.manual_seed(0)
            pipe = WalrusPipeline(WalrusForPrediction(WalrusConfig.tiny(**TINY)))
        elif arguments.model and arguments.data:
            pipe = WalrusPipeline.from_pretrained(arguments.model)
        else:
            parser.error("expected --model and --data, or --tiny")
        protocol = Protocol(ensemble_size=arguments.members)
        results = evaluate(pipe, arguments.data, arguments.output, protocol, model_name=arguments.model)
    for scenario, found in results["scenarios"].items():
        ensemble = found["forecasters"]["model"]["ensemble"]
        for field, scores in ensemble["fields"].items():
            print(f"\n{scenario}, {field}, {ensemble['members']} members")
            for step, crps, spread, ratio in zip(*(scores[k] for k in ("step", "crps", "spread", "spread_skill"))):
                if step in LEAD_TIMES:
                    print(f"  step {step:3}: CRPS {crps:.4f}, spread {spread:.4f}, spread/skill {ratio:.2f}")
            for window, ranks in scores["rank_histogram"].items():
                print(f"  ranks, steps {window}: " + " ".join(f"{share:.2f}" for share in ranks))


if __name__ == "__main__":
    main()
