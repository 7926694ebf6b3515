"""An evaluation tells a model that works from one whose parts are switched off, and its memory stays flat."""

import tracemalloc

import numpy as np
import pytest
import torch

from walrus_hf import Trajectory, WalrusForPrediction, WalrusPipeline, WalrusProcessor, save_well
from walrus_hf.evaluation import Protocol, evaluate, kept_forecasts, sources

from ..small_model import small_config
from .conftest import noise

TRAVELLING = Protocol(start=6, windows={"1": (1, 1), "1:4": (1, 4)}, steps=4, resamples=10, jitter=False)


def travelling(seed, frames=10, grid=(16, 16)):
    """A smooth pattern that moves with a speed of its own: only who compares frames can know where it will be."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(*(2 * np.pi * np.arange(n) / n for n in grid), indexing="ij")
    speed, phases = rng.uniform(-0.5, 0.5, size=2), rng.uniform(0, 2 * np.pi, size=3)
    t = np.arange(frames)[:, None, None]
    x, y = x - speed[0] * t, y - speed[1] * t
    pattern = np.sin(x + phases[0]) + np.cos(y + phases[1]) + 0.5 * np.sin(x + y + phases[2])
    return Trajectory({"pressure": pattern}, {"x": "periodic", "y": "periodic"}, name=f"travelling_{seed}")


@pytest.fixture(scope="module")
def trained() -> WalrusPipeline:
    torch.manual_seed(0)
    model = WalrusForPrediction(small_config(field2id=None, tokens_per_axis=4, initializer_range=0.05))
    processor = WalrusProcessor(tokens_per_axis=4, jitter=False, num_hidden_layers=2)
    batch = [processor(travelling(seed, frames=7)) for seed in range(100, 164)]
    values = torch.cat([inputs["field_values"] for inputs in batch])
    ids = batch[0]["field_ids"].expand(16, -1)
    sides = batch[0]["boundary_conditions"].expand(16, -1, -1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=80)
    for step in range(80):
        rows = torch.randint(len(values), (16,), generator=torch.Generator().manual_seed(step))
        loss = model(values[rows, :-1], ids, boundary_conditions=sides, labels=values[rows, 1:]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return WalrusPipeline(model, processor)


def test_a_model_whose_blocks_are_switched_off_is_visibly_worse(trained, tmp_path):
    data = save_well([travelling(seed) for seed in range(3)], tmp_path / "travelling.hdf5")

    def error(who="model"):
        results = evaluate(trained, data, protocol=TRAVELLING, progress=False)
        return results["scenarios"]["travelling"]["forecasters"][who]["windows"]["1"]["pressure"]["median"]

    whole = error()
    assert whole < 0.5 * error("persistence")
    for block in trained.model.model.layers:
        kept = {name: value.clone() for name, value in block.state_dict().items()}
        with torch.no_grad():
            for name, parameter in block.named_parameters():
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    parameter.zero_()
        assert error() > 2 * whole
        block.load_state_dict(kept)
    assert error() == whole


def test_memory_grows_neither_with_the_steps_nor_with_the_trajectories(pipe, tmp_path, monkeypatch):
    grid, frames = (96, 64), 32
    frame_bytes = 4 * 3 * 96 * 64
    monkeypatch.setattr(sources, "CHUNK_BYTES", 4 * frame_bytes)
    monkeypatch.setattr(kept_forecasts, "KEPT_BYTES", 4 * frame_bytes)
    few = save_well([noise(frames, seed, grid) for seed in range(1)], tmp_path / "few.hdf5")
    many = save_well([noise(frames, seed, grid) for seed in range(4)], tmp_path / "many.hdf5")

    def peak(data, steps):
        protocol = Protocol(start=6, steps=steps, windows={"1": (1, 1)}, resamples=10)
        tracemalloc.start()
        try:
            evaluate(pipe, data, tmp_path / f"{data.stem}-{steps}", protocol, workers=1, progress=False)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(few, 1)  # what is loaded once
    short = peak(few, 6)
    assert peak(few, 26) - short < 6 * frame_bytes
    assert peak(many, 6) - short < 6 * frame_bytes
