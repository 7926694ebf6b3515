"""`walrus-hf finetune`: an adapter out of a file, a table of errors, and refusals in one line."""

import json

import pytest

from walrus_hf import WalrusPipeline

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def finetune(file, model):
    return ["finetune", "--model", model, "--data", file, "--max-steps", "2", "--frames", "3"]


def test_an_adapter_is_trained_compared_and_found_again(run, finetune, tmp_path):
    options = ("--preset", "dora", "--rank", "2", "--new-field", "pressure=density", "--field-name", "pressure=p")
    result = run(*finetune, "--output", tmp_path / "out", *options)
    assert result.code == 0, result.err
    assert "one step, all 9 held-out windows" in result.out
    assert "best at step" in result.out
    settings = json.loads((tmp_path / "out" / "results.json").read_text())["settings"]
    assert (settings["preset"], settings["rank"], settings["max_steps"]) == ("dora", 2, 2)
    assert (settings["new_fields"], settings["field_names"]) == ({"pressure": "density"}, {"pressure": "p"})
    pipe = WalrusPipeline.from_pretrained(tmp_path / "out")
    assert pipe.model.peft_config["default"].use_dora
    assert "p" in pipe.processor.field2id
    for picture in ("error_growth.png", "forecast.png"):
        assert (tmp_path / "out" / picture).stat().st_size > 1000


def test_of_a_model_that_learns_frames_farther_apart_it_is_said(run, finetune, tmp_path):
    done = run(*finetune, "--frames", "2", "--frame-stride", "2", "--preset", "attention", "--output", tmp_path / "out")
    assert "and give it frames 2 apart (frame_stride=2)" in done.out, done.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--preset", "nose"), "preset: expected one of attention, mlp"),
        (("--method", "magic"), "method: expected one of lora, full, head, found 'magic'"),
        (("--data", "gone.hdf5"), "gone.hdf5"),
        (("--model", "./gone"), "expected the folder of a checkpoint, found none"),
        (("--field-name", "pressure=rho"), "'pressure' as 'rho'"),
        (("--new-field", "=x"), "--new-field: expected OWN or OWN=LIKE"),
        (("--frames", "12"), "ask for fewer frames or a smaller frame_stride"),
        (("--normalization", "gone.yaml"), "expected 'sample', 'global' or the path of a stats.yaml"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(run, finetune, tmp_path, options, message):
    result = run(*finetune, "--output", tmp_path / "out", *options)
    assert result.code == 2, result
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.err
    assert message in errors[0]
    assert not list(tmp_path.glob("out/*.json"))


def test_an_error_of_the_file_system_names_the_file(finetune, refused, tmp_path):
    (tmp_path / "notes").write_text("a file, no folder")
    message = refused(*finetune, "--output", tmp_path / "notes" / "out")
    assert message.startswith(f"error: {tmp_path}/notes/out")
    assert message.endswith(": Not a directory")


@pytest.mark.usefixtures("known_rates")
def test_info_tells_the_memory_of_a_step(run, model, refused):
    result = run("info", "--model", model, "--grid", "32x32", "--finetune", "lora", "--rank", "2", "--frames", "2")
    assert result.code == 0, result.err
    assert "one fine-tuning step (lora, all-linear of rank 2, batch 1, gradient checkpointing)" in result.out
    assert "activations" in result.out
    smaller = run("info", "--model", model, "--grid", "32x32", "--finetune", "lora", "--preset", "attention").out
    assert "(lora, attention of rank 16, batch 1" in smaller
    assert "--finetune: expected lora, full or head, and a --grid" in refused("info", "--finetune", "lora")
