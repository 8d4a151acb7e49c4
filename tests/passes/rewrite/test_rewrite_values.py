"""What a rewritten graph computes: the original with zero queries, and the paper's equations with random ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, example, given, settings
from torch import Tensor, nn
from torch.fx import Node

from attnres_passes.ir.levels import Level, check_level
from attnres_passes.rewrite.rewrite import rewrite
from tests.passes.helpers import (
    WIDTH,
    Function,
    added_parameters,
    analysed,
    assert_same,
    fresh_inputs,
    rewritten,
    run,
    run_with_gradients,
    sample,
)
from tests.passes.rewrite.random_models import RandomModel, Spec, simulate, specs

FEW = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=(Phase.explicit, Phase.generate),  # small as they are; shrinking takes minutes
)


# The zero-query identity: with zero queries and scale="sum" the rewrite equals the original.


def assert_zero_query_identity(
    model: Callable[..., Any] | nn.Module, *args: Tensor, tolerance: float = 1e-10, **options: Any
) -> None:
    """Outputs, gradients of all inputs, and what happens to the inputs themselves."""
    found, analysis, result = rewritten(model, *args, scale="sum", **options)
    check_level(result.gm, Level.REWRITTEN, analysis.plan)
    added = added_parameters(result, analysis)
    expected, gradients, _ = run_with_gradients(found.gm, fresh_inputs(found))
    actual, new_gradients, _ = run_with_gradients(result.gm, fresh_inputs(found), added)
    assert_same(actual, expected, tolerance)
    assert_same(new_gradients, gradients, 100 * tolerance)


@FEW
@given(specs())
@example(Spec(6, (("in_place", "rms_norm", "dropout"), ("sequential", "layer_norm", "swap")), True, True, 3))
@example(Spec(6, (("parallel_two_norms", "hand_written", "flatten"),) * 3, False, False, 2))
@example(Spec(6, (("branch_dropout", "hand_written", "cast"),) * 2, True, False, 1))
def test_zero_queries_give_back_the_original(spec: Spec) -> None:
    model = RandomModel(spec)
    assert_zero_query_identity(model, model.example(), tolerance=spec.tolerance, block_size=spec.block_size)


@FEW
@given(specs())
@example(Spec(6, (("in_place", "rms_norm", "dropout"), ("sequential", "layer_norm", "swap")), True, True, 3))
@example(Spec(6, (("parallel_two_norms", "hand_written", "flatten"),) * 3, False, False, 2))
@example(Spec(8, (("sequential", "layer_norm", "nothing"),) * 4, False, True, 1))
def test_random_queries_give_what_the_paper_says(spec: Spec) -> None:
    model = RandomModel(spec)
    for scale in ("mean", "sum"):
        options = {"scale": scale, "eps": 1e-5}
        found, analysis, result = rewritten(model, model.example(), block_size=spec.block_size, **options)
        added = added_parameters(result, analysis, seed=7)
        actual = run(result.gm, [*found.inputs, *added])
        torch.manual_seed(0)
        assert_same(actual, simulate(model, model.example(), added, **options), spec.tolerance)


def stack(step: Callable[[Function, int, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Three steps between an entry that makes a fresh root and a final norm."""

    def model(self: Function, x: Tensor, *rest: Tensor) -> Tensor:
        x = x.sinh()
        for k in range(3):
            x = step(self, k, x)
        return self.norm[-1](x)

    return model


def sublayer(self: Function, k: int, x: Tensor) -> Tensor:
    return self.linear[k](self.norm[k](x))


def wide_write(self: Function, k: int, x: Tensor) -> Tensor:
    return x + sublayer(self, k, x.double())


def narrow_write(self: Function, k: int, x: Tensor) -> Tensor:
    return x + sublayer(self, k, x).float()


def broadcast_write(self: Function, k: int, x: Tensor) -> Tensor:
    return x + sublayer(self, k, x).mean(1, keepdim=True)


def repeated_write(self: Function, k: int, x: Tensor) -> Tensor:
    branch = sublayer(self, k, x)
    return x + branch + branch


def rescaled_branch(self: Function, k: int, x: Tensor) -> Tensor:
    return x + 0.1 * sublayer(self, k, x)


def in_place_dropout(self: Function, k: int, x: Tensor) -> Tensor:
    return F.dropout(x + sublayer(self, k, x), 0.3, inplace=True)


def feature_dropout(self: Function, k: int, x: Tensor) -> Tensor:
    return F.dropout1d(x + sublayer(self, k, x), 0.3)


