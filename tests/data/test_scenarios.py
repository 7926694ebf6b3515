"""The table of scenarios against the paper's counts, the vocabulary, the stride table and The Well's own names."""

import fnmatch

import numpy as np
import pytest
import torch

from walrus_hf.data import flowbench
from walrus_hf.data.external import CONVERTERS
from walrus_hf.data.scenarios import SCENARIOS, find_scenario, require_readable
from walrus_hf.fields import FLAG_NAMES, PUBLISHED_FIELDS, Trajectory
from walrus_hf.processing_walrus import WalrusProcessor
from walrus_hf.strides import PUBLISHED_STRIDES

ALL = list(SCENARIOS.values())
IDS = [scenario.name for scenario in ALL]


def small(scenario, value=1.0):
    """A trajectory of the scenario's fields on a small grid."""
    grid = (9, 8, 10)[: len(scenario.axes)]
    d = len(grid)

    def array(rank, *lead):
        return np.full((*lead, *grid, *(d,) * rank), value, dtype=np.float32)

    return Trajectory(
        fields={name: array(rank, 2) for name, rank in scenario.fields.items()},
        constant_fields={name: array(rank) for name, rank in scenario.constant_fields.items()},
        boundary_conditions=scenario.boundary_conditions,
        axes=scenario.axes,
        grid_type=scenario.grid_type,
    )


def processor_of(scenario):
    known = (*PUBLISHED_FIELDS, *scenario.added_fields)
    return WalrusProcessor({name: i for i, name in enumerate(known)}, **scenario.processor_settings())


def names_of(scenario, constant=False, padded=False):
    channels = processor_of(scenario).channels(small(scenario), constant=constant)
    return [channel.name for channel in channels if padded or channel.component is not None]


# Counts


def test_there_are_19_scenarios_of_pretraining_and_8_after_it():
    pretraining = [scenario for scenario in ALL if scenario.stage == "pretraining"]
    downstream = [scenario for scenario in ALL if scenario.stage == "downstream"]
    assert (len(pretraining), len(downstream), len(ALL)) == (19, 8, 27)
    assert [sum(len(s.axes) == d for s in pretraining) for d in (2, 3)] == [14, 5]
    assert [sum(len(s.axes) == d for s in downstream) for d in (2, 3)] == [4, 4]
    assert len({scenario.title for scenario in ALL}) == 27
    assert all(name == scenario.name for name, scenario in SCENARIOS.items())


@pytest.mark.parametrize("scenario", ALL, ids=IDS)
def test_the_facts_of_a_scenario_agree_with_each_other(scenario):
    assert len(scenario.grid) == len(scenario.axes) == len(scenario.boundary_conditions)
    assert set(scenario.log_fields) <= set(scenario.fields)
    assert set(scenario.zero_fields) <= set(scenario.fields) | set(scenario.constant_fields)
    assert set(scenario.field_names) <= set(scenario.fields) | set(scenario.constant_fields)
    assert set(scenario.added_fields) <= set(scenario.fields)
    assert scenario.trajectories > 0
    fewest, most = (scenario.frames, scenario.frames) if isinstance(scenario.frames, int) else scenario.frames
    assert 20 <= fewest <= most
    three = len(scenario.axes) == 3
    assert scenario.batch_factor == scenario.context_factor == (0.5 if three else 1.0)


def test_names_of_the_well_are_its_own():
    well = pytest.importorskip("the_well.data.utils")
    for scenario in ALL:
        if scenario.format == "well":
            assert scenario.name in well.WELL_DATASETS
            assert scenario.repository == f"polymathic-ai/{scenario.name}"


# Vocabulary


@pytest.mark.parametrize("scenario", ALL, ids=IDS)
def test_the_processor_takes_every_field(scenario):
    variable, constant = names_of(scenario), names_of(scenario, constant=True)
    assert not set(variable) & set(constant)
    assert len(variable) == sum(len(scenario.axes) ** rank for rank in scenario.fields.values())
    assert len(constant) == len(scenario.constant_fields)


