"""Operations between two additions that mix the stream itself: gates made of it, and products over a stack of lanes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from attnres_passes.analyses.aten_trace import AtenTrace, Ref
from attnres_passes.analyses.carries.carry import CarryStep
from attnres_passes.analyses.degrees.degree import functional_name

LONGEST_VIEW = 16
"""Views looked through, from a value to what it is one of."""

_VIEWS = frozenset({"aten.view", "aten._unsafe_view", "aten.reshape", "aten.permute", "aten.transpose", "aten.expand"})
_VIEWS |= {"aten.unsqueeze", "aten.squeeze", "aten.clone", "aten.alias", "aten._to_copy"}


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
    for _, step in walk:
        if step is None:
            continue
        for by in step.factors:
            yield Mixed(Mixing.GATE, step.before, by)
            if trace.values[by].shape == trace.values[step.before].shape:
                yield Mixed(Mixing.GATE, by, step.before)
    yield from _at_end(trace, behind_views(trace, walk[-1][0])[-1], trace.values[walk[0][0]].shape)


def _at_end(trace: AtenTrace, value: int, whole: tuple[Any, ...]) -> Iterator[Mixed]:
    """A product that no step of a walk goes through. whole: shape of the addend."""
    producer = trace.values[value].producer
    op = trace.ops[producer] if producer >= 0 else None
    operands = [one.value for one in op.args[:2] if isinstance(one, Ref)] if op is not None else []
    if op is None or len(operands) != 2:
        return
    left, right = operands
    if functional_name(op) == "aten.mul" and trace.values[left].shape == trace.values[right].shape:
        yield Mixed(Mixing.GATE, left, right)
        yield Mixed(Mixing.GATE, right, left)
    # The right factor is summed over its axis before the last: the lanes, if these are not the features.
    if op.name == "aten.bmm" and len(whole) > 3 and trace.values[right].shape[-2] != whole[-1]:
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
