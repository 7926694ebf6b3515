"""`walrus-hf info` and the help texts."""

import re
import shutil
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model

from walrus_hf import WalrusPipeline, cli
from walrus_hf.adapter_files import AdapterRecord, fingerprint
from walrus_hf.adapters import Extension

COMMANDS = ("demo", "forecast", "evaluate", "info", "convert", "plan")


def test_info_shows_versions_device_and_the_published_geometry(run):
    result = run("info")
    assert result.code == 0, result.err
    assert re.search(r"^torch +\d", result.out, re.M)
    assert re.search(r"^device +\w+ \(.+\)", result.out, re.M)
    assert "1,286,199,046 parameters, 40 layers of width 1408, 67 names; 4.79 GiB in float32" in result.out
    assert "tokens a frame" not in result.out


def test_info_of_a_checkpoint_shows_its_own_size(run, model):
    result = run("info", "--model", model)
    assert f"{model}: " in result.out
    assert "2 layers of width 32, 23 names" in result.out


@pytest.mark.parametrize("kind", ["of PEFT", "of fit"])
def test_info_of_an_adapter_names_its_kind_its_own_parameters_and_its_base(run, model, tmp_path, kind):
    base = WalrusPipeline.from_pretrained(model)
    extension = Extension(new_fields={"dye": None})
    record = AdapterRecord(extension, fingerprint(base.model)) if kind == "of fit" else None
    saved = extension.apply(base.model, separate=True) if record is not None else None
    settings = LoraConfig(r=3, target_modules=["q_proj"], use_dora=True, modules_to_save=saved)
    adapted = get_peft_model(base.model, settings)
    WalrusPipeline(adapted, adapter_record=record).save_pretrained(tmp_path / "adapter")
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    whole = sum(p.numel() for p in WalrusPipeline.from_pretrained(model).model.parameters())
    result = run("info", "--model", tmp_path / "adapter")
    assert result.code == 0, result.err
    fields = ", new fields dye; any other base than its own is refused" if record else "; no record of its base"
    told = f"LORA adapter of rank 3 (DoRA), {trained:,} parameters of its own{fields}"
    assert (
        f"{tmp_path / 'adapter'}: {told}\n{model}, its base: {whole:,} parameters, 2 layers of width 32" in result.out
    )


