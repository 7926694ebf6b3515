"""The model computes what the published implementation computes: golden numbers of tests/fixtures/cases.json."""

import numpy as np
import pytest
import torch

from walrus_hf import WalrusConfig, WalrusForPrediction
from walrus_hf.bench.plain import PlainWalrus
from walrus_hf.convert import published_state_dict_to_walrus
from walrus_hf.fields import BoundaryCondition
from walrus_hf.normalization import delta_scales, per_channel

from .fixtures.formula import CASES, expected_slice, field_values, published_state_dict

VOCAB = {name: i for i, name in enumerate(CASES["vocab"])}
CFG = CASES["cfg"]
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}


def parity_config(**kwargs) -> WalrusConfig:
    return WalrusConfig(
        hidden_size=CFG["hidden"], intermediate_size=2 * CFG["hidden"], num_hidden_layers=CFG["blocks"],
        num_attention_heads=CFG["heads"], stem_hidden_size=CFG["inter"], field2id=VOCAB, drop_path_rate=0.05, **kwargs,
    )  # fmt: skip


def parity_model(dtype: torch.dtype, encoder_dummy: float | None = None, **kwargs) -> WalrusForPrediction:
    config = parity_config(**kwargs)
    published = {name: torch.tensor(values, dtype=dtype) for name, values in published_state_dict().items()}
    if encoder_dummy is not None:
        published["encoder_dummy"].fill_(encoder_dummy)
    model = WalrusForPrediction(config).to(dtype)
    model.load_state_dict(published_state_dict_to_walrus(published, config))
    return model.eval()


def model_inputs(case: dict, dtype: torch.dtype) -> dict:
    values = torch.tensor(field_values(case), dtype=dtype)
    batch, constants = case["batch"], len(case["constant_fields"])
    sides = [[int(BoundaryCondition.parse(side)) for side in pair] for pair in case["boundary_conditions"]]
    inputs = {
        "field_values": values,
        "field_ids": torch.tensor([[VOCAB[name] for name in case["fields"]]] * batch),
        "boundary_conditions": torch.tensor([sides] * batch),
        "jitter": case["jitter"],
    }
    if constants:
        inputs["field_values"] = values[:, :, :-constants]
        inputs["constant_values"] = values[:, 0, -constants:]
        inputs["constant_ids"] = torch.tensor([[VOCAB[name] for name in case["constant_fields"]]] * batch)
    if case["jitter"]:
        inputs["patch_shifts"], inputs["layer_shifts"] = case["patch_shifts"], case["layer_shifts"]
    return inputs


def assert_golden(found: torch.Tensor, expected: dict, dtype: torch.dtype) -> None:
    values = found.detach().double().numpy()
    assert list(values.shape) == expected["shape"]
    reference = np.array(expected["slice"])
    rms = expected["rms"]
    # The stored digits are nine: half a unit of the ninth digit comes on top of the bar.
    stored = 0.5 * 10.0 ** (np.floor(np.log10(np.maximum(np.abs(reference), 1e-300))) - 8)
    assert (np.abs(expected_slice(values, expected) - reference) <= TOLERANCE[dtype] * rms + stored).all()
    relative = 1e-12 if dtype == torch.float64 else 1e-4
    assert np.sqrt((values**2).mean()) == pytest.approx(rms, rel=relative)
    assert values.mean() == pytest.approx(expected["mean"], abs=relative * rms)
    assert np.abs(values).max() == pytest.approx(expected["max"], rel=relative)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("case", CASES["cases"], ids=[case["name"] for case in CASES["cases"]])
