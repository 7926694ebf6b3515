"""Pretrain a Walrus model.

On this machine, with settings from a recipe and flags that override it:

    python examples/pretrain.py --config examples/configs/tiny.yaml --output_dir runs/tiny
    accelerate launch --config_file examples/accelerate_configs/cpu.yaml examples/pretrain.py \\
        --config examples/configs/tiny.yaml --output_dir runs/tiny

Four steps on simulations that it makes itself: does it run?

    python examples/pretrain.py --tiny --output_dir runs/try

On several GPUs, and on 24 nodes of four (examples/accelerate_configs/hsdp_24x4.slurm):

    accelerate launch --config_file examples/accelerate_configs/ddp.yaml examples/pretrain.py \\
        --config examples/configs/half.yaml --output_dir runs/half
    accelerate launch --config_file examples/accelerate_configs/fsdp2.yaml examples/pretrain.py \\
        --config examples/configs/walrus-1.3b.yaml --strategy fsdp2 --output_dir runs/walrus
    sbatch examples/accelerate_configs/hsdp_24x4.slurm

After a stop, the same command with `--resume_from_checkpoint latest`. `--help` lists all settings.
"""

import sys
from pathlib import Path

from accelerate import Accelerator

from walrus_hf.training.__main__ import main

CONFIG = Path(__file__).parent / "configs" / "tiny.yaml"


def tiny(arguments: list[str]) -> list[str]:
    """Settings of a short run on small waves, which are written once; those that are given win."""
    from simulate import write  # beside this file

    with Accelerator().local_main_process_first():
        write("wave", "runs/simulated-tiny", {"train": 2, "valid": 1}, 0, {"grid": (24, 16), "frames": 12})
    settings = ["--config", str(CONFIG), "--sources", "runs/simulated-tiny/wave", "--max_steps", "4"]
    settings += ["--validation_steps", "4", "--log_with", "none"]
    return [*settings, *(word for word in arguments if word != "--tiny")]


if __name__ == "__main__":
    main(tiny(sys.argv[1:]) if "--tiny" in sys.argv else None)
