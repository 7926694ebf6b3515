"""A forecast step leaves Python: exported, compiled into a package that runs without this one, and as ONNX."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from walrus_hf import Trajectory, WalrusPipeline
from walrus_hf.exporting import METADATA, export_step, onnx_step, package_step
from walrus_hf.jitter import with_shifts

from .test_parity import parity_model


@pytest.fixture(scope="module")
def pipe():
    return WalrusPipeline(parity_model(torch.float32, tokens_per_axis=4, tokens_per_axis_3d=2))


def simulation(grid=(16, 24), sides=("periodic", ("wall", "open"))):
    """Three frames with a vector, a constant field and an obstacle."""
    rng = np.random.default_rng(0)
    axes = ("x", "y", "z")[: len(grid)]
    return Trajectory(
        {"pressure": 5 + rng.normal(size=(3, *grid)), "velocity": rng.normal(size=(3, *grid, len(grid)))},
        dict(zip(axes, sides)), constant_fields={"A": rng.normal(size=grid)}, axes=axes,
        obstacle_mask=rng.random(grid) < 0.1,
    )  # fmt: skip


def first_step(pipe, trajectory, seed):
    """The state that the pipeline forecasts, as the model holds it, and the plan's shifts."""
    inputs = pipe.processor(trajectory)
    plan = pipe.processor.plan(trajectory.grid, trajectory.boundary_conditions, seed=seed)
    values = inputs["field_values"]
    state = next(pipe.model.rollout(**inputs, num_steps=1, plan=plan))
    layers = pipe.model.config.num_hidden_layers
    return values, torch.tensor([plan.patch_shifts, *plan.layer_shifts[:layers]]), state


GRIDS = {
    "plane, periodic and wall": ((16, 24), ("periodic", ("wall", "open"))),
    "resampled line": ((66,), ("periodic",)),
    "open volume": ((8, 12, 8), ("open", "periodic", "wall")),
}


@pytest.mark.parametrize(("grid", "sides"), GRIDS.values(), ids=GRIDS)
def test_an_exported_step_takes_its_shifts_as_an_input(pipe, grid, sides):
    given = simulation(grid, sides)
    program, facts = export_step(pipe, given)
    states = []
    for seed in range(2):
        values, shifts, expected = first_step(pipe, given, seed)
        torch.testing.assert_close(program.module()(values, shifts), expected, rtol=1e-5, atol=1e-5)
        assert list(values.shape) == facts["field_values"]
        assert (shifts >= torch.tensor(facts["lowest_shifts"])).all()
        assert (shifts <= torch.tensor(facts["highest_shifts"])).all()
        states.append(expected)
    assert (states[0] - states[1]).abs().max() > 1e-3  # the shifts matter
    assert facts["channels"][:2] == ["pressure", "velocity_x"]


def test_the_ranges_are_those_that_jitter_draws_from(pipe):
    given = simulation()
    _, facts = export_step(pipe, given)
    plan = pipe.processor.plan(given.grid, given.boundary_conditions)
    generator = torch.Generator().manual_seed(0)
    drawn = [with_shifts(plan, generator) for _ in range(400)]
    patch = torch.tensor([p.patch_shifts for p in drawn])
    assert patch.amin(0).tolist() == list(facts["lowest_shifts"][0])
    assert patch.amax(0).tolist() == list(facts["highest_shifts"][0])
    rows = torch.tensor([p.layer_shifts for p in drawn]).flatten(0, 1)
    assert rows.amin(0).tolist() == list(facts["lowest_shifts"][1])
    assert rows.amax(0).tolist() == list(facts["highest_shifts"][1])


def test_a_package_needs_a_name_of_its_own(pipe, tmp_path):
    with pytest.raises(ValueError, match=r"\.pt2"):
        package_step(pipe, simulation(), tmp_path / "step.pt")
    (tmp_path / "step.pt2").write_text("old")
    with pytest.raises(FileExistsError, match="overwrite"):
        package_step(pipe, simulation(), tmp_path / "step.pt2")
    assert (tmp_path / "step.pt2").read_text() == "old"


def test_an_onnx_model_needs_a_name_of_its_own_and_its_packages(pipe, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"\.onnx"):
        onnx_step(pipe, simulation(), tmp_path / "step.pt2")
    monkeypatch.setattr("walrus_hf.exporting.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install onnx onnxscript"):
        onnx_step(pipe, simulation(), tmp_path / "step.onnx")
    (tmp_path / "step.onnx.data").write_text("old")
    with pytest.raises(FileExistsError, match=r"step\.onnx\.data exists"):
        onnx_step(pipe, simulation(), tmp_path / "step.onnx")
    assert (tmp_path / "step.onnx.data").read_text() == "old"


@pytest.mark.parametrize("name", ["plane, periodic and wall", "open volume"])
def test_an_onnx_model_computes_the_same(pipe, tmp_path, name):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    given = simulation(*GRIDS[name])
    path = onnx_step(pipe, given, tmp_path / "step.onnx")
    session = runtime.InferenceSession(path)
    facts = json.loads(session.get_modelmeta().custom_metadata_map[METADATA])
    for seed in range(2):
        values, shifts, expected = first_step(pipe, given, seed)
        (found,) = session.run(None, {"field_values": values.numpy(), "shifts": shifts.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)
        assert [list(values.shape), list(shifts.shape)] == [facts["field_values"], facts["shifts"]]
    assert {file.suffix for file in tmp_path.iterdir()} <= {".onnx", ".data"}


RUN = """
import json, sys, torch
package = torch._inductor.aoti_load_package(sys.argv[1])
facts = json.loads(package.get_metadata()[sys.argv[3]])
given = torch.load(sys.argv[2])
assert list(given["shifts"].shape) == facts["shifts"]
torch.save(package(given["values"], given["shifts"]), sys.argv[2])
assert not [name for name in sys.modules if name.startswith(("walrus_hf", "transformers"))]
"""


@pytest.mark.slow
def test_a_compiled_package_runs_without_this_one(pipe, tmp_path):
    given = simulation()
    path = package_step(pipe, given, tmp_path / "step.pt2")
    assert [file.name for file in tmp_path.iterdir()] == ["step.pt2"]
    values, shifts, expected = first_step(pipe, given, 3)
    torch.save({"values": values, "shifts": shifts}, tmp_path / "given.pt")
    code = [sys.executable, "-c", RUN, str(path), str(tmp_path / "given.pt"), METADATA]
    found = subprocess.run(code, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    torch.testing.assert_close(torch.load(tmp_path / "given.pt"), expected, rtol=1e-5, atol=1e-5)
    assert json.loads(torch._inductor.aoti_load_package(str(path)).get_metadata()[METADATA])["shifts"] == [
        1 + pipe.model.config.num_hidden_layers,
        3,
    ]
