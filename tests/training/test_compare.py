"""Modes in turn: as many steps of each, and what they get done."""

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("datasets")

from walrus_hf.training import compare

from .small_runs import settings

pytestmark = pytest.mark.usefixtures("on_the_cpu")


@pytest.fixture(scope="module")
def arguments(folder):
    return settings(folder / "data", folder / "compare", ema_decay=None)


def test_modes_are_measured_in_turns_beside_their_predictions(arguments, monkeypatch):
    turns, train_step = [], compare.train_step

    def watched(run, plan, batches, step):
        turns.append((plan.mode, step))
        return train_step(run, plan, batches, step)

    monkeypatch.setattr(compare, "train_step", watched)
    monkeypatch.setattr(compare, "TRIAL_STEPS", 2)
    found = compare.compare(arguments, ["independent", "balanced"], rounds=2, round_steps=3)
    race = turns[4:]
    assert race == [(mode, step) for n in (0, 3) for mode in found for step in range(n, n + 3)]
    # Four micro-batches of two windows of four frames; volumes of one window of two frames, in strata.
    assert (found["independent"].samples, found["independent"].frames) == (8, 32)
    assert (found["balanced"].samples, found["balanced"].frames) == (2 * 2 + 2 * 1, 2 * 8 + 2 * 2)
    for result in found.values():
        assert len(result.measured) == 2
        # One process waits for nobody: a step takes about as long as its micro-batches.
        assert 0.02 * min(result.measured) < result.predicted < 10 * max(result.measured)


def test_the_table_tells_ratios_of_rounds(capsys):
    fast = compare.Result([1.0, 2.0, 30.0], 1.5, 6, 20)
    slow = compare.Result([2.0, 4.0, 50.0], 3.0, 8, 32)
    compare._print({"independent": slow, "balanced": fast})
    *_, first, second = capsys.readouterr().out.splitlines()
    assert first.split() == ["independent", "4.000", "3.000", "1.00x", "1.00x", "1.00x", "1.00x"]
    assert second.split() == ["balanced", "2.000", "1.500", "2.00x", "2.00x", "1.50x", "1.25x"]
