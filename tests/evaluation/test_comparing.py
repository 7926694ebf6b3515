"""Paired differences of two evaluations, on results made by hand."""

import json

import numpy as np
import pandas
import pytest

from walrus_hf.evaluation import compare
from walrus_hf.evaluation.statistics import summary

from .conftest import QUICK


def write(
    folder, errors, fields=("pressure", "velocity"), scenario="runs", digests="abcdefgh", numbers=None, **protocol
):
    """Results of errors (trajectories, steps); the second field has twice the error."""
    folder.mkdir()
    stated = {**QUICK.to_json(), **protocol}
    scenarios = {scenario: {"transforms": {"log_fields": []}}}
    content = {"format": "walrus_hf.evaluation/1", "protocol": stated, "scenarios": scenarios}
    (folder / "results.json").write_text(json.dumps(content))
    rows = [
        (scenario, "file", number, who, field, step + 1, error * (i + 1) * scale, 0.0, digests[number])
        for number, curve in zip(numbers or range(len(errors)), errors)
        for who, scale in (("model", 1), ("persistence", 10))
        for i, field in enumerate(fields)
        for step, error in enumerate(curve)
    ]
    columns = ["scenario", "source", "trajectory", "forecaster", "field", "lead_time", "vrmse", "nrmse", "digest"]
    pandas.DataFrame(rows, columns=columns).to_parquet(folder / "trajectories.parquet")
    return folder


@pytest.fixture
def errors():
    return np.random.default_rng(0).uniform(0.1, 1, size=(5, 6))


def row_of(found, window, field="mean of fields"):
    (row,) = [row for row in found["rows"] if (row["window"], row["field"]) == (window, field)]
    return row


def test_differences_are_taken_trajectory_by_trajectory(errors, tmp_path):
    better = errors * np.array([0.5, 0.9, 1.1, 0.7, 0.6])[:, None]
    found = compare(write(tmp_path / "a", errors), write(tmp_path / "b", better) / "results.json")
    a, b = (x[:, :4].mean(axis=1) for x in (errors, better))
    row = row_of(found, "1:4")
    assert row["first"] == pytest.approx(1.5 * np.median(a))
    assert row["second"] == pytest.approx(1.5 * np.median(b))
    assert row["difference"] == pytest.approx(1.5 * np.median(b - a))
    assert row["difference"] != pytest.approx(row["second"] - row["first"])
    expected = summary(1.5 * (b - a), QUICK)
    assert (row["low"], row["high"]) == pytest.approx((expected["median_low"], expected["median_high"]))
    assert (row["count"], row["better"], row["failed"]) == (5, 0.8, [0, 0])
    assert row_of(found, "1", "velocity")["difference"] == pytest.approx(2 * np.median(better[:, 0] - errors[:, 0]))
    assert found["notes"] == []


def test_only_the_same_trajectories_are_compared(errors, tmp_path):
    first = write(tmp_path / "a", errors)
    second = write(tmp_path / "b", errors[2:] + 1, digests="abcdX", numbers=[2, 3, 4])
    found = compare(first, second)
    row = row_of(found, "1", "pressure")
    assert row["count"] == 2  # the fifth starts from other frames
    assert row["difference"] == pytest.approx(1)
    assert found["notes"] == ["runs: 2 of 5 trajectories are the same in both; the others are left out"]
    other = write(tmp_path / "c", errors, digests="XXXXX")
    with pytest.raises(ValueError, match="expected trajectories in common, found none"):
        compare(first, other)


def test_shorter_trajectories_and_other_fields_are_left_out(errors, tmp_path):
    found = compare(write(tmp_path / "a", errors), write(tmp_path / "b", errors[:, :4], fields=("pressure", "density")))
    assert {row["field"] for row in found["rows"]} == {"pressure"}
    assert {row["window"] for row in found["rows"]} == {"1", "1:4"}
    assert found["notes"] == ["runs: left out density, velocity, which one of the two does not have"]


def without(folder, field, trajectory):
    """The folder, as if the file of one trajectory lacked a field."""
    path = folder / "trajectories.parquet"
    table = pandas.read_parquet(path)
    table[(table["field"] != field) | (table["trajectory"] != trajectory)].to_parquet(path)
    return folder


@pytest.mark.parametrize(("field", "left"), [("pressure", "velocity"), ("velocity", "pressure")])
def test_fields_that_not_all_trajectories_have_are_left_out(errors, field, left, tmp_path):
    first = without(write(tmp_path / "a", errors), field, trajectory=1)
    second = without(write(tmp_path / "b", errors + 1), field, trajectory=3)
    for pair in ((first, second), (first, first), (write(tmp_path / "c", errors), first)):
        found = compare(*pair)
        assert {(row["field"], row["count"]) for row in found["rows"]} == {(left, 5)}
        assert found["notes"] == [f"runs: left out {field}, which not all trajectories have"]


