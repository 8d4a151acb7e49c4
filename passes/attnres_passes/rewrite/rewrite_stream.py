"""The rewrite of one stream: completed blocks, the open partial sum, and a depth attention per read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch.fx import Graph, Node

from attnres_passes.analyses import blocks
from attnres_passes.analyses.aten_trace import AtenTrace
from attnres_passes.analyses.carries.carry import Carry
from attnres_passes.analyses.stream_nodes import CarryNode, StreamNodes, WriteNode
from attnres_passes.ir import provenance
from attnres_passes.ir.annotations import Annotation, annotate, annotation_of
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ir.plan import Stream
from attnres_passes.ir.read_id import ReadId
from attnres_passes.ir.regions import region_of
from attnres_passes.rewrite.own_parts import OwnParts
from attnres_passes.rewrite.placeholders import Asked, read_call
from attnres_passes.rewrite.places import RewrittenWrite
from attnres_passes.torch_private.example_values import example_value
from attnres_passes.torch_private.operators import set_grad_enabled

Resolve = Callable[[int, Node], Node]


@dataclass(frozen=True)
class _Snapshot:
    """The stream at one of its values.

    pending: reshapes since the layout that the sources are in; example: a value like the sources, if one is known.
    """

    sources: tuple[Node, ...]
    pending: tuple[CarryNode, ...]
    example: Any


class StreamRewriter:
    """Follows the steps of one stream in graph order and builds their replacement in ``graph``.

    The sources stay in one layout, that of the root, for as long as the stream is only reshaped: a read is made in
    that layout and reshaped for its reader, a write is reshaped back. Anything else that carries the stream on (a
    cast, a detach, a permutation, dropout, a factor) is applied to every source.

    A step under ``torch.no_grad`` cuts the stream off from what came before, so every source is detached there. The
    queries of a read are trained all the same: reads are made with gradients on, as their readers may need them.
    """

    def __init__(
        self,
        graph: Graph,
        trace: AtenTrace,
        index: int,
        stream: Stream,
        stream_nodes: StreamNodes,
        config: AttnResConfig,
        resolve: Resolve,
        read_ids: Sequence[ReadId] | None = None,
    ) -> None:
        self.graph, self.trace, self.index, self.stream, self.stream_nodes = graph, trace, index, stream, stream_nodes
        self.config, self.resolve = config, resolve
        self.read_ids = [ReadId(index, k) for k in range(len(stream.reads))] if read_ids is None else read_ids
        self.own_parts = OwnParts(graph, index)
        self.completed: list[Node] = []
        self.partial: Node | None = None
        self.written = 0
        self.pending: tuple[CarryNode, ...] = ()
        self.value = stream_nodes.value
        self.layout: tuple[Any, ...] = ()
        self.example: Any = None
        self.keys: dict[ReadId, Asked] = {}
        self.snapshots: dict[int, _Snapshot] = {}
        self.read_of_use = {use: k for k, read in enumerate(stream_nodes.reads) for use in read.uses}
        self.read_at: dict[tuple[int, int], Node] = {}
        # Reads of the present state that go on being used behind a carrying step, in the layout of the sources.
        self.live: dict[int, Node] = {}
        self.shown: dict[tuple[Node, int, bool], Node] = {}
        self.is_cut = False
        self.writes: list[RewrittenWrite] = []
        self.reads_from: dict[int, list[int]] = {}
        self.reads_for: dict[int, list[tuple[int, int]]] = {}
        self.values_of = [{value for value, _ in read.uses} for read in stream_nodes.reads]
        for k, values in enumerate(self.values_of):
            first = next(value for value in stream_nodes.trunk.order if value in values)
            self.reads_from.setdefault(first, []).append(k)

    # Steps of the stream, in graph order

    def begin(self, root: Node) -> None:
        """The node that gives ``s_0`` has been copied."""
        self.completed = [root]
        self.layout = self.trace.values[self.value].shape
        self._reached(self.value, root, self.stream_nodes.begins)

    def write(self, step: WriteNode) -> None:
        """``s_i = s_{i-1} + v_i``: ``v_i`` joins the open block."""
        old = self.trace.nodes[step.node]
        self.live.clear()
        self._promote_sources(step)
        given = self.resolve(step.node, step.branch)
        branch = self._fitted(given, step)
        after = next(iter(reversed(self.graph.nodes)))
        self.written += 1
        self.partial = branch if self.partial is None else self._new(torch.add, (self.partial, branch), old, "write")
        if self.partial is not given or annotation_of(given) is None:
            block = blocks.block_of_write(self.written, self.stream.block_size)
            annotate(self.partial, Annotation("write", self.index, block=block, sublayer=self.written))
        self.writes.append(RewrittenWrite(branch, after, self.partial))
        if self.written % self.stream.block_size == 0:
            self.completed.append(self.partial)
            self.partial = None
        self._reached(step.after, old, step.node)

    def carry(self, step: CarryNode) -> None:
        """The stream goes on through a view, a cast, a permutation, dropout or a factor."""
        if step.kind is Carry.RESHAPE:
            back_home = self.trace.values[step.after].shape == self.layout
            self.pending = () if back_home else (*self.pending, step)
        else:
            self._leave_layout()
            self._map_sources(self._carrier(step))
            self.layout = self.trace.values[step.after].shape
        self._reached(step.after, self.trace.nodes[step.node], step.node)

    def _reached(self, value: int, node: Node, index: int) -> None:
        """The stream is at ``value``, made by node ``index``: keep its sources, and make the reads that begin there."""
        self.value = value
        self.is_cut = self.trace.cuts_gradients(index)
        if self.is_cut:
            self._map_sources(self._detached)
        if not self.pending:
            self.example = example_value(node)
        self.snapshots[value] = _Snapshot(self._sources(), self.pending, self.example)
        for k in self.reads_from.get(value, ()):
            reader = min(user for _, user in self.stream_nodes.reads[k].uses)
            alike = region_of(self.trace.nodes[reader]) is region_of(self.trace.nodes[index])
            if alike or len(self.values_of[k]) > 1:
                self.live[k] = self._read(k, value, self.is_cut)
            else:
                # It is computed again where its reader is, so it stands there.
                self.reads_for.setdefault(reader, []).append((k, value))
        for k, read in self.live.items():
            if value in self.values_of[k]:
                self.read_at[k, value] = read

    def read_for(self, reader: int) -> None:
        """Make the reads that stand where their reader does. reader: index of the node that comes next."""
        for k, value in self.reads_for.pop(reader, ()):
            self.read_at[k, value] = self._read(k, value, self.trace.cuts_gradients(reader))

    def _sources(self) -> tuple[Node, ...]:
        return (*self.completed, *(() if self.partial is None else (self.partial,)))

    def _read(self, k: int, value: int, is_cut: bool) -> Node:
        """The read ``k``, of the sources at ``value``. is_cut: the next node is under ``torch.no_grad``."""
        snapshot = self.snapshots[value]
        if len(snapshot.sources) == 1:
            return snapshot.sources[0]
        read_id = self.read_ids[k]
        read = self.stream.reads[read_id.index]
        sources = blocks.attended(snapshot.sources, read.state, self.stream.block_size, self.config.window)
        reader = self.trace.nodes[self.stream_nodes.reads[k].uses[0][1]]
        given, parts = self.own_parts.of(sources, snapshot.example)
        operator, arguments = read_call(given, self.keys[read_id], self.config)
        if is_cut:
            self.graph.call_function(set_grad_enabled, (True,))
        node = self._new(operator, arguments, reader, "read", read_id.named("read"))
        if snapshot.example is not None:
            node.meta["example_value"] = snapshot.example
        annotate(node, Annotation("read", self.index, read.block, read.state, read_id))
        if is_cut:
            self.graph.call_function(set_grad_enabled, (False,))
        return node if parts is None else self.own_parts.spread(node, sources[0], parts, snapshot.example)

    def replacement(self, value: int, user: int) -> Node:
        """What a node gets in place of a value of the stream.

        Args:
            value: number of the value in the trace.
            user: index of the node. One that is no read asks for the shape alone (or is dead): any source serves.
        """
        snapshot = self.snapshots[value]
        k = self.read_of_use.get((value, user))
        node = self.read_at[k, value] if k is not None else snapshot.sources[-1]
        return self._show(node, snapshot.pending, self.trace.grad_enabled[user])

    def _show(self, node: Node, pending: tuple[CarryNode, ...], grad_enabled: bool) -> Node:
        """``node``, in the layout of the sources, reshaped as the stream was; once per grad mode of its readers."""
        for step in pending:
            key = (node, step.node, grad_enabled)
            if key not in self.shown:
                self.shown[key] = self._copy_carrier(step, node)
            node = self.shown[key]
        return node

    # Shapes and dtypes

    def _fitted(self, branch: Node, step: WriteNode) -> Node:
        """A write in the dtype, shape and layout of the sources."""
        old = self.trace.nodes[step.node]
        added = self.trace.values[self._branch_value(step)]
        state = self.trace.values[step.after]
        if added.shape != state.shape:
            self._leave_layout()
            branch = self._new("expand_as", (branch, self.completed[0]), old, "write")
        if added.dtype != state.dtype:
            branch = self._cast(branch, state.dtype, old, "write")
        if self.pending:
            branch = self._new("reshape_as", (branch, self.completed[0]), old, "write")
        return branch

    def _promote_sources(self, step: WriteNode) -> None:
        """Adding a wider dtype widens the state, and with it every source."""
        before, after = self.trace.values[self.value].dtype, self.trace.values[step.after].dtype
        if before != after:
            old = self.trace.nodes[step.node]
            self._map_sources(lambda source: self._cast(source, after, old, "carry"))
            self.example = None if self.example is None else self.example.to(after)

    def _branch_value(self, step: WriteNode) -> int:
        return self.trace.node_inputs[step.node][step.branch]

    def _leave_layout(self) -> None:
        """Make the reshapes that were put off real, on every source; the stream has a new layout."""
        for step in self.pending:
            self._map_sources(partial(self._copy_carrier, step))
        self.pending = ()
        self.layout = self.trace.values[self.value].shape

    def _cast(self, node: Node, dtype: torch.dtype, origin: Node, kind: Literal["write", "carry"]) -> Node:
        new = self._new("to", (node, dtype), origin, kind)
        new.meta.pop("example_value", None)
        given = example_value(node)
        if given is not None:
            new.meta["example_value"] = given.to(dtype)
        return new

    def _detached(self, source: Node) -> Node:
        """A source without what leads to it; given back as it is if it was detached before."""
        if source.target == "detach" and annotation_of(source) is not None:
            return source
        return self._new("detach", (source,), source, "carry")

    def _map_sources(self, function: Callable[[Node], Node]) -> None:
        """Apply what carries the stream on to its sources, and to the reads of the present state.

        A read is a weighted sum of the sources, and a carrying step is linear: the read of the value behind it is the
        read of the one before, carried on.
        """
        later = {
            k: read for k, read in self.live.items() if any((k, one) not in self.read_at for one in self.values_of[k])
        }
        images = {node: function(node) for node in dict.fromkeys((*self._sources(), *later.values()))}
        self.completed = [images[source] for source in self.completed]
        self.partial = None if self.partial is None else images[self.partial]
        self.live = {k: images[read] for k, read in later.items()}

    def _carrier(self, step: CarryNode) -> Callable[[Node], Node]:
        old = self.trace.nodes[step.node]
        if step.kind is not Carry.MASK:
            if not any(self.trace.ops[index].changes for index in self.trace.node_ops[step.node]):
                return lambda source: self._copy_carrier(step, source)
            # What changes the sum in place may change none of its parts: others read them, too.
            return lambda source: self._copy_carrier(step, self._new("clone", (source,), old, "carry"))
        # All sources must lose the same elements, so the mask is drawn once, by dropping out ones.
        mask = self._copy_carrier(step, self._new(torch.ones_like, (self.completed[0],), old, "carry"))
        return lambda source: self._new(torch.mul, (source, mask), old, "carry")

    def _copy_carrier(self, step: CarryNode, source: Node) -> Node:
        old = self.trace.nodes[step.node]
        node = self.graph.node_copy(
            old, lambda argument: source if argument is step.stream else self.resolve(step.node, argument)
        )
        return annotate(node, Annotation("carry", self.index, sublayer=self.written))

    def _new(
        self,
        target: Any,
        arguments: tuple[Any, ...],
        origin: Node,
        kind: Literal["write", "read", "carry"],
        name: str | None = None,
    ) -> Node:
        """A node of ours, with the provenance of the node that it stands for."""
        op = "call_method" if isinstance(target, str) else "call_function"
        node = self.graph.create_node(op, target, arguments, name=name)
        provenance.copy(origin, node)
        if self.example is not None:
            node.meta["example_value"] = self.example
        return annotate(node, Annotation(kind, self.index, sublayer=self.written))
