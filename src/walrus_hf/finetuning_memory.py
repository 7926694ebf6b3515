"""How much memory a step of fine-tuning takes: the step is run on tensors without data, and what lives is counted."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from .adapters import DEFAULT_PRESET, lora_config, without_deprecations
from .configuration_walrus import WalrusConfig
from .jitter import TokenizationPlan
from .modeling_walrus import WalrusForPrediction

ADAM_STATES = 2
# Python, torch, transformers and PEFT, resident before anything is loaded (Linux, CPU build of torch).
LIBRARIES = 0.45 * 2**30


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that operations made inside the block: now, and at most.

    Args:
        others: tensors whose storages do not count, though operations give views of them.
    """

    def __init__(self, others: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: WeakIdKeyDictionary = WeakIdKeyDictionary()
        for tensor in others:
            self._known[tensor.untyped_storage()] = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known[storage] = size
        weakref.finalize(storage, self._release, size)
        self.live += size
        self.peak = max(self.peak, self.live)

    def _release(self, size: int) -> None:
        self.live -= size


def _adapted(model: WalrusForPrediction, preset: str, rank: int) -> Any:
    from peft import get_peft_model

    with without_deprecations():
        return get_peft_model(model, lora_config(preset, rank))


def finetuning_bytes(
    config: WalrusConfig,
    plan: TokenizationPlan,
    frames: int,
    channels: int,
    method: str = "lora",
    preset: str = DEFAULT_PRESET,
    rank: int = 16,
    batch_size: int = 1,
    gradient_checkpointing: bool = True,
) -> dict[str, int]:
    """Memory of one optimiser step in float32, by part.

    Args:
        frames, channels: of the input.
        method: `"lora"`, `"full"` or `"head"`, as in `fit`; the other arguments too.

    Returns:
        `weights` and what comes with training: `gradients`, `optimizer`; `activations`, the most that lives beside them
        in a forward and backward pass; `trained`, the number of trained parameters.
    """
    grid = (batch_size, frames, channels, *plan.grid)
    ids = [i for i in range(config.vocab_size) if i not in config.flag_ids]
    with torch.device("meta"):
        model: Any = WalrusForPrediction(config)
    if gradient_checkpointing:
        with without_deprecations():
            model.gradient_checkpointing_enable({"use_reentrant": False})
    if method == "lora":
        model = _adapted(model, preset, rank)
    elif method == "head":
        model.requires_grad_(False)
        model.decoder.requires_grad_(True)
    unreached = "planar" if plan.ndim == 3 else "volumetric"
    for name, parameter in model.named_parameters():
        if unreached in name.split("."):
            parameter.requires_grad_(False)
    with FakeTensorMode():
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    data = torch.empty(parameter.shape, dtype=parameter.dtype)
                    module._parameters[name] = torch.nn.Parameter(data, parameter.requires_grad)
        trained = [p for p in model.parameters() if p.requires_grad]
        gradients = sum(p.numel() * p.element_size() for p in trained)
        inputs = {
            "field_values": torch.zeros(grid), "labels": torch.zeros(grid),
            "field_ids": torch.tensor([[ids[i % len(ids)] for i in range(channels)]] * batch_size),
        }  # fmt: skip
        model.train()
        with LiveBytes(model.parameters()) as counter:
            model(**inputs, plan=plan).loss.backward()
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return {
        "weights": weights, "gradients": gradients, "optimizer": ADAM_STATES * gradients,
        "activations": max(counter.peak - gradients, 0), "trained": sum(p.numel() for p in trained),
    }  # fmt: skip
