"""Analysis: which part of a planned stream a graph holds that is a piece of its model.

The plan was made of the whole model. A graph of a part of it (a layer compiled by itself, what comes before or behind a
graph break) takes a state of the stream in, adds to it, reads it, and gives a later state out. Which state comes in is
known from the graph that made it; the stream begins in the graph whose additions are the first of the plan. Additions
and reads of the graph are those of the plan if module, source line and place in the stream are. Whatever else reads a
state (a norm that is printed, a router of the user's own) sees the running sum itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn
from torch.fx import Node

from attnres_passes.analyses.aten_trace import AtenTrace
from attnres_passes.analyses.chains import Addition, Candidate, find_chains
from attnres_passes.analyses.reads import ReadGroup, find_reads
from attnres_passes.analyses.sharding.token_groups import TokenGroups, token_groups
from attnres_passes.analyses.shared_reads import join_shared_reads
from attnres_passes.analyses.stream_nodes import NotReplaceable, StreamNodes, locate_stream
from attnres_passes.ir import provenance
from attnres_passes.ir.plan import Plan, Read, Stream, Write
from attnres_passes.ir.read_id import ReadId
from attnres_passes.torch_private.example_values import example_value


@dataclass(frozen=True)
class Entering:
    """A value given to a graph that is a state of a planned stream.

    state: how many writes it holds; groups: of ranks over which its tokens are known to be cut.
    """

    stream: int
    state: int
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class PieceOfStream:
    """What a graph holds of one stream.

    stream: its index in the plan; first: writes that its first value here holds; enters: whether that value is given to
    the graph as a state of an earlier one; nodes: where it is in the graph, with planned reads alone; reads: which they
    are; plain: uses of its values that are no planned reads; leaving: its values that the graph gives, with the number
    of writes that each holds; groups: of ranks over which its tokens are cut.
    """

    stream: int
    first: int
    enters: bool
    nodes: StreamNodes
    reads: tuple[ReadId, ...]
    plain: frozenset[tuple[int, int]]
    leaving: Mapping[int, int]
    groups: TokenGroups

    @property
    def is_idle(self) -> bool:
        """Whether the graph neither adds to the stream nor has a depth attention of it."""
        return not self.nodes.steps and not self.reads


@dataclass(frozen=True)
class PieceAnalysis:
    """The analysed level of a piece. plan: of the whole model."""

    plan: Plan
    pieces: tuple[PieceOfStream, ...]
    trace: AtenTrace

    @property
    def depth_reads(self) -> list[ReadId]:
        """The reads with two sources or more that are in the graph, in read order."""
        planned = self.plan.depth_reads
        return sorted(read for piece in self.pieces for read in piece.reads if read in planned)


@dataclass(frozen=True)
class Obstacle:
    """Why a piece cannot be rewritten.

    stream: index in the plan; node: in the way; message: what is there; lost_write: the module of a write that is added
    to something that is not known to be its state, if that is the reason.
    """

    stream: int
    node: Node
    message: str
    lost_write: str = ""


def find_pieces(
    trace: AtenTrace, plan: Plan, entering: Mapping[int, Entering], within: Sequence[str]
) -> PieceAnalysis | Obstacle:
    """The pieces of planned streams in a graph. Changes nothing.

    Args:
        trace: of the graph.
        plan: of the whole model.
        entering: by value number, what is known of the values given to the graph.
        within: paths, in the model, of the module that the graph was captured of, one that is used twice having two;
            none if it was captured of no module.
    """
    known = {value: one.state for value, one in entering.items()}
    candidates = find_chains(trace, known)
    places = _Places(trace, within)
    chosen: list[tuple[Candidate, Entering, bool]] = []
    for candidate in candidates:
        if candidate.root in entering:
            one = entering[candidate.root]
            chosen.append((_planned_start(places, candidate, plan.streams[one.stream], one.state), one, True))
    begun = {one.stream for one in entering.values()}
    for index, stream in enumerate(plan.streams):
        # Without its module, code that every layer runs cannot be told from that of the first.
        if index not in begun and within:
            roots = (candidate for candidate in candidates if candidate.root not in entering)
            starts = [_planned_start(places, candidate, stream, 0) for candidate in roots]
            first = max(starts, key=lambda start: len(start.additions), default=None)
            if first is None or not first.additions:
                first = _read_root(places, stream)
            if first is not None:
                chosen.append((first, Entering(index, 0), False))
    additions = frozenset(addition.op for candidate, _, _ in chosen for addition in candidate.additions)
    lost = _lost_write(places, candidates, plan, additions)
    if lost is not None:
        return lost
    pieces = []
    for candidate, one, enters in chosen:
        found = _piece(places, candidate, one, enters, plan, additions)
        if isinstance(found, NotReplaceable):
            return Obstacle(one.stream, trace.nodes[found.node], found.message)
        pieces.append(found)
    return PieceAnalysis(plan, tuple(pieces), trace)


@dataclass(frozen=True)
class _Places:
    """Where in the model the nodes of a trace are. within: as for ``find_pieces``."""

    trace: AtenTrace
    within: Sequence[str]

    def modules(self, node: Node) -> list[str]:
        """Paths of the innermost module that a node was traced in; none if it cannot be told."""
        path = provenance.module_path(node)
        return [".".join(part for part in (within, path) if part) for within in self.within]

    def may_be(self, node: Node, planned: Write | Read) -> bool:
        """Whether a node can be what adds or reads there by the plan."""
        source, modules = provenance.source_line(node), self.modules(node)
        same_line = not source or not planned.source or source == planned.source
        return same_line and (not modules or any(_is_around(module, planned.module) for module in modules))

    def is_behind(self, node: Node, write: Write) -> bool:
        """Whether a node is what adds a write, in the module around its sublayer."""
        source = provenance.source_line(node)
        around = (f"{write.module}.".startswith(f"{module}." if module else "") for module in self.modules(node))
        return bool(source) and source == write.source and write.module not in self.modules(node) and any(around)


def _lost_write(
    places: _Places, candidates: Sequence[Candidate], plan: Plan, additions: frozenset[int]
) -> Obstacle | None:
    """An addition that is a write of the plan, to something that is not known to be a state."""
    for candidate in candidates:
        for addition in candidate.additions:
            node = _node_of(places.trace, addition)
            if addition.op in additions:
                continue
            for index, stream in enumerate(plan.streams):
                for write in stream.writes:
                    if places.is_behind(node, write):
                        return Obstacle(index, node, "what it adds to is not known to be its state", write.module)
    return None


def _is_around(one: str, other: str) -> bool:
    """Whether one of two modules is the other, or around it: an addition stands in the module around its sublayer."""
    return not one or not other or f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _planned_start(places: _Places, candidate: Candidate, stream: Stream, state: int) -> Candidate:
    """The candidate up to its first addition that is not the next write of the plan."""
    count = 0
    for addition, write in zip(candidate.additions, stream.writes[state:], strict=False):
        if not places.may_be(_node_of(places.trace, addition), write):
            break
        count += 1
    is_whole = count == len(candidate.additions)
    return replace(candidate, additions=candidate.additions[:count], trailing=candidate.trailing if is_whole else ())


def _read_root(places: _Places, stream: Stream) -> Candidate | None:
    """The root of a stream that a graph reads and adds nothing to, by the first of the plan's reads of it."""
    trace = places.trace
    for read in stream.reads:
        for index, node in enumerate(trace.nodes) if read.state == 0 else ():
            if node.op not in ("placeholder", "output") and read.module in places.modules(node):
                if not places.may_be(node, read):
                    continue
                given = [
                    value
                    for argument, value in trace.node_inputs[index].items()
                    if trace.values[value].is_floating
                    and trace.values[value].shape[-1:] == (stream.width,)
                    and not isinstance(example_value(argument), nn.Parameter)
                ]
                return Candidate(given[0], (), (), False) if len(given) == 1 else None
    return None


