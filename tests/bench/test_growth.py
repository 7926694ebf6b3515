"""What a forecast will take: memory is counted as it is held, time fitted to measurements, checked on others."""

import json

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from typer.testing import CliRunner

from walrus_hf import WalrusForPrediction
from walrus_hf.bench.__main__ import app
from walrus_hf.bench.flops import working_bytes
from walrus_hf.bench.footprint import peak_of, resident
from walrus_hf.bench.growth import KINDS, WITHIN, Case, apart, check, fit, step_of
from walrus_hf.bench.prediction import fitted, step_seconds
from walrus_hf.finetuning_memory import LiveBytes

COEFFICIENTS = {"linears": 1.2, "attention": 1.5, "convolutions": 3.0, "moved": 4.0, "layers": 2e-3}
# Encoder or blocks take the most, in the plane and in a volume, with few and many frames.
HELD = {
    "blocks": Case((64, 96), 5, {"hidden_size": 96, "intermediate_size": 192, "tokens_per_axis": 16}),
    "first stage": Case((64, 96), 6, {"stem_hidden_size": 96, "tokens_per_axis": 16}),
    "wrapped fields": Case((64, 96), 6, {"num_hidden_layers": 1}),
    "volume": Case((32, 32, 48), 3, {"stem_hidden_size": 32}),
    "walls": Case((64, 96), 4, {"tokens_per_axis": 16}, "wall"),
}


# Tokens an axis: twice what was published.
FINE = {
    "plane": Case((256, 256), 2, {"tokens_per_axis": 64}),
    "volume": Case((64, 64, 64), 2, {"tokens_per_axis_3d": 32}),
}


def held(case: Case, training: bool = False) -> int:
    """The most bytes that live in a step; nothing is computed."""
    config = case.config(small=True)
    plan = case.plan(config)
    with torch.device("meta"):
        model = WalrusForPrediction(config).train(training)
    with FakeTensorMode(), torch.set_grad_enabled(training):
        for module in model.modules():
            for key, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[key] = torch.nn.Parameter(torch.empty(parameter.shape), training)
        values, ids = torch.zeros(1, case.frames, 4, *plan.grid), torch.tensor([[3, 4, 5, 6]])
        with LiveBytes(model.parameters()) as counter:
            output = model(values, ids, plan=plan, frames_to_keep=1)
            if training:
                output.prediction.sum().backward()
    return counter.peak


@pytest.mark.parametrize("name", HELD)
def test_the_memory_of_a_step_is_what_its_tensors_hold_at_most(name):
    case = HELD[name]
    config = case.config(small=True)
    assert working_bytes(config, case.plan(config), case.frames, 4) == pytest.approx(held(case), rel=0.1)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", FINE)
def test_attention_over_more_tokens_than_published_never_holds_its_scores(name, training):
    case = FINE[name]
    config = case.config(small=True)
    plan = case.plan(config)
    assert plan.num_tokens == {"plane": 64**2, "volume": 32**3}[name]
    scores = config.num_attention_heads * plan.num_tokens**2 * 4  # of one frame
    assert held(case, training) < scores / 3


@pytest.mark.slow
def test_a_step_over_32_tokens_an_axis_of_a_volume_fits_a_small_machine():
    """The scores of one head of one frame would take 4 GiB."""
    network = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "tokens_per_axis_3d": 32}
    case = Case((64, 64, 64), 2, network)
    plan, run = step_of(case, case.config(small=True))
    assert plan.num_tokens == 32**3
    before = resident("VmRSS")
    assert peak_of(run) - before < 2**30


def rows(coefficients=COEFFICIENTS) -> dict[str, dict[str, float]]:
    """Measured cases that follow from coefficients."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for i in range(12):
        work = dict(zip(KINDS, torch.rand(len(KINDS), generator=generator).tolist()))
        seconds = step_seconds(work, coefficients)
        found[f"case {i}"] = {
            **work, "seconds": seconds, "counted_bytes": 100.0, "bytes": 180.0, "libraries": 40.0,
            "weights": 10.0, "held_out": float(i >= 9)
        }  # fmt: skip
    return found


def test_the_fit_finds_what_the_times_were_made_of():
    found = rows()
    coefficients = fit(found)
    assert coefficients == pytest.approx({**COEFFICIENTS, "working": 1.3, "libraries": 40.0}, rel=1e-6)
    ratios = check(found, coefficients)
    assert all(row == pytest.approx({"seconds_ratio": 1.0, "bytes_ratio": 1.0}) for row in ratios.values())


def test_cases_that_are_held_out_are_not_fitted_and_told_where_they_are_far_off():
    found = rows()
    found["case 10"]["seconds"] *= 2  # held out
    found["case 11"]["bytes"] /= 1 + 0.9 * WITHIN
    coefficients = fit(found)
    assert coefficients["linears"] == pytest.approx(COEFFICIENTS["linears"])
    results = {name: {**row, **check(found, coefficients)[name]} for name, row in found.items()}
    assert results["case 10"]["seconds_ratio"] == pytest.approx(0.5)
    assert apart(results) == ["case 10"]


def test_no_coefficient_is_negative_and_the_packaged_ones_are_complete():
    found = rows({**COEFFICIENTS, "moved": -0.5})
    assert all(value >= 0 for value in fit(found).values())
    packaged = fitted()
    assert set(packaged) == {*KINDS, "working", "libraries"}
    assert packaged["linears"] > 0.7  # no step is much quicker than the products in it
    assert 1 <= packaged["working"] < 2


@pytest.mark.slow
def test_growth_is_measured_at_small_sizes(tmp_path):
    file = tmp_path / "found.json"
    result = CliRunner().invoke(app, ["growth", "--small", "--repeats", "1", "--json", str(file)])
    assert result.exit_code == 0, result.output
    assert "SMALL SIZES, no measure of speed" in result.output
    cases = json.loads(file.read_text())["cases"]
    assert set(cases["coefficients"]) == {*KINDS, "working", "libraries"}
    assert cases["walls"]["held_out"]
    assert cases["plane"]["bytes"] > 0
