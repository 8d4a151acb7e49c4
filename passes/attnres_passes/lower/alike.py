"""When two graphs are one: the same calls on the same constants, whatever their values and nodes are named."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

GraphToken = tuple[Any, ...]
"""Equal for graphs that compute the same; hashable. Objects that it cannot look into stand for themselves."""

_CONSTANTS = (int, float, complex, str, bool, type(None), type(...), torch.dtype, torch.device, torch.layout)
_IN_PLACE = {
    operator.setitem,
    operator.delitem,
    *(getattr(operator, name) for name in dir(operator) if name.startswith("__i") and name.endswith("__")),
} - {operator.inv, operator.invert, operator.index}


def is_in_place(node: Node) -> bool:
    """Whether a call changes what it is given, by its name or by ``inplace`` or ``out``."""
    if node.op not in ("call_function", "call_method"):
        return False
    if node.kwargs.get("inplace") is True or node.kwargs.get("out") is not None or node.target in _IN_PLACE:
        return True
    if getattr(node.target, "__module__", "") == operator.setitem.__module__:
        return False  # operator.and_ is named so since "and" is a keyword
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name.endswith("_") and not name.endswith("__")


def token_of(gm: GraphModule) -> GraphToken:
    """The token of a graph.

    Args:
        gm: its placeholders count by their places, its nodes by their order.
    """
    numbers = {node: index for index, node in enumerate(gm.graph.nodes)}
    return tuple(
        (node.op, _target(node, gm), _token(node.args, numbers, gm), _token(node.kwargs, numbers, gm))
        for node in gm.graph.nodes
    )


def _target(node: Node, gm: GraphModule) -> Any:
    if node.op in ("placeholder", "output"):
        return None
    if node.op not in ("get_attr", "call_module"):
        return node.target
    value = operator.attrgetter(str(node.target))(gm)
    return token_of(value) if isinstance(value, GraphModule) else _Itself(value)


def _token(value: Any, numbers: Mapping[Node, int], gm: GraphModule) -> Any:
    if isinstance(value, Node):
        return ("node", numbers[value])
    if isinstance(value, _CONSTANTS):
        # 1, 1.0 and True are equal, and 0.0 and -0.0.
        return (type(value), repr(value) if isinstance(value, float) else value)
    if isinstance(value, (tuple, list)):
        return (type(value), *(_token(one, numbers, gm) for one in value))
    if isinstance(value, slice):
        return (slice, *(_token(one, numbers, gm) for one in (value.start, value.stop, value.step)))
    if isinstance(value, Mapping):
        return (dict, *((key, _token(one, numbers, gm)) for key, one in value.items()))
    if is_dataclass(value) and not isinstance(value, type):
        named = ((field.name, _token(getattr(value, field.name), numbers, gm)) for field in fields(value))
        return (type(value), *named)
    return _Itself(value)


class _Itself:
    """Equal to another one of the same object, which it keeps, so that no later object has its number."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)
