"""Run by test_checkpoints.py on two processes with gloo: many checks in one launch. Rank 0 writes what it saw as JSON.

accelerate launch --multi_gpu --num_processes 2 tests/training/two_ranks.py FOLDER
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedDataParallelKwargs, gather_object, set_seed
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from walrus_hf import WalrusConfig
from walrus_hf.layers import WalrusBlock
from walrus_hf.training import checkpoints
from walrus_hf.training.checkpoints import latest_checkpoint, load_checkpoint, save_checkpoint
from walrus_hf.training.guards import GradientGuard, StopSignal
from walrus_hf.training.optim import ExponentialAverage, make_optimizer, make_scheduler

STEPS, SLOTS = 8, 4
CONFIG = WalrusConfig.tiny(hidden_size=16, intermediate_size=24, num_attention_heads=2, initializer_range=1.0)
CONFIG._attn_implementation = "eager"


class Small(nn.Module):
    """A real block between two linear maps, and a parameter that no batch ever reaches."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 16)
        self.layers = nn.ModuleList([WalrusBlock(CONFIG, 0.0)])
        self.last = nn.Linear(16, 1)
        self.never_used = nn.Parameter(torch.ones(5, 3))

    def forward(self, x):  # (B, tokens, 3)
        positions = [torch.linspace(-1, 1, x.shape[1]), torch.zeros(1), torch.zeros(1)]
        return self.last(self.layers[0](self.first(x)[:, None], positions))


