"""The page of an evaluation: what is in it, how large it gets, what is refused; test_report_page.py opens it."""

import base64
import dataclasses
import hashlib
import io
import json
import re

import numpy as np
import pytest

pytest.importorskip("matplotlib")
from PIL import Image

from walrus_hf.evaluation import evaluate, report, report_films
from walrus_hf.evaluation.report import write_report
from walrus_hf.panels import colour_map

from .conftest import QUICK
from .small_results import HOSTILE, HOSTILE_FIELD, STEPS, truth_at, write_results


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return write_results(tmp_path_factory.mktemp("report") / "evaluation")


@pytest.fixture(scope="module")
def shown(results):
    return report.content([results])


@pytest.fixture(scope="module")
def page(shown, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(report.page(shown), encoding="utf-8")
    return path


def data_of(path):
    return json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(encoding="utf-8"), flags=re.DOTALL)[1])


def change(folder, **values):
    """Overwrite entries of results.json."""
    path = folder / "results.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}), encoding="utf-8")


def test_the_page_holds_every_number_and_loads_nothing(page):
    text = page.read_text(encoding="utf-8")
    data = data_of(page)
    assert data["scenarios"][HOSTILE]["forecasters"]["model"]["windows"]["1:5"]["pressure"]["median"] == 0.3
    assert data["scenarios"][HOSTILE]["published"][1]["note"] == "as read"
    assert data["runs"][0]["protocol"]["seed"] == 3
    assert data["runs"][0]["versions"]["torch"] == "2.13.0"
    assert not re.findall(r"(?:src|href)=.?(?:https?:|//)|@import|url\(|fetch\(|XMLHttp|\beval\(|innerHTML", text)


def test_what_an_evaluation_writes_is_what_the_page_reads(pipe, runs, tmp_path):
    evaluate(
        pipe,
        runs,
        tmp_path / "evaluation",
        dataclasses.replace(QUICK, ensemble_size=2, max_trajectories=1),
        progress=False,
    )
    shown = report.content([tmp_path / "evaluation"])
    assert shown["windows"] == list(QUICK.windows)
    (entry,) = shown["scenarios"].values()
    assert set(report.FACTS) == set(entry["facts"])
    for found in entry["forecasters"].values():
        assert set(report.SHOWN) == set(found)
    assert set(entry["forecasters"]["model"]["ensemble"]["fields"]) == set(entry["fields"]) == {"pressure", "velocity"}
    assert [film["trajectory"] for film in entry["films"]] == [0]
    assert {len(strip["strips"]) for views in entry["films"][0]["fields"].values() for strip in views.values()} == {3}
    assert (shown["unreadable"], shown["first_only"]) == ([], False)


