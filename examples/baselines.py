"""Train Walrus and its baselines on one stream, at equal size and for equal seconds, and compare them.

    python examples/simulate.py runs/simulated
    python examples/baselines.py --data runs/simulated/wave --output runs/baselines --seconds 300

A smaller and quicker one, on waves that it simulates itself:

    python examples/baselines.py --tiny --output runs/baselines-tiny

Each is a folder then. To measure them again, with other settings, beside any model:

    walrus-hf evaluate --model runs/baselines/walrus --data runs/simulated/wave --split valid \\
        --baseline runs/baselines/unet --baseline runs/baselines/fno --baseline dmd --output runs/again
"""

import argparse
from pathlib import Path

import torch

from walrus_hf import WalrusConfig, WalrusForPrediction, WalrusPipeline
from walrus_hf.data import load_stream, simulate
from walrus_hf.evaluation import Protocol, evaluate
from walrus_hf.evaluation.baselines import PrincipalComponents, load_baseline
from walrus_hf.evaluation.neural_baselines import ARCHITECTURES, FieldLayout, NeuralBaseline, parameter_count, train
from walrus_hf.evaluation.results import table_lines

TINY = {
    "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "stem_hidden_size": 8, "tokens_per_axis": 4,
    "field2id": {"pressure": 0, "velocity_x": 1, "velocity_y": 2, "velocity_z": 3},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder in The Well's layout, one data set")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=300.0, help="of training, for each")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--modes", type=int, help="of the Fourier operators, along each axis")
    parser.add_argument("--split", default="valid", help="what they are compared on")
    parser.add_argument("--tiny", action="store_true", help="small models on small waves, for a moment each")
    arguments = parser.parse_args()
    if arguments.tiny:
        arguments.data, arguments.seconds, arguments.modes = arguments.output / "wave", 0.3, 4
        for split, trajectories in (("train", 4), ("valid", 2)):
            simulate.write_simulations("wave", arguments.output, trajectories, split=split, grid=(16, 24), frames=30)
    elif arguments.data is None:
        parser.error("expected --data FOLDER or --tiny")

    torch.manual_seed(0)
    model = WalrusForPrediction(WalrusConfig.tiny(**TINY if arguments.tiny else {}, drop_path_rate=0.0))
    pipe = WalrusPipeline(model.to("cuda" if torch.cuda.is_available() else "cpu"))
    # Principal components need one time step, so all get the same. Batches are those of the model's vocabulary.
    stream = load_stream(arguments.data, stride_range=(1, 1), batch_size=arguments.batch_size, processor=pipe.processor)
    rows = train(model, stream, arguments.seconds, learning_rate=2e-3)
    print(f"walrus: {parameter_count(model)} parameters, {len(rows)} steps")
    pipe.save_pretrained(arguments.output / "walrus")

    baselines = {name: load_baseline(name) for name in ("linear_extrapolation", "dmd")}
    layout = FieldLayout.of_stream(stream, pipe.processor)
    for name in ARCHITECTURES:
        network = NeuralBaseline.of_equal_size(name, model, layout, arguments.modes, processor=pipe.processor)
        network.fit(stream, arguments.seconds)
        print(f"{name}: {network.parameters} parameters at width {network.settings['width']}, {len(network.log)} steps")
        network.save(arguments.output / name)
        baselines[name] = network
    components = PrincipalComponents(processor=pipe.processor)
    components.fit(stream, arguments.seconds)
    components.save(arguments.output / components.name)
    baselines[components.name] = components

    protocol = Protocol(split=arguments.split)
    results = evaluate(pipe, arguments.data, arguments.output / "results", protocol, baselines, model_name="walrus")
    for name, scenario in results["scenarios"].items():
        print(f"\n{name}: median VRMSE by lead time")
        for line in table_lines(scenario, results["protocol"]["windows"], intervals=False):
            print("  ".join(f"{cell:<20}" for cell in line))


if __name__ == "__main__":
    main()
