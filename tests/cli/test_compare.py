"""`walrus-hf compare`: paired differences of two folders of results."""

import pytest

from walrus_hf import WalrusPipeline
from walrus_hf.evaluation import Protocol, evaluate


@pytest.fixture(scope="module")
def folders(file, model, tmp_path_factory):
    """The same model with and without jitter, and by another protocol."""
    folder, pipe = tmp_path_factory.mktemp("compare"), WalrusPipeline.from_pretrained(model)
    windows = {"1": (1, 1), "1:4": (1, 4)}
    for name, settings in {"with": {}, "without": {"jitter": False}, "early": {"start": 4}}.items():
        protocol = Protocol(**{"start": 6, "windows": windows, "resamples": 20, **settings})
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("WALRUS_HF_CACHE", str(folder / "cache"))
            evaluate(pipe, file, folder / name, protocol, progress=False)
    return folder


def test_differences_are_printed_for_the_mean_of_the_fields(run, folders):
    result = run("compare", folders / "with", folders / "without" / "results.json")
    assert result.code == 0, result.err
    assert "simulation, mean of fields: median VRMSE of the same trajectories" in result.out
    assert "pressure" not in result.out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.out.splitlines() if "│" in line]
    assert [row[:2] for row in rows] == [["1", "2"], ["1:4", "2"]]
    for row in rows:
        first, second, difference, low, high = map(float, row[2:7])
        assert difference == pytest.approx(second - first, abs=0.00011)  # of two the median is the mean
        assert low <= difference <= high
    assert "note: jitter: True in the first, False in the second" in result.out


def test_fields_and_forecasters_can_be_chosen(run, folders):
    result = run("compare", folders / "with", folders / "with", "--against", "persistence", "--by-field")
    assert result.code == 0, result.err
    assert "simulation, pressure: " in result.out
    assert "simulation, velocity: " in result.out
    assert f"B: persistence in {folders / 'with'}" in result.out


@pytest.mark.parametrize(
    ("other", "options", "message"),
    [
        ("early", (), "by the same protocol, found start 6 and 4"),
        ("gone", (), "expected the folder of an evaluation with a results.json, found none"),
        ("with", ("--forecaster", "fno"), "expected forecasts of 'fno' in the first, which has model, persistence"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(refused, folders, other, options, message):
    assert message in refused("compare", folders / "with", folders / other, *options)
