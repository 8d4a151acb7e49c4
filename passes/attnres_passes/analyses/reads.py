"""Analysis: the reads of a candidate stream, and whether each is normed.

Every value on the stream is given degree 1 and the degrees of what follows are found by the rule table. A read is
what leads from a state to values of degree 0: two readers of one state belong to the same read when what they lead
to meets before the degree is gone, as ``x.pow(2)`` and ``x * rsqrt(..)`` of one RMSNorm do. A read is normed when
everything that it leads to reaches degree 0; an unnormed read either feeds a write, which forbids the rewrite, or
leaves the graph.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial

from attnres_passes.analyses.aten_trace import OPAQUE, STALE_ALIAS, AtenTrace, Op
from attnres_passes.analyses.carries.factor import is_zeros
from attnres_passes.analyses.chains import Candidate, is_matrix_product
from attnres_passes.analyses.degrees.degree import UNKNOWN, ZERO, Degree, is_shape_only
from attnres_passes.analyses.degrees.feature_axis import axis_after, works_on_other_axis
from attnres_passes.analyses.degrees.joined import Joined
from attnres_passes.analyses.degrees.rules import output_degrees

ONE = Fraction(1)


@dataclass(frozen=True)
class ReadGroup:
    """Readers of one state that belong together.

    state: how many writes the state holds; uses: (value on the stream, index of the reading node), in graph order;
    normed: all that it leads to is invariant to its scale; feeds_write: not normed, and reaches an addition to a
    stream; lost_at: index of the first operation where the degree became unknown, if one did; opaque: reads the state
    in a way that a graph rewrite cannot replace (through a changed alias, inside a higher-order operation);
    projected_first: goes through a matrix product before its degree is gone, if it is.
    """

    state: int
    uses: tuple[tuple[int, int], ...]
    normed: bool
    feeds_write: bool
    lost_at: int | None
    opaque: bool
    projected_first: bool

    @classmethod
    def of(cls, members: Sequence[ReadGroup]) -> ReadGroup:
        """The one read that several reads of one state make together."""
        return cls(
            state=members[0].state,
            uses=tuple(sorted({use for member in members for use in member.uses}, key=lambda use: (use[1], use[0]))),
            normed=all(member.normed for member in members),
            feeds_write=any(member.feeds_write for member in members),
            lost_at=min((member.lost_at for member in members if member.lost_at is not None), default=None),
            opaque=any(member.opaque for member in members),
            projected_first=any(member.projected_first for member in members),
        )


@dataclass(frozen=True)
class StreamReads:
    """All reads of a candidate in graph order.

    channels_first: index of an operation that reads a state and does not work on its last axis, if there is one.
    """

    groups: tuple[ReadGroup, ...]
    channels_first: int | None


@dataclass(frozen=True)
class Trunk:
    """Values that hold the stream and the operations that make them.

    state_of: state index of each value on the stream; order: the values in the order they are made;
    ops: additions and carrying operations between them.
    """

    state_of: dict[int, int]
    order: tuple[int, ...]
    ops: frozenset[int]


def trunk_of(candidate: Candidate) -> Trunk:
    """The trunk of a candidate, carrying operations included."""
    state_of = {candidate.root: 0}
    ops: set[int] = set()
    for index, addition in enumerate(candidate.additions):
        for step in addition.carried:
            state_of[step.after] = index
            ops.add(step.op)
        state_of[addition.after] = index + 1
        ops.add(addition.op)
    for step in candidate.trailing:
        state_of[step.after] = len(candidate.additions)
        ops.add(step.op)
    return Trunk(state_of, tuple(state_of), frozenset(ops))


def find_reads(trace: AtenTrace, candidate: Candidate, other_additions: frozenset[int]) -> StreamReads:
    """Group the readers of a candidate and decide which are normed.

    Work is proportional to what the stream's values lead to before their degree is gone.

    Args:
        trace: of the captured graph.
        candidate: the chain of additions whose states are read.
        other_additions: operations that add a sublayer's output to something else, or in another way; reaching one
            un-normed counts as feeding a write.
    """
    return _Reads(trace, candidate, other_additions).run()


@dataclass
class _Reader:
    """A node that reads a state, and what it leads to as far as it has been followed."""

    state: int
    uses: list[tuple[int, int]] = field(default_factory=list)
    unknown_values: list[int] = field(default_factory=list)
    lost_at: int | None = None
    leaves_graph: bool = False
    feeds_write: bool = False
    opaque: bool = False
    projected_first: bool = False

    def lose(self, values: Iterable[int], op: int) -> None:
        self.unknown_values.extend(values)
        self.lost_at = op if self.lost_at is None else self.lost_at


class _Reads:
    """One search. readers: in graph order; together: which of them are one read, by their positions there."""

    def __init__(self, trace: AtenTrace, candidate: Candidate, other_additions: frozenset[int]) -> None:
        from networkx.utils import UnionFind  # loaded here, since networkx loads all that it can draw

        self.trace = trace
        self.is_zeros = partial(is_zeros, trace)
        self.shape_of = lambda value: trace.values[value].shape
        self.trunk = trunk_of(candidate)
        self.branch_of = {addition.op: addition.branch for addition in candidate.additions}
        self.stops = frozenset(self.branch_of) | frozenset(candidate.forks) | other_additions
        self.degrees: dict[int, Degree | Joined] = dict.fromkeys(self.trunk.state_of, ONE)
        self.axes: dict[int, int | None] = {value: len(trace.values[value].shape) - 1 for value in self.trunk.state_of}
        self.readers: list[_Reader] = []
        self.reader_at: dict[tuple[int, int], int] = {}
        self.readers_of: dict[int, tuple[int, ...]] = {}
        self.together: UnionFind[int] = UnionFind()
        self.channels_first: int | None = None

    def run(self) -> StreamReads:
        pending: list[int] = []
        queued: set[int] = set()

        def queue_users(value: int) -> None:
            for op in self.trace.users[value]:
                if op not in queued:
                    queued.add(op)
                    heapq.heappush(pending, op)

        for value in self.trunk.order:
            queue_users(value)
        while pending:
            for value in self._visit(self.trace.ops[heapq.heappop(pending)]):
                queue_users(value)
        self._read_by_output()
        return StreamReads(self._groups(), self.channels_first)

    def _visit(self, op: Op) -> list[int]:
        """Propagate through one operation; returns the outputs whose users have to be visited."""
        if op.index in self.trunk.ops:
            self._visit_write(op)
            return []
        if is_shape_only(op):
            return []
        met = self._meeting(op)
        readers = [self.readers[index] for index in met]
        is_product = is_matrix_product(op)
        for reader in readers:
            reader.projected_first |= is_product
            self._note_obstacle(op, reader)
        axis = self._follow_axis(op)
        travelling = []
        found = output_degrees(op, self._degree, self.is_zeros, self.shape_of)
        for value, degree in zip(op.outputs, found, strict=True):
            if degree == ZERO:
                continue
            self.degrees[value] = degree
            self.readers_of[value] = met
            same_rank = len(self.trace.values[value].shape) == len(self.trace.values[op.outputs[0]].shape)
            self.axes[value] = axis if same_rank else None  # statistics beside the output have fewer axes
            if degree is not UNKNOWN:
                travelling.append(value)
                continue
            # Nothing makes an unknown degree known again, so there is no use in following it.
            for reader in readers:
                reader.lose([value], op.index)
        return travelling

    def _visit_write(self, op: Op) -> None:
        """A branch that still scales with the stream, or is a state itself, was read un-normed."""
        branch = self.branch_of.get(op.index)
        if branch is None:
            return
        state = self.trunk.state_of.get(branch)
        met = self.readers_of.get(branch, ()) if state is None else (self._reader(op.node, branch, state),)
        for index in met:
            self.readers[index].feeds_write = True

    def _degree(self, value: int) -> Degree | Joined:
        return self.degrees.get(value, ZERO)

    def _meeting(self, op: Op) -> tuple[int, ...]:
        """One reader of each read that meets in ``op``; those of one state belong together from now on."""
        per_state: dict[int, set[int]] = {}
        for value in op.inputs:
            state = self.trunk.state_of.get(value)
            found = self.readers_of.get(value, ()) if state is None else (self._reader(op.node, value, state),)
            for index in found:
                per_state.setdefault(self.readers[index].state, set()).add(index)
        for members in per_state.values():
            if len(members) > 1:
                self.together.union(*members)
        met = tuple(min(members) for members in per_state.values())
        if len(met) > 1:
            # Reads of several states are scaled differently by a depth attention: their degrees do not cancel.
            for index in met:
                self.readers[index].lose(op.outputs, op.index)
        return met

    def _reader(self, node: int, value: int, state: int) -> int:
        """The reader for a node of the graph, which takes a state in as one read."""
        index = self.reader_at.setdefault((node, state), len(self.readers))
        if index == len(self.readers):
            self.readers.append(_Reader(state))
        self.readers[index].uses.append((value, node))
        return index

    def _note_obstacle(self, op: Op, reader: _Reader) -> None:
        if op.name in (OPAQUE, STALE_ALIAS):
            reader.opaque |= any(value in self.trunk.state_of for value in op.inputs)
        elif op.index in self.stops:
            reader.feeds_write = True

    def _follow_axis(self, op: Op) -> int | None:
        """Where the stream's last axis is in the output; notes a reader whose features are on another axis."""
        for value in op.inputs:
            axis = self.axes.get(value)
            if axis is None:
                continue
            if self.channels_first is None and works_on_other_axis(op, value, axis, self.trace):
                self.channels_first = op.index
            return axis_after(op, value, axis, self.trace)
        return None

    def _read_by_output(self) -> None:
        """A state that the graph returns is read by the output; so is a value with a degree that it leads to."""
        output_node = len(self.trace.nodes) - 1
        for value in self.trace.graph_outputs:
            state = self.trunk.state_of.get(value)
            own = () if state is None else (self._reader(output_node, value, state),)
            for index in (*own, *self.readers_of.get(value, ())):
                self.readers[index].leaves_graph = True

    def _groups(self) -> tuple[ReadGroup, ...]:
        members_of: dict[int, list[ReadGroup]] = {}
        for index, reader in enumerate(self.readers):
            feeds_write = reader.feeds_write or self._reaches_addition(reader.unknown_values)
            members_of.setdefault(self.together[index], []).append(
                ReadGroup(
                    state=reader.state,
                    uses=tuple(reader.uses),
                    normed=not (feeds_write or reader.leaves_graph or reader.unknown_values),
                    feeds_write=feeds_write,
                    lost_at=reader.lost_at,
                    opaque=reader.opaque,
                    projected_first=reader.projected_first,
                )
            )
        return tuple(sorted(map(ReadGroup.of, members_of.values()), key=lambda group: group.state))

    def _reaches_addition(self, values: list[int]) -> bool:
        """Whether an addition to a stream can be reached from ``values``; stops at the first one found."""
        pending, seen = list(values), set(values)
        while pending:
            for index in self.trace.users[pending.pop()]:
                if index in self.stops:
                    return True
                op = self.trace.ops[index]
                if is_shape_only(op):
                    continue
                fresh = [value for value in op.outputs if value not in seen]
                seen.update(fresh)
                pending.extend(fresh)
        return False
