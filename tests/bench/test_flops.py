"""The counted operations of a forward pass are those that torch's own counter sees."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from walrus_hf import WalrusConfig, WalrusForPrediction
from walrus_hf.bench.cases import CASES, NETWORK
from walrus_hf.bench.flops import forward_flops
from walrus_hf.bench.plain import PlainWalrus
from walrus_hf.processing_walrus import WalrusProcessor

from ..small_model import small_config

WALLS, BOX = [(0, 1)] * 3, [(2, 2)] * 3
GRIDS = {"plane": (16, 32, 1), "volume": (16, 32, 16), "line": (1, 64, 1)}
FRAMES, CHANNELS, FLAGS = 5, 2, 3
LINEAR = (torch.ops.aten.addmm, torch.ops.aten.mm)
ATTENTION = torch.ops.aten.bmm
CONVOLUTION = torch.ops.aten.convolution


def plan_of(config: WalrusConfig, grid, sides):
    return WalrusProcessor(
        tokens_per_axis=config.tokens_per_axis, tokens_per_axis_3d=config.tokens_per_axis_3d,
        num_hidden_layers=config.num_hidden_layers,
    ).plan(grid, sides, seed=0)  # fmt: skip


def counted(module: torch.nn.Module, *inputs, depth: int = 2, **kwargs) -> dict[str, dict]:
    """Operations by module and kind, on the meta device: nothing is computed."""
    with torch.no_grad(), FlopCounterMode(display=False, depth=depth) as counter:
        module(*inputs, **kwargs)
    return counter.get_flop_counts()


def count_model(config: WalrusConfig, grid, frames: int, channels: int, sides, keep: int):
    with torch.device("meta"):
        model = WalrusForPrediction(config).eval()
        inputs = torch.empty(1, frames, channels, *grid), torch.zeros(1, channels, dtype=torch.long)
    model.set_attn_implementation("eager")  # as matrix products, which the counter sees
    plan = plan_of(config, grid, sides)
    found = counted(model, *inputs, plan=plan, frames_to_keep=keep)
    return found, forward_flops(config, plan, frames, channels, frames_to_keep=keep)


def count_plain(config: WalrusConfig, grid, frames: int, channels: int, sides):
    plan = plan_of(config, grid, sides)
    with torch.device("meta"):
        model = PlainWalrus(config).eval()
        fields, ids = torch.empty(1, frames, channels, *grid), torch.zeros(channels, dtype=torch.long)
        found = counted(model, fields, ids, plan.boundaries, plan.strides, True, plan.patch_shifts, plan.layer_shifts)
    parts = forward_flops(config, plan, frames, channels)
    # Flags are channels of every frame on the plain side.
    return found, parts | {"encoder": forward_flops(config, plan, frames, channels + FLAGS)["encoder"]}


@pytest.mark.parametrize("keep", [0, 1, 2], ids=["all frames", "last frame", "last frames"])
@pytest.mark.parametrize("sides", [BOX, WALLS], ids=["periodic", "walls"])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_small_models_do_what_is_counted(grid, sides, keep):
    found, parts = count_model(small_config(), grid, FRAMES, CHANNELS, sides, keep)
    every = found["Global"]
    assert sum(every.get(kind, 0) for kind in LINEAR) == parts["linears"]
    encoder = found["WalrusForPrediction.model"]
    flags = encoder[ATTENTION] - parts["attention"]  # in a periodic box they are one cell: a small product
    assert 0 <= flags <= 2 * 8 * FLAGS
    if sides == BOX:
        assert encoder[CONVOLUTION] == parts["encoder"]
    else:  # one frame of flags on top
        per_channel = parts["encoder"] / FRAMES / CHANNELS
        assert parts["encoder"] < encoder[CONVOLUTION] < parts["encoder"] + FLAGS * per_channel
    # The pixel shuffle also computes the cells that are cropped, which few tokens have many of.
    assert parts["decoder"] <= found["WalrusForPrediction.decoder"][CONVOLUTION]


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_the_plain_reading_between_walls_does_what_is_counted_in_every_part(grid):
    found, parts = count_plain(small_config(), grid, FRAMES, CHANNELS, WALLS)
    assert sum(found["Global"].get(kind, 0) for kind in LINEAR) == parts["linears"]
    assert found["Global"][ATTENTION] == parts["attention"]
    kind = "2" if 1 in grid else "3"
    assert found[f"PlainWalrus.embed.{kind}"][CONVOLUTION] == parts["encoder"]
    assert found[f"PlainWalrus.debed.{kind}"][CONVOLUTION] == parts["decoder"]


@pytest.mark.parametrize("name", CASES)
def test_the_reference_case_has_the_operations_by_which_shares_are_measured(name):
    case = CASES[name]
    config = WalrusConfig(**NETWORK)
    sizes = config, case["grid"], case["frames"], 4, BOX
    found, parts = count_plain(*sizes)
    every = found["Global"]
    tokens = plan_of(config, case["grid"], BOX).num_tokens
    in_space = parts["attention"] * tokens / (tokens + case["frames"])
    assert sum(every.values()) - in_space == pytest.approx(case["reference_flops"], abs=0.05e9)
    found, parts = count_model(*sizes, keep=1)
    assert sum(found["Global"].get(kind, 0) for kind in LINEAR) == parts["linears"]
    assert found["WalrusForPrediction.model"][CONVOLUTION] == parts["encoder"]
    # The pixel shuffle reaches one token beyond each stage; it must not pay for the wrapped cells around it as well.
    assert parts["decoder"] <= found["WalrusForPrediction.decoder"][CONVOLUTION] < 1.25 * parts["decoder"]
    # Ours does less than the reference counts all the same.
    without_attention = sum(found["Global"].values()) - found["Global"][ATTENTION]
    assert without_attention < 0.9 * case["reference_flops"]
