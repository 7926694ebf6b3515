"""The examples of evaluations run as they are written."""

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch, capsys):
    """Runs `python examples/<name>.py ARGUMENTS` in this process and gives what it prints."""

    def call(name, *arguments):
        path = EXAMPLES / f"{name}.py"
        assert len(path.read_text().splitlines()) <= 120
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out

    return call


def test_an_evaluation_with_and_without_jitter_is_compared(example, tmp_path):
    printed = example("evaluate", "--tiny", "--output", tmp_path)
    assert "wave, model: 1 " in printed
    assert "wave, dmd: 1 " in printed
    assert "wave, mean of fields, steps 1:10: " in printed
    assert (tmp_path / "jitter" / "results.json").is_file()
    assert (tmp_path / "still" / "table.md").is_file()


def test_an_ensemble_shows_its_spread_and_ranks(example):
    printed = example("ensemble", "--tiny", "--members", "3")
    assert "wave_0, velocity, 3 members" in printed
    assert "spread/skill" in printed
    ranks = next(line for line in printed.splitlines() if line.startswith("  ranks, steps 1:10: "))
    assert sum(map(float, ranks.split(": ")[1].split())) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("name", ["evaluate", "ensemble"])
def test_examples_without_model_say_what_they_want(example, name, tmp_path):
    with pytest.raises(SystemExit):
        example(name, *(["--output", tmp_path] if name == "evaluate" else []))
