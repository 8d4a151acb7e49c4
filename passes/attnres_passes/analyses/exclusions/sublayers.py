"""Analysis: chains inside one sublayer of another stream.

A sublayer may add up things of its own: terms of a polynomial, convolutions of several widths, the state of a linear
recurrence. The first sum of such a chain is made of a state of the stream around it, and the last one leads to the next
write. Depth is counted in sublayers, so nothing inside of one is a residual stream.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

from attnres_passes.analyses.aten_trace import AtenTrace
from attnres_passes.analyses.chains import Candidate
from attnres_passes.analyses.degrees.degree import is_shape_only
from attnres_passes.analyses.reads import trunk_of

WRITES_LOOKED_AT = 4
"""Writes behind a chain that it may lead to; branches that run side by side are added one after the other."""


@dataclass(frozen=True)
class _Around:
    """A stream as what stands around other chains. bounds: where its root is made, and its additions."""

    candidate: Candidate
    bounds: tuple[int, ...]
    values: frozenset[int]


class Sublayers:
    """Between two writes of each of some streams."""

    def __init__(self, trace: AtenTrace, streams: Iterable[Candidate]) -> None:
        self.trace = trace
        self.around = [self._bounds_of(candidate) for candidate in streams]

    def around_chain(self, chain: Candidate) -> Candidate | None:
        """The stream that has a chain inside one of its sublayers, if there is one.

        Args:
            chain: any candidate of the trace.
        """
        first, last = chain.additions[0].op, chain.additions[-1].op
        for around in self.around:
            place = bisect_left(around.bounds, first)
            is_between = 0 < place < len(around.bounds) and last < around.bounds[place]
            if around.candidate is chain or not is_between or chain.root in around.values:
                continue
            begin, *ends = around.bounds[place - 1 : place + WRITES_LOOKED_AT]
            begins, lasts = chain.additions[0].after, chain.additions[-1].after
            if self._is_made_of(begins, around.values, begin) and self._leads_to(lasts, frozenset(ends)):
                return around.candidate
        return None

    def _bounds_of(self, candidate: Candidate) -> _Around:
        root = self.trace.values[candidate.root].producer
        bounds = (root, *(addition.op for addition in candidate.additions))
        return _Around(candidate, bounds, frozenset(trunk_of(candidate).state_of))

    def _is_made_of(self, value: int, states: frozenset[int], begin: int) -> bool:
        """Whether a value is made of one of some states by operations behind ``begin``."""
        pending, seen = [value], {value}
        while pending:
            current = pending.pop()
            if current in states:
                return True
            producer = self.trace.values[current].producer
            if producer <= begin or is_shape_only(self.trace.ops[producer]):
                continue
            fresh = [one for one in self.trace.ops[producer].inputs if one not in seen]
            seen.update(fresh)
            pending.extend(fresh)
        return False

    def _leads_to(self, value: int, ends: frozenset[int]) -> bool:
        """Whether one of some operations can be reached from a value without passing the last of them."""
        pending, seen = [value], {value}
        while pending:
            for index in self.trace.users[pending.pop()]:
                if index in ends:
                    return True
                if index > max(ends) or is_shape_only(self.trace.ops[index]):
                    continue
                fresh = [one for one in self.trace.ops[index].outputs if one not in seen]
                seen.update(fresh)
                pending.extend(fresh)
        return False
