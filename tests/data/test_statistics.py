"""One pass over the frames, in any parts and on any number of collectors, gives The Well's statistics."""

import json
import os
import tracemalloc
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
import yaml

from walrus_hf.data.statistics import KINDS, RunningStatistics, read_stats, write_stats
from walrus_hf.data.well_writer import save_well
from walrus_hf.fields import Trajectory
from walrus_hf.processing_walrus import WalrusProcessor

GRID = (6, 5)
RANKS = {"pressure": 0, "velocity": 1, "D": 2}


def trajectory(frames, seed=0, grid=GRID, offset=2.0):
    """Fields of all ranks, each component with its own mean and scale."""
    rng = np.random.default_rng(seed)
    d = len(grid)
    fields = {}
    for name, rank in RANKS.items():
        scale = 1 + np.arange(d**rank).reshape((d,) * rank)
        fields[name] = (offset * scale + scale * rng.normal(size=(frames, *grid, *[d] * rank))).astype(np.float32)
    return fields


def constants(seed=0, grid=GRID):
    rng = np.random.default_rng(100 + seed)
    return {"speed_of_sound": rng.random(grid).astype(np.float32), "force": rng.normal(size=(*grid, len(grid)))}


TRAJECTORIES = [trajectory(frames, seed) for seed, frames in enumerate((7, 4, 11, 2))]  # frames differ, as they do
CONSTANTS = [constants(seed) for seed in range(len(TRAJECTORIES))]


def expected_stats(trajectories, constant_fields=(), dims=2):
    """The Well's definitions on whole arrays: over all leading axes, divided by the count, float64."""
    stats = {kind: {} for kind in KINDS}

    def put(name, arrays, suffix):
        cells = [a.astype(np.float64).reshape(-1, *components(name, a)) for a in arrays]
        together = np.concatenate(cells)
        stats["mean" + suffix][name] = together.mean(0)
        stats["std" + suffix][name] = together.std(0)
        stats["rms" + suffix][name] = np.sqrt((together**2).mean(0))

    def components(name, array):
        return array.shape[dims + (name not in constant_names) :]

    constant_names = set(constant_fields[0]) if constant_fields else set()
    for name in trajectories[0]:
        arrays = [fields[name] for fields in trajectories]
        put(name, arrays, "")
        put(name, [a[1:].astype(np.float64) - a[:-1] for a in arrays], "_delta")
    for name in sorted(constant_names):
        put(name, [fields[name] for fields in constant_fields], "")
    return stats


def collect(trajectories, constant_fields=(), dims=2, parts=None):
    """`parts`: random generator that cuts each trajectory into parts; None gives it whole."""
    statistics = RunningStatistics(dims)
    for fields in trajectories:
        frames = len(next(iter(fields.values())))
        cuts = [] if parts is None else sorted(parts.choice(np.arange(1, frames), parts.integers(0, frames), False))
        for start, stop in zip([0, *cuts], [*cuts, frames]):
            part = {name: values[start:stop] for name, values in fields.items()}
            statistics.add_trajectory_part(part, follows=start > 0)
    for fields in constant_fields:
        statistics.add_constant_fields(fields)
    return statistics


def assert_close(found, expected, rtol=1e-10):
    assert set(found) == set(expected) == set(KINDS)
    for kind in KINDS:
        assert set(found[kind]) == set(expected[kind]), kind
        for name, value in expected[kind].items():
            np.testing.assert_allclose(found[kind][name], value, rtol=rtol, err_msg=f"{kind} {name}")


# --- definitions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(9,), (6, 5), (4, 5, 3)])
def test_statistics_are_those_of_the_whole_arrays(grid):
    trajectories = [trajectory(frames, seed, grid) for seed, frames in enumerate((3, 5, 2))]
    fixed = [constants(seed, grid) for seed in range(3)]
    found = collect(trajectories, fixed, len(grid)).as_stats()
    assert_close(found, expected_stats(trajectories, fixed, len(grid)))
    assert set(found["rms"]) == {*RANKS, "speed_of_sound", "force"}
    assert set(found["rms_delta"]) == set(RANKS)  # constant fields do not change
    assert np.shape(found["std_delta"]["D"]) == (len(grid),) * 2
    assert isinstance(found["mean"]["pressure"], float)


def test_any_parts_give_the_same_and_changes_across_them_count():
    whole = collect(TRAJECTORIES).as_stats()
    for seed in range(20):
        assert_close(collect(TRAJECTORIES, parts=np.random.default_rng(seed)).as_stats(), whole, rtol=1e-12)


