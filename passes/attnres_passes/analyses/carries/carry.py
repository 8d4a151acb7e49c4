"""Operations that carry the stream on from one value to the next and treat every part of its sum alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from attnres_passes.analyses.aten_trace import AtenTrace, Op
from attnres_passes.analyses.carries.factor import scaled_by
from attnres_passes.analyses.degrees.degree import functional_name

_RESHAPES = frozenset(
    f"aten.{name}"
    for name in ["view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "alias", "clone", "lift_fresh"]
)
_PERMUTATIONS = frozenset({"aten.permute", "aten.transpose"})
_RANDOM = frozenset({"aten.bernoulli", "aten.bernoulli_", "aten.native_dropout"})


class Carry(Enum):
    """How the stream is carried from one value to the next without an addition."""

    RESHAPE = "reshape"
    PERMUTE = "permute"
    CAST = "cast"
    DETACH = "detach"
    MASK = "mask"
    FACTOR = "factor"


@dataclass(frozen=True)
class CarryStep:
    """One carrying operation on the way from a state to the next addition.

    factors: values that the stream is multiplied by, or that say where it is set to zero; the step carries the stream
    on only if none of them depends on it.
    """

    op: int
    kind: Carry
    before: int
    after: int
    factors: tuple[int, ...] = ()


def carry_step(trace: AtenTrace, value: int, newest: Sequence[int]) -> CarryStep | None:
    """The carrying operation that made a value, or None if it was made in another way.

    Args:
        trace: of the captured graph.
        value: number of the value.
        newest: of each value, the last addition that it depends on; tells a stream from a factor of its shape.
    """
    producer = trace.values[value].producer
    if producer < 0:
        return None
    op = trace.ops[producer]
    if not op.inputs or op.outputs[0] != value:
        return None
    kind = _carry(trace, op)
    before = op.inputs[0]
    factors: tuple[int, ...] = ()
    if kind is None:
        found = scaled_by(trace, op, newest)
        if found is None:
            return None
        kind, (before, factors) = Carry.FACTOR, found
    if not _keeps_last_axis(trace, before, value):
        return None
    return CarryStep(op.index, kind, before, value, factors)


def _carry(trace: AtenTrace, op: Op) -> Carry | None:
    if op.name in _RESHAPES or (op.name == "aten.expand" and _keeps_shape(trace, op)):
        return Carry.RESHAPE
    if op.name == "aten.detach":
        return Carry.DETACH
    if op.name in _PERMUTATIONS:
        return Carry.PERMUTE if _fixes_last_axis(trace, op) else None
    if op.name == "aten._to_copy":
        both = trace.values[op.inputs[0]], trace.values[op.outputs[0]]
        return Carry.CAST if all(value.is_floating for value in both) else None
    is_mask = op.name == "aten.native_dropout" or (functional_name(op) == "aten.mul" and _is_dropout(trace, op))
    return Carry.MASK if is_mask else None


def _is_dropout(trace: AtenTrace, op: Op) -> bool:
    """Dropout decomposes, within one node of the graph, into a random mask and a product with it."""
    is_random = any(trace.ops[index].name in _RANDOM for index in trace.node_ops[op.node])
    return is_random and set(trace.node_inputs[op.node].values()) == {op.inputs[0]}


def _keeps_shape(trace: AtenTrace, op: Op) -> bool:
    return trace.values[op.inputs[0]].shape == trace.values[op.outputs[0]].shape


def _fixes_last_axis(trace: AtenTrace, op: Op) -> bool:
    rank = len(trace.values[op.inputs[0]].shape)
    last = {rank - 1, -1}
    if op.name == "aten.permute":
        return op.args[1][-1] in last
    return not last.intersection(op.args[1:3])


def _keeps_last_axis(trace: AtenTrace, before: int, after: int) -> bool:
    old, new = trace.values[before].shape, trace.values[after].shape
    return bool(old) and bool(new) and old[-1] == new[-1]
