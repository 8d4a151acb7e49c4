"""When two graphs are one."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, symbolic_trace

from attnres_passes.lower.alike import is_in_place, token_of


def graph_of(function: Callable[..., Any]) -> GraphModule:
    return symbolic_trace(function)


def first(x: Tensor, y: Tensor) -> Tensor:
    return torch.add(x, y, alpha=1).sum(dim=(0, 1))


def renamed(a: Tensor, b: Tensor) -> Tensor:
    total = torch.add(a, b, alpha=1)
    return total.sum(dim=(0, 1))


OTHERS = {
    "a constant": lambda x, y: torch.add(x, y, alpha=2).sum(dim=(0, 1)),
    "1.0 for 1": lambda x, y: torch.add(x, y, alpha=1.0).sum(dim=(0, 1)),
    "True for 1": lambda x, y: torch.add(x, y, alpha=True).sum(dim=(0, 1)),
    "the order": lambda x, y: torch.add(y, x, alpha=1).sum(dim=(0, 1)),
    "a list": lambda x, y: torch.add(x, y, alpha=1).sum(dim=[0, 1]),
    "a function": lambda x, y: torch.sub(x, y, alpha=1).sum(dim=(0, 1)),
    "a method": lambda x, y: torch.add(x, y, alpha=1).mean(dim=(0, 1)),
    "one input twice": lambda x, y: torch.add(x, x, alpha=1).sum(dim=(0, 1)),
    "what is given": lambda x, y: torch.add(x, y, alpha=1),
}


def test_names_do_not_count() -> None:
    assert token_of(graph_of(first)) == token_of(graph_of(renamed))
    assert hash(token_of(graph_of(first))) == hash(token_of(graph_of(renamed)))


@pytest.mark.parametrize("difference", OTHERS)
def test_all_else_does(difference: str) -> None:
    assert token_of(graph_of(first)) != token_of(graph_of(OTHERS[difference]))


def test_zeros_of_two_signs_are_two_constants() -> None:
    assert token_of(graph_of(lambda x: x * 0.0)) != token_of(graph_of(lambda x: x * -0.0))


def test_a_tensor_of_the_graph_is_one_with_itself_alone() -> None:
    weight, other = torch.ones(2), torch.ones(2)

    def with_attribute(value: Tensor) -> GraphModule:
        graph = Graph()
        x = graph.placeholder("x")
        graph.output(graph.call_function(torch.add, (x, graph.get_attr("weight"))))
        root = torch.nn.Module()
        root.weight = value
        return GraphModule(root, graph)

    assert token_of(with_attribute(weight)) == token_of(with_attribute(weight))
    assert token_of(with_attribute(weight)) != token_of(with_attribute(other))


def test_bodies_are_compared_by_what_they_do() -> None:
    def with_body(body: Callable[..., Any]) -> GraphModule:
        graph = Graph()
        x = graph.placeholder("x")
        graph.output(graph.call_function(torch.ops.higher_order.tag_activation_checkpoint, (graph.get_attr("body"), x)))
        return GraphModule({"body": graph_of(body)}, graph)

    assert token_of(with_body(lambda x: x + 1)) == token_of(with_body(lambda y: y + 1))
    assert token_of(with_body(lambda x: x + 1)) != token_of(with_body(lambda x: x + 2))


IN_PLACE: list[tuple[str, Any, tuple[Any, ...], dict[str, Any], bool]] = [
    ("call_method", "add_", (1,), {}, True),
    ("call_function", operator.iadd, (1,), {}, True),
    ("call_function", operator.setitem, (0, 1), {}, True),
    ("call_function", torch.relu_, (), {}, True),
    ("call_function", torch.nn.functional.relu, (), {"inplace": True}, True),
    ("call_function", torch.sin, (), {"out": 0}, True),
    ("call_function", operator.and_, (1,), {}, False),
    ("call_function", operator.index, (), {}, False),
    ("call_function", torch.nn.functional.relu, (), {"inplace": False}, False),
    ("call_method", "add", (1,), {}, False),
    ("call_method", "__add__", (1,), {}, False),
]


@pytest.mark.parametrize(("op", "target", "args", "kwargs", "expected"), IN_PLACE)
def test_in_place(op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], expected: bool) -> None:
    graph = Graph()
    call = graph.create_node(op, target, (graph.placeholder("x"), *args), kwargs)
    assert is_in_place(call) == expected
