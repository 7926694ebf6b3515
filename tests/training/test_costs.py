"""Costs of micro-batches: counted by hand and by the benchmark, growing with work; the table of measured costs."""

import dataclasses
import json

import pytest

from walrus_hf import WalrusConfig
from walrus_hf.bench.flops import forward_flops as count_of_the_benchmark
from walrus_hf.data import SCENARIOS, ScenarioIndex, build_manifest
from walrus_hf.data.scenarios import find_scenario
from walrus_hf.training.costs import (
    H100,
    CostTable,
    Geometry,
    Hardware,
    Shape,
    all_reduce_cost,
    forward_flops,
    micro_batch_cost,
    micro_batch_tokens,
    parameter_bytes,
    tokenization,
)  # fmt: skip

from ..data.wells import write_source

PUBLISHED = WalrusConfig()
PLANE, VOLUME = Shape(2, 6), Shape(1, 3)
SHEAR_FLOW = Geometry((256, 512, 1), ((2, 2), (2, 2), (2, 2)), 5)
OPEN_BOX = Geometry((64, 64, 64), ((1, 1), (1, 1), (1, 1)), 6)


def test_a_plane_costs_what_hand_computation_says():
    tokens, width = 32 * 32, 1408
    blocks = 2 * 6 * tokens * 40 * (28 * width**2 + 4 * tokens * width + 4 * 6 * width)
    # 256 cells: strides (4, 2), 31 * 2 + 4 = 66 cells between the stages; 512 cells: (4, 4), 31 * 4 + 4 = 128.
    conv1 = 2 * 66 * 128 * 352 * 5 * 8**2
    conv2 = 2 * tokens * width * 352 * 4**2
    expected = blocks + 2 * 6 * 2 * (conv1 + conv2)
    assert forward_flops(SHEAR_FLOW, PLANE, PUBLISHED) == expected
    assert micro_batch_cost(SHEAR_FLOW, PLANE, PUBLISHED) == pytest.approx(3.5 * expected / (495e12 * 0.35) + 0.12)
    assert micro_batch_tokens(SHEAR_FLOW, PLANE, PUBLISHED) == 12_288


def test_a_volume_between_open_sides_has_one_more_token_along_each_axis():
    assert tokenization(OPEN_BOX, PUBLISHED).num_tokens == 17**3
    assert micro_batch_tokens(OPEN_BOX, VOLUME, PUBLISHED) == 3 * 4913
    # 64 cells: strides (2, 2), 16 * 2 + 4 = 36 cells between the stages.
    blocks = 3 * 4913 * 40 * (28 * 1408**2 + 4 * 4913 * 1408 + 4 * 3 * 1408)
    convolutions = 2 * 36**3 * 352 * 6 * 8**3 + 2 * 4913 * 1408 * 352 * 4**3
    assert forward_flops(OPEN_BOX, VOLUME, PUBLISHED) == blocks + 3 * 2 * convolutions


@pytest.mark.parametrize(
    "name", ["shear_flow", "helmholtz_staircase", "active_matter", "MHD_64", "rayleigh_taylor_instability"]
)
@pytest.mark.parametrize("config", [PUBLISHED, WalrusConfig.half(), WalrusConfig.tiny()], ids=["1.3b", "half", "tiny"])
def test_the_count_agrees_with_that_of_the_benchmark(name, config):
    geometry = Geometry.of_scenario(find_scenario(name))
    parts = count_of_the_benchmark(config, tokenization(geometry, config), 3, geometry.channels)
    assert forward_flops(geometry, Shape(2, 3), config) == pytest.approx(2 * sum(parts.values()), rel=1e-12)


def test_scenarios_cost_about_what_the_first_simulation_of_this_recipe_used():
    """Volumes at 2 samples of 6 frames: 4.4 to 5.5 planes; at 1 of 3: 1.21 to 1.49."""
    geometries = [Geometry.of_scenario(s) for s in SCENARIOS.values() if s.stage == "pretraining"]
    planes = [micro_batch_cost(g, PLANE, PUBLISHED) for g in geometries if not g.is_volume]
    plane = sum(planes) / len(planes)
    for shape, low, high in ((PLANE, 4.4, 5.5), (VOLUME, 1.21, 1.49)):
        found = [micro_batch_cost(g, shape, PUBLISHED) / plane for g in geometries if g.is_volume]
        assert min(found) == pytest.approx(low, rel=0.04)
        assert max(found) == pytest.approx(high, rel=0.04)


def test_parameters_are_those_of_the_published_model_to_a_thousandth():
    assert parameter_bytes(PUBLISHED) / 4 == pytest.approx(1_286_199_047, rel=1e-3)


def with_(hardware=H100, **changes):
    return dataclasses.replace(hardware, **changes)


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({}, {"shape": Shape(3, 6)}),
        ({}, {"shape": Shape(2, 7)}),
        ({}, {"geometry": dataclasses.replace(SHEAR_FLOW, channels=6)}),
        ({}, {"geometry": dataclasses.replace(SHEAR_FLOW, boundaries=((2, 2), (0, 1), (2, 2)))}),
        ({}, {"geometry": Geometry((128, 128, 128), ((2, 2),) * 3, 5)}),
        ({}, {"config": WalrusConfig(tokens_per_axis=64)}),
        ({"config": WalrusConfig.half()}, {}),
        ({}, {"hardware": with_(efficiency=0.3)}),
        ({}, {"hardware": with_(attention_price=2.0)}),
        ({}, {"hardware": with_(overhead=0.2)}),
        ({}, {"hardware": with_(node_bandwidth=1e10)}),
    ],
)
def test_more_work_or_a_slower_machine_costs_more(less, more):
    def cost(geometry=SHEAR_FLOW, shape=PLANE, config=PUBLISHED, hardware=H100):
        return micro_batch_cost(geometry, shape, config, hardware)

    assert cost(**more) > cost(**less)


