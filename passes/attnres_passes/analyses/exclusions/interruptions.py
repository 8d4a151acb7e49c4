"""Analysis: what interrupts a running sum between two of its additions, where nothing carries it on."""

from __future__ import annotations

from collections.abc import Sequence

from attnres_passes.analyses.aten_trace import AtenTrace, Op
from attnres_passes.analyses.chains import Candidate
from attnres_passes.analyses.degrees.degree import functional_name
from attnres_passes.analyses.left_out import additions_behind, carried_inputs, operands_of_sum, origin_of

_CARRYING = frozenset(
    ["view", "_unsafe_view", "reshape", "permute", "transpose", "expand", "clone", "_to_copy", "detach", "alias"]
)


def interruption(trace: AtenTrace, candidate: Candidate) -> Op | None:
    """What cuts a chain from the rest of a longer sum: behind its last state, or before its root; None if nothing does.

    Args:
        trace: of the captured graph.
        candidate: the chain.
    """
    value = candidate.trailing[-1].after if candidate.trailing else candidate.additions[-1].after
    if next(additions_behind(trace, {value}), None) is None:
        return _before(trace, candidate.root)
    pending: Sequence[int] = [value]
    while pending:
        following: list[int] = []
        for one in pending:
            for index in trace.users[one]:
                op = trace.ops[index]
                if operands_of_sum(trace, op) is not None:
                    continue
                outputs = [output for output in op.outputs if one in carried_inputs(trace, op, output)]
                if outputs and not _carries(trace, op):
                    return op
                following.extend(outputs)
        pending = following
    return None


def _before(trace: AtenTrace, value: int) -> Op | None:
    """What a sum with additions went through to become ``value``."""
    while trace.values[value].producer >= 0:
        op = trace.ops[trace.values[value].producer]
        carried = carried_inputs(trace, op, value)
        if not carried or operands_of_sum(trace, op) is not None:
            return None
        if not _carries(trace, op):
            return op if origin_of(trace, value).additions else None
        value = carried[0]
    return None


def _carries(trace: AtenTrace, op: Op) -> bool:
    """Whether the stream goes on through an operation, or would if what it is multiplied by were not made of it."""
    name = functional_name(op).removeprefix("aten.")
    shapes = [trace.values[value].shape for value in op.inputs]
    is_factor = name in ("mul", "div", "neg", "masked_fill") and shapes.count(trace.values[op.outputs[0]].shape) == 1
    return is_factor or name in _CARRYING
