"""The demo's trainer: batches of one scenario, a loss that falls, a checkpoint that forecasts."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from walrus_hf import Trajectory, WalrusPipeline, save_well

pytest.importorskip("accelerate")
from walrus_hf.training.plain_trainer import BATCH, FRAMES, draw_batch, load_scenarios

from ..small_model import small_model


def waves(seed: int, frames: int = 12, grid=(16, 24)) -> Trajectory:
    """A wave that travels along x: something a model can learn within seconds."""
    phase = np.random.default_rng(seed).uniform(0, 2 * np.pi)
    t, x, y = np.ogrid[:frames, : grid[0], : grid[1]]
    values = np.sin(2 * np.pi * x / grid[0] - 0.3 * t + phase) * (1 + 0.2 * np.cos(2 * np.pi * y / grid[1]))
    return Trajectory({"pressure": values.astype(np.float32)}, {"x": "periodic", "y": "periodic"}, name=f"wave_{seed}")


def test_a_batch_holds_consecutive_frames_of_one_scenario_and_their_successors():
    pipe = WalrusPipeline(small_model(field2id=None))
    trajectories = [waves(seed) for seed in range(3)]
    batch = draw_batch(pipe, trajectories, np.random.default_rng(0))
    assert batch["field_values"].shape == (BATCH, FRAMES, 1, 16, 24, 1) == batch["labels"].shape
    assert torch.equal(batch["field_values"][:, 1:], batch["labels"][:, :-1])
    windows = {
        t.fields["pressure"][s : s + FRAMES].tobytes() for t in trajectories for s in range(t.num_frames - FRAMES)
    }
    drawn = [row[:, 0, :, :, 0].numpy().tobytes() for row in batch["field_values"]]
    assert set(drawn) <= windows
    assert len(set(drawn)) > 1


def test_a_folder_without_files_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected .hdf5 files of The Well, found none"):
        load_scenarios(tmp_path)


@pytest.mark.parametrize("processes", [1, 2])
def test_accelerate_launch_trains_and_writes_a_checkpoint_that_forecasts(processes, tmp_path):
    (tmp_path / "data").mkdir()
    save_well([waves(seed) for seed in range(4)], tmp_path / "data" / "wave.hdf5")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]
    launch += ["--num_processes", str(processes), "--dynamo_backend", "no"] + ["--multi_gpu"] * (processes > 1)
    launch += ["-m", "walrus_hf.training.plain_trainer", "--data", str(tmp_path / "data")]
    launch += ["--output", str(tmp_path / "model"), "--minutes", "0.1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(launch, capture_output=True, text=True, env=environment, check=False, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "wave loss" in done.stderr  # the progress bar
    log = [json.loads(line) for line in (tmp_path / "model" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in log]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    context = waves(99).frames(0, 6)
    forecast = WalrusPipeline.from_pretrained(tmp_path / "model").predict(context, 2, seed=0, progress=False)
    assert forecast.num_frames == 2
