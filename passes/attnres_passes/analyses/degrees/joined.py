"""Rows of different degrees in one tensor: a stream that is concatenated with other tokens before it is normed.

``norm(cat([x_cls, x], 1))`` norms each row, a vector along the last axis, by itself. So it takes the scale of ``x``
away, and would take that of ``x_cls`` away if that scaled by another factor. What works along the last axis, or on each
element, keeps the rows apart; behind anything else the degree is unknown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from attnres_passes.analyses.aten_trace import Op, Ref
from attnres_passes.analyses.degrees.degree import UNKNOWN, Degree, functional_name
from attnres_passes.analyses.degrees.feature_axis import reduced_axes

_BY_ELEMENT = frozenset(
    f"aten.{name}"
    for name in (
        *("add", "sub", "rsub", "mul", "div", "pow", "square", "sqrt", "rsqrt", "reciprocal", "neg", "abs"),
        *("_to_copy", "clone", "detach", "alias", "clamp", "clamp_min"),
    )
)
_NORMS = frozenset({"aten.native_layer_norm", "aten._fused_rms_norm"})

Shape = Callable[[int], tuple[Any, ...]]
"""From the number of a value to its shape."""


@dataclass(frozen=True)
class Joined:
    """join: index of the concatenation; parts: the degree of the rows from each of its operands, not all equal."""

    join: int
    parts: tuple[Degree, ...]


def join_of(op: Op, degree_of: Callable[[int], Degree | Joined], shape: Shape) -> Joined | None:
    """What a concatenation of rows of different degrees gives; None for anything else.

    Args:
        op: any operation.
        degree_of: from the number of a value to its degree.
        shape: of a value.
    """
    if op.name != "aten.cat":
        return None
    parts = [part.value for part in op.args[0] if isinstance(part, Ref)]
    degrees = tuple(degree_of(part) for part in parts)
    rank = len(shape(op.outputs[0]))
    axis = (op.args[1] if len(op.args) > 1 else op.kwargs.get("dim", 0)) % rank
    if axis == rank - 1 or len(parts) != len(op.args[0]):
        return None
    known = tuple(degree for degree in degrees if degree is not UNKNOWN and not isinstance(degree, Joined))
    return Joined(op.index, known) if len(known) == len(degrees) and len(set(known)) > 1 else None


def degrees_by_part(
    op: Op,
    degree_of: Callable[[int], Degree | Joined],
    shape: Shape,
    rule: Callable[[Callable[[int], Degree]], list[Degree]],
) -> list[Degree | Joined]:
    """Degrees of the outputs of an operation that reads joined rows.

    Args:
        op: the operation.
        degree_of: from the number of a value to its degree.
        shape: of a value.
        rule: of the operation, for rows of one part: from their degrees to those of its outputs.
    """
    joined = {degree for value in op.inputs if isinstance(degree := degree_of(value), Joined)}
    joins = {(one.join, len(one.parts)) for one in joined}
    if len(joins) != 1 or not _keeps_rows_apart(op, shape):
        return [UNKNOWN] * len(op.outputs)
    ((join, count),) = joins

    def of_part(part: int) -> Callable[[int], Degree]:
        def degree(value: int) -> Degree:
            whole = degree_of(value)
            return whole.parts[part] if isinstance(whole, Joined) else whole

        return degree

    of_outputs = zip(*(rule(of_part(part)) for part in range(count)), strict=True)
    return [_together(join, parts) for parts in of_outputs]


def _together(join: int, parts: tuple[Degree, ...]) -> Degree | Joined:
    if UNKNOWN in parts:
        return UNKNOWN
    return parts[0] if len(set(parts)) == 1 else Joined(join, parts)


def _keeps_rows_apart(op: Op, shape: Shape) -> bool:
    if op.name in _NORMS:
        return len(op.args[1]) == 1
    if functional_name(op) in _BY_ELEMENT:
        return True
    rank = len(shape(op.inputs[0]))
    is_along_rows = op.name == "aten.expand" or reduced_axes(op, rank) == {rank - 1}
    return is_along_rows and all(shape(output)[:-1] == shape(op.inputs[0])[:-1] for output in op.outputs)
