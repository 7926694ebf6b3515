"""Low-rank adapters of PEFT: every adapter learns and acts, and saving, loading and merging keep the forecast."""

import pytest
import torch

from walrus_hf import WalrusConfig, WalrusForPrediction, WalrusProcessor
from walrus_hf.adapter_files import difference, fingerprint
from walrus_hf.adapters import PRESETS, add_fields, lora_config
from walrus_hf.loading import processor_for

from .small_model import NAMES, PLANE, VOLUME, WALL_OPEN, small_inputs, small_model

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:grid .* is outside the published stride table")

SETTINGS = {
    "all linear": {"target_modules": "all-linear"},
    "DoRA": {"target_modules": "all-linear", "use_dora": True},
    "rsLoRA with ranks": {
        "target_modules": ["q_proj", "v_proj"], "use_rslora": True, "rank_pattern": {"time_attention.q_proj": 2},
    },
    "attention and decoder": {**PRESETS["attention"], "modules_to_save": ["decoder"]},
    "MLP and encoders": {**PRESETS["mlp"], "modules_to_save": ["embeddings"], "rank_pattern": {"down_proj": 1}},
}  # fmt: skip
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


@every_setting
def test_an_adapter_that_is_merged_and_unmerged_leaves_the_weights_as_they_were(folder, settings):
    model, batch = adapted(folder, settings), small_inputs()
    weights = {name: p.clone() for name, p in model.named_parameters() if "base_layer" in name}
    with torch.no_grad():
        expected = model(**batch).prediction
        model.merge_adapter(safe_merge=True)
        assert not all(torch.equal(model.get_parameter(name), p) for name, p in weights.items())
        torch.testing.assert_close(model(**batch).prediction, expected, atol=1e-4, rtol=1e-4)
        model.unmerge_adapter()
        for name, parameter in weights.items():
            torch.testing.assert_close(model.get_parameter(name), parameter, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model(**batch).prediction, expected, atol=1e-4, rtol=1e-4)


def test_rows_of_one_batch_may_use_different_adapters_and_one_can_be_deleted(folder):
    model, batch = adapted(folder, {"target_modules": "all-linear"}), small_inputs(batch=3)
    second = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model.add_adapter("second", second)
    names = ["__base__", "default", "second"]
    with torch.no_grad():
        mixed = model(**batch, adapter_names=names).prediction
        with model.disable_adapter():
            alone = [model(**batch).prediction[0]]
        for row, name in enumerate(names[1:], 1):
            model.set_adapter(name)
            alone.append(model(**batch).prediction[row])
        torch.testing.assert_close(mixed, torch.stack(alone), atol=1e-4, rtol=1e-4)
        assert (alone[1] - model(**batch).prediction[1]).abs().max() > 1e-2
        model.delete_adapter("default")
        assert list(model.peft_config) == ["second"]
        torch.testing.assert_close(model(**batch).prediction[2], alone[2])


def test_an_adapter_may_be_of_some_layers_only(folder):
    model = adapted(folder, {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]})
    model(**small_inputs(labels=True)).loss.backward()
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 8  # in time and space, two matrices each
    assert all(".layers.1." in name and model.get_parameter(name).grad.abs().sum() > 0 for name in trained)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_adapters_get_the_same_gradients_with_gradient_checkpointing(folder, use_reentrant, monkeypatch):
    model, batch = adapted(folder, SETTINGS["all linear"]).train(), small_inputs(labels=True)
    model(**batch).loss.backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    # Reentrant checkpointing needs an input that asks for gradients: it is `get_input_embeddings()` that gives it.
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    monkeypatch.setattr("walrus_hf.layers.RECOMPUTED_FROM", 0)
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


@pytest.mark.parametrize("module", ["decoder", "embeddings"])
def test_one_batch_gives_every_parameter_of_a_saved_module_a_gradient(folder, module):
    """PEFT's own helper for training asks for one; a batch of planes does not reach the end of volumes."""
    model = adapted(folder, {"target_modules": ["q_proj"], "modules_to_save": [module]})
    for batch in (small_inputs(PLANE), small_inputs(VOLUME)):
        model.zero_grad()
        model(**batch).prediction.square().mean().backward()
        without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert without == []


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_small_at_the_published_geometry(preset):
    with torch.device("meta"):
        base = WalrusForPrediction(WalrusConfig())
        size = sum(p.numel() for p in base.parameters())
        model = peft.get_peft_model(base, lora_config(preset))
    adapter = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert 0.005 * size < adapter <= 0.02 * size


