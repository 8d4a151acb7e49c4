"""Which operand of a product is the residual stream, and what it is multiplied by.

A factor is a number, a learned scalar or vector, a mask: anything of the stream's shape or broadcast to it. Filling
positions with zeros is a product with a mask, in another spelling. All are linear, so that every part of the sum can go
through them by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attnres_passes.analyses.aten_trace import AtenTrace, Op, Ref
from attnres_passes.analyses.degrees.degree import functional_name

Scaled = tuple[int, tuple[int, ...]]
"""The value that is scaled, and the values that say by how much."""

_ZEROS = frozenset(f"aten.{name}" for name in ("zeros_like", "new_zeros", "zeros"))
_COPIES = frozenset(f"aten.{name}" for name in ("detach", "alias", "clone", "expand", "lift_fresh", "_to_copy"))
_FILLED = frozenset({"aten.scalar_tensor", "aten.full", "aten.full_like", "aten.new_full"})


def scaled_by(trace: AtenTrace, op: Op, newest: Sequence[int]) -> Scaled | None:
    """What an operation scales, and by what; None if it does something else.

    Args:
        trace: of the captured graph.
        op: any operation.
        newest: of each value, the last addition that it depends on.
    """
    name, found = functional_name(op), None
    if name == "aten.mul":
        found = _of_product(trace, op, newest)
    elif name in ("aten.div", "aten.true_divide") and op.kwargs.get("rounding_mode") is None:
        found = _of_quotient(trace, op, newest)
    elif name == "aten.neg":
        found = op.inputs[0], ()
    elif name == "aten.masked_fill" and is_zeros(trace, op.args[2]):
        found = op.args[0].value, (op.args[1].value,)
    elif name == "aten.where" and len(op.args) == 3:
        found = _of_choice(trace, op)
    if found is None:
        return None
    before, after = trace.values[found[0]], trace.values[op.outputs[0]]
    return found if before.is_floating and after.is_floating and before.shape == after.shape else None


def _of_product(trace: AtenTrace, op: Op, newest: Sequence[int]) -> Scaled | None:
    left, right = op.args[:2]
    if not isinstance(right, Ref):
        return left.value, ()
    if not isinstance(left, Ref):
        return right.value, ()
    shape = trace.values[op.outputs[0]].shape
    whole = [one.value for one in (left, right) if trace.values[one.value].shape == shape]
    if len(whole) == 2:
        # Two of one shape: the stream is the one that more was added to.
        one, other = whole
        if newest[one] == newest[other]:
            return None
        whole = [one if newest[one] > newest[other] else other]
    if len(whole) != 1:
        return None
    return whole[0], (right.value if whole[0] == left.value else left.value,)


def _of_quotient(trace: AtenTrace, op: Op, newest: Sequence[int]) -> Scaled | None:
    stream, divisor = op.args[:2]
    if not isinstance(stream, Ref):
        return None
    if not isinstance(divisor, Ref):
        return stream.value, ()
    is_whole = trace.values[divisor.value].shape == trace.values[op.outputs[0]].shape
    if is_whole and newest[stream.value] <= newest[divisor.value]:
        return None
    return stream.value, (divisor.value,)


def _of_choice(trace: AtenTrace, op: Op) -> Scaled | None:
    """``where(mask, x, 0)``, or with the two the other way round."""
    mask, *choices = op.args
    for stream, filled in (choices, choices[::-1]):
        if isinstance(stream, Ref) and is_zeros(trace, filled):
            return stream.value, (mask.value,)
    return None


def is_zeros(trace: AtenTrace, argument: Any) -> bool:
    """Whether an argument is the number 0, or a tensor made of nothing else.

    Args:
        trace: of the captured graph.
        argument: of an operation.
    """
    if not isinstance(argument, Ref):
        return isinstance(argument, (int, float)) and argument == 0
    producer = trace.values[argument.value].producer
    while producer >= 0 and trace.ops[producer].name in _COPIES:
        producer = trace.values[trace.ops[producer].inputs[0]].producer
    if producer < 0:
        return False
    op = trace.ops[producer]
    if op.name in _ZEROS:
        return True
    return op.name in _FILLED and any(_is_number_zero(one) for one in (op.args[0], op.args[-1]))


def _is_number_zero(argument: Any) -> bool:
    return isinstance(argument, (int, float)) and not isinstance(argument, bool) and argument == 0
