"""Pass: analysed -> rewritten, for a graph that is a piece of its model: the sources of a stream come in and go out.

Before, a layer by itself, with ``x`` a state of the stream behind another graph::

    n1 = layer_norm(x)
    s1 = x + attention(n1)
    n2 = layer_norm(s1)
    s2 = s1 + mlp(n2)
    return (s2,)

After, with ``block_size=2``, a block having just been completed::

    read_0 = torch.ops.attnres.depth_attention([source_0, source_1], key_0, 1e-06, 'mean')
    a = attention(layer_norm(read_0))
    read_1 = torch.ops.attnres.depth_attention([source_0, source_1, a], key_1, 1e-06, 'mean')
    m = mlp(layer_norm(read_1))
    block_2 = a + m
    s2 = x + a + m
    return (s2, block_2)

The state itself is given as before, for whatever looks at it between the graphs; gradients that come to it there go the
way they would. The next graph takes the sources, those that came in and those that are new, in place of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Literal

import torch
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

from attnres_passes.analyses import blocks
from attnres_passes.analyses.carries.carry import Carry
from attnres_passes.analyses.piece import PieceAnalysis, PieceOfStream
from attnres_passes.analyses.stream_nodes import CarryNode, WriteNode
from attnres_passes.ir.annotations import Annotation, annotate
from attnres_passes.ir.read_id import ReadId, ReadParameter
from attnres_passes.rewrite.places import RewrittenStream
from attnres_passes.rewrite.rewrite import GraphRewriter
from attnres_passes.rewrite.rewrite_stream import StreamRewriter
from attnres_passes.torch_private.example_values import example_value
from attnres_passes.torch_private.graph_copies import copy_dynamo_attributes, mark_as_unknown


@dataclass(frozen=True)
class SourceAt:
    """Where the callable of a piece finds a source of a state: among what it was given, or among what the graph gives.

    index: of "given", among the sources that came in, all streams together; of "argument", among the graph's own
    arguments; of "new", behind the graph's own outputs.
    """

    kind: Literal["given", "argument", "new"]
    index: int


@dataclass(frozen=True)
class LeavingState:
    """A state that a graph gives, or finds to be the root of a stream.

    output: its place among the tensors that the graph gives; None for an argument, which is its own source; groups: of
    ranks over which its tokens are cut.
    """

    output: int | None
    stream: int
    state: int
    completed: tuple[SourceAt, ...]
    partial: SourceAt | None
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class RewrittenPiece:
    """The rewritten level of a piece.

    gm: takes the graph's own arguments, the sources that come in, and the parameters of the reads; gives its own
    outputs and, behind them, new sources. parameters: in order; num_sources: that come in; leaving: what goes out;
    groups: that of ``Rewritten``.
    """

    gm: GraphModule
    parameters: tuple[ReadParameter, ...]
    num_sources: int
    leaving: tuple[LeavingState, ...]
    streams: tuple[RewrittenStream, ...] = ()
    groups: Mapping[ReadId, tuple[str, ...]] = field(default_factory=dict)


def rewrite_piece(gm: GraphModule, analysis: PieceAnalysis) -> RewrittenPiece:
    """Build the rewritten graph of a piece beside the captured one (paper equations 1 to 6).

    Args:
        gm: not changed.
        analysis: made on ``gm``.
    """
    return _PieceRewriter(gm, analysis).run_piece()


class _PieceRewriter(GraphRewriter):
    """Copies the graph as ``rewrite`` does. given: placeholders of the sources that come in, in order."""

    def __init__(self, gm: GraphModule, analysis: PieceAnalysis) -> None:
        super().__init__(gm, analysis.plan, analysis.trace, analysis.depth_reads)
        self.pieces = [_PieceOfStream(self, piece) for piece in analysis.pieces]
        self.take(self.pieces)
        self.given: list[Node] = []
        self.new: list[Node] = []
        self.leaving: list[LeavingState] = []

    def run_piece(self) -> RewrittenPiece:
        parameters = self.copy_nodes()
        gm = GraphModule(self.gm, self.graph)
        copy_dynamo_attributes(self.gm, gm)
        of_reads = [zip(one.piece.reads, one.piece.groups.reads, strict=True) for one in self.pieces]
        groups = {read_id: of_read for pairs in of_reads for read_id, of_read in pairs if of_read}
        return RewrittenPiece(gm, tuple(parameters), len(self.given), tuple(self.leaving), groups=groups)

    def add_placeholders(self) -> list[ReadParameter]:
        """Sources that come in stand before the parameters of the reads."""
        for piece in self.pieces:
            if piece.piece.enters:
                piece.add_sources(self.given)
        parameters = super().add_placeholders()
        for piece in self.pieces:
            if piece.piece.enters:
                piece.begin(self.env[self.trace.nodes[piece.piece.nodes.root]])
        return parameters

    def begins_at(self, stream: StreamRewriter, index: int) -> bool:
        """A stream that comes in begins when all its sources and keys are there."""
        enters = isinstance(stream, _PieceOfStream) and stream.piece.enters
        return not enters and super().begins_at(stream, index)

    def rewrite_node(self, index: int, node: Node) -> None:
        if node.op != "output":
            super().rewrite_node(index, node)
            return
        arguments = [source for source in self.graph.nodes if source.op == "placeholder"][: self.own_placeholders]
        outputs = [self.trace.node_inputs[index].get(leaf) for leaf in tree_leaves(node.args[0]) if _is_node(leaf)]
        for piece in self.pieces:
            root = self.trace.nodes[piece.piece.nodes.root]
            if not piece.piece.enters and root.op == "placeholder":
                at = SourceAt("argument", arguments.index(self.env[root]))
                found = piece.piece.groups.stream
                self.leaving.append(LeavingState(None, piece.piece.stream, 0, (at,), None, found))
        for place, value in enumerate(outputs):
            for piece in self.pieces:
                if value in piece.piece.leaving:
                    assert value is not None
                    self.leaving.append(piece.leave(place, value, arguments, self.given, self.new))
        own = torch.fx.map_arg(tuple(node.args[0]), lambda argument: self.resolve(index, argument))  # type: ignore[arg-type]
        self.env[node] = self.graph.output((*own, *self.new))
        self.env[node].meta.update(node.meta)


def _is_node(leaf: object) -> bool:
    return isinstance(leaf, Node)


class _PieceOfStream(StreamRewriter):
    """Follows the steps of one stream, beside its running sum, where something sees that."""

    def __init__(self, rewriter: _PieceRewriter, piece: PieceOfStream) -> None:
        plan = rewriter.plan
        stream = plan.streams[piece.stream]
        super().__init__(
            rewriter.graph,
            rewriter.trace,
            piece.stream,
            stream,
            piece.nodes,
            plan.config,
            rewriter.resolve,
            piece.reads,
        )
        self.piece = piece
        self.written = piece.first
        self.entered: tuple[list[Node], Node | None] | None = None
        self.sums: dict[int, Node] = {}
        self.shows_sums = bool(piece.leaving or piece.plain)

    def add_sources(self, given: list[Node]) -> None:
        """Placeholders for the sources of the state that comes in: completed blocks, and the open partial sum."""
        count = blocks.sources_of_read(self.piece.first, self.stream.block_size)
        example = self._source_like(example_value(self.trace.nodes[self.piece.nodes.root]))
        made = []
        for index in range(count):
            node = self.graph.placeholder(f"source_{self.piece.stream}_{index}")
            mark_as_unknown(node)
            if example is not None:
                node.meta["example_value"] = example
            made.append(annotate(node, Annotation("root", self.piece.stream, sublayer=self.piece.first)))
        given.extend(made)
        is_open = self.piece.first % self.stream.block_size != 0
        self.entered = (made[:-1], made[-1]) if is_open else (made, None)

    @staticmethod
    def _source_like(state: Any) -> Any:
        """The fake value of a source: the sum needs a gradient if one of its sources does."""
        if state is None:
            return None
        source = torch.empty_like(state, memory_format=torch.contiguous_format)
        return source.requires_grad_(state.requires_grad)

    def begin(self, root: Node) -> None:
        self.sums[self.value] = root
        if self.entered is None:
            super().begin(root)
            return
        self.completed, self.partial = list(self.entered[0]), self.entered[1]
        self.layout = self.trace.values[self.value].shape
        self._reached(self.value, root, self.piece.nodes.begins)

    def write(self, step: WriteNode) -> None:
        super().write(step)
        self._show_sum(step.node, step.after)

    def carry(self, step: CarryNode) -> None:
        super().carry(step)
        if step.kind is not Carry.MASK:
            self._show_sum(step.node, step.after)
        elif self.shows_sums:
            # The mask was drawn for the sources, and is not to be drawn once more.
            self.sums[step.after] = reduce(self._added, self._sources())

    def _added(self, one: Node, other: Node) -> Node:
        return annotate(self.graph.call_function(torch.add, (one, other)), Annotation("carry", self.piece.stream))

    def _show_sum(self, index: int, after: int) -> None:
        """The running sum as it was, by the node that made it."""
        if not self.shows_sums:
            return
        old = self.trace.nodes[index]

        def operand(argument: Node) -> Node:
            value = self.trace.node_inputs[index].get(argument)
            return self.sums[value] if value in self.sums else self.resolve(index, argument)

        self.sums[after] = annotate(self.graph.node_copy(old, operand), Annotation("carry", self.piece.stream))

    def replacement(self, value: int, user: int) -> Node:
        is_sum = (value, user) in self.piece.plain or user == len(self.trace.nodes) - 1
        return self.sums[value] if is_sum else super().replacement(value, user)

    def leave(self, output: int, value: int, arguments: list[Node], given: list[Node], new: list[Node]) -> LeavingState:
        """A state that the graph gives: where its sources are, those that are new put behind the outputs."""
        snapshot = self.snapshots[value]
        grad_enabled = self.trace.grad_enabled[len(self.trace.nodes) - 1]
        state = self.piece.leaving[value]
        places = []
        for source in snapshot.sources:
            shown = self._show(source, snapshot.pending, grad_enabled)
            places.append(_place(shown, arguments, given, new))
        is_open = state % self.stream.block_size != 0
        completed, partial = (places[:-1], places[-1]) if is_open else (places, None)
        groups = self.piece.groups.stream
        return LeavingState(output, self.piece.stream, state, tuple(completed), partial, groups)


def _place(source: Node, arguments: list[Node], given: list[Node], new: list[Node]) -> SourceAt:
    for kind, nodes in (("given", given), ("argument", arguments), ("new", new)):
        if source in nodes:
            return SourceAt(kind, nodes.index(source))  # type: ignore[arg-type]
    new.append(source)
    return SourceAt("new", len(new) - 1)
