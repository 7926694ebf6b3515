"""Networks that are scaled, trained and rolled out as Walrus is: exact operators, all of its inputs, saving, sizes."""

import copy
import itertools
import time

import numpy as np
import pytest
import torch

pytest.importorskip("neuralop")

from walrus_hf import Trajectory, WalrusProcessor, load_well, save_well
from walrus_hf.data import load_stream
from walrus_hf.evaluation.baselines import load_baseline
from walrus_hf.evaluation.neural_baselines import (
    ARCHITECTURES,
    FieldLayout,
    FieldNetwork,
    NeuralBaseline,
    parameter_count,
    train,
    width_for,
)
from walrus_hf.metrics import persistence, score
from walrus_hf.training.optim import published_schedule

from ..small_model import small_inputs, small_model

PLANE = (12, 9)
LAYOUT = FieldLayout(("pressure", "velocity_x", "velocity_y"), (), 2, 3)
IDS = WalrusProcessor().field2id
PERIODIC = {"x": "periodic", "y": "periodic"}


def baseline(architecture="unet", layout=LAYOUT, width=4, **kwargs):
    """A small one with weights that are far from their small start."""
    found = NeuralBaseline(architecture, layout, width, modes=4, device="cpu", **kwargs)
    with torch.no_grad():
        for parameter in found.network.parameters():
            parameter.mul_(2.0)
    return found


def plane(frames=3, grid=PLANE, seed=0, sides=None, **kwargs):
    rng = np.random.default_rng(seed)
    fields = {
        "pressure": 5 + rng.normal(size=(frames, *grid)).astype(np.float32),
        "velocity": rng.normal(size=(frames, *grid, 2)).astype(np.float32),
    }
    return Trajectory(fields, sides or {"x": ("wall", "open"), "y": "periodic"}, **kwargs)


def batch_of(*trajectories):
    """Inputs and labels of alike trajectories; the last frame is the label of the one before."""
    rows = [dict(WalrusProcessor()(trajectory)) for trajectory in trajectories]
    batch = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    values = batch.pop("field_values")
    return {"field_values": values[:, :-1], "labels": values[:, 1:], **batch}


def exact_flow(seed, frames=12, grid=(16, 12), speed=(0.9, -0.6), diffusion=0.02):
    """Waves that drift and fade: the Fourier modes of the advection-diffusion equation, solved exactly."""
    rng = np.random.default_rng(seed)
    kx, ky = np.meshgrid(np.fft.fftfreq(grid[0]) * grid[0], np.fft.fftfreq(grid[1]) * grid[1], indexing="ij")
    start = np.fft.fft2(rng.normal(size=grid)) * ((np.abs(kx) <= 3) & (np.abs(ky) <= 3))
    rate = -2j * np.pi * (kx * speed[0] / grid[0] + ky * speed[1] / grid[1]) - diffusion * (kx**2 + ky**2)
    states = np.fft.ifft2(start * np.exp(rate * np.arange(frames).reshape(-1, 1, 1))).real
    return Trajectory({"tracer": states.astype(np.float32)}, PERIODIC, name=f"flow_{seed}")


def flow_windows(frames=2, batch=8):
    """An endless stream of them."""
    rng = np.random.default_rng(0)
    flows = [exact_flow(seed) for seed in range(40)]
    while True:
        starts = [(flows[rng.integers(40)], int(rng.integers(12 - frames))) for _ in range(batch)]
        yield batch_of(*(flow.frames(start, start + frames + 1) for flow, start in starts))


@pytest.fixture(scope="module")
def trained():
    """Each architecture after a short training on the exact flow."""
    found = {}
    for architecture, steps in (("fno", 140), ("ufno", 50), ("unet", 80)):
        found[architecture] = NeuralBaseline(architecture, FieldLayout(("tracer",), (), 2, 2), 8, 8, device="cpu")
        found[architecture].fit(flow_windows(), steps=steps, learning_rate=4e-3)
    return found