def test_only_the_boiling_scenario_needs_a_field_that_the_published_vocabulary_lacks():
    assert {s.name: s.added_fields for s in ALL if s.added_fields} == {
        "bubbleml_pool_boiling_subcooled": ("gas-interface-sdf",)
    }


def test_all_scenarios_together_use_the_published_vocabulary_to_the_last_name():
    used = {name for s in ALL for constant in (False, True) for name in names_of(s, constant, padded=True)}
    assert used - {"gas-interface-sdf"} == set(PUBLISHED_FIELDS) - set(FLAG_NAMES)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("acoustic_scattering_maze", ["pressure", "velocity_x", "velocity_y"]),
        ("active_matter", [
            "concentration", "velocity_x", "velocity_y", "D_xx", "D_xy", "D_yx", "D_yy", "E_xx", "E_xy", "E_yx", "E_yy",
        ]),
        ("euler_multi_quadrants_openBC", ["density", "energy", "pressure", "momentum_x", "momentum_y"]),
        ("planetswe", ["height", "velocity_theta", "velocity_phi"]),
        ("viscoelastic_instability", [
            "pressure", "c_zz", "velocity_x", "velocity_y", "C_xx", "C_xy", "C_yx", "C_yy",
        ]),
        ("turbulent_radiative_layer_2D", ["density", "pressure", "velocity_x", "velocity_y"]),
        ("turbulent_radiative_layer_3D", ["log10_density", "pressure", "velocity_x", "velocity_y", "velocity_z"]),
        ("supernova_explosion_128", [
            "log10_density", "pressure", "log10_temperature", "velocity_x", "velocity_y", "velocity_z",
        ]),
        ("post_neutron_star_merger", [
            "log10_density", "internal_energy", "pressure", "log10_temperature", "electron_fraction", "entropy",
            "magnetic_field_log_r", "magnetic_field_theta", "magnetic_field_phi",
            "velocity_log_r", "velocity_theta", "velocity_phi",
        ]),
        ("convective_envelope_rsg", [
            "density", "energy", "pressure", "velocity_r", "velocity_theta", "velocity_phi",
        ]),
        ("pdearena_conditioned_ns", ["buoyancy", "velocity_x", "velocity_y"]),
    ],
)  # fmt: skip
def test_fields_get_the_names_that_the_model_knows(name, expected):
    assert names_of(SCENARIOS[name]) == expected


def test_constant_fields_get_the_names_that_the_model_knows():
    assert names_of(SCENARIOS["helmholtz_staircase"], constant=True) == ["mask"]
    for kind in ("maze", "inclusions", "discontinuous"):
        scenario = SCENARIOS[f"acoustic_scattering_{kind}"]
        assert names_of(scenario, constant=True) == ["zeros_like_density", "speed_of_sound"]
        assert scenario.zero_fields == ("density",)


def test_the_model_reads_logarithms_where_the_paper_takes_them():
    expected = {
        "supernova_explosion_128": {"density", "temperature"},
        "turbulence_gravity_cooling": {"density", "temperature"},
        "turbulent_radiative_layer_3D": {"density"},
        "post_neutron_star_merger": {"density", "temperature", "pressure", "entropy", "internal_energy"},
    }
    for scenario in ALL:
        logs = expected.get(scenario.name, set())
        assert set(scenario.log_fields) == logs
        processor = processor_of(scenario)
        values = processor(small(scenario, value=100.0))["field_values"]
        for i, channel in enumerate(processor.channels(small(scenario))):
            seen = 0.0 if channel.component is None else 2.0 if channel.field in logs else 100.0
            torch.testing.assert_close(values[0, :, i], torch.full_like(values[0, :, i], seen))


# Grids


def test_every_axis_has_a_published_stride_but_one():
    odd = [
        (scenario.name, n)
        for scenario in ALL
        for n, target in ((n, 16 if len(scenario.axes) == 3 else 32) for n in scenario.grid)
        if n % target or n // target not in PUBLISHED_STRIDES
    ]
    assert odd == [("post_neutron_star_merger", 66)]


