"""One-step errors of a batch: what counts and what does not."""

import numpy as np
import torch

from walrus_hf.metrics import vrmse
from walrus_hf.training.validation import SPACE, error_sums


def batch():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 3, 3, 8, 6, 1, generator=generator)  # (B, T, C, H, W, D)
    padded = torch.tensor([[False, False, True]] * 2)
    return {"field_values": states, "labels": states + torch.randn(states.shape, generator=generator),
            "padded_channels": padded}  # fmt: skip


def test_sums_are_those_of_channels_that_are_not_padding():
    inputs, forecast = batch(), torch.randn(2, 3, 8, 6, 1, generator=torch.Generator().manual_seed(1))
    error, still, count = error_sums(forecast, inputs).tolist()
    truth, last = inputs["labels"][:, -1].numpy(), inputs["field_values"][:, -1].numpy()
    assert count == 4
    np.testing.assert_allclose(error, vrmse(forecast.numpy(), truth, SPACE)[:, :2].sum(), rtol=1e-6)
    np.testing.assert_allclose(still, vrmse(last, truth, SPACE)[:, :2].sum(), rtol=1e-6)
    assert error_sums(inputs["labels"][:, -1], inputs)[0] == 0


def test_cells_in_obstacles_are_without_error():
    inputs = batch()
    inputs["obstacle_mask"] = torch.zeros(2, 8, 6, 1, dtype=torch.bool)
    inputs["obstacle_mask"][:, 2:4, 1:3] = True
    forecast = inputs["labels"][:, -1].clone()
    forecast[:, :, 2:4, 1:3] = 1e3
    error, still, _ = error_sums(forecast, inputs).tolist()
    assert error == 0
    assert still < float(error_sums(forecast, batch())[1])


def test_forecasts_in_bfloat16_are_scored_in_float32():
    inputs = batch()
    forecast = inputs["labels"][:, -1].bfloat16()
    rounded = error_sums(forecast, inputs)
    assert torch.equal(rounded, error_sums(forecast.float(), inputs))
    assert 0 < rounded[0] < 0.02
