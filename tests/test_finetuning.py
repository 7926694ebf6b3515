"""`fit` returns a new pipeline that forecasts what was trained, saves and reloads it, and resumes where it stopped."""

import dataclasses
import json
import os
import shutil
import signal
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import DistributedType
from safetensors.torch import load, save

from walrus_hf import Trajectory, WalrusPipeline, finetuning_results, save_well
from walrus_hf.curves import training_curves
from walrus_hf.data.statistics import RunningStatistics, write_stats
from walrus_hf.evaluation import Protocol, evaluate
from walrus_hf.finetuning import fit
from walrus_hf.finetuning_data import open_data
from walrus_hf.finetuning_results import read_results
from walrus_hf.model_card import error_rows
from walrus_hf.training.records import read_metrics

from .cli.conftest import simulation
from .data.wells import write_source
from .finetuning_runs import NAMES, QUICK, RUNS, decaying, write_base
from .small_model import small_model

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return write_base(tmp_path_factory.mktemp("finetuning") / "base")


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """As without matplotlib; tests/cli/test_finetune.py has them drawn."""
    monkeypatch.setattr("walrus_hf.finetuning_results.find_spec", lambda name: None)


@pytest.fixture
def base(folder) -> WalrusPipeline:
    return WalrusPipeline.from_pretrained(folder)


def forecast(pipe: WalrusPipeline, given: Trajectory = RUNS[0], steps: int = 2, **kwargs) -> np.ndarray:
    return pipe.predict(given, steps, seed=0, progress=False, **kwargs).fields["pressure"]


def results(path) -> dict:
    return json.loads((path / "results.json").read_text())


# Blocks alone can do little for a base whose decoder knows nothing.
@pytest.mark.parametrize(
    ("method", "rate", "share"), [("lora", 0.1, 0.998), ("full", 0.01, 0.98), ("head", 0.05, 0.95)]
)
def test_training_gives_a_better_model_that_is_saved_and_leaves_the_base_alone(base, tmp_path, method, rate, share):
    before = {name: p.clone() for name, p in base.model.state_dict().items()}
    tuned = fit(
        base,
        RUNS,
        tmp_path / "out",
        method=method,
        **{**QUICK, "max_steps": 20, "validation_steps": 20, "learning_rate": rate},
    )
    assert all(torch.equal(p, before[name]) for name, p in base.model.state_dict().items())
    assert all(p.requires_grad for p in base.model.parameters())
    found = results(tmp_path / "out")
    assert found["vrmse"]["after"] < share * found["vrmse"]["before"]
    assert found["rollout_vrmse"]["after"][0] < found["rollout_vrmse"]["before"][0]
    assert np.abs(forecast(tuned) - forecast(base)).max() > 1e-3
    np.testing.assert_array_equal(forecast(WalrusPipeline.from_pretrained(tmp_path / "out")), forecast(tuned))
    weights = {"lora": "adapter_model.safetensors"}.get(method, "model.safetensors")
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {weights, "README.md", "preprocessor_config.json", "metrics.jsonl"} <= written
    assert not {"checkpoints", ".result"} & written
    card = (tmp_path / "out" / "README.md").read_text()
    assert "decay_0" in card
    assert ("preset `all-linear`, rank `" in card) == ("rank `" in card) == (method == "lora")


def test_the_card_tells_the_learning_rate_that_was_used(base, tmp_path):
    fit(base, RUNS, tmp_path / "out", **{**QUICK, "learning_rate": None})
    assert "learning_rate `0.001`" in (tmp_path / "out" / "README.md").read_text()


def test_the_card_tells_how_many_of_the_held_out_windows_were_scored(base, tmp_path):
    for batches, told in ((2, "one step, 4 of 7 held-out windows"), (4, "one step, all 7 held-out windows")):
        fit(base, RUNS, tmp_path / str(batches), **{**QUICK, "validation_batches": batches})
        assert f"| {told} |" in (tmp_path / str(batches) / "README.md").read_text()


def test_the_results_of_forecasts_that_are_not_finite_are_valid_json(base, tmp_path, monkeypatch):
    predict = WalrusPipeline.predict

    def broken(self, *args, **kwargs):
        forecast = predict(self, *args, **kwargs)
        forecast.fields["pressure"][1:] = np.nan
        return forecast

    monkeypatch.setattr(WalrusPipeline, "predict", broken)
    fit(base, RUNS, tmp_path / "out", **QUICK)
    assert "NaN" not in (tmp_path / "out" / "results.json").read_text()
    found = read_results(tmp_path / "out")
    assert found["rollout_vrmse"]["after"][0] > 0
    assert found["rollout_vrmse"]["after"][1] is None
    assert error_rows(found)[2][1:3] == ("inf", "inf")
    assert "| forecast, step 2 | inf | inf |" in (tmp_path / "out" / "README.md").read_text()


