"""The U-Net: any grid, and padding that follows the boundaries."""

import numpy as np
import pytest
import torch

from walrus_hf.evaluation.unet import UNet, add_halo, double, make_even

WALL, OPEN, PERIODIC = 0, 1, 2
RING = (PERIODIC, PERIODIC)
NUMPY_MODES = {WALL: "constant", OPEN: "edge", PERIODIC: "wrap"}


def strong_unet(ndim, seed=0, **kwargs):
    """Weights far from their small start, so that every path counts."""
    torch.manual_seed(seed)
    network = UNet(3, 2, 4, ndim, **kwargs)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=1.5 / parameter[0].numel() ** 0.5)
    return network.eval()


@pytest.mark.parametrize("low", [WALL, OPEN])
@pytest.mark.parametrize("high", [WALL, OPEN])
def test_the_halo_of_each_side_is_what_numpy_pads_there(low, high):
    x = torch.randn(2, 3, 5, 4, 3, generator=torch.Generator().manual_seed(0))
    padded = add_halo(x, [(low, high), RING, (high, low)])
    expected = x.numpy()
    for axis, (first, last) in zip((2, 3, 4), [(low, high), RING, (high, low)]):
        before, after = [(0, 0)] * 5, [(0, 0)] * 5
        before[axis], after[axis] = (1, 0), (0, 1)
        grown = np.pad(expected, before, NUMPY_MODES[first])
        # The cell beyond the high side comes from the cells that were given, not from the new one.
        beyond = np.pad(expected, after, NUMPY_MODES[last]).take([-1], axis)
        expected = np.concatenate([grown, beyond], axis)
    np.testing.assert_array_equal(padded.numpy(), expected)


def test_odd_axes_get_one_cell_of_their_high_side_and_even_ones_none():
    x = torch.arange(1.0, 16).reshape(1, 1, 3, 5)
    assert torch.equal(make_even(x, [RING, (WALL, OPEN)])[0, 0, 3, :5], x[0, 0, 0])
    assert torch.equal(make_even(x, [RING, (WALL, OPEN)])[0, 0, :3, 5], x[0, 0, :, 4])
    assert torch.equal(make_even(x, [RING, (OPEN, WALL)])[0, 0, :, 5], torch.zeros(4))
    assert make_even(x[..., :2, :4], [RING, RING]).shape == (1, 1, 2, 4)


def test_doubling_repeats_cells_and_cuts_to_the_finer_grid():
    assert double(torch.tensor([[[1.0, 2.0, 3.0]]]), [5]).tolist() == [[[1, 1, 2, 2, 3]]]


@pytest.mark.parametrize("grid", [(21,), (16, 24), (9, 13), (1, 5), (8, 12, 10), (5, 7, 3)], ids=str)
@pytest.mark.parametrize("kinds", [RING, (WALL, OPEN)], ids=["periodic", "wall and open"])
def test_the_grid_that_goes_in_comes_out(grid, kinds):
    network = strong_unet(len(grid))
    out = network(torch.randn(2, 3, *grid), [kinds, *[RING] * (len(grid) - 1)])
    assert out.shape == (2, 2, *grid)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("grid", [(16, 24), (16, 24, 16)], ids=str)
def test_it_commutes_with_shifts_of_a_coarsest_cell_on_periodic_axes_alone(grid):
    network, x = strong_unet(len(grid)), torch.randn(1, 3, *grid)
    sides = [RING] * len(grid)
    for axis in range(2, 2 + len(grid)):
        moved = network(x.roll(8, axis), sides)
        torch.testing.assert_close(moved, network(x, sides).roll(8, axis), atol=1e-4, rtol=1e-4)
        walls = [(WALL, WALL) if i + 2 == axis else RING for i in range(len(grid))]
        moved = network(x.roll(8, axis), walls)
        assert (moved - network(x, walls).roll(8, axis)).abs().max() > 0.1


def test_every_boundary_kind_gives_another_forecast():
    network, x = strong_unet(2), torch.randn(1, 3, 12, 10)
    found = [network(x, [kinds, RING]) for kinds in (RING, (WALL, WALL), (OPEN, OPEN), (WALL, OPEN), (OPEN, WALL))]
    for i, one in enumerate(found):
        assert all((one - other).abs().max() > 1e-3 for other in found[:i])


def test_every_level_and_every_skip_takes_part():
    network, x, sides = strong_unet(2), torch.randn(1, 3, 16, 24), [RING, RING]
    whole = network(x, sides)
    modules = [*network.halve, *network.down, *network.narrow, *network.up, network.first, network.last]
    assert len(modules) == 4 * 3 + 2
    for module in modules:
        kept = {name: p.detach().clone() for name, p in module.named_parameters()}
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.zero_()
            assert (network(x, sides) - whole).abs().max() > 1e-2, module
            for name, parameter in module.named_parameters():
                parameter.copy_(kept[name])
    skips = network.up[0].conv1.weight
    with torch.no_grad():
        skips[:, :4] = 0
    assert (network(x, sides) - whole).abs().max() > 1e-2