def test_a_field_that_only_shorter_trajectories_lack_counts_where_these_are_not_compared(errors, tmp_path):
    uneven = write(tmp_path / "a", [errors[0], errors[1][:4], errors[2][:4]], fields=("pressure", "velocity"))
    first = without(uneven, "velocity", trajectory=0)
    second = write(tmp_path / "b", errors[1:3, :4] + 1, digests="abc", numbers=[1, 2])
    found = compare(first, second)
    assert {row["field"] for row in found["rows"]} == {"pressure", "velocity", "mean of fields"}
    assert row_of(found, "1:4")["difference"] == pytest.approx(1.5)
    assert found["notes"] == ["runs: 2 of 3 trajectories are the same in both; the others are left out"]


def test_without_a_field_that_all_trajectories_have_the_reason_is_said(errors, tmp_path):
    folder = write(tmp_path / "a", errors)
    for number, field in enumerate(("pressure", "velocity")):
        without(folder, field, number)
    with pytest.raises(ValueError, match="left out pressure, velocity, which not all trajectories have"):
        compare(folder, folder)


def test_a_scenario_without_a_usable_trajectory_does_not_spoil_the_others(errors, tmp_path):
    for name in "ab":
        folder = write(tmp_path / name, errors)
        results = json.loads((folder / "results.json").read_text())
        results["scenarios"] = {"short": {"transforms": {"log_fields": []}}, **results["scenarios"]}
        (folder / "results.json").write_text(json.dumps(results))
    found = compare(tmp_path / "a", tmp_path / "b")
    assert {row["scenario"] for row in found["rows"]} == {"runs"}
    assert found["notes"] == ["short: left out, no trajectory of it could be used in one of the two"]


def test_a_scenario_of_baselines_alone_does_not_spoil_the_others(errors, tmp_path):
    first, second = write(tmp_path / "a", errors), write(tmp_path / "b", errors + 1)
    for folder, kept in ((first, ["model", "persistence"]), (second, ["persistence"])):
        results = json.loads((folder / "results.json").read_text())
        results["scenarios"]["other"] = results["scenarios"]["runs"]
        (folder / "results.json").write_text(json.dumps(results))
        table = pandas.read_parquet(folder / "trajectories.parquet")
        more = table[table["forecaster"].isin(kept)].assign(scenario="other")
        pandas.concat([table, more]).to_parquet(folder / "trajectories.parquet")
    found = compare(first, second)
    assert {row["scenario"] for row in found["rows"]} == {"runs"}
    assert found["notes"] == ["other: left out, expected forecasts of 'model' in the second, which has persistence"]
    assert {row["scenario"] for row in compare(first, second, ("model", "persistence"))["rows"]} == {"runs", "other"}


def test_failed_forecasts_are_infinitely_wrong(errors, tmp_path):
    first, second = errors.copy(), errors.copy() - 0.05
    first[:2, 2:] = second[1:4, 2:] = np.inf
    row = row_of(compare(write(tmp_path / "a", first), write(tmp_path / "b", second)), "1:4")
    assert row["failed"] == [2, 3]
    assert row["better"] == pytest.approx(0.4)  # where the first alone failed, and the last
    assert row["second"] == np.inf
    assert not np.isnan(row["difference"])


def test_forecasters_can_be_chosen(errors, tmp_path):
    folder = write(tmp_path / "a", errors)
    row = row_of(compare(folder, folder, ("model", "persistence")), "1")
    assert row["second"] == pytest.approx(10 * row["first"])
    with pytest.raises(ValueError, match="expected forecasts of 'fno' in the first, which has model, persi"):
        compare(folder, folder, ("fno", "model"))


def test_other_protocols_are_refused_and_other_settings_of_the_model_are_said(errors, tmp_path):
    folder = write(tmp_path / "a", errors)
    for number, changed in enumerate(({"start": 5}, {"windows": {"1": [1, 1]}}, {"split": "valid"}, {"eps": 1e-5})):
        other = write(tmp_path / f"b{number}", errors, **changed)
        with pytest.raises(ValueError, match=f"by the same protocol, found {next(iter(changed))}"):
            compare(folder, other)
    found = compare(folder, write(tmp_path / "c", errors, jitter=False))
    assert found["notes"] == ["jitter: None in the first, False in the second"]


def test_what_is_no_evaluation_is_refused(errors, tmp_path):
    folder = write(tmp_path / "a", errors)
    with pytest.raises(FileNotFoundError, match="found none"):
        compare(folder, tmp_path)
    with pytest.raises(ValueError, match="expected a scenario in common, found runs and others"):
        compare(folder, write(tmp_path / "b", errors, scenario="others"))
    (folder / "trajectories.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="evaluate again"):
        compare(folder, folder)
    for text, message in (
        ("{", "expected JSON"),
        ("[]", "found a list"),
        ('{"format": "walrus_hf.evaluation/9"}', "expected results of `walrus-hf evaluate`"),
    ):
        (folder / "results.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            compare(folder, folder)
