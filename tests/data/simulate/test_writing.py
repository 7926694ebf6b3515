"""Data sets of simulations on disk: what is in them, which seeds they take, and what is refused."""

import functools
import inspect
import tracemalloc

import h5py
import numpy as np
import pytest

pytest.importorskip("exponax")

from walrus_hf.data import simulate as package
from walrus_hf.data.simulate import SIMULATIONS, trajectory_seed, write_simulations
from walrus_hf.data.well import load_well, well_info
from walrus_hf.fields import Trajectory
from walrus_hf.processing_walrus import WalrusProcessor

GRID = (16, 20)


@pytest.fixture
def seeds(monkeypatch):
    """Puts a simulation in the table that takes next to no time; its seeds in the order they were asked for."""
    asked = []

    def noise(seed, frames=3, grid=GRID, scale=1.0):
        asked.append(seed)
        values = scale * np.random.default_rng(seed).normal(size=(frames, *grid))
        return Trajectory(
            {"pressure": values.astype(np.float32)}, {"x": "periodic", "y": "wall"}, name=f"noise_loud_{seed}"
        )

    monkeypatch.setitem(SIMULATIONS, "noise", noise)
    return asked


@pytest.mark.parametrize("name", SIMULATIONS)
def test_every_simulation_is_written_as_files_that_the_processor_can_use(name, tmp_path):
    grid = (16, 20, 18) if name.endswith("3d") else (20, 16)
    (file,) = write_simulations(name, tmp_path, trajectories=2, split="valid", frames=3, grid=grid)
    assert file == tmp_path / name / "data" / "valid" / f"{name}_0.hdf5"
    for number in range(2):
        found = load_well(file, trajectory=number)
        expected = SIMULATIONS[name](trajectory_seed(0, "valid", number), frames=3, grid=grid)
        assert found.name == f"{name}_{number}"
        assert found.grid == grid
        assert found.boundary_conditions == expected.boundary_conditions
        for field, values in {**expected.fields, **expected.constant_fields}.items():
            np.testing.assert_array_equal({**found.fields, **found.constant_fields}[field], values)
        assert WalrusProcessor()(found)["field_values"].shape[1] == 3
    assert well_info(file).dataset_name == name


def test_the_wells_own_reader_reads_a_folder_of_files(tmp_path, seeds):
    well_data = pytest.importorskip("the_well.data")
    write_simulations("noise", tmp_path, trajectories=5, trajectories_per_file=2, frames=4)
    (tmp_path / "noise" / "stats.yaml").write_text("{}")
    dataset = well_data.WellDataset(path=str(tmp_path / "noise" / "data" / "train"), use_normalization=False)
    assert len(dataset) == 5 * (4 - 1)
    expected = SIMULATIONS["noise"](trajectory_seed(0, "train", 4), frames=4).fields["pressure"]
    np.testing.assert_array_equal(dataset[12]["input_fields"][0, ..., 0], expected[0])


def test_files_hold_a_few_trajectories_each_in_order_and_the_last_one_the_rest(tmp_path, seeds):
    files = write_simulations("noise", tmp_path / "new" / "folder", trajectories=7, trajectories_per_file=3)
    assert [file.name for file in files] == ["noise_0.hdf5", "noise_1.hdf5", "noise_2.hdf5"]
    names = []
    for file in files:
        with h5py.File(file) as opened:
            names += [name.decode() for name in opened["trajectory_names"]]
            assert opened.attrs["dataset_name"] == "noise"
    assert names == [f"noise_{number}" for number in range(7)]
    assert sorted(path.name for path in (tmp_path / "new" / "folder").rglob("*.*")) == [f.name for f in files]


def test_one_file_of_trajectories_is_held_in_memory_at_a_time(tmp_path, seeds):
    tracemalloc.start()
    write_simulations("noise", tmp_path, trajectories=12, trajectories_per_file=2, grid=(256, 256), frames=8)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    one = 4 * 256 * 256 * 8
    assert 2 * one < peak < 6 * one  # two trajectories, and float64 numbers of the third before they are rounded


def test_no_trajectory_is_in_two_splits_or_under_two_seeds():
    asked = [
        trajectory_seed(seed, split, number)
        for seed in (0, 1, 2**32, 2**32 + 1)
        for split in ("train", "valid", "test")
        for number in range(200)
    ]
    assert len(set(asked)) == len(asked)
    assert all(0 <= seed < 2**64 for seed in asked)


def test_a_trajectory_does_not_depend_on_how_many_are_written_beside_it(tmp_path, seeds):
    write_simulations("noise", tmp_path / "few", trajectories=2, seed=5)
    write_simulations("noise", tmp_path / "many", trajectories=9, seed=5, trajectories_per_file=1)
    assert seeds[:2] == seeds[2:4]
    assert len(set(seeds[2:])) == 9


def test_the_bar_is_shown_on_request(tmp_path, seeds, capsys):
    write_simulations("noise", tmp_path / "quiet", trajectories=2)
    assert capsys.readouterr().err == ""
    write_simulations("noise", tmp_path / "loud", trajectories=2, progress=True)
    assert "noise train" in (shown := capsys.readouterr().err)
    assert "2/2" in shown


