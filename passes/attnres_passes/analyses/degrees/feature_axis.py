"""Where the last axis of a residual stream goes on the way to its readers.

The rewrite takes norms and dot products along the last axis of a state. A reader that works along another one, such
as a convolution over ``[batch, channels, height, width]``, shows that the stream's features are not there.
"""

from __future__ import annotations

from attnres_passes.analyses.aten_trace import AtenTrace, Op, Ref

_CHANNELS_SECOND = ("convolution", "batch_norm", "group_norm")
_REDUCTIONS = {
    **dict.fromkeys((f"aten.{name}" for name in ("mean", "sum", "var", "var_mean", "std", "amax", "amin")), 1),
    **dict.fromkeys((f"aten.{name}" for name in ("logsumexp", "prod")), 1),
    "aten.linalg_vector_norm": 2,
}
"""Where a reduction is given its axes."""

_CONTRACT_LAST = frozenset({"aten.mm", "aten.bmm", "aten.mv", "aten.native_layer_norm", "aten._fused_rms_norm"})


def axis_after(op: Op, value: int, axis: int, trace: AtenTrace) -> int | None:
    """Where an axis of an input of an operation is in its output; None if it is lost.

    Args:
        op: the operation.
        value: number of the input.
        axis: position of the axis in the input.
        trace: of the captured graph.
    """
    before, after = trace.values[value].shape, trace.values[op.outputs[0]].shape if op.outputs else ()
    if op.name == "aten.permute":
        order = [index % len(before) for index in op.args[1]]
        return order.index(axis)
    if op.name in ("aten.transpose", "aten.t"):
        first, second = (0, 1) if op.name == "aten.t" else (index % len(before) for index in op.args[1:3])
        return {first: second, second: first}.get(axis, axis)
    reduced = reduced_axes(op, len(before))
    if reduced:
        if axis in reduced:
            return None
        return axis if len(before) == len(after) else axis - sum(other < axis for other in reduced)
    if len(before) == len(after):
        return axis if before[axis] == after[axis] else None
    if axis == len(before) - 1 and after and before[axis] == after[-1]:
        return len(after) - 1
    return None


def reduced_axes(op: Op, rank: int) -> frozenset[int]:
    """The axes of its first input that a reduction makes one number of, such as a mean; none for what is no reduction.

    Args:
        op: the operation.
        rank: of the input.
    """
    position = _REDUCTIONS.get(op.name)
    if position is None:
        return frozenset()
    axes = op.args[position] if position < len(op.args) else op.kwargs.get("dim")
    if axes is None or axes == []:
        return frozenset(range(rank))
    return frozenset(axis % rank for axis in ([axes] if isinstance(axes, int) else axes))


def works_on_other_axis(op: Op, value: int, axis: int, trace: AtenTrace) -> bool:
    """Whether an operation treats another axis of an input as the features.

    Args:
        op: the operation.
        value: number of the input.
        axis: position in it of the axis that has the features.
        trace: of the captured graph.
    """
    first = op.args[0] if op.args else None
    if any(name in op.name for name in _CHANNELS_SECOND):
        return first == Ref(value) and axis != 1
    if op.name in _CONTRACT_LAST:
        return first == Ref(value) and axis != len(trace.values[value].shape) - 1
    if op.name == "aten.addmm":
        return op.args[1] == Ref(value) and axis != 1
    return False