def flow_errors(forecaster, steps=5):
    """VRMSE of unseen flows at each lead time."""
    flows = [exact_flow(1000 + seed) for seed in range(4)]
    forecasts = [forecaster(flow.frames(0, 4), steps) for flow in flows]
    return np.mean([score(f, flow.frames(4, 4 + steps))["tracer"] for f, flow in zip(forecasts, flows)], axis=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_short_training_finds_the_solution_operator_of_advection_and_diffusion(trained, architecture):
    still, found = flow_errors(persistence), flow_errors(trained[architecture].predict)
    assert (found < 0.5 * still).all(), (found, still)
    if architecture == "fno":  # linear and diagonal in Fourier space: what the operator is made for
        assert found[0] < 0.3 * still[0]
    losses = [row["loss"] for row in trained[architecture].log]
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_network_whose_blocks_are_switched_off_is_worse(trained, architecture, tmp_path):
    trained[architecture].save(tmp_path / architecture)
    crippled = load_baseline(tmp_path / architecture, device="cpu")
    blocks = {"fno": ("fno_blocks.convs",), "ufno": ("spectral", "paths"), "unet": ("down", "up")}[architecture]
    whole = flow_errors(crippled.predict)
    for block in blocks:
        kept = {name: p.detach().clone() for name, p in crippled.network.named_parameters()}
        with torch.no_grad():
            for name, parameter in crippled.network.named_parameters():
                if f".{block}." in name:
                    parameter.zero_()
            assert (flow_errors(crippled.predict)[:2] > 1.15 * whole[:2]).all(), block
            for name, parameter in crippled.network.named_parameters():
                parameter.copy_(kept[name])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_saving_and_loading_changes_no_digit_of_a_forecast(architecture, tmp_path):
    layout = FieldLayout(("log10_density",), (), 2, 3)
    one = baseline(architecture, layout, processor=WalrusProcessor(log_fields=["density"]), scale_eps=1e-4)
    rng = np.random.default_rng(0)
    context = Trajectory({"density": rng.uniform(1, 9, size=(5, 7, 12))}, PERIODIC)
    one.log = [{"step": 1, "loss": 0.5, "seconds": 0.1, "learning_rate": 1e-3}]
    one.save(tmp_path / "model")
    names = {file.name for file in (tmp_path / "model").iterdir()}
    assert names == {"baseline.json", "baseline.safetensors", "preprocessor_config.json", "metrics.jsonl"}
    loaded = load_baseline(tmp_path / "model", device="cpu")
    assert (loaded.name, loaded.parameters, loaded.settings) == (architecture, one.parameters, one.settings)
    expected = one.predict(context, 1).fields["density"]
    assert (expected > 0).all()
    np.testing.assert_array_equal(loaded.predict(context, 1).fields["density"], expected)
    other = NeuralBaseline(architecture, layout, 5, modes=4, device="cpu")
    other.save(tmp_path / "other")
    (tmp_path / "other" / "baseline.safetensors").replace(tmp_path / "model" / "baseline.safetensors")
    with pytest.raises(ValueError, match="weights"):
        load_baseline(tmp_path / "model", device="cpu")


def test_the_seed_decides_the_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, same, other = (NeuralBaseline("fno", LAYOUT, 4, seed=seed, device="cpu") for seed in (1, 1, 2))
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()
    assert torch.equal(state, torch.get_rng_state())
    weights = [torch.cat([p.detach().abs().flatten() for p in b.network.parameters()]) for b in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_units_do_not_matter():
    """Scales are those of Walrus: each field's own root mean square, and that of its changes."""
    context, one = plane(), baseline()
    scaled = {"pressure": 1e6 * context.fields["pressure"], "velocity": 1e-2 * context.fields["velocity"]}
    found = one.predict(context, 4).fields
    other = one.predict(Trajectory(scaled, context.boundary_conditions), 4).fields
    np.testing.assert_allclose(other["pressure"], 1e6 * found["pressure"], rtol=1e-4, atol=1e3)
    np.testing.assert_allclose(other["velocity"], 1e-2 * found["velocity"], rtol=1e-3, atol=1e-5)


def test_the_loss_is_that_of_walrus():
    mask = np.zeros(PLANE, bool)
    mask[2:5, 3] = True
    batch = batch_of(plane(4, seed=1, obstacle_mask=mask), plane(4, seed=2, obstacle_mask=mask))
    still = baseline()
    with torch.no_grad():
        still.network.network.last.weight.zero_()
        still.network.network.last.bias.zero_()
    out = still.network(**batch)
    torch.testing.assert_close(out.prediction, batch["field_values"][:, -1:])
    # By the formula of the paper, section 6: the change over the root mean square of the changes so far.
    values, label = batch["field_values"].numpy(), batch["labels"][:, -1].numpy()
    scales = np.sqrt(np.mean(np.diff(values, axis=1) ** 2, axis=(1, 3, 4, 5))).reshape(2, -1, 1, 1, 1)
    error = np.abs(label - values[:, -1]) / np.maximum(scales, 1e-5) * ~mask[:, :, None]
    assert batch["padded_channels"][0].tolist() == [False, False, False, True]
    np.testing.assert_allclose(out.loss.item(), error.mean(), rtol=1e-5)


def test_given_scales_replace_those_of_the_frames():
    batch, one = batch_of(plane(4)), baseline()
    own = one.network(**batch)
    values, changes = torch.full((1, 4), 0.5), torch.full((1, 4), 3.0)
    given = one.network(**batch, value_scales=values, change_scales=changes)
    np.testing.assert_allclose(
        (given.prediction - batch["field_values"][:, -1:]).detach(), (3 * given.delta).detach(), rtol=1e-4, atol=1e-5
    )
    assert (given.delta - own.delta).abs().max() > 1e-3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("grid", [(9, 14), (7, 10, 5), (21,)], ids=str)
def test_grids_of_one_to_three_axes_come_back_unchanged(architecture, grid):
    axes = ("x", "y", "z")[: len(grid)]
    names = ("pressure", *(f"velocity_{axis}" for axis in axes))
    rng = np.random.default_rng(0)
    fields = {"pressure": rng.normal(size=(3, *grid)), "velocity": rng.normal(size=(3, *grid, len(grid)))}
    context = Trajectory(fields, dict(zip(axes, (("wall", "open"), "periodic", "open"))), axes=axes, dt=0.5)
    forecast = baseline(architecture, FieldLayout(names, (), len(grid), 3)).predict(context, 2)
    assert forecast.fields["velocity"].shape == (2, *grid, len(grid))
    assert forecast.time == 1.5
    assert np.isfinite(forecast.fields["pressure"]).all()
    assert not np.allclose(forecast.fields["pressure"][0], fields["pressure"][-1], atol=1e-3)


def test_boundaries_are_those_of_the_batch():
    one = baseline()
    found = [
        one.predict(plane(sides={"x": kinds, "y": "periodic"}), 1).fields["pressure"]
        for kinds in ("periodic", "wall", "open", ("wall", "open"))
    ]
    for i, values in enumerate(found):
        assert all(np.abs(values - other).max() > 1e-3 for other in found[:i])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_plane_may_stand_anywhere_in_space(architecture):
    """Augmented streams turn planes: the axes of one cell are not always the last."""
    batch, one = batch_of(plane(4)), baseline(architecture)
    flat = one.network(**batch).prediction
    turned = {**batch}
    for name in ("field_values", "labels"):
        turned[name] = batch[name].transpose(-1, -2)  # (H, 1, D)
    turned["boundary_conditions"] = batch["boundary_conditions"][:, [0, 2, 1]]
    torch.testing.assert_close(one.network(**turned).prediction, flat.transpose(-1, -2))


def test_sources_with_other_fields_are_trained_together():
    both = FieldLayout(("pressure", "velocity_x", "velocity_y", "tracer"), (), 2, 3)
    tracer = Trajectory({"tracer": plane(4).fields["pressure"]}, PERIODIC)
    stream = [batch_of(plane(4)), batch_of(tracer)]
    assert FieldLayout.of_stream(stream) == both
    one = baseline(layout=both)
    one.fit(itertools.cycle(stream), steps=4)
    assert set(one.predict(tracer, 2).fields) == {"tracer"}
    swapped = Trajectory(dict(reversed(plane().fields.items())), plane().boundary_conditions)
    for name, values in one.predict(plane(), 2).fields.items():  # the order of the fields does not matter
        np.testing.assert_allclose(one.predict(swapped, 2).fields[name], values, rtol=1e-5, atol=1e-6)


def test_what_a_network_was_not_built_for_is_refused():
    one = baseline()
    with pytest.raises(ValueError, match=r"field density: .* \(pressure, velocity_x, velocity_y\)"):
        one.predict(Trajectory({"density": plane().fields["pressure"]}, PERIODIC), 1)
    volume = Trajectory({"pressure": np.ones((3, 5, 6, 7))}, {**PERIODIC, "z": "open"}, axes=("x", "y", "z"))
    with pytest.raises(ValueError, match=r"2 axes.*planes and one for volumes"):
        one.predict(volume, 1)
    with pytest.raises(ValueError, match="one for volumes"):
        FieldLayout.of_stream([batch_of(volume), batch_of(plane())])
    with pytest.raises(ValueError, match="at least 3 frames"):
        one.predict(plane(2), 1)
    with pytest.raises(ValueError, match="at least 3 frames"):
        one.network(**batch_of(plane(3)))
    with pytest.raises(ValueError, match="unet, fno, ufno"):
        NeuralBaseline("resnet", LAYOUT)
    constant = Trajectory(plane().fields, PERIODIC, {"speed_of_sound": np.ones(PLANE)})
    with pytest.raises(ValueError, match="constant field speed_of_sound"):
        baseline(layout=FieldLayout(LAYOUT.fields, ("density",), 2, 3)).predict(constant, 1)


def test_constant_fields_are_read_and_obstacles_stay_empty():
    rng = np.random.default_rng(0)
    mask = np.zeros(PLANE, bool)
    mask[2:5, 3] = True
    layout = FieldLayout(LAYOUT.fields, ("speed_of_sound",), 2, 3)
    one, found = baseline(layout=layout), []
    for values in (rng.uniform(1, 2, PLANE), rng.uniform(1, 2, PLANE)):
        context = plane(obstacle_mask=mask)
        context.constant_fields = {"speed_of_sound": values}
        found.append(one.predict(context, 2).fields["velocity"])
        assert (found[-1][:, mask] == 0).all()
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_only_the_last_frames_count_and_forecasts_that_blow_up_end_in_nan():
    long, one = plane(6), baseline()
    np.testing.assert_array_equal(
        one.predict(long, 2).fields["pressure"], one.predict(long.frames(3), 2).fields["pressure"]
    )
    with torch.no_grad():
        one.network.network.last.weight.mul_(1e30)
    forecast = one.predict(long, 9).fields["pressure"]
    assert np.isfinite(forecast[0]).all()
    assert np.isnan(forecast[-1]).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("layout", "modes"), [(LAYOUT, None), (FieldLayout(("A", "B"), ("density",), 3, 6), 4)])
def test_a_network_has_as_many_parameters_as_a_model_give_or_take_a_tenth(architecture, layout, modes):
    model = small_model(hidden_size=128, intermediate_size=256, num_hidden_layers=4)
    wanted = sum(p.numel() for p in model.parameters())
    found = NeuralBaseline.of_equal_size(architecture, model, layout, modes, device="cpu")
    real = sum(p.numel() * (2 if p.is_complex() else 1) for p in found.network.parameters())
    assert found.parameters == real
    assert abs(real - wanted) <= 0.1 * wanted
    assert width_for(wanted, architecture, layout, modes) == found.settings["width"]


def test_the_published_size_is_reached_without_making_the_network():
    for architecture in ARCHITECTURES:
        width = width_for(1_290_000_000, architecture, LAYOUT)
        with torch.device("meta"):
            assert abs(parameter_count(FieldNetwork(architecture, LAYOUT, width)) / 1.29e9 - 1) < 0.02


def test_a_size_that_no_width_reaches_is_refused():
    with pytest.raises(ValueError, match="lower modes"):
        width_for(60_000, "fno", FieldLayout(("A", "B"), (), 3, 6), modes=12)


def test_time_or_steps_end_a_training_and_set_the_learning_rate():
    one, batch = baseline(width=2), batch_of(plane(4))
    one.fit(itertools.repeat(batch), steps=10, learning_rate=1e-3)
    assert [row["step"] for row in one.log] == list(range(1, 11))
    rates = [1e-3 * published_schedule(100 * step, 1000) for step in range(10)]
    np.testing.assert_allclose([row["learning_rate"] for row in one.log], rates)
    rows = train(one.network, itertools.repeat(batch), seconds=0.4)
    assert rows[-1]["seconds"] >= 0.4 > rows[-2]["seconds"]
    assert rows[0]["learning_rate"] == pytest.approx(1e-4, rel=0.1)
    assert rows[-1]["learning_rate"] < 5e-4
    assert not one.network.training
    for wrong in ({}, {"seconds": 1.0, "steps": 3}, {"steps": 0}, {"seconds": -1.0}):
        with pytest.raises(ValueError, match="seconds"):
            train(one.network, itertools.repeat(batch), **wrong)
    with pytest.raises(ValueError, match="end after 2 batches"):
        train(one.network, [batch, batch], steps=3)


def test_on_a_cpu_only_its_work_counts_as_time(monkeypatch):
    one, batch = baseline(width=2), batch_of(plane(4))

    def slowly():
        while True:
            time.sleep(0.1)
            yield batch

    work = itertools.count()  # 10 ms of it between two looks at the clock, whatever the machine
    monkeypatch.setattr(time, "process_time", lambda: 0.01 * next(work))
    began = time.monotonic()
    rows = train(one.network, slowly(), seconds=0.05)
    assert len(rows) > 2
    assert rows[-1]["seconds"] < (time.monotonic() - began) / 2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_mixed_precision_trains_too_and_leaves_weights_in_float32(architecture):
    one, batch = baseline(architecture, width=4), batch_of(plane(4))
    exact = train(copy.deepcopy(one.network), [batch], steps=1)[0]["loss"]
    rows = train(one.network, itertools.repeat(batch), steps=20, bfloat16=True)
    assert rows[0]["loss"] != exact
    assert rows[0]["loss"] == pytest.approx(exact, rel=0.02)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert {p.dtype for p in one.network.parameters()} <= {torch.float32, torch.complex64}


def test_the_same_training_serves_walrus():
    model = small_model(drop_path_rate=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    rows = train(model, itertools.repeat(small_inputs(labels=True)), steps=3)
    assert len(rows) == 3
    assert sum(not torch.equal(a, b) for a, b in zip(before, model.parameters())) > 10


def test_a_step_whose_loss_or_gradient_is_not_finite_is_left_out():
    one, batch = baseline(width=2), batch_of(plane(4))
    before = [p.detach().clone() for p in one.network.parameters()]
    for broken in ({**batch, "labels": batch["labels"] * np.inf}, {**batch, "field_values": batch["labels"] * np.nan}):
        train(one.network, [broken], steps=1)
        assert all(torch.equal(a, b) for a, b in zip(before, one.network.parameters()))
    train(one.network, [broken, batch], steps=2)
    assert all(torch.isfinite(p).all() for p in one.network.parameters())


def test_a_stream_of_files_trains_it_and_its_folder_forecasts_them(tmp_path, monkeypatch):
    monkeypatch.setenv("WALRUS_HF_CACHE", str(tmp_path / "manifests"))
    folder = tmp_path / "flow" / "data" / "train"
    folder.mkdir(parents=True)
    save_well([exact_flow(seed) for seed in range(3)], folder / "flow.hdf5")
    stream = load_stream(tmp_path / "flow", frames=4, stride_range=(1, 1), batch_size=4)
    layout = FieldLayout.of_stream(stream)
    assert layout == FieldLayout(("tracer",), (), 2, 3)
    one = NeuralBaseline("fno", layout, 6, 4, device="cpu")
    one.fit(stream, seconds=0.5)
    one.save(tmp_path / "fno")
    context = load_well(folder / "flow.hdf5", 1, frames=5)
    loaded = load_baseline(tmp_path / "fno", device="cpu")
    np.testing.assert_array_equal(loaded.predict(context, 3).fields["tracer"], one.predict(context, 3).fields["tracer"])