def test_the_jump_from_one_trajectory_to_the_next_is_no_change():
    calm = {"pressure": np.zeros((3, *GRID))}
    far = {"pressure": np.full((2, *GRID), 1e6)}
    assert collect([calm, far]).as_stats()["rms_delta"]["pressure"] == 0
    joined = RunningStatistics(2)
    joined.add_trajectory_part(calm)
    joined.add_trajectory_part(far, follows=True)
    assert joined.as_stats()["rms_delta"]["pressure"] == pytest.approx(1e6 / 2)  # one change of four


def test_grids_with_more_cells_and_longer_trajectories_weigh_more():
    small, large = np.full((2, 3, 1), 1.0), np.full((4, 3, 4), 5.0)
    found = collect([{"p": small}, {"p": large}]).as_stats()
    assert found["mean"]["p"] == pytest.approx((6 * 1 + 48 * 5) / 54)


@pytest.mark.parametrize("dtype", [">f4", "<f8", "float16", "int16", "uint8", "bool"])
def test_stored_types_are_read_as_numbers(dtype):
    values = (np.random.default_rng(0).random((4, *GRID)) * 9).astype(dtype)
    found = collect([{"p": values}]).as_stats()
    assert_close(found, expected_stats([{"p": values.astype(np.float64)}]))


def test_views_in_any_order_of_memory_are_read_right():
    values = TRAJECTORIES[2]["velocity"]
    views = {"velocity": np.asfortranarray(values)[::-2, ::-1]}
    assert_close(collect([views]).as_stats(), expected_stats([{"velocity": views["velocity"].copy()}]))


# --- precision -----------------------------------------------------------------------------------------------------


def test_a_mean_far_above_the_spread_costs_no_digits():
    rng = np.random.default_rng(0)
    values = 2.0**30 + rng.integers(0, 64, size=(40, 50, 70)) / 2.0**6  # exact in float64
    cells = [Fraction(x) for x in values.ravel()]
    mean = sum(cells) / len(cells)
    exact = float(sum((x - mean) ** 2 for x in cells) / len(cells)) ** 0.5
    naive = np.sqrt(abs((values**2).mean() - values.mean() ** 2))
    assert abs(naive / exact - 1) > 0.01  # what sums of squares would give
    found = collect([{"p": values}], parts=rng).as_stats()
    assert found["std"]["p"] == pytest.approx(exact, rel=1e-9)
    assert found["mean"]["p"] == pytest.approx(float(mean), rel=1e-15)
    halves = collect([{"p": values[:20]}])
    halves.merge(collect([{"p": values[20:]}]))
    assert halves.as_stats()["std"]["p"] == pytest.approx(exact, rel=1e-9)


def test_a_uniform_field_has_no_spread():
    found = collect([{"p": np.full((5, 300, 300), 0.1, dtype=np.float32)}]).as_stats()
    assert found["std"]["p"] == pytest.approx(0, abs=1e-12)
    assert found["rms"]["p"] == pytest.approx(np.float32(0.1), rel=1e-12)
    assert found["std_delta"]["p"] == 0


def test_memory_stays_at_a_few_frames():
    values = np.random.default_rng(0).normal(size=(64, 128, 128, 2)).astype(np.float32)  # 8 MiB
    statistics = RunningStatistics(2)
    tracemalloc.start()
    statistics.add_trajectory_part({"velocity": values})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * 2**20


# --- collectors ----------------------------------------------------------------------------------------------------


def test_shards_merge_to_the_whole_in_any_order_and_through_json():
    whole = collect(TRAJECTORIES, CONSTANTS).as_stats()
    shards = [collect([t], [c]) for t, c in zip(TRAJECTORIES, CONSTANTS)]
    written = [json.loads(json.dumps(shard.to_dict())) for shard in shards]
    for order in ((0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0)):
        merged = RunningStatistics(2)
        for i in order:
            merged.merge(RunningStatistics.from_dict(written[i]))
        assert_close(merged.as_stats(), whole, rtol=1e-12)
    left, right = RunningStatistics.from_dict(written[0]), RunningStatistics.from_dict(written[2])
    left.merge(RunningStatistics.from_dict(written[1]))
    right.merge(RunningStatistics.from_dict(written[3]))
    left.merge(right)
    assert_close(left.as_stats(), whole, rtol=1e-12)


