"""The trace: one number per tensor and moment, the operations between them, and no trace of the tracing."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attnres_passes.analyses.aten_recorder import trace_aten
from attnres_passes.analyses.aten_trace import OPAQUE, STALE_ALIAS, AtenTrace, Op
from attnres_passes.torch_private.example_values import example_value, fake_mode_of
from tests.passes.helpers import WIDTH, Function, captured, sample, traced


def named(trace: AtenTrace, name: str) -> list[Op]:
    return [op for op in trace.ops if op.name == name]


def only(trace: AtenTrace, name: str) -> Op:
    (op,) = named(trace, name)
    return op


def node_of(trace: AtenTrace, target: object) -> int:
    (index,) = [k for k, node in enumerate(trace.nodes) if node.target is target or node.target == target]
    return index


def test_values_know_shape_dtype_and_producer() -> None:
    trace = traced(lambda self, x: x.exp().to(torch.float32).sum(-1))
    placeholder, exponential, cast, total = trace.values
    assert (placeholder.shape, placeholder.dtype, placeholder.producer) == ((2, 3, WIDTH), torch.float64, -1)
    assert (exponential.producer, cast.producer, total.producer) == (0, 1, 2)
    assert (cast.dtype, cast.is_floating) == (torch.float32, True)
    assert total.shape == (2, 3)
    assert [op.name for op in trace.ops] == ["aten.exp", "aten._to_copy", "aten.sum"]


def test_node_inputs_and_outputs_are_the_numbers_of_their_tensors() -> None:
    trace = traced(lambda self, x: x.exp() * x)
    exponential, product = only(trace, "aten.exp"), only(trace, "aten.mul")
    assert trace.node_output[exponential.node] == exponential.outputs[0]
    assert trace.node_output[product.node] == product.outputs[0]
    assert set(trace.node_inputs[product.node].values()) == set(product.inputs)
    assert trace.node_ops[product.node] == [product.index]
    assert trace.node_output[-1] is None
    assert len(trace.nodes) == len(trace.node_inputs) == len(trace.node_output) == len(trace.node_ops)


def test_graph_outputs_are_recorded_in_order() -> None:
    trace = traced(lambda self, x: (x.exp(), {"second": x.sin()}))
    assert trace.graph_outputs == (only(trace, "aten.exp").outputs[0], only(trace, "aten.sin").outputs[0])


def test_composite_decomposes_within_its_node() -> None:
    trace = traced(lambda self, x: self.linear[0](x))
    names = [trace.ops[index].name for index in trace.node_ops[node_of(trace, torch._C._nn.linear)]]
    assert len(names) > 1
    assert any(name in ("aten.addmm", "aten.mm") for name in names)


def test_operator_that_gives_several_tensors_numbers_each() -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, -1)
        return variance + mean

    trace = traced(model)
    both = only(trace, "aten.var_mean")
    assert only(trace, "aten.add").inputs == both.outputs
    assert trace.node_output[both.node] is None


@pytest.mark.parametrize("spelling", ["iadd", "add_"])
def test_change_in_place_gives_a_new_number(spelling: str) -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        y = x.exp()
        before = y.sin()
        if spelling == "iadd":
            y += x
        else:
            y.add_(x)
        return before + y.cos()

    trace = traced(model)
    added = only(trace, "aten.add_")
    assert added.outputs[0] not in added.inputs
    assert only(trace, "aten.sin").inputs == only(trace, "aten.exp").outputs
    assert only(trace, "aten.cos").inputs == added.outputs
    assert trace.node_output[added.node] == added.outputs[0]


def test_reading_a_view_of_a_changed_tensor_is_recorded_as_a_stale_alias() -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        y = x.exp()
        view = y.view(-1, WIDTH)
        y.add_(1.0)
        return view.sin()

    trace = traced(model)
    stale = only(trace, STALE_ALIAS)
    assert set(stale.inputs) == {*only(trace, "aten.view").outputs, *only(trace, "aten.add_").outputs}
    assert only(trace, "aten.sin").inputs == stale.outputs


def test_reading_a_tensor_changed_through_its_view_is_recorded_as_a_stale_alias() -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        y = x.exp()
        y.view(-1, WIDTH).add_(1.0)
        return y.sin()

    trace = traced(model)
    assert only(trace, "aten.sin").inputs == only(trace, STALE_ALIAS).outputs


def test_operation_that_nothing_depends_on_has_no_part_in_users_and_node_ops() -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        unused = torch.cos(x)
        _ = unused * 2
        return torch.sin(x)

    gm = captured(model).gm
    x = next(node for node in gm.graph.nodes if node.op == "placeholder")
    with gm.graph.inserting_after(x):
        gm.graph.call_function(torch.tanh, (x,))
    trace = trace_aten(gm)
    dead, alive = only(trace, "aten.tanh"), only(trace, "aten.sin")
    value = trace.node_output[trace.nodes.index(x)]
    assert value is not None
    assert trace.users[value] == [alive.index]
    assert dead.index not in [index for ops in trace.node_ops for index in ops]


def test_dead_chain_is_dead_as_a_whole_and_a_change_in_place_is_not() -> None:
    gm = captured(lambda self, x: torch.sin(x)).gm
    x = next(node for node in gm.graph.nodes if node.op == "placeholder")
    with gm.graph.inserting_after(x):
        inner = gm.graph.call_function(torch.tanh, (x,))
    with gm.graph.inserting_after(inner):
        outer = gm.graph.call_function(torch.cos, (inner,))
    trace = trace_aten(gm)
    assert trace.users[only(trace, "aten.tanh").outputs[0]] == []
    with gm.graph.inserting_after(outer):
        gm.graph.call_method("add_", (inner, 1.0))
    trace = trace_aten(gm)
    assert trace.users[only(trace, "aten.tanh").outputs[0]] == [only(trace, "aten.add_").index]


def test_higher_order_operator_is_one_operation_of_all_it_reads() -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda y: y.sin(), lambda y: y.cos(), (x,)) * 2

    trace = traced(model)
    (branch,) = [op for op in trace.ops if op.index == trace.values[only(trace, "aten.mul").inputs[0]].producer]
    assert not isinstance(branch.target, torch._ops.OpOverload)
    assert set(branch.inputs) == {0, *only(trace, "aten.gt").outputs}
    assert not named(trace, "aten.sin")


def test_activation_checkpoint_is_seen_through_within_its_node() -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        return checkpoint(self.linear[0], x, use_reentrant=False) * 2

    trace = traced(model, sample().requires_grad_())
    assert trace.node_ops[only(trace, "aten.addmm").node][-1] > only(trace, "aten.addmm").index
    assert trace.values[only(trace, "aten.mul").inputs[0]].producer in trace.node_ops[only(trace, "aten.addmm").node]


def test_output_that_no_dispatched_operation_made_is_opaque() -> None:
    """A call that leaves dispatch depends in an unknown way on all that its node read."""
    gm = captured(lambda self, x: x.sin() * 2).gm
    product = next(node for node in gm.graph.nodes if node.target is operator.mul)

    def hidden(tensor: Tensor) -> Tensor:
        with torch.utils._python_dispatch._disable_current_modes():
            return trace_mode(tensor)

    def trace_mode(tensor: Tensor) -> Tensor:
        with tensor.fake_mode:
            return tensor.cos()

    with gm.graph.inserting_before(product):
        between = gm.graph.call_function(hidden, (product.args[0],))
    product.replace_input_with(product.args[0], between)
    trace = trace_aten(gm)
    opaque = only(trace, OPAQUE)
    assert opaque.inputs == only(trace, "aten.sin").outputs
    assert only(trace, "aten.mul").inputs == opaque.outputs


def test_vmap_in_the_graph_is_executed_as_a_whole() -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        return torch.vmap(lambda row: row.sin() * row)(x) + x

    trace = traced(model)
    added = only(trace, "aten.add")
    assert len(added.inputs) == 2
    assert trace.graph_outputs == added.outputs


class Randomly(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            noise = torch.rand_like(x)
        return F.dropout(x, 0.5) + noise


def test_tracing_changes_neither_random_state_nor_grad_mode_nor_graph() -> None:
    gm = captured(Randomly().train()).gm
    text, random_state, targets = gm.code, torch.get_rng_state(), [node.target for node in gm.graph.nodes]
    metadata = [dict(node.meta) for node in gm.graph.nodes]
    trace_aten(gm)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.is_grad_enabled()
    assert gm.code == text
    assert [node.target for node in gm.graph.nodes] == targets
    assert [node.meta for node in gm.graph.nodes] == metadata


def test_grad_mode_switched_by_the_graph_is_put_back() -> None:
    gm = captured(lambda self, x: x.sin()).gm
    first = next(node for node in gm.graph.nodes if node.op != "placeholder")
    with gm.graph.inserting_before(first):
        gm.graph.call_function(torch._C._set_grad_enabled, (False,))
    gm.recompile()
    trace_aten(gm)
    assert torch.is_grad_enabled()


def test_dynamic_sizes_add_no_guard_and_no_symbol() -> None:
    """Comparisons of symbolic sizes would specialise the graph that is being compiled."""
    seen: list[tuple[int, int, int, int]] = []
    traces: list[AtenTrace] = []

    def backend(gm: torch.fx.GraphModule, inputs: list[object]) -> object:
        examples = [example_value(node) for node in gm.graph.nodes if node.op == "placeholder"]
        env = fake_mode_of(examples).shape_env
        assert env is not None
        before = len(env.guards), len(env.var_to_range)
        traces.append(trace_aten(gm))
        seen.append((*before, len(env.guards), len(env.var_to_range)))
        return gm.forward

    def model(x: Tensor) -> Tensor:
        flat = x.reshape(-1, WIDTH)
        return (flat.softmax(-1) + flat).view(x.shape).sum(1) + x.shape[1]

    torch._dynamo.reset()
    x = sample(2, 5, WIDTH)
    torch._dynamo.mark_dynamic(x, 1)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    compiled(x)
    compiled(sample(2, 7, WIDTH))
    (counts,) = seen
    assert counts[:2] == counts[2:]
    shapes = {type(size) for value in traces[0].values for size in value.shape}
    assert torch.SymInt not in shapes
    assert len(shapes) > 1


def test_composites_that_take_numbers_are_followed_where_sizes_are_symbols() -> None:
    traces: list[AtenTrace] = []

    def backend(gm: torch.fx.GraphModule, inputs: list[object]) -> object:
        traces.append(trace_aten(gm))
        return gm.forward

    def model(x: Tensor) -> Tensor:
        return F.interpolate(x, size=(x.shape[1], x.shape[2]), mode="bilinear").exp()

    torch.compiler.reset()
    x = sample(2, 5, 3, WIDTH)
    torch._dynamo.mark_dynamic(x, 1)
    torch.compile(model, backend=backend, fullgraph=True)(x)
    assert only(traces[0], "aten.exp").inputs


def test_parameters_of_get_attr_nodes_are_inputs() -> None:
    gm = captured(lambda self, x: x.sin()).gm
    gm.register_buffer("offset", sample(WIDTH))
    sin = next(node for node in gm.graph.nodes if node.op == "call_method")
    with gm.graph.inserting_before(sin):
        offset = gm.graph.get_attr("offset")
        shifted = gm.graph.call_function(torch.add, (sin.args[0], offset))
    sin.args = (shifted,)
    trace = trace_aten(gm)
    added = only(trace, "aten.add")
    number = trace.node_output[trace.nodes.index(offset)]
    assert number in added.inputs
    assert trace.values[number].producer == -1
