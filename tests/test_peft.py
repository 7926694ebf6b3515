"""Low-rank adapters of PEFT: every adapter learns and acts, and saving, loading and merging keep the forecast."""

import pytest
import torch

from walrus_hf import WalrusForPrediction

from .small_model import PLANE, VOLUME, small_inputs, small_model

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:grid .* is outside the published stride table")

SETTINGS = {
    "q and v": {"target_modules": ["q_proj", "v_proj"]},
    "all linear": {"target_modules": "all-linear"},
    "DoRA": {"target_modules": "all-linear", "use_dora": True},
    "with decoder": {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["decoder"]},
}
every_setting = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)


@pytest.fixture
def folder(tmp_path):
    small_model().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def adapted(folder, settings: dict):
    """A model with adapters that act: PEFT's own initialisation would leave the forecast as it is."""
    torch.manual_seed(1)
    base = WalrusForPrediction.from_pretrained(folder)
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, init_lora_weights=False, **settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.mul_(1.1)
    return model.eval()


@every_setting
def test_an_adapter_that_is_saved_loaded_or_merged_forecasts_the_same(folder, tmp_path, settings):
    base, model = WalrusForPrediction.from_pretrained(folder), adapted(folder, settings)
    batches = [small_inputs(PLANE), small_inputs(VOLUME)]
    with torch.no_grad():
        before = [base(**batch).prediction for batch in batches]
        expected = [model(**batch).prediction for batch in batches]
        assert all((one - other).abs().max() > 1e-2 for one, other in zip(before, expected))

        model.save_pretrained(tmp_path / "adapter")
        loaded = peft.PeftModel.from_pretrained(WalrusForPrediction.from_pretrained(folder), tmp_path / "adapter")
        loaded.eval()
        with loaded.disable_adapter():
            for batch, forecast in zip(batches, before):
                torch.testing.assert_close(loaded(**batch).prediction, forecast)
        for batch, forecast in zip(batches, expected):
            torch.testing.assert_close(loaded(**batch).prediction, forecast)

        loaded.merge_and_unload(safe_merge=True).save_pretrained(tmp_path / "merged")
        merged = WalrusForPrediction.from_pretrained(tmp_path / "merged")
        for batch, forecast in zip(batches, expected):
            torch.testing.assert_close(merged(**batch).prediction, forecast, atol=1e-4, rtol=1e-4)


@every_setting
def test_every_adapter_parameter_learns_and_acts_and_the_base_stays(folder, settings):
    model = adapted(folder, settings)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    batches = [small_inputs(PLANE, labels=True), small_inputs(VOLUME, labels=True)]
    for batch in batches:
        model(**batch).loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, p in trained.items() if p.grad is None or not p.grad.abs().sum() > 0] == []
    with torch.no_grad():
        before = [model(**batch).delta for batch in batches]
        for name, parameter in trained.items():
            kept = parameter.clone()
            parameter.add_(0.1 * torch.randn_like(parameter))  # norms would take a factor back
            assert any((model(**b).delta - d).abs().max() > 1e-6 for b, d in zip(batches, before)), name
            parameter.copy_(kept)
    torch.optim.SGD(trained.values(), lr=0.1).step()
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_adapters_get_the_same_gradients_with_gradient_checkpointing(folder, use_reentrant):
    model, batch = adapted(folder, SETTINGS["all linear"]).train(), small_inputs(labels=True)
    model(**batch).loss.backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    # Reentrant checkpointing needs an input that asks for gradients: it is `get_input_embeddings()` that gives it.
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model(**batch).loss.backward()
    for name, gradient in plain.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, msg=name)


def test_the_adapter_interface_of_transformers_works_too(folder, tmp_path):
    model, batch = WalrusForPrediction.from_pretrained(folder), small_inputs()
    before = model(**batch).prediction
    torch.manual_seed(1)
    model.add_adapter(peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    expected = model(**batch).prediction
    assert (expected - before).abs().max() > 1e-2
    model.save_pretrained(tmp_path / "adapter")
    fresh = WalrusForPrediction.from_pretrained(folder)
    fresh.load_adapter(str(tmp_path / "adapter"))
    torch.testing.assert_close(fresh(**batch).prediction, expected)
    fresh.disable_adapters()
    torch.testing.assert_close(fresh(**batch).prediction, before)
