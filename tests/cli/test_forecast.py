"""`walrus-hf forecast`: what it writes, and how it refuses."""

import json
import resource
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from walrus_hf import WalrusPipeline, load_well, save_well
from walrus_hf.cli import forecast as command
from walrus_hf.data import well_writer

from .conftest import program, simulation


@pytest.fixture
def forecast(file, model, tmp_path):
    """Arguments of a plain forecast of two steps."""
    return ["forecast", file, "--model", model, "--output", str(tmp_path / "out.hdf5"), "--steps", "2"]


# --- what it writes ------------------------------------------------------------------------------------------------


def test_a_forecast_continues_the_file(run, forecast, file, model, tmp_path):
    result = run(*forecast, "--trajectory", "1", "--seed", "3")
    assert result.code == 0, result.err
    assert "12 frames" not in result.out  # only the context is told
    assert "forecast from Trajectory(run_1: 6 frames of x=16 x y=16" in result.out
    assert f"wrote {tmp_path / 'out.hdf5'}: 2 frames from time 6 on" in result.out
    assert "VRMSE" not in result.out
    found = load_well(tmp_path / "out.hdf5")
    expected = WalrusPipeline.from_pretrained(model).predict(load_well(file, 1, 6), 2, seed=3, progress=False)
    for name, values in expected.fields.items():
        np.testing.assert_allclose(found.fields[name], values, rtol=1e-6)
    assert (found.num_frames, found.time, found.dt) == (2, 6.0, 0.5)


def test_frames_of_the_file_after_from_are_the_truth(run, forecast):
    result = run(*forecast, "--from", "6", "--steps", "8")
    assert result.code == 0, result.err
    assert "VRMSE against the file (persistence in brackets)" in result.out
    assert "velocity" in result.out
    assert "steps 1:6" in result.out  # 6 of the 8 steps have a truth


def test_frames_further_apart_are_read_forecast_and_compared(run, forecast, file, model, tmp_path):
    result = run(*forecast, "--from", "5", "--frame-stride", "3", "--seed", "3")
    assert result.code == 0, result.err
    found, given = load_well(tmp_path / "out.hdf5"), load_well(file)
    pipe = WalrusPipeline.from_pretrained(model)
    expected = pipe.predict(given.frames(1, 5), 2, seed=3, frame_stride=3, progress=False)  # frames 1 and 4
    np.testing.assert_allclose(found.fields["pressure"], expected.fields["pressure"], rtol=1e-6)
    assert (found.num_frames, found.time, found.dt) == (2, 3.5, 1.5)
    assert "steps 1:2" in result.out  # frames 7 and 10 of the 12 are the truth
    still = np.stack([given.fields["pressure"][4]] * 2)
    truth = given.fields["pressure"][[7, 10]]
    vrmse = np.sqrt(((still - truth) ** 2).mean((1, 2)) / truth.var((1, 2), ddof=1)).mean()
    assert f"({vrmse:.4f})" in result.out


def test_an_ensemble_is_written_with_its_members(run, forecast, tmp_path):
    assert run(*forecast, "--ensemble", "2").code == 0
    assert load_well(tmp_path / "out.hdf5").ensemble["pressure"].shape == (2, 2, 16, 16)


def test_new_frames_alone_are_computed_where_scales_are_held(run, forecast, file, model, tmp_path):
    assert run(*forecast, "--cache-steps", "2", "--seed", "3").code == 0
    pipe = WalrusPipeline.from_pretrained(model)
    expected = pipe.predict(load_well(file, 0, 6), 2, seed=3, use_cache=True, cache_steps=2, progress=False)
    np.testing.assert_allclose(
        load_well(tmp_path / "out.hdf5").fields["pressure"], expected.fields["pressure"], rtol=1e-6
    )


@pytest.mark.parametrize("suffix", [".png", ".gif"])
@pytest.mark.parametrize("first", [(), ("--from", "8")])
def test_a_picture_is_drawn_with_and_without_the_truth(run, forecast, tmp_path, suffix, first):
    picture = tmp_path / f"out{suffix}"
    result = run(*forecast, "--plot", picture, *first)
    assert result.code == 0, result.err
    assert f"wrote {picture}" in result.out
    assert picture.read_bytes()[:4] == {".png": b"\x89PNG", ".gif": b"GIF8"}[suffix]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["out.hdf5", picture.name])


