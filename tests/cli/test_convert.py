"""`walrus-hf convert`: the published file in, a folder for `--model` out."""

import resource

import pytest
import torch

from walrus_hf import WalrusPipeline

from ..test_convert import Malicious, published, write
from .conftest import program


def test_a_converted_folder_is_listed_and_forecasts(run, file, tmp_path):
    out = tmp_path / "out"
    result = run("convert", *with_config(*write(tmp_path)), "--output", out)
    assert result.code == 0, result.err
    assert result.err == ""
    assert all(name in result.out for name in ("model.safetensors", "config.json", "README.md"))
    assert f"walrus-hf forecast FILE --model {out} --output forecast.hdf5" in result.out
    with_model = ["forecast", file, "--model", out, "--output", tmp_path / "forecast.hdf5", "-n", "1"]
    assert run(*with_model, "--tokens-per-axis", "4").code == 0


def with_config(checkpoint, config):
    return [checkpoint, "--config", config]


def test_files_that_are_no_published_checkpoint_are_refused_in_one_line(refused, tmp_path):
    checkpoint, config = write(tmp_path)
    output = ["--output", tmp_path / "out"]
    (tmp_path / "text.pt").write_text("text")
    assert "it is damaged or of another kind" in refused("convert", *with_config(tmp_path / "text.pt", config), *output)
    assert "found no such file" in refused("convert", *with_config(tmp_path / "gone.pt", config), *output)
    assert "found a folder" in refused("convert", *with_config(tmp_path, config), *output)
    assert "expected a YAML file" in refused("convert", *with_config(checkpoint, checkpoint), *output)
    torch.save({"app": {"model": {**published(), "extra": torch.zeros(1)}}}, tmp_path / "surplus.pt")
    assert "surplus: extra" in refused("convert", *with_config(tmp_path / "surplus.pt", config), *output)
    torch.save(Malicious(str(tmp_path / "victim")), tmp_path / "evil.pt")
    assert "it holds more than tensors" in refused("convert", *with_config(tmp_path / "evil.pt", config), *output)
    assert not (tmp_path / "victim").exists()


def test_an_old_output_is_kept_unless_it_may_be_overwritten(run, refused, tmp_path):
    arguments = ["convert", *with_config(*write(tmp_path)), "--output", tmp_path / "out"]
    assert run(*arguments).code == 0
    assert "is not empty; choose another folder, or replace it with --overwrite" in refused(*arguments)
    assert run(*arguments, "--overwrite").code == 0
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    assert "found 'thesis.tex' in it" in refused(*arguments, "--overwrite")


@pytest.mark.parametrize("old", [False, True])
def test_a_full_disk_leaves_what_was_there(tmp_path, run, old):
    arguments = ["convert", *with_config(*write(tmp_path)), "--output", tmp_path / "out"]
    if old:
        assert run(*arguments).code == 0
    before = sorted(tmp_path.rglob("*"))
    full = program(
        *arguments, *["--overwrite"] * old,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )  # fmt: skip
    assert full.returncode == 1, full.stderr
    assert full.stderr.count("\n") == 1
    assert "out: expected to write the folder, found" in full.stderr
    assert sorted(tmp_path.rglob("*")) == before
    if old:
        assert WalrusPipeline.from_pretrained(tmp_path / "out")
