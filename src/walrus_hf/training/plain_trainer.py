"""Train a tiny Walrus on a folder of Well files: the smallest loop that does it right, for `walrus-hf demo`.

accelerate launch -m walrus_hf.training.plain_trainer --data DIR --output DIR [--minutes 2.5] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from tqdm.auto import tqdm

from ..configuration_walrus import WalrusConfig
from ..data.well import load_well, well_info
from ..fields import Trajectory
from ..modeling_walrus import WalrusForPrediction
from ..pipeline_walrus import WalrusPipeline

FRAMES, BATCH, LEARNING_RATE, WARMUP = 4, 4, 2e-3, 20


def load_scenarios(folder: Path) -> dict[str, list[Trajectory]]:
    """All trajectories of each Well file, by file name."""
    files = sorted(folder.glob("*.hdf5"))
    if not files:
        raise ValueError(f"{folder}: expected .hdf5 files of The Well, found none")
    return {file.stem: [load_well(file, i) for i in range(well_info(file).trajectories)] for file in files}


def draw_batch(pipe: WalrusPipeline, trajectories: list[Trajectory], rng: np.random.Generator) -> dict:
    """Random windows of one scenario: model inputs of `FRAMES` frames and, as labels, the frame after each."""
    windows = []
    for _ in range(BATCH):
        trajectory = trajectories[rng.integers(len(trajectories))]
        start = int(rng.integers(trajectory.num_frames - FRAMES))
        windows.append(pipe.processor(trajectory.frames(start, start + FRAMES + 1)))
    batch = {name: torch.cat([window[name] for window in windows]) for name in windows[0]}
    values = batch.pop("field_values")
    return {"field_values": values[:, :-1], "labels": values[:, 1:], **batch}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=2.5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    # A batch reaches only the decoder and encoder of its own dimensionality.
    accelerator = Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
    set_seed(arguments.seed)
    scenarios = load_scenarios(arguments.data)
    # Ranks draw different windows, of the same scenario at each step.
    rng = np.random.default_rng([arguments.seed, accelerator.process_index])
    model = WalrusForPrediction(WalrusConfig.tiny(tokens_per_axis=8, drop_path_rate=0.0))
    pipe = WalrusPipeline(model)
    pipe.processor.context_frames = FRAMES
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=1e-4)
    network, optimizer = accelerator.prepare(model.train(), optimizer)
    budget, begin, step, log = 60 * arguments.minutes, time.monotonic(), 0, []
    bar = tqdm(total=round(budget), unit="s", desc="train", disable=not accelerator.is_main_process)
    elapsed = 0.0
    while elapsed < budget:
        name = sorted(scenarios)[step % len(scenarios)]
        # The time left sets the learning rate, so that the run ends annealed on any machine.
        progress = min(elapsed / budget, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min((step + 1) / WARMUP, 1.0) * (0.5 + 0.5 * math.cos(math.pi * progress))
        batch = draw_batch(pipe, scenarios[name], rng)
        loss = network(**{key: value.to(accelerator.device) for key, value in batch.items()}).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        log.append({"step": step, "scenario": name, "loss": loss.item(), "seconds": time.monotonic() - begin})
        bar.update(min(round(log[-1]["seconds"]), bar.total) - bar.n)
        bar.set_postfix_str(f"step {step}, {name} loss {log[-1]['loss']:.3f}")
        clock = torch.tensor(log[-1]["seconds"], device=accelerator.device)
        elapsed = accelerator.reduce(clock, "mean").item()  # all ranks stop together
    bar.close()
    if accelerator.is_main_process:
        arguments.output.mkdir(parents=True, exist_ok=True)
        WalrusPipeline(accelerator.unwrap_model(network), pipe.processor).save_pretrained(arguments.output)
        (arguments.output / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    # The main process still writes; and the last reduction must be over before the interpreter takes it down.
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main()
