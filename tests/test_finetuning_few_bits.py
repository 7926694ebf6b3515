"""QLoRA and the eight-bit optimiser, where bitsandbytes is installed; on a CPU, since that is what there is."""

import json

import numpy as np
import pytest
import torch

from walrus_hf import WalrusPipeline
from walrus_hf.finetuning import FinetuningArguments, _own_copy, fit

from .finetuning_runs import NAMES, QUICK, RUNS
from .small_model import small_inputs, small_model

pytest.importorskip("peft")
pytest.importorskip("bitsandbytes", minversion="0.50")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """Wide enough for blocks of 64 weights."""
    path = tmp_path_factory.mktemp("few-bits") / "base"
    names = {name: i for i, name in enumerate(NAMES)}
    sizes = {"hidden_size": 128, "intermediate_size": 256, "initializer_range": 0.5, "jitter": True}
    WalrusPipeline(small_model(field2id=names, **sizes)).save_pretrained(path)
    return str(path)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr("walrus_hf.finetuning_results.find_spec", lambda name: None)


def forecast(pipe):
    return pipe.predict(RUNS[0], 2, seed=0, progress=False).fields["pressure"]


def test_an_adapter_of_a_base_in_four_bits_learns_and_fits_the_base_in_full_precision(folder, tmp_path):
    from bitsandbytes.nn import Linear4bit

    settings = {**QUICK, "max_steps": 20, "learning_rate": 0.05}
    tuned = fit(folder, RUNS, tmp_path / "out", quantization="4bit", **settings)
    assert sum(isinstance(module, Linear4bit) for module in tuned.model.modules()) >= 16  # of 22 in two blocks
    errors = json.loads((tmp_path / "out" / "results.json").read_text())["vrmse"]
    assert errors["after"] < 0.998 * errors["before"]
    found, loaded = forecast(tuned), forecast(WalrusPipeline.from_pretrained(tmp_path / "out"))
    np.testing.assert_allclose(loaded, found, atol=0.05 * np.abs(found).max())
    assert np.abs(loaded - forecast(WalrusPipeline.from_pretrained(folder))).max() > 1e-3 * np.abs(found).max()


def test_gradients_pass_through_four_bits_after_an_evaluation_too(folder):
    given = FinetuningArguments(quantization="4bit")
    model = _own_copy(folder, given, torch.device("cpu"))[0].model
    batch = {**small_inputs(), "jitter": False}

    def gradient():
        values = batch["field_values"].clone().requires_grad_()
        model.zero_grad()
        model.train()(**{**batch, "field_values": values}).prediction.square().sum().backward()
        return values.grad

    before = gradient()
    with torch.no_grad():
        model.eval()(**batch)
    torch.testing.assert_close(gradient(), before)


def test_a_run_with_the_eight_bit_optimiser_resumes_exactly(folder, tmp_path, monkeypatch):
    from walrus_hf import finetuning_loop

    settings = {**QUICK, "max_steps": 4, "validation_steps": 2, "save_steps": 1, "optimizer": "adamw-8bit", "rank": 64}
    whole = fit(folder, RUNS, tmp_path / "whole", **settings)
    with monkeypatch.context() as patch:
        patch.setattr(finetuning_loop.StopSignal, "agreed", lambda self: True)
        fit(folder, RUNS, tmp_path / "cut", **settings)
    rest = fit(folder, RUNS, tmp_path / "cut", resume=True, **settings)
    for (name, one), other in zip(whole.model.state_dict().items(), rest.model.state_dict().values()):
        assert torch.equal(one, other), name
