"""Train Walrus and its baselines on one stream, at equal size and for equal seconds, and compare them.

    python examples/simulate.py runs/simulated
    python examples/baselines.py --data runs/simulated/wave --output runs/baselines --seconds 300

On several data sets at once, with the geometry of a recipe for Walrus; what is trained already is not trained again:

    python examples/simulate.py runs/nano/data --recipe nano
    python examples/baselines.py --data runs/nano/data/0/{wave,shear_flow,gray_scott} --split test \\
        --recipe examples/configs/nano.yaml --output runs/baselines-nano --seconds 300

Beside a Walrus that is trained already (a new OUTPUT for each, since networks have its size):

    python examples/baselines.py --data runs/nano/data/0/{wave,shear_flow,gray_scott} --split test \\
        --model walrus-nano --networks unet --seconds 4560 --bfloat16 --output runs/baselines-long

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
from walrus_hf.training.arguments import PretrainingArguments, read_recipe

TINY = {
    "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "stem_hidden_size": 8, "tokens_per_axis": 4,
    "field2id": {"pressure": 0, "velocity_x": 1, "velocity_y": 2, "velocity_z": 3},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", help="folders in The Well's layout, all planes or all volumes")
    parser.add_argument("--recipe", type=Path, help="of a pretraining, for the geometry of Walrus; else tiny")
    parser.add_argument("--model", help="a Walrus that is trained already, in place of one that is trained here")
    parser.add_argument("--networks", nargs="*", choices=ARCHITECTURES, default=ARCHITECTURES, help="to train")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=300.0, help="of training, for each; on a CPU of its cores")
    parser.add_argument("--bfloat16", action="store_true", help="mixed precision in training, where that is faster")
    parser.add_argument("--frames", type=int, help="of the input; default: those of --model, else 6")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--modes", type=int, help="of the Fourier operators, along each axis")
    parser.add_argument("--split", default="valid", help="what they are compared on")
    parser.add_argument("--tiny", action="store_true", help="small models on small waves, for a moment each")
    arguments = parser.parse_args()
    if arguments.tiny:
        arguments.data, arguments.seconds, arguments.modes = [str(arguments.output / "wave")], 0.3, 4
        for split, trajectories in (("train", 4), ("valid", 2)) if not Path(arguments.data[0]).is_dir() else ():
            simulate.write_simulations("wave", arguments.output, trajectories, split=split, grid=(16, 24), frames=30)
    elif arguments.data is None:
        parser.error("expected --data FOLDER or --tiny")

    trained = arguments.model or (arguments.output / "walrus" if (arguments.output / "walrus").is_dir() else None)
    pipe = WalrusPipeline.from_pretrained(trained) if trained else untrained(arguments)
    model = pipe.model
    frames = arguments.frames or (pipe.processor.context_frames if arguments.model else 6)
    # Principal components need one time step, so all get the same. Batches are those of the model's vocabulary.
    stream = load_stream(
        arguments.data, frames=frames + 1, stride_range=(1, 1), batch_size=arguments.batch_size,
        processor=pipe.processor,
    )  # fmt: skip
    if not trained:  # with the rates of its recipes
        rows = train(model, stream, arguments.seconds, learning_rate=3e-3, muon=True, bfloat16=arguments.bfloat16)
        print(f"walrus: {parameter_count(model)} parameters, {len(rows)} steps")
        pipe.save_pretrained(arguments.output / "walrus")

    baselines = {name: load_baseline(name) for name in ("linear_extrapolation", "dmd")}
    layout = FieldLayout.of_stream(stream, pipe.processor, batches=16 * len(arguments.data))
    for name in arguments.networks:
        if not (arguments.output / name).is_dir():
            network = NeuralBaseline.of_equal_size(name, model, layout, arguments.modes, processor=pipe.processor)
            network.fit(stream, arguments.seconds, bfloat16=arguments.bfloat16)
            print(f"{name}: {network.parameters} parameters, {len(network.log)} steps", network.settings, flush=True)
            network.save(arguments.output / name)
        baselines[name] = load_baseline(arguments.output / name)
    if len(arguments.data) == 1:  # one grid and one set of fields
        components = PrincipalComponents(processor=pipe.processor)
        components.fit(stream, arguments.seconds)
        components.save(arguments.output / components.name, overwrite=True)
        baselines[components.name] = components

    protocol = Protocol(split=arguments.split)
    results = evaluate(
        pipe, arguments.data, arguments.output / "results", protocol, baselines,
        model_name=arguments.model or "walrus", overwrite=True,
    )  # fmt: skip
    for name, scenario in results["scenarios"].items():
        print(f"\n{name}: median VRMSE by lead time")
        for line in table_lines(scenario, results["protocol"]["windows"], intervals=False):
            print("  ".join(f"{cell:<20}" for cell in line))


def untrained(arguments: argparse.Namespace) -> WalrusPipeline:
    """With the geometry that was asked for, and all of its weights random."""
    torch.manual_seed(0)
    if arguments.recipe is None:
        config = WalrusConfig.tiny(**TINY if arguments.tiny else {}, drop_path_rate=0.0)
    else:
        config = PretrainingArguments(**read_recipe(arguments.recipe)).config()
    model = WalrusForPrediction(config)
    return WalrusPipeline(model.to("cuda" if torch.cuda.is_available() else "cpu"))


if __name__ == "__main__":
    main()
