"""What a transformers model promises: attention, outputs, determinism, gradients, checkpointing, half precision."""

import functools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import create_selective_checkpoint_contexts

from walrus_hf import WalrusConfig, WalrusForPrediction
from walrus_hf.bench.footprint import peak_of, resident
from walrus_hf.layers import WalrusDropPath, apply_rotary, rotary_table

from .small_model import ALL_PARTS, PERIODIC, PLANE, VOLUME, WALL_OPEN, small_config, small_inputs, small_model

GRIDS = [PLANE, VOLUME]


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# --- attention and recorded outputs


@pytest.mark.parametrize("grid", GRIDS, ids=["2D", "3D"])
def test_eager_and_sdpa_attention_agree_and_can_be_changed_at_run_time(grid):
    model, inputs = small_model(), small_inputs(grid, frames=4)
    assert model.config._attn_implementation == "sdpa"
    with_sdpa = model(**inputs).delta
    model.set_attn_implementation("eager")
    with_eager = model(**inputs).delta
    torch.testing.assert_close(with_sdpa, with_eager, atol=1e-5, rtol=1e-4)
    # The weights are strong enough for this comparison to notice a wrong scale.
    for layer in model.model.layers:
        layer.space_mixing.scaling *= 1.1
    assert (model(**inputs).delta - with_eager).abs().max() > 1e-3


@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention"])
def test_attention_that_has_no_relative_bias_is_refused(attention):
    with pytest.raises((ValueError, ImportError)):
        small_model().set_attn_implementation(attention)
    assert not WalrusForPrediction._supports_flash_attn
    assert not WalrusForPrediction._supports_flex_attn


@pytest.mark.parametrize("grid", GRIDS, ids=["2D", "3D"])
def test_hidden_states_and_attentions_have_the_documented_shapes(grid):
    model, inputs = small_model(), small_inputs(grid, batch=2, frames=3)
    model.set_attn_implementation("eager")
    plan = model.model.make_plan(inputs["field_values"])
    output = model(**inputs, output_hidden_states=True, output_attentions=True)
    assert [tuple(h.shape) for h in output.hidden_states] == [(2, 3, plan.num_tokens, 32)] * 3
    assert [tuple(a.shape) for a in output.attentions] == [(6, 4, plan.num_tokens, plan.num_tokens)] * 2
    for weights in output.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)))
    base = model.model(**inputs, output_hidden_states=True)
    assert torch.equal(base.last_hidden_state, output.hidden_states[-1])
    assert all(torch.equal(one, other) for one, other in zip(base.hidden_states, output.hidden_states))


def test_tuples_hold_what_the_output_objects_hold():
    model, inputs = small_model(), small_inputs(labels=True)
    model.set_attn_implementation("eager")
    flags = {"output_hidden_states": True, "output_attentions": True}
    as_object, as_tuple = model(**inputs, **flags), model(**inputs, **flags, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], as_object.loss)
    assert torch.equal(as_tuple[1], as_object.prediction)
    assert torch.equal(as_tuple[2], as_object.delta)
    assert len(as_tuple[3]) == 3
    assert len(as_tuple[4]) == 2
    assert model(**inputs).hidden_states is None
    assert model(**inputs).attentions is None


# --- the forward pass


def test_two_calls_agree_and_the_input_stays_as_it_was():
    model, inputs = small_model(), small_inputs(labels=True, sides=WALL_OPEN)
    before = {name: value.clone() for name, value in inputs.items()}
    first = model(**inputs)
    assert torch.equal(first.prediction, model(**inputs).prediction)
    assert all(torch.equal(inputs[name], value) for name, value in before.items())


@pytest.mark.parametrize("grid", GRIDS, ids=["2D", "3D"])
def test_a_sample_is_forecast_the_same_alone_and_in_a_batch(grid):
    model, inputs = small_model(), small_inputs(grid, batch=3)
    together = model(**inputs).prediction
    for i in range(3):
        alone = model(**{name: value[i : i + 1] for name, value in inputs.items()}).prediction
        torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=1e-4)


