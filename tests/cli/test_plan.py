"""`walrus-hf plan`."""

import json
import re

import pytest

MODES = ("independent", "reference", "balanced", "variable")


def row(text, name):
    (line,) = [line for line in text.splitlines() if re.match(rf"│ {re.escape(name)} +│", line)]
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_plan_prints_every_mode_and_what_kind_of_numbers_these_are(run):
    result = run("plan", "--gpus", 16, "--steps", 50)
    assert result.code == 0, result.err
    assert "Simulation of 16 GPUs (4 nodes of 4), 19 scenarios, 50 steps a mode" in result.out
    assert row(result.out, "independent")[3:] == ["1.00x"] * 3
    for mode in MODES:
        _, balance, utilisation, *ratios = row(result.out, mode)
        assert 0 < float(utilisation) < float(balance) <= 1
        assert all(re.fullmatch(r"\d\.\d\dx", ratio) for ratio in ratios)
    assert "This is a simulation" in result.out
    assert "nothing of it was measured on GPUs" in result.out
    assert "+262% (3.62x)" in result.out
    assert "Frames/s of `reference`" in result.out
    for assumption in ("attention price 0.5", "attention price 3", "efficiency 0.2", "efficiency 0.5", "noise 0.1"):
        assert len(row(result.out, assumption)) == 3


def test_json_holds_all_metrics_and_all_assumptions(run, tmp_path):
    file = tmp_path / "plan.json"
    result = run("plan", "--gpus", 32, "--gpus-per-node", 8, "--steps", 40, "--seed", 3, "--json", file)
    assert result.code == 0, result.err
    assert f"wrote {file}" in result.out
    found = json.loads(file.read_text())
    assert found["simulation"] is True
    assert found["published"]["ratio"] == 3.62
    assert len(found["settings"].pop("scenarios")) == 19
    assert found["settings"] == {"gpus": 32, "gpus_per_node": 8, "steps": 40, "seed": 3}
    assert found["assumptions"]["peak_flops"] == 495e12
    assert found["assumptions"]["efficiency"] == 0.35
    assert tuple(found["modes"]) == MODES
    for mode, metrics in found["modes"].items():
        assert set(metrics) >= {"balance", "utilisation", "step_seconds"}
        shown = row(result.out, mode)
        assert shown[1:3] == [f"{metrics[name]:.3f}" for name in ("balance", "utilisation")]
        for rate, cell in zip(("samples", "frames", "tokens"), shown[3:]):
            assert cell == f"{metrics[f'{rate}_per_second_ratio']:.2f}x"
            naive = found["modes"]["independent"][f"{rate}_per_second"]
            assert metrics[f"{rate}_per_second_ratio"] == pytest.approx(metrics[f"{rate}_per_second"] / naive)
    assert {entry["assumption"] for entry in found["sensitivity"]} == {"attention_price", "efficiency", "noise"}


@pytest.mark.parametrize(
    "names", [("--scenarios", "shear_flow", "MHD_64"), ("--scenarios", "shear_flow", "--scenarios", "MHD_64")]
)
def test_scenarios_can_be_listed_or_repeated(run, tmp_path, names):
    file = tmp_path / "plan.json"
    result = run("plan", "--gpus", 8, *names, "--steps", 20, "--json", file)
    assert result.code == 0, result.err
    assert "2 scenarios" in result.out
    assert json.loads(file.read_text())["settings"]["scenarios"] == ["shear_flow", "MHD_64"]


def test_the_same_seed_prints_the_same(run):
    texts = [run("plan", "--gpus", 8, "--steps", 20, "--seed", seed).out for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--gpus", 98), "gpus: expected a multiple of 4, the GPUs of a node, found 98"),
        (("--gpus", 0), "gpus: expected a multiple of 4"),
        (("--gpus-per-node", 0), "gpus_per_node: expected at least 1, found 0"),
        (("--steps", 0), "expected at least 1 step"),
        (("--seed", -1), "a seed of 0 or more"),
        (("--scenarios", "shear_fow"), "unknown scenario 'shear_fow': expected one of 27, perhaps 'shear_flow'"),
        (("--scenarios", "MHD_64", "MHD_64"), "found MHD_64 more than once"),
        (("shear_flow",), "give names of scenarios after --scenarios"),
        (("--json", "plan.txt"), "expected a file name ending in .json"),
    ],
)
def test_bad_questions_are_refused_in_one_line(run, refused, options, message):
    assert message in refused("plan", *options)
    assert run("plan", *options).out == ""


def test_an_existing_file_is_kept_unless_told_otherwise(run, refused, tmp_path):
    file = tmp_path / "plan.json"
    file.write_text("mine")
    assert "--overwrite" in refused("plan", "--gpus", 8, "--steps", 5, "--json", file)
    assert run("plan", "--gpus", 8, "--steps", 5, "--json", file, "--overwrite").code == 0
    assert "modes" in json.loads(file.read_text())
