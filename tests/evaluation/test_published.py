"""The paper's numbers, as shipped."""

import pytest

from walrus_hf.data import SCENARIOS
from walrus_hf.evaluation import published_for, published_results


def value(scenario, table, model, window):
    found = [e for e in published_for(scenario) if (e["table"], e["model"], e["window"]) == (table, model, window)]
    assert len(found) == 1
    return found[0]["value"]


@pytest.mark.parametrize(
    ("scenario", "table", "model", "window", "expected"),
    [
        ("shear_flow", "Table 1", "Walrus", "1:20", 0.0146),
        ("shear_flow", "Table 1", "MPP-AViT-L", "21:60", 0.1814),
        ("rayleigh_benard", "Table 1", "DPOT-H", "1:20", 3.4868),
        ("MHD_64", "Table 1", "Walrus", "1", 0.0580),
        ("pdegym_ce_rm", "Table 8", "Poseidon-L", "1:10", 0.1399),
        ("post_neutron_star_merger", "Table 8", "DPOT-H", "11:30", 0.3933),
        ("turbulent_radiative_layer_2D", "Table 7", "Walrus without jitter", "full trajectory", 76.9),
        ("euler_multi_quadrants_openBC", "Table 3", "Walrus with absolute positions", "27:83", 0.6448),
    ],
)
def test_numbers_of_the_tables(scenario, table, model, window, expected):
    assert value(scenario, table, model, window) == expected


def test_every_scenario_of_the_paper_has_numbers_and_every_entry_a_scenario():
    entries = published_results()["entries"]
    assert {entry["scenario"] for entry in entries} == set(SCENARIOS)
    assert {entry["table"] for entry in entries} == {"Table 1", "Table 3", "Table 7", "Table 8"}
    for name in SCENARIOS:
        assert any(entry["model"] == "Walrus" for entry in published_for(name)), name


def test_numbers_that_are_missing_say_why_and_are_not_printed():
    missing = [entry for entry in published_results()["entries"] if entry["value"] is None]
    assert len(missing) > 50
    assert all(entry["note"] for entry in missing)
    assert all(entry["value"] > 0 for name in SCENARIOS for entry in published_for(name))
