"""Scales of fields and of their changes, against plain numpy in float64."""

import numpy as np
import pytest
import torch

from walrus_hf.normalization import accurate, delta_scales, field_scales, per_channel

SHAPE = (2, 5, 3, 6, 9, 4)  # batch, frames, channels, H, W, D
EPS = 1e-5


def raw_fields(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Fields of very different size and offset, each sample with a size of its own."""
    rng = np.random.default_rng(0)
    size = np.array([1e-3, 1.0, 1e4]).reshape(1, 1, 3, 1, 1, 1) * np.array([1.0, 7.0]).reshape(2, 1, 1, 1, 1, 1)
    return size * (rng.normal(size=shape).cumsum(1) + 3.0)


def rms(x: np.ndarray) -> np.ndarray:
    """Root mean square of each (sample, channel), one at a time."""
    return np.array([[np.sqrt(np.mean(x[b, :, c] ** 2)) for c in range(x.shape[2])] for b in range(x.shape[0])])


@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_fields_are_scaled_by_their_root_mean_square_without_taking_off_a_mean(dtype, relative):
    x = raw_fields()
    found = field_scales(torch.tensor(x, dtype=dtype), EPS)
    assert found.dtype == dtype
    np.testing.assert_allclose(found.numpy(), rms(x), rtol=relative)


@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_deltas_are_scaled_by_the_root_mean_square_of_the_change_between_frames(dtype, relative):
    x = raw_fields()
    found = delta_scales(torch.tensor(x, dtype=dtype), EPS)
    assert found.dtype == dtype
    np.testing.assert_allclose(found.numpy(), rms(np.diff(x, axis=1)), rtol=relative)


def test_samples_and_channels_do_not_see_each_other():
    x = torch.tensor(raw_fields())
    changed = x.clone()
    changed[1, :, 2] *= 100.0
    for scales in (field_scales, delta_scales):
        before, after = scales(x, EPS), scales(changed, EPS)
        torch.testing.assert_close(after[1, 2], 100.0 * before[1, 2])
        same = torch.ones(2, 3, dtype=torch.bool)
        same[1, 2] = False
        assert torch.equal(before[same], after[same])


def test_a_single_frame_has_a_delta_scale_of_one_exactly():
    x = torch.tensor(raw_fields((2, 1, 3, 6, 9, 4)))
    assert torch.equal(delta_scales(x, EPS), torch.ones(2, 3, dtype=torch.float64))


@pytest.mark.parametrize("eps", [1e-5, 1e-8])
def test_zeros_and_tiny_fields_are_scaled_by_eps(eps):
    x = torch.zeros(SHAPE)
    x[:, :, 1] = 0.1 * eps * (torch.arange(5.0) % 2 * 2 - 1)[None, :, None, None, None]
    x[:, :, 2] = 5.0  # a constant does not change
    assert torch.equal(field_scales(x, eps)[:, :2], torch.full((2, 2), eps))
    assert torch.equal(delta_scales(x, eps), torch.full((2, 3), eps))
    assert field_scales(x, eps)[0, 2] == 5.0


def test_scaled_fields_have_a_root_mean_square_of_one():
    x = torch.tensor(raw_fields())
    np.testing.assert_allclose(rms((x / per_channel(field_scales(x, EPS))).numpy()), np.ones((2, 3)), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scales_are_never_less_accurate_than_float32(dtype):
    # 300 squared is beyond float16, and steps of 1 on top of 300 are beyond bfloat16.
    x = (300.0 + torch.arange(8.0).view(1, 8, 1, 1, 1, 1).expand(1, 8, 1, 16, 12, 1)).to(dtype)
    exact = x.double().numpy()
    for found, expected in ((field_scales(x, EPS), rms(exact)), (delta_scales(x, EPS), rms(np.diff(exact, axis=1)))):
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
    assert delta_scales(x[:, :1], EPS).dtype == torch.float32


def test_scales_under_autocast_stay_float32():
    x = torch.tensor(raw_fields(), dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(field_scales(x, EPS), field_scales(x.clone(), EPS))
        assert field_scales(x, EPS).dtype == delta_scales(x, EPS).dtype == torch.float32
        np.testing.assert_allclose(field_scales(x, EPS).numpy(), rms(x.double().numpy()), rtol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.int32, torch.float32),
    ],
)
def test_accurate_means_float32_or_better(dtype, kept):
    assert accurate(torch.ones(2, dtype=dtype)).dtype == kept


def test_per_channel_multiplies_each_channel_of_each_sample():
    scales = torch.arange(1.0, 7.0).view(2, 3)
    scaled = torch.ones(SHAPE) * per_channel(scales)
    for b in range(2):
        for c in range(3):
            assert (scaled[b, :, c] == scales[b, c]).all()
