"""`walrus-hf push`: what it shows, and what it refuses; tests/hub pushes for real."""

import json
import shutil
from pathlib import Path

import pytest

from walrus_hf.hub import weights_digest


def test_a_dry_run_needs_neither_network_nor_token(run, model, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    before = {path.name: path.read_bytes() for path in Path(model).iterdir()}
    result = run("push", model, "--repo", "lab/mine", "--license", "mit", "--dry-run")
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0] == "would push to lab/mine, in one commit:"
    size = Path(model, "model.safetensors").stat().st_size
    assert f"{size:>14,} bytes  model.safetensors" in lines
    assert 'pipe = WalrusPipeline.from_pretrained("lab/mine")' in lines
    assert "license: mit" in lines
    assert "| 128x128 | 6 | 4 |" in result.out
    assert result.err == ""
    assert {path.name: path.read_bytes() for path in Path(model).iterdir()} == before


def test_the_costs_in_a_card_are_those_of_the_frames_that_the_processor_takes(run, model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "short")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"context_frames": 4}))
    assert "| 128x128 | 4 | 4 |" in run("push", folder, "--repo", "a/b", "--dry-run").out


def test_a_card_of_ones_own_is_given_the_hash_of_the_weights_once(run, model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "own")
    (folder / "README.md").write_text("# Mine\n\n## Provenance\n\nMade here.\n\n## Citation\n\nThem.\n")
    line = f"Weights: SHA-256 `{weights_digest(folder)}`, over names and values of all tensors."
    card = run("push", folder, "--repo", "a/b", "--dry-run").out
    assert f"Made here.\n\n{line}\n\n## Citation" in card
    (folder / "README.md").write_text(f"# Mine\n\n## Provenance\n\nWeights: SHA-256 `{'0' * 64}`, of old.\n")
    again = run("push", folder, "--repo", "a/b", "--dry-run").out
    assert (again.count(line), again.count("SHA-256")) == (1, 1)


def test_a_dry_run_tells_that_a_licence_is_missing(run, model):
    assert "the card names no licence: give one with --license" in run("push", model, "--repo", "a/b", "--dry-run").out


def test_what_evaluate_measured_comes_into_the_card(run, model, file, tmp_path):
    measured = run(
        "evaluate", "--model", model, "--data", file, "--output", tmp_path / "evaluation", "--from", 6, "--steps", 1
    )
    assert measured.code == 0, measured.err
    shown = run("push", model, "--repo", "a/b", "--dry-run", "--results", tmp_path / "evaluation" / "results.json")
    assert shown.code == 0, shown.err
    results = json.loads((tmp_path / "evaluation" / "results.json").read_text())
    ((name, scenario),) = results["scenarios"].items()
    for who, found in scenario["forecasters"].items():
        assert (
            f"| {name} | - | 16x16 | 2 | 6 | {who} | {found['windows']['1']['mean of fields']['median']:.4f} "
            in shown.out
        )
    value = scenario["forecasters"]["model"]["windows"]["1"]["mean of fields"]["median"]
    assert f"value: {value}" in shown.out
    assert "evaluation.json" in shown.out


def test_a_folder_without_a_checkpoint_is_refused(refused, tmp_path):
    assert "expected a folder of save_pretrained" in refused("push", tmp_path, "--repo", "a/b")
    assert "expected the folder of a checkpoint" in refused("push", tmp_path / "nothing", "--repo", "a/b")


def test_an_adapter_without_a_public_base_is_refused_with_the_remedy(refused, model, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": model, "peft_type": "LORA"}))
    shutil.copy(Path(model, "model.safetensors"), folder / "adapter_model.safetensors")
    assert "--base ORG/NAME" in refused("push", folder, "--repo", "a/b")


def test_a_missing_token_is_told_with_the_remedy(refused, model, monkeypatch):
    monkeypatch.setattr("walrus_hf.hub.get_token", lambda: None)
    assert "log in with `hf auth login`, or set HF_TOKEN" in refused("push", model, "--repo", "a/b")


def test_a_push_without_a_network_is_one_line(refused, model, monkeypatch):
    monkeypatch.setattr("walrus_hf.hub.get_token", lambda: "hf_some")
    assert "offline" in refused("push", model, "--repo", "a/b", code=1).lower()


def test_the_name_of_the_repository_is_asked_for(run, model):
    result = run("push", model)
    assert result.code == 2
    assert "--repo" in result.err


@pytest.mark.parametrize("name", ["mine", "a/b/c"])
def test_a_name_without_an_owner_is_refused(refused, model, name):
    refused("push", model, "--repo", name)
