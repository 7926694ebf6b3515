"""The checkpoint in the package loads by its name, forecasts what its card says, and can be taught more."""

import hashlib
import importlib.util
import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from walrus_hf import WalrusForPrediction, WalrusPipeline
from walrus_hf.checkpoints import locate
from walrus_hf.metrics import persistence

from .small_model import small_model

pytestmark = pytest.mark.filterwarnings("ignore:grid .* is outside the published stride table")

CARD = Path(__file__).parents[1] / "model_cards" / "walrus-nano"
RESULTS = json.loads((CARD / "results.json").read_text(encoding="utf-8"))
SIMULATIONS = runpy.run_path(str(CARD / "simulations.py"))
START, STEPS = RESULTS["protocol"]["start"], RESULTS["protocol"]["steps"]
WINDOWS = {name: tuple(window) for name, window in RESULTS["protocol"]["windows"].items()}


@pytest.fixture(scope="module")
def nano():
    return WalrusPipeline.from_pretrained("walrus-nano", device="cpu")


@pytest.fixture
def exact():
    """Whole float32 products, whatever other tests have allowed."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


# --- the name ---


def test_a_small_file_of_bfloat16_computes_in_float32(nano):
    file = Path(locate("walrus-nano")) / "model.safetensors"
    assert file.stat().st_size <= 12e6
    assert hashlib.sha256(file.read_bytes()).hexdigest() == RESULTS["weights"]["sha256"]  # the card is of these weights
    with safe_open(file, framework="pt") as tensors:
        assert {tensors.get_slice(name).get_dtype() for name in tensors.keys()} == {"BF16"}  # noqa: SIM118
    assert {p.dtype for p in nano.model.parameters()} == {torch.float32}
    assert 2e6 <= nano.model.num_parameters() == RESULTS["parameters"] <= 6e6
    half = WalrusPipeline.from_pretrained("walrus-nano", dtype=torch.bfloat16, device="cpu")
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}


def test_the_model_goes_by_its_name_and_not_by_a_path_of_this_machine(nano):
    assert nano.model.name_or_path == "walrus-nano"


def test_a_folder_of_that_name_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = small_model(field2id=None)
    WalrusPipeline(own).save_pretrained("walrus-nano")
    assert locate("walrus-nano") == "walrus-nano"
    found = WalrusPipeline.from_pretrained("walrus-nano", device="cpu")
    assert found.model.num_parameters() == own.num_parameters()


@pytest.mark.parametrize("name", ["lab/walrus", "walrus-nan", "", ".", "..", "__pycache__", "walrus-nano/config.json"])
def test_what_is_no_packaged_checkpoint_is_left_as_it_is(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locate(name) in (name, str(Path(name)))


# --- the numbers ---


@pytest.mark.parametrize("name", SIMULATIONS["FIXED"])
def test_it_forecasts_the_fixed_simulations_as_its_card_says(nano, exact, name):
    truth = SIMULATIONS["unseen"](name, 0)
    given, known = truth.frames(0, START), RESULTS["fixed"][name]
    forecasts = {
        "model": nano.predict(given, STEPS, seed=RESULTS["protocol"]["seed"], progress=False),
        "persistence": persistence(given, STEPS),
    }
    errors = {}
    for who, forecast in forecasts.items():
        found = nano.evaluate(forecast, truth, tuple(WINDOWS.values()))["all fields"]
        errors[who] = np.array(list(found.values()))
        assert errors[who] == pytest.approx([known[who][window] for window in WINDOWS], rel=1e-3)
    for place, window in enumerate(WINDOWS):
        if known["model"][window] < known["persistence"][window]:  # what the card claims, holds
            assert errors["model"][place] < errors["persistence"][place]


def test_the_fixed_simulations_have_lines_planes_volumes_and_walls():
    facts = [RESULTS["unseen"][name] for name in SIMULATIONS["FIXED"]]
    assert {len(found["grid"]) for found in facts} == {1, 2, 3}
    sides = {side for found in facts for pair in found["boundary_conditions"].values() for side in pair}
    assert {"wall", "periodic"} <= sides


def test_unseen_trajectories_differ_from_each_other_and_are_the_same_every_time():
    unseen = SIMULATIONS["unseen"]
    first, again, second = (unseen("vortices", number).fields["pressure"] for number in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.allclose(first, second)


# --- teaching it more ---


def test_an_adapter_with_a_new_field_names_its_base_and_is_found_again(nano, tmp_path):
    pytest.importorskip("peft")
    from walrus_hf import finetuning

    whole = SIMULATIONS["vortices"](0, (16, 24)).frames(0, 8)
    smoke = np.cumsum(whole.fields["pressure"], axis=0)
    runs = [SIMULATIONS["vortices"](seed, (16, 24)).frames(0, 8) for seed in range(2)]
    for run in runs:
        run.fields["smoke"] = smoke
    tuned = finetuning.fit(
        "walrus-nano", runs, tmp_path / "adapter", runs[:1], max_steps=2, batch_size=1, rank=2,
        new_fields={"smoke": "tracer"},
    )  # fmt: skip
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == (
        "walrus-nano"
    )
    found = WalrusPipeline.from_pretrained(tmp_path / "adapter", device="cpu")
    settings = {"prediction_length": 2, "seed": 0, "progress": False}
    mine, theirs = tuned.predict(runs[0], **settings), found.predict(runs[0], **settings)
    assert "smoke" in mine.fields
    for name in mine.fields:
        assert np.allclose(mine.fields[name], theirs.fields[name], rtol=1e-4, atol=1e-5)
    assert "smoke" not in nano.processor.field2id


# --- new weights and baselines ---


@pytest.fixture
def measure(monkeypatch, tmp_path):
    """The script beside the card; what it writes goes to a folder of the test."""
    pytest.importorskip("pandas")
    monkeypatch.syspath_prepend(str(CARD))
    spec = importlib.util.spec_from_file_location("measure", CARD / "measure.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shutil.copy(CARD / "results.json", tmp_path)
    monkeypatch.setattr(module, "HERE", tmp_path)
    return module


def test_packed_are_the_averages_of_a_checkpoint_rounded_to_bfloat16(measure, tmp_path):
    from torch.distributed import checkpoint as dcp

    from walrus_hf.training.arguments import PretrainingArguments
    from walrus_hf.training.objective import TrainingModel
    from walrus_hf.training.optim import ExponentialAverage

    arguments = PretrainingArguments(
        model_size="tiny", frames=4, mode="variable", ema_decay=0.9,
        model={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "stem_hidden_size": 8},
    )  # fmt: skip
    torch.manual_seed(0)
    average = ExponentialAverage(TrainingModel(WalrusForPrediction(arguments.config())), 0.9)
    for value in average.averages.values():
        value.normal_()
    dcp.save(average.state_dict(), checkpoint_id=tmp_path / "step" / "averages", no_dist=True)
    packed = WalrusPipeline.from_pretrained(
        measure.pack(tmp_path / "step", arguments, tmp_path / "packed"), device="cpu"
    )
    found = dict(packed.model.named_parameters())
    assert {p.dtype for p in found.values()} == {torch.float32}
    for name, value in average.averages.items():
        assert torch.equal(found[name.removeprefix("model.")], value.bfloat16().float())
    assert (packed.processor.context_frames, packed.processor.context_frames_3d) == (4, 4)
    start = tmp_path / "start"
    WalrusForPrediction(arguments.config()).save_pretrained(start)
    measure.pack(tmp_path / "step", arguments, tmp_path / "packed", mean_with=[start])
    mixed = WalrusPipeline.from_pretrained(tmp_path / "packed", device="cpu").model.state_dict()
    for name, value in WalrusForPrediction.from_pretrained(start).state_dict().items():
        mean = (average.averages[f"model.{name}"] + value) / 2
        torch.testing.assert_close(mixed[name], mean.bfloat16().float(), rtol=0.01, atol=1e-6)


def test_the_losses_of_the_last_stage_lie_beside_the_card():
    lines = (CARD / "metrics.csv").read_text().splitlines()
    assert lines[0] == "step,loss,learning_rate,grad_norm,seconds"
    assert 0 < len(lines) - 1 <= RESULTS["training"]["steps"]


def evaluation(folder, persistence_of, **errors):
    """Results of `walrus-hf evaluate` on one source, as far as baselines are taken from them."""
    known = RESULTS["test"][persistence_of]["forecasters"]["persistence"]
    scenario = {
        "source": "/elsewhere/0/wave",
        "forecasters": {
            "persistence": {"windows": {window: {"mean of fields": found} for window, found in known.items()}},
            **{
                who: {"windows": {w: {"mean of fields": found | {"median": error}} for w, found in known.items()}}
                for who, error in errors.items()
            },
        },
    }
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({"model": {"name": "walrus"}, "scenarios": {"wave": scenario}}))
    return folder


def test_baselines_are_added_where_they_were_measured_on_the_same_trajectories(measure, tmp_path):
    measure.add_baselines([evaluation(tmp_path / "a", "0/wave", unet=0.25, model=0.1)], "Ten minutes each.")
    added = json.loads((tmp_path / "baselines.json").read_text())
    assert added["budget"] == "Ten minutes each."
    assert set(added["test"]["0/wave"]) == {"unet"}
    assert added["test"]["0/wave"]["unet"]["11:30"]["median"] == 0.25
    twice = [tmp_path / "a", evaluation(tmp_path / "c", "0/wave", unet=0.5)]
    with pytest.raises(SystemExit, match="expected other baselines of 0/wave, found unet again"):
        measure.add_baselines(twice, "Ten minutes each.")
    with pytest.raises(SystemExit, match="expected the test trajectories of the card's sources with --from 17"):
        measure.add_baselines([evaluation(tmp_path / "b", "1/wave", unet=0.25, model=0.1)], "Ten minutes each.")
