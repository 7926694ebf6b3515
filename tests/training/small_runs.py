"""Small pretraining runs on planes and volumes: sources, settings, several processes, and what they leave behind."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

from tests.data.wells import write_source
from walrus_hf.training.arguments import PretrainingArguments

GRIDS = {"plane": (8, 12), "wide": (16, 8), "volume": (8, 12, 8), "deep": (12, 8, 8)}
MODEL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "stem_hidden_size": 8, "tokens_per_axis": 4, "tokens_per_axis_3d": 4, "initializer_range": 0.5,
    "drop_path_rate": 0.3,
}  # fmt: skip
STEPS, SLOTS = 6, 4
# What may differ between two runs of the same steps.
TIMES = ("seconds", "samples_per_second", "frames_per_second", "predicted_utilisation", "measured_utilisation")
CONFIGS = Path(__file__).parents[2] / "examples" / "accelerate_configs"
# `accelerate launch` with what its processes import. They are forked from it, by torchrun's options of these names: for
# short runs importing everything in each of them takes longer than the runs.
LAUNCHER = "import walrus_hf.training.loop; from accelerate.commands.launch import main; main()"
FORKED = {"PET_START_METHOD": "fork", "PET_RUN_PATH": "1"}


def write_sources(folder: Path) -> None:
    """Four sources, `deep` without a validation split."""
    for n, (name, grid) in enumerate(GRIDS.items()):
        write_source(folder / name, files=2, trajectories=2, frames=12, grid=grid, first_seed=100 * n)
        if name != "deep":
            write_source(folder / name, 1, 1, 12, 100 * n + 50, "valid", grid=grid)


def settings(data: Path, output: Path, groups: int = 1, **changes) -> PretrainingArguments:
    """Of a run whose steps hold four slots, whatever the number of groups."""
    given = {
        "sources": [str(data / name) for name in GRIDS], "output_dir": str(output), "seed": 5, "max_steps": STEPS,
        "model_size": "tiny", "model": MODEL, "gradient_accumulation_steps": SLOTS // groups, "batch_size": 2,
        "frames": 4, "stride_max": 2, "learning_rate": 1e-3, "save_steps": 3, "validation_steps": 3,
        "validation_batches": 3, "ema_decay": 0.5, "log_with": ["none"],
    }  # fmt: skip
    return PretrainingArguments(**{**given, **changes})


def plane_and_volume(data: Path) -> dict:
    """Settings of one slot for each of two groups: one works on a plane while the other works on a volume."""
    return {"sources": [str(data / name) for name in ("plane", "volume")], "gradient_accumulation_steps": 1}


def without_times(rows: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def launch(config: str, processes: int, *command: str, groups: int | None = None) -> list[str]:
    """`accelerate launch` with a configuration of the examples, on as many CPU processes of this machine."""
    settings = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text())
    given = [
        "--num_processes",
        str(processes),
        "--num_machines",
        "1",
        "--machine_rank",
        "0",
        "--main_process_port",
        "0",
    ]
    if groups is not None:
        sizes = settings["parallelism_config"]
        assert sizes["parallelism_config_dp_replicate_size"] * sizes["parallelism_config_dp_shard_size"] == 96
        given += ["--parallelism_config_dp_replicate_size", str(groups)]
        given += ["--parallelism_config_dp_shard_size", str(processes // groups)]
    return [sys.executable, "-c", LAUNCHER, "--config_file", str(CONFIGS / f"{config}.yaml"), *given, *command]


def run_processes(command: list[str], timeout: int = 300) -> subprocess.CompletedProcess:
    """Of a `launch`, to its end."""
    environment = cpu_environment() | FORKED
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=timeout)


def assert_finished(done: subprocess.CompletedProcess) -> None:
    at = max(done.stderr.find("Traceback") - 2000, 0)
    assert done.returncode == 0, done.stderr[at:][:6000]


def cpu_environment() -> dict[str, str]:
    # Accelerate starts several processes for accelerators only, but then lets them compute on the CPU.
    return {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
