"""`torch.compile` and `torch.export` with a plan: no graph break, one graph per geometry, the numbers of eager mode."""

import io

import pytest
import torch
from transformers.exporters.exporter_dynamo import DynamoConfig, DynamoExporter

from walrus_hf.jitter import TokenizationPlan, boundary_flags, pad_and_roll, traceable, unroll_and_crop

from .small_model import PERIODIC, PLANE, VOLUME, WALL_OPEN, small_inputs, small_model

# 97 cells have no stride product that divides them: a periodic axis is resampled with an FFT inside the graph.
RESAMPLED = (97, 16, 1)
pytestmark = pytest.mark.filterwarnings("ignore:grid .* is outside the published stride table")


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Backend:
    """Runs graphs as they are and counts how many were made."""

    def __init__(self, name: str = "eager"):
        self.compile, self.graphs = torch._dynamo.lookup_backend(name), 0

    def __call__(self, graph, example_inputs):
        self.graphs += 1
        return self.compile(graph, example_inputs)


def plan_for(model, grid, sides=PERIODIC, seed: int = 0) -> TokenizationPlan:
    inputs = small_inputs(grid, sides=sides)
    generator = torch.Generator().manual_seed(seed)
    return model.model.make_plan(inputs["field_values"], inputs["boundary_conditions"], generator=generator)


@pytest.mark.parametrize(
    ("grid", "sides", "layers"),
    [
        (PLANE, PERIODIC, 2),
        pytest.param(PLANE, WALL_OPEN, 2, marks=pytest.mark.slow),
        (VOLUME, WALL_OPEN, 1),
        (RESAMPLED, PERIODIC, 1),
    ],
    ids=["2D periodic", "2D wall and open", "3D wall and open", "resampled"],
)
def test_a_compiled_model_has_one_graph_and_the_gradients_of_eager_mode(grid, sides, layers):
    model, inputs = small_model(jitter=True, num_hidden_layers=layers).train(), small_inputs(grid, labels=True)
    plan = plan_for(model, grid, sides)
    expected = model(**inputs, plan=plan)
    expected.loss.backward()
    reference = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    backend = Backend("aot_eager")
    found = torch.compile(model, fullgraph=True, backend=backend)(**inputs, plan=plan)
    found.loss.backward()
    assert backend.graphs == 1
    torch.testing.assert_close(found.prediction, expected.prediction, atol=1e-5, rtol=1e-4)
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(reference)
    for name, gradient in reference.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, atol=1e-5, rtol=1e-3, msg=name)


def test_twenty_plans_that_differ_in_their_shifts_share_one_graph():
    model = small_model(jitter=True)
    backend = Backend()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for graphs, sides in ((1, PERIODIC), (2, WALL_OPEN), (2, PERIODIC)):
        plans = [plan_for(model, PLANE, sides, seed) for seed in range(20)]
        assert len(set(plans)) == 20
        for seed, plan in enumerate(plans):
            inputs = small_inputs(seed=seed)
            with torch.no_grad():
                found, expected = compiled(**inputs, plan=plan), model(**inputs, plan=plan)
            torch.testing.assert_close(found.prediction, expected.prediction, atol=1e-5, rtol=1e-4)
        assert backend.graphs == graphs


def test_a_wall_after_a_periodic_box_does_not_reuse_the_old_geometry():
    model, inputs = small_model(num_hidden_layers=1), small_inputs()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    forecasts = []
    for sides in (PERIODIC, WALL_OPEN, [[1, 0], [2, 2], [2, 2]], [[2, 2], [0, 0], [2, 2]], PERIODIC):
        plan = plan_for(model, PLANE, sides)
        with torch.no_grad():
            found, expected = compiled(**inputs, plan=plan).prediction, model(**inputs, plan=plan).prediction
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        assert not any(torch.allclose(found, earlier, atol=1e-3) for earlier in forecasts[1:])
        forecasts.append(found)
    assert torch.equal(forecasts[0], forecasts[-1])


def test_batch_sizes_need_one_more_graph_and_every_grid_its_own():
    model, backend = small_model(jitter=True, num_hidden_layers=1), Backend()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for batch, grid, graphs in ((2, PLANE, 1), (3, PLANE, 2), (4, PLANE, 2), (5, PLANE, 2), (2, (24, 16, 1), 3)):
        inputs, plan = small_inputs(grid, batch=batch), plan_for(model, grid)
        with torch.no_grad():
            found, expected = compiled(**inputs, plan=plan), model(**inputs, plan=plan)
        torch.testing.assert_close(found.prediction, expected.prediction, atol=1e-5, rtol=1e-4)
        assert backend.graphs == graphs


