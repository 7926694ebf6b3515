"""`walrus-hf data list | index | stats | check | convert`."""

import json
import re
import shutil
import subprocess
import sys

import fsspec
import h5py
import numpy as np
import pytest
import yaml

from walrus_hf import cli, load_well
from walrus_hf.data import remote, stretches
from walrus_hf.data.manifest import load_manifest
from walrus_hf.data.scenarios import SCENARIOS
from walrus_hf.data.source_files import build_manifest
from walrus_hf.data.statistics import read_stats
from walrus_hf.data.stretches import collect_statistics

from ..data.http_server import Fault, RangeServer
from ..data.test_external import pdebench
from ..data.wells import restore, write_source

COMMANDS = ("list", "index", "stats", "check", "convert")


@pytest.fixture(autouse=True)
def manifests_of_their_own(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("WALRUS_HF_CACHE", str(tmp_path_factory.mktemp("manifests")))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three splits and statistics; the working directory is beside it."""
    for n, split in enumerate(("train", "valid", "test")):
        write_source(tmp_path / "flow", files=2, trajectories=2, frames=6, first_seed=10 * n, split=split)
    (tmp_path / "flow" / "stats.yaml").write_text("mean: {}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "flow"


def good(result):
    assert result.code == 0, result
    assert result.err == ""
    return result.out


def train(folder, file):
    return folder / "data" / "train" / file


def test_a_file_with_a_colon_in_its_name_is_a_file_like_any_other(run, folder, monkeypatch):
    """By its name alone, in the folder where it lies: as an address it would be one of the protocol `run`."""
    monkeypatch.chdir(folder / "data" / "train")
    shutil.move("0.hdf5", "run:3.hdf5")
    assert "trajectories  2" in good(run("data", "index", "run:3.hdf5"))
    assert "with 2 trajectories" in good(run("data", "check", "run:3.hdf5"))
    stats = run("data", "stats", "run:3.hdf5", "--output", "stats.yaml")
    assert stats.code == 0, stats


def test_a_file_behind_a_chain_of_addresses_is_indexed(run, folder):
    address = f"simplecache::{train(folder, '0.hdf5').as_uri()}"
    assert "trajectories  2" in good(run("data", "index", address))


# list


def test_the_list_shows_all_scenarios_within_100_columns(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    lines = good(run("data", "list")).splitlines()
    assert max(map(len, lines)) <= 100
    for scenario in SCENARIOS.values():
        (first,) = [i for i, line in enumerate(lines) if re.match(rf" ?{re.escape(scenario.name)} ", line)]
        assert lines[first + 1].strip().startswith(scenario.title)
        assert "x".join(map(str, scenario.grid)) in lines[first]
        assert scenario.licence in lines[first]
        text = " ".join(lines[first : first + 9])
        assert all(name in text for name in [*scenario.fields, *scenario.constant_fields])
        assert ("as it is" if scenario.readable else f"by {scenario.format}") in lines[first + 1]
    assert len(lines) < 100


def test_the_list_of_a_stage_and_its_json(run, tmp_path):
    file = tmp_path / "scenarios.json"
    out = good(run("data", "list", "--stage", "downstream", "--json", file))
    assert "pdegym_ce_rm" in out
    assert "rayleigh_benard" not in out
    entries = json.loads(file.read_text())["scenarios"]
    assert [entry["name"] for entry in entries] == [s.name for s in SCENARIOS.values() if s.stage == "downstream"]
    (entry,) = [entry for entry in entries if entry["name"] == "pdegym_ce_rm"]
    assert (entry["grid"], entry["frames"], entry["fields"]["velocity"]) == ([128, 128], 21, 1)
    assert entry["readable"] is False
    assert entry["converter"] == "walrus-hf data convert --format pdegym FILE --output DIR"


def test_an_old_json_is_kept_unless_it_may_be_overwritten(run, refused, tmp_path):
    (tmp_path / "old.json").write_text("old")
    assert "old.json exists" in refused("data", "list", "--json", tmp_path / "old.json")
    assert "ending in .json" in refused("data", "list", "--json", tmp_path / "old.txt")
    good(run("data", "list", "--json", tmp_path / "old.json", "--overwrite"))
    assert len(json.loads((tmp_path / "old.json").read_text())["scenarios"]) == 27


# index


def test_an_index_tells_what_the_files_hold_and_how_they_are_read(run, folder):
    restore(train(folder, "1.hdf5"), chunks=True, compression="gzip")
    size = sum(path.stat().st_size for path in (folder / "data" / "train").iterdir())
    out = good(run("data", "index", folder))
    for line in (
        rf"source +{folder}/data/train",
        rf"files +2, {size / 1000:.3g} kB", r"trajectories +4", r"frames +24, 6 a traj",
        r"grid +x=10, y=12 \(cartesian\)", r"boundaries +x periodic, y wall/open",
        r"│ pressure +│ +scalar │ trajectory and frame │ +<f4 │ +480 bytes │ +ranges, contiguous; library │",
        r"│ velocity +│ +vector │.*│ +960 bytes │",
    ):  # fmt: skip
        assert re.search(line, out), line


def test_a_written_manifest_is_a_source_from_anywhere(run, folder, tmp_path, monkeypatch):
    good(run("data", "index", "flow", "--split", "valid", "--output", "valid.json"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found, expected = load_manifest("../valid.json"), build_manifest(folder / "data" / "valid")
    assert [found.url(n) for n in (0, 1)] == [expected.url(n) for n in (0, 1)]
    assert "files         2," in good(run("data", "index", "../valid.json"))
    good(run("data", "check", "../valid.json", "--read"))


def test_a_source_that_cannot_be_indexed_is_told_in_one_line(refused, folder):
    train(folder, "1.hdf5").write_bytes(train(folder, "1.hdf5").read_bytes()[:9000])
    assert "1.hdf5: expected a whole HDF5 file" in refused("data", "index", folder, "--output", "m.json")
    shutil.rmtree(folder / "data" / "valid")
    assert "flow/data/valid: expected a folder or a file, found none" in refused(
        "data", "index", folder, "--split", "valid"
    )
    assert "unknown scenario 'flaw'" in refused("data", "index", "flaw")
    assert "--format pdegym" in refused("data", "index", "pdegym_ce_rm")
    (folder / "m.json").write_text("old")
    assert "m.json exists" in refused("data", "index", folder, "--output", folder / "m.json")
    assert "ending in .json" in refused("data", "index", folder, "--output", folder / "m.txt")


def test_the_files_of_another_split_do_not_stand_in_for_a_missing_one(run, refused, folder):
    store = fsspec.filesystem("memory")
    store.put(str(folder / "data" / "train"), "/half/data/train", recursive=True)
    try:
        assert "memory://half/data/train" in good(run("data", "index", "memory://half"))
        assert "memory://half/data/valid" in refused("data", "index", "memory://half", "--split", "valid")
    finally:
        store.rm("/half", recursive=True)


# stats


def test_statistics_are_shown_and_written_as_the_well_does(run, folder):
    out = good(run("data", "stats", "flow"))
    found = yaml.safe_load((folder.parent / "stats.yaml").read_text())
    expected = collect_statistics(build_manifest(folder / "data" / "train")).as_stats()
    assert found == expected == read_stats("stats.yaml")
    assert re.search(rf"│ pressure +│ +{expected['mean']['pressure']:.4g} │", out)
    assert re.search(rf"│ velocity\[1\] +│.*│ +{expected['rms_delta']['velocity'][1]:.4g} │", out)
    assert out.endswith("wrote stats.yaml\n")


def test_the_shards_of_several_processes_merge_to_those_of_one(run, refused, folder, monkeypatch):
    monkeypatch.setattr(stretches, "STRETCH_BYTES", 5000)
    for i in range(3):
        assert f"wrote stats-{i}-of-3.json" in good(run("data", "stats", "flow", "--shard", f"{i}/3"))
    parts = [f"stats-{i}-of-3.json" for i in (2, 0, 1)]
    good(run("data", "stats", "--merge", *parts, "--output", "merged.yaml"))
    good(run("data", "stats", "flow", "--output", "single.yaml"))
    found, expected = read_stats("merged.yaml"), read_stats("single.yaml")
    assert found.keys() == expected.keys()
    for kind in expected:
        for name, value in expected[kind].items():
            np.testing.assert_allclose(found[kind][name], value, rtol=1e-12, atol=1e-15)

    merge = ["data", "stats", "--output", "new.yaml", "--merge"]
    assert "expected each of the 3 shards once, 0 to 2, found 0, 1" in refused(*merge, *parts[1:])
    assert "found 0, 1, 2, 2" in refused(*merge, *parts, parts[0])
    good(run("data", "stats", "flow", "--split", "valid", "--shard", "0/3", "--output", "other.json"))
    message = refused(*merge, *parts[:1], "other.json", parts[2])
    assert "other.json: expected split 'train' as in stats-2-of-3.json, found 'valid'" in message
    assert "found none" in refused(*merge, "gone.json")
    for text in ("{}", "[]", "no JSON", (folder.parent / parts[0]).read_text().replace('"shard": 2', '"shard": "2"')):
        (folder.parent / "other.json").write_text(text)
        assert "other.json: expected a file that --shard wrote, found another kind" in refused(*merge, "other.json")


def test_a_scenario_is_counted_as_the_model_reads_it(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_source(tmp_path / "acoustic_scattering_maze", files=1, trajectories=1, frames=4)
    with h5py.File(tmp_path / "acoustic_scattering_maze/data/train/0.hdf5", "r+") as file:
        file["t0_fields"].move("speed_of_sound", "density")
        file["t0_fields"].attrs["field_names"] = np.array(["pressure", "density"], dtype=h5py.string_dtype())
    good(run("data", "stats", "acoustic_scattering_maze", "--base-path", "."))
    assert read_stats("stats.yaml")["rms"]["density"] == 0
    good(run("data", "stats", "acoustic_scattering_maze/", "--output", "raw.yaml"))
    assert read_stats("raw.yaml")["rms"]["density"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("flow", "--shard", "3/3"), "--shard: expected I/N such as 0/4, I from 0 to N - 1, found '3/3'"),
        (("flow", "--shard", "1"), "found '1'"),
        (("flow", "flow"), "expected one source, found 2; files of shards are combined with --merge"),
        (("a.json", "--merge", "--shard", "0/2"), "--merge: expected files of shards alone"),
        (("flow", "--output", "stats.json"), "ending in .yaml or .yml"),
        (("flow", "--shard", "0/2", "--output", "stats.yaml"), "ending in .json"),
        (("flow", "--output", "flow/stats.yaml"), "stats.yaml exists"),
        (("flow", "--base-path", "."), "unknown scenario 'flow'"),
    ],
)
def test_statistics_that_make_no_sense_are_refused(refused, folder, options, message):
    assert message in refused("data", "stats", *options)


def test_numbers_that_are_not_finite_leave_no_statistics(refused, folder):
    with h5py.File(train(folder, "0.hdf5"), "r+") as file:
        file["t0_fields/pressure"][1, 2, 3, 4] = np.nan
    message = refused("data", "stats", "flow")
    assert "flow/data/train/0.hdf5, trajectory 1, frames 0 to 5: field 'pressure', frame 2: expected finite" in message


# check


def test_a_whole_source_ends_with_code_0_and_a_note_does_not_change_that(run, folder):
    assert good(run("data", "check", "flow", "--read")).startswith("flow: files that can be read: 6, with 12 traj")
    (folder / "stats.yaml").unlink()
    lines = good(run("data", "check", "flow")).splitlines()
    assert lines[0].startswith("note: flow/stats.yaml: expected the statistics, found none")
    assert len(lines) == 2


def test_every_problem_is_one_line_with_file_and_reason_and_ends_with_code_2(run, folder):
    train(folder, "0.hdf5").write_bytes(train(folder, "0.hdf5").read_bytes()[:9000])
    for file in (folder / "data" / "test").iterdir():
        file.unlink()
    write_source(folder / "more", files=1, trajectories=1, frames=6, grid=(8, 9))
    train(folder / "more", "0.hdf5").rename(train(folder, "grid.hdf5"))
    with h5py.File(train(folder, "1.hdf5"), "r+") as file:
        file["t0_fields/pressure"][1, 2, 3, 4] = np.nan
    result = run("data", "check", "flow", "--read")
    assert (result.code, result.err) == (2, "")
    *lines, last = result.out.splitlines()
    assert [re.match(r"error: (\S+): ", line)[1] for line in lines] == [
        "flow/data/train/0.hdf5", "flow/data/test", "flow/data/train/grid.hdf5", "flow/data/train/1.hdf5",
    ]  # fmt: skip
    assert last.startswith("flow: files that can be read: 4, with 7 trajectories")
    result = run("data", "check", "flow", "--split", "valid", "--read")
    assert (result.code, len(result.out.splitlines())) == (0, 1)


def test_a_store_that_cannot_be_reached_ends_with_code_1(run, refused, folder, monkeypatch):
    monkeypatch.setattr(remote, "_sleep", lambda _: None)
    with RangeServer({"flow/0.hdf5": train(folder, "0.hdf5").read_bytes()}) as server:
        url = server.url("flow/0.hdf5")
        good(run("data", "check", url, "--read"))
        server.always("flow/0.hdf5", Fault(status=503))
        result = run("data", "check", url)
        assert (result.code, result.err) == (1, "")
        assert result.out.startswith(f"unreachable: {url}: expected the bytes from 0 on, found HTTP 503")
        result = run("data", "check", server.url("flow/1.hdf5"))
        assert result.code == 2
        assert "found HTTP 404" in result.out
    assert "expected the Hub, found offline mode" in refused("data", "check", "rayleigh_benard", code=1)
    assert "perhaps 'rayleigh_benard'" in refused("data", "check", "raylegh_benard")
    assert "unknown scenario 'flow'" in refused("data", "check", "flow", "--base-path", ".")


def test_a_scenario_on_disk_is_compared_with_its_facts(run, tmp_path):
    write_source(tmp_path / "gray_scott_reaction_diffusion", files=1)
    result = run("data", "check", "gray_scott_reaction_diffusion", "--base-path", tmp_path)
    assert result.code == 2
    assert "expected the grid of the scenario, x=128, y=128, found x=10, y=12" in result.out
    assert "expected the fields of the scenario, A, B, found pressure, velocity (vector)" in result.out


# convert


def test_converted_files_are_a_source(run, refused, tmp_path):
    source, arrays = pdebench(tmp_path, 2)
    arguments = ["data", "convert", "--format", "pdebench", source, "--output", tmp_path / "out"]
    out = good(run(*arguments))
    written = re.match(r"wrote (\S+)\n", out)[1]
    np.testing.assert_array_equal(load_well(written, 1).fields["density"], arrays["density"][1])
    good(run("data", "check", tmp_path / "out", "--read"))
    assert "expected no file, found one" in refused(*arguments)


def test_files_that_cannot_be_converted_are_refused_in_one_line(refused, run, tmp_path):
    source, _ = pdebench(tmp_path, 2)
    output = ["--output", tmp_path / "out"]
    assert "solution: expected a data set" in refused("data", "convert", "--format", "pdegym", source, *output)
    assert "gone.h5: expected a local HDF5 file" in refused(
        "data", "convert", "--format", "pdearena", "gone.h5", *output
    )
    result = run("data", "convert", "--format", "netcdf", source, *output)
    assert result.code == 2
    assert "'pdebench', 'pdearena', 'pdegym', 'bubbleml'" in result.err


# All of them


def test_bars_are_shown_on_a_terminal_only_and_leave_nothing_behind(run, folder, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    result = run("data", "check", "flow", "--read")
    assert result.code == 0
    assert "index:" in result.err
    assert re.search(r"read:.*/24 ", result.err)
    assert "\n" not in result.err.rstrip("\n")
    assert re.search(r"index:.*/2 ", run("data", "index", "flow").err)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_all_its_options(run, command):
    result = run("data", command, "--help")
    assert result.code == 0
    (found,) = [c for c in cli.data.app.registered_commands if (c.name or c.callback.__name__) == command]
    assert found.callback.__doc__.splitlines()[0] in " ".join(result.out.split())
    options = [line.strip(" │") for line in result.out.splitlines() if re.match(r"│ [* ] +-{2}", line)]
    assert all(re.search(r"  \S", line.partition("  ")[2].strip()) for line in options), options


def test_the_help_names_all_commands_and_wrong_ones_end_with_code_2(run):
    assert all(f" {command} " in run("data", "--help").out for command in COMMANDS)
    for wrong in ((), ("lst",), ("check",), ("check", "a", "--split", "all")):
        result = run("data", *wrong)
        assert result.code == 2
        assert "Traceback" not in result.err


def test_the_program_starts_without_readers_of_files_and_ends_with_the_code(folder):
    train(folder, "0.hdf5").write_text("no HDF5")
    code = "import sys; from walrus_hf import cli; print(*{'h5py', 'datasets', 'rich'} & {*sys.modules}); cli.main()"
    found = subprocess.run(
        [sys.executable, "-c", code, "data", "check", "flow"], capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 2, found.stderr
    first, *lines = found.stdout.splitlines()
    assert first == ""
    assert lines[0].startswith("error: flow/data/train/0.hdf5: expected a whole HDF5 file")
    assert found.stderr == ""