def test_planes_and_volumes_together_reach_every_parameter_and_the_input():
    model = small_model(**ALL_PARTS).train()
    for grid in ((16, 16, 1), VOLUME):
        inputs = small_inputs(grid, labels=True, sides=WALL_OPEN if grid == VOLUME else PERIODIC)
        if grid == VOLUME:
            model.model.absolute_position = None
        inputs["field_values"].requires_grad_()
        model(**inputs).loss.backward()
        assert inputs["field_values"].grad.abs().sum() > 0
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("part", ["time_attention", "space_mixing"])
def test_silencing_any_part_of_any_block_changes_the_forecast(layer, part):
    model, inputs = small_model(), small_inputs()
    before = model(**inputs).delta
    module = getattr(model.model.layers[layer], part)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.startswith(("o_proj", "down_proj")):
                parameter.zero_()
    assert (model(**inputs).delta - before).abs().max() > 1e-2 * before.abs().max()


def test_the_loss_is_the_mean_error_of_the_scaled_change_without_the_first_frame():
    model, inputs = small_model(), small_inputs(labels=True)
    output, values = model(**inputs), inputs["field_values"]
    scales = (values[:, 1:] - values[:, :-1]).square().mean((1, 3, 4, 5)).sqrt()[:, None, :, None, None, None]
    error = (output.delta - (inputs["labels"] - values) / scales)[:, 1:]
    torch.testing.assert_close(output.loss, error.abs().mean())
    torch.testing.assert_close(output.prediction, values + scales * output.delta)


def test_padded_channels_and_obstacles_are_not_scored():
    model, inputs = small_model(), small_inputs(labels=True)
    padded = torch.tensor([[False, False, True]] * 2)
    obstacle = torch.zeros(2, *PLANE, dtype=torch.bool)
    obstacle[:, 3:5] = True
    masks = {"padded_channels": padded, "obstacle_mask": obstacle}
    before = model(**inputs, **masks).loss
    inputs["labels"] = inputs["labels"].clone()  # labels and fields share memory
    inputs["labels"][:, :, 2] += 100.0
    inputs["labels"][:, :, :, 3:5] -= 100.0
    assert torch.equal(model(**inputs, **masks).loss, before)
    assert model(**inputs).loss > before + 1


# --- the last frames alone