def test_json_keeps_every_bit():
    statistics = collect(TRAJECTORIES, CONSTANTS)
    again = RunningStatistics.from_dict(json.loads(json.dumps(statistics.to_dict())))
    assert again.to_dict() == statistics.to_dict()
    assert again.as_stats() == statistics.as_stats()
    again.add_trajectory_part(TRAJECTORIES[0])
    with_one_more = collect([*TRAJECTORIES, TRAJECTORIES[0]], CONSTANTS)
    assert_close(again.as_stats(), with_one_more.as_stats(), rtol=1e-12)


def test_merging_leaves_the_other_collector_as_it_is():
    first, second = collect(TRAJECTORIES[:1]), collect(TRAJECTORIES[1:])
    before = second.to_dict()
    first.merge(second)
    first.add_trajectory_part(TRAJECTORIES[0])
    assert second.to_dict() == before
    empty = RunningStatistics(2)
    empty.merge(second)
    empty.add_trajectory_part(TRAJECTORIES[0])
    assert second.to_dict() == before


@pytest.mark.parametrize(
    ("other", "match"),
    [
        (collect([trajectory(2, grid=(3, 4, 5))], dims=3), "grids of 2 axes, found 3"),
        (collect([{"pressure": np.ones((2, *GRID, 2))}]), "'pressure': of another rank"),
        (collect([], [{"pressure": np.ones(GRID)}]), "'pressure': .*constant on one side only"),
    ],
)
def test_collectors_of_other_data_are_refused(other, match):
    statistics = collect(TRAJECTORIES[:1])
    before = statistics.to_dict()
    with pytest.raises(ValueError, match=match):
        statistics.merge(other)
    assert statistics.to_dict() == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.pop("values"),
        lambda d: d["values"]["pressure"].pop("count"),
        lambda d: d.update(values=3),
        lambda d: d["values"]["D"].update(squares=[1.0, 2.0]),
        lambda d: d["values"]["pressure"].update(mean=float("nan")),
        lambda d: d.update(spatial_dims=7),
    ],
)
def test_a_damaged_shard_is_refused(damage):
    data = json.loads(json.dumps(collect(TRAJECTORIES).to_dict()))
    damage(data)
    with pytest.raises(ValueError, match="expected"):
        RunningStatistics.from_dict(data)


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused_with_field_and_frame_and_nothing_is_counted(bad):
    statistics = collect(TRAJECTORIES[:1])
    before = statistics.to_dict()
    fields = {name: values.copy() for name, values in TRAJECTORIES[2].items()}
    fields["velocity"][8, 3, 1, 1] = bad
    fields["velocity"][8, 0, 0, 0] = bad
    statistics.add_trajectory_part({name: values[:2] for name, values in fields.items()})
    statistics.add_trajectory_part({name: values[2:5] for name, values in fields.items()}, follows=True)
    with pytest.raises(
        ValueError, match=r"field 'velocity', frame 8: expected finite numbers, found 2 NaN or infinite of 60"
    ):
        statistics.add_trajectory_part({name: values[5:] for name, values in fields.items()}, follows=True)
    with pytest.raises(ValueError, match="follows: expected an earlier part"):
        statistics.add_trajectory_part({name: values[9:] for name, values in fields.items()}, follows=True)
    only_first_parts = RunningStatistics.from_dict(before)
    only_first_parts.add_trajectory_part({name: values[:2] for name, values in TRAJECTORIES[2].items()})
    only_first_parts.add_trajectory_part({name: values[2:5] for name, values in TRAJECTORIES[2].items()}, follows=True)
    assert statistics.to_dict() == only_first_parts.to_dict()
    broken = np.ones((*GRID, 2))
    broken[0, 1, 0] = bad
    with pytest.raises(
        ValueError, match=r"constant field 'force': expected finite numbers, found 1 NaN or infinite of 60"
    ):
        statistics.add_constant_fields({"speed_of_sound": np.ones(GRID), "force": broken})
    assert statistics.to_dict() == only_first_parts.to_dict()


