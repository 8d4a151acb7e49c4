"""Pass: analysed -> rewritten. Every read of a stream becomes a depth attention over the blocks (paper equations 1-6).

Before::

    s1 = x + a                    # write 1
    n1 = layer_norm(s1)           # read of s1
    s2 = s1 + m                   # write 2
    n2 = layer_norm(s2)           # read of s2

After, with ``block_size=1``::

    key_0 = key_vector(query_0, key_weight_0)
    read_0 = torch.ops.attnres.depth_attention([x, a], key_0, 1e-06, 'mean')
    n1 = layer_norm(read_0)
    read_1 = torch.ops.attnres.depth_attention([x, a, m], key_1, 1e-06, 'mean')
    n2 = layer_norm(read_1)

The running sum is gone: a block of several writes is an explicit sum of its writes. The graph given is not changed;
the parameters arrive as placeholders appended to its own. What the plan declines is copied as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch.fx import Graph, GraphModule, Node

from attnres_passes.analyses.aten_trace import AtenTrace
from attnres_passes.analyses.sharding.token_groups import token_groups
from attnres_passes.analyses.stream_nodes import CarryNode
from attnres_passes.analyses.streams import Analysis
from attnres_passes.ir.annotations import Annotation, annotate
from attnres_passes.ir.plan import Plan
from attnres_passes.ir.read_id import ReadId, ReadParameter
from attnres_passes.ir.regions import put_in_region, region_of
from attnres_passes.rewrite.placeholders import add_key_vectors, append_placeholders
from attnres_passes.rewrite.places import RewrittenStream
from attnres_passes.rewrite.rewrite_stream import StreamRewriter
from attnres_passes.torch_private.graph_copies import copy_dynamo_attributes, copy_dynamo_source


@dataclass(frozen=True)
class Rewritten:
    """The rewritten level.

    parameters: what the appended placeholders stand for, in their order; streams: where the root and the writes of each
    stream are in ``gm``; groups: for reads of tokens that only this rank has, the names of the groups of ranks that
    have the others.
    """

    gm: GraphModule
    parameters: tuple[ReadParameter, ...]
    streams: tuple[RewrittenStream, ...]
    groups: Mapping[ReadId, tuple[str, ...]] = field(default_factory=dict)


def rewrite(gm: GraphModule, analysis: Analysis) -> Rewritten:
    """Build the rewritten graph beside a captured one (paper equations 1 to 6).

    Args:
        gm: not changed.
        analysis: made on ``gm``.
    """
    return _Rewriter(gm, analysis).run()


class GraphRewriter:
    """Copies a graph node by node; what touches a stream is handed to the rewriter of that stream.

    reads: with two sources or more, in read order, which have placeholders; own_placeholders: how many the graph had.
    """

    def __init__(self, gm: GraphModule, plan: Plan, trace: AtenTrace, reads: Sequence[ReadId]) -> None:
        self.gm, self.plan, self.trace, self.reads = gm, plan, trace, reads
        self.graph = Graph()
        self.env: dict[Node, Node] = {}
        self.roots: dict[int, Node] = {}
        self.own_placeholders = sum(node.op == "placeholder" for node in trace.nodes)
        self.take(())

    def take(self, streams: Sequence[StreamRewriter]) -> None:
        """The streams that are rewritten. Before any node is copied."""
        self.streams = streams
        self.stream_of_value = {
            value: stream for stream in self.streams for value in stream.stream_nodes.trunk.state_of
        }
        self.step_at = {step.node: (stream, step) for stream in self.streams for step in stream.stream_nodes.steps}

    def copy_nodes(self) -> list[ReadParameter]:
        """Copy all nodes of the trace; gives what the appended placeholders stand for."""
        parameters: list[ReadParameter] = []
        last_placeholder = max((k for k, node in enumerate(self.trace.nodes) if node.op == "placeholder"), default=-1)
        if last_placeholder < 0:
            parameters = self.add_placeholders()
        for index, node in enumerate(self.trace.nodes):
            self.rewrite_node(index, node)
            if index == last_placeholder:
                parameters = self.add_placeholders()
        return parameters

    def add_placeholders(self) -> list[ReadParameter]:
        """Appended placeholders of all streams, then the nodes that make key vectors of them."""
        mechanism = self.plan.config.mechanism
        placeholders = append_placeholders(self.graph, self.reads, mechanism)
        keys = add_key_vectors(self.graph, placeholders, mechanism)
        for stream in self.streams:
            stream.keys = keys
        return list(placeholders)

    def rewrite_node(self, index: int, node: Node) -> None:
        """Copy one node, or put what the rewrite has in its place."""
        last = next(iter(reversed(self.graph.nodes)), None)
        for stream in self.streams:
            stream.read_for(index)
        self._replace_node(index, node)
        # What stands in place of a node is computed again where that node is.
        new = iter(self.graph.nodes) if last is None else _following(last)
        for made in new:
            put_in_region(made, region_of(node))

    def _replace_node(self, index: int, node: Node) -> None:
        if index in self.step_at:
            stream, step = self.step_at[index]
            if isinstance(step, CarryNode):
                stream.carry(step)
            else:
                stream.write(step)
        elif not self._is_identity_on_stream(index):
            self.env[node] = self.graph.node_copy(node, lambda argument: self.resolve(index, argument))
            copy_dynamo_source(node, self.env[node])
        for stream in self.streams:
            if self.begins_at(stream, index):
                self.roots[stream.index] = self._root_of(stream)
                stream.begin(self.roots[stream.index])

    def begins_at(self, stream: StreamRewriter, index: int) -> bool:
        """Whether a stream begins with the node that was just copied."""
        return stream.stream_nodes.begins == index

    def _root_of(self, stream: StreamRewriter) -> Node:
        """The node that gives ``s_0``.

        Where a change in place made it, a node of its own says from where on the tensor is that, for what cuts the
        graph later.
        """
        nodes = stream.stream_nodes
        changed = self.trace.nodes[nodes.root]
        root = self.env[changed]
        if nodes.root == nodes.begins:
            return root
        alias = self.graph.call_function(torch.ops.aten.alias.default, (root,))
        alias.meta.update(changed.meta)
        return annotate(alias, Annotation("root", stream.index))

    def _is_identity_on_stream(self, index: int) -> bool:
        """A node that gives the very value it was given, such as a cast to the dtype that it already has."""
        output = self.trace.node_output[index]
        return output in self.stream_of_value and output in self.trace.node_inputs[index].values()

    def resolve(self, index: int, argument: Node) -> Node:
        """What node ``index`` reads in the new graph where it read ``argument`` in the old one."""
        value = self.trace.node_inputs[index].get(argument)
        stream = self.stream_of_value.get(value) if value is not None else None
        if stream is None or value is None:
            return self.env[argument]
        return stream.replacement(value, index)


class _Rewriter(GraphRewriter):
    """The rewrite of a graph that holds whole streams."""

    def __init__(self, gm: GraphModule, analysis: Analysis) -> None:
        plan = analysis.plan
        super().__init__(gm, plan, analysis.trace, list(plan.depth_reads))
        self.take(
            [
                StreamRewriter(self.graph, self.trace, index, stream, stream_nodes, plan.config, self.resolve)
                for index, (stream, stream_nodes) in enumerate(zip(plan.streams, analysis.stream_nodes, strict=True))
            ]
        )

    def run(self) -> Rewritten:
        parameters = self.copy_nodes()
        rewritten = GraphModule(self.gm, self.graph)
        copy_dynamo_attributes(self.gm, rewritten)
        streams = tuple(RewrittenStream(self.roots[stream.index], tuple(stream.writes)) for stream in self.streams)
        groups = {
            read_id: of_read
            for stream in self.streams
            for read_id, of_read in zip(
                stream.read_ids, token_groups(self.trace, stream.stream_nodes).reads, strict=True
            )
            if of_read
        }
        return Rewritten(rewritten, tuple(parameters), streams, groups)


def _following(node: Node) -> Iterator[Node]:
    """The nodes behind one, to the end of its graph."""
    while (node := node.next).op != "root":
        yield node
