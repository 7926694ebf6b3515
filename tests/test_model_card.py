"""Cards say what a checkpoint is, where it comes from and under which licence, and nothing that was not measured."""

import ast
import collections
import json
import re
import runpy
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from walrus_hf import WalrusConfig
from walrus_hf.model_card import checkpoint_card, converted_card, evaluation_entries, pushed_card, without_folders

from .hub.results import small_results

CARDS = Path(__file__).parents[1] / "model_cards"
FOLDERS = [CARDS / name for name in ("walrus-1.3b", "halfwalrus", "adapter-template", "walrus-nano")]


def card(**kwargs):
    return converted_card(WalrusConfig(**kwargs), source="walrus.pt", digest="abc123", parameters=1286199046)


def test_the_header_is_what_the_hub_reads():
    data = ModelCard(card()).data
    assert data.license == "mit"
    assert data.base_model == "polymathic-ai/walrus"
    assert data.library_name == "walrus_hf"
    assert "walrus" in data.tags


def test_the_text_states_provenance_size_and_what_was_not_measured():
    text = card()
    assert "`walrus.pt`, SHA-256 `abc123`" in text
    assert "MIT licence" in text
    assert "1,286,199,046 parameters: 40 layers of width 1408, 16 heads, stem 352" in text
    assert "no accuracy was measured" in text
    assert "{{" not in text


def test_the_fields_are_listed_without_the_flags():
    text = card(field2id={"pressure": 0, "closed_boundary": 1, "open_boundary": 2, "bias_correction": 3})
    assert "**Fields**: `pressure`." in text
    assert "closed_boundary" not in text


def test_the_state_of_the_jitter_is_told():
    assert "Patch jitter\n  is on." in card()
    assert "Patch jitter\n  is off." in card(jitter=False)


def test_what_is_not_known_is_said_to_be_unknown():
    text = checkpoint_card(WalrusConfig.tiny(), "Mine", "A model.", 10, provenance="Mine.")
    assert "## Evaluation\n\nNot measured." in text
    assert "## Training data\n\nNot told by whoever saved this checkpoint." in text


def test_the_cost_of_grids_stands_in_a_table():
    cost = {"grid": "128x128", "frames": 6, "fields": 4, "tokens": 1024, "gflop": 14912.6, "gib": 5.254}
    text = checkpoint_card(WalrusConfig(), "Mine", "A model.", 10, provenance="Mine.", costs=[cost])
    assert "| 128x128 | 6 | 4 | 1,024 | 14,913 | 5.25 |" in text


def pushed(text=None, **kwargs):
    text = text or checkpoint_card(WalrusConfig.tiny(), "Mine", "A model.", 10, provenance="Mine.")
    return ModelCard(pushed_card(text, "lab/mine", **kwargs))


def test_a_pushed_card_is_called_by_its_name_on_the_hub():
    assert 'from_pretrained("lab/mine")' in pushed().text
    assert "path/to/this/folder" not in pushed().text


def test_a_pushed_card_keeps_its_header_where_nothing_else_is_given():
    card = pushed("---\nlicense: mit\nlibrary_name: peft\ntags:\n- own\n---\n# Mine\n")
    assert (card.data.license, card.data.library_name) == ("mit", "peft")
    assert card.data.tags[0] == "own"
    assert "walrus" in card.data.tags
    new = pushed(str(card), license="cc-by-4.0", datasets=["lab/data"], base_model="lab/base").data
    assert (new.license, new.datasets, new.base_model) == ("cc-by-4.0", ["lab/data"], "lab/base")


def test_a_card_without_a_header_is_given_one():
    card = pushed("# My own words\n\nAbout it.\n")
    assert card.data.pipeline_tag == "time-series-forecasting"
    assert card.text.strip().endswith("About it.")


def test_an_evaluation_replaces_what_the_card_said_before_and_nothing_else():
    results = small_results({"name": "mine", "dtype": "float32"})
    once = pushed(results=results)
    assert "| shear_flow | test | 256x512 | 3 | 17 | model | 0.0123 [0.0111, 0.0148] | failed |" in once.text
    assert "| mine | - | 16x24 | 3 | 9 | model | 0.5000 [0.4500, 0.6000] | 0.7500 [0.6750, 0.9000] |" in once.text
    assert "Not measured" not in once.text
    assert "protocol `walrus`: forecasts, jitter on, seed 0" in once.text
    assert "- mine: start moved from frame 17 to 9 in 3 of 3 trajectories" in once.text
    again = pushed(str(once), results=results)
    assert again.text.rstrip() == once.text.rstrip()
    before, after = pushed().text.partition("## Evaluation"), once.text.partition("## Evaluation")
    assert before[0] == after[0]
    assert before[2].partition("## Training data")[2] == after[2].partition("## Training data")[2]


def test_a_scenario_without_a_usable_trajectory_leaves_its_notes_alone():
    results = small_results({"name": "mine", "dtype": "float32"})
    note = "trajectory 0 was left out: its truth is not finite"
    empty = {"fields": [], "trajectories": 0, "forecasters": {}, "notes": [note]}
    results["scenarios"]["short"] = {**results["scenarios"]["mine"], **empty}
    text = pushed(results=results).text
    assert f"- short: {note}" in text
    assert "| short |" not in text


