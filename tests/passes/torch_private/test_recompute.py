"""Nodes marked for recompute, and the operators that run a body."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.nn.functional import dropout
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from attnres_passes.torch_private.recompute import (
    checkpoint_in_graph,
    checkpoint_in_python,
    context_fn_of,
    is_made_again,
    leave_out_of_policies,
    mark_for_recompute,
    region_call,
    set_policy,
)
from tests.passes.helpers import Function, captured


def test_a_node_marked_for_recompute_is_made_again() -> None:
    graph = torch.fx.Graph()
    node, other = graph.placeholder("x"), graph.placeholder("y")
    mark_for_recompute(node)
    assert is_made_again(node)
    assert not is_made_again(other)


def region_calls(gm: GraphModule) -> list[Node]:
    return [node for node in gm.graph.nodes if region_call(node) is not None]


def test_dynamo_makes_a_region_of_a_checkpoint() -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        return checkpoint(self.linear[0], x, use_reentrant=False) * 2

    (node,) = region_calls(captured(model).gm)
    call = region_call(node)
    assert call is not None
    assert call.is_checkpoint
    assert call.body.op == "get_attr"
    assert len(call.operands) == 3
    assert node.target is checkpoint_in_graph


def test_dynamo_makes_a_region_of_what_is_compiled_once() -> None:
    region = torch.compiler.nested_compile_region(lambda x: x.sin())

    def model(self: Function, x: Tensor) -> Tensor:
        return region(region(x))

    calls = [region_call(node) for node in region_calls(captured(model).gm)]
    assert [call is not None and call.is_checkpoint for call in calls] == [False, False]
    assert all(call is not None and len(call.operands) == 1 for call in calls)


def test_other_operators_are_no_regions() -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))

    assert not region_calls(captured(model).gm)


def body(function: Any = torch.sin, **options: Any) -> GraphModule:
    graph = torch.fx.Graph()
    node = graph.call_function(function, (graph.placeholder("x"),), options)
    graph.output((node,))
    return GraphModule({}, graph)


def test_python_computes_again_with_the_random_state_of_the_forward() -> None:
    x = torch.ones(1000, requires_grad=True)
    (found,) = checkpoint_in_python(body(dropout, p=0.5), x, use_reentrant=True)
    torch.rand(3)
    (grad,) = torch.autograd.grad(found.sum(), x)
    assert torch.equal(grad, found)
    assert set(grad.tolist()) == {0.0, 2.0}


def test_a_policy_is_asked_about_some_nodes_only() -> None:
    asked: list[str] = []

    def policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        asked.append(str(operator))
        return CheckpointPolicy.PREFER_RECOMPUTE

    gm = body()
    set_policy(gm, None)
    assert context_fn_of(gm) is None
    set_policy(gm, lambda: create_selective_checkpoint_contexts(policy))
    for left_out in (False, True):
        for node in gm.graph.nodes:
            if left_out:
                leave_out_of_policies(node)
        (found,) = checkpoint_in_python(gm, torch.ones(2, requires_grad=True), use_reentrant=False)
        found.sum().backward()
        assert asked == ["aten.sin.default"]