def test_own_field_names_are_mapped(run, model, tmp_path):
    rng = np.random.default_rng(0)
    trajectory = simulation(rho=rng.random((4, 16, 16)), u=rng.random((4, 16, 16, 2)))
    own = save_well(trajectory, tmp_path / "own.hdf5")
    arguments = ["forecast", own, "--model", model, "--output", tmp_path / "out.hdf5", "-n", "1"]
    result = run(*arguments, "--field-name", "rho=density", "--field-name", "u=velocity")
    assert result.code == 0, result.err
    assert set(load_well(tmp_path / "out.hdf5").fields) == {"rho", "u"}


def test_overwrite_replaces_the_output(run, forecast, tmp_path):
    (tmp_path / "out.hdf5").write_text("old")
    assert run(*forecast, "--overwrite").code == 0
    assert load_well(tmp_path / "out.hdf5").num_frames == 2


def test_the_input_itself_may_be_overwritten_and_is_still_compared_with(run, model, tmp_path):
    own = save_well(simulation(), tmp_path / "own.hdf5")
    arguments = ["forecast", own, "--model", model, "--output", own, "-n", "2", "--from", "6", "--overwrite"]
    result = run(*arguments)
    assert result.code == 0, result.err
    assert "steps 1:2" in result.out


# --- bad input -----------------------------------------------------------------------------------------------------


def with_output(forecast, output):
    return [*forecast[:5], str(output), *forecast[6:]]


def with_file(forecast, file):
    return [forecast[0], str(file), *forecast[2:]]


def broken_file(tmp_path, kind) -> Path:
    """A file that no forecast can start from."""
    path = tmp_path / "broken.hdf5"
    rng = np.random.default_rng(0)
    if kind == "text":
        path.write_text("time,pressure\n")
    elif kind == "folder":
        path.mkdir()
    elif kind == "unknown field":
        save_well(simulation(presure=rng.random((4, 16, 16))), path)
    elif kind == "missing component":
        save_well(simulation(velocity_x=rng.random((4, 16, 16))), path)
    elif kind == "one frame":
        save_well(simulation(1), path)
    elif kind != "absent":
        save_well(simulation(4), path)
        with h5py.File(path, "r+") as content:
            _spoil(content, kind)
        if kind == "truncated":
            path.write_bytes(path.read_bytes()[:5000])
    return path


def _spoil(content, kind):
    fields, frame = content["t0_fields"], content["t0_fields/pressure"]
    if kind == "not a number":
        frame[0, 3, 2, 1] = np.nan
    elif kind == "infinite":
        frame[0, 3, 2, 1] = np.inf
    elif kind == "too large":
        frame[0, 3, 2, 1] = 1e30
    elif kind == "wrong rank":
        attributes = dict(frame.attrs)
        del fields["pressure"]
        fields["pressure"] = np.zeros((1, 4, 16, 16, 2), np.float32)
        fields["pressure"].attrs.update(attributes)
    elif kind == "half periodic":
        boundary = content["boundary_conditions/x_periodic"]
        boundary["mask"][-1] = False
    elif kind == "external link":
        content["t0_fields/secret"] = h5py.ExternalLink("/etc/passwd", "/x")
    elif kind == "virtual":
        layout = h5py.VirtualLayout(shape=(1, 4, 16, 16), dtype=np.float32)
        layout[...] = h5py.VirtualSource("/home/user/private.hdf5", "x", shape=(1, 4, 16, 16))
        fields.create_virtual_dataset("secret", layout)
    elif kind == "larger than declared":
        attributes = dict(frame.attrs)
        del fields["pressure"]
        fields.create_dataset("pressure", shape=(1, 4, 1 << 20, 1 << 20), dtype=np.float32, chunks=(1, 1, 64, 64))
        fields["pressure"].attrs.update(attributes)


