"""Analysis: models that attend over depth already.

Such a model joins what earlier layers gave along an axis of their own, and attends over it with a softmax; from layer
to layer there is more to attend over. Attention over tokens has the same number of them in every layer.
"""

from __future__ import annotations

from attnres_passes.analyses.aten_trace import AtenTrace, Op

FARTHEST_SOFTMAX = 48
"""Operations followed from where values are joined to the softmax over them."""

_JOINS = frozenset({"aten.stack", "aten.cat"})
_SOFTMAXES = ("softmax", "scaled_dot_product")


def attends_over_depth(trace: AtenTrace) -> int | None:
    """The first operation that joins values of several depths for an attention; None if there is none.

    Args:
        trace: of the captured graph.
    """
    found: dict[tuple[object, ...], list[tuple[int, int]]] = {}
    for op in trace.ops:
        if op.name not in _JOINS or not op.outputs:
            continue
        shape = trace.values[op.outputs[0]].shape
        position = op.args[1] if len(op.args) > 1 else op.kwargs.get("dim", 0)
        axis = position % len(shape)
        is_depth = trace.values[op.outputs[0]].is_floating and axis != len(shape) - 1 and isinstance(shape[axis], int)
        if is_depth and shape[axis] > 1 and _leads_to_softmax(trace, op):
            rest = (*shape[:axis], None, *shape[axis + 1 :])
            found.setdefault(rest, []).append((shape[axis], op.index))
    for joined in found.values():
        sizes = [size for size, _ in joined]
        if len(set(sizes)) > 1 and sizes == sorted(sizes):
            return joined[0][1]
    return None


def _leads_to_softmax(trace: AtenTrace, op: Op) -> bool:
    pending, seen = list(op.outputs), set(op.outputs)
    for _ in range(FARTHEST_SOFTMAX):
        if not pending:
            return False
        for index in trace.users[pending.pop(0)]:
            user = trace.ops[index]
            if any(name in user.name for name in _SOFTMAXES):
                return True
            if user.name in _JOINS:
                continue
            fresh = [value for value in user.outputs if value not in seen]
            seen.update(fresh)
            pending.extend(fresh)
    return False
