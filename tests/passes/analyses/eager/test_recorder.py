"""The trace of a run: a node for each call of a torch function, in the form that graphs of Dynamo have."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnres_passes.analyses.aten_recorder import trace_aten
from attnres_passes.analyses.aten_trace import OPAQUE, STALE_ALIAS, AtenTrace
from attnres_passes.analyses.eager.recorder import made_outside_of_torch, trace_run
from attnres_passes.ir import provenance


class Running(nn.Module):
    """Runs a function of itself and its arguments."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(self, *args)


def trace(function: Callable[..., Any], *args: Any) -> AtenTrace:
    return trace_run(Running(function), args, {})


def called(trace: AtenTrace) -> list[Any]:
    return [node.target for node in trace.nodes if node.op == "call_function"]


def index_of(trace: AtenTrace, target: Any) -> int:
    return next(index for index, node in enumerate(trace.nodes) if node.target is target)


X = torch.randn(2, 4)


def test_nodes_are_those_of_a_graph_of_dynamo() -> None:
    def function(model: Running, x: Tensor) -> Tensor:
        y = F.dropout(model.part(x), 0.5)
        a, b = (x + y).chunk(2, -1)
        return torch.cat([b, a], -1)

    graphs: list[torch.fx.GraphModule] = []
    model = Running(function)
    torch.compile(model, backend=lambda gm, _: graphs.append(gm) or gm.forward, fullgraph=True)(X)
    expected, found = trace_aten(graphs[0]), trace_run(model, (X,), {})
    assert [op.name for op in found.ops] == [op.name for op in expected.ops]
    for of in (provenance.module_path, provenance.source_line):
        assert list(map(of, made(found))) == list(map(of, made(expected)))
    assert {provenance.module_path(node) for node in made(found)} == {"", "part.0", "part.1"}
    assert operations(found) == operations(expected)


def made(trace: AtenTrace) -> list[torch.fx.Node]:
    return [node for node in trace.nodes if node.op not in ("placeholder", "output")]


def operations(trace: AtenTrace) -> list[list[str]]:
    """Those of each node."""
    of = dict(zip(trace.nodes, trace.node_ops, strict=True))
    return [[trace.ops[op].name for op in of[node]] for node in made(trace)]


def test_what_makes_nothing_is_no_node() -> None:
    def function(model: Running, x: Tensor) -> Tensor:
        if x.shape[0] > 0 and x.dtype.is_floating_point and x.device.type == "cpu":
            x = x.contiguous().to(torch.float32)
        return torch.tanh(x)

    assert called(trace(function, X)) == [torch.tanh]


def test_parts_of_a_result_are_nodes_of_their_own() -> None:
    found = trace(lambda model, x: torch.topk(x, 2)[0] + 1, X)
    values = found.nodes[index_of(found, operator.getitem)]
    assert values.args[1] == 0
    addition = index_of(found, Tensor.add)
    assert list(found.node_inputs[addition]) == [values]
    assert found.node_output[addition] == found.graph_outputs[0]


def test_inputs_are_placeholders_where_they_are_met_first() -> None:
    found = trace(lambda model, x: x + model.part[0].bias + 1, X)
    assert [node.name for node in found.nodes] == ["given", "part_0_bias", "add", "add_1", "output"]
    assert [found.values[value].producer for value in found.node_output[:2]] == [-1, -1]


def test_a_change_in_place_is_read_by_its_new_number() -> None:
    def function(model: Running, x: Tensor) -> Tensor:
        y = x + 1
        z = y[0]
        y.mul_(2)
        return z + 1

    found = trace(function, X)
    stale = next(op for op in found.ops if op.name == STALE_ALIAS)
    view, changed = index_of(found, Tensor.__getitem__), index_of(found, Tensor.mul_)
    assert stale.inputs[0] == found.node_output[view]
    assert found.ops[found.values[stale.inputs[1]].producer].node == changed
    assert list(found.node_inputs[-2]) == [found.nodes[view]]


def test_grad_mode_is_the_callers_also_inside_an_autograd_function() -> None:
    class Inside(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            assert not torch.is_grad_enabled()
            return torch.sin(x)

    bound = Inside.apply

    def function(model: Running, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = torch.cos(x)
        return y + bound(x) + Inside.apply(x)

    found = trace(function, X.clone().requires_grad_())
    modes = {
        str(getattr(node.target, "__name__", node.target)): on
        for node, on in zip(found.nodes, found.grad_enabled, strict=True)
    }
    assert modes["cos"] is False
    assert (modes["apply"], modes["add"]) == (True, True)
    assert index_of(found, torch.cos) in [index for index in range(len(found.nodes)) if found.cuts_gradients(index)]


def test_what_comes_back_from_numpy_depends_on_what_went_out() -> None:
    found = trace(lambda model, x: torch.from_numpy(torch.tanh(x).numpy() + 1) * 2, X)
    back = index_of(found, made_outside_of_torch)
    assert list(found.node_inputs[back]) == [found.nodes[index_of(found, torch.tanh)]]
    (op,) = found.node_ops[back]
    assert found.ops[op].name == OPAQUE


def test_what_python_makes_of_an_input_depends_on_it() -> None:
    found = trace(lambda model, x: torch.from_numpy(x.numpy() + 1) * 2, X)
    back = index_of(found, made_outside_of_torch)
    assert [node.op for node in found.node_inputs[back]] == ["placeholder"]


def test_a_tensor_in_the_place_of_a_dead_one_is_another() -> None:
    """Python gives identities again; what torch did not make is told from what it made and is gone."""

    def function(model: Running, x: Tensor) -> Tensor:
        y = torch.tanh(x)
        identity, others = id(y), []
        del y
        for _ in range(1000):
            others.append(torch.utils.dlpack.from_dlpack(np.ones((2, 4), np.float32)))
            if id(others[-1]) == identity:
                break
        else:
            raise AssertionError("no tensor took the place")
        return others[-1].cos()

    with torch.no_grad():
        found = trace(function, X)
    assert [node.op for node in found.node_inputs[index_of(found, Tensor.cos)]] == ["placeholder"]


def test_an_error_that_the_model_handles_ends_its_node() -> None:
    def function(model: Running, x: Tensor) -> Tensor:
        try:
            x = torch.cat([torch.tanh(x), x[0]])
        except RuntimeError:
            x = torch.sin(x)
        return x

    found = trace(function, X)
    assert found.node_output[index_of(found, torch.sin)] == found.graph_outputs[0]


def test_a_module_that_is_held_twice_is_named_as_it_is_reached() -> None:
    class Holder(nn.Module):
        def __init__(self, shared: nn.Module) -> None:
            super().__init__()
            self.own = shared

        def forward(self, x: Tensor) -> Tensor:
            return self.own(x)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = nn.Linear(4, 4)
            self.first, self.second = Holder(self.shared), Holder(self.shared)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.second(self.first(self.shared(x))))

    found = trace_run(Model(), (X,), {})
    assert [provenance.module_path(node) for node in found.nodes if node.op == "call_function"] == [
        "shared",
        "first.own",
        "second.own",
        "",
    ]


def test_a_module_outside_of_the_model_leaves_its_caller_the_name() -> None:
    other = nn.Linear(4, 4)
    found = trace(lambda model, x: model.part[1](other(x)), X)
    assert [provenance.module_path(node) for node in found.nodes if node.op == "call_function"] == ["", "part.1"]
