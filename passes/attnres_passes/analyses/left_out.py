"""Analysis: additions of a planned stream's own chain that are not in its plan.

A chain of additions ends where an operation changes the running sum itself: a clamp, a gate, an activation. What
is behind it is another candidate, and each is judged by itself; so a plan may cover a piece of what runs through the
model. The same sum goes on for as long as nothing mixes its features (a matrix product, a convolution, attention) and
nothing takes its scale away (a norm, a softmax, a division by something made of it). This is wider than what
``chains`` carries a stream through, since nothing is rewritten on the way.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from attnres_passes.analyses.aten_trace import OPAQUE, AtenTrace, Op, Ref
from attnres_passes.analyses.chains import is_matrix_product
from attnres_passes.analyses.degrees.degree import functional_name, is_shape_only
from attnres_passes.analyses.reads import Trunk

FARTHEST_STATE = 64
"""Values looked back through, from one operand of an addition, for a state that the other one was made of."""

FARTHEST_PRODUCT = 64
"""Operations looked back through, from an addend, for the matrix product that shows a sublayer."""

_SUMS = frozenset({"aten.add", "aten.sub", "aten.lerp"})
_ARITHMETIC = _SUMS | {f"aten.{name}" for name in ("mul", "div", "rsub", "addcmul", "addcdiv", "true_divide", "pow")}
_VIEWS = frozenset(f"aten.{name}" for name in ("view", "_unsafe_view", "reshape", "permute", "transpose", "expand"))
_REDUCTIONS = frozenset(
    f"aten.{name}"
    for name in ("mean", "sum", "amax", "amin", "max", "min", "std", "var", "var_mean", "prod", "logsumexp", "cumsum")
)


@dataclass(frozen=True)
class Origin:
    """What a value was carried on from.

    additions: operations that add a sublayer's output to the sum that the value is, nearest first, and operations
    that may hide such additions; inputs: values given to the graph that it is carried from.
    """

    additions: tuple[int, ...]
    inputs: tuple[int, ...]


def left_out(trace: AtenTrace, trunk: Trunk, planned: Collection[int]) -> tuple[int, ...]:
    """Additions of the same chain as a stream that are not in it, as indices of operations in graph order.

    Looks at what its root was carried on from, and at what its states are carried on to. Two pieces of one chain that
    are both planned are left out of each other's plan.

    Args:
        trace: of the captured graph.
        trunk: of the stream.
        planned: operations on the trunks of all streams that are rewritten.
    """
    before = origin_of(trace, trunk.order[0]).additions
    states = {value for value, state in trunk.state_of.items() if state > 0}
    return tuple(sorted({*before, *additions_behind(trace, states, planned)}))


def origin_of(trace: AtenTrace, value: int) -> Origin:
    """What a value was carried on from, through all additions that its sum is made of.

    Args:
        trace: of the captured graph.
        value: number of the value.
    """
    additions: list[int] = []
    inputs: list[int] = []
    pending, seen = [value], {value}
    while pending:
        current = pending.pop()
        if trace.values[current].producer < 0:
            inputs.append(current)
            continue
        op = trace.ops[trace.values[current].producer]
        state = _state_of_addition(trace, op)
        if state is not None or op.name == OPAQUE:
            additions.append(op.index)
        carried = (state,) if state is not None else carried_inputs(trace, op, current)
        fresh = [one for one in carried if one not in seen]
        seen.update(fresh)
        pending.extend(fresh)
    return Origin(tuple(additions), tuple(inputs))


def carried_inputs(trace: AtenTrace, op: Op, output: int) -> tuple[int, ...]:
    """The inputs of an operation that its output carries on.

    Args:
        trace: of the captured graph.
        op: the operation.
        output: number of one of its outputs.
    """
    name, after = functional_name(op), trace.values[output]
    if not after.is_floating or is_shape_only(op) or is_matrix_product(op) or name in _REDUCTIONS:
        return ()
    if "norm" in name or "softmax" in name:
        return ()
    if name in _VIEWS:
        return op.inputs[:1]
    alike = [value for value in op.inputs if _has_same_features(trace, value, output)]
    if op.name == OPAQUE:
        return tuple(value for value in alike if trace.values[value].shape == after.shape)
    if name in _ARITHMETIC:
        return tuple(
            value for value in alike if not any(_depends(trace, one, value) for one in op.inputs if one != value)
        )
    return tuple(alike)


def _has_same_features(trace: AtenTrace, before: int, after: int) -> bool:
    old, new = trace.values[before], trace.values[after]
    return old.is_floating and bool(old.shape) and bool(new.shape) and bool(old.shape[-1] == new.shape[-1])


def operands_of_sum(trace: AtenTrace, op: Op) -> tuple[int, int] | None:
    """Both addends, if an operation sums two floating tensors of one shape.

    Args:
        trace: of the captured graph.
        op: any operation.
    """
    if functional_name(op) not in _SUMS or len(op.outputs) != 1 or not trace.values[op.outputs[0]].is_floating:
        return None
    shape = trace.values[op.outputs[0]].shape
    found = [argument.value for argument in op.args[:2] if isinstance(argument, Ref)]
    if len(found) != 2 or any(trace.values[value].shape != shape for value in found):
        return None
    return found[0], found[1]


def _state_of_addition(trace: AtenTrace, op: Op) -> int | None:
    """The operand that a sublayer's output is added to, if ``op`` is such an addition: the other one is made of it."""
    operands = operands_of_sum(trace, op)
    if operands is None:
        return None
    for state, branch in (operands, operands[::-1]):
        if _depends(trace, branch, *_nearest_states(trace, state), through_product=True):
            return state
    return None


