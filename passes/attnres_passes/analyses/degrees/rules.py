"""The rule table of the degree analysis as one function: each family of operators has its file beside this one.

Adding an operator is adding its name to a rule, or a rule; an operator without one is taken to keep degree 0 and to
lose any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from attnres_passes.analyses.aten_trace import Op
from attnres_passes.analyses.degrees import arithmetic, homogeneous, normalisation  # noqa: F401  (rules)
from attnres_passes.analyses.degrees.degree import RULES, UNKNOWN, ZERO, Call, Degree, functional_name, is_shape_only
from attnres_passes.analyses.degrees.joined import Joined, Shape, degrees_by_part, join_of


def output_degrees(
    op: Op,
    degree_of: Callable[[int], Degree | Joined],
    is_zeros: Callable[[Any], bool] = lambda argument: False,
    shape: Shape | None = None,
) -> Sequence[Degree | Joined]:
    """Degrees of the outputs of an operation, one each; called only where some input has a degree other than 0.

    Args:
        op: the operation.
        degree_of: from the number of a value to its degree.
        is_zeros: whether an argument is a number or a tensor of nothing but zeros.
        shape: of a value; without it, rows of several degrees are not followed.
    """
    if is_shape_only(op):
        return [ZERO] * len(op.outputs)
    found = RULES.get(functional_name(op))

    def by_rule(degree_of_part: Callable[[int], Degree]) -> list[Degree]:
        degrees = UNKNOWN if found is None else found(Call(op, degree_of_part, is_zeros))
        return degrees if isinstance(degrees, list) else [degrees] * len(op.outputs)

    if shape is not None:
        join = join_of(op, degree_of, shape)
        if join is not None:
            return [join]
        if any(isinstance(degree_of(value), Joined) for value in op.inputs):
            return degrees_by_part(op, degree_of, shape, by_rule)
    return by_rule(lambda value: _plain(degree_of(value)))


def _plain(degree: Degree | Joined) -> Degree:
    return UNKNOWN if isinstance(degree, Joined) else degree