def test_an_adapter_whose_base_is_gone_is_refused(refused, model, tmp_path):
    LoraConfig(base_model_name_or_path=str(tmp_path / "gone")).save_pretrained(tmp_path / "adapter")
    shutil.copy(Path(model, "model.safetensors"), tmp_path / "adapter" / "adapter_model.safetensors")
    assert "gone: expected the folder of a checkpoint, found none" in refused("info", "--model", tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    assert "adapter_model.safetensors: expected safetensors" in refused("info", "--model", tmp_path / "adapter")


def test_info_of_a_grid_shows_tokens_memory_and_time(run):
    result = run("info", "--grid", "256x128", "--boundaries", "periodic,wall/open")
    assert result.code == 0, result.err
    assert "256x128: 1056 tokens a frame, jitter on" in result.out
    assert "256 cells, periodic: 32 tokens of 8 cells" in result.out
    assert "128 cells, wall / open: 33 tokens of 4 cells" in result.out
    assert "one forecast step from 6 frames of 4 fields, in float32" in result.out
    assert re.search(r"about [\d.]+ GiB: weights 4.79, working memory [\d.]+, forecast 0.00, libraries", result.out)
    assert re.search(r"about [\d.e+]+ s at .*: [\d,]+ GFLOP/s in matrix products, [\d.,]+ GB/s in copies", result.out)


@pytest.mark.usefixtures("known_rates")
def test_info_of_a_forecast_multiplies_time_and_keeps_its_frames(run, model):
    def numbers(*options):
        text = run("info", "--model", model, "--grid", "256x256", "--channels", "4", *options).out
        return re.findall(r"about ([\d.e+]+) s", text), float(re.search(r"forecast ([\d.]+)", text)[1])

    (step, forecast), kept = numbers("--steps", "500")
    assert float(forecast) == pytest.approx(500 * float(step), rel=0.01)
    assert kept == pytest.approx(2 * 500 * 4 * 256**2 * 4 / 2**30, abs=0.006)
    assert numbers()[1] == 0.0


@pytest.mark.usefixtures("known_rates")
def test_info_counts_three_frames_of_a_volume_and_takes_the_compute_dial(run, model):
    result = run("info", "--model", model, "--grid", "64x64x64", "--tokens-per-axis", "8", "--channels", "7")
    assert "512 tokens a frame" in result.out
    assert "from 3 frames of 7 fields" in result.out


@pytest.mark.usefixtures("known_rates")
def test_fewer_tokens_cost_less(run, model):
    def gflop(tokens):
        text = run("info", "--model", model, "--grid", "256x256", "--tokens-per-axis", tokens).out
        return float(re.search(r"([\d,.]+) GFLOP \(", text)[1].replace(",", ""))

    assert gflop(32) > 3 * gflop(16)


@pytest.mark.usefixtures("known_rates")
def test_a_grid_outside_the_published_table_is_warned_of_in_one_line(run, model):
    result = run("info", "--model", model, "--grid", "97x64")
    assert result.code == 0
    assert result.err.startswith("warning: grid (97, 64, 1) is outside the published stride table")
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--grid", "256y256"), "--grid: expected the cells of 1 to 3 axes such as 256x256, found '256y256'"),
        (("--grid", "8x8x8x8"), "--grid: expected the cells of 1 to 3 axes"),
        (("--grid", "4x256"), "at least 8 cells"),
        (("--grid", "0x256"), "at least 8 cells"),
        (("--grid", "64x64", "--boundaries", "wall,wall,wall"), "--boundaries: expected one kind for all axes"),
        (("--grid", "64x64", "--boundaries", "sticky"), "found 'sticky'"),
        (("--grid", "64x64", "--boundaries", "wall/periodic"), "one side is periodic and the other is not"),
        (("--grid", "64x64", "--tokens-per-axis", "0"), "at least one token"),
        (("--steps", "5"), "--steps: expected a --grid beside it"),
        (("--model", "./gone"), "./gone: expected the folder of a checkpoint, found none"),
        (("--device", "abacus"), "found 'abacus'"),
        (("--grid", "64x64", "--finetune", "lora", "--preset", "all"), "preset: expected one of attention, mlp"),
        (
            ("--grid", "64x64", "--finetune", "full", "--preset", "dora"),
            "--preset: expected together with --finetune lora",
        ),
        (("--grid", "64x64", "--rank", "4"), "--rank: expected together with --finetune lora, found None"),
    ],
)
def test_bad_questions_are_refused_in_one_line_before_anything_is_printed(run, refused, options, message):
    assert message in refused("info", *options)
    assert run("info", *options).out == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_all_its_options(run, command):
    result = run(command, "--help")
    assert result.code == 0
    (found,) = [c for c in cli.app.registered_commands if c.callback.__name__ == command]
    assert found.callback.__doc__.splitlines()[0] in result.out
    # An option without a help text would be a line that ends with its type.
    options = [line.strip(" │") for line in result.out.splitlines() if re.match(r"│ [* ] +-{2}", line)]
    assert all(re.search(r"  \S", line.partition("  ")[2].strip()) for line in options), options


def test_the_help_names_all_commands_and_wrong_ones_end_with_code_2(run):
    result = run("--help")
    assert result.code == 0
    assert all(f" {command} " in result.out for command in COMMANDS)
    for wrong in ((), ("forecst",), ("forecast",), ("forecast", "--steps", "x")):
        result = run(*wrong)
        assert result.code == 2
        assert "Traceback" not in result.err