def test_flowbench_has_the_sides_that_its_reader_gives():
    for family in ("harmonics", "skelenton"):
        scenario = SCENARIOS[f"flowbench_fpo_{family}"]
        assert small(scenario).boundary_ids() == flowbench.BOUNDARY_IDS
        assert scenario.axes == tuple(flowbench.REGION)


# Sources


def test_a_split_is_a_folder_on_the_hub():
    assert SCENARIOS["shear_flow"].url("valid") == "hf://datasets/polymathic-ai/shear_flow/data/valid"
    commit = "85fdd0c1f38ed4c0b1d358898ad5aff14e1f8691"
    expected = f"hf://datasets/BGLab/FlowBench@{commit}/FPO_NS_2D_512x128/skelenton"
    assert SCENARIOS["flowbench_fpo_skelenton"].url("test") == expected


@pytest.mark.parametrize("call", [lambda s: s.url("validation"), lambda s: s.exclusions("all")])
def test_an_unknown_split_is_refused(call):
    with pytest.raises(ValueError, match="expected one of train, valid, test, found"):
        call(SCENARIOS["MHD_64"])


@pytest.mark.parametrize("scenario", ALL, ids=IDS)
def test_what_cannot_be_read_as_it_is_names_its_converter(scenario):
    if scenario.readable:
        require_readable(scenario)
        assert scenario.converter is None
        return
    assert scenario.format in CONVERTERS
    command = f"walrus-hf data convert --format {scenario.format} FILE --output DIR"
    for call in (scenario.url, lambda: require_readable(scenario)):
        with pytest.raises(ValueError, match=f"{scenario.name}.*{command}") as caught:
            call()
        assert len(str(caught.value).splitlines()) == 1


def test_five_scenarios_need_a_conversion():
    found = {scenario.name: scenario.format for scenario in ALL if not scenario.readable}
    assert len(found) == 5
    assert set(found.values()) == set(CONVERTERS)


def test_the_outlier_is_left_out_of_every_split():
    for split in ("train", "valid", "test"):
        assert "Re_614.npz" in SCENARIOS["flowbench_fpo_harmonics"].exclusions(split)
    assert SCENARIOS["MHD_64"].exclusions("train") == ()


def test_each_simulation_of_flowbench_belongs_to_one_split():
    scenario = SCENARIOS["flowbench_fpo_skelenton"]
    sizes = dict.fromkeys(("train", "valid", "test"), 0)
    for geometry in range(1, 101):
        path = f"/{geometry}/Re_{300 + geometry}.npz"
        left_in = [s for s in sizes if not any(fnmatch.fnmatch(path, f"*{p}*") for p in scenario.exclusions(s))]
        assert len(left_in) == 1
        sizes[left_in[0]] += 1
    assert sizes == {"train": 80, "valid": 10, "test": 10}


def test_non_commercial_licences_are_stated():
    restricted = {scenario.name for scenario in ALL if "NC" in scenario.licence}
    assert restricted == {"flowbench_fpo_harmonics", "flowbench_fpo_skelenton", "pdegym_ce_rm"}


# Names


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("MHD64", "MHD_64"),
        ("sheer_flow", "shear_flow"),
        ("Gray-Scot", "gray_scott_reaction_diffusion"),
        ("ce-rm", "pdegym_ce_rm"),
    ],
)
def test_near_names_are_suggested(asked, meant):
    with pytest.raises(ValueError, match=f"unknown scenario '{asked}'.*perhaps.*'{meant}'") as caught:
        find_scenario(asked)
    assert len(str(caught.value).splitlines()) == 1


def test_a_scenario_is_found_by_its_name():
    assert find_scenario("planetswe") is SCENARIOS["planetswe"]


def test_settings_can_be_changed_without_changing_the_table():
    settings = SCENARIOS["supernova_explosion_128"].processor_settings()
    settings["log_fields"].append("pressure")
    settings["field_names"]["density"] = "x"
    assert SCENARIOS["supernova_explosion_128"].processor_settings() == {
        "field_names": {},
        "log_fields": ["density", "temperature"],
    }