@pytest.mark.filterwarnings("error")
def test_numbers_too_large_to_square_are_refused():
    values = np.array([[[1.0, 2.0]], [[1e200, -1e200]]])
    with pytest.raises(ValueError, match=r"field 'p', frame 1: .*squares float64 can hold, found 1e\+200"):
        collect([{"p": values}])


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({}, "at least one field"),
        ({"p": np.ones((3, 6))}, r"field 'p': expected a shape of \(frames, 2 axes of the grid\[, d\[, d\]\]\)"),
        ({"p": np.ones((3, 6, 5, 2, 2, 2))}, "field 'p': expected a shape"),
        ({"p": np.ones((0, 6, 5))}, "without empty axes"),
        ({"p": np.ones((3, 6, 5)), "q": np.ones((2, 6, 5))}, "field 'q': expected 3 frames as in the others, found 2"),
        ({"p": np.ones((3, 6, 5), dtype=complex)}, "expected real numbers, found dtype complex128"),
        ({"p": np.float64(3)}, "field 'p': expected a shape"),
    ],
)
def test_arrays_that_are_no_fields_are_refused(fields, match):
    with pytest.raises(ValueError, match=match):
        RunningStatistics(2).add_trajectory_part(fields)


def test_parts_that_do_not_follow_are_refused():
    part = {"p": np.ones((3, *GRID))}
    with pytest.raises(ValueError, match="follows: expected an earlier part of the trajectory, found none"):
        RunningStatistics(2).add_trajectory_part(part, follows=True)
    for other, match in (
        ({"q": np.ones((3, *GRID))}, r"expected the fields of the part before \(p\), found q"),
        ({"p": np.ones((3, 5, 6))}, r"expected frames of shape \(6, 5\) as in the part before, found \(5, 6\)"),
    ):
        statistics = collect([part])
        with pytest.raises(ValueError, match=match):
            statistics.add_trajectory_part(other, follows=True)
    resumed = RunningStatistics.from_dict(collect([part]).to_dict())
    with pytest.raises(ValueError, match="follows: expected an earlier part"):
        resumed.add_trajectory_part(part, follows=True)


def test_a_name_stands_for_one_kind_of_field():
    statistics = collect([{"p": np.ones((2, *GRID))}], [{"c": np.ones(GRID)}])
    with pytest.raises(ValueError, match="field 'c': varies in time here, but it was constant before"):
        statistics.add_trajectory_part({"c": np.ones((2, *GRID))})
    with pytest.raises(ValueError, match="field 'p': constant here, but it varied in time before"):
        statistics.add_constant_fields({"p": np.ones(GRID)})
    with pytest.raises(ValueError, match=r"field 'p': expected components of shape \(\) as before, found \(2,\)"):
        statistics.add_trajectory_part({"p": np.ones((2, *GRID, 2))})


def test_statistics_of_nothing_are_refused():
    with pytest.raises(ValueError, match="at least one field"):
        RunningStatistics(2).as_stats()
    with pytest.raises(ValueError, match="field 'p': expected two consecutive frames at least"):
        collect([{"p": np.ones((1, *GRID))}]).as_stats()
    with pytest.raises(ValueError, match="spatial_dims"):
        RunningStatistics(4)


# --- files ---------------------------------------------------------------------------------------------------------


def test_files_are_laid_out_as_the_wells_and_keep_every_digit(tmp_path):
    stats = collect(TRAJECTORIES, CONSTANTS).as_stats()
    path = write_stats(stats, tmp_path / "stats.yaml")
    assert read_stats(path) == stats == yaml.safe_load(path.read_text())
    lines = path.read_text().splitlines()
    assert [line for line in lines if not line.startswith((" ", "-"))] == [
        "mean:", "mean_delta:", "rms:", "rms_delta:", "std:", "std_delta:",
    ]  # fmt: skip
    d = lines.index("  D:")
    assert [line[:6] for line in lines[d + 1 : d + 5]] == ["  - - ", "    - ", "  - - ", "    - "]
    assert os.listdir(tmp_path) == ["stats.yaml"]


def test_a_file_of_the_well_is_read(tmp_path):
    path = tmp_path / "stats.yaml"
    path.write_text(
        "mean:\n  D:\n  - - 5.0184E-01\n    - -6.2220E-03\n  - - -6.2220E-03\n    - 4.9816E-01\n  concentration: 1.0\n"
        "std:\n  D:\n  - - 3.2013E-01\n    - 3.3105E-01\n  - - 3.3105E-01\n    - 3.2018E-01\n"
        "  concentration: 2.9541E-03\n"
    )
    stats = read_stats(path)
    assert stats["mean"]["D"] == [[0.50184, -0.006222], [-0.006222, 0.49816]]
    assert stats["std"]["concentration"] == 0.0029541


