"""Run by test_distributed.py on two processes: several runs in one launch. Rank 0 writes what it saw as JSON."""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from accelerate.state import PartialState
from accelerate.utils import gather_object

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.training import gradients
from tests.training.cpu_sharding import replicate, shard
from tests.training.small_runs import GRIDS, plane_and_volume, settings
from walrus_hf.training import loop

train_step, micro_batch_cost = loop.train_step, loop.micro_batch_cost


def replicated(folder, report):
    """DDP: every process is a group of its own."""
    data, rank, digests, counts = folder / "data", PartialState().process_index, [], []

    def watched(run, plan, batches, step):
        row = train_step(run, plan, batches, step)
        digests.append(gradients.digest(run))
        return row

    def signalled(run, plan, batches, step):
        if step == 2 and rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(run, plan, batches, step)

    def counted(run, plan, batches, step):
        counts.append([len(group) for group in plan.step(step).groups])
        return train_step(run, plan, batches, step)

    loop.train_step = watched
    loop.pretrain(settings(data, folder / "two", groups=2, strategy="ddp"))
    report["digests"] = gather_object([digests])
    loop.train_step = signalled
    stopped = loop.pretrain(settings(data, folder / "stopped", groups=2, save_steps=100))
    report["stopped"] = gather_object([stopped.name])
    loop.train_step = counted
    # One source as dear as the others together.
    loop.micro_batch_cost = lambda geometry, *_, **__: 3.0 if geometry.grid == GRIDS["deep"] else 1.0
    loop.pretrain(settings(data, folder / "variable", groups=2, mode="variable", max_steps=3, validation_steps=0))
    report["counts"] = counts
    loop.train_step, loop.micro_batch_cost = train_step, micro_batch_cost
    fifty = {"max_steps": 50, "validation_steps": 0, "save_steps": 100, **plane_and_volume(data)}
    loop.pretrain(settings(data, folder / "fifty", groups=2, **fifty))
    boxed = {**fifty, "max_steps": 100_000, "max_seconds": 0.5}
    loop.train_step = watched
    digests.clear()
    loop.pretrain(settings(data, folder / "boxed", groups=2, **boxed))
    report["boxed"] = gather_object([len(digests)])
    loop.train_step = train_step


def sharded(folder, report):
    """FSDP2: both processes are members of one group."""
    data = folder / "data"

    def run(name, checkpoint=None, **changes):
        resume = None if checkpoint is None else str(folder / checkpoint)
        loop.pretrain(settings(data, folder / name, strategy="fsdp2", resume_from_checkpoint=resume, **changes))

    shard()
    run("fsdp2")
    run("died", "died/step-00000003")
    run("fewer", "straight-hsdp/step-00000003", validation_steps=0, validation_batches=1)


def fallback(folder, report):
    """As if launched with fsdp2.yaml where there is no accelerator."""
    replicate()
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    try:
        loop.pretrain(settings(folder / "data", folder / "fallback"))
    except ValueError as error:
        report["fallback"] = str(error)


def main():
    folder, report = Path(sys.argv[1]), {}
    torch.set_num_threads(1)
    replicate()
    replicated(folder, report)
    sharded(folder, report)
    fallback(folder, report)
    if PartialState().is_main_process:
        (folder / "report-two.json").write_text(json.dumps(report))
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