def test_gathers_cost_only_where_they_take_longer_than_the_computation():
    slow = Hardware(node_bandwidth=1e9)
    expected = 3 * parameter_bytes(PUBLISHED) * 7 / 8 / 1e9 + 0.12
    assert micro_batch_cost(SHEAR_FLOW, PLANE, PUBLISHED, slow, members=8) == pytest.approx(expected)
    alone = micro_batch_cost(SHEAR_FLOW, PLANE, PUBLISHED, slow, members=1)
    assert alone == micro_batch_cost(SHEAR_FLOW, PLANE, PUBLISHED, H100, members=4)


def test_the_all_reduce_is_a_ring_of_shards_mostly_hidden():
    assert all_reduce_cost(PUBLISHED, H100, 1, 4) == 0
    expected = 0.3 * 2 * 23 / 24 * parameter_bytes(PUBLISHED) / 4 / 45e9
    assert all_reduce_cost(PUBLISHED, H100, 24, 4) == pytest.approx(expected)


def test_files_have_the_geometry_of_their_grid_fields_and_sides(tmp_path):
    folder = write_source(tmp_path / "s", 1, 1, grid=(10, 12))
    index = ScenarioIndex("s", build_manifest(folder / "data" / "train"), 7)
    # pressure, a velocity lifted to three components, and one constant field
    assert Geometry.of_index(index) == Geometry((10, 12, 1), ((2, 2), (0, 1), (2, 2)), 5)


A, B = ("a", 2, 6), ("b", 1, 3)


def table(interval=2):
    return CostTable({A: 1.0, B: 3.0}, interval)


def measured(steps, costs, interval=2):
    found = table(interval)
    for step in range(steps):
        found.measure(step, costs(step))
    return found


def test_measured_costs_hold_from_the_next_interval_but_one_on():
    found = table()
    for step in range(6):
        before = {n: found.costs(n) for n in range(step, 2 * (step // 2) + 4)}
        found.measure(step, {A: 5.0, B: 9.0})
        assert all(found.costs(n) == costs for n, costs in before.items() if n > step and n >= found.step // 2 * 2)
    assert found.costs(6) == {A: 5.0, B: 9.0}
    assert measured(1, lambda _: {A: 5.0, B: 9.0}).costs(3) == {A: 1.0, B: 3.0}


def test_the_first_measurement_holds_compilation_and_is_left_out():
    assert measured(1, lambda _: {A: 99.0}).estimates()[A] == 1.0
    assert measured(2, lambda n: {A: 99.0 if n == 0 else 2.0}).estimates()[A] == 2.0


def test_measurements_become_a_mean_that_forgets():
    assert measured(4, lambda n: {A: [0.5, 1.0, 2.0, 6.0][n]}).estimates()[A] == pytest.approx(3.0)
    drift = measured(200, lambda n: {A: 1.0 if n < 100 else 2.0}, 10).estimates()[A]
    assert drift == pytest.approx(2.0 - 0.9**100, rel=1e-3)


def test_what_is_not_measured_yet_is_predicted_on_the_scale_of_what_is():
    found = measured(3, lambda _: {A: 50.0}).estimates()
    assert found == {A: pytest.approx(50.0), B: pytest.approx(150.0)}


def test_a_table_from_a_checkpoint_goes_on_as_if_nothing_had_happened():
    def costs(n):
        return {A: 1.1 + 0.3 * (n % 7), B: 2.9 + 0.1 * (n % 3)} if n % 2 else {A: 1.3 + 0.01 * n}

    for stop in (1, 2, 5, 8):
        whole, part = measured(stop, costs, 3), measured(stop, costs, 3)
        part = CostTable.from_dict(json.loads(json.dumps(part.to_dict())))
        for step in range(stop, 20):
            assert part.costs(step + 3) == whole.costs(step + 3)
            whole.measure(step, costs(step))
            part.measure(step, costs(step))
        assert part.to_dict() == whole.to_dict()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: CostTable({A: 0.0}), "expected a cost in seconds above 0, found 0.0"),
        (lambda: CostTable({A: float("nan")}), "expected a cost in seconds above 0, found nan"),
        (lambda: CostTable({A: 1.0}, 0), "interval: expected at least 1 step, found 0"),
        (lambda: table().costs(4), "step 4: expected 0 to 3, whose costs are known"),
        (lambda: measured(2, lambda _: {}).costs(1), "step 1: expected 2 to 5"),
        (lambda: table().measure(1, {}), "expected the measurements of step 0, found those of step 1"),
        (lambda: table().measure(0, {("c", 1, 1): 1.0}), "expected a micro-batch of this table"),
        (lambda: table().measure(0, {A: -1.0}), "above 0, found -1.0"),
        (lambda: CostTable.from_dict({"entries": [1]}), "expected a table of costs as `CostTable.to_dict` writes it"),
        (lambda: CostTable.from_dict({**table().to_dict(), "in_force": {"0": [1.0]}}), "expected a table of costs"),
        (lambda: tokenization(dataclasses.replace(OPEN_BOX, grid=(4, 64, 64)), PUBLISHED), "at least 8 cells"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(wrong, message):
    with pytest.raises(ValueError, match=r".") as error:
        wrong()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_refused_measurement_changes_nothing():
    found = table()
    with pytest.raises(ValueError, match="above 0"):
        found.measure(0, {A: 2.0, B: 0.0})
    assert found.to_dict() == table().to_dict()