def _nearest_states(trace: AtenTrace, value: int) -> list[int]:
    """``value`` and what it was carried on or summed from, the nearest first."""
    found, position = [value], 0
    while position < len(found) and len(found) < FARTHEST_STATE:
        current = found[position]
        position += 1
        producer = trace.values[current].producer
        if producer >= 0:
            op = trace.ops[producer]
            before = operands_of_sum(trace, op) or carried_inputs(trace, op, current)
            found.extend(one for one in before if one not in found)
    return found


def _depends(trace: AtenTrace, value: int, *on: int, through_product: bool = False) -> bool:
    """Whether a value is made of one of some others; what was made before them all is not followed."""
    oldest = min(trace.values[one].producer for one in on)
    targets, start = frozenset(on), (value, not through_product)
    pending, seen = [start], {start}
    while pending:
        current, counts = pending.pop()
        if current in targets and counts:
            return True
        producer = trace.values[current].producer
        if producer <= oldest:
            continue
        op = trace.ops[producer]
        if is_shape_only(op):
            continue
        counts = counts or is_matrix_product(op)
        fresh = [(one, counts) for one in op.inputs if (one, counts) not in seen]
        seen.update(fresh)
        pending.extend(fresh)
    return False


def additions_behind(trace: AtenTrace, held: set[int], apart: Collection[int] = ()) -> Iterator[int]:
    """Additions of a sublayer's output to what some values are carried on to, as indices of operations.

    Args:
        trace, held, apart: those of ``sums_with``.
    """
    for op, other in sums_with(trace, held, apart):
        if _has_product(trace, other, held):
            yield op


def open_sums(trace: AtenTrace) -> tuple[int, ...]:
    """Values that a graph returns which are the running sum of a stream at its end in the graph, un-normed."""
    return tuple(
        output
        for output in dict.fromkeys(trace.graph_outputs)
        if origin_of(trace, output).additions and next(additions_behind(trace, {output}), None) is None
    )


def sums_with(trace: AtenTrace, held: set[int], apart: Collection[int] = ()) -> Iterator[tuple[int, int]]:
    """Sums of what some values are carried on to with others: the operations in graph order, and the other addends.

    Args:
        trace: of the captured graph.
        held: the values; what they are carried on to is added on the way.
        apart: operations that are not looked at.
    """
    pending = sorted({op for value in held for op in trace.users[value]})
    queued = set(pending)
    while pending:
        op = trace.ops[heapq.heappop(pending)]
        if op.index in apart:
            continue
        operands = operands_of_sum(trace, op)
        others = [] if operands is None else [value for value in operands if value not in held]
        is_summed = operands is not None and len(others) < 2
        if is_summed and others:
            yield op.index, others[0]
        for output in op.outputs:
            if is_summed or not held.isdisjoint(carried_inputs(trace, op, output)):
                held.add(output)
                fresh = set(trace.users[output]) - queued
                queued |= fresh
                for user in fresh:
                    heapq.heappush(pending, user)


def _has_product(trace: AtenTrace, value: int, until: Collection[int]) -> bool:
    """Whether a value is a sublayer's output: made by a matrix product not far back, and not before ``until``."""
    pending, seen = [value], {value}
    for _ in range(FARTHEST_PRODUCT):
        if not pending:
            return False
        current = pending.pop(0)
        if current in until or trace.values[current].producer < 0:
            continue
        op = trace.ops[trace.values[current].producer]
        if is_matrix_product(op):
            return True
        fresh = [one for one in op.inputs if one not in seen]
        seen.update(fresh)
        pending.extend(fresh)
    return False