@pytest.mark.parametrize("keep", [1, 2, 4])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("grid", GRIDS, ids=["2D", "3D"])
def test_the_last_frames_alone_are_forecast_as_among_all_frames(grid, attention, keep):
    model = small_model(jitter=True).double()
    model.set_attn_implementation(attention)
    inputs = {name: x.double() if x.is_floating_point() else x for name, x in small_inputs(grid, frames=4).items()}
    plan = model.model.make_plan(inputs["field_values"], generator=torch.Generator().manual_seed(0))
    every, last = model(**inputs, plan=plan), model(**inputs, plan=plan, frames_to_keep=keep)
    exact = {"rtol": 1e-11, "atol": 1e-12}
    torch.testing.assert_close(last.delta, every.delta[:, -keep:], **exact)
    torch.testing.assert_close(last.prediction, every.prediction[:, -keep:], **exact)
    base = model.model(**inputs, plan=plan, frames_to_keep=keep).last_hidden_state
    torch.testing.assert_close(base, model.model(**inputs, plan=plan).last_hidden_state[:, -keep:], **exact)
    parameters = list(model.parameters())
    expected = torch.autograd.grad(every.delta[:, -keep:].square().sum(), parameters, allow_unused=True)
    found = torch.autograd.grad(last.delta.square().sum(), parameters, allow_unused=True)
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_the_last_block_alone_leaves_out_what_only_other_frames_need():
    model, inputs = small_model(), small_inputs(batch=2, frames=3)
    per_frame = 2 * model.model.make_plan(inputs["field_values"]).num_tokens
    frames = {}

    def count(name: str):
        return lambda module, args: frames.update({name: args[0].numel() // module.in_features // per_frame})

    for name, module in model.model.layers.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(count(name))
    model(**inputs, frames_to_keep=1)
    of_all = {name for name, n in frames.items() if n == 3}
    first = {name for name in frames if name.startswith("0.")}
    assert len(first) == len(frames) / 2 == 4 + 7
    assert of_all == first | {"1.time_attention.k_proj", "1.time_attention.v_proj"}
    assert all(n == 1 for name, n in frames.items() if name not in of_all)


@pytest.mark.parametrize("by", ["argument", "configuration"])
def test_what_is_recorded_has_all_frames_though_few_are_forecast(by):
    recorded = {"output_hidden_states": True, "output_attentions": True}
    model, inputs = small_model(**recorded if by == "configuration" else {}), small_inputs(batch=2, frames=3)
    model.set_attn_implementation("eager")
    asked = recorded if by == "argument" else {}
    every, last = model(**inputs, **asked), model(**inputs, **asked, frames_to_keep=1)
    assert last.delta.shape[1] == 1
    for name in ("hidden_states", "attentions"):
        assert len(last[name]) == len(every[name])
        assert all(torch.equal(one, other) for one, other in zip(last[name], every[name]))
    base = model.model(**inputs, **asked, frames_to_keep=1)
    assert torch.equal(base.last_hidden_state, base.hidden_states[-1][:, -1:])


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_the_last_frames_gives_the_same_gradients(use_reentrant):
    model, inputs = small_model().train(), small_inputs(labels=True)
    model(**inputs, frames_to_keep=2).loss.backward()
    expected = gradients(model)
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model(**inputs, frames_to_keep=2).loss.backward()
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


@pytest.mark.parametrize("grid", GRIDS, ids=["2D", "3D"])
def test_the_last_frames_compile_in_one_graph_and_export(grid):
    model, inputs = small_model(jitter=True), small_inputs(grid)
    plan = model.model.make_plan(inputs["field_values"], generator=torch.Generator().manual_seed(0))
    expected = model(**inputs, plan=plan).prediction[:, -1:]
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")(**inputs, plan=plan, frames_to_keep=1)
    torch._dynamo.reset()
    torch.testing.assert_close(compiled.prediction, expected, atol=1e-5, rtol=1e-4)
    program = torch.export.export(model, (), {**inputs, "plan": plan, "frames_to_keep": 1}, strict=False)
    exported = program.module()(**inputs, plan=plan, frames_to_keep=1)
    torch.testing.assert_close(exported.prediction, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("keep", [-1, 4])
def test_more_frames_than_there_are_cannot_be_kept(keep):
    with pytest.raises(ValueError, match=f"expected 0 to 3 frames, found {keep}"):
        small_model()(**small_inputs(frames=3), frames_to_keep=keep)


# --- drop path and gradient checkpointing


def test_drop_path_acts_in_training_only_and_drops_whole_samples():
    model, inputs = small_model(drop_path_rate=0.5), small_inputs(batch=8)
    assert [layer.drop_path.drop_prob for layer in model.model.layers] == [0.0, 0.5]
    assert torch.equal(model(**inputs).delta, small_model()(**inputs).delta)
    model.train()
    assert not torch.equal(model(**inputs).delta, model(**inputs).delta)
    dropped = WalrusDropPath(0.5)(torch.ones(64, 2, 3))
    assert {tuple(sample.unique().tolist()) for sample in dropped} == {(0.0,), (2.0,)}


@pytest.mark.parametrize("grid", GRIDS, ids=["2D", "3D"])
def test_what_training_computes_again_has_the_gradients_of_what_it_would_have_kept(grid, monkeypatch):
    model, inputs = small_model(drop_path_rate=0.0, jitter=False), small_inputs(grid, labels=True, sides=WALL_OPEN)
    calls = []
    for layer in model.model.layers:
        for linear in (layer.time_attention.q_proj, layer.space_mixing.up_proj, layer.space_mixing.q_proj):
            linear.register_forward_pre_hook(lambda module, _: calls.append(module))

    def run() -> dict:
        model.zero_grad()
        calls.clear()
        model(**inputs).loss.backward()
        return gradients(model)

    kept = run()
    assert len(calls) == 3 * len(model.model.layers)
    model.train()
    run()
    assert len(calls) == 3 * len(model.model.layers)  # little is kept
    monkeypatch.setattr("walrus_hf.layers.RECOMPUTED_FROM", 0)
    again = run()
    assert len(calls) == 5 * len(model.model.layers)  # space attention stays
    assert kept.keys() == again.keys()
    for name, gradient in kept.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-6, atol=1e-9, msg=name)


def test_gradient_checkpointing_can_keep_what_space_attention_found():
    model = small_model(drop_path_rate=0.4, jitter=False).train()
    inputs = small_inputs(batch=2, labels=True)
    kept = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default

    class Counted(TorchDispatchMode):
        """Counts what is really computed: a policy hands out what it has kept before anything arrives here."""

        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.calls += func is kept
            return func(*args, **(kwargs or {}))

    def run() -> tuple[dict, int]:
        model.zero_grad()
        torch.manual_seed(3)
        with Counted() as counted:
            model(**inputs).loss.backward()
        return gradients(model), counted.calls

    plain, once = run()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again, twice = run()
    contexts = functools.partial(create_selective_checkpoint_contexts, [kept])
    model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})
    selective, kept_once = run()
    assert (twice, kept_once) == (2 * once, once)
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, msg=name)
        torch.testing.assert_close(selective[name], gradient, msg=name)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("grid", GRIDS, ids=["2D", "3D"])