def test_the_distance_of_the_frames_is_told_where_it_is_not_one():
    results = small_results({"name": "mine", "dtype": "float32"})
    results["protocol"]["frame_stride"] = 4
    assert "protocol `walrus`: forecasts of frames 4 apart, jitter on, seed 0" in pushed(results=results).text


def test_only_data_of_the_hub_count_as_data_of_the_hub():
    results = small_results({"name": "mine", "dtype": "float32"})
    assert {entry.dataset_type for entry in evaluation_entries(results)} == {"polymathic-ai/shear_flow", "mine"}
    results["scenarios"]["shear_flow"]["source"] = "/home/somebody/shear_flow.hdf5"
    assert {entry.dataset_type for entry in evaluation_entries(results)} == {"shear_flow", "mine"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("left out: /home/some-body/my.runs/a.hdf5: expected numbers", "left out: a.hdf5: expected numbers"),
        ("~/secret/a.hdf5, or C:\\Users\\me\\b.hdf5", "a.hdf5, or b.hdf5"),
        ("in '/data/my runs/train/a.hdf5'", "in 'my runs/train/a.hdf5'"),
        ("secret/own/a.hdf5: damaged", "own/a.hdf5: damaged"),
        ("https://here.org/lab/a.hdf5?token=1: gone", "a.hdf5: gone"),
        ("https://huggingface.co/lab/data, lab/data, wall/open and 1/2", None),
    ],
)
def test_notes_tell_of_paths_the_last_part_alone(text, told):
    known = ["/data/my runs", "secret/own", "https://here.org/lab/a.hdf5?token=1"]
    assert without_folders(text, known) == (told or text)


def test_a_split_is_named_of_data_that_have_one_alone():
    results = small_results({"name": "mine", "dtype": "float32"})
    splits = {entry.dataset_name: entry.dataset_split for entry in evaluation_entries(results)}
    assert splits == {"Shear Flow": "test", "mine": None}
    assert "split" not in pushed(results=results).text.partition("Measured with")[2].partition("\n\n")[0]


def test_a_card_without_a_section_gets_it_before_the_citation():
    text = pushed("# Mine\n\nWords.\n\n## Citation\n\nThem.\n", results=small_results({"dtype": "float32"})).text
    assert text.index("Words.") < text.index("## Evaluation") < text.index("## Citation")
    assert text.rstrip().endswith("Them.")


def test_a_film_stands_below_the_title_once():
    text = pushed(picture="film.gif").text
    assert text.index("# Mine") < text.index("![A forecast of this model](film.gif)") < text.index("A model.")
    assert pushed(text, picture="film.gif").text.count("film.gif") == 1


# --- the cards in model_cards/ ---


def numbers(text: str) -> set[str]:
    """Numbers that stand alone, such as `0.0057`, `14,913`, both ends of `1:20` and both sides of `256x512`."""
    apart = re.sub(r"(?<=\d)x(?=\d)", " x ", text)
    return {found.replace(",", "") for found in re.findall(r"(?<![\w.])\d+(?:[.,]\d+)*(?![\w]|[.,]\d)", apart)}


def leaves(value) -> list:
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in [key, *leaves(item)]]
    return [leaf for item in value for leaf in leaves(item)] if isinstance(value, list) else [value]


def unfounded(card: str, results: dict) -> set[str]:
    """Numbers of a card, outside of code, that its results do not hold: as numbers, rounded as told, or in words."""
    prose = re.sub(r"```.*?```", "", card, flags=re.DOTALL)
    prose = re.sub(r"`[^`]*`", lambda span: "" if "(" in span[0] else span[0], prose)  # calls are code as well
    known = leaves(results)
    words = numbers(" ".join(leaf for leaf in known if isinstance(leaf, str)))
    values = [leaf for leaf in known if isinstance(leaf, int | float) and not isinstance(leaf, bool)]

    def founded(number: str) -> bool:
        digits = len(number.partition(".")[2])
        return number in words or any(round(float(value), digits) == float(number) for value in values)

    return {number for number in numbers(prose) if not founded(number)}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_cards_state_no_number_that_their_results_lack(folder):
    results = json.loads((folder / "results.json").read_text())
    assert unfounded((folder / "README.md").read_text(), results) == set()


def test_an_invented_number_is_found_out():
    folder = CARDS / "walrus-1.3b"
    card, results = (folder / "README.md").read_text(), json.loads((folder / "results.json").read_text())
    assert "| 0.0057 |" in card
    assert unfounded(card.replace("| 0.0057 |", "| 0.0053 |"), results) == {"0.0053"}
    assert unfounded(card.replace("1,286,199,046", "1,286,199,047"), results) == {"1286199047"}
    assert unfounded(card.replace("256x512", "257x512"), results) == {"257"}
    del results["costs"]
    assert "14913" in unfounded(card, results)


