"""Fourier neural operators: single waves by hand, shifts, odd grids, boundaries."""

import numpy as np
import pytest
import torch

pytest.importorskip("neuralop")

from neuralop.layers.spectral_convolution import SpectralConv

from walrus_hf.evaluation.fourier_operators import (
    FourierOperator,
    SpectralConvolution,
    UFourierOperator,
    domain_padding,
)

WALL, OPEN, PERIODIC = 0, 1, 2
RING = (PERIODIC, PERIODIC)


def strong(network):
    """Weights that keep the size of what passes through them, so that everything counts."""
    for parameter in network.parameters():
        if parameter.is_complex():
            torch.nn.init.normal_(torch.view_as_real(parameter.data), std=0.7)
        else:
            std = 1.5 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 and parameter.shape[1] > 1 else 0.5
            torch.nn.init.normal_(parameter, std=std)
    return network.eval()


@pytest.mark.parametrize("grid", [(12, 16), (13, 16), (12, 15), (11, 13), (5, 16), (8, 3), (9,), (9, 12, 7)], ids=str)
def test_the_spectral_layer_multiplies_each_wave_by_its_weight(grid):
    torch.manual_seed(0)
    layer = SpectralConvolution(1, 1, (8,) * len(grid), bias=False)
    weight = layer.weight.to_tensor().detach().numpy()[0, 0]
    cells = np.meshgrid(*(np.arange(n) / n for n in grid), indexing="ij")
    kept = [range(-((min(n, 8) - 1) // 2), (min(n, 8) - 1) // 2 + 1) for n in grid[:-1]]
    kept.append(range(1, min(5, (grid[-1] + 1) // 2)))  # positive ones of the last axis, without the mean and Nyquist
    for wave in np.stack([axis.ravel() for axis in np.meshgrid(*kept, indexing="ij")], 1).tolist():
        phase = 2 * np.pi * sum(k * x for k, x in zip(wave, cells)) + 0.3
        with torch.no_grad():
            out = layer(torch.tensor(np.cos(phase), dtype=torch.float32)[None, None])[0, 0].numpy()
        place = (*(k + 4 for k in wave[:-1]), wave[-1])
        np.testing.assert_allclose(out, np.real(weight[place] * np.exp(1j * phase)), atol=1e-5, err_msg=str(wave))


@pytest.mark.parametrize("grid", [(12, 16), (8, 15), (8, 10, 12)], ids=str)
def test_the_spectral_layer_is_that_of_neuralop_where_that_is_right(grid):
    torch.manual_seed(0)
    theirs = SpectralConv(3, 4, (8,) * len(grid))
    ours = SpectralConvolution(3, 4, (8,) * len(grid))
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, *grid)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("grid", [(13, 16), (9, 11), (7, 9, 5), (11,)], ids=str)
def test_fno_commutes_with_shifts_on_periodic_axes_of_any_size(grid):
    torch.manual_seed(0)
    network = strong(FourierOperator(3, 2, 6, len(grid), 6))
    x, sides = torch.randn(2, 3, *grid), [RING] * len(grid)
    with torch.no_grad():
        out = network(x, sides)
        assert out.shape == (2, 2, *grid)
        for axis in range(2, 2 + len(grid)):
            moved = network(x.roll(1, axis), sides)
            torch.testing.assert_close(moved, out.roll(1, axis), atol=1e-4 * float(out.abs().max()), rtol=1e-4)


def test_u_fno_commutes_with_shifts_of_the_coarsest_cell_of_its_paths():
    torch.manual_seed(0)
    network, sides = strong(UFourierOperator(3, 2, 6, 2, 6)), [RING, RING]
    x = torch.randn(2, 3, 16, 12)
    with torch.no_grad():
        out = network(x, sides)
        for axis in (2, 3):
            moved = network(x.roll(4, axis), sides)
            torch.testing.assert_close(moved, out.roll(4, axis), atol=1e-4 * float(out.abs().max()), rtol=1e-4)
        assert (network(x.roll(1, 2), sides) - out.roll(1, 2)).abs().max() > 1e-3 * out.std(), (
            "the paths have a grid of their own"
        )


@pytest.mark.parametrize("operator", [FourierOperator, UFourierOperator])
@pytest.mark.parametrize("grid", [(16, 9), (12, 7, 9)], ids=str)
def test_axes_with_walls_are_padded_and_the_others_are_not(operator, grid):
    torch.manual_seed(0)
    network, rest = strong(operator(3, 2, 5, len(grid), 6)), [RING] * (len(grid) - 1)
    padding = domain_padding([(WALL, OPEN), *rest])
    assert padding.pad(torch.ones(1, 1, *grid)).shape[2:] == (grid[0] + 2 * round(grid[0] / 8), *grid[1:])
    assert domain_padding([RING, *rest]) is None
    x = torch.randn(1, 3, *grid)
    with torch.no_grad():
        closed, ring = network(x, [(WALL, WALL), *rest]), network(x, [RING, *rest])
        assert closed.shape == ring.shape == (1, 2, *grid)
        assert (closed - ring).abs().max() > 0.1 * ring.std()
        torch.testing.assert_close(network(x, [RING, *rest]), ring)  # nothing stays behind from another geometry
        torch.testing.assert_close(network(x, [(WALL, WALL), *rest]), closed)
        # The periodic axes are still rings.
        moved = network(x.roll(4, 3), [(WALL, WALL), *rest])
        if operator is FourierOperator:
            torch.testing.assert_close(moved, closed.roll(4, 3), atol=1e-4 * float(closed.abs().max()), rtol=1e-4)


@pytest.mark.parametrize("operator", [FourierOperator, UFourierOperator])
@torch.no_grad()
def test_every_parameter_changes_the_forecast(operator):
    torch.manual_seed(0)
    network = strong(operator(3, 2, 5, 2, 4))
    x = torch.randn(1, 3, 6, 9)
    whole = network(x, [RING, (WALL, OPEN)])
    for name, parameter in network.named_parameters():
        kept = parameter.clone()
        parameter.mul_(-1.5)
        changed = (network(x, [RING, (WALL, OPEN)]) - whole).abs().max()
        parameter.copy_(kept)
        # A norm takes away what is the same everywhere: the biases before it.
        assert changed > 1e-4 or name.endswith(("conv1.bias", "conv2.bias")), name