def test_the_policy_of_the_page_allows_its_own_script_and_style_and_pictures_in_it(page):
    text = page.read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'; img-src data:;")
    for kind, pattern in (("style", r"<style>(.*?)</style>"), ("script", r"<script>(.*?)</script>")):
        (inlined,) = re.findall(pattern, text, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inlined.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


def test_names_from_files_reach_the_page_as_escaped_json_only(page):
    text = page.read_text(encoding="utf-8")
    assert text.count("</script>") == 2  # those of the template
    assert "<img" not in text
    assert HOSTILE_FIELD in data_of(page)["scenarios"][HOSTILE]["fields"]


def test_embedded_json_means_the_same_in_fewer_digits():
    value = {"<b>&amp;": [1 / 3, float("nan"), float("inf"), 7, None, True], "\u2028": "é</script>"}
    text = report.embedded(value)
    assert not set("<>&\u2028é") & set(text)
    assert json.loads(text) == {"<b>&amp;": [0.33333, None, None, 7, None, True], "\u2028": "é</script>"}


def pixels_of(strip):
    picture = Image.open(io.BytesIO(base64.b64decode(strip["image"].removeprefix("data:image/png;base64,"))))
    return np.asarray(picture.convert("RGB")).reshape(-1, strip["height"], strip["width"], 3)


def test_films_show_truth_forecast_and_error_in_the_colours_of_the_truth(shown):
    (film,) = shown["scenarios"][HOSTILE]["films"]
    assert (film["trajectory"], film["steps"], film["every"], film["dt"]) == (0, [1, 2, 3, 4, 5, 6], 1, 0.5)
    truth, forecast, error = film["fields"]["pressure"][""]["strips"]
    assert truth["limits"] == forecast["limits"] == (2.0, 18.0)
    assert error["limits"] == pytest.approx((-0.25, 0.25), rel=1e-5)
    for strip, shift in ((truth, 0.0), (forecast, 0.25)):
        frames = pixels_of(strip)
        assert frames.shape == (STEPS, 8, 12, 3)
        values = truth_at(3, (12, 8)) + shift
        expected = 255 * colour_map("viridis")((values - 2) / 16)[..., :3]
        np.testing.assert_allclose(frames[2], expected.transpose(1, 0, 2)[::-1], atol=4)
    np.testing.assert_allclose(
        pixels_of(error), np.full((STEPS, 8, 12, 3), 255 * np.array(colour_map("purple_orange")(1.0)[:3])), atol=1
    )


def test_volumes_are_seen_in_slices_across_each_axis_and_as_a_maximum(shown):
    (film,) = shown["scenarios"]["volume"]["films"]
    views = film["fields"]["pressure"]
    assert list(views) == ["middle slice across z", "middle slice across y", "middle slice across x",
                           "maximum along z (signed: by magnitude)"]  # fmt: skip
    sizes = [(view["strips"][0]["width"], view["strips"][0]["height"]) for view in views.values()]
    assert sizes == [(8, 6), (8, 4), (6, 4), (8, 6)]


def test_lines_are_plots_of_truth_and_forecast_and_of_the_error(shown):
    (film,) = shown["scenarios"]["line"]["films"]
    both, error = film["fields"]["pressure"][""]["strips"]
    assert [both["title"], error["title"]] == ["truth and forecast", "error"]
    assert both["limits"] is None
    frames = pixels_of(both)
    assert len(frames) == STEPS
    assert (frames[0] != frames[-1]).any()
    assert tuple(frames[0, 0, 0]) == (255, 255, 255)


def test_films_are_coarsened_and_then_fewer_until_the_page_has_a_reasonable_size(tmp_path, monkeypatch):
    results = write_results(tmp_path / "evaluation", hostile=False, scenarios=("planes",))
    monkeypatch.setattr(report_films, "SIZES", ((12, 6), (6, 4), (3, 2), (2, 1)))
    monkeypatch.setattr(report_films, "ALL_TRAJECTORIES", 2)
    (entry,) = json.loads((results / "results.json").read_text())["forecast_files"]
    sources = [report_films.Source(results, {**entry, "trajectory": i}, "model") for i in (0, 1)]

    def films(pixels):
        monkeypatch.setattr(report_films, "MAX_PIXELS", pixels)
        found = report_films.films(sources)
        made = found.by_scenario["planes"]
        strip = made[0]["fields"]["pressure"][""]["strips"][0]
        assert pixels_of(strip).shape == (len(made[0]["steps"]), strip["height"], strip["width"], 3)
        assert found.first_only is (len(made) == 1)
        return len(made), made[0]["every"], made[0]["steps"], (strip["width"], strip["height"])

    sets = 2 * 3  # fields, panels
    assert films(2 * sets * 6 * 12 * 8) == (2, 1, [1, 2, 3, 4, 5, 6], (12, 8))
    assert films(2 * sets * 6 * 12 * 8 - 1) == (2, 2, [1, 3, 4, 6], (6, 4))
    assert films(2 * sets * 4 * 6 * 4 - 1) == (1, 2, [1, 3, 4, 6], (6, 4))
    assert films(sets * 4 * 6 * 4 - 1) == (1, 4, [1, 6], (3, 2))
    assert films(0) == (1, 6, [1], (2, 2))


def test_forecasts_that_cannot_be_read_are_named_and_the_rest_is_shown(tmp_path):
    folder = write_results(tmp_path / "evaluation")
    (folder / "forecasts" / "planes-0-truth.hdf5").write_bytes(b"no HDF5")
    (folder / "forecasts" / "volume-0-forecast.hdf5").unlink()
    shown = report.content([folder])
    assert [len(entry["films"]) for entry in shown["scenarios"].values()] == [0, 0, 1, 0]
    assert len(shown["unreadable"]) == 2
    assert all("trajectory 0: no pictures (" in line for line in shown["unreadable"])


def test_results_do_not_lead_to_files_elsewhere(tmp_path):
    folder = write_results(tmp_path / "evaluation", scenarios=("planes",))
    (folder / "forecasts" / "planes-0-truth.hdf5").rename(tmp_path / "secret.hdf5")
    entry = {"scenario": "planes", "trajectory": 0, "forecast": "../secret.hdf5", "truth": "../secret.hdf5"}
    change(folder, forecast_files=[entry])
    shown = report.content([folder])
    assert "leads out of the results" in shown["unreadable"][0]


def test_several_runs_stand_in_one_table_under_the_names_of_their_folders(tmp_path):
    results = write_results(tmp_path / "evaluation", scenarios=("volume",))
    other = write_results(tmp_path / "other", factor=3.0, scenarios=("volume",))
    scenarios = json.loads((other / "results.json").read_text())["scenarios"]
    scenarios["volume"]["trajectories"] = 5
    change(other, scenarios=scenarios)
    shown = report.content([results, other])
    entry = shown["scenarios"]["volume"]
    assert list(entry["forecasters"]) == [
        f"{who} ({run})" for run in ("evaluation", "other") for who in ("model", "persistence", "u_net")
    ]
    assert entry["forecasters"]["model (other)"]["windows"]["1"]["pressure"]["median"] == pytest.approx(0.3)
    assert entry["notes"] == ["other: not the same as in the first run: trajectories 5"]
    assert [film["forecaster"] for film in entry["films"]] == ["model (evaluation)", "model (other)"]
    assert [run["name"] for run in shown["runs"]] == ["evaluation", "other"]


def test_curves_of_training_runs_are_shown_where_asked_for(tmp_path):
    results = write_results(tmp_path / "evaluation", scenarios=("planes",))
    run = tmp_path / "run"
    run.mkdir()
    rows = [{"step": step, "loss": 1 / step, "losses": {"wave": 2 / step}} for step in range(1, 4)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = write_report([results / "results.json"], tmp_path / "report.html", training=[run])
    assert data_of(path)["training"] == {
        str(run): {"loss": {"mean": [[1, 2, 3], [1, 0.5, 0.33333]], "wave": [[1, 2, 3], [2, 1, 0.66667]]}}
    }
    with pytest.raises(FileNotFoundError, match=r"rows in metrics\.jsonl, found none"):
        report.content([results], [tmp_path])


def test_what_is_no_evaluation_is_refused_and_an_old_page_kept(results, tmp_path):
    page = tmp_path / "report.html"
    page.write_text("mine")
    broken = write_results(tmp_path / "broken", scenarios=("line",))
    unfinished = tmp_path / "unfinished"
    (unfinished / "partial").mkdir(parents=True)

    def refused(error, match, *folders):
        with pytest.raises(error, match=match):
            write_report(folders, page, overwrite=True)
        assert page.read_text() == "mine"

    refused(FileNotFoundError, r"folder of an evaluation with a results\.json, found none", tmp_path)
    refused(FileNotFoundError, "has not finished; the same command again finishes it", unfinished)
    refused(ValueError, "found 'evaluation' twice", results, results)
    refused(ValueError, "at least one folder")
    change(broken, scenarios={"line": {"fields": []}})
    refused(ValueError, r"found a damaged file \(KeyError: 'notes'\); evaluate again", broken)
    change(broken, format="walrus_hf.evaluation/9")
    refused(ValueError, r"\(walrus_hf\.evaluation/1\), found format 'walrus_hf\.evaluation/9'", broken)
    (broken / "results.json").write_text("{")
    refused(ValueError, "expected JSON", broken)
    with pytest.raises(FileExistsError, match="--overwrite"):
        write_report([results], page)
    with pytest.raises(ValueError, match=r"ends in \.html"):
        write_report([results], tmp_path / "report.pdf")
    with pytest.raises(FileNotFoundError, match="create it first"):
        write_report([results], tmp_path / "missing" / "report.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "report.html", "unfinished"]