BROKEN = {
    "text": "expected a whole HDF5 file",
    "folder": "expected an HDF5 file, found a directory",
    "absent": "expected an HDF5 file, found none; check the path",
    "truncated": "expected a whole HDF5 file",
    "unknown field": "unknown field 'presure': expected one of the model's 20 field names, perhaps 'pressure'",
    "missing component": "field 'velocity': its component 'y' is missing",
    "one frame": "expected at least 2 frames to forecast from, found 1",
    "not a number": "field 'pressure', frame 3: expected finite numbers, found 1 NaN or infinite",
    "infinite": "field 'pressure', frame 3: expected finite numbers",
    "too large": "field 'pressure': expected magnitudes up to 1e+18, found 1e+30",
    "wrong rank": "pressure: expected shape",
    "half periodic": "one side is periodic and the other is not",
    "external link": "found a link into '/etc/passwd'",
    "virtual": "found data kept in another file",
    "larger than declared": "expected",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_cannot_be_forecast_is_refused_in_one_line(refused, forecast, tmp_path, kind):
    broken = broken_file(tmp_path, kind)
    assert BROKEN[kind] in refused(*with_file(forecast, broken))


@pytest.mark.parametrize("kind", ["text", "unknown field", "not a number"])
def test_a_refused_forecast_leaves_an_old_output_alone_even_with_overwrite(refused, forecast, tmp_path, kind):
    (tmp_path / "out.hdf5").write_bytes(b"old")
    refused(*with_file(forecast, broken_file(tmp_path, kind)), "--overwrite")
    assert (tmp_path / "out.hdf5").read_bytes() == b"old"


def test_an_existing_output_or_picture_is_not_overwritten(refused, forecast, tmp_path):
    (tmp_path / "old.png").write_text("old")
    assert "old.png exists; choose another name, or replace it with --overwrite" in refused(
        *forecast, "--plot", tmp_path / "old.png"
    )
    (tmp_path / "out.hdf5").write_text("old")
    assert "out.hdf5 exists; choose another name, or replace it with --overwrite" in refused(*forecast)


def test_outputs_are_checked_before_anything_is_read(refused, forecast, tmp_path):
    nowhere = with_file(forecast, "gone.hdf5")
    (tmp_path / "folder.hdf5").mkdir()
    for output, message in (
        ("out.txt", "expected a file name ending in .hdf5 or .h5"),
        ("folder.hdf5", "expected a file name, found a folder"),
        ("gone/out.hdf5", "found none; create it first"),
    ):
        assert message in refused(*with_output(nowhere, tmp_path / output))
    assert "ending in .gif or .mp4 or .png" in refused(*nowhere, "--plot", tmp_path / "out.jpg")


def test_a_folder_without_write_permission_is_refused_before_anything_is_read(refused, forecast, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    message = refused(*with_file(forecast, "gone.hdf5"), code=1)
    assert "expected a folder that you may write to" in message


def test_missing_packages_for_pictures_are_told_before_the_forecast(refused, forecast, tmp_path, monkeypatch):
    monkeypatch.setattr("walrus_hf.cli.options.find_spec", lambda name: None)
    message = refused(*forecast, "--plot", tmp_path / "out.png")
    assert "pip install 'walrus-hf[plot]'" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--from", "1"), "--from 1: expected 2 to 12, the frames of"),
        (("--from", "13"), "--from 13: expected 2 to 12"),
        (("--from", "-3"), "--from -3: expected 2 to 12"),
        (("--trajectory", "2"), "--trajectory 2: expected 0 to 1"),
        (("--field-name", "rho"), "--field-name: expected OWN=KNOWN such as rho=density, found 'rho'"),
        (("--field-name", "Pressure=density"), "(pressure, velocity), found 'Pressure'"),
        (("--field-name", "pressure=presure"), "unknown field 'pressure' (as 'presure')"),
        (("--field-name", "pressure=velocity_x"), "velocity_x: given twice"),
        (("--tokens-per-axis", "0"), "at least one token"),
        (("--ensemble", "2", "--no-jitter"), "without jitter all members are equal"),
        (("--device", "abacus"), "expected one that this machine has, such as 'cpu', found 'abacus'"),
        (("--device", "meta"), "found 'meta' (it holds no numbers)"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_one_line(refused, forecast, options, message):
    assert message in refused(*forecast, *options)


def test_checkpoints_that_cannot_be_used_are_refused_in_one_line(refused, forecast, tmp_path):
    def with_model(name):
        return [*forecast[:3], str(name), *forecast[4:]]

    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert "expected a checkpoint of model type 'walrus', found 'bert'" in refused(*with_model(tmp_path))
    assert "expected the folder of a checkpoint, found none" in refused(*with_model(tmp_path / "gone"))
    assert "expected the folder of a checkpoint, found a file" in refused(*with_model(tmp_path / "config.json"))
    hub = refused(*with_model("nobody/nothing"))
    assert "nobody/nothing: expected a folder or a Hub repository with a Walrus checkpoint" in hub


# --- the machine fails ---------------------------------------------------------------------------------------------


def disk_full(*arguments, **kwargs):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("old", [False, True])
def test_a_full_disk_is_told_in_one_line_with_code_1(run, forecast, tmp_path, monkeypatch, old):
    if old:
        (tmp_path / "out.hdf5").write_bytes(b"old")
    monkeypatch.setattr(well_writer, "_write", disk_full)
    result = run(*forecast, *["--overwrite"] * old)
    assert result.code == 1
    last = result.err.splitlines()[-1]
    assert "out.hdf5: expected to write the file, found" in last
    assert "No space left on device" in last
    assert "Traceback" not in result.err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == ({"out.hdf5": b"old"} if old else {})


def test_a_disk_that_is_full_before_the_picture_keeps_the_forecast(run, forecast, tmp_path, monkeypatch):
    (tmp_path / "out.png").write_bytes(b"old")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", disk_full)
    result = run(*forecast, "--plot", tmp_path / "out.png", "--overwrite")
    assert result.code == 1
    assert "out.png: expected to write the file, found No space left" in result.err.splitlines()[-1]
    assert (tmp_path / "out.png").read_bytes() == b"old"
    assert load_well(tmp_path / "out.hdf5").num_frames == 2


def test_too_little_memory_is_told_in_one_line_with_code_1(run, forecast, monkeypatch):
    def no_memory(*arguments, **kwargs):
        raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB.\nSee documentation")

    monkeypatch.setattr(WalrusPipeline, "predict", no_memory)
    result = run(*forecast)
    assert result.code == 1
    assert result.err.startswith("error: not enough memory; a smaller grid, --tokens-per-axis or --ensemble needs less")
    assert result.err.count("\n") == 1


def test_a_bug_still_shows_its_traceback(run, forecast, monkeypatch):
    def bug(*arguments, **kwargs):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(command, "load_pipeline", bug)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run(*forecast)


def test_the_program_itself_fails_in_one_line(forecast, tmp_path):
    broken = program(*with_file(forecast, broken_file(tmp_path, "text")))
    assert (broken.returncode, broken.stdout) == (2, "")
    assert broken.stderr.startswith("error: ")
    assert broken.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["broken.hdf5"]


def test_a_disk_that_is_really_full_ends_the_program_with_code_1(forecast, tmp_path):
    full = program(*forecast, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)))
    assert "out.hdf5: expected to write the file" in full.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
    assert "Traceback" not in full.stderr
    assert full.returncode == 1


def test_consecutive_frames_are_warned_of_where_a_model_was_fine_tuned_on_others(run, file, model, tmp_path):
    settings = shutil.copytree(model, tmp_path / "tuned") / "preprocessor_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"trained_stride": 4}))
    done = run("forecast", file, "--model", tmp_path / "tuned", "--output", tmp_path / "out.hdf5", "--steps", "1")
    assert done.code == 0
    assert "warning: the model was fine-tuned on frames 4 apart and is given consecutive ones" in done.err
    assert "--frame-stride 4 of walrus-hf forecast" in done.err
