"""What is taken for a sum over the ranks of a group, on graphs as Dynamo captures them."""

from __future__ import annotations

import operator

import pytest
import torch
from torch.fx import Graph, Node

from attnres_passes.torch_private import collectives

OPERATORS = torch.ops._c10d_functional


def graph_of_sum(in_place: bool, kind: str = "sum", of: str = "0", copies_another: bool = False) -> tuple[Node, Node]:
    """What is summed and the sum, which is added to a stream."""
    graph = Graph()
    stream, partial = graph.placeholder("stream"), graph.placeholder("partial")
    given = graph.placeholder("another") if copies_another else partial
    reduced = graph.call_function(OPERATORS.all_reduce, (given, kind, of))
    waited = graph.call_function(OPERATORS.wait_tensor, (reduced,))
    if in_place:
        graph.call_method("copy_", (partial, waited))
    summed = partial if in_place else waited
    graph.output(graph.call_function(operator.add, (stream, summed)))
    return partial, summed


@pytest.mark.parametrize("in_place", [False, True])
def test_a_sum_over_the_group_is_seen(in_place: bool) -> None:
    partial, summed = graph_of_sum(in_place)
    found = collectives.all_reduced(summed, "0")
    assert found is not None
    assert found.given is partial
    expected = [OPERATORS.all_reduce, OPERATORS.wait_tensor, *(["copy_"] if in_place else [])]
    assert [node.target for node in found.nodes] == expected


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(("kind", "of"), [("avg", "0"), ("sum", "1")])
def test_other_reductions_and_groups_are_not(in_place: bool, kind: str, of: str) -> None:
    _, summed = graph_of_sum(in_place, kind, of)
    assert collectives.all_reduced(summed, "0") is None


def test_what_is_overwritten_by_the_sum_of_another_is_not() -> None:
    _, summed = graph_of_sum(in_place=True, copies_another=True)
    assert collectives.all_reduced(summed, "0") is None


def test_a_group_that_is_not_there_is_a_lookup_error() -> None:
    with pytest.raises(LookupError, match="not initialised"):
        collectives.group_place("nowhere")
