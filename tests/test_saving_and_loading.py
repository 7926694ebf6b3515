"""Checkpoints come back as they were saved, whatever the dtype, devices, shards or class that reads them."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForTimeSeriesPrediction, AutoProcessor

from walrus_hf import Trajectory, WalrusForPrediction, WalrusModel, WalrusPipeline

from .small_model import ALL_PARTS, PLANE, VOLUME, small_inputs, small_model


def assert_same_state(one: torch.nn.Module, other: torch.nn.Module) -> None:
    expected, found = dict(one.named_parameters()) | dict(one.named_buffers()), other.state_dict()
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor.cpu(), found[name].cpu()), name


@pytest.mark.parametrize("shards", [None, "20KB"])
@pytest.mark.parametrize("options", [{}, ALL_PARTS], ids=["plain", "all parts"])
def test_every_parameter_and_buffer_survives_saving_and_loading(tmp_path, shards, options):
    model = small_model(**options)
    model.save_pretrained(tmp_path, **({"max_shard_size": shards} if shards else {}))
    assert len(list(tmp_path.glob("*.safetensors"))) == 1 if shards is None else len(list(tmp_path.glob("*"))) > 3
    loaded, info = WalrusForPrediction.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same_state(model, loaded)
    assert not loaded.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_checkpoint_loads_in_the_dtype_asked_for_and_keeps_its_own_by_default(tmp_path, dtype):
    model = small_model()
    model.to(dtype).save_pretrained(tmp_path)
    for asked, expected in ((None, dtype), ("auto", dtype), (dtype, dtype), (torch.float32, torch.float32)):
        loaded = WalrusForPrediction.from_pretrained(tmp_path, **({} if asked is None else {"dtype": asked}))
        assert {p.dtype for p in loaded.parameters()} == {expected}
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter.to(expected), loaded.get_parameter(name)), name


@pytest.mark.parametrize(
    "device_map",
    ["auto", {"": "cpu"}, {"model": "cpu", "decoder": "disk"}, {"model.embeddings": "disk", "model.layers": "cpu",
     "decoder": "cpu"}],
    ids=["auto", "cpu", "decoder on disk", "encoders on disk"],
)  # fmt: skip
def test_a_model_spread_over_devices_forecasts_the_same(tmp_path, device_map):
    model = small_model()
    model.save_pretrained(tmp_path / "model")
    loaded = WalrusForPrediction.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload"
    )
    for grid in (PLANE, VOLUME):
        inputs = small_inputs(grid)
        with torch.no_grad():
            found = loaded(**inputs).prediction.cpu()
            torch.testing.assert_close(found, model(**inputs).prediction)


def test_base_and_head_read_each_others_checkpoints(tmp_path):
    model = small_model()
    model.save_pretrained(tmp_path / "head")
    base = AutoModel.from_pretrained(tmp_path / "head")
    assert type(base) is WalrusModel
    assert_same_state(model.model, base)
    base.save_pretrained(tmp_path / "base")
    head, info = AutoModelForTimeSeriesPrediction.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert type(head) is WalrusForPrediction
    assert_same_state(model.model, head.model)
    assert info["missing_keys"] == {name for name in model.state_dict() if name.startswith("decoder")}


def test_what_the_processor_gives_serves_the_model_with_and_without_its_head(tmp_path):
    WalrusPipeline(small_model(field2id=None)).save_pretrained(tmp_path)
    values, mask = np.random.default_rng(0).normal(size=(3, 16, 24, 2)), np.zeros((16, 24), dtype=bool)
    mask[:3] = True
    given = Trajectory({"velocity": values}, {"x": "periodic", "y": "wall"}, obstacle_mask=mask)
    inputs = AutoProcessor.from_pretrained(tmp_path)(given)
    assert {"padded_channels", "obstacle_mask"} <= inputs.keys()
    base, head = (auto.from_pretrained(tmp_path) for auto in (AutoModel, AutoModelForTimeSeriesPrediction))
    scales = {"value_scales": torch.ones(1, 3), "change_scales": torch.ones(1, 3)}
    with torch.no_grad():
        tokens = base(**inputs, **scales).last_hidden_state
        assert torch.equal(tokens, head(**inputs, **scales, output_hidden_states=True).hidden_states[-1])


@pytest.mark.parametrize("missing", ["decoder", "model.layers.1", "model.embeddings", "model.absolute_position"])
def test_weights_that_a_checkpoint_lacks_are_drawn_as_in_a_fresh_model(tmp_path, missing):
    model = small_model(initializer_range=1e-6, **ALL_PARTS)
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(missing)}
    model.save_pretrained(tmp_path, state_dict=state)
    loaded, info = WalrusForPrediction.from_pretrained(tmp_path, output_loading_info=True)
    absent = {name for name in model.state_dict() if name.startswith(missing)}
    assert absent
    assert info["missing_keys"] == absent
    for name, parameter in loaded.named_parameters():
        fresh = model.get_parameter(name)
        if name not in absent:
            assert torch.equal(parameter, fresh), name
        elif fresh.std() == 0 or "rotary" in name:
            assert torch.equal(parameter, fresh), name  # ones, zeros and rotary constants
        else:
            assert 0.5 < parameter.std() / fresh.std() < 2.0, name
            assert not torch.equal(parameter, fresh), name


def test_the_blocks_of_a_fresh_model_leave_the_tokens_as_they_are():
    model = small_model(initializer_range=1e-6)
    inputs = small_inputs()
    hidden = model.model(**inputs, output_hidden_states=True).hidden_states
    torch.testing.assert_close(hidden[0], hidden[-1], atol=1e-4, rtol=0)


def test_deepcopy_and_pickle_keep_the_model():
    model, inputs = small_model(**{"rope_learnable": "shared"}), small_inputs(VOLUME)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same_state(model, twin)
        assert torch.equal(twin(**inputs).prediction, model(**inputs).prediction)


def test_importing_the_package_leaves_heavy_optional_packages_alone():
    code = """if True:
        import sys, walrus_hf
        print([m for m in ("h5py", "xarray", "matplotlib", "jax", "peft") if m in sys.modules])
        import walrus_hf.data.simulate
        print([m for m in ("jax", "exponax") if m in sys.modules])
    """
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split("\n") == ["[]", "[]", ""]
