"""Analysis: the reads of a candidate stream, and whether each is normed.

Every value on the stream is given degree 1 and the degrees of what follows are found by the rule table. A read is
what leads from a state to values of degree 0: two readers of one state belong to the same read when what they lead
to meets before the degree is gone, as ``x.pow(2)`` and ``x * rsqrt(..)`` of one RMSNorm do. A read is normed when
everything that it leads to reaches degree 0; an unnormed read either feeds a write, which forbids the rewrite, or
leaves the graph.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from fractions import Fraction

from attnres_passes.analyses.aten_trace import OPAQUE, STALE_ALIAS, AtenTrace, Op
from attnres_passes.analyses.chains import Candidate, is_matrix_product
from attnres_passes.analyses.degrees.degree import UNKNOWN, ZERO, Degree, is_shape_only
from attnres_passes.analyses.degrees.feature_axis import axis_after, works_on_other_axis
from attnres_passes.analyses.degrees.rules import output_degrees

ONE = Fraction(1)


@dataclass(frozen=True)
class ReadGroup:
    """Readers of one state that belong together.

    state: how many writes the state holds; uses: (value on the stream, index of the reading node), in graph order;
    normed: all that it leads to is invariant to its scale; feeds_write: not normed, and reaches an addition to a
    stream; lost_at: index of the operation where the degree became unknown, if one did; opaque: reads the state in
    a way that a graph rewrite cannot replace (through a changed alias, inside a higher-order operation);
    projected_first: goes through a matrix product before its degree is gone, if it is.
    """

    state: int
    uses: tuple[tuple[int, int], ...]
    normed: bool
    feeds_write: bool
    lost_at: int | None
    opaque: bool
    projected_first: bool


@dataclass(frozen=True)
class StreamReads:
    """All reads of a candidate in graph order; channels_first: a reader that does not work on the last axis."""

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
    state_of = {candidate.root: 0}
    ops: set[int] = set()
    for index, addition in enumerate(candidate.additions):
        for step in addition.carried:
            state_of[step.after] = index
            ops.add(step.op)
        state_of[addition.after] = index + 1
        ops.add(addition.op)
    return Trunk(state_of, tuple(state_of), frozenset(ops))


def find_reads(trace: AtenTrace, candidate: Candidate, other_additions: frozenset[int]) -> StreamReads:
    """Group the readers of ``candidate`` and decide which are normed.

    other_additions: operations that add to other candidates; reaching one un-normed counts as feeding a write.
    Work is proportional to what the stream's values lead to before their degree is gone.
    """
    return _Reads(trace, candidate, other_additions).run()


@dataclass
class _Group:
    """A read while it grows; merged ones point to the one they were merged into."""

    state: int
    first_op: int
    uses: list[tuple[int, int]] = field(default_factory=list)
    unknown_values: list[int] = field(default_factory=list)
    lost_at: int | None = None
    leaves_graph: bool = False
    feeds_write: bool = False
    opaque: bool = False
    projected_first: bool = False
    merged_into: _Group | None = None

    def find(self) -> _Group:
        group = self
        while group.merged_into is not None:
            group = group.merged_into
        return group


class _Reads:
    def __init__(self, trace: AtenTrace, candidate: Candidate, other_additions: frozenset[int]) -> None:
        self.trace = trace
        self.trunk = trunk_of(candidate)
        self.branch_of = {addition.op: addition.branch for addition in candidate.additions}
        self.stops = frozenset(self.branch_of) | frozenset(candidate.forks) | other_additions
        self.degrees: dict[int, Degree] = dict.fromkeys(self.trunk.state_of, ONE)
        self.axes: dict[int, int | None] = {value: len(trace.values[value].shape) - 1 for value in self.trunk.state_of}
        self.groups_of: dict[int, tuple[_Group, ...]] = {}
        self.seeds: dict[tuple[int, int], _Group] = {}
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
        return StreamReads(self._finished(), self.channels_first)

    def _visit(self, op: Op) -> list[int]:
        """Propagate through one operation; returns the outputs whose users have to be visited."""
        if op.index in self.trunk.ops:
            self._visit_write(op)
            return []
        if is_shape_only(op):
            return []
        groups = self._meeting_groups(op)
        if is_matrix_product(op):
            for group in groups:
                group.projected_first = True
        if op.name in (OPAQUE, STALE_ALIAS) or op.index in self.stops:
            self._mark_obstacle(op, groups)
        axis = self._follow_axis(op)
        travelling = []
        for value, degree in zip(op.outputs, output_degrees(op, self._degree), strict=True):
            if degree == ZERO:
                continue
            self.degrees[value] = degree
            self.groups_of[value] = groups
            same_rank = len(self.trace.values[value].shape) == len(self.trace.values[op.outputs[0]].shape)
            self.axes[value] = axis if same_rank else None  # statistics beside the output have fewer axes
            if degree is not UNKNOWN:
                travelling.append(value)
                continue
            # Nothing makes an unknown degree known again, so there is no use in following it.
            for group in groups:
                group.unknown_values.append(value)
                group.lost_at = op.index if group.lost_at is None else group.lost_at
        return travelling

    def _visit_write(self, op: Op) -> None:
        """A branch that still scales with the stream, or is a state itself, was read un-normed."""
        branch = self.branch_of.get(op.index)
        if branch is None:
            return
        state = self.trunk.state_of.get(branch)
        groups = self.groups_of.get(branch, ()) if state is None else (self._seed(op, branch, state),)
        for group in groups:
            group.find().feeds_write = True

    def _degree(self, value: int) -> Degree:
        return self.degrees.get(value, ZERO)

    def _meeting_groups(self, op: Op) -> tuple[_Group, ...]:
        """The reads that meet in ``op``: one per state, those of the same state merged into one."""
        per_state: dict[int, _Group] = {}
        for value in op.inputs:
            state = self.trunk.state_of.get(value)
            found = (self._seed(op, value, state),) if state is not None else self.groups_of.get(value, ())
            for group in found:
                group = group.find()
                other = per_state.setdefault(group.state, group).find()
                if other is not group:
                    per_state[group.state] = _merge(other, group)
        groups = tuple(group.find() for group in per_state.values())
        if len(groups) > 1:
            # Reads of several states are scaled differently by a depth attention: their degrees do not cancel.
            for group in groups:
                group.unknown_values.extend(op.outputs)
                group.lost_at = op.index if group.lost_at is None else group.lost_at
        return groups

    def _seed(self, op: Op, value: int, state: int) -> _Group:
        """The read that ``op`` begins; one node of the graph takes a state in as one read."""
        group = self.seeds.get((op.node, state))
        if group is None:
            group = self.seeds[op.node, state] = _Group(state, op.index)
        group = group.find()
        if (value, op.node) not in group.uses:
            group.uses.append((value, op.node))
        return group

    def _mark_obstacle(self, op: Op, groups: tuple[_Group, ...]) -> None:
        for group in groups:
            if op.name in (OPAQUE, STALE_ALIAS):
                group.opaque = group.opaque or any(value in self.trunk.state_of for value in op.inputs)
            else:
                group.feeds_write = True

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
            if state is not None:
                group = self.seeds.setdefault((output_node, state), _Group(state, len(self.trace.ops)))
                if (value, output_node) not in group.uses:
                    group.uses.append((value, output_node))
                group.leaves_graph = True
            for group in self.groups_of.get(value, ()):
                group.find().leaves_graph = True

    def _finished(self) -> tuple[ReadGroup, ...]:
        groups = list({id(group): group for group in (seed.find() for seed in self.seeds.values())}.values())
        groups.sort(key=lambda group: (group.state, group.first_op))
        finished = []
        for group in groups:
            feeds_write = group.feeds_write or self._reaches_addition(group.unknown_values)
            normed = not (feeds_write or group.leaves_graph or group.unknown_values)
            uses = tuple(sorted(set(group.uses), key=lambda use: (use[1], use[0])))
            finished.append(
                ReadGroup(group.state, uses, normed, feeds_write, group.lost_at, group.opaque, group.projected_first)
            )
        return tuple(finished)

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


def _merge(left: _Group, right: _Group) -> _Group:
    """Union of two reads of one state; the earlier one stays."""
    keep, gone = (left, right) if left.first_op <= right.first_op else (right, left)
    keep.uses.extend(gone.uses)
    keep.unknown_values.extend(gone.unknown_values)
    keep.lost_at = gone.lost_at if keep.lost_at is None else keep.lost_at
    keep.leaves_graph |= gone.leaves_graph
    keep.feeds_write |= gone.feeds_write
    keep.opaque |= gone.opaque
    keep.projected_first |= gone.projected_first
    gone.merged_into = keep
    return keep
