"""Fine-tune a Walrus model on your simulations with a LoRA adapter.

    python examples/finetune_lora.py --model walrus-1.3b --data my_simulations/ --output runs/adapter
    accelerate launch --config_file examples/accelerate_configs/ddp.yaml examples/finetune_lora.py \\
        --model walrus-1.3b --data my_simulations/ --output runs/adapter
    python examples/finetune_lora.py --output runs/tiny --tiny      # a stand-in model and data: does it run?

`--data` is a file, a folder or a URL of The Well's format, a scenario's name, a netCDF file or a folder of them (as
`to_xarray` makes it), or a YAML file that says what `.npy` files beside it are:

    fields:
      density: density.npy        # (trajectories, frames, *grid)
      velocity: velocity.npy      # (trajectories, frames, *grid, components)
    axes: [x, y]
    boundary_conditions: {x: periodic, y: [wall, open]}
    dt: 0.1

`--field-name rho=density` tells the model's name of a field, `--new-field smoke=tracer` teaches one that it does not
know. After a stop, the same command with `--resume`. `walrus-hf finetune` is the short form.
"""

import argparse
from pathlib import Path

from accelerate import Accelerator

from walrus_hf import WalrusConfig, WalrusForPrediction, WalrusPipeline, save_well
from walrus_hf.adapters import DEFAULT_PRESET
from walrus_hf.allocator import return_freed_memory
from walrus_hf.data.simulate import acoustic_scattering
from walrus_hf.finetuning import fit
from walrus_hf.finetuning_results import read_results


def make_tiny(folder: Path) -> tuple[str, str]:
    """A model that knows nothing and three simulations."""
    with Accelerator().main_process_first():
        if not folder.is_dir():
            WalrusPipeline(WalrusForPrediction(WalrusConfig.tiny(tokens_per_axis=4))).save_pretrained(folder / "model")
            runs = [acoustic_scattering(seed, grid=(16, 16), frames=8) for seed in range(3)]
            save_well(
                [run for run in runs if run.boundary_conditions == runs[0].boundary_conditions], folder / "data.hdf5"
            )
    return str(folder / "model"), str(folder / "data.hdf5")


def pairs(given: list[str]) -> dict[str, str | None]:
    return {own: known or None for own, _, known in (item.partition("=") for item in given)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a checkpoint, or a Hub repository")
    parser.add_argument("--data", help="what to train on")
    parser.add_argument("--output", type=Path, required=True, help="folder for the adapter, its card and pictures")
    parser.add_argument("--validation", help="default: the split `valid`, or a tenth of the trajectories")
    parser.add_argument(
        "--preset", default=DEFAULT_PRESET, help="all-linear, attention, mlp, attention-mlp, dora or rslora"
    )
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--max-steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--frames", type=int, help="input frames, from 2 on")
    parser.add_argument("--frame-stride", type=int, default=1)
    parser.add_argument("--normalization", default="sample", help="sample, global, or the path of a stats.yaml")
    parser.add_argument("--field-name", action="append", default=[], metavar="OWN=KNOWN")
    parser.add_argument("--new-field", action="append", default=[], metavar="OWN[=LIKE]")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    if given.tiny:
        given.model, given.data = make_tiny(given.output.with_name(f"{given.output.name}-stand-in"))
        given.max_steps, given.rank = 2, 4
    if not given.model or not given.data:
        parser.error("--model and --data are needed, or --tiny")
    return_freed_memory()  # on a CPU gradient checkpointing saves nothing without
    fit(
        given.model, given.data, given.output, given.validation, preset=given.preset, rank=given.rank,
        max_steps=given.max_steps, batch_size=given.batch_size, learning_rate=given.learning_rate, frames=given.frames,
        frame_stride=given.frame_stride, normalization=given.normalization, field_names=pairs(given.field_name),
        new_fields=pairs(given.new_field), resume=given.resume,
    )  # fmt: skip
    accelerator = Accelerator()
    results = read_results(given.output)
    if accelerator.is_main_process and results is not None:
        print(f"one-step VRMSE on held-out windows: {results['vrmse']}")
        print(
            f"written: {given.output}; WalrusPipeline.from_pretrained({str(given.output)!r}) finds the base by itself"
        )
    accelerator.end_training()


if __name__ == "__main__":
    main()
