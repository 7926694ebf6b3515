"""Optimisers, the published learning-rate schedule, and the running average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.lr_scheduler import LambdaLR

from ..layers import WalrusBlock

# Section 6 of the paper (arXiv 2511.15684), in its pseudo-epochs of 2,000 batches.
EPOCHS, WARMUP_EPOCHS, COOLDOWN_EPOCHS = 200.0, 10.0, 10.0
WARMUP_START, DECAY_OFFSET = 0.1, 128.0

# Muon's odd polynomial (Jordan 2024), which takes singular values from (0, 1] to about 1 in so many steps.
NEWTON_SCHULZ, NEWTON_SCHULZ_STEPS = (3.4445, -4.7750, 2.0315), 5


def published_schedule(step: int, total_steps: int) -> float:
    """Factor of the learning rate at the optimiser step `step`, 0 being the first of `total_steps`.

    Linear from 0.1 to 1 over the first 5% of the run, then `1 / (1 + sqrt(t + 128) - sqrt(128))`, then that value times
    `1 - sqrt(x)` over the last 5%, where x runs from 0 to 1. The run is 200 epochs long whatever its number of steps;
    t counts the epochs since the warm-up, as in the published code. There the cooldown sets in 4% lower, since its t
    counts from the start of the run; here the curve is continuous.
    """
    if total_steps < 1:
        raise ValueError(f"total_steps: expected at least 1, found {total_steps}")
    epoch = EPOCHS * min(max(step, 0), total_steps) / total_steps
    if epoch < WARMUP_EPOCHS:
        return WARMUP_START + (1.0 - WARMUP_START) * epoch / WARMUP_EPOCHS
    begin = EPOCHS - COOLDOWN_EPOCHS
    t = min(epoch, begin) - WARMUP_EPOCHS
    decay = 1.0 / (1.0 + math.sqrt(t + DECAY_OFFSET) - math.sqrt(DECAY_OFFSET))
    return decay * (1.0 - math.sqrt(max(epoch - begin, 0.0) / COOLDOWN_EPOCHS))


def make_scheduler(
    optimizer: torch.optim.Optimizer, total_steps: int, share_over: Callable[[], float] | None = None
) -> LambdaLR:
    """The published schedule; the loop steps it once per optimiser step.

    Accelerate steps a prepared scheduler as often as there are processes, unless it is told
    `Accelerator(step_scheduler_with_optimizer=False)`.

    Args:
        share_over: how much of the run is over by the clock, from 0 to 1; it counts where it is ahead of the steps.
    """
    published_schedule(0, total_steps)  # refuses a wrong total_steps here

    def factor(step: int) -> float:
        share = 0.0 if share_over is None else share_over()
        return published_schedule(max(step, int(share * total_steps)), total_steps)

    return LambdaLR(optimizer, factor)


def make_optimizer(
    model: nn.Module,
    learning_rate: float = 2e-4,
    weight_decay: float = 1e-4,
    eps: float = 1e-10,
    betas: tuple[float, float] = (0.9, 0.999),
    muon: bool = False,
) -> torch.optim.Optimizer:
    """AdamW for all parameters, all of them decayed, as published.

    Args:
        model: not prepared yet; FSDP2 wants model and optimiser in one `accelerator.prepare`.
        muon: the projections inside the blocks go to Muon instead (`MuonWithAdamW`). The same learning rate and weight
            decay serve both.

    Raises:
        ValueError: `muon` for a model without Walrus blocks.
    """
    if not muon:
        return torch.optim.AdamW(model.parameters(), learning_rate, betas, eps, weight_decay)
    matrices = hidden_matrices(model)
    if not matrices:
        raise ValueError("muon: expected a model with Walrus blocks, found none; train it with AdamW")
    taken = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in taken]
    return MuonWithAdamW(matrices, others, learning_rate, weight_decay, eps, betas)


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Weights of the linear maps inside the blocks: no embeddings, rotary frequencies, encoders or decoders."""
    blocks = [module for module in model.modules() if isinstance(module, WalrusBlock)]
    linear = [module for block in blocks for module in block.modules() if isinstance(module, nn.Linear)]
    weights = [module.get_parameter("weight") for module in linear]
    return [weight for weight in weights if weight.requires_grad]


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for matrices and AdamW for the rest, as one optimiser that Accelerate can prepare, save and load.

    Steps are those of `torch.optim.Muon`, scaled to the root mean square of AdamW's steps (arXiv 2502.16982), so that a
    learning rate that was tuned for AdamW fits.

    Matrices that FSDP2 shards are put together before the Newton-Schulz iteration, which runs whole on every rank:
    about 0.1 s a step for the 1.3B model on an H100, from its operations. Left to DTensor, the iteration would run in
    pieces whose rounding depends on the mesh, and torch warns that replicas may drift apart.

    Args:
        matrices: two-dimensional parameters for Muon.
        others: parameters for AdamW.
    """

    def __init__(
        self,
        matrices: list[nn.Parameter],
        others: list[nn.Parameter],
        learning_rate: float,
        weight_decay: float,
        eps: float = 1e-10,
        betas: tuple[float, float] = (0.9, 0.999),
        momentum: float = 0.95,
    ):
        self.adamw = torch.optim.AdamW(others, learning_rate, betas, eps, weight_decay)
        hidden: dict[str, Any] = {"params": matrices, "momentum": momentum, "muon": True}
        rest = [{**group, "muon": False} for group in self.adamw.param_groups]
        # FSDP2 replaces the parameters: whoever else held them would keep the unsharded ones in memory.
        self.adamw.param_groups = []
        super().__init__([hidden, *rest], {"lr": learning_rate, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Looked up at each step: load_state_dict replaces the groups and the state.
        self.adamw.param_groups = [group for group in self.param_groups if not group["muon"]]
        self.adamw.state = self.state
        self.adamw.step()
        for group in self.param_groups:
            if group["muon"]:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._muon_step(parameter, parameter.grad, group)
        return loss

    def _muon_step(self, parameter: Tensor, gradient: Tensor, group: dict) -> None:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum = state["momentum_buffer"].lerp_(gradient, 1.0 - group["momentum"])
        ahead = gradient.lerp(momentum, group["momentum"])  # Nesterov
        whole = ahead.full_tensor() if isinstance(ahead, DTensor) else ahead
        change = muon_change(whole, group["lr"])
        if isinstance(parameter, DTensor):
            # src_data_rank=None: all ranks have computed the same, each keeps its rows.
            change = distribute_tensor(change, parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter.mul_(1.0 - group["lr"] * group["weight_decay"]).add_(change)


def muon_change(direction: Tensor, learning_rate: float) -> Tensor:
    """What torch's Muon adds to a matrix for the gradient `direction`, without momentum and weight decay.

    torch iterates in bfloat16 everywhere. Here a CPU does so in the precision of the gradient: without instructions for
    bfloat16 it would spend a fifth of a training step of walrus-nano on the iteration.
    """
    rows, columns = direction.shape
    matrix = direction if direction.device.type == "cpu" else direction.bfloat16()
    matrix = matrix.T if rows > columns else matrix
    matrix = matrix / matrix.norm().clamp(min=1e-7)  # no singular value above 1
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = matrix @ matrix.T
        matrix = torch.addmm(matrix, torch.addmm(gram, gram, gram, beta=b, alpha=c), matrix, beta=a)
    matrix = matrix.T if rows > columns else matrix
    return matrix.to(direction.dtype) * (-0.2 * learning_rate * math.sqrt(max(rows, columns)))


@torch.no_grad()
def fill_state(optimizer: torch.optim.Optimizer) -> None:
    """Give parameters that no gradient has reached yet the state that their first step would start from.

    Nothing changes for training. Sharded checkpoints need it: they are loaded into a complete state, and a run on
    planes alone never reaches the encoder of volumes. Left to torch, a save before the first step would also count as
    a step of Adam.

    Args:
        optimizer: of `make_optimizer`, prepared or not.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if not parameter.requires_grad or state:
                continue
            if group.get("muon"):
                state["momentum_buffer"] = torch.zeros_like(parameter)
            else:
                state["step"] = torch.tensor(0.0)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)


