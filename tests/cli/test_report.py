"""`walrus-hf report` writes a page, or says in one line why not."""

import pytest

from ..evaluation.small_results import write_results

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return write_results(tmp_path_factory.mktemp("report") / "evaluation", hostile=False, scenarios=("planes",))


def test_a_page_is_written_and_its_size_said(run, results, tmp_path):
    done = run("report", results, "--output", tmp_path / "page.html")
    assert (done.code, done.err) == (0, "")
    assert done.out == f"wrote {tmp_path / 'page.html'} (0.1 MiB): open it in a browser\n"
    assert "walrus-nano" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_an_existing_page_is_replaced_only_on_request(run, refused, results, tmp_path):
    (tmp_path / "page.html").write_text("mine")
    assert "page.html exists" in refused("report", results, "--output", tmp_path / "page.html")
    assert run("report", results, "--output", tmp_path / "page.html", "--overwrite").code == 0
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_what_cannot_be_reported_is_said_in_one_line(refused, results, tmp_path):
    out = ("--output", tmp_path / "page.html")
    assert "expected the folder of an evaluation with a results.json, found none" in refused("report", tmp_path, *out)
    assert "rows in metrics.jsonl, found none" in refused("report", results, "--training", tmp_path, *out)
    assert "ending in .html or .htm" in refused("report", results, "--output", tmp_path / "page.pdf")
    assert "found 'evaluation' twice" in refused("report", results, results, *out)


def test_missing_packages_are_named_with_the_command_that_installs_them(refused, results, tmp_path, monkeypatch):
    from walrus_hf.cli import report

    monkeypatch.setattr(report, "find_spec", lambda name: None)
    assert "pip install 'walrus-hf[plot]'" in refused("report", results, "--output", tmp_path / "page.html")