def test_files_that_are_there_stay_and_nothing_is_simulated_unless_overwriting(tmp_path, seeds):
    (_, last) = write_simulations("noise", tmp_path, trajectories=2, trajectories_per_file=1)
    before = last.read_bytes()
    (tmp_path / "noise" / "data" / "train" / "noise_0.hdf5").unlink()
    seeds.clear()
    with pytest.raises(FileExistsError, match=r"noise_1\.hdf5: expected no file, found one; pass overwrite=True"):
        write_simulations("noise", tmp_path, trajectories=2, trajectories_per_file=1, seed=1)
    assert seeds == []
    assert last.read_bytes() == before
    write_simulations("noise", tmp_path, trajectories=2, trajectories_per_file=1, skip_existing=True)
    assert len(seeds) == 1
    assert (tmp_path / "noise" / "data" / "train" / "noise_0.hdf5").is_file()
    assert last.read_bytes() == before
    write_simulations("noise", tmp_path, trajectories=2, trajectories_per_file=1, seed=1, overwrite=True)
    assert last.read_bytes() != before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "made with seed 1, found one with 0"),
        ({"frames": 4}, "made with frames 4, found one with 3"),
        ({"grid": (20, 16)}, r"made with grid \[20, 16\], found one with \[16, 20\]"),
        ({"scale": 2.0}, "made with scale 2.0, found one with 1.0"),
        ({"trajectories": 3}, "made with trajectories 3, found one with 2"),
    ],
)
def test_a_file_that_stays_must_have_been_made_with_the_same_parameters(changes, message, tmp_path, seeds):
    given = {"name": "noise", "output_dir": tmp_path, "trajectories": 2, "skip_existing": True}
    (file,) = write_simulations(**given, scale=1.0)
    seeds.clear()
    assert write_simulations(**given, grid=np.array(GRID)) == [file]  # the same, said otherwise
    with pytest.raises(FileExistsError, match=rf"noise_0\.hdf5: .*{message}; delete it, or write to another folder"):
        write_simulations(**{**given, **changes})
    with h5py.File(file, "a") as opened:  # as files were before they told their parameters
        del opened.attrs["simulated_with"]
    if changes.keys() & {"seed", "scale"}:
        assert write_simulations(**{**given, **changes}) == [file]
    else:
        with pytest.raises(FileExistsError, match=message):
            write_simulations(**{**given, **changes})
    assert seeds == []
    file.write_bytes(b"no simulation")
    with pytest.raises(FileExistsError, match="expected a file of simulations, found an unreadable one; delete it"):
        write_simulations(**given)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "burger"}, ValueError, "perhaps 'burgers'.*, found 'burger'"),
        (
            {"name": "euler"},
            ValueError,
            "perhaps 'euler_channel' or 'euler_layers_periodic' or 'euler_layers_wall' or 'euler_multi_quadrants_",
        ),
        ({"name": "zzz"}, ValueError, "one of acoustic_scattering, acoustic_scattering_closed"),
        ({"split": "training"}, ValueError, "split: expected one of train, valid, test, found 'training'"),
        ({"seed": -1}, ValueError, "seed: expected a number that is not negative"),
        ({"trajectories": 0}, ValueError, "expected at least 1, found 0 and 8"),
        ({"trajectories_per_file": 0}, ValueError, "expected at least 1, found 1 and 0"),
        ({"viscosty": 1.0}, TypeError, "noise: expected parameters among frames, grid, scale, found 'viscosty'"),
        ({"name": "euler_multi_quadrants_open", "boundary": "periodic"}, TypeError, "among grid, frames, dt, gamma"),
    ],
)
def test_what_cannot_be_simulated_is_refused_before_a_folder_is_made(arguments, error, message, tmp_path, seeds):
    with pytest.raises(error, match=message):
        write_simulations(**{"name": "noise", "output_dir": tmp_path, "trajectories": 1, **arguments})
    assert seeds == []
    assert list(tmp_path.iterdir()) == []


def test_a_solution_that_diverges_leaves_the_files_before_it(tmp_path, seeds, monkeypatch):
    noise = SIMULATIONS["noise"]

    def wild(seed):
        if len(seeds) == 3:
            raise ValueError("wild: the solution diverged")
        return noise(seed)

    monkeypatch.setitem(SIMULATIONS, "wild", wild)
    with pytest.raises(ValueError, match="diverged"):
        write_simulations("wild", tmp_path, trajectories=4, trajectories_per_file=2)
    assert [path.name for path in tmp_path.rglob("*.*")] == ["wild_0.hdf5"]


def test_the_table_has_every_simulation_of_the_package():
    """A simulation is a public function that begins with a seed and returns a trajectory."""
    public = {name: vars(package)[name] for name in package.__all__ if inspect.isfunction(vars(package)[name])}
    signatures = {name: inspect.signature(function) for name, function in public.items()}
    found = {
        name
        for name, signature in signatures.items()
        if next(iter(signature.parameters)) == "seed" and signature.return_annotation == "Trajectory"
    }
    functions = {f.func if isinstance(f, functools.partial) else f for f in SIMULATIONS.values()}
    assert {function.__name__ for function in functions} == found
    assert len(SIMULATIONS) >= 10
    assert list(SIMULATIONS) == sorted(SIMULATIONS)
