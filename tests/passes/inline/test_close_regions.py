"""Checkpoints made again of what was opened."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.fx import Graph, GraphModule, Node
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from attnres_passes.inline.close_regions import close_regions, without_regions
from attnres_passes.inline.open_regions import open_regions
from attnres_passes.ir.annotations import Annotation, annotate
from attnres_passes.ir.levels import LevelError
from attnres_passes.ir.regions import Region, put_in_region, region_of
from attnres_passes.torch_private.recompute import checkpoint_in_python, region_call
from tests.passes.helpers import captured
from tests.passes.inline.test_open_regions import checkpointed, stack


def graph_of(*places: Region | None, function: Callable[..., Any] = torch.sin) -> tuple[GraphModule, list[Node]]:
    """A chain of calls, each in a region."""
    graph = Graph()
    node = graph.placeholder("x")
    nodes = []
    for region in places:
        node = graph.call_function(function, (node,))
        put_in_region(node, region)
        nodes.append(node)
    graph.output((node,))
    return GraphModule({}, graph), nodes


def test_a_graph_without_regions_is_given_back() -> None:
    gm, _ = graph_of(None, None)
    assert close_regions(gm, in_python=False) is gm


@pytest.mark.parametrize("in_python", [False, True])
def test_closing_undoes_opening(in_python: bool) -> None:
    graph = captured(checkpointed)
    gm = open_regions(graph.gm)
    before = str(gm.graph)
    closed = close_regions(gm, in_python)
    closed.graph.lint()
    assert str(gm.graph) == before
    targets = [node.target for node in closed.graph.nodes if node.op == "call_function"]
    if in_python:
        assert targets.count(checkpoint_in_python) == 3
    else:
        assert sum(region_call(node) is not None for node in closed.graph.nodes) == 3
    with torch.no_grad():
        expected = captured(stack).gm(*captured(stack).inputs)
    torch.testing.assert_close(closed(*graph.inputs), expected, rtol=0, atol=0)


def test_regions_in_regions() -> None:
    outer = Region(0, {"use_reentrant": False})
    inner = Region(1, {"use_reentrant": False}, outer=outer)
    gm, _ = graph_of(outer, inner, inner, outer, None)
    closed = close_regions(gm, in_python=False)
    body = closed.get_submodule("attnres_region_0")
    assert isinstance(body, GraphModule)
    assert [region_call(node) is not None for node in body.graph.nodes].count(True) == 1
    x = torch.ones(3, requires_grad=True)
    (found,) = closed(x)
    assert torch.equal(found, x.sin().sin().sin().sin().sin())


def test_nodes_that_stand_between_are_moved_out() -> None:
    """A key matrix for the reads of all regions, which is made of parameters, stands before the first that uses it."""
    region = Region(0, {"use_reentrant": False})
    graph = Graph()
    x, weight = graph.placeholder("x"), graph.placeholder("weight")
    first = graph.call_function(torch.sin, (x,))
    outside = graph.call_function(torch.cos, (weight,))
    second = graph.call_function(torch.mul, (first, outside))
    graph.output((second, outside))
    for node in (first, second):
        put_in_region(node, region)
    closed = close_regions(GraphModule({}, graph), in_python=False)
    order = [node.target for node in closed.graph.nodes if node.op == "call_function"]
    assert order[0] is torch.cos
    x, weight = torch.ones(2, requires_grad=True), torch.ones(2)
    assert torch.equal(closed(x, weight)[0], x.sin() * weight.cos())


def test_a_region_that_needs_what_is_made_of_it_is_a_fault() -> None:
    region = Region(0, {"use_reentrant": False})
    gm, _ = graph_of(region, None, region)
    with pytest.raises(LevelError, match="is needed by its checkpoint"):
        close_regions(gm, in_python=False)


def test_items_of_a_tuple_stand_where_it_does() -> None:
    region = Region(0, {"use_reentrant": False})
    graph = Graph()
    x = graph.placeholder("x")
    parts = graph.call_function(torch.chunk, (x, 2))
    put_in_region(parts, region)
    items = [graph.call_function(operator.getitem, (parts, k)) for k in range(2)]
    graph.output(tuple(items))
    closed = close_regions(GraphModule({}, graph), in_python=False)
    body = closed.get_submodule("attnres_region_0")
    assert isinstance(body, GraphModule)
    assert len(next(iter(reversed(body.graph.nodes))).args[0]) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize("in_python", [False, True])
def test_a_policy_is_asked_about_the_model_alone(in_python: bool) -> None:
    asked: Counter[str] = Counter()

    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        asked[str(op)] += 1
        return CheckpointPolicy.MUST_SAVE

    region = Region(0, {"use_reentrant": False}, lambda: create_selective_checkpoint_contexts(policy))
    gm, nodes = graph_of(region, region, region)
    annotate(nodes[1], Annotation("read", 0))
    nodes[1].target = torch.cos
    closed = close_regions(gm, in_python)
    (found,) = closed(torch.ones(3, requires_grad=True))
    found.sum().backward()
    assert asked["aten.sin.default"] == 2
    assert asked["aten.cos.default"] == 0


def test_the_region_of_a_closed_call_is_the_one_around_it() -> None:
    outer = Region(0, {"use_reentrant": False})
    gm, _ = graph_of(outer, None)
    closed = close_regions(gm, in_python=False)
    assert all(region_of(node) is None for node in closed.graph.nodes)


def test_what_nothing_differentiates_has_no_regions() -> None:
    gm, nodes = graph_of(Region(0, {}), None)
    plain = without_regions(gm)
    assert all(region_of(node) is None for node in plain.graph.nodes)
    assert region_of(nodes[0]) is not None
    assert without_regions(plain) is plain
