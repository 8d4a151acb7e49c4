"""Analysis: where the graph takes queries, keys and values of an attention.

An attention is one operation (``scaled_dot_product_attention``, as whichever kernel torch runs, or
``flex_attention``), or three: a product
whose columns a softmax goes over, that softmax, and a product that sums over what it went over ::

    scores = torch.matmul(q, k.transpose(-2, -1))     # the columns of the product are those of k
    weights = torch.softmax(scores + mask, -1)
    mixed = torch.matmul(weights, v)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import Literal

from attnres_passes.analyses.aten_trace import AtenTrace, Op, Ref
from attnres_passes.analyses.degrees.feature_axis import axis_after

Argument = Literal["q", "k", "v"]
ARGUMENTS: tuple[Argument, ...] = ("q", "k", "v")

FARTHEST = 48
"""Operations followed from the scores to their softmax, and from there to the product with the values."""

_PRODUCTS = {"aten.bmm": 0, "aten.mm": 0, "aten.baddbmm": 1}
"""Where a product of two matrices is given them."""

_RESHAPES = frozenset(f"aten.{name}" for name in ("view", "_unsafe_view", "unsqueeze", "squeeze"))


def attention_arguments(trace: AtenTrace) -> Mapping[int, Mapping[int, frozenset[Argument]]]:
    """For each operation that takes arguments of an attention, which values it takes as which.

    Args:
        trace: of the captured graph.
    """
    found: dict[int, dict[int, frozenset[Argument]]] = {}
    for op in trace.ops:
        for taking, value, argument in _taken(trace, op):
            of_op = found.setdefault(taking, {})
            of_op[value] = of_op.get(value, frozenset()) | {argument}
    return found


def _taken(trace: AtenTrace, op: Op) -> Iterator[tuple[int, int, Argument]]:
    """What the attention that begins with an operation takes: by which operation, which value, as which argument."""
    if "scaled_dot_product" in op.name or op.name == "flex_attention":
        for given, argument in zip(op.args, ARGUMENTS, strict=False):
            if isinstance(given, Ref):
                yield op.index, given.value, argument
        return
    factors = _factors(op)
    if factors is None:
        return

    def softmax_over(op: Op, value: int, axis: int) -> bool:
        return _is_softmax_over(op, len(trace.values[value].shape), axis)

    rank = len(trace.values[op.outputs[0]].shape)
    # The columns of a product are those of its right matrix, the rows those of its left one.
    for keys_axis, (query, key) in ((rank - 1, factors), (rank - 2, factors[::-1])):
        for softmax, _, axis in _reached(trace, op.outputs[0], keys_axis, softmax_over):
            for mixing, value in _summed_with(trace, softmax.outputs[0], axis):
                yield op.index, query, "q"
                yield op.index, key, "k"
                yield mixing.index, value, "v"


def _factors(op: Op) -> tuple[int, int] | None:
    """The matrices of a product of two; None for another operation."""
    first = _PRODUCTS.get(op.name)
    if first is None:
        return None
    left, right = op.args[first : first + 2]
    return (left.value, right.value) if isinstance(left, Ref) and isinstance(right, Ref) else None


def _is_softmax_over(op: Op, rank: int, axis: int) -> bool:
    if not op.name.endswith("softmax") or "log" in op.name:
        return False
    given = op.args[1] if len(op.args) > 1 else op.kwargs.get("dim")
    return isinstance(given, int) and given % rank == axis


def _summed_with(trace: AtenTrace, weights: int, axis: int) -> Iterator[tuple[Op, int]]:
    """The products that sum over an axis of some weights, and what they are multiplied by there."""

    def summed_with(op: Op, value: int, axis: int) -> int | None:
        left, right = _factors(op) or (None, None)
        rank = len(trace.values[value].shape)
        if left == value and axis == rank - 1:
            return right
        return left if right == value and axis == rank - 2 else None

    for op, value, axis_there in _reached(trace, weights, axis, lambda *at: summed_with(*at) is not None):
        other = summed_with(op, value, axis_there)
        assert other is not None
        yield op, other


def _reached(
    trace: AtenTrace, start: int, axis: int, wanted: Callable[[Op, int, int], bool]
) -> Iterator[tuple[Op, int, int]]:
    """The operations behind a value that are wanted, with what they read of it, and where an axis is in that."""
    pending, seen = [(start, axis)], {start}
    for _ in range(FARTHEST):
        if not pending:
            return
        value, axis = pending.pop(0)
        for index in trace.users[value]:
            op = trace.ops[index]
            if wanted(op, value, axis):
                yield op, value, axis
            elif op.name not in _PRODUCTS and not op.name.endswith("softmax"):
                after = _axis_after(op, value, axis, trace)
                if after is not None and op.outputs and op.outputs[0] not in seen:
                    seen.add(op.outputs[0])
                    pending.append((op.outputs[0], after))


def _axis_after(op: Op, value: int, axis: int, trace: AtenTrace) -> int | None:
    """As ``axis_after``, and through reshapes, and columns that are added for sinks and taken off again."""
    before = trace.values[value].shape
    if op.name in ("aten.cat", "aten.slice"):
        given = op.args[1] if len(op.args) > 1 else op.kwargs.get("dim", 0)
        if given % len(before) == axis:
            return axis
    after = axis_after(op, value, axis, trace)
    if after is None and op.name in _RESHAPES:
        shape = trace.values[op.outputs[0]].shape
        # An axis is kept where as many elements come before it, and it is as long.
        kept = (k for k, size in enumerate(shape) if size == before[axis] and prod(shape[:k]) == prod(before[:axis]))
        return next(kept, None)
    return after
