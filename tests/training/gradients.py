"""Gradients of the first step of a run: as the loop computes them on its processes, and in one process by hand."""

import hashlib

import torch
from torch.distributed.tensor import DTensor

from walrus_hf.data.reader import BatchReader
from walrus_hf.training import loop
from walrus_hf.training.batches import PlannedReader, planned_batches
from walrus_hf.training.plan import WorkPlan
from walrus_hf.training.samples import SamplePlan
from walrus_hf.training.topology import Topology
from walrus_hf.training.validation import prepare_inputs


class Seen(Exception):
    """Leaves the loop once the gradients of a step are there."""


def of_the_loop(arguments):
    """Collective: the norm, and the whole gradients before and after clipping, by name."""
    seen, update = {}, loop._update

    def watched(run, step, samples):
        seen["before"] = gradients(run)
        run.optimizer.step = lambda: seen.update(after=gradients(run))
        seen["norm"], _ = update(run, step, samples)
        raise Seen

    loop._update = watched
    try:
        loop.pretrain(arguments)
    except Seen:
        return seen
    finally:
        loop._update = update


def of_one_process(arguments, members=1, unread=None):
    """The mean over all micro-batches of the step, those of all members, each computed after the other.

    Args:
        arguments: of one group, so all slots are its own.
        members: as many read each slot.
        unread: number of a source whose batch member 0 could not read.
    """
    run = loop.Run(loop.make_accelerator(arguments), arguments, loop.open_indexes(arguments, arguments.config()))
    plan = WorkPlan(run.sources, 1, members, run.table, arguments.mode, arguments.gradient_accumulation_steps, 5)
    reader = PlannedReader(
        BatchReader(run.indexes, arguments.cache_bytes, augmented=True), [source.shape.batch for source in run.sources]
    )
    run.model.train()
    for member in range(members):
        samples = SamplePlan(plan, run.indexes, arguments.blocks_in_memory)
        for batch in planned_batches(samples, Topology(1, members, 0, member), reader, 0, 1):
            generator, work = loop._generator(batch, 0), plan.step(0).groups[0][batch["micro_step"]]
            own = loop._own_steps(arguments, 0)
            cut = loop._first_frames(batch["inputs"], run.sources[work.source].shape.frames + own)
            inputs = prepare_inputs(cut, run.bare.model, run.accelerator.device, generator)
            loss, _, _ = run.model(own_steps=own, generator=generator, **inputs)
            if member or batch["number"] != unread:
                (loss / (plan.slots * members)).backward()
    return gradients(run)


def gradients(run):
    return {name: whole(parameter.grad) for name, parameter in run.bare.named_parameters()}


def whole(tensor):
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def norm(gradients):
    return torch.stack([gradient.norm() for gradient in gradients.values()]).norm().item()


def digest(run):
    """Of this rank's part of the weights, all bits."""
    return hashlib.sha256(b"".join(local(p).numpy().tobytes() for p in run.bare.parameters())).hexdigest()


def local(tensor):
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()