def independent_addend(self: Function, k: int, x: Tensor) -> Tensor:
    return x + sublayer(self, k, x) + torch.linspace(0, 1, WIDTH, dtype=x.dtype)


def uses_the_shape(self: Function, k: int, x: Tensor) -> Tensor:
    return x + sublayer(self, k, x) * x.new_full((x.shape[0], 1, 1), 1.0 / x.size(1)) + torch.zeros_like(x)


def reads_a_slice(self: Function, k: int, x: Tensor) -> Tensor:
    return x + self.linear[k](self.norm[k](x[:, -1:])) + sublayer(self, k, x)


def adds_in_a_flat_layout(self: Function, k: int, x: Tensor) -> Tensor:
    shape, branch = x.shape, sublayer(self, k, x)
    return (x.view(-1, WIDTH) + branch.view(-1, WIDTH)).view(shape)


def dead_reader(self: Function, k: int, x: Tensor) -> Tensor:
    _ = x.sin()
    return x + sublayer(self, k, x)


def checkpointed(self: Function, k: int, x: Tensor) -> Tensor:
    from torch.utils.checkpoint import checkpoint

    return x + checkpoint(lambda y: sublayer(self, k, y), x, use_reentrant=False)


def cut_from_gradients(self: Function, k: int, x: Tensor) -> Tensor:
    return (x.detach() if k == 1 else x) + sublayer(self, k, x)


def without_gradients_in_between(self: Function, k: int, x: Tensor) -> Tensor:
    if k != 1:
        return x + sublayer(self, k, x)
    with torch.no_grad():
        return x + sublayer(self, k, x)


def data_of_the_state(self: Function, k: int, x: Tensor) -> Tensor:
    return x + self.linear[k](self.norm[k](x.detach()))


def identity_cast(self: Function, k: int, x: Tensor) -> Tensor:
    return (x.to(torch.float64).contiguous() + sublayer(self, k, x)).double()


STEPS = [
    wide_write,
    broadcast_write,
    repeated_write,
    rescaled_branch,
    in_place_dropout,
    feature_dropout,
    independent_addend,
    uses_the_shape,
    reads_a_slice,
    adds_in_a_flat_layout,
    dead_reader,
    checkpointed,
    cut_from_gradients,
    without_gradients_in_between,
    data_of_the_state,
    identity_cast,
]


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_zero_queries_give_back_the_original_for(step: Callable[[Function, int, Tensor], Tensor], size: int) -> None:
    assert_zero_query_identity(stack(step), block_size=size)


def test_write_of_a_narrower_dtype_is_widened() -> None:
    assert_zero_query_identity(stack(narrow_write), block_size=2, tolerance=1e-6)


def test_stream_that_is_widened_by_a_write() -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        x = x.float()
        for k in range(3):
            x = x + sublayer(self, k, x.double())
        return self.norm[-1](x)

    assert_zero_query_identity(model, block_size=2, tolerance=1e-6)


