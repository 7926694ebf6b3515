"""The memory of a fine-tuning step is what is counted beforehand, and the published geometry fits a small machine."""

import subprocess
import sys

import pytest
import torch

from walrus_hf import WalrusConfig
from walrus_hf.finetuning_memory import LIBRARIES, LiveBytes, finetuning_bytes
from walrus_hf.loading import processor_for

pytest.importorskip("peft")

STEP = """
import resource, sys, warnings
warnings.simplefilter("ignore")
import peft, torch
from walrus_hf import WalrusConfig, WalrusForPrediction
from walrus_hf.allocator import return_freed_memory
from walrus_hf.finetuning import lora_config
from walrus_hf.loading import processor_for

return_freed_memory()
config = WalrusConfig(drop_path_rate=0.0, **eval(sys.argv[1]))
model = WalrusForPrediction(config)
model.gradient_checkpointing_enable({"use_reentrant": False})
model = peft.get_peft_model(model, lora_config(rank=8)).train()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
values = torch.randn(1, 3, 3, 128, 128, 1)
model(field_values=values[:, :-1], labels=values[:, 1:], field_ids=torch.tensor([[3, 4, 5]])).loss.backward()
optimizer.step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def measured(settings: dict) -> int:
    """Peak resident memory of a process that takes one step, in bytes."""
    done = subprocess.run([sys.executable, "-c", STEP, repr(settings)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout)


def predicted(settings: dict) -> int:
    config = WalrusConfig(drop_path_rate=0.0, **settings)
    plan = processor_for(config).plan((128, 128), {"x": "periodic", "y": "periodic"}, seed=0)
    found = finetuning_bytes(config, plan, 2, 3, rank=8)
    return sum(size for part, size in found.items() if part != "trained") + LIBRARIES


def test_tensors_are_counted_while_they_live_and_views_are_not():
    given = torch.zeros(100)
    with LiveBytes([given]) as counter:
        kept = given + 1
        del kept
        _view, other = given[:50], torch.zeros(10)
        other = other + 1
    assert counter.peak == 400
    assert counter.live == 40


def test_parts_add_up_and_gradient_checkpointing_saves_memory():
    config = WalrusConfig.tiny(tokens_per_axis=8)
    plan = processor_for(config).plan((64, 64), {"x": "periodic", "y": "open"}, seed=0)
    lora, full = (finetuning_bytes(config, plan, 3, 4, method) for method in ("lora", "full"))
    assert full["optimizer"] == 2 * full["gradients"] > 10 * lora["optimizer"]
    assert lora["weights"] - full["weights"] == 4 * lora["trained"]
    without = finetuning_bytes(config, plan, 3, 4, gradient_checkpointing=False)
    assert without["activations"] > 1.3 * lora["activations"]


@pytest.mark.slow
@pytest.mark.parametrize("layers", [8, 16])
def test_the_prediction_is_close_to_what_a_step_takes(layers):
    settings = {"hidden_size": 1408, "num_hidden_layers": layers}
    assert predicted(settings) == pytest.approx(measured(settings), rel=0.15)


@pytest.mark.slow
def test_a_step_of_the_published_geometry_fits_16_gib():
    found = measured({})
    assert found < 16 * 2**30
    assert predicted({}) == pytest.approx(found, rel=0.15)
