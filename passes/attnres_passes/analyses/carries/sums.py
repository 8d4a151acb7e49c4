"""Sums that are no ``x + f``: a subtraction, a weighted sum, a product with an addend, a stack that is summed.

They are no step of a chain. A sublayer can be added by one all the same, so a read that leads to it feeds a write.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from attnres_passes.analyses.aten_trace import AtenTrace, Op, Ref
from attnres_passes.analyses.degrees.degree import functional_name, is_shape_only

_OF_TWO = frozenset(f"aten.{name}" for name in ("add", "sub", "rsub", "lerp"))
_WITH_PRODUCT = frozenset(f"aten.{name}" for name in ("addmm", "baddbmm", "addbmm", "addmv", "addr"))
_WITH_REST = frozenset(f"aten.{name}" for name in ("addcmul", "addcdiv", "index_add", "scatter_add", "scatter_reduce"))
_REDUCTIONS = frozenset({"aten.sum", "aten.mean"})
_JOINS = frozenset({"aten.stack", "aten.cat"})
_VIEWS = frozenset({"aten.view", "aten._unsafe_view", "aten.reshape"})


@dataclass(frozen=True)
class Sum:
    """What may be a state, and what is added to it. has_product: the operation multiplies matrices itself."""

    state: int
    branches: tuple[int, ...]
    has_product: bool = False


def sums_of(trace: AtenTrace, op: Op) -> Iterator[Sum]:
    """The ways to see an operation as the sum of a state and something else; none if it is no such sum.

    Args:
        trace: of the captured graph.
        op: any operation but an addition of a chain.
    """
    name = functional_name(op)
    if name in _OF_TWO:
        operands = [argument.value for argument in op.args[:2] if isinstance(argument, Ref)]
        if len(operands) == 2:
            yield Sum(operands[0], (operands[1],))
            yield Sum(operands[1], (operands[0],))
    elif name in _WITH_PRODUCT or name in _WITH_REST or (name == "aten.index_put" and _accumulates(op)):
        state, *branches = op.inputs
        yield Sum(state, tuple(branches), name in _WITH_PRODUCT)
    elif name in _REDUCTIONS and (parts := _joined(trace, op.inputs[0])):
        for part in parts:
            yield Sum(part, tuple(other for other in parts if other != part))


def _accumulates(op: Op) -> bool:
    return bool(op.args[3] if len(op.args) > 3 else op.kwargs.get("accumulate", False))


def _joined(trace: AtenTrace, value: int) -> tuple[int, ...]:
    """The tensors that a value was stacked or concatenated from, seen through one view."""
    for _ in range(2):
        producer = trace.values[value].producer
        if producer < 0:
            return ()
        op = trace.ops[producer]
        if op.name in _JOINS:
            return tuple(dict.fromkeys(op.inputs))
        if op.name not in _VIEWS:
            return ()
        value = op.inputs[0]
    return ()


def newest_additions(trace: AtenTrace, additions: list[Op]) -> list[int]:
    """Of each value, the last of some additions that it depends on; -1 for none.

    Args:
        trace: of a captured graph.
        additions: some of its operations.
    """
    newest = [-1] * len(trace.values)
    adding = {op.index for op in additions}
    for op in trace.ops:
        if is_shape_only(op):
            continue
        last = op.index if op.index in adding else max((newest[value] for value in op.inputs), default=-1)
        for value in op.outputs:
            newest[value] = last
    return newest