def test_gradient_checkpointing_gives_the_same_gradients(use_reentrant, grid, monkeypatch):
    """With drop path and jitter on: what was drawn in the forward pass must be replayed in the backward pass."""
    model = small_model(drop_path_rate=0.4, jitter=True).train()
    inputs = small_inputs(grid, batch=4, labels=True, sides=WALL_OPEN)

    def run() -> tuple[torch.Tensor, dict]:
        model.zero_grad()
        torch.manual_seed(3)
        loss = model(**inputs, generator=torch.Generator().manual_seed(5)).loss
        loss.backward()
        return loss.detach(), gradients(model)

    plain_loss, plain = run()
    torch.manual_seed(6)
    dropped_otherwise = model(**inputs, generator=torch.Generator().manual_seed(5)).loss
    assert not torch.equal(dropped_otherwise, plain_loss)  # drop path does act here
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    monkeypatch.setattr("walrus_hf.layers.RECOMPUTED_FROM", 0)  # once more inside of it, as in large models
    loss, checkpointed = run()
    # Reentrant checkpointing runs forward without gradients, where torch takes another kernel for time attention.
    torch.testing.assert_close(loss, plain_loss, rtol=1e-6, atol=0)
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=name)


# --- precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_take_float32_fields_and_forecast_in_float32(dtype):
    model, inputs = small_model(), small_inputs(labels=True)
    expected = model(**inputs)
    # Values far from 1, as pressures are: half precision must see scaled fields only.
    inputs = {**inputs, "field_values": inputs["field_values"] * 1e6, "labels": inputs["labels"] * 1e6}
    found = model.to(dtype)(**inputs)
    assert found.prediction.dtype == found.delta.dtype == torch.float32
    torch.testing.assert_close(found.delta, expected.delta, atol=0.1, rtol=0.1)
    torch.testing.assert_close(found.loss, expected.loss, atol=0, rtol=0.02)
    found.loss.backward()
    assert all(g.isfinite().all() for g in gradients(model).values())