class Run:
    """A tiny training run whose batches follow from the step and the slot alone."""

    def __init__(self, accelerator, muon=False, average=False):
        self.accelerator = accelerator
        set_seed(1)
        model = Small()
        optimizer = make_optimizer(model, learning_rate=1e-2, muon=muon)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.scheduler = accelerator.prepare(make_scheduler(self.optimizer.optimizer, STEPS))
        bare = accelerator.unwrap_model(self.model)
        self.average = ExponentialAverage(bare, 0.9) if average else None
        self.norm = None
        self.step = 0

    def loss(self, step, slot):
        x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1000 * step + slot))
        return (self.model(x) - x.mean(-1)[:, None, :, None]).square().mean()

    def train(self, until):
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        while self.step < until:
            for slot in range(rank, SLOTS, world):
                self.accelerator.backward(self.loss(self.step, slot) * world / SLOTS)
            self.norm = self.accelerator.clip_grad_norm_(self.model.parameters(), 10.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.scheduler.step()
            if self.average is not None:
                self.average.update()
            self.step += 1

    def parameters(self):
        bare = self.accelerator.unwrap_model(self.model)
        return {name: whole(p.detach()) for name, p in bare.named_parameters()}

    def averages(self):
        return None if self.average is None else self.average.state_dict()


def whole(tensor):
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def distance(first, second):
    return sum((first[name] - second[name]).square().sum().item() for name in first) ** 0.5


def message(function, *arguments, **keywords):
    try:
        function(*arguments, **keywords)
    except (ValueError, RuntimeError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def fresh():
    AcceleratorState._reset_state()
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(cpu=True, step_scheduler_with_optimizer=False, kwargs_handlers=[unused])


def replicated(folder, report):
    accelerator = fresh()
    report["distributed_type"] = accelerator.distributed_type.value
    straight = Run(accelerator, average=True)
    straight.train(STEPS)
    accelerator.save(straight.parameters(), folder / "straight.pt")
    report["loss_of_straight"] = straight.loss(99, 0).item()

    accelerator = fresh()
    run, output = Run(accelerator, average=True), folder / "runs"
    saved_at = None
    with StopSignal(accelerator) as stop:
        for step in range(1, STEPS):
            run.train(step)
            if step == 4 and accelerator.process_index == 1:
                os.kill(os.getpid(), signal.SIGUSR1)
            if stop.agreed():
                saved_at = step
                save_checkpoint(accelerator, output, step, {"seed": 7, "cost": {"a": 0.1}}, averages=run.averages())
                break
    report["saved_at"] = gather_object([saved_at])
    report["learning_rate_at_4"] = run.scheduler.get_last_lr()[0]
    accelerator.save(run.parameters(), folder / "at-4.pt")
    averages_at_4 = {name: whole(value) for name, value in run.averages().items()}

    accelerator = fresh()
    resumed = Run(accelerator, average=True)
    state = load_checkpoint(accelerator, latest_checkpoint(output), resumed.averages())
    report["state"] = state
    report["averages_came_back"] = same(averages_at_4, resumed.averages())
    report["learning_rate_resumed"] = resumed.scheduler.get_last_lr()[0]
    resumed.step = state["step"]
    resumed.train(STEPS)
    report["resumed_equals_straight"] = gather_object([same(straight.parameters(), resumed.parameters())])
    report["averages_equal_straight"] = same(straight.averages(), resumed.averages())

    refusals(accelerator, folder / "others", report)


def refusals(accelerator, output, report):
    """What must not be saved; and a crash between writing and moving into place."""
    rank = accelerator.process_index
    save_checkpoint(accelerator, output, 4, {})
    report["rank_dependent"] = message(save_checkpoint, accelerator, output, 5, {"rank": rank})
    report["another_step"] = message(save_checkpoint, accelerator, output, 5 + rank, {})
    report["after_refusal"] = sorted(path.name for path in output.iterdir())

    commit = checkpoints._commit

    def crash(temporary, final):
        raise RuntimeError("the node went away")

    accelerator.wait_for_everyone()
    checkpoints._commit = crash
    waiting = accelerator.wait_for_everyone
    if rank:  # rank 0 dies before the last barrier, so the other one must not wait for it
        calls = iter([waiting, waiting, lambda: None])
        accelerator.wait_for_everyone = lambda: next(calls)()
    report["crash"] = message(save_checkpoint, accelerator, output, 6, {})
    checkpoints._commit, accelerator.wait_for_everyone = commit, waiting
    waiting()
    report["after_crash"] = sorted(path.name for path in output.iterdir())
    report["latest_after_crash"] = latest_checkpoint(output).name
    waiting()
    for step in (6, 7, 8):
        save_checkpoint(accelerator, output, step, {}, keep=2)
    report["after_pruning"] = sorted(path.name for path in output.iterdir())


def sharded(folder, report):
    """FSDP2 on CPU: Accelerate falls back to DDP there unless the type is set by hand."""
    plugin = {
        "fsdp_version": 2, "auto_wrap_policy": "transformer_based_wrap", "cpu_ram_efficient_loading": False,
        "transformer_cls_names_to_wrap": ["WalrusBlock"], "mixed_precision_policy": MixedPrecisionPolicy(),
    }  # fmt: skip

    def accelerate():
        AcceleratorState._reset_state()
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        return Accelerator(
            cpu=True, step_scheduler_with_optimizer=False, fsdp_plugin=FullyShardedDataParallelPlugin(**plugin)
        )

    accelerator = accelerate()
    report["is_fsdp2"] = accelerator.is_fsdp2
    straight = Run(accelerator, muon=True, average=True)
    straight.train(1)
    report["norm_is_dtensor"] = isinstance(straight.norm, DTensor)
    guard = GradientGuard(seed=0)
    report["guard_admits_finite"] = guard.admits(straight.norm, 0)
    report["guard_admits_infinite"] = guard.admits(straight.norm * float("inf"), 1)
    accelerator.save(straight.parameters(), folder / "sharded-muon.pt")
    straight.train(STEPS)

    before, averages = straight.parameters(), {n: whole(a) for n, a in straight.average.averages.items()}
    with torch.no_grad():
        own = straight.loss(0, 0)
        with straight.average.swap():
            report["swapped"] = same(averages, straight.parameters())
            averaged = straight.loss(0, 0)
        report["swapped_back"] = same(before, straight.parameters())
        again = straight.loss(0, 0)
    report["losses_around_swap"] = gather_object([[own.item(), averaged.item(), again.item()]])

    accelerator = accelerate()
    run, output = Run(accelerator, muon=True, average=True), folder / "sharded"
    run.train(3)
    save_checkpoint(accelerator, output, 3, {"seed": 7}, averages=run.averages())
    accelerator = accelerate()
    resumed = Run(accelerator, muon=True, average=True)
    state = load_checkpoint(accelerator, output / "step-00000003", resumed.averages())
    resumed.step = state["step"]
    resumed.train(STEPS)
    report["sharded_resumed_equals_straight"] = gather_object([same(straight.parameters(), resumed.parameters())])
    report["sharded_averages_equal"] = same(averages, {n: whole(a) for n, a in resumed.average.averages.items()})
    report["other_strategy"] = message(load_checkpoint, accelerator, latest_checkpoint(folder / "runs"))


def main():
    folder, report = Path(sys.argv[1]), {}
    torch.set_num_threads(1)
    replicated(folder, report)
    sharded(folder, report)
    if PartialState().is_main_process:
        (folder / "report.json").write_text(json.dumps(report))
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