def test_without_a_plan_the_compiler_steps_out_of_the_graph_and_stays_right():
    model = small_model()
    compiled = torch.compile(model, backend="eager")
    for sides in (PERIODIC, WALL_OPEN, PERIODIC):
        inputs = small_inputs(sides=sides)
        with torch.no_grad():
            found, expected = compiled(**inputs).prediction, model(**inputs).prediction
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_compiling_in_one_graph_without_a_plan_says_what_to_pass():
    model = small_model(jitter=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="plan="):
        torch.compile(model, fullgraph=True, backend="eager")(**small_inputs())


def test_shifts_as_tensors_move_the_same_cells_as_shifts_as_integers():
    model = small_model(jitter=True)
    x = torch.randn(2, 3, 16, 24, 1)

    @torch.compile(fullgraph=True, backend="eager")
    def there_and_back(x, plan):
        plan = traceable(plan)
        padded = pad_and_roll(x, plan)
        return padded, boundary_flags(plan, x), unroll_and_crop(padded, plan)

    for sides in (PERIODIC, WALL_OPEN, [[0, 1], [1, 0], [2, 2]]):
        for seed in range(5):
            plan = plan_for(model, PLANE, sides, seed)
            padded, flags, back = there_and_back(x, plan)
            assert torch.equal(padded, pad_and_roll(x, plan))
            assert torch.equal(flags, boundary_flags(plan, x))
            assert torch.equal(back, x)


@pytest.mark.slow
def test_inductor_compiles_forward_and_backward():
    model, inputs = small_model(jitter=True).train(), small_inputs(labels=True)
    compiled = torch.compile(model, fullgraph=True)
    for sides in (PERIODIC, WALL_OPEN):
        for seed in range(3):
            plan = plan_for(model, PLANE, sides, seed)
            model.zero_grad()
            expected = model(**inputs, plan=plan)
            expected.loss.backward()
            reference = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
            model.zero_grad()
            found = compiled(**inputs, plan=plan)
            found.loss.backward()
            torch.testing.assert_close(found.prediction, expected.prediction, atol=1e-5, rtol=1e-4)
            for name, gradient in reference.items():
                torch.testing.assert_close(model.get_parameter(name).grad, gradient, atol=1e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize(
    ("grid", "strict"),
    [(PLANE, False), (PLANE, True), (VOLUME, False), (RESAMPLED, False)],
    ids=["2D", "2D strict", "3D", "resampled"],
)
def test_an_exported_model_reproduces_eager_mode(grid, strict):
    model, inputs = small_model(jitter=True), small_inputs(grid)
    plan = plan_for(model, grid, PERIODIC if grid == RESAMPLED else WALL_OPEN)
    program = torch.export.export(model, (), {**inputs, "plan": plan}, strict=strict)
    others = small_inputs(grid, seed=1)
    found = program.module()(**others, plan=plan)
    torch.testing.assert_close(found.prediction, model(**others, plan=plan).prediction, atol=1e-5, rtol=1e-4)


def test_an_exported_model_is_saved_with_its_plan_and_refuses_another():
    model, inputs = small_model(jitter=True), small_inputs()
    plan, other = plan_for(model, PLANE, WALL_OPEN), plan_for(model, PLANE, WALL_OPEN, seed=1)
    program = torch.export.export(model, (), {**inputs, "plan": plan}, strict=False)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    expected = model(**inputs, plan=plan).prediction
    torch.testing.assert_close(loaded(**inputs, plan=plan).prediction, expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="input tree spec"):
        loaded(**inputs, plan=other)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("part", ["head", "base"])
def test_the_exporter_of_transformers_works_on_periodic_grids(part, dynamic):
    model, inputs = small_model(), small_inputs((16, 16, 1), batch=3)
    model = model.model if part == "base" else model
    exported = DynamoExporter().export(model, dict(inputs), config=DynamoConfig(dynamic=dynamic))
    expected = model(**inputs)
    for name, tensor in exported(**inputs).items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=1e-4)
