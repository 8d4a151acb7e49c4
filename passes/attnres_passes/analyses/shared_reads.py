"""Analysis: readers of one state that make one sublayer's input, although each is normed, or not, on its own.

A read begins at a norm where the norm comes first. Where projections of the bare state come first, as the queries,
keys and values of an attention whose norms are behind its projections, they all see one input: those that meet
before the next write become one read with one pseudo-query, as the paper has one per sublayer.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from attnres_passes.analyses.aten_trace import AtenTrace
from attnres_passes.analyses.chains import Candidate
from attnres_passes.analyses.degrees.degree import is_shape_only
from attnres_passes.analyses.reads import ReadGroup, StreamReads

if TYPE_CHECKING:
    from networkx.utils import UnionFind


def join_shared_reads(trace: AtenTrace, candidate: Candidate, reads: StreamReads) -> StreamReads:
    """The reads, joined where several project one bare state and meet before the next write.

    Looks once at the operations between two writes, so it is linear in the size of the graph.

    Args:
        trace: of the captured graph.
        candidate: the chain of additions whose states are read.
        reads: those that ``find_reads`` gives.
    """
    from networkx.utils import UnionFind  # loaded here, since networkx loads all that it can draw

    bare: dict[int, list[int]] = {}
    for index, group in enumerate(reads.groups):
        if group.projected_first and group.state < len(candidate.additions):
            bare.setdefault(group.state, []).append(index)
    together: UnionFind[int] = UnionFind(range(len(reads.groups)))
    for state, members in bare.items():
        if len(members) > 1:
            _join_meeting(trace, candidate, state, {index: reads.groups[index] for index in members}, together)
    members_of: dict[int, list[ReadGroup]] = {}
    for index, group in enumerate(reads.groups):
        members_of.setdefault(together[index], []).append(group)
    return replace(reads, groups=tuple(map(ReadGroup.of, members_of.values())))


def _join_meeting(
    trace: AtenTrace, candidate: Candidate, state: int, groups: dict[int, ReadGroup], together: UnionFind[int]
) -> None:
    """Follow what ``groups`` lead to up to the write after ``state``, and join those that meet."""
    reader_of = {use: index for index, group in groups.items() for use in group.uses}
    led_to: dict[int, int] = {}
    begin = candidate.additions[state - 1].op if state else trace.values[candidate.root].producer
    for op in trace.ops[begin + 1 : candidate.additions[state].op]:
        if is_shape_only(op):
            continue
        met = {led_to[value] for value in op.inputs if value in led_to}
        met |= {reader_of[value, op.node] for value in op.inputs if (value, op.node) in reader_of}
        if met:
            together.union(*met)
            led_to.update(dict.fromkeys(op.outputs, min(met)))
