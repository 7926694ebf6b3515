"""Small pretraining runs on planes and volumes: sources, settings, and what they leave behind."""

from pathlib import Path

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
        "validation_batches": 3, "ema_decay": 0.5,
    }  # fmt: skip
    return PretrainingArguments(**{**given, **changes})


def without_times(rows: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]