class ExponentialAverage:
    """Running average of a model's parameters in float32; shards of parameters are averaged where they lie.

    Args:
        model: prepared, and unwrapped (`accelerator.unwrap_model`), so that names are the same in all worlds.
        decay: weight of the past at each update, in (0, 1). The first updates forget faster, `(1 + n) / (10 + n)`, so
            that a short run's average does not rest on its first weights.
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0.0 < decay < 1.0:
            raise ValueError(f"decay: expected a number between 0 and 1, found {decay}")
        self.decay = decay
        self.model = model
        reshard(model)
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.averages = {name: p.detach().float().clone() for name, p in self.parameters.items()}
        self.updates = torch.zeros((), dtype=torch.int64)

    @torch.no_grad()
    def update(self) -> None:
        """Take the current parameters in; once after each optimiser step."""
        self.updates += 1
        count = int(self.updates)
        decay = min(self.decay, (1 + count) / (10 + count))
        for name, parameter in self.parameters.items():
            _local(self.averages[name]).lerp_(_local(parameter).float(), 1.0 - decay)

    @contextmanager
    def swap(self) -> Iterator[None]:
        """The model holds the averages inside the block, and its own parameters again afterwards."""
        own = {name: _local(parameter).clone() for name, parameter in self.parameters.items()}
        self._write(self.averages)
        try:
            yield
        finally:
            self._write(own)

    @torch.no_grad()
    def _write(self, values: dict[str, Tensor]) -> None:
        # A forward without a backward leaves FSDP2's root unit gathered, and the next one would reuse these weights.
        reshard(self.model)
        for name, parameter in self.parameters.items():
            _local(parameter).copy_(_local(values[name]))

    def state_dict(self) -> dict[str, Tensor]:
        """The averages (sharded as the parameters are) and the number of updates, not copied.

        Fits `averages=` of `save_checkpoint` and of `load_checkpoint`, which fills these tensors in place.
        """
        return {**self.averages, "updates": self.updates}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy a `state_dict` of the same model in."""
        own = self.state_dict()
        if own.keys() != state.keys():
            raise ValueError(f"averages: expected {len(own)} names, found others: {sorted(own.keys() ^ state.keys())}")
        for name, tensor in own.items():
            tensor.copy_(state[name])


def _local(tensor: Tensor) -> Tensor:
    """This rank's shard, sharing memory, or the tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def reshard(model: nn.Module) -> None:
    """A forward without a backward leaves FSDP2's root unit gathered; checkpoints want the shards."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