@pytest.mark.parametrize("grid", GRIDS, ids=["2D", "3D"])
def test_autocast_computes_close_to_float32(grid):
    model, inputs = small_model(), small_inputs(grid, labels=True)
    expected = model(**inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(**inputs)
    assert found.prediction.dtype == torch.float32
    assert not torch.equal(found.delta, expected.delta)
    torch.testing.assert_close(found.delta, expected.delta, atol=0.1, rtol=0.1)
    found.loss.backward()
    assert all(g.isfinite().all() for g in gradients(model).values())


def test_float64_stays_float64():
    model, inputs = small_model().double(), small_inputs()
    inputs["field_values"] = inputs["field_values"].double()
    assert model(**inputs).prediction.dtype == torch.float64


# --- memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotary_positions_lay_the_tokens_of_a_head_side_by_side(dtype):
    positions = [torch.linspace(-1, 1, n) for n in (3, 2, 5)]
    table = rotary_table([torch.tensor([3.0, 7.0])] * 3, positions, heads=4, head_dim=16)
    tokens_first = torch.randn(2, 30, 4, 16).to(dtype)
    turned = apply_rotary(tokens_first.transpose(1, 2), table)
    assert turned.shape == (2, 4, 30, 16)
    assert turned.is_contiguous()
    # Half of the channels of one axis turn by its position times 3, half times 7; the last 4 stay.
    pairs, found = (x.float().unflatten(-1, (8, 2)) for x in (tokens_first.transpose(1, 2), turned))
    token, angles = 1 * 10 + 1 * 5 + 3, [f * p for p in (0.0, 1.0, 0.5) for f in (3.0, 7.0)] + [0.0, 0.0]
    cosine, sine = torch.tensor(angles).cos(), torch.tensor(angles).sin()
    a, b = pairs[:, :, token].unbind(-1)
    expected = torch.stack([a * cosine - b * sine, b * cosine + a * sine], -1)
    torch.testing.assert_close(found[:, :, token], expected.to(dtype).float())


# --- parts that only some configurations have


def test_an_absolute_position_embedding_refuses_another_token_grid():
    model = small_model(absolute_position_shape=(4, 4, 1))
    model(**small_inputs((16, 16, 1)))
    with pytest.raises(ValueError, match="absolute position"):
        model(**small_inputs((16, 16, 1)), strides=((2, 1), (2, 1), (1, 1)))


@pytest.mark.parametrize("kind", ["shared", "per_axis"])
def test_learnable_rotary_frequencies_start_at_the_published_constants(kind):
    model, inputs = small_model(), small_inputs(VOLUME)
    learnable = WalrusForPrediction(small_config(rope_learnable=kind)).eval()
    learnable.load_state_dict(model.state_dict(), strict=False)
    assert torch.equal(learnable(**inputs).delta, model(**inputs).delta)
    with torch.no_grad():
        learnable.model.layers[0].space_mixing.rotary_frequencies.weight[-1] *= 1.5
    assert not torch.allclose(learnable(**inputs).delta, model(**inputs).delta)


def test_field_dropout_hides_fields_in_training_only():
    model, inputs = small_model(field_dropout=0.5), small_inputs(batch=4)
    assert torch.equal(model(**inputs).delta, small_model()(**inputs).delta)
    model.train()
    assert not torch.equal(model(**inputs).delta, model(**inputs).delta)


def test_the_tiny_configuration_runs_with_the_published_vocabulary():
    model = WalrusForPrediction(WalrusConfig.tiny()).eval()
    output = model(**small_inputs((32, 16, 1)))
    assert output.prediction.shape == (2, 3, 3, 32, 16, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("grid", "dial"), [((256, 256, 1), "tokens_per_axis"), ((128, 128, 128), "tokens_per_axis_3d")]
)
def test_more_tokens_than_published_need_no_matrix_of_scores(grid, dial):
    tokens = 64 if dial == "tokens_per_axis" else 32
    model = small_model(num_hidden_layers=1, num_attention_heads=2, **{dial: tokens})
    inputs = small_inputs(grid, batch=1, frames=2)
    plan = model.model.make_plan(inputs["field_values"])
    assert plan.num_tokens == tokens**plan.ndim

    def forward():
        with torch.no_grad():
            assert model(**inputs, plan=plan, frames_to_keep=1).prediction.isfinite().all()

    before = resident("VmRSS")
    scores = 4 * 2 * plan.num_tokens**2  # of one frame: 134 MB of the plane, 8.6 GB of the volume
    assert peak_of(forward) - before < (scores if plan.ndim == 2 else scores / 4)
