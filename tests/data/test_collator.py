"""From batches of a stream to keyword arguments of the model."""

import pytest
import torch

from walrus_hf import WalrusConfig, WalrusForPrediction
from walrus_hf.data import BatchReader, ScenarioIndex, build_manifest, collate

from .wells import write_source


@pytest.fixture
def batches(tmp_path):
    index = ScenarioIndex("flow", build_manifest(write_source(tmp_path / "a", files=1) / "data" / "train"), frames=4)
    reader = BatchReader([index])
    return [reader.read({"source": 0, "windows": [[0, n, 0, 1], [0, n, 3, 1]]}) for n in range(3)]


def test_a_batch_becomes_inputs_that_the_model_takes_with_a_loss(batches):
    inputs = collate(batches[0])
    assert set(batches[0]) - set(inputs) == {"source", "window"}
    config = WalrusConfig.tiny(tokens_per_axis=4)
    with torch.no_grad():
        out = WalrusForPrediction(config)(**inputs, jitter=False)
    assert out.loss > 0
    assert out.prediction.shape == batches[0]["labels"].shape


def test_several_batches_are_put_together_in_order(batches):
    inputs = collate(batches)
    assert inputs["field_values"].shape[0] == 6
    assert torch.equal(inputs["labels"][2:4], batches[1]["labels"])
    assert inputs["constant_values"].shape[0] == 6


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("boundary_conditions", lambda t: 2 - t, "boundary_conditions: expected the same in each row"),
        ("field_ids", lambda t: t + 1, "field_ids: expected the same in each row"),
        ("padded_channels", lambda t: ~t, "padded_channels: expected the same in each row"),
        ("field_values", lambda t: t[..., 1:, :], "field_values: expected batches of one shape"),
        ("obstacle_mask", lambda t: t, "expected batches with the inputs"),
    ],
)
def test_batches_of_different_topology_are_refused(batches, name, change, message):
    other = dict(batches[1])
    other[name] = change(other.get(name, torch.zeros(2, 10, 12, 1, dtype=torch.bool)))
    with pytest.raises(ValueError, match=message):
        collate([batches[0], other])


def test_nothing_is_refused(batches):
    with pytest.raises(ValueError, match="at least one batch"):
        collate([])
