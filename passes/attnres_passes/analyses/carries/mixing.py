"""Operations between two additions that mix the stream itself: gates made of it, and products over a stack of lanes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from attnres_passes.analyses.aten_trace import AtenTrace, Ref
from attnres_passes.analyses.carries.carry import CarryStep
from attnres_passes.analyses.degrees.degree import functional_name


LONGEST_VIEW = 16
"""Views looked through, from a value to what it is one of."""

_VIEWS = frozenset(
    f"aten.{name}"
    for name in "view _unsafe_view reshape permute transpose unsqueeze squeeze expand clone alias _to_copy".split()
)


class Mixing(Enum):
    """How the running sum goes on where nothing carries it."""

    GATE = "gate"
    LANES = "lanes"


@dataclass(frozen=True)
class Mixed:
    """A product that may hold the stream. by: what it is multiplied by."""

    kind: Mixing
    stream: int
    by: int


def mixed_from(trace: AtenTrace, walk: Sequence[tuple[int, CarryStep | None]]) -> Iterator[Mixed]:
    """The ways to see an addend as a product of the stream and something else; none if it is no product.

    Args:
        trace: of the captured graph.
        walk: the addend and what it was carried from, each with the step that leads away from it.
    """
    whole = trace.values[walk[0][0]].shape
    for _, step in walk:
        for by in step.factors if step is not None else ():
            yield Mixed(Mixing.GATE, step.before, by)
            if trace.values[by].shape == trace.values[step.before].shape:
                yield Mixed(Mixing.GATE, by, step.before)
    value = behind_views(trace, walk[-1][0])[-1]
    producer = trace.values[value].producer
    if producer < 0:
        return
    op = trace.ops[producer]
    operands = [argument.value for argument in op.args[:2] if isinstance(argument, Ref)]
    if len(operands) != 2:
        return
    shape = trace.values[value].shape
    if functional_name(op) == "aten.mul":
        for stream, by in (operands, operands[::-1]):
            if trace.values[stream].shape == shape:
                yield Mixed(Mixing.GATE, stream, by)
    elif op.name == "aten.bmm" and len(whole) > 3:
        # The right factor is summed over its axis before the last: the lanes, if these are not the features.
        left, right = operands
        if trace.values[right].shape[-2] != whole[-1]:
            yield Mixed(Mixing.LANES, right, left)


def behind_views(trace: AtenTrace, value: int) -> list[int]:
    """``value``, and what it is a view or a copy of, whatever became of the axes; nearest first.

    Args:
        trace: of the captured graph.
        value: number of the value.
    """
    found = [value]
    while len(found) <= LONGEST_VIEW:
        producer = trace.values[found[-1]].producer
        if producer < 0 or trace.ops[producer].name not in _VIEWS:
            break
        found.append(trace.ops[producer].inputs[0])
    return found
