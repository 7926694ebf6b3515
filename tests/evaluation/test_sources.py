"""What is read for an evaluation is what the files hold, of every kind of source."""

import dataclasses
import warnings

import numpy as np
import pytest

from walrus_hf import load_well, save_well
from walrus_hf.data import SCENARIOS, flowbench, simulate
from walrus_hf.evaluation import Protocol
from walrus_hf.evaluation.sources import EvaluatedScenario, digest, open_scenarios

from .conftest import noise

EARLY = Protocol(start=4)


def test_context_and_truth_are_the_frames_before_and_after_the_start(runs):
    (scenario,) = open_scenarios([runs], EARLY)
    trajectory = scenario.trajectories[2]
    assert (trajectory.number, trajectory.start, trajectory.steps) == (2, 4, 8)
    whole, context = load_well(runs, 2), scenario.context(trajectory)
    assert (context.num_frames, context.dt, context.time) == (4, 0.5, 0)
    for name, values in whole.fields.items():
        np.testing.assert_array_equal(context.fields[name], values[:4])
        for first, stop in ((0, 8), (3, 5)):
            found = scenario.truth(trajectory, first, stop)[name]
            np.testing.assert_array_equal(found, values[4 + first : 4 + stop])


def test_a_scenario_that_is_evaluated_at_a_stride_is_read_at_that_stride(runs):
    (plain,) = open_scenarios([runs], EARLY)
    strided = dataclasses.replace(SCENARIOS["shear_flow"], time_stride=3)
    scenario = EvaluatedScenario("runs", runs, plain.manifest, strided, Protocol(start=2))
    trajectory = scenario.trajectories[1]
    assert (scenario.frames[1], trajectory.start, trajectory.steps) == (4, 2, 2)
    context, whole = scenario.context(trajectory), load_well(runs, 1)
    assert (context.num_frames, context.dt) == (2, 1.5)
    np.testing.assert_array_equal(context.fields["velocity"], whole.fields["velocity"][[0, 3]])
    np.testing.assert_array_equal(scenario.truth(trajectory, 0, 2)["velocity"], whole.fields["velocity"][[6, 9]])
    np.testing.assert_array_equal(scenario.truth(trajectory, 1, 2)["velocity"], whole.fields["velocity"][[9]])


def test_archives_of_flowbench_are_read_with_their_obstacle(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flowbench.warn_of_licence()
    folder = tmp_path / "nurbs" / "17"
    folder.mkdir(parents=True)
    values = np.random.default_rng(0).normal(size=(7, 3, 32, 8)).astype(np.float32)
    inside = np.zeros((32, 8), dtype=bool)
    inside[4:8, 2:5] = True
    np.savez_compressed(folder / "Re_100.npz", data=flowbench_order(values))
    np.savez(folder / "input_geometry.npz", mask=inside.T)
    (scenario,) = open_scenarios([tmp_path / "nurbs"], EARLY)
    trajectory = scenario.trajectories[0]
    expected = flowbench.load_flowbench(folder / "Re_100.npz", geometry=folder / "input_geometry.npz")
    context, truth = scenario.context(trajectory), scenario.truth(trajectory, 0, 3)
    np.testing.assert_array_equal(context.obstacle_mask, expected.obstacle_mask)
    assert scenario.chunk_frames([trajectory]) == 3  # an archive is read from its front
    for name in ("pressure", "velocity"):
        np.testing.assert_array_equal(context.fields[name], expected.fields[name][:4])
        np.testing.assert_array_equal(truth[name], expected.fields[name][4:])


def flowbench_order(values):
    """(T, C, x, y) in the order of axes that the archives have."""
    return np.ascontiguousarray(values.transpose(["TCXY".index(letter) for letter in flowbench.ORDER]))


def test_folders_are_read_from_the_split_that_is_asked_for(tmp_path):
    for split, frames in (("valid", 30), ("test", 25)):
        simulate.write_simulations("wave", tmp_path, 2, split=split, grid=(16, 20), frames=frames)
    (found,) = open_scenarios([tmp_path / "wave"], Protocol())
    assert (found.name, found.frames, found.split) == ("wave", [25, 25], "test")
    (found,) = open_scenarios([tmp_path / "wave"], Protocol(split="valid", max_trajectories=1))
    assert (found.frames, found.split) == ([30], "valid")
    (found,) = open_scenarios([next((tmp_path / "wave").rglob("*.hdf5"))], Protocol(split="train"))
    assert found.describe()["split"] is None


def test_a_file_without_splits_is_of_no_split(tmp_path):
    (found,) = open_scenarios([save_well(noise(), tmp_path / "mine.hdf5")], EARLY)
    assert found.describe()["split"] is None


def test_names_are_unique_and_safe_for_files(tmp_path):
    folder = tmp_path / "<b>my runs"
    folder.mkdir()
    paths = [save_well(noise(), folder / "a b.hdf5"), save_well(noise(), tmp_path / "a b.h5"), folder]
    assert [scenario.name for scenario in open_scenarios(paths, Protocol())] == ["a_b", "a_b-2", "_b_my_runs"]


def test_files_with_other_fields_or_axes_are_scenarios_of_their_own(tmp_path):
    save_well(noise(), tmp_path / "a.hdf5")
    save_well(noise(A=np.ones((5, 16, 12)), name="other"), tmp_path / "b.hdf5")
    save_well(noise(grid=(8, 8, 8), name="deep"), tmp_path / "c.hdf5")
    save_well(noise(seed=1), tmp_path / "d.hdf5")
    found = open_scenarios([tmp_path], EARLY)
    assert [len(scenario.trajectories) for scenario in found] == [2, 1, 1]
    stem = tmp_path.name
    assert [scenario.name for scenario in found] == [f"{stem}-runs", f"{stem}-other", f"{stem}-deep"]
    np.testing.assert_array_equal(
        found[0].context(found[0].trajectories[1]).fields["pressure"], noise(seed=1).fields["pressure"][:4].astype("f4")
    )


def test_trajectories_are_told_apart_by_their_last_given_frame():
    one, other = noise(seed=0), noise(seed=1)
    assert digest(one) == digest(dataclasses.replace(one, name="renamed"))
    assert digest(one) != digest(other)
    assert digest(one) != digest(one.frames(0, 5))


def test_a_scenario_by_its_path_is_known_by_name_grid_and_fields(tmp_path):
    fields = {name: np.random.default_rng(0).normal(size=(4, 128, 128)) for name in ("A", "B")}
    gray_scott = noise(grid=(128, 128), name="gray_scott_reaction_diffusion", **fields)
    (known,) = open_scenarios([save_well(gray_scott, tmp_path / "mine.hdf5")], Protocol())
    assert known.scenario is SCENARIOS["gray_scott_reaction_diffusion"]
    other = dataclasses.replace(gray_scott, fields={"A": fields["A"]})
    (unknown,) = open_scenarios([save_well(other, tmp_path / "other.hdf5")], Protocol())
    assert unknown.scenario is None
    assert unknown.name == "other"


def test_fields_that_a_scenario_should_have_are_noted(runs):
    (plain,) = open_scenarios([runs], EARLY)
    scenario = EvaluatedScenario("runs", runs, plain.manifest, SCENARIOS["shear_flow"], EARLY)
    assert "missing in the data: tracer, which Shear Flow has" in scenario.notes


def test_sources_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match=r"unknown scenario 'shear_flows': .* perhaps 'shear_flow'"):
        open_scenarios(["shear_flows"], Protocol())
