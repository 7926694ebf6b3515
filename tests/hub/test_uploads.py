"""What a push would upload, and the folders that it refuses; nothing here asks a Hub."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from walrus_hf import WalrusPipeline
from walrus_hf.adapter_files import AdapterRecord, fingerprint
from walrus_hf.adapters import Extension
from walrus_hf.checkpoints import locate
from walrus_hf.evaluation.forecasters import describe_model
from walrus_hf.hub import code_files, count_parameters, prepare_upload, push, weights_digest

from ..small_model import small_model
from ..test_imports import GROUND
from .results import small_results


@pytest.fixture(scope="module")
def pipe():
    return WalrusPipeline(small_model(rope_learnable="shared"))


@pytest.fixture(scope="module")
def saved(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    pipe.save_pretrained(folder / "whole")
    pipe.save_pretrained(folder / "shards", "150KB")
    base = small_model(rope_learnable="shared")
    record = AdapterRecord(Extension(), fingerprint(base))
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.peft_config["default"].base_model_name_or_path = "/runs/base"
    WalrusPipeline(adapted, pipe.processor, record).save_pretrained(folder / "adapter")
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """Copies of the three folders, to be spoilt."""
    return shutil.copytree(saved, tmp_path / "copy")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["whole", "shards"])
def test_an_upload_holds_the_folder_the_code_and_a_card_and_leaves_the_folder_alone(saved, kind):
    before = contents(saved / kind)
    upload = prepare_upload(saved / kind, "lab/mine")
    assert set(upload.files) == {*before, "README.md", *(path.name for path in code_files())}
    assert contents(saved / kind) == before
    for name, content in before.items():
        if name not in ("config.json", "preprocessor_config.json"):
            assert upload.files[name].read_bytes() == content
            assert upload.size(name) == len(content)


def test_the_code_that_travels_is_that_which_may_travel():
    assert {path.stem for path in code_files()} == set(GROUND)


def test_the_configuration_names_the_code_and_is_otherwise_the_same(saved):
    upload = prepare_upload(saved / "whole", "lab/mine")
    settings = json.loads(upload.files["config.json"])
    assert settings.pop("auto_map")["AutoModel"] == "modeling_walrus.WalrusForPrediction"
    assert settings == json.loads((saved / "whole" / "config.json").read_text())


def test_the_card_counts_parameters_and_hashes_weights_as_an_evaluation_does(saved, pipe):
    described = describe_model("mine", pipe)
    for kind in ("whole", "shards"):
        assert weights_digest(saved / kind) == described["weights"]
        assert count_parameters(saved / kind) == described["parameters"]
    card = prepare_upload(saved / "whole", "lab/mine").card
    assert f"{described['parameters']:,} parameters: 2 layers" in card
    assert described["weights"] in card


def test_weights_in_half_precision_have_the_hash_of_an_evaluation_too(tmp_path):
    half = WalrusPipeline(small_model().to(torch.bfloat16))
    half.save_pretrained(tmp_path)
    assert weights_digest(tmp_path) == describe_model("half", half)["weights"]


def test_the_packaged_checkpoint_has_the_hash_of_an_evaluation_though_its_file_is_in_half_precision():
    described = describe_model("walrus-nano", WalrusPipeline.from_pretrained("walrus-nano", device="cpu"))
    assert described["dtype"] == "float32"
    assert weights_digest(Path(locate("walrus-nano"))) == described["weights"]


def test_a_card_of_ones_own_is_kept(folder):
    (folder / "whole" / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n\nMy own words.\n")
    card = ModelCard(prepare_upload(folder / "whole", "lab/mine").card)
    assert card.data.license == "mit"
    told = card.text.strip().partition("\n\n## Provenance\n\nWeights: SHA-256 ")
    assert told[0] == "# Mine\n\nMy own words."
    assert told[1]


def test_only_what_is_meant_to_be_shared_is_uploaded(folder):
    for name in ("optimizer.bin", "trainer_state.json", "log.txt", "secret.env"):
        (folder / "whole" / name).write_text("not for others")
    (folder / "whole" / "checkpoints").mkdir()
    (folder / "whole" / "LICENSE").write_text("terms")
    upload = prepare_upload(folder / "whole", "lab/mine")
    assert upload.left_out == ["checkpoints", "log.txt", "optimizer.bin", "secret.env", "trainer_state.json"]
    assert "LICENSE" in upload.files


def test_a_film_is_shown_rather_than_a_picture_and_a_picture_rather_than_nothing(folder):
    (folder / "whole" / "error_growth.png").write_bytes(b"PNG")
    assert "](error_growth.png)" not in prepare_upload(folder / "whole", "lab/mine").card
    (folder / "whole" / "forecast.png").write_bytes(b"PNG")
    assert "# Walrus\n\n![A forecast of this model](forecast.png)" in prepare_upload(folder / "whole", "lab/mine").card
    (folder / "whole" / "rollout.gif").write_bytes(b"GIF")
    upload = prepare_upload(folder / "whole", "lab/mine")
    assert "# Walrus\n\n![A forecast of this model](rollout.gif)" in upload.card
    assert {"error_growth.png", "forecast.png", "rollout.gif"} <= set(upload.files)


def test_an_adapter_is_uploaded_with_the_name_that_its_base_has_on_the_hub(folder):
    assert "[More Information Needed]" in (folder / "adapter" / "README.md").read_text()  # as PEFT leaves it
    upload = prepare_upload(folder / "adapter", "lab/adapter", base_model="lab/base")
    assert json.loads(upload.files["adapter_config.json"])["base_model_name_or_path"] == "lab/base"
    assert "More Information" not in upload.card
    assert ModelCard(upload.card).data.base_model == "lab/base"
    weights = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
    assert "A LORA adapter of rank 2 of [lab/base](https://huggingface.co/lab/base)" in upload.card
    assert hashlib.sha256(weights).hexdigest() in upload.card
    assert {"walrus_adapter.json", "preprocessor_config.json"} <= set(upload.files)
    (folder / "adapter" / "README.md").write_text("# Mine\n\n- Base: `/runs/base`.\n")
    assert "- Base: `lab/base`." in prepare_upload(folder / "adapter", "lab/adapter", base_model="lab/base").card


def test_the_card_of_an_adapter_says_whether_another_base_is_refused(saved, tmp_path):
    assert "Any other base is refused." in prepare_upload(saved / "adapter", "lab/a", base_model="lab/base").card
    adapted = get_peft_model(small_model(rope_learnable="shared"), LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "own")
    card = prepare_upload(tmp_path / "own", "lab/a", base_model="lab/base").card
    assert "no record of that base" in card
    assert "Any other base is refused" not in card
    # And so it is: other weights of the same shapes are taken for the first, not for the second.
    WalrusPipeline(small_model(rope_learnable="shared", seed=1)).save_pretrained(tmp_path / "other")
    shutil.copytree(saved / "adapter", tmp_path / "recorded")
    for folder in (tmp_path / "own", tmp_path / "recorded"):
        settings = json.loads((folder / "adapter_config.json").read_text())
        settings["base_model_name_or_path"] = str(tmp_path / "other")
        (folder / "adapter_config.json").write_text(json.dumps(settings))
    WalrusPipeline.from_pretrained(tmp_path / "own")
    with pytest.raises(ValueError, match="found another one"):
        WalrusPipeline.from_pretrained(tmp_path / "recorded")


@pytest.mark.parametrize(("kind", "base_model"), [("whole", None), ("whole", "lab/base"), ("adapter", "lab/base")])
def test_what_fit_wrote_is_uploaded_without_paths_of_this_machine(folder, kind, base_model):
    settings = {"method": "head", "normalization": "/runs/stats.yaml", "field_names": {"rho": "density"}}
    settings["resumed"] = ["from /runs/somebody/first, again"]
    fitted = {"base": "/runs/base", "settings": settings, "validations": [{"step": 0, "vrmse": 0.5}]}
    (folder / kind / "results.json").write_text(json.dumps(fitted))
    (folder / kind / "README.md").write_text("# Mine\n\n- Base: `/runs/base`.\n- normalization `/runs/stats.yaml`\n")
    upload = prepare_upload(folder / kind, "lab/mine", base_model=base_model)
    name = base_model or "base"
    shared = settings | {"normalization": "stats.yaml", "resumed": ["from first, again"]}
    assert json.loads(upload.files["results.json"]) == fitted | {"base": name, "settings": shared}
    assert f"- Base: `{name}`.\n- normalization `stats.yaml`" in upload.card
    texts = [content.decode() for content in upload.files.values() if isinstance(content, bytes)]
    assert not [text for text in texts if "/runs/" in text]


def test_an_evaluation_in_the_folder_itself_is_uploaded_without_paths_too(folder, pipe):
    results = small_results(describe_model("/runs/mine", pipe))
    (folder / "whole" / "results.json").write_text(json.dumps(results))
    shared = prepare_upload(folder / "whole", "lab/mine").files["results.json"].decode()
    assert json.loads(shared)["model"]["name"] == "lab/mine"
    assert "somebody" not in shared
    assert "was left out: mine.hdf5: expected numbers" in shared


def test_an_adapter_of_a_packaged_checkpoint_names_it_and_links_to_nothing(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    upload = prepare_upload(folder / "adapter", "lab/adapter", base_model="walrus-nano")
    assert json.loads(upload.files["adapter_config.json"])["base_model_name_or_path"] == "walrus-nano"
    assert ModelCard(upload.card).data.base_model is None
    assert "A LORA adapter of rank 2 of walrus-nano, which comes with the package, for `walrus_hf`" in upload.card
    (folder / "adapter" / "README.md").write_text("---\nbase_model: lab/base\n---\n\n# Mine\n")
    upload = prepare_upload(folder / "adapter", "lab/adapter", base_model="walrus-nano")
    assert ModelCard(upload.card).data.base_model is None
    (tmp_path / "walrus-nano").mkdir()  # a folder of that name is meant then, which nobody else has
    with pytest.raises(ValueError, match="expected the base model's name on the Hub"):
        prepare_upload(folder / "adapter", "lab/adapter", base_model="walrus-nano")


def test_results_of_the_same_weights_are_taken_and_of_others_refused(saved, pipe, tmp_path):
    file = tmp_path / "results.json"
    file.write_text(json.dumps(small_results(describe_model("mine", pipe))))
    assert "| shear_flow |" in prepare_upload(saved / "whole", "lab/mine", results=file).card
    assert "| shear_flow |" in prepare_upload(saved / "whole", "lab/mine", results=tmp_path).card  # their folder
    file.write_text(json.dumps(small_results(describe_model("other", WalrusPipeline(small_model(seed=1))))))
    with pytest.raises(ValueError, match=r"expected an evaluation of the weights in .* found one of others"):
        prepare_upload(saved / "whole", "lab/mine", results=file)


def drop(pattern):
    return lambda folder: sorted(folder.glob(pattern))[0].unlink()


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def change_config(**settings):
    def change(folder):
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))

    return change


def pickle_weights(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def rename_a_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["nobody.weight"] = tensors.pop("decoder.planar.proj2.bias")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("kind", "spoil", "words"),
    [
        ("whole", shutil.rmtree, "expected the folder of a checkpoint, found none"),
        ("whole", drop("preprocessor_config.json"), "expected a preprocessor_config.json beside the weights"),
        ("whole", drop("model.safetensors"), "expected weights as safetensors, found none"),
        ("whole", drop("config.json"), "expected a folder of save_pretrained, found no config.json in it"),
        ("whole", pickle_weights, "found a pickle, pytorch_model.bin, which runs code when it is loaded"),
        ("whole", change_config(model_type="llama"), "expected a checkpoint of model type 'walrus', found 'llama'"),
        ("whole", change_config(hidden_size=-3), "expected a config.json that describes a model"),
        ("whole", change_config(hidden_size=64), "expected the weights that its config.json describes"),
        ("whole", write("config.json", "{"), "expected JSON, found an unreadable file"),
        ("whole", write("model.safetensors", "damaged"), "expected safetensors, found a damaged file"),
        ("whole", rename_a_tensor, "found 2 others, such as decoder.planar.proj2.bias: missing instead of"),
        ("whole", write("model.safetensors.index.json", "{}"), "found whole and sharded weights"),
        ("shards", drop("*.safetensors"), r"expected all shards of .* found no model-00001-of-\d+\.safetensors"),
        ("shards", drop("model.safetensors.index.json"), "expected model.safetensors, or shards with"),
        ("adapter", lambda folder: None, "expected the base model's name on the Hub .* found '/runs/base'"),
        ("adapter", drop("adapter_model.safetensors"), "expected weights as safetensors, found none"),
        ("adapter", write("adapter_config.json", "[]"), "expected settings by name, found a list"),
    ],
)
def test_what_cannot_be_used_by_others_is_refused(folder, kind, spoil, words):
    spoil(folder / kind)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        prepare_upload(folder / kind, "lab/mine")


def test_a_folder_with_the_published_pickle_alone_is_sent_to_convert(tmp_path):
    (tmp_path / "walrus.pt").write_bytes(b"pickle")
    with pytest.raises(ValueError, match=r"walrus\.pt is a pickle: `walrus-hf convert`"):
        prepare_upload(tmp_path, "lab/mine")


@pytest.mark.parametrize("name", ["mine", "lab/mine/again", "lab/my model", "/tmp/model"])
def test_names_that_the_hub_does_not_take_are_refused(saved, name):
    with pytest.raises(ValueError, match=r"ORG/NAME|[Rr]epo"):
        prepare_upload(saved / "whole", name)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ('{"format": "other"}', ValueError, "expected results of `walrus-hf evaluate`.* found format 'other'"),
        (None, FileNotFoundError, r"expected the folder of an evaluation with a results\.json, found none"),
    ],
)
def test_results_of_something_else_are_refused(saved, tmp_path, content, error, message):
    file = tmp_path / "results.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(error, match=message):
        prepare_upload(saved / "whole", "lab/mine", results=file)


def test_a_push_without_a_token_is_refused_before_anything_is_sent(saved, monkeypatch):
    monkeypatch.setattr("walrus_hf.hub.get_token", lambda: None)
    with pytest.raises(ValueError, match="expected a token of the Hub, found none; log in with `hf auth login`"):
        push(prepare_upload(saved / "whole", "lab/mine"))
