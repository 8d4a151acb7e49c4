"""Pass: captured -> captured. The norm behind a read stands once for each of q, k and v, with the same weights.

Before::

    n = rms_norm(x, weight)
    mixed = attention(linear(n, w_q), linear(n, w_k), linear(n, w_v))

After::

    n = rms_norm(x, weight)
    n_k = rms_norm(x, weight)
    n_v = rms_norm(x, weight)
    mixed = attention(linear(n, w_q), linear(n_k, w_k), linear(n_v, w_v))

The graph computes what it did; three nodes read the state now, and the rewrite gives each a depth attention of its own.
What else the norm leads to, a gate or the feed-forward of a parallel block, keeps one more, the first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from attnres_passes.analyses.arguments.attentions import ARGUMENTS, Argument, attention_arguments
from attnres_passes.analyses.arguments.projections import Projections, projections_behind
from attnres_passes.analyses.aten_recorder import trace_aten
from attnres_passes.analyses.aten_trace import OPAQUE, STALE_ALIAS, AtenTrace
from attnres_passes.analyses.degrees.degree import is_shape_only
from attnres_passes.analyses.norms.norm_behind import modes
from attnres_passes.analyses.reads import ReadGroup
from attnres_passes.analyses.stream_nodes import StreamNodes
from attnres_passes.analyses.streams import Analysis, find_streams
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ir.read_arguments import ReadArgument, is_told, tell
from attnres_passes.ir.regions import Region, region_of
from attnres_passes.torch_private.graph_copies import copy_dynamo_attributes, copy_dynamo_source
from attnres_passes.torch_private.operators import is_operator


def analysed_apart(gm: GraphModule, config: AttnResConfig) -> tuple[GraphModule, Analysis]:
    """A captured graph with its analysis; under ``queries="qkv"``, with norms apart.

    Args:
        gm: captured, its regions open; not changed.
        config: of the analysis.

    Raises:
        ConfigError: that of ``find_streams``.
    """
    analysis = find_streams(trace_aten(gm), config)
    if config.queries == "one":
        return gm, analysis
    apart = norms_apart(gm, analysis.trace, [(nodes, 0) for nodes in analysis.stream_nodes])
    return apart, analysis if apart is gm else find_streams(trace_aten(apart), config)


def norms_apart(gm: GraphModule, trace: AtenTrace, streams: Sequence[tuple[StreamNodes, int]]) -> GraphModule:
    """A copy of a captured graph with norms apart, and with a reason at each read that keeps one query.

    Args:
        gm: captured; not changed.
        trace: of ``gm``.
        streams: in it, or pieces of streams, whose reads are looked at, each with the writes that its first value
            holds; reads that have been looked at before are left as they are.

    Returns:
        The copy, or ``gm`` itself if there is nothing to say of any read.
    """
    arguments = attention_arguments(trace)
    places = _Places({node: k for k, node in enumerate(trace.nodes)}, modes(gm.graph))
    stream_ops = frozenset[int]().union(*(stream.trunk.ops for stream, _ in streams))
    told: dict[int, ReadArgument] = {}
    norms: list[_Norm] = []
    for stream, first in streams:
        for read in stream.reads:
            # The root is read as it is, without a query.
            if first + read.state == 0 or not read.uses or any(is_told(trace.nodes[node]) for _, node in read.uses):
                continue
            found = projections_behind(trace, read, arguments, stream_ops)
            norm = found if isinstance(found, str) else _norm(trace, read, found, stream_ops, places)
            if isinstance(norm, _Norm):
                norms.append(norm)
                norm_told = ReadArgument("rest" if norm.has_rest else "q")
            else:
                norm_told = ReadArgument(one_query=norm)
            told.update(dict.fromkeys((node for _, node in read.uses), norm_told))
    return _Copier(gm, trace, norms).run(told) if told else gm


@dataclass(frozen=True)
class _Norm:
    """A norm to be put apart, as indices of nodes.

    inner: for each argument, the nodes from the state to its projections; projections: of each argument; has_rest:
    whether anything but these projections needs the norm; reading: the nodes that read the state; is_in_one_place:
    whether all nodes of ``inner`` stand under the same modes, and in the same region of recomputation.
    """

    inner: Mapping[Argument, tuple[int, ...]]
    projections: Mapping[Argument, frozenset[int]]
    has_rest: bool
    reading: frozenset[int]
    is_in_one_place: bool

    def copies(self) -> Iterator[tuple[int, Argument, int]]:
        """The copies to make: behind which node, for which argument, of which node.

        All of one argument stand together, behind the norm, so that it can be fused with its read; where a projection
        stands inside of the norm of another one, or parts of a norm have to stand in different places (autocast, a
        checkpoint), each copy is behind what it is a copy of.
        """
        last = max(max(nodes) for nodes in self.inner.values())
        are_behind = all(node > last for nodes in self.projections.values() for node in nodes)
        together = self.is_in_one_place and are_behind
        for argument, nodes in self.inner.items():
            if argument != "q" or self.has_rest:
                yield from ((last if together else node, argument, node) for node in nodes)


@dataclass(frozen=True)
class _Places:
    """Where the nodes of a graph stand. index: in their order; modes: that each runs under."""

    index: Mapping[Node, int]
    modes: Mapping[Node, Any]

    def of(self, node: Node) -> tuple[Any, Region | None]:
        """What a copy of a node has to share with it."""
        return self.modes[node], region_of(node)


def _norm(
    trace: AtenTrace, read: ReadGroup, found: Projections, stream_ops: Collection[int], places: _Places
) -> _Norm | str:
    """What has to be copied of a norm, or why it cannot be."""
    index = places.index
    reading = frozenset(node for _, node in read.uses)
    stops = found.every | {trace.ops[op].node for op in stream_ops}
    behind, pending = set(reading), list(reading)
    while pending:
        fresh = {index[user] for user in trace.nodes[pending.pop()].users} - behind - stops
        behind |= fresh
        pending.extend(fresh)
    inner: dict[Argument, tuple[int, ...]] = {
        argument: _between(trace, found.of[argument], behind, index) for argument in ARGUMENTS
    }
    every = set().union(*inner.values())
    own = {op for node in every for op in trace.node_ops[node]}
    for node in sorted(every):
        if not _can_be_copied(trace, node, own):
            return f"{trace.nodes[node].name}, between the state and its projections, cannot be computed twice"
    apart = every | frozenset().union(*found.of.values())
    has_rest = _is_needed_elsewhere(trace, every, apart, index)
    are_alike = len({places.of(trace.nodes[node]) for node in every}) == 1
    return _Norm(inner, found.of, has_rest, reading, are_alike)


def _between(
    trace: AtenTrace, projections: Collection[int], behind: Collection[int], index: Mapping[Node, int]
) -> tuple[int, ...]:
    """The nodes behind a state that some projections need, in graph order."""
    found: set[int] = set()
    pending = list(projections)
    while pending:
        fresh = {index[node] for node in trace.nodes[pending.pop()].all_input_nodes} & set(behind) - found
        found |= fresh
        pending.extend(fresh)
    return tuple(sorted(found))


def _can_be_copied(trace: AtenTrace, node: int, own: Collection[int]) -> bool:
    """Whether a node gives the same each time, and changes nothing but what is copied with it.

    Args:
        trace: of the captured graph.
        node: between a state and its projections.
        own: operations of all nodes between.
    """
    for op in map(trace.ops.__getitem__, trace.node_ops[node]):
        changed = {trace.values[value].storage for value in op.changes}
        is_random = is_operator(op.target) and torch.Tag.nondeterministic_seeded in op.target.tags
        if is_random or op.name in (OPAQUE, STALE_ALIAS):
            return False
        if changed and any(value.storage in changed and value.producer not in own for value in trace.values):
            return False
    return True


def _is_needed_elsewhere(
    trace: AtenTrace, inner: Collection[int], apart: Collection[int], index: Mapping[Node, int]
) -> bool:
    """Whether anything reads a norm that is not put apart; questions about shapes are none."""
    seen, pending = set(inner), list(inner)
    while pending:
        for user in trace.nodes[pending.pop()].users:
            node = index[user]
            ops = [trace.ops[op] for op in trace.node_ops[node]]
            if node in apart or node in seen:
                continue
            if user.op == "output" or any(not is_shape_only(op) for op in ops):
                return True
            seen.add(node)
            # What gives on what it is given, such as a dropout in evaluation.
            pending.extend([node] if not ops and trace.node_output[node] is not None else [])
    return False


class _Copier:
    """Copies a graph, and norms where they are put apart."""

    def __init__(self, gm: GraphModule, trace: AtenTrace, norms: Sequence[_Norm]) -> None:
        self.gm, self.trace, self.norms = gm, trace, norms
        self.graph = Graph()
        self.env: dict[Node, Node] = {}

    def run(self, told: Mapping[int, ReadArgument]) -> GraphModule:
        """The copy.

        Args:
            told: by index of a reading node, what it is for.
        """
        behind: dict[int, list[tuple[dict[Node, Node], _Norm, Argument, int]]] = {}
        given: dict[int, list[dict[Node, Node]]] = {}
        for norm in self.norms:
            envs: dict[Argument, dict[Node, Node]] = {}
            for place, argument, inner in norm.copies():
                behind.setdefault(place, []).append((envs.setdefault(argument, {}), norm, argument, inner))
            for argument, env in envs.items():
                for projection in norm.projections[argument]:
                    given.setdefault(projection, []).append(env)
        for index, node in enumerate(self.trace.nodes):
            new = self._copied(node, given.get(index, ()))
            copy_dynamo_source(node, new)
            self.env[node] = new
            if index in told:
                tell(new, told[index])
            for env, norm, argument, inner in behind.get(index, ()):
                old = self.trace.nodes[inner]
                env[old] = self._copied(old, (env,))
                if inner in norm.reading:
                    tell(env[old], ReadArgument(argument))
        apart = GraphModule(self.gm, self.graph)
        copy_dynamo_attributes(self.gm, apart)
        return apart

    def _copied(self, node: Node, envs: Sequence[Mapping[Node, Node]]) -> Node:
        def resolved(argument: Node) -> Node:
            return next((env[argument] for env in envs if argument in env), self.env[argument])

        return self.graph.node_copy(node, resolved)