def test_a_file_that_is_there_stays_unless_it_is_to_be_replaced(tmp_path):
    stats = collect(TRAJECTORIES).as_stats()
    path = tmp_path / "stats.yaml"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        write_stats(stats, path)
    assert path.read_text() == "mine"
    write_stats(stats, path, overwrite=True)
    assert read_stats(path) == stats


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    stats = collect(TRAJECTORIES).as_stats()
    path = write_stats(collect(TRAJECTORIES[:1]).as_stats(), tmp_path / "stats.yaml")
    old = path.read_bytes()

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=r"stats\.yaml: expected to write the file, found No space left on device"):
        write_stats(stats, path, overwrite=True)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["stats.yaml"]
    for target, error in ((tmp_path, IsADirectoryError), (tmp_path / "no" / "stats.yaml", FileNotFoundError)):
        with pytest.raises(error, match="expected"):
            write_stats(stats, target)


@pytest.mark.parametrize(
    "text",
    [
        "", "3", "[1, 2]", "median:\n  p: 1.0\n", "mean: 3\n", "mean:\n  p: high\n", "mean:\n  p: 1e-5\n",
        "rms:\n  p: .nan\n", "rms:\n  p: []\n", "rms:\n  p: [[1.0, 2.0], [3.0]]\n", "rms:\n  p: true\n",
        "rms:\n  p: [[[1.0]]]\n", "rms: {p: [1,", "!!python/object:os.system {}",
    ],
)  # fmt: skip
def test_files_of_another_layout_are_refused(tmp_path, text):
    path = tmp_path / "stats.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"stats\.yaml: expected"):
        read_stats(path)


def test_only_statistics_are_written(tmp_path):
    with pytest.raises(ValueError, match="stats: expected"):
        write_stats({"rms": {"p": float("nan")}}, tmp_path / "stats.yaml")
    assert not list(tmp_path.iterdir())


# --- who reads them ------------------------------------------------------------------------------------------------


def test_the_processor_takes_them_as_global_scales(tmp_path):
    fields = trajectory(5)
    stats = collect([fields]).as_stats()
    stats = read_stats(write_stats(stats, tmp_path / "stats.yaml"))
    processor = WalrusProcessor(global_scales={"rms": stats["rms"], "rms_delta": stats["rms_delta"]})
    inputs = processor(Trajectory(fields, {"x": "wall", "y": "periodic"}))
    values = inputs["field_values"][0].double()
    real = ~inputs["padded_channels"][0]
    rms = values.square().mean((0, 2, 3, 4)).sqrt()
    change = values.diff(dim=0).square().mean((0, 2, 3, 4)).sqrt()
    torch.testing.assert_close(inputs["value_scales"][0][real].double(), rms[real], rtol=1e-6, atol=0)
    torch.testing.assert_close(inputs["change_scales"][0][real].double(), change[real], rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["ZScoreNormalization", "RMSNormalization"])
def test_the_well_normalizes_with_them(tmp_path, kind):
    data = pytest.importorskip("the_well.data")
    normalization = getattr(pytest.importorskip("the_well.data.normalization"), kind)
    sides = {"x": "wall", "y": "periodic"}
    fixed = {name: values.astype(np.float32) for name, values in CONSTANTS[0].items()}
    batch = [Trajectory(trajectory(8, seed), sides, constant_fields=fixed) for seed in range(3)]
    folder = tmp_path / "data"
    folder.mkdir()
    save_well(batch, folder / "flow.hdf5")
    write_stats(collect([t.fields for t in batch], [fixed]).as_stats(), tmp_path / "stats.yaml")

    def normalized(well, part):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = well(
                path=str(folder), normalization_path=str(tmp_path / "stats.yaml"), n_steps_input=1,
                n_steps_output=7, use_normalization=True, normalization_type=normalization,
            )  # fmt: skip
        cells = [dataset[i][part].double().flatten(0, -2) for i in range(len(dataset))]
        assert len(cells) == 3
        return torch.cat(cells)

    frames = torch.cat([normalized(data.WellDataset, part) for part in ("input_fields", "output_fields")])
    changes = normalized(data.DeltaWellDataset, "output_fields")
    for values in (frames, normalized(data.WellDataset, "constant_fields"), changes):
        rms = values.square().mean(0).sqrt()
        torch.testing.assert_close(rms, torch.ones_like(rms), rtol=1e-4, atol=0)
        if kind == "ZScoreNormalization":
            torch.testing.assert_close(values.mean(0), torch.zeros_like(rms), rtol=0, atol=1e-4)