def test_cards_are_made_of_their_results_by_the_script_beside_them(tmp_path):
    make = runpy.run_path(str(CARDS / "make.py"))["main"]
    make(tmp_path)
    for folder in FOLDERS:
        for name in ("README.md", "results.json"):
            again, kept = ((place / folder.name / name).read_text() for place in (tmp_path, CARDS))
            assert again == kept, f"model_cards/{folder.name}/{name} is out of date: python model_cards/make.py"


def test_published_numbers_are_called_published_and_none_is_called_measured():
    data = ModelCard((CARDS / "walrus-1.3b" / "README.md").read_text())
    assert "**Published, not run here**" in data.text
    assert "fine-tuned on each data set" in data.text
    assert data.data.eval_results is None  # the Hub would show them as this checkpoint's
    assert (data.data.license, data.data.base_model) == ("mit", "polymathic-ai/walrus")
    assert len(data.data.datasets) == 19
    for name in ("halfwalrus", "adapter-template"):
        assert "## Evaluation\n\nNot measured" in (CARDS / name / "README.md").read_text()


def nano() -> tuple[str, dict]:
    folder = CARDS / "walrus-nano"
    return (folder / "README.md").read_text(), json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("part", ["test", "unseen"])
@pytest.mark.parametrize("window", ["1", "1:10", "11:30"])
def test_the_card_of_walrus_nano_tells_where_persistence_or_another_forecast_is_as_good(part, window):
    text, results = nano()
    start = text.index("### Test split" if part == "test" else "### Simulations unlike")
    told = text[start : text.index("\nStep 1:", start)]
    below, best = told.split("Below ")[1:]
    lost = dict(re.findall(r"\*\*Not\*\* at (.*?): (.*?)\.(?= |$)", below)).get(window, "").split(", ")
    better: collections.Counter = collections.Counter()
    for name, source in results[part].items():
        trained = (results["baselines"] or {}).get(part, {}).get(name, {})
        medians = {
            who: float("inf") if (value := found[window]["median"]) is None else value
            for who, found in {**source["forecasters"], **trained}.items()
        }
        own = medians.pop("model")
        assert (own >= medians["persistence"]) == (name in lost)
        if own >= min(medians.values()):
            better[min(medians, key=medians.__getitem__).replace("_", " ")] += 1
    counts = dict(re.findall(r"Better at (.*?): (.*?)\.(?= |$)", best)).get(window, "")
    assert sorted(counts.split(", ")) == sorted(f"{who} in {number}" for who, number in better.items()) or not better
    assert bool(counts) == bool(better)


@pytest.mark.parametrize("part", ["test", "unseen"])
def test_the_card_of_walrus_nano_says_what_means_and_intervals_say(part):
    text, results = nano()
    told = text[text.index("### Test split" if part == "test" else "### Simulations unlike") :]
    means, overlaps = re.search(r"By means over trajectories in (.*?)\.\s.*? overlap in (.*?)\.\s", told).groups()
    for window in ("1", "1:10", "11:30"):
        rows = [(found["forecasters"]["model"][window], found["forecasters"]["persistence"][window])
                for found in results[part].values()]  # fmt: skip
        below = sum(own["mean"] < idle["mean"] for own, idle in rows)
        assert f"{below} at {window}" in means
        apart = [
            own["median_high"] < idle["median_low"] or own["median_low"] > idle["median_high"] for own, idle in rows
        ]
        assert f"{len(rows) - sum(apart)} at {window}" in overlaps
        lost = [name for name, (own, idle) in zip(results[part], rows) if own["mean"] >= idle["mean"]]
        assert all(name in means for name in lost)


def test_the_card_of_walrus_nano_covers_all_its_training_data_and_is_small():
    text, results = nano()
    trained = results["training"]["scenarios"]
    assert {name.partition("/")[2] for name in results["test"]} == set(trained)
    assert len(results["test"]) == sum(len(found["variants"]) for found in trained.values()) >= 24
    assert {len(found["grid"]) for found in results["test"].values()} == {1, 2, 3}
    assert len(results["unseen"]) >= 12
    for known in ("persistence", "linear_extrapolation", "dmd"):
        assert all(known in found["forecasters"] for found in [*results["test"].values(), *results["unseen"].values()])
    assert "not measured" in text or results["baselines"] is not None
    folder = CARDS / "walrus-nano"
    sources = len(results["test"]) + len(results["unseen"])
    assert (folder / "results.json").stat().st_size < 3_400 * sources  # 300 kB for 88 of them
    assert (folder / "forecast.gif").stat().st_size < 1_000_000


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_card_has_all_its_parts(folder):
    text = (folder / "README.md").read_text()
    parts = ["Use", "Evaluation", "Training data", "Limits", "Provenance", "Citation"]
    parts += [] if folder.name == "adapter-template" else ["What it reads", "Size and cost"]
    assert {f"## {part}" for part in parts} <= set(text.splitlines())
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    assert len(code.splitlines()) <= 10
    ast.parse(code)