def test_every_golden_case_is_matched(case, dtype):
    with torch.no_grad():
        output = parity_model(dtype)(**model_inputs(case, dtype))
    assert_golden(output.delta, case["expected"]["delta"], dtype)
    assert_golden(output.prediction, case["expected"]["prediction"], dtype)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_both_attention_implementations_match_the_golden_numbers(attention):
    model = parity_model(torch.float64)
    model.set_attn_implementation(attention)
    for case in CASES["cases"][:2]:
        output = model(**model_inputs(case, torch.float64))
        assert_golden(output.delta, case["expected"]["delta"], torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_the_golden_rollout_is_matched(dtype):
    case = CASES["rollout"]
    inputs = model_inputs(case, dtype)
    found = parity_model(dtype).predict(num_steps=case["steps"], **inputs)
    assert_golden(found, case["expected"]["rollout"], dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_the_golden_loss_and_its_gradients_are_matched(dtype):
    case = CASES["loss"]
    inputs = model_inputs(case, dtype)
    frames = inputs.pop("field_values")
    model = parity_model(dtype, encoder_dummy=case["encoder_dummy"])
    output = model(field_values=frames[:, :-1], labels=frames[:, 1:], **inputs)
    output.loss.backward()
    relative = 1e-4 if dtype == torch.float32 else 1e-10
    assert output.loss.item() == pytest.approx(case["expected"]["loss"], rel=relative)
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    total = torch.stack([g.square().sum() for g in grads.values()]).sum().sqrt().item()
    assert total == pytest.approx(case["expected"]["grad_norm"], rel=relative)
    # Norms of the published tensors, put together from ours: a published tensor is one or several of ours.
    config = parity_config()
    for name, expected in case["expected"]["grad_norms"].items():
        marked = {n: torch.full(s, float(n == name)) for n, s in CASES["parameters"].items()}
        marked |= {n: torch.from_numpy(w) for n, w in published_state_dict().items() if n.endswith("freqs")}
        marked["encoder_dummy"] = torch.ones(1)
        ours = [n for n, t in published_state_dict_to_walrus(marked, config).items() if t.any()]
        norm = sum(grads[n].square().sum().item() for n in ours) ** 0.5
        assert norm == pytest.approx(expected, rel=10 * relative, abs=1e-7 if dtype == torch.float32 else 1e-15), name


# Of gradient descent at a rate of 0.002 on one window of 3 frames, 64 x 32 cells, from the published formula's weights.
LOSSES = [
    0.6931967452, 0.6911396982, 0.6889270964, 0.6866560564, 0.6846908824, 0.6831189201, 0.6816709414, 0.6803655223,
    0.6791903749, 0.6782433498, 0.6773834760, 0.6765747694, 0.6758247674, 0.6751102184, 0.6744315230, 0.6737754788,
    0.6731357108, 0.6725053993, 0.6718825728, 0.6712418646,
]  # fmt: skip


def losses_of_descent(model: torch.nn.Module, loss_of) -> list[float]:
    optimizer, losses = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=2e-3), []
    for _ in LOSSES:
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_twenty_steps_of_training_find_the_recorded_losses_and_those_of_the_plain_reading():
    inputs = model_inputs(CASES["loss"], torch.float64)
    frames = inputs.pop("field_values")[:, :4, :, :64, :32]
    before, after = frames[:, :-1], frames[:, 1:]
    ours = parity_model(torch.float64, encoder_dummy=1.0, tokens_per_axis=8)
    found = losses_of_descent(ours, lambda: ours(field_values=before, labels=after, **inputs).loss)
    assert found == pytest.approx(LOSSES, rel=1e-8)
    plain = PlainWalrus(ours.config).double().eval()
    published = {name: torch.tensor(values, dtype=torch.float64) for name, values in published_state_dict().items()}
    plain.load_state_dict(published | {"encoder_dummy": torch.ones_like(published["encoder_dummy"])})
    for name, parameter in plain.named_parameters():  # constants here; the factor would be trained beside the weights
        parameter.requires_grad_(name != "encoder_dummy" and not name.endswith("freqs"))
    target = (after - before) / per_channel(delta_scales(before, ours.config.scale_eps))
    sides = inputs["boundary_conditions"][0].tolist()
    loss = losses_of_descent(
        plain, lambda: (plain(before, inputs["field_ids"][0], sides)[1] - target)[:, 1:].abs().mean()
    )
    assert found == pytest.approx(loss, rel=1e-9)
