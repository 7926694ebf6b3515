"""Run by test_distributed.py on four processes, two groups of two: many runs in one launch.

Rank 0 writes what all ranks saw as JSON.
"""

import dataclasses
import json
import math
import os
import signal
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import gather_object

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.training import gradients
from tests.training.cpu_sharding import replicate, shard
from tests.training.small_runs import GRIDS, plane_and_volume, settings
from walrus_hf import layers
from walrus_hf.data.reader import BatchReader
from walrus_hf.training import loop
from walrus_hf.training.topology import Topology

GROUPS = 2
BAD_STEPS = (1, 3, 4, 5, 6, 7)
train_step, read, micro_batch_cost = loop.train_step, BatchReader.read, loop.micro_batch_cost


def places(report):
    """Groups and members that each rank finds itself in, under every strategy."""
    for name, prepare in (("ddp", replicate), ("fsdp2", shard), ("hsdp", lambda: shard(GROUPS))):
        prepare()
        topology = Topology.from_accelerator(Accelerator())
        report[name] = gather_object([dataclasses.astuple(topology)])


def first_gradients(folder, report):
    data, rank = folder / "data", PartialState().process_index

    def save(name, **changes):
        seen = gradients.of_the_loop(settings(data, folder / name, GROUPS, strategy="hsdp", **changes))
        report.setdefault("norms", {})[name] = gather_object([seen["norm"]])
        if rank == 0:
            torch.save(seen, folder / f"gradients-{name}.pt")

    def counted(run, plan, batches, step):
        report["unequal_counts"] = [len(group) for group in plan.step(step).groups]
        return train_step(run, plan, batches, step)

    def cannot_read(self, descriptor):
        if rank == 2:
            report["unread"] = descriptor["source"]
            raise OSError("the disk went away")
        return read(self, descriptor)

    kept, layers.RECOMPUTED_FROM = layers.RECOMPUTED_FROM, 0
    save("apart", **plane_and_volume(data))
    save("clipped", max_grad_norm=0.01, gradient_checkpointing=True)
    layers.RECOMPUTED_FROM = kept
    loop.train_step = counted
    loop.micro_batch_cost = lambda geometry, *_, **__: 3.0 if geometry.grid == GRIDS["deep"] else 1.0
    save("unequal", mode="variable")
    loop.train_step, loop.micro_batch_cost = train_step, micro_batch_cost
    BatchReader.read = cannot_read
    save("unread", **plane_and_volume(data))
    BatchReader.read = read
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
    shard(GROUPS)
    save("bf16")
    own_steps, drawn = loop._own_steps, []
    loop._own_steps = lambda *work: drawn.append(own_steps(*work)) or drawn[-1]
    save("own", own_forecasts=0.7, own_steps=2)
    loop._own_steps = own_steps
    report["own_steps"] = [steps for each in gather_object([drawn]) for steps in each]
    os.environ["ACCELERATE_MIXED_PRECISION"] = "no"
    shard(GROUPS)
    report["unread"] = gather_object([report.get("unread")])[2]


def stopped_and_resumed(folder, report):
    digests = {}

    def watched(run, plan, batches, step):
        row = train_step(run, plan, batches, step)
        digests.setdefault(Path(run.arguments.output_dir).name, []).append(gradients.digest(run))
        return row

    def signalled(run, plan, batches, step):
        if step == 3 and PartialState().process_index == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return watched(run, plan, batches, step)

    def run(name, step_function, **changes):
        loop.train_step = step_function
        quick = {"validation_steps": 0, "validation_batches": 1}
        written = loop.pretrain(settings(folder / "data", folder / name, GROUPS, strategy="hsdp", **quick, **changes))
        return gather_object([written.name])

    run("straight-hsdp", watched)
    report["stopped"] = run("stopped-hsdp", signalled, save_steps=100)
    run("stopped-hsdp", watched, save_steps=100, resume_from_checkpoint="latest")
    report["digests"] = gather_object([digests])
    loop.train_step = train_step


def bad_data(folder, report):
    """One rank of four meets what the others do not, at some steps or from a step on."""
    data, rank, step_now, weights = folder / "data", PartialState().process_index, [0], []

    def watched(run, plan, batches, step):
        step_now[0] = step
        before = gradients.digest(run)
        row = train_step(run, plan, batches, step)
        weights.append([row["skipped"], gradients.digest(run) == before])
        return row

    def poisoned(self, descriptor):
        batch = read(self, descriptor)
        if rank == 1 and descriptor.get("step") in BAD_STEPS:
            batch = {**batch, "field_values": batch["field_values"] * math.nan}
        return batch

    def unreadable(self, descriptor):
        if rank == 2 and descriptor.get("step", 0) >= 1:
            raise OSError("the disk went away")
        return read(self, descriptor)

    def run(name, **changes):
        weights.clear()
        quick = {"max_steps": 10, "validation_steps": 0, "save_steps": 100, **plane_and_volume(data)}
        try:
            loop.pretrain(settings(data, folder / name, GROUPS, **quick, **changes))
            message = "finished"
        except RuntimeError as error:
            message = f"{type(error).__name__}: {error}"
        report[name] = gather_object([[message, step_now[0], list(weights)]])

    loop.train_step = watched
    BatchReader.read = poisoned
    run("diverging")
    BatchReader.read = unreadable
    run("unreadable", reader_error_limit=2)
    loop.train_step, BatchReader.read = train_step, read


def main():
    folder, report = Path(sys.argv[1]), {}
    torch.set_num_threads(1)
    places(report)
    first_gradients(folder, report)
    stopped_and_resumed(folder, report)
    bad_data(folder, report)
    if PartialState().is_main_process:
        (folder / "report-hsdp.json").write_text(json.dumps(report))
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
