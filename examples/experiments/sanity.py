"""Does a small HalfWalrus learn to forecast one scenario?

    python examples/simulate.py runs/nano/data --recipe nano
    OMP_NUM_THREADS=1 python examples/experiments/sanity.py --output runs/experiments
    OMP_NUM_THREADS=1 python examples/experiments/sanity.py --output runs/sanity-tiny --tiny   # does it run?

HalfWalrus at an eighth of its width and depth (heads of 68 channels and a gated width of twice the hidden one, as
there), 200 steps on shear flow alone. The same command goes on after a stop.
"""

import json
from pathlib import Path

import numpy as np
from common import TINY, Results, errors_from, parser, tiny_data, train, trajectories, write, written_to

from walrus_hf import WalrusForPrediction

SCENARIO = "shear_flow"
EIGHTH = {
    "hidden_size": 136, "intermediate_size": 272, "num_hidden_layers": 4, "num_attention_heads": 2,
    "stem_hidden_size": 44,
}  # fmt: skip


def draw(losses: list[float], model: np.ndarray, still: np.ndarray, file: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, (a, b) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    a.plot(np.arange(1, len(losses) + 1), losses, lw=0.8)
    a.set(xlabel="training step", ylabel="loss, in units of the change", ylim=(0, None))
    lead = np.arange(1, model.shape[1] + 1)
    for curves, color, label in ((model, "C0", "model"), (still, "grey", "nothing changes")):
        b.plot(lead, np.median(curves, 0), color=color, label=label)
        b.fill_between(lead, curves.min(0), curves.max(0), color=color, alpha=0.2, lw=0)
    b.set(xlabel="step", ylabel="VRMSE (median and range)", yscale="log")
    b.legend()
    figure.savefig(file, dpi=100)
    plt.close(figure)


def main() -> None:
    given = parser(__doc__).parse_args()
    scenario, steps, lead = (TINY[0], 2, 3) if given.tiny else (SCENARIO, 200, 60)
    if given.tiny:
        tiny_data(given.data, (scenario,))
    source = given.data / "0" / scenario
    folder = given.output / "sanity" / "half"
    arguments = train(folder, [source], steps, 0, given.tiny, model={} if given.tiny else EIGHTH)
    results = Results(given.output / "sanity" / "results.json", scenario=scenario, steps=steps, lead=lead)
    test = trajectories(source / "data" / "test")

    def forecast() -> dict:
        return errors_from(WalrusForPrediction.from_pretrained(folder / "model"), test, lead)

    model, still = (
        np.array(found["curves"])
        for found in (results.get("model", forecast), results.get("still", lambda: errors_from(None, test, lead)))
    )
    losses = [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    parameters = sum(p.numel() for p in WalrusForPrediction(arguments.config()).parameters())
    made = {
        "parameters": parameters,
        "loss": [round(float(np.mean(part)), 4) for part in (losses[:10], losses[-10:])],
        "next frame": [round(float(np.median(x[:, 0])), 4) for x in (model, still)],
        f"steps 1:{lead}": [round(float(np.median(x.mean(1))), 4) for x in (model, still)],
    }
    write(written_to(given) / "sanity.json", json.dumps(made) + "\n")
    draw(losses, model, still, written_to(given) / "sanity.png")
    (one, idle), (far, far_idle) = made["next frame"], made[f"steps 1:{lead}"]
    text = "\n".join([
        "# A small HalfWalrus on one scenario", "",
        "```bash", "python examples/simulate.py runs/nano/data --recipe nano",
        "OMP_NUM_THREADS=1 python examples/experiments/sanity.py --output runs/experiments", "```", "",
        f"{parameters:,} parameters, {steps} steps of four windows of {scenario}, one seed. Its loss falls from "
        f"{made['loss'][0]:.3f} (first ten steps) to {made['loss'][1]:.3f} (last ten). VRMSE of the next frame, mean "
        f"over fields, median over {len(model)} windows of the test trajectories: {one:.4f}; where nothing changes "
        f"{idle:.4f}. Over steps 1 to {lead}: {far:.4f} and {far_idle:.4f}.", "", "![sanity](sanity.png)", "",
        f"It means that the recipe trains a model of this shape: the next frame has {1 - one / idle:.0%} less error "
        f"than the forecast that nothing changes. Over {lead} steps it has {1 - far / far_idle:.0%} less: so short a "
        "training does not reach that far. One seed, so it tells no models apart.", "",
    ])  # fmt: skip
    write(written_to(given) / "sanity.md", text)
    print(text)


if __name__ == "__main__":
    main()
