"""Whether tensor-parallel ranks can share the sublayers of a model, and what of their inputs they sum in the backward.

Each sublayer is cut as Megatron-LM does: its first products by their outputs, attention by its heads, its last product
by what it sums over. So ranks sum its output in the forward, and the gradient of each of its inputs in the backward.
The stream, its norms and its reads are the same on every rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import Node

from attnres_compile.capture.analysis import AnalysedGraph
from attnres_compile.report.counting.execution import Sum
from attnres_compile.report.counting.places import Branch, last_product
from attnres_compile.report.parallel import ParallelError
from attnres_passes.torch_private.example_values import example_value

_VIEWS = ("reshape", "view", "expand", "getitem", "contiguous", "unsqueeze", "flatten", "repeat_interleave")


def check_shares(graph: AnalysedGraph, branches: Sequence[Branch], ranks: int) -> None:
    """Check that heads and features of every sublayer of a graph can be shared.

    Args:
        graph: that holds the sublayers.
        branches: all of them.
        ranks: that share each.

    Raises:
        ParallelError: some cannot.
    """
    for branch in branches:
        for node in branch.inner:
            if node.target is torch.nn.functional.scaled_dot_product_attention:
                query, key = (_given(node, index, name) for index, name in ((0, "query"), (1, "key")))
                _check(_heads(query), ranks, "query heads", branch)
                _check(_heads(_before_repeats(key)), ranks, "key heads", branch)
        last = last_product(graph, branch)
        shape = _shape(next((one for one in last.all_input_nodes if one in branch.inner), None))
        if shape:
            _check(shape[-1], ranks, "features that its last product sums over", branch)


def gradients_summed(branches: Sequence[Branch]) -> Sum:
    """What ranks sum in the backward: the gradient of every normed input, once for each sublayer that takes it."""
    total = Sum()
    for branch in branches:
        for node in branch.inputs:
            value = example_value(node)
            assert isinstance(value, Tensor)
            total += Sum(1, math.prod(int(size) for size in value.shape) * value.element_size())
    return total


def _check(number: int, ranks: int, what: str, branch: Branch) -> None:
    if number % ranks:
        fitting = ", ".join(str(one) for one in range(2, number + 1) if number % one == 0)
        raise ParallelError(
            f"{ranks} tensor-parallel ranks cannot share the {number} {what} of {branch.module or branch.write.name} "
            f"evenly: take a number of ranks that divides them, {fitting or 'which none but 1 does'}."
        )


def _given(node: Node, index: int, name: str) -> Node:
    found = node.args[index] if len(node.args) > index else node.kwargs[name]
    assert isinstance(found, Node)
    return found


def _heads(node: Node) -> int:
    """``[.., heads, tokens, features]``."""
    shape = _shape(node)
    return shape[-3] if len(shape) > 2 else 1


def _before_repeats(key: Node) -> Node:
    """Keys as they were projected, before each is given to a group of queries."""
    node, heads = key, _heads(key)
    while _name(node) in _VIEWS and isinstance(node.args[0], Node):
        node = node.args[0]
        shape = _shape(node)
        if len(shape) == len(_shape(key)) and shape[-2:] == _shape(key)[-2:] and shape[-3] < heads:
            return node
    return key


def _name(node: Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def _shape(node: Node | None) -> tuple[int, ...]:
    value = None if node is None else example_value(node)
    return tuple(int(size) for size in value.shape) if isinstance(value, Tensor) else ()