def _node_of(trace: AtenTrace, addition: Addition) -> Node:
    return trace.nodes[trace.ops[addition.op].node]


def _piece(
    places: _Places, candidate: Candidate, one: Entering, enters: bool, plan: Plan, additions: frozenset[int]
) -> PieceOfStream | NotReplaceable:
    trace, stream = places.trace, plan.streams[one.stream]
    own = frozenset(addition.op for addition in candidate.additions)
    output = len(trace.nodes) - 1
    groups = [
        replace(group, uses=tuple(use for use in group.uses if use[1] != output))
        for group in join_shared_reads(trace, candidate, find_reads(trace, candidate, additions - own)).groups
    ]
    matched = _planned_reads(places, groups, one.state, stream)
    taken = [(group, planned) for group, planned in zip(groups, matched, strict=True) if planned is not None]
    plain = {use for group, planned in zip(groups, matched, strict=True) if planned is None for use in group.uses}
    nodes = locate_stream(trace, candidate, tuple(group for group, _ in taken))
    if isinstance(nodes, NotReplaceable):
        return nodes
    leaving = {
        value: one.state + nodes.trunk.state_of[value] for value in trace.graph_outputs if value in nodes.trunk.state_of
    }
    reads = tuple(ReadId(one.stream, planned) for _, planned in taken)
    of_ranks = token_groups(trace, nodes, one.groups)
    return PieceOfStream(one.stream, one.state, enters, nodes, reads, frozenset(plain), leaving, of_ranks)


def _planned_reads(places: _Places, groups: Sequence[ReadGroup], first: int, stream: Stream) -> list[int | None]:
    """For each group of uses of one state, the read of the plan that it is.

    Args:
        places: of the graph.
        groups: in the order of the graph.
        first: writes that come before state 0 of the graph.
        stream: of the plan.
    """
    found: list[int | None] = []
    left = set(range(len(stream.reads)))
    for group in groups:
        planned = _planned_read(places, group.uses, first + group.state, stream, left)
        found.append(planned)
        left.discard(-1 if planned is None else planned)
    # A cast that is none in another dtype moves the line where a norm begins, and its module and state stay.
    for k in sorted(left):
        read = stream.reads[k]
        # Elsewhere, another line of the module may be another use of the state.
        is_norm = not any(f"{write.module}.".startswith(f"{read.module}.") for write in stream.writes)
        alike = [j for j in left if (stream.reads[j].module, stream.reads[j].state) == (read.module, read.state)]
        may_be = [
            index
            for index, group in enumerate(groups)
            if found[index] is None
            and first + group.state == read.state
            and any(read.module in places.modules(places.trace.nodes[node]) for _, node in group.uses)
        ]
        if read.module and is_norm and len(alike) == len(may_be) == 1:
            found[may_be[0]] = k
    return found


def _planned_read(
    places: _Places, uses: Sequence[tuple[int, int]], state: int, stream: Stream, left: set[int]
) -> int | None:
    """The read of the plan that some uses of one state are; one in the very module before one around it."""
    nodes = [places.trace.nodes[node] for _, node in uses]

    def matching() -> Iterator[tuple[bool, int]]:
        for k in sorted(left):
            read = stream.reads[k]
            if read.state == state and any(places.may_be(node, read) for node in nodes):
                yield all(read.module not in places.modules(node) for node in nodes), k

    return min(matching(), default=(False, None))[1]
