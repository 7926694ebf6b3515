"""What is pushed loads back equal: against a Hub on this machine, from processes with an environment of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard

from walrus_hf.hub import AUTO_MAP, code_files

from .server import WRITER, LocalHub

ROOT = Path(__file__).parents[2]


def run(hub: LocalHub, folder: Path, *arguments: str, **changes: str) -> str:
    environment = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1",
        "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_TOKEN": "",
        "NO_PROXY": "127.0.0.1,localhost", **changes,
    }  # fmt: skip
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """A Hub after all pushes and loads of with_package.py, and what that found."""
    folder, hub = tmp_path_factory.mktemp("hub"), LocalHub()
    found = json.loads(run(hub, folder, "-m", "tests.hub.with_package", str(folder), HF_TOKEN=WRITER))
    yield SimpleNamespace(hub=hub, folder=folder, found=found)
    hub.shutdown()
    hub.server_close()


def commits(hub: LocalHub, name: str) -> list[set[str]]:
    return [set(files) for _, files in hub.repositories[name].commits]


@pytest.mark.parametrize(
    "what",
    [
        "parts load equal", "whole loads equal", "cut download loads equal", "new weights load equal",
        "pinned revision loads equal", "branch loads equal", "adapter loads equal", "adapter differs from its base",
        "private loads equal", "reader loads equal", "trained loads equal", "trained is what was trained",
    ],
)  # fmt: skip
def test_what_is_pushed_loads_back_equal(pushed, what):
    assert pushed.found[what] is True


def test_a_push_is_one_commit_with_shards_processor_code_card_and_licence(pushed):
    first, files, *_ = commits(pushed.hub, "lab/whole")
    commit = pushed.found["commit"].removeprefix(f"{pushed.hub.url}/lab/whole/commit/")
    assert first == {".gitattributes"}
    assert {"config.json", "preprocessor_config.json", "README.md", "model.safetensors.index.json"} <= files
    assert {path.name for path in code_files()} <= files
    assert sum(name.endswith(".safetensors") for name in files) > 1
    here = pushed.hub.files("lab/whole", commit)
    assert set(here) == files
    assert json.loads(here["config.json"])["auto_map"] == AUTO_MAP
    card = ModelCard(here["README.md"].decode())
    assert card.data.license == "cc-by-4.0"
    assert 'from_pretrained("lab/whole")' in card.text


def test_a_trained_model_is_pushed_with_code_and_the_card_of_its_training(pushed):
    _, files = commits(pushed.hub, "lab/trained")
    assert {"model.safetensors", "preprocessor_config.json", *(path.name for path in code_files())} <= files
    here = pushed.hub.files("lab/trained")
    assert json.loads(here["config.json"])["auto_map"] == AUTO_MAP
    card = here["README.md"].decode()
    assert "6 optimiser steps on `shear_flow`" in card
    assert 'from_pretrained("lab/trained")' in card


def test_a_new_state_of_the_model_replaces_the_files_of_the_old_one_and_no_others(pushed):
    name = "lab/whole"
    second = next(files for files in commits(pushed.hub, name) if "model.safetensors" in files)
    assert "notes.txt" in second
    assert not any(file.startswith("model-") or file.endswith(".index.json") for file in second)
    assert pushed.hub.files(name)["notes.txt"] == b"mine"
    assert "model.safetensors" not in pushed.hub.files(name)


def test_a_download_that_breaks_off_goes_on_where_it_stopped(pushed):
    resumed = [asked for method, path, asked in pushed.hub.requests if asked is not None]
    assert len(resumed) == 1
    start = int(resumed[0].removeprefix("bytes=").removesuffix("-"))
    assert 0 < start <= 50_000


def test_tokens_stay_with_the_hub(pushed):
    assert pushed.hub.tokens_elsewhere == []


def test_an_adapter_names_its_base_and_brings_no_weights_of_it(pushed):
    files = pushed.hub.files("lab/adapter")
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "lab/whole"
    assert ModelCard(files["README.md"].decode()).data.base_model == "lab/whole"
    assert not {"config.json", "model.safetensors", "modeling_walrus.py"} & set(files)
    assert "expected the base model's name on the Hub" in pushed.found["adapter of a folder"]
    assert "expected the base that this adapter was trained on" in pushed.found["adapter on another base"]


def test_a_dry_run_shows_files_and_card_and_touches_nothing(pushed):
    shown = pushed.found["dry run"]
    assert shown["code"] == 0
    assert "FileNotFoundError" in pushed.found["private after refusals"]
    assert pushed.found["files after the dry run"] == sorted(
        path.name for path in (pushed.folder / "checkpoint").iterdir()
    )
    assert "README.md" not in pushed.found["files after the dry run"]
    for name, content in pushed.hub.files("lab/private").items():
        if name != ".gitattributes":
            assert f"{len(content):,} bytes  {name}\n" in shown["out"]
    assert "stays here: optimizer.bin\n" in shown["out"]
    assert pushed.hub.files("lab/private")["README.md"].decode() in shown["out"]


def test_the_results_of_an_evaluation_come_along_without_paths_of_this_machine(pushed):
    files = pushed.hub.files("lab/private")
    data = ModelCard(files["README.md"].decode()).data
    assert {(r.dataset_type, r.metric_name, r.metric_value) for r in data.eval_results} == {
        ("polymathic-ai/shear_flow", "VRMSE, steps 1, median over 3 trajectories", 0.0123),
        ("mine", "VRMSE, steps 1, median over 3 trajectories", 0.5),
        ("mine", "VRMSE, steps 1:20, median over 3 trajectories", 0.75),
    }
    assert data.datasets == ["polymathic-ai/shear_flow"]
    for content in (files["README.md"], files["evaluation.json"]):
        assert b"somebody" not in content
        assert str(pushed.folder).encode() not in content
    assert "optimizer.bin" not in files
    assert files["film.gif"].startswith(b"GIF89a")


def test_an_interrupted_upload_changes_nothing_and_goes_on_when_repeated(pushed):
    found = pushed.found
    assert found["interrupted"]["code"] == 1
    assert "nothing in lab/private has changed, push again to go on" in found["interrupted"]["err"]
    assert found["interrupted"]["err"].count("\n") == 1
    assert found["files after the interruption"] == [".gitattributes"]
    assert found["repeated"]["code"] == found["unchanged"]["code"] == 0
    first, second = commits(pushed.hub, "lab/private")  # pushing the same again makes no commit
    assert first == {".gitattributes"}
    shards = {name for name in second if name.endswith(".safetensors")}
    assert len(shards) > 2


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("no token", "expected a token of the Hub, found none; log in with `hf auth login`"),
        ("wrong token", "refuses (401); check the name, make a token with write access"),
        ("token that may only read", "refuses (403); check the name, make a token with write access"),
        ("missing repository", "lab/nothing: expected a folder or a Hub repository"),
        ("reading with a wrong token", "for a private repository the token (`hf auth login`)"),
        ("reading without a token", "for a private repository the token (`hf auth login`)"),
    ],
)
def test_refusals_are_one_line(pushed, what, words):
    found = pushed.found[what]
    assert found["code"] == 2
    assert found["out"] == ""
    assert words in found["err"]
    assert len(found["err"].splitlines()) == 1


def test_what_is_not_there_is_not_found(pushed):
    assert pushed.found["missing revision"].startswith("FileNotFoundError: lab/whole")
    assert pushed.found["missing adapter or model"].startswith("FileNotFoundError: lab/nothing")


def test_private_repositories_are_private(pushed):
    assert pushed.hub.repositories["lab/private"].private
    assert not pushed.hub.repositories["lab/whole"].private
    assert "ValueError: lab/whole: expected a private repository" in pushed.found["private over public"]
    assert len(pushed.hub.repositories["lab/whole"].commits) == 6  # what it holds was pushed before


def test_the_code_of_a_repository_forecasts_where_the_package_is_missing_and_then_without_a_network(pushed):
    script = str(Path(__file__).with_name("without_package.py"))
    assert "loaded" in run(pushed.hub, pushed.folder, script, str(pushed.folder))
    before = len(pushed.hub.requests)
    assert "loaded" in run(pushed.hub, pushed.folder, script, str(pushed.folder), "--cached", HF_HUB_OFFLINE="1")
    assert len(pushed.hub.requests) == before
