"""Rules of operators that put tensors beside or into one another: choices, fills, concatenations, writes."""

from __future__ import annotations

import math

from attnres_passes.analyses.aten_trace import STALE_ALIAS
from attnres_passes.analyses.degrees.degree import RULES, UNKNOWN, ZERO, Call, Degree, common, rule


@rule("where")
def selection(call: Call) -> Degree:
    if len(call.op.args) < 3 or call.degree() != ZERO:
        return UNKNOWN
    return common([call.degree(1), call.degree(2)])


@rule("masked_fill constant_pad_nd")
def fill_with_constant(call: Call) -> Degree:
    """Zeros and infinities are the same at every scale."""
    value = call.argument(2, "value", 0)
    is_scale_free = isinstance(value, (int, float)) and (value == 0 or math.isinf(value))
    return call.of_first() if is_scale_free else UNKNOWN


@rule("cat stack")
def concatenation(call: Call) -> Degree:
    return common([call.of(part) for part in call.op.args[0]])


@rule("copy fill")
def overwrite(call: Call) -> Degree:
    return call.degree(1)


@rule("index_add index_copy scatter scatter_add slice_scatter select_scatter index_put _index_put_impl masked_scatter")
def write_into(call: Call) -> Degree:
    """Target and values must scale alike; positions must not scale at all."""
    target, *positions, values = call.tensors((call.op.args, call.op.kwargs))
    return common([target, values]) if all(degree == ZERO for degree in positions) else UNKNOWN


def _stale_alias(call: Call) -> Degree:
    return common([call.of(argument) for argument in call.op.args])


RULES[STALE_ALIAS] = _stale_alias
