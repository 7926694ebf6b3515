"""One forecast step as a program without Python code of the model: `torch.export`, AOTInductor, ONNX."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .fields import Trajectory
from .jitter import TokenizationPlan, shift_ranges
from .modeling_walrus import WalrusForPrediction, mask_state
from .pipeline_walrus import WalrusPipeline
from .safe_files import whole_file

METADATA = "walrus_hf"  # key of the package's metadata


class ForecastStep(nn.Module):
    """The next state from the last frames and the shifts of the jitter; all else is constant.

    Args:
        model: in eval mode.
        inputs: what the processor made of a trajectory.
        plan: its geometry is built in, its shifts are inputs.
    """

    def __init__(self, model: WalrusForPrediction, inputs: dict[str, Tensor], plan: TokenizationPlan):
        super().__init__()
        self.model, self.plan = model, plan
        given = {n: v for n, v in inputs.items() if n not in ("field_values", "boundary_conditions", "labels")}
        self.names = tuple(given)
        for name, value in given.items():
            self.register_buffer(f"given_{name}", value)

    def forward(self, field_values: Tensor, shifts: Tensor) -> Tensor:
        """`(1, T, C, H, W, D)` and `(1 + layers, 3)` int64, of which row 0 rolls the padded grid, the others the tokens
        before each layer -> the next state `(1, C, H, W, D)`."""
        patch, *layers = [tuple(row.unbind()) for row in shifts.unbind()]
        drawn: dict[str, Any] = {"patch_shifts": patch, "layer_shifts": tuple(layers)}
        plan = dataclasses.replace(self.plan, **drawn)
        given = {name: self.get_buffer(f"given_{name}") for name in self.names}
        masks = {name: given.pop(name, None) for name in ("padded_channels", "obstacle_mask")}
        output = self.model(field_values, **given, plan=plan, frames_to_keep=1)
        return mask_state(output.prediction, **masks)[:, 0]


def export_step(
    pipe: WalrusPipeline, trajectory: Trajectory, tokens_per_axis: int | None = None, jitter: bool | None = None
) -> tuple[torch.export.ExportedProgram, dict[str, Any]]:
    """Trace one forecast step for the grid, fields, boundaries, constants and number of frames of a trajectory.

    Args:
        pipe: its model must be without adapters (`merge_adapter`).
        trajectory: the frames that a step is given, all of them.
        tokens_per_axis, jitter: as in `WalrusPipeline.predict`.

    Returns:
        The program `(field_values, shifts) -> next state`, see `ForecastStep`, and what a caller needs to know about
        it: the channels of `field_values`, and the smallest and largest shift of each row and axis.
    """
    if not isinstance(pipe.model, WalrusForPrediction):
        raise ValueError("export_step: expected a model without adapters, found one with; merge them (merge_adapter)")
    inputs = pipe.processor(trajectory)
    plan = pipe.processor.plan(trajectory.grid, trajectory.boundary_conditions, tokens_per_axis, jitter, seed=0)
    plan = dataclasses.replace(plan, layer_shifts=plan.layer_shifts[: pipe.model.config.num_hidden_layers])
    step = ForecastStep(pipe.model, dict(inputs), plan).eval()
    shifts = torch.tensor([plan.patch_shifts, *plan.layer_shifts])
    with torch.no_grad():
        program = torch.export.export(step, (inputs["field_values"], shifts), strict=True)
    low, high = shift_ranges(plan)
    return program, {
        "channels": [channel.name for channel in pipe.processor.channels(trajectory)],
        "field_values": list(inputs["field_values"].shape), "shifts": list(shifts.shape),
        "lowest_shifts": low, "highest_shifts": high,
    }  # fmt: skip


def package_step(
    pipe: WalrusPipeline,
    trajectory: Trajectory,
    path: str | Path,
    tokens_per_axis: int | None = None,
    jitter: bool | None = None,
    overwrite: bool = False,
) -> Path:
    """Compile one forecast step for this machine into a `.pt2` package, which runs without this package.

    `torch._inductor.aoti_load_package(path)` loads it, in Python or C++; `get_metadata()["walrus_hf"]` is JSON that
    says what to give it. Needs a C++ compiler.

    Args:
        path: of the package, `*.pt2`.
        overwrite: replace an existing file.
        pipe, trajectory, tokens_per_axis, jitter: as in `export_step`.

    Raises:
        FileExistsError: `path` exists.
        ValueError: `path` does not end in `.pt2`, or a model with adapters.
    """
    path = _target(path, ".pt2", overwrite)
    program, facts = export_step(pipe, trajectory, tokens_per_axis, jitter)
    with whole_file(path, ".pt2") as temporary:
        torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(temporary),
            inductor_configs={"aot_inductor.metadata": {METADATA: json.dumps(facts)}},
        )
    return path


def onnx_step(
    pipe: WalrusPipeline,
    trajectory: Trajectory,
    path: str | Path,
    tokens_per_axis: int | None = None,
    jitter: bool | None = None,
    overwrite: bool = False,
) -> Path:
    """Write one forecast step as an ONNX model, which ONNX Runtime and others compute on their devices.

    Its inputs are `field_values` and `shifts`, see `ForecastStep`; `metadata_props["walrus_hf"]` is JSON that says what
    to give it. Weights of more than 2 GB lie beside it, in `NAME.onnx.data`. Needs `pip install onnx onnxscript`.

    Args:
        path: of the model, `*.onnx`.
        overwrite: replace existing files.
        pipe, trajectory, tokens_per_axis, jitter: as in `export_step`.

    Raises:
        FileExistsError: `path`, or the file of weights beside it, exists.
        ValueError: `path` does not end in `.onnx`, or a model with adapters.
        ImportError: onnx or onnxscript is missing.
    """
    path = _target(path, ".onnx", overwrite)
    _target(path.with_name(f"{path.name}.data"), ".data", overwrite)
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ImportError(f"onnx_step: needs {' and '.join(missing)}: pip install onnx onnxscript")
    program, facts = export_step(pipe, trajectory, tokens_per_axis, jitter)
    written = torch.onnx.export(program, dynamo=True, verbose=False)
    assert written is not None
    written.model.metadata_props[METADATA] = json.dumps(facts)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        written.save(str(Path(folder) / path.name))
        # The weights first: a model without them is of no use.
        for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name):
            os.replace(file, path.with_name(file.name))
    return path


def _target(path: str | Path, suffix: str, overwrite: bool) -> Path:
    path = Path(path)
    if path.suffix != suffix:
        raise ValueError(f"{path}: expected a name that ends in {suffix}")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; choose another name or pass overwrite=True")
    return path