def test_two_streams_that_see_each_other_normed() -> None:
    def model(self: Function, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x, y = x.sinh(), y.sinh()
        for k in range(3):
            x = x + sublayer(self, k, x) * self.norm[0](y)
            y = y + sublayer(self, k, y) * self.norm[1](x)
        return self.norm[-1](x), self.norm[-1](y)

    assert_zero_query_identity(model, sample(), sample(seed=2), block_size=2)


def test_stream_whose_root_is_the_input_itself() -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        for k in range(3):
            x = x + sublayer(self, k, x)
        return self.norm[-1](x)

    assert_zero_query_identity(model, block_size=2)


def test_stream_whose_root_is_a_parameter() -> None:
    class Latent(Function):
        def __init__(self) -> None:
            super().__init__(lambda self, x: x)
            self.latent = nn.Parameter(sample(2, 3, WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            y = self.latent
            for k in range(3):
                y = y + sublayer(self, k, y) * x
            return self.norm[-1](y)

    assert_zero_query_identity(Latent(), sample(), block_size=2)


def test_unnormed_reads_that_are_allowed() -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        x = x.sinh()
        for linear in self.linear:
            x = x + linear(x).tanh()
        return x + x

    assert_zero_query_identity(model, block_size=2, allow_unnormed=True)


def test_stream_that_is_declined_is_copied_as_it_is() -> None:
    def model(self: Function, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        for k in range(3):
            x = x + sublayer(self, k, x)
        for linear in self.linear:
            y = y + linear(y)
        return self.norm[-1](x), y

    found, _, result = rewritten(model, sample(), sample(seed=2), block_size=1)
    additions = [node for node in result.gm.graph.nodes if "add" in str(node.target)]
    assert len(additions) == 3
    assert len(found.gm.graph.nodes) > len(additions)
    assert_zero_query_identity(model, sample(), sample(seed=2), block_size=1)


def branch_changed_after_its_write(self: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    x, seen = x.sinh(), x.sum() * 0
    for k in range(3):
        branch = sublayer(self, k, x)
        x = x + branch
        branch.mul_(3.0)
        seen = seen + branch.abs().sum()
    return self.norm[-1](x), seen


def root_changed_after_it_was_added_to(self: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    root = x.sinh()
    x = root + sublayer(self, 0, root)
    root.mul_(3.0)
    for k in (1, 2):
        x = x + sublayer(self, k, x)
    return self.norm[-1](x), root


def sum_changed_and_read_again(self: Function, x: Tensor) -> Tensor:
    x = x.sinh()
    for k in range(2):
        x = x + sublayer(self, k, x)
    x.clamp_(-2.0, 2.0)
    return self.norm[-1](x) + x


@pytest.mark.parametrize(
    "model", [branch_changed_after_its_write, root_changed_after_it_was_added_to, sum_changed_and_read_again]
)
def test_what_is_changed_in_place_is_no_source(model: Callable[..., Any]) -> None:
    """The running sum keeps a value as it was when it was added; a source that changes later would not."""
    _, analysis = analysed(model, block_size=1)
    assert analysis.plan.streams == ()
    (decline,) = analysis.plan.declined
    assert decline.reason.value == "opaque"
    assert "changed in place" in decline.message
    assert decline.source.startswith(__file__)


def test_read_after_a_frozen_part_still_trains_its_query() -> None:
    """The lower layers run under no_grad; the read of their sum belongs to the layer above, which is trained."""

    def model(self: Function, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = x.sinh()
            x = x + sublayer(self, 0, x)
        x = x + sublayer(self, 1, x)
        x = x + sublayer(self, 2, x)
        return self.norm[-1](x)

    found, analysis, result = rewritten(model, block_size=1)
    _, _, gradients = run_with_gradients(result.gm, fresh_inputs(found), added_parameters(result, analysis, seed=1))
    assert [gradient is not None and bool(gradient.any()) for gradient in gradients] == [True] * 6


class Comparing(torch.fx.Interpreter):
    """Runs a graph and compares the value recorded for each node with the one it has."""

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        recorded = n.meta.get("example_value")
        if isinstance(value, Tensor) and isinstance(recorded, Tensor):
            assert (tuple(recorded.shape), recorded.dtype) == (tuple(value.shape), value.dtype), n.format_node()
        return value


@pytest.mark.parametrize(
    "between", ["nothing", "flatten", "swap", "cast", "cast_to_fp32", "dropout", "narrow", "broadcast"]
)
def test_recorded_values_are_those_of_the_nodes(between: str) -> None:
    """Shapes and dtypes show in the text of a graph, and compilers ask for them."""
    steps = {"narrow": narrow_write, "broadcast": broadcast_write}

    def cast(self: Function, x: Tensor) -> Tensor:
        x = x.sinh()
        for k in range(3):
            x = (x + sublayer(self, k, x.double())).float()
        return x

    model: Any = cast if between == "cast_to_fp32" else stack(steps[between]) if between in steps else None
    model = model or RandomModel(Spec(WIDTH, (("sequential", "layer_norm", between),) * 2, True, False, 2))
    found, analysis, result = rewritten(model, block_size=2)
    Comparing(result.gm).run(*found.inputs, *added_parameters(result, analysis))


def test_dynamic_sizes() -> None:
    """The rewritten graph of a symbolic length runs at other lengths."""
    outputs: list[Tensor] = []
    model = Function(stack(adds_in_a_flat_layout))

    def backend(gm: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        from attnres_passes.analyses.aten_recorder import trace_aten
        from attnres_passes.analyses.streams import find_streams
        from attnres_passes.ir.config import AttnResConfig

        analysis = find_streams(trace_aten(gm), AttnResConfig(scale="sum", block_size=2))
        result = rewrite(gm, analysis)
        added = added_parameters(result, analysis)

        def call(*args: Any) -> Any:
            outputs.append(result.gm(*args, *added)[0])
            return gm(*args)

        return call

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend, dynamic=True, fullgraph=True)
    for length in (3, 5):
        expected = compiled(sample(2, length, WIDTH))
        assert_same([outputs[-1]], [expected], 1e-10)
    assert len(outputs) == 2
