"""The published checkpoint converts exactly or not at all: every key is accounted for, nothing half-done remains."""

import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import SafetensorError

from walrus_hf import WalrusConfig, WalrusForPrediction, WalrusPipeline
from walrus_hf.convert import convert_checkpoint, published_names, published_state_dict_to_walrus, walrus_config
from walrus_hf.layers import rotary_frequencies

from .fixtures.formula import CASES, published_state_dict
from .test_parity import VOCAB, assert_golden, model_inputs, parity_config

SETTINGS = yaml.safe_load((Path(__file__).parent / "fixtures" / "extended_config.yaml").read_text())
FREQUENCIES = "blocks.{}.space_mixing.rotary_emb.freqs"


def published(dtype=torch.float32):
    return {name: torch.tensor(values, dtype=dtype) for name, values in published_state_dict().items()}


def write(folder, state_dict=None, settings=None):
    """`walrus.pt` and `extended_config.yaml` as published."""
    torch.save({"app": {"model": published() if state_dict is None else state_dict}}, folder / "walrus.pt")
    (folder / "config.yaml").write_text(yaml.safe_dump(SETTINGS if settings is None else settings))
    return folder / "walrus.pt", folder / "config.yaml"


def changed(path, value):
    """The published settings with one changed."""
    settings = json.loads(json.dumps(SETTINGS))
    *groups, last = path.split(".")
    inner = settings
    for group in groups:
        inner = inner[group]
    if value is KeyError:
        del inner[last]
    else:
        inner[last] = value
    return settings