def test_presets_take_ranks_and_other_settings():
    assert lora_config().target_modules == "all-linear"
    config = lora_config("attention_mlp", rank=4, lora_dropout=0.1)
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 8, 0.1)
    assert config.target_modules == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    with pytest.raises(ValueError, match="preset: expected one of attention, mlp"):
        lora_config("nose")


@pytest.mark.parametrize("like", [None, "b"])
@pytest.mark.parametrize("with_adapter", [False, True])
def test_new_fields_leave_old_forecasts_as_they_were(folder, like, with_adapter):
    settings = {"target_modules": ["q_proj"], "modules_to_save": ["decoder"]}
    model = adapted(folder, settings) if with_adapter else WalrusForPrediction.from_pretrained(folder)
    processor = processor_for(model.config)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    grown, settings_after = add_fields(model, processor, ["soot", "ash"], like=like)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert processor.field2id.keys() == model.config.field2id.keys()
    assert (settings_after.field2id["ash"], grown.config.vocab_size) == (13, 14)
    for batch in (small_inputs(PLANE, sides=WALL_OPEN), small_inputs(VOLUME)):
        with torch.no_grad():
            torch.testing.assert_close(grown(**batch).prediction, model(**batch).prediction, atol=2e-6, rtol=2e-6)
            new = {**batch, "field_ids": torch.tensor([[12, 7, 13]] * 2)}
            if like is None:  # what is not known yet does not change
                assert torch.equal(grown(**new).delta[:, :, 0], torch.zeros_like(batch["field_values"][:, :, 0]))
            else:
                old = {**batch, "field_ids": torch.tensor([[4, 7, 4]] * 2)}
                torch.testing.assert_close(grown(**new).prediction, model(**old).prediction, atol=2e-6, rtol=2e-6)


def test_the_columns_of_new_fields_follow_the_published_rule(folder, tmp_path):
    model = WalrusForPrediction.from_pretrained(folder)
    grown, processor = add_fields(model, processor_for(model.config), ["soot"], like="a")
    old, new = (m.model.embeddings.planar.proj1.weight for m in (model, grown))
    names = model.config.field2id
    for name, i in names.items():
        factor = 1.0 if name in ("closed_boundary", "open_boundary") else (9 / 10) ** 0.5
        torch.testing.assert_close(new[:, i], old[:, i] * factor)
    grown.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, batch = WalrusForPrediction.from_pretrained(tmp_path), small_inputs()
    torch.testing.assert_close(loaded(**batch).prediction, grown(**batch).prediction)
    assert WalrusProcessor.from_pretrained(tmp_path).field2id["soot"] == 12


@pytest.mark.parametrize(
    ("names", "like", "message"),
    [
        (["a"], None, "expected names that the model does not know, found a"),
        ([], None, "at least one new field"),
        (["x", "x"], None, "each once"),
        (["x"], "bias_correction", "expected for 'x' a field that the model knows"),
    ],
)
def test_new_fields_that_make_no_sense_are_refused(names, like, message):
    model = small_model()
    with pytest.raises(ValueError, match=message):
        add_fields(model, processor_for(model.config), names, like)


def test_a_fingerprint_knows_a_model_in_any_precision_and_no_other(folder):
    expected = fingerprint(WalrusForPrediction.from_pretrained(folder))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert difference(expected, fingerprint(WalrusForPrediction.from_pretrained(folder, dtype=dtype))) is None
    assert "other values in model.embeddings" in difference(expected, fingerprint(small_model(seed=7)))
    assert "num_hidden_layers 2 expected, 3 found" in difference(
        expected, fingerprint(small_model(num_hidden_layers=3))
    )
    renamed = small_model(field2id={name: i for i, name in enumerate(("p", *NAMES[1:], "closed_boundary"))})
    assert "field2id" in difference(expected, fingerprint(renamed))
