"""The protocol: where forecasts begin, and what is refused."""

import pytest

from walrus_hf.evaluation import WINDOWS, Protocol
from walrus_hf.evaluation.protocol import parse_windows


@pytest.mark.parametrize(
    ("frames", "steps", "expected"),
    [
        (200, None, (17, 60)),  # to the end of the last window
        (77, None, (17, 60)),
        (40, None, (17, 23)),
        (17, None, (16, 1)),  # the last possible start
        (10, None, (9, 1)),
        (3, None, (2, 1)),
        (40, 10, (17, 10)),
        (21, 10, (11, 10)),  # early enough for the steps that were asked for
        (8, 10, (2, 6)),  # two frames are needed to begin with
        (200, 100, (17, 100)),
    ],
)
def test_forecasts_begin_at_frame_17_or_the_last_possible_start(frames, steps, expected):
    assert Protocol(steps=steps).start_and_steps(frames) == expected


def test_the_default_is_the_published_protocol():
    stated = Protocol().to_json()
    assert stated["start"] == 17
    assert stated["eps"] == 1e-7
    assert stated["windows"] == {"1": [1, 1], "1:10": [1, 10], "11:30": [11, 30], "1:20": [1, 20], "21:60": [21, 60]}
    assert stated["bootstrap"] == {"resamples": 1000, "level": 0.95, "seed": 0}


def test_windows_may_be_given_as_pairs_like_those_of_the_pipeline():
    assert Protocol(windows=((1, 1), (1, 5))) == Protocol(windows={"1": (1, 1), "1:5": (1, 5)})


def test_windows_are_read_from_text():
    assert parse_windows(["1", "11:30", "5:5"]) == {"1": (1, 1), "11:30": (11, 30), "5": (5, 5)}
    assert parse_windows(WINDOWS) == WINDOWS


@pytest.mark.parametrize("text", ["", "a", "1:", "1:2:3", "-1", "1.5", "²"])
def test_windows_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match="expected a lead time or two"):
        parse_windows([text])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": 1}, "start: expected at least 2"),
        ({"steps": 0}, "steps: expected at least 1, found 0"),
        ({"ensemble_size": 0}, "ensemble_size: expected at least 1"),
        ({"windows": {}}, "expected at least one"),
        ({"windows": (1, 5)}, "or such pairs, found"),
        ({"windows": {"3:2": (3, 2)}}, "first step <= last step"),
        ({"windows": {"0": (0, 0)}}, "1 <= first step"),
        ({"level": 95}, "between 0 and 1"),
        ({"split": "all"}, "one of train, valid, test"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Protocol(**settings)


def test_eight_trajectories_share_the_seed_of_their_jitter():
    seeds = [Protocol(seed=5).seed_of(i) for i in range(17)]
    assert seeds == [5] * 8 + [1005] * 8 + [2005]