def refused(tmp_path, match, *files, error=ValueError, **kwargs):
    """The conversion fails with one line and leaves nothing that was not there before."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=match) as raised:
        convert_checkpoint(*files, tmp_path / "out", **kwargs)
    assert "\n" not in str(raised.value)
    assert sorted(tmp_path.rglob("*")) == before


# --- what comes out ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES["cases"][:3], ids=lambda case: case["name"])
def test_a_converted_folder_matches_the_golden_numbers(tmp_path, case):
    folder = convert_checkpoint(*write(tmp_path), tmp_path / "out")
    model = WalrusPipeline.from_pretrained(folder, dtype=torch.float64).model
    with torch.no_grad():
        output = model(**model_inputs(case, torch.float64))
    # The file holds the formula weights in float32.
    assert_golden(output.delta.float(), case["expected"]["delta"], torch.float32)
    assert_golden(output.prediction.float(), case["expected"]["prediction"], torch.float32)


def test_a_conversion_writes_safetensors_configuration_processor_and_card(tmp_path):
    folder = convert_checkpoint(*write(tmp_path), tmp_path / "deep" / "out")
    assert folder == tmp_path / "deep" / "out"
    files = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert {file.name for file in folder.iterdir()} == files
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["out"]
    pipe = WalrusPipeline.from_pretrained(folder)
    assert pipe.model.config.field2id == pipe.processor.field2id == VOCAB
    assert pipe.model.config.hidden_size == 32
    assert pipe.model.config.intermediate_size == 64
    assert pipe.model.dtype == torch.float32


def test_a_conversion_keeps_the_precision_of_the_checkpoint(tmp_path):
    folder = convert_checkpoint(*write(tmp_path, published(torch.bfloat16)), tmp_path / "out")
    assert WalrusPipeline.from_pretrained(folder).model.dtype == torch.bfloat16


def test_the_card_states_provenance_and_licence(tmp_path):
    import hashlib

    checkpoint, config = write(tmp_path)
    card = (convert_checkpoint(checkpoint, config, tmp_path / "out") / "README.md").read_text()
    assert "license: mit" in card
    assert hashlib.sha256(checkpoint.read_bytes()).hexdigest() in card
    assert "polymathic-ai/walrus" in card


def test_the_scalar_of_the_encoder_is_folded_into_fields_and_not_into_flags():
    state_dict = published(torch.float64)
    assert state_dict["encoder_dummy"].item() == pytest.approx(1.07)
    converted = published_state_dict_to_walrus(state_dict, parity_config())
    for d, ours in (("2", "planar"), ("3", "volumetric")):
        raw = state_dict[f"embed.{d}.proj1.weight"]
        found = converted[f"model.embeddings.{ours}.proj1.weight"]
        torch.testing.assert_close(found[:, 3:], 1.07 * raw[:, 3:])
        assert torch.equal(found[:, :3], raw[:, :3])
        assert raw is not found


def test_every_parameter_comes_from_the_checkpoint():
    config = parity_config()
    with torch.device("meta"):
        expected = {name: p.shape for name, p in WalrusForPrediction(config).named_parameters()}
    converted = published_state_dict_to_walrus(published(), config)
    assert {name: tensor.shape for name, tensor in converted.items()} == expected


def test_the_published_names_are_those_of_the_reference():
    assert published_names(parity_config()) == {n: tuple(shape) for n, shape in CASES["parameters"].items()}


def test_learnable_rotary_frequencies_shared_by_the_axes_are_kept(tmp_path):
    state_dict = published()
    for i in range(2):
        state_dict[FREQUENCIES.format(i)] += i + 1
    model = WalrusPipeline.from_pretrained(convert_checkpoint(*write(tmp_path, state_dict), tmp_path / "out")).model
    assert model.config.rope_learnable == "shared"
    for i, layer in enumerate(model.model.layers):
        expected = torch.tensor(rotary_frequencies(2)) + i + 1
        torch.testing.assert_close(layer.space_mixing.rotary_frequencies.weight, expected[None].float())


def test_learnable_rotary_frequencies_of_each_axis_are_kept(tmp_path):
    state_dict = published()
    for i in range(2):
        old = state_dict.pop(FREQUENCIES.format(i))
        state_dict |= {f"{FREQUENCIES.format(i)}.{axis}": old + 10 * i + axis for axis in range(3)}
    model = WalrusPipeline.from_pretrained(convert_checkpoint(*write(tmp_path, state_dict), tmp_path / "out")).model
    assert model.config.rope_learnable == "per_axis"
    constants = torch.tensor(rotary_frequencies(2)).float()
    for i, layer in enumerate(model.model.layers):
        expected = torch.stack([constants + 10 * i + axis for axis in range(3)])
        torch.testing.assert_close(layer.space_mixing.rotary_frequencies.weight, expected)


def test_frequencies_of_each_axis_that_are_the_constants_change_nothing(tmp_path):
    state_dict = published(torch.float64)
    for i in range(2):
        old = state_dict.pop(FREQUENCIES.format(i))
        state_dict |= {f"{FREQUENCIES.format(i)}.{axis}": old.clone() for axis in range(3)}
    model = WalrusPipeline.from_pretrained(convert_checkpoint(*write(tmp_path, state_dict), tmp_path / "out")).model
    case = CASES["cases"][0]
    with torch.no_grad():
        output = model(**model_inputs(case, torch.float64))
    assert_golden(output.delta, case["expected"]["delta"], torch.float64)


def test_an_absolute_position_embedding_is_kept_with_its_token_grid(tmp_path):
    ape = torch.arange(32 * 4 * 5 * 1.0).reshape(1, 1, 32, 4, 5, 1)
    model = WalrusPipeline.from_pretrained(
        convert_checkpoint(*write(tmp_path, {**published(), "ape": ape}), tmp_path / "out")
    ).model
    assert model.config.absolute_position_shape == [4, 5, 1]
    assert torch.equal(model.model.absolute_position.weight[2, 3, 0], ape[0, 0, :, 2, 3, 0])


def test_the_default_configuration_is_the_published_model():
    config = WalrusConfig()
    with torch.device("meta"):
        parameters = sum(p.numel() for p in WalrusForPrediction(config).parameters())
    assert parameters == 1_286_199_046
    rotary = sum(shape[0] for name, shape in published_names(config).items() if "rotary" in name)
    total = sum(torch.Size(shape).numel() for shape in published_names(config).values())
    assert total - rotary == 1_286_199_047


def test_settings_are_read_from_the_published_file():
    config = walrus_config(changed("trainer.epsilon", "1e-8"), published())
    assert (config.scale_eps, config.drop_path_rate, config.jitter) == (1e-8, 0.05, True)
    assert (config.num_hidden_layers, config.num_attention_heads, config.stem_hidden_size) == (2, 2, 8)
    assert walrus_config(changed("model.processor.space_mixing.mlp_dim", 96), published()).intermediate_size == 48


# --- keys that do not fit ------------------------------------------------------------------------------------------


def test_missing_surplus_and_misshapen_tensors_are_all_named(tmp_path):
    state_dict = published()
    for name in ("blocks.0.space_mixing.attn_out.weight", "encoder_dummy"):
        del state_dict[name]
    state_dict |= {"blocks.7.extra": torch.zeros(1), "head.weight": torch.zeros(1)}
    state_dict["debed.2.proj2.bias"] = torch.zeros(5)
    files = write(tmp_path, state_dict)
    refused(tmp_path, r"missing: encoder_dummy, blocks\.0\.space_mixing\.attn_out\.weight;", *files)
    refused(tmp_path, r"surplus: blocks\.7\.extra, head\.weight;", *files)
    refused(tmp_path, r"misshapen: debed\.2\.proj2\.bias \(5,\) instead of \(23,\)$", *files)


@pytest.mark.parametrize("name", sorted(CASES["parameters"]))
def test_no_tensor_can_be_left_out(name):
    state_dict = published()
    del state_dict[name]
    with pytest.raises(ValueError, match=f"missing: {name}$"):
        published_state_dict_to_walrus(state_dict, parity_config())


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("ape", torch.zeros(32, 4, 4), r"misshapen: ape \(32, 4, 4\)"),
        ("ape", torch.zeros(1, 1, 16, 4, 4, 1), r"misshapen: ape \(1, 1, 16, 4, 4, 1\)"),
        (FREQUENCIES.format(0), torch.zeros(2, 3), r"misshapen: blocks\.0.*freqs \(2, 3\)"),
        (FREQUENCIES.format(1), torch.tensor(1.0), r"misshapen: blocks\.1.*freqs \(\)"),
        (FREQUENCIES.format(0) + ".0", torch.zeros(2), r"missing: .*surplus: blocks\.0.*freqs,"),
        ("embed.2.norm1.weight", torch.zeros(8, dtype=torch.int64), r"not floating point: embed\.2\.norm1\.weight"),
    ],
)
def test_odd_tensors_are_named(tmp_path, name, tensor, message):
    refused(tmp_path, message, *write(tmp_path, {**published(), name: tensor}))


def test_trained_frequencies_are_not_dropped_for_the_constants():
    state_dict = published()
    state_dict[FREQUENCIES.format(1)] *= 1.01
    with pytest.raises(ValueError, match=r"blocks\.1.*freqs: expected the constants.*rope_learnable='shared'"):
        published_state_dict_to_walrus(state_dict, parity_config())


# --- files that are something else ---------------------------------------------------------------------------------


class Malicious:
    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return os.mkdir, (self.victim,)


@pytest.mark.parametrize("wrap", [lambda bad: bad, lambda bad: {"app": {"model": published(), "extra": bad}}])
def test_a_pickle_with_code_is_refused_and_never_run(tmp_path, wrap):
    _, config = write(tmp_path)
    victim = tmp_path / "victim"
    torch.save(wrap(Malicious(str(victim))), tmp_path / "evil.pt")
    refused(tmp_path, "plain tensors, but it holds more than tensors", tmp_path / "evil.pt", config)
    (tmp_path / "old.pt").write_bytes(pickle.dumps(wrap(Malicious(str(victim)))))
    refused(tmp_path, "plain tensors, but it is damaged or of another kind", tmp_path / "old.pt", config)
    assert not victim.exists()


@pytest.mark.parametrize("keep", [0, 1, 1000, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(tmp_path, keep):
    checkpoint, config = write(tmp_path)
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
    refused(
        tmp_path, "walrus.pt: expected a PyTorch checkpoint of plain tensors, but it is damaged", checkpoint, config
    )


def test_files_of_other_kinds_are_refused(tmp_path):
    _, config = write(tmp_path)
    (tmp_path / "text.pt").write_text("no checkpoint\n" * 100)
    refused(tmp_path, "text.pt: expected .* it is damaged or of another kind", tmp_path / "text.pt", config)
    with zipfile.ZipFile(tmp_path / "archive.pt", "w") as archive:
        archive.writestr("readme.txt", "no checkpoint")
    refused(tmp_path, "archive.pt: expected .* it is damaged or of another kind", tmp_path / "archive.pt", config)
    (tmp_path / "folder").mkdir()
    refused(tmp_path, "expected the published walrus.pt, found a folder", tmp_path / "folder", config)
    refused(tmp_path, "gone.pt: .*found no such file", tmp_path / "gone.pt", config, error=FileNotFoundError)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (published(), "found a mapping with 'encoder_dummy'"),
        ({"model": published()}, "found a mapping with 'model'"),
        ({"app": published()}, "found a mapping with 'app'"),
        ({"app": [published()]}, "found a mapping with 'app'"),
        ({"app": {"model": {"step": 3}}}, "found a mapping with 'app'"),
        ([published()], "found a list"),
        (torch.zeros(3), "found a Tensor"),
    ],
)
def test_another_layout_of_the_checkpoint_is_refused_by_what_it_holds(tmp_path, content, found):
    _, config = write(tmp_path)
    torch.save(content, tmp_path / "other.pt")
    refused(tmp_path, f"expected a checkpoint .* {found}", tmp_path / "other.pt", config)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("trainer.prediction_type", "full", "trainer.prediction_type: expected delta.* found full"),
        ("model.causal_in_time", False, "model.causal_in_time: expected True"),
        ("model.encoder.base_kernel_size3d", [[4, 4]] * 3, "base_kernel_size3d: expected .* found"),
        ("model.processor.time_mixing.bias_type", "none", "bias_type: expected rel"),
        ("model.processor.time_mixing.num_heads", 4, "as many heads in time_mixing as in space_mixing"),
        ("model.hidden_dim", KeyError, "the configuration file lacks model.hidden_dim"),
        ("trainer", KeyError, "the configuration file lacks trainer.prediction_type"),
        ("model.hidden_dim", "wide", "model.hidden_dim: expected a whole number of at least 1, found 'wide'"),
        ("model.processor_blocks", 0, "model.processor_blocks: expected a whole number of at least 1"),
        ("model.drop_path", None, "model.drop_path: expected a number, found None"),
        ("model.drop_path", 1.5, "describes no Walrus: drop_path_rate"),
        ("data.field_index_map_override", ["pressure"], "expected names with their ids"),
        ("data.field_index_map_override", {"pressure": 7}, "describes no Walrus: field2id: expected the ids"),
        ("model.processor_blocks", 3, r"missing: blocks\.2\."),
        ("model.processor_blocks", 1, r"surplus: blocks\.1\."),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path, path, value, message):
    refused(tmp_path, message, *write(tmp_path, settings=changed(path, value)))


@pytest.mark.parametrize(("text", "message"), [("a: [", "expected a YAML file"), ("text", "found no settings")])
def test_a_configuration_that_is_no_yaml_mapping_is_refused(tmp_path, text, message):
    checkpoint, config = write(tmp_path)
    config.write_text(text)
    refused(tmp_path, message, checkpoint, config)
    refused(tmp_path, "found no such file", checkpoint, tmp_path / "gone.yaml", error=FileNotFoundError)


def test_a_configuration_runs_no_code(tmp_path):
    checkpoint, config = write(tmp_path)
    config.write_text(f"!!python/object/apply:os.mkdir ['{tmp_path / 'victim'}']")
    refused(tmp_path, "expected a YAML file", checkpoint, config)


# --- where it goes -------------------------------------------------------------------------------------------------


def test_an_existing_output_is_kept_unless_it_may_be_overwritten(tmp_path):
    files = write(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    convert_checkpoint(*files, out)  # an empty folder is fine
    (out / "README.md").write_text("mine")
    refused(tmp_path, "out is not empty; .* --overwrite", *files, error=FileExistsError)
    assert (out / "README.md").read_text() == "mine"
    convert_checkpoint(*files, out, overwrite=True)
    assert "mit" in (out / "README.md").read_text()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.yaml", "out", "walrus.pt"]


def test_a_folder_with_other_files_is_never_replaced(tmp_path):
    files = write(tmp_path)
    (tmp_path / "out" / "thesis").mkdir(parents=True)
    refused(tmp_path, "a former conversion to replace, found 'thesis'", *files, error=FileExistsError, overwrite=True)
    with pytest.raises(FileExistsError, match="expected a folder of a former conversion"):
        convert_checkpoint(*files, tmp_path, overwrite=True)
    assert files[0].exists()


def test_a_file_as_output_is_refused(tmp_path):
    files = write(tmp_path)
    (tmp_path / "out").write_text("mine")
    refused(tmp_path, "expected a folder to write, found a file", *files, overwrite=True)


@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left on device"), SafetensorError("No space left on device")]
)
@pytest.mark.parametrize("old", [False, True])
def test_a_failure_half_way_leaves_what_was_there(tmp_path, monkeypatch, failure, old):
    files = write(tmp_path)
    if old:
        convert_checkpoint(*files, tmp_path / "out")
        (tmp_path / "out" / "README.md").write_text("old")

    def fail(self, directory, **kwargs):
        (Path(directory) / "model.safetensors").write_text("half")
        raise failure

    monkeypatch.setattr(WalrusForPrediction, "save_pretrained", fail)
    message = "out: expected to write the folder, found .*No space left on device; free space"
    refused(tmp_path, message, *files, error=OSError, overwrite=old)
    if old:
        assert (tmp_path / "out" / "README.md").read_text() == "old"
        assert WalrusPipeline.from_pretrained(tmp_path / "out")


def test_an_old_output_comes_back_when_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    files = write(tmp_path)
    out = convert_checkpoint(*files, tmp_path / "out")
    (out / "README.md").write_text("old")
    replace, calls = os.replace, []

    def second_fails(source, target):
        calls.append(source)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", second_fails)
    refused(tmp_path, "Input/output error", *files, error=OSError, overwrite=True)
    assert (out / "README.md").read_text() == "old"


# --- the real size -------------------------------------------------------------------------------------------------

BIG = """
import resource, sys, time
from walrus_hf.convert import convert_checkpoint
begin = time.monotonic()
convert_checkpoint(*sys.argv[1:])
print(time.monotonic() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
def test_the_large_model_converts_in_a_minute_and_12_gib(tmp_path):
    config = WalrusConfig()
    state_dict = {name: torch.randn(shape) for name, shape in published_names(config).items()}
    for name in state_dict:
        if name.endswith("rotary_emb.freqs"):
            state_dict[name] = torch.tensor(rotary_frequencies(len(state_dict[name])), dtype=torch.float32)
    settings = json.loads(json.dumps(SETTINGS))
    settings["model"] |= {"hidden_dim": 1408, "intermediate_dim": 352, "processor_blocks": 40}
    settings["model"]["processor"]["space_mixing"]["num_heads"] = 16
    settings["model"]["processor"]["time_mixing"]["num_heads"] = 16
    settings["data"]["field_index_map_override"] = dict(config.field2id)
    files = write(tmp_path, state_dict, settings)
    del state_dict
    run = subprocess.run([sys.executable, "-c", BIG, *map(str, files), str(tmp_path / "out")], check=True,
                         capture_output=True, text=True)  # fmt: skip
    seconds, peak = map(float, run.stdout.split())
    assert seconds < 60
    assert peak < 12 * 2**30
    from safetensors import safe_open

    shapes = []
    for file in (tmp_path / "out").glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            shapes += [torch.Size(tensors.get_slice(name).get_shape()) for name in tensors.keys()]  # noqa: SIM118
    assert sum(shape.numel() for shape in shapes) == 1_286_199_046