def test_the_head_alone_is_trained_if_that_is_asked_for(base, tmp_path):
    tuned = fit(base, RUNS, method="head", **QUICK)
    changed = [n for n, p in tuned.model.named_parameters() if not torch.equal(p, base.model.get_parameter(n))]
    assert changed
    assert all(name.startswith("decoder.planar.") for name in changed), changed


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(folder, tmp_path, monkeypatch):
    settings = {**QUICK, "max_steps": 4, "validation_steps": 2, "save_steps": 1, "gradient_accumulation_steps": 2}
    whole = fit(folder, RUNS, tmp_path / "whole", **settings)
    from walrus_hf import finetuning_loop

    step = finetuning_loop.Tuning._step

    def interrupted(self, number):
        row = step(self, number)
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return row

    monkeypatch.setattr(finetuning_loop.Tuning, "_step", interrupted)
    fit(folder, RUNS, tmp_path / "cut", **settings)
    assert not (tmp_path / "cut" / "results.json").exists()
    assert list((tmp_path / "cut" / "checkpoints").glob("step-00000003"))
    size = sum(file.stat().st_size for file in (tmp_path / "cut" / "checkpoints").rglob("model.safetensors"))
    assert size < 0.5 * os.path.getsize(os.path.join(folder, "model.safetensors")), "the base does not belong in there"
    monkeypatch.setattr(finetuning_loop.Tuning, "_step", step)
    other = WalrusPipeline.from_pretrained(folder)
    with torch.no_grad():
        other.model.model.layers[0].time_attention.q_proj.weight.add_(1.0)
    other.save_pretrained(tmp_path / "other")
    for start, data, changes, message in (
        (folder, RUNS, {"learning_rate": 0.5}, r"expected a run with learning_rate 0\.01, found another"),
        (folder, RUNS[:-1], {}, "expected a run with its data, its validation, found another; resume with the same"),
        (folder, [decaying(seed + 1) for seed in range(4)], {}, "expected a run with its data, its validation, found"),
        (tmp_path / "other", RUNS, {}, "expected a run with its base, found another"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(start, data, tmp_path / "cut", resume=True, **{**settings, **changes})
    rest = fit(folder, RUNS, tmp_path / "cut", resume=True, **settings)
    for (name, one), other in zip(whole.model.state_dict().items(), rest.model.state_dict().values()):
        assert torch.equal(one, other), name
    for what in ("validations", "rollout_vrmse", "best_step"):
        assert results(tmp_path / "whole")[what] == results(tmp_path / "cut")[what]
    rows = [(tmp_path / run / "metrics.jsonl").read_text().splitlines() for run in ("whole", "cut")]
    assert [json.loads(row)["loss"] for row in rows[0]] == [json.loads(row)["loss"] for row in rows[1]]


def test_a_run_that_was_killed_while_it_wrote_its_results_can_finish(folder, tmp_path, monkeypatch):
    def killed(path, content):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(finetuning_results, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            fit(folder, RUNS, tmp_path / "out", **QUICK)
    fit(folder, RUNS, tmp_path / "out", resume=True, **QUICK)
    assert results(tmp_path / "out")["steps"] == QUICK["max_steps"]
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) == QUICK["max_steps"]
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_without_progress_the_run_ends_early_with_the_best_weights(base, tmp_path):
    settings = {**QUICK, "max_steps": 30, "validation_steps": 1, "patience": 2, "learning_rate": 30.0}
    tuned = fit(base, RUNS, tmp_path / "out", method="full", **settings)
    found = results(tmp_path / "out")
    assert (found["steps"], found["best_step"]) == (2, 0)
    for name, parameter in tuned.model.named_parameters():
        assert torch.equal(parameter, base.model.get_parameter(name)), name


def test_the_metrics_of_a_run_are_shown_as_curves(folder, tmp_path):
    fit(folder, RUNS, tmp_path / "out", **QUICK, validation_steps=1)
    curves = training_curves(read_metrics(tmp_path / "out"))["validation VRMSE"]
    expected = results(tmp_path / "out")["validations"][1:]  # the first one was before any step
    for name, score in (("held-out data", "vrmse"), ("held-out data, persistence", "persistence")):
        np.testing.assert_array_equal(curves[name], [[1, 2], [row[score] for row in expected]])


def test_a_new_field_is_trained_beside_the_adapter_and_old_columns_stay(folder, base, tmp_path):
    runs = [
        Trajectory({**run.fields, "smoke": run.fields["pressure"][:, ::-1].copy()}, run.boundary_conditions)
        for run in RUNS
    ]
    tuned = fit(folder, runs, tmp_path / "out", new_fields={"smoke": "pressure"}, preset="attention-mlp", **QUICK)
    loaded = WalrusPipeline.from_pretrained(tmp_path / "out")
    for pipe in (tuned, loaded):
        given = pipe.predict(runs[0], 2, seed=0, progress=False)
        assert given.fields["smoke"].shape == (2, 16, 24)
    np.testing.assert_array_equal(forecast(loaded, runs[0]), forecast(tuned, runs[0]))
    from safetensors.torch import load_file

    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    columns = {name: tensor for name, tensor in stored.items() if "lora_" not in name}
    assert all("new_columns" in name for name in columns), list(columns)
    assert {tensor.shape[1] for name, tensor in columns.items() if name.endswith("weight")} == {1}
    trained = [name for name in columns if "planar" in name]
    like = small_columns(base, trained)
    assert any(not torch.allclose(columns[name], like[name], atol=1e-6) for name in trained)
    merged = loaded.merge_adapter()
    np.testing.assert_allclose(forecast(merged, runs[0]), forecast(tuned, runs[0]), rtol=1e-4, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    again = WalrusPipeline.from_pretrained(tmp_path / "merged")
    np.testing.assert_array_equal(forecast(again, runs[0]), forecast(merged, runs[0]))
    assert again.model.config.num_separate_fields == 0


def small_columns(base: WalrusPipeline, names: list[str]) -> dict[str, torch.Tensor]:
    """What the columns of a field like the pressure start as."""
    scale = ((len(NAMES) - 3) / (len(NAMES) - 2)) ** 0.5
    found = {}
    for name in names:
        plain = name.removeprefix("base_model.model.").replace("new_columns.", "")
        tensor = base.model.get_parameter(plain)
        found[name] = tensor[3:4] if tensor.ndim == 1 else tensor[:, 3:4] * (scale if "embeddings" in name else 1.0)
    return found


@pytest.mark.parametrize("method", ["lora", "full"])
def test_rotary_frequencies_and_absolute_positions_are_learnt_saved_and_loaded(folder, tmp_path, method):
    tuned = fit(
        folder, RUNS, tmp_path / "out", method=method, rope_learnable="per_axis", absolute_position=True, **QUICK
    )
    assert tuned.model.config.rope_learnable == "per_axis"
    parameters = {name: p for name, p in tuned.model.named_parameters() if p.requires_grad}
    assert any("rotary_frequencies" in name for name in parameters)
    assert any("absolute_position" in name for name in parameters)
    loaded = WalrusPipeline.from_pretrained(tmp_path / "out")
    np.testing.assert_array_equal(forecast(loaded), forecast(tuned))


def test_global_scales_are_measured_at_the_stride_stored_and_used(folder, tmp_path):
    tuned = fit(folder, RUNS, tmp_path / "out", normalization="global", frame_stride=2, **QUICK)
    scales = WalrusPipeline.from_pretrained(tmp_path / "out").processor.global_scales
    seen = np.stack([run.fields["pressure"] for run in RUNS[:3]])
    assert scales["rms"]["pressure"] == pytest.approx(np.sqrt((seen**2).mean()), rel=1e-5)
    changes = seen[:, 2:] - seen[:, :-2]
    assert scales["rms_delta"]["pressure"] == pytest.approx(np.sqrt((changes**2).mean()), rel=1e-5)
    assert len(scales["rms_delta"]["velocity"]) == 2
    faint = RUNS[0].frames(0)
    faint.fields = {name: 1e-3 * values for name, values in faint.fields.items()}
    apart = np.abs(forecast(tuned, faint, 1, frame_stride=2) - faint.fields["pressure"][-1]).max()
    assert apart > 1e-3, "changes are in units of the data, not of the given frames"


def test_scales_come_from_a_stats_file_too(folder, tmp_path):
    statistics = RunningStatistics(2)
    statistics.add_trajectory_part(RUNS[0].fields)
    file = write_stats(statistics.as_stats(), tmp_path / "stats.yaml")
    tuned = fit(folder, RUNS, normalization=str(file), **QUICK)
    assert tuned.processor.global_scales["rms"]["pressure"] == pytest.approx(statistics.as_stats()["rms"]["pressure"])
    with pytest.raises(ValueError, match="take 'global'"):
        fit(folder, RUNS, normalization=str(file), frame_stride=2, **QUICK)
    with pytest.raises(ValueError, match=r"expected 'sample', 'global' or the path of a stats.yaml, found 'gone.yaml'"):
        fit(folder, RUNS, normalization="gone.yaml", **QUICK)


@pytest.mark.parametrize("from_base", [False, True])
def test_a_stats_file_is_refused_where_the_model_reads_logarithms(folder, tmp_path, from_base):
    runs = [Trajectory({"C": np.exp(run.fields["pressure"])}, run.boundary_conditions) for run in RUNS]
    statistics = RunningStatistics(2)
    statistics.add_trajectory_part(runs[0].fields)
    settings = {**QUICK, "normalization": str(write_stats(statistics.as_stats(), tmp_path / "stats.yaml"))}
    base = WalrusPipeline.from_pretrained(folder)
    if from_base:
        base.processor.log_fields = ["C"]
    else:
        settings["log_fields"] = ["C"]
    with pytest.raises(
        ValueError, match=r"reads the logarithm of C \(log_fields\); take 'global', which measures that"
    ):
        fit(base, runs, **settings)
    scales = fit(base, runs, **{**settings, "normalization": "global"}).processor.global_scales
    logs = np.stack([np.log10(run.fields["C"]) for run in runs[:3]])
    assert scales["rms"]["C"] == pytest.approx(np.sqrt((logs**2).mean()), rel=1e-5)


def test_two_frames_a_stride_and_obstacles_work_in_training_and_in_forecasts(folder):
    mask = np.zeros((16, 24), dtype=bool)
    mask[4:8, 6:12] = True
    runs = [decaying(seed, obstacle_mask=mask) for seed in range(3)]
    tuned = fit(folder, runs, **{**QUICK, "frames": 2, "frame_stride": 3})
    assert tuned.processor.context_frames == 2
    found = tuned.predict(runs[0], 2, seed=0, progress=False, frame_stride=3)
    assert (found.dt, found.num_frames) == (3.0, 2)
    assert np.all(found.fields["pressure"][:, mask] == 0)
    long = decaying(0, 20, obstacle_mask=mask)
    assert tuned.evaluate(tuned.predict(long.frames(0, 10), 3, seed=0, frame_stride=3, progress=False), long)


def test_a_model_that_learnt_frames_farther_apart_warns_of_consecutive_ones(folder, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(folder, RUNS, tmp_path / "out", **{**QUICK, "frames": 2, "frame_stride": 3})
    assert not [warning for warning in caught if "frames 3 apart" in str(warning.message)]  # its own are thinned
    tuned = WalrusPipeline.from_pretrained(tmp_path / "out")
    with pytest.warns(UserWarning, match=r"fine-tuned on frames 3 apart and is given consecutive ones.*frame_stride=3"):
        forecast(tuned)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the model was fine-tuned on frames")
        for stride in (1, 3):
            forecast(tuned, frame_stride=stride)
        forecast(tuned, adapter="base")
        forecast(fit(folder, RUNS, **QUICK))
    with pytest.raises(ValueError, match="frame_stride of at least 1, found None and 0"):
        forecast(tuned, frame_stride=0)


def test_an_evaluation_of_such_a_model_says_so(folder, tmp_path):
    pytest.importorskip("pandas")
    data = save_well(RUNS, tmp_path / "runs.hdf5")
    pipe, protocol = WalrusPipeline.from_pretrained(folder), Protocol(start=3, steps=1, windows={"1": (1, 1)})
    notes = []
    for stride in (1, 3):
        pipe.processor.trained_stride = stride
        notes.append(" ".join(evaluate(pipe, data, protocol=protocol, progress=False)["scenarios"]["runs"]["notes"]))
    assert ["fine-tuned on frames 3 apart" in found for found in notes] == [False, True]


def test_a_nan_stops_the_run_with_its_file_and_place(folder, tmp_path):
    runs = [simulation(seed=seed) for seed in range(3)]
    runs[1].fields["pressure"][7, 3, 3] = np.nan
    with pytest.raises(ValueError, match=r"trajectory 1, window of frames \d+ to \d+: field 'pressure', frame"):
        fit(folder, runs, **{**QUICK, "max_steps": 30})
    import h5py

    file = save_well([simulation(seed=seed) for seed in range(3)], tmp_path / "bad.hdf5")
    with h5py.File(file, "r+") as opened:
        opened["t0_fields/pressure"][1, 7, 3, 3] = np.nan
    with pytest.raises(ValueError, match=r"bad.hdf5, trajectory 1"):
        fit(folder, file, **{**QUICK, "max_steps": 30})


def test_unknown_fields_are_all_named_with_near_ones_and_the_remedy(folder):
    run = Trajectory({"presure": np.ones((8, 16, 16)), "wind": np.ones((8, 16, 16, 2))}, {"x": "open", "y": "open"})
    with pytest.raises(ValueError, match=r"'presure' \(perhaps 'pressure'\); 'wind'") as error:
        fit(folder, [run, run], **QUICK)
    assert "--field-name presure=NAME" in str(error.value)
    assert "--new-field presure" in str(error.value)
    named = {"presure": "pressure", "wind": "velocity"}
    moving = [
        Trajectory({"presure": r.fields["pressure"], "wind": r.fields["velocity"]}, r.boundary_conditions) for r in RUNS
    ]
    assert fit(folder, moving, field_names=named, **QUICK).processor.field_names == named


REFUSED = {
    "a method": ({"method": "magic"}, "method: expected one of lora, full, head"),
    "a preset": ({"preset": "nose"}, "preset: expected one of attention"),
    "one frame": ({"frames": 1}, "frames: expected a whole number of at least 2, found 1"),
    "a number in quotes": ({"max_steps": "3"}, "max_steps: expected a whole number of at least 1, found '3'"),
    "half a step": ({"save_steps": 0.5}, "save_steps: expected a whole number of at least 1, found 0.5"),
    "no batch": ({"batch_size": None}, "batch_size: expected a whole number of at least 1, found None"),
    "no learning": ({"learning_rate": 0.0}, "learning_rate: expected a number above 0, found 0.0"),
    "a rate in quotes": ({"learning_rate": "1e-3"}, "learning_rate: expected a number above 0, found '1e-3'"),
    "a negative norm": ({"max_grad_norm": -1.0}, "max_grad_norm: expected a number above 0, found -1.0"),
    "a negative decay": ({"weight_decay": -1.0}, "weight_decay: expected a number of at least 0, found -1.0"),
    "a list of pairs": ({"field_names": ["a=b"]}, r"field_names: expected a dictionary, found \['a=b'\]"),
    "too many frames": ({"frames": 12}, "expected at least 13 frames for 12 input frames 1 apart"),
    "four bits of all weights": ({"quantization": "4bit", "method": "full"}, "quantization: expected method 'lora'"),
    "a preset of no adapter": (
        {"method": "full", "preset": "dora"},
        "preset, rank, lora: expected method 'lora' beside them, found 'full', .*; leave them out",
    ),
    "a rank of no adapter": ({"method": "head", "rank": 4}, "preset, rank, lora: expected method 'lora' beside them"),
    "settings of no adapter": ({"method": "head", "lora": {"lora_dropout": 0.1}}, "found 'head', which trains no"),
    "a new field that is not there": ({"new_fields": {"soot": None}}, r"new_fields: expected fields of the data"),
    "a misspelt name": (
        {"field_names": {"presure": "C"}},
        r"field_names: expected fields of the data \(pressure, velocity\), perhaps 'pressure', found 'presure'",
    ),
    "a misspelt logarithm": ({"log_fields": ["presure"]}, "log_fields: expected .*perhaps 'pressure', found 'presure'"),
    "letters": ({"log_fields": "pressure"}, r"log_fields: expected a list of names such as \['pressure'\], found"),
    "a like that is not known": ({"new_fields": {"pressure": "x"}, "field_names": {"pressure": "p"}}, "like: expected"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused_before_training(base, case):
    settings, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        fit(base, RUNS, **{**QUICK, **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_step": 3}, "fit: expected known settings, perhaps 'max_steps'.*, found 'max_step'"),
        ({"lora": {"lora_dropuot": 0.1}}, "lora: expected known settings, perhaps 'lora_dropout'.*, found"),
    ],
)
def test_misspelt_settings_are_refused_with_near_ones(settings, message):
    with pytest.raises(TypeError, match=message):
        fit("no model is looked for", RUNS, **settings)


@pytest.mark.parametrize("settings", [{"quantization": "4bit"}, {"optimizer": "adamw-8bit"}])
def test_few_bits_need_bitsandbytes(base, settings, monkeypatch):
    monkeypatch.setattr("walrus_hf.finetuning.find_spec", lambda name: None)
    (name, value), *_ = settings.items()
    with pytest.raises(ImportError, match=f"{name}: {value} needs bitsandbytes"):
        fit(base, RUNS, **settings, **QUICK)


@pytest.mark.parametrize(
    ("kind", "known", "launched", "message"),
    [
        (DistributedType.FSDP, 2, 2, r"found FSDP; launch it with .*ddp\.yaml"),
        (DistributedType.MULTI_CPU, 2, 1, "make an Accelerator"),
        (DistributedType.NO, 1, 2, "expected 2 processes that work together"),
    ],
)
def test_processes_that_share_a_model_or_do_not_know_of_each_other_are_refused(
    monkeypatch, folder, kind, known, launched, message
):
    monkeypatch.setenv("WORLD_SIZE", str(launched))
    found = SimpleNamespace(distributed_type=kind, num_processes=known)
    monkeypatch.setattr("walrus_hf.finetuning.Accelerator", lambda **_: found)
    with pytest.raises(ValueError, match=message):
        fit(folder, RUNS, **QUICK)


def contents(folder) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_an_output_folder_with_something_in_it_is_kept(folder, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    for settings, expected in (({}, "empty folder"), ({"overwrite": True}, "empty"), ({"resume": True}, "interrupted")):
        with pytest.raises(FileExistsError, match=f"expected an {expected}.*, found other files; choose another one$"):
            fit(folder, RUNS, tmp_path, **settings, **QUICK)
    assert contents(tmp_path) == {"README.md": b"mine"}


def test_a_first_start_that_may_resume_takes_a_folder_that_holds_logs_alone(folder, tmp_path):
    (tmp_path / "slurm-1.out").write_text("started")
    fit(folder, RUNS, tmp_path, resume=True, **QUICK)
    assert read_results(tmp_path) is not None
    assert (tmp_path / "slurm-1.out").read_text() == "started"
    assert not list(tmp_path.glob("*checkpoints*"))


def test_a_run_may_be_resumed_on_a_copy_of_its_data(tmp_path):
    first = write_source(tmp_path / "a", files=1)
    shutil.copytree(first, tmp_path / "copy" / "a")
    one, other = (open_data(str(place)).identity() for place in (first, tmp_path / "copy" / "a"))
    assert one == other


@pytest.mark.parametrize("settings", [{"resume": True}, {"overwrite": True}])
def test_the_folder_of_the_base_is_no_place_for_the_result(folder, tmp_path, settings):
    base = tmp_path / "base"
    shutil.copytree(folder, base)
    (base / "checkpoints").mkdir()
    before = contents(base)
    for model in (base, WalrusPipeline.from_pretrained(base)):
        with pytest.raises(ValueError, match="expected another folder than the model's own, which is never changed"):
            fit(model, RUNS, base, method="full", **settings, **QUICK)
    assert contents(base) == before
    assert (base / "checkpoints").is_dir()


def test_a_former_run_stays_until_another_one_can_replace_it(folder, tmp_path):
    out = tmp_path / "out"
    fit(folder, RUNS, out, **QUICK)
    (out / "checkpoints").mkdir()
    (out / "checkpoints" / "kept").write_text("of a run that was interrupted")
    before = contents(out)
    spoilt = [decaying(seed) for seed in range(4)]
    spoilt[-1].fields["pressure"][0, 0, 0] = np.nan  # where the forecasts before the first step begin
    for data, changes in (
        (tmp_path / "gone.hdf5", {}),
        (RUNS, {"preset": "nose"}),
        (RUNS, {"normalization": "gone.yaml"}),
        (RUNS, {"frames": 30}),
        (spoilt, {}),
    ):
        with pytest.raises((ValueError, FileNotFoundError)):
            fit(folder, data, out, overwrite=True, **{**QUICK, **changes})
        assert contents(out) == before
    fit(folder, RUNS, out, overwrite=True, **{**QUICK, "max_steps": 1})
    assert results(out)["steps"] == 1
    assert not (out / "checkpoints").exists()


@pytest.mark.parametrize(("first", "second"), [("lora", "full"), ("full", "lora")])
def test_of_a_result_that_was_replaced_nothing_is_loaded_any_more(folder, tmp_path, first, second):
    out = tmp_path / "out"
    fit(folder, RUNS, out, method=first, **QUICK)
    (out / "model-00001-of-00002.safetensors").write_text("a shard of former weights")
    (out / "notes.txt").write_text("mine")
    tuned = fit(folder, RUNS, out, method=second, overwrite=True, **QUICK)
    np.testing.assert_array_equal(forecast(WalrusPipeline.from_pretrained(out)), forecast(tuned))
    fit(folder, RUNS, tmp_path / "new", method=second, **QUICK)
    assert {*contents(out)} - {*contents(tmp_path / "new")} == {"notes.txt"}


def test_a_run_that_replaces_another_goes_on_after_a_stop_and_leaves_the_old_result_until_then(
    folder, tmp_path, monkeypatch
):
    from walrus_hf import finetuning_loop

    settings = {**QUICK, "max_steps": 3, "save_steps": 1}
    out, step = tmp_path / "out", finetuning_loop.Tuning._step
    old = fit(folder, RUNS, out, **QUICK)

    def interrupted(self, number):
        row = step(self, number)
        os.kill(os.getpid(), signal.SIGTERM)
        return row

    monkeypatch.setattr(finetuning_loop.Tuning, "_step", interrupted)
    fit(folder, RUNS, out, overwrite=True, **settings)
    monkeypatch.setattr(finetuning_loop.Tuning, "_step", step)
    assert read_results(out) is None, "the run has not finished"
    np.testing.assert_array_equal(forecast(WalrusPipeline.from_pretrained(out)), forecast(old))
    with pytest.raises(FileExistsError, match=r"found an interrupted run; .*--overwrite\), or go on with resume=True"):
        fit(folder, RUNS, out, **settings)
    rest = fit(folder, RUNS, out, resume=True, **settings)
    assert read_results(out)["steps"] == 3
    np.testing.assert_array_equal(forecast(WalrusPipeline.from_pretrained(out)), forecast(rest))


def test_a_base_that_was_loaded_from_nowhere_cannot_be_named_by_an_adapter(tmp_path):
    model = small_model(field2id={name: i for i, name in enumerate(NAMES)})
    with pytest.raises(ValueError, match="save it with save_pretrained and load it"):
        fit(model, RUNS, tmp_path / "out", **QUICK)
    assert isinstance(fit(model, RUNS, **QUICK), WalrusPipeline)


def test_a_single_trajectory_is_split_in_time(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert fit(folder, decaying(0, 24), **QUICK).processor.context_frames == 3
    with pytest.raises(ValueError, match="give other data to validate on"):
        fit(folder, decaying(0, 6), **QUICK)


def test_an_adapter_of_another_base_is_refused_by_its_fingerprint(folder, tmp_path):
    fit(folder, RUNS, tmp_path / "out", **QUICK)
    shutil.copytree(folder, tmp_path / "other")
    other = small_model(seed=5, field2id={name: i for i, name in enumerate(NAMES)}, initializer_range=0.5)
    other.save_pretrained(tmp_path / "other")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == folder
    config["base_model_name_or_path"] = str(tmp_path / "other")
    (tmp_path / "out" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"found another one in .*other \(other values in"):
        WalrusPipeline.from_pretrained(tmp_path / "out")


def test_without_an_adapter_the_forecast_is_the_bases_whatever_the_adapter_changed(folder, base, tmp_path):
    """Scales, names of fields, the smallest scale, and positions that are bound to one grid."""
    runs = [Trajectory({"p": run.fields["pressure"]}, run.boundary_conditions) for run in RUNS]
    settings = {"normalization": "global", "field_names": {"p": "pressure"}, "absolute_position": True}
    tuned = fit(folder, runs, tmp_path / "out", **settings, **QUICK)
    loaded, beside = (WalrusPipeline.from_pretrained(name) for name in (tmp_path / "out", folder))
    beside.load_adapter(tmp_path / "out", "mine")
    faint = {name: 1e-6 * values for name, values in RUNS[0].fields.items()}
    for given in (RUNS[0], Trajectory(faint, RUNS[0].boundary_conditions), decaying(1, grid=(24, 32))):
        expected = forecast(base, given)
        for pipe in (tuned, loaded, beside):
            np.testing.assert_array_equal(forecast(pipe, given, adapter="base"), expected)
    smallest = [pipe.model.config.scale_eps for pipe in (base, tuned, loaded, beside)]
    assert smallest == [1e-5, 1e-8, 1e-8, 1e-8]
    for pipe in (loaded, beside):
        np.testing.assert_array_equal(
            *(one.predict(runs[0], 2, seed=0, progress=False).fields["p"] for one in (pipe, tuned))
        )


def test_a_pipeline_is_as_before_where_an_adapter_cannot_be_loaded(folder, base, tmp_path):
    runs = [dataclasses.replace(run, fields={**run.fields, "smoke": run.fields["pressure"]}) for run in RUNS]
    for name, seed in (("out", 1), ("good", 1)):
        fit(folder, runs, tmp_path / name, new_fields={"smoke": "pressure"}, seed=seed, absolute_position=True, **QUICK)
    weights = tmp_path / "out" / "adapter_model.safetensors"
    whole = weights.read_bytes()
    for start in (folder, tmp_path / "good"):
        pipe = WalrusPipeline.from_pretrained(start)
        settings, expected = pipe.model.config.to_dict() if start == folder else None, forecast(pipe)
        for damage in (whole[:100], save({name: values[:1] for name, values in load(whole).items()})):
            weights.write_bytes(damage)
            with pytest.raises(ValueError, match="expected an adapter for this base, found one that cannot be loaded"):
                pipe.load_adapter(tmp_path / "out", "mine")
            np.testing.assert_array_equal(forecast(pipe), expected)
        if start == folder:
            assert pipe.model.config.to_dict() == settings
            assert pipe.adapter_record is None
            names = {name for name, _ in base.model.named_parameters()}
            assert {name for name, p in pipe.model.named_parameters() if p.requires_grad} == names
        weights.write_bytes(whole)
        pipe.load_adapter(tmp_path / "out", "mine")
        np.testing.assert_array_equal(
            *(one.predict(runs[0], 2, seed=0, progress=False, adapter=name).fields["smoke"]
              for one, name in ((pipe, "mine"), (WalrusPipeline.from_pretrained(tmp_path / "out"), None)))
        )  # fmt: skip


def test_an_evaluation_reads_data_as_the_active_adapter_does(folder, tmp_path):
    pytest.importorskip("pandas")
    data = save_well(
        [Trajectory({"p": run.fields["pressure"]}, run.boundary_conditions) for run in RUNS], tmp_path / "p.hdf5"
    )
    fit(folder, data, tmp_path / "out", normalization="global", field_names={"p": "pressure"}, **QUICK)
    beside = WalrusPipeline.from_pretrained(folder)
    beside.load_adapter(tmp_path / "out", "mine")
    protocol = Protocol(start=3, steps=2, windows={"1": (1, 1)}, resamples=10)
    scores = [
        evaluate(pipe, data, protocol=protocol, progress=False)["scenarios"]["p"]["forecasters"]["model"]["windows"]
        for pipe in (WalrusPipeline.from_pretrained(tmp_path / "out"), beside)
    ]
    assert scores[0] == scores[1]


def test_adapters_stand_side_by_side_and_are_switched_per_call(folder, base, tmp_path):
    for name, seed in (("one", 1), ("two", 2)):
        fit(folder, RUNS, tmp_path / name, seed=seed, **{**QUICK, "frames": 2 + seed})
    pipe = WalrusPipeline.from_pretrained(folder)
    for name in ("one", "two"):
        pipe.load_adapter(tmp_path / name, name)
    alone = {name: forecast(WalrusPipeline.from_pretrained(tmp_path / name)) for name in ("one", "two")}
    for name in ("two", "one", "two"):
        np.testing.assert_array_equal(forecast(pipe, adapter=name), alone[name])
    assert np.abs(alone["one"] - alone["two"]).max() > 1e-5
    np.testing.assert_array_equal(forecast(pipe, adapter="base"), forecast(base))
    np.testing.assert_array_equal(forecast(pipe), alone["one"])  # the first one is active
    with pytest.raises(ValueError, match="expected one of base, one, two, found 'three'"):
        forecast(pipe, adapter="three")
    with pytest.raises(ValueError, match="expected one that is not taken"):
        pipe.load_adapter(tmp_path / "one", "two")
