"""Settings of a pretraining run: YAML, flags that win over it, and what is refused."""

from pathlib import Path

import pytest

from walrus_hf.training.arguments import PretrainingArguments, parse_arguments
from walrus_hf.training.batches import source_name

CONFIGS = sorted((Path(__file__).parents[2] / "examples" / "configs").glob("*.yaml"))


def recipe(folder, text):
    path = folder / "recipe.yaml"
    path.write_text(text)
    return str(path)


def test_flags_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    path = recipe(tmp_path, "sources: [a, b]\nmax_steps: 7\nlearning_rate: 3e-4\nmodel: {hidden_size: 64}\n")
    found = parse_arguments(["--config", path, "--max_steps", "9", "--seed", "3"])
    assert (found.sources, found.max_steps, found.seed) == (["a", "b"], 9, 3)
    assert (found.learning_rate, found.weight_decay) == (3e-4, 1e-4)
    assert parse_arguments(["--config", path, "--sources", "c", "d"]).sources == ["c", "d"]


def test_the_model_of_a_recipe_is_a_size_and_what_differs_from_it(tmp_path):
    path = recipe(tmp_path, "sources: [a]\nmodel_size: tiny\nmodel: {hidden_size: 64, num_hidden_layers: 3}\n")
    config = parse_arguments(["--config", path]).config()
    assert (config.hidden_size, config.num_hidden_layers, config.stem_hidden_size) == (64, 3, 24)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sources: [a]\nmax_step: 7\n", r"recipe.yaml: expected settings among .*max_steps.*, found \['max_step'\]"),
        ("- a\n- b\n", r"recipe.yaml: expected settings among"),
        ("sources: [a\n", r"recipe.yaml: expected YAML"),
        ("sources: [a]\nmode: best\n", r"mode: expected one of independent, reference, balanced, variable"),
        ("sources: [a]\nstrategy: magic\n", r"strategy: expected one of single, ddp, fsdp2, hsdp, found 'magic'"),
        ("sources: [a]\nframes: 1\n", r"frames: expected at least 2, found 1"),
        ("sources: [a]\ntokens: []\n", r"tokens: expected one number or more, each at least 1, found \[\]"),
        ("sources: [a]\nown_forecasts: 2\n", r"own_forecasts: expected a share between 0 and 1, found 2"),
        ("sources: [a]\nown_steps: 4\n", r"own_steps: expected own_forecasts above 0 .* found own_steps 4 alone"),
        ("sources: [a]\npush_to_hub: walrus\n", r"repository: expected ORG/NAME such as .*, found 'walrus'"),
        ("max_steps: 5\n", r"sources: expected at least one, found none"),
        ("sources: [a]\ntokens: [8.5]\n", r"recipe.yaml: tokens: expected a whole number, found 8.5"),
        ("sources: [a]\nmax_steps: 2.5\n", r"recipe.yaml: max_steps: expected a whole number, found 2.5"),
        ("sources: [a]\nmodel:\n", r"recipe.yaml: model: expected settings, found None"),
        ("sources: [a]\naugment: 1\n", r"recipe.yaml: augment: expected true or false, found 1"),
        ("sources: [a]\nlearning_rate: fast\n", r"recipe.yaml: learning_rate: expected a number, found 'fast'"),
        ("sources: [a]\nmax_grad_norm: -1\n", r"max_grad_norm: expected a norm above 0, found -1"),
        ("sources: [a]\nlearning_rate: -1\n", r"learning_rate: expected a finite rate of at least 0, found -1"),
        ("sources: [a]\nlearning_rate: .inf\n", r"learning_rate: expected a finite rate of at least 0, found inf"),
        ("sources: [a]\nweight_decay: -1\n", r"weight_decay: expected a finite number of at least 0, found -1"),
        ("sources: [a]\nema_decay: 1\n", r"ema_decay: expected a decay from 0, .*, to below 1, found 1"),
        ("sources: [a]\nvalidation_steps: -5\n", r"validation_steps: expected at least 0, found -5"),
        ("sources: [a]\nstride_min: 3\nstride_max: 2\n", r"stride_max: expected at least stride_min=3, found 2"),
        ("sources: [a]\nblocks_in_memory: 0\n", r"blocks_in_memory: expected at least 1, found 0"),
        ("sources: [a]\nseed: -1\n", r"seed: expected at least 0, found -1"),
    ],
)  # fmt: skip
def test_what_a_recipe_gets_wrong_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_arguments(["--config", recipe(tmp_path, text)])
    assert "\n" not in str(error.value)


def test_a_recipe_may_write_numbers_and_lists_as_people_do(tmp_path):
    text = "sources: a\ntokens: 8\nlog_with: none\nlearning_rate: 3e-3\nmax_grad_norm: 1\nmax_seconds: null\n"
    found = parse_arguments(["--config", recipe(tmp_path, text)])
    assert (found.sources, found.tokens, found.log_with) == (["a"], [8], ["none"])
    assert (found.learning_rate, found.max_grad_norm, found.max_seconds) == (0.003, 1.0, None)


def test_the_model_can_be_given_on_the_command_line(tmp_path):
    flag = ["--model", "{num_hidden_layers: 3, jitter: false}"]
    assert parse_arguments(["--sources", "a", *flag]).model == {"num_hidden_layers": 3, "jitter": False}
    assert parse_arguments(["--config", recipe(tmp_path, "sources: [a]\nmodel: {jitter: true}\n")]).model == {
        "jitter": True
    }
    assert parse_arguments(["--config", recipe(tmp_path, "sources: [a]\nmodel: {jitter: true}\n"), *flag]).model == {
        "num_hidden_layers": 3, "jitter": False,
    }  # fmt: skip


def test_a_model_that_is_no_settings_is_refused_with_the_way_to_name_weights(capsys):
    with pytest.raises(ValueError, match="found 'walrus-nano'; weights to start from are named by model_name_or_path"):
        parse_arguments(["--sources", "a", "--model", "walrus-nano"])
    with pytest.raises(SystemExit) as stopped:
        parse_arguments(["--sources", "a", "--model", "{hidden_size: "])
    assert stopped.value.code == 2
    assert "argument --model: expected YAML, found '{hidden_size: '" in capsys.readouterr().err


def test_an_unknown_flag_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--sources", "a", "--warp_speed", "9"])
    assert "--warp_speed" in capsys.readouterr().err


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_recipes_of_the_examples_are_read(path):
    found = parse_arguments(["--config", str(path)])
    assert len(set(found.sources)) == len(found.sources) >= 4
    known = {"tiny": 96, "nano": 128, "half": 1088, "walrus-1.3b": 1408}
    assert found.config().hidden_size == known[path.stem]
    assert len({source_name(source, found.sources) for source in found.sources}) == len(found.sources)


def test_sources_are_called_by_their_last_part_and_by_more_where_that_is_another_ones_too():
    sources = ["runs/0/wave", "runs/1/wave/", "runs/burgers", "data/shear_flow.hdf5"]
    assert [source_name(source, sources) for source in sources] == ["0/wave", "1/wave", "burgers", "shear_flow"]


def test_the_defaults_are_the_published_settings():
    found = PretrainingArguments(sources=["a"])
    assert (found.learning_rate, found.weight_decay, found.max_grad_norm) == (2e-4, 1e-4, 10.0)
    assert (found.batch_size, found.frames, found.gradient_accumulation_steps) == (2, 6, 4)
    assert (found.stride_min, found.stride_max) == (1, 5)
