"""Pretrain a Walrus model.

On this machine, with settings from a recipe and flags that override it:

    python examples/pretrain.py --config examples/configs/tiny.yaml --output_dir runs/tiny
    accelerate launch --config_file examples/accelerate_configs/cpu.yaml examples/pretrain.py \\
        --config examples/configs/tiny.yaml --output_dir runs/tiny

On several GPUs, and on 24 nodes of four (examples/accelerate_configs/hsdp_24x4.slurm):

    accelerate launch --config_file examples/accelerate_configs/ddp.yaml examples/pretrain.py \\
        --config examples/configs/half.yaml --output_dir runs/half
    accelerate launch --config_file examples/accelerate_configs/fsdp2.yaml examples/pretrain.py \\
        --config examples/configs/walrus-1.3b.yaml --strategy fsdp2 --output_dir runs/walrus
    sbatch examples/accelerate_configs/hsdp_24x4.slurm

After a stop, the same command with `--resume_from_checkpoint latest`. `--help` lists all settings.
"""

from walrus_hf.training.__main__ import main

if __name__ == "__main__":
    main()
