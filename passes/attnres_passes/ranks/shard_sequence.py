"""Pass: rewritten -> rewritten. Every rank stores the blocks of its own tokens only (paper section 4.2).

Before, with sublayers whose outputs are summed over the ranks (tensor parallelism)::

    reduced = all_reduce(linear_1, 'sum', '0')
    written = wait_tensor(reduced)
    read_0_1 = torch.ops.attnres.depth_attention([x, written], key_0_1, 1e-06, 'mean')
    n2 = layer_norm(read_0_1)

After::

    length = x.size(-2)
    x_shard = shard(x, 2, 0)
    written_shard = sum_and_shard(linear_1, 2, '0')
    read_0_1 = torch.ops.attnres.depth_attention([x_shard, written_shard], key_0_1, 1e-06, 'mean')
    whole_0_1 = gather(read_0_1, length, 2, '0')
    n2 = layer_norm(whole_0_1)

A read mixes the blocks of one token, so reads need nothing of other ranks: phase 1 and phase 2 both run on a rank's own
tokens, between a reduce-scatter and an all-gather that together carry what the all-reduce did. A write that every
rank has whole is cut instead. For inference: the collectives pass no gradients on.

Declined, as a SequenceError: streams that are reshaped or permuted on their way, whose shards would not be the same
tokens any more.
"""

from __future__ import annotations

import torch
from torch.fx import Graph, GraphModule, Node

from attnres_passes.ir import provenance
from attnres_passes.ir.annotations import Annotation, annotate, annotation_of, read_of
from attnres_passes.ir.levels import is_depth_attention
from attnres_passes.ranks.shards import DIMENSION, SequenceError, Shards, gather, shard, sum_and_shard
from attnres_passes.rewrite.rewrite import Rewritten
from attnres_passes.torch_private import collectives
from attnres_passes.torch_private.collectives import AllReduced
from attnres_passes.torch_private.example_values import example_value
from attnres_passes.torch_private.graph_copies import copy_dynamo_attributes, copy_dynamo_source

_TOKEN_BY_TOKEN = ("to", "detach")
"""Methods that carry a stream on without moving a token."""


def shard_sequence(rewritten: Rewritten, shards: Shards) -> GraphModule:
    """A copy of the rewritten graph whose sources hold this rank's tokens alone.

    Args:
        rewritten: the graph, and where its streams are in it.
        shards: the ranks, and which of them this one is.

    Raises:
        SequenceError: a stream cannot be cut.
    """
    if shards.size == 1:
        return rewritten.gm
    return _Sharder(rewritten, shards).run()


class _Sharder:
    """Copies the graph. whole: every node's copy; own: of a node of a stream, what this rank has of it.

    cut_after: the values to cut, by the node behind which each is complete.
    """

    def __init__(self, rewritten: Rewritten, shards: Shards) -> None:
        self.gm, self.shards = rewritten.gm, shards
        self.graph = Graph()
        self.whole: dict[Node, Node] = {}
        self.own: dict[Node, Node] = {}
        self.lengths: dict[int, Node] = {}
        self.sums: set[Node] = set()
        self.summed_over_ranks: set[Node] = set()
        self.cut_after: dict[Node, list[tuple[int, Node]]] = {}
        for index, stream in enumerate(rewritten.streams):
            self.cut_after.setdefault(stream.root, []).append((index, stream.root))
            for write in stream.writes:
                self.cut_after.setdefault(write.after, []).append((index, write.branch))
                if write.partial is not write.branch:
                    self.sums.add(write.partial)

    def run(self) -> GraphModule:
        for node in self.gm.graph.nodes:
            if is_depth_attention(node):
                self._read(node)
            else:
                self.whole[node] = self.graph.node_copy(node, self.whole.__getitem__)
                copy_dynamo_source(node, self.whole[node])
                self._carry_on(node)
            for stream, value in self.cut_after.get(node, ()):
                self._measure(stream, value)
                self._cut(stream, value)
        self._drop_unread()
        gm = GraphModule(self.gm, self.graph)
        copy_dynamo_attributes(self.gm, gm)
        return gm

    def _measure(self, stream: int, root: Node) -> None:
        """The number of tokens, which is asked of the root while it is there."""
        if stream not in self.lengths:
            node = self.graph.call_method("size", (self.whole[root], DIMENSION))
            self.lengths[stream] = annotate(node, Annotation("carry", stream))

    def _cut(self, stream: int, value: Node) -> None:
        annotation = annotation_of(value) or Annotation("carry", stream)
        reduced = collectives.all_reduced(value, self.shards.group)
        call: tuple[object, tuple[object, ...]] = shard, (self.whole[value], self.shards.size, self.shards.rank)
        if reduced is not None and not self._is_read_whole(value, reduced):
            self.summed_over_ranks.update(reduced.nodes)
            call = sum_and_shard, (self.whole[reduced.given], self.shards.size, self.shards.group)
        self.own[value] = self._call(*call, value, annotation, f"{value.name}_shard")

    def _is_read_whole(self, value: Node, reduced: AllReduced) -> bool:
        """Whether anything but the stream reads the sum over all ranks, or what was summed."""
        users = {*value.users, *reduced.given.users, *(user for node in reduced.nodes for user in node.users)}
        return any(
            user not in self.sums and user not in reduced.nodes and not is_depth_attention(user) for user in users
        )

    def _carry_on(self, node: Node) -> None:
        """What a source becomes on its way, for this rank's tokens."""
        annotation = annotation_of(node)
        if node not in self.sums and (annotation is None or annotation.kind != "carry"):
            return
        sources = [argument for argument in node.all_input_nodes if argument in self.own]
        if not sources:
            return
        if node not in self.sums and node.target not in _TOKEN_BY_TOKEN:
            raise SequenceError(
                f"the stream is carried on by {node.target} at {provenance.source_line(node)}, behind which a shard "
                "would hold other tokens; leave sequence_group out, or move that line off the residual stream."
            )
        own = self.graph.node_copy(node, lambda argument: self.own.get(argument, self.whole[argument]))
        own.meta.pop("example_value", None)
        self.own[node] = self._with_example(own, node)

    def _read(self, node: Node) -> None:
        sources, *rest = node.args
        assert isinstance(sources, (list, tuple))
        annotation = annotation_of(node)
        assert annotation is not None
        arguments = [self.own[source] for source in sources if isinstance(source, Node)]
        own = self.graph.node_copy(node, lambda argument: self.own.get(argument, self.whole.get(argument, argument)))
        own.args = (arguments, *torch.fx.map_arg(tuple(rest), self.whole.__getitem__))
        self.own[node] = self._with_example(own, node)
        arguments_of_gather = (own, self.lengths[annotation.stream], self.shards.size, self.shards.group)
        carried = Annotation("carry", annotation.stream, sublayer=annotation.sublayer)
        name = read_of(node).named("whole")
        self.whole[node] = self._call(gather, arguments_of_gather, node, carried, name)
        if "example_value" in node.meta:
            self.whole[node].meta["example_value"] = node.meta["example_value"]

    def _call(
        self, function: object, arguments: tuple[object, ...], origin: Node, annotation: Annotation, name: str
    ) -> Node:
        node = self.graph.create_node("call_function", function, arguments, name=name)  # type: ignore[arg-type]
        provenance.copy(origin, node)
        return self._with_example(annotate(node, annotation), origin)

    def _with_example(self, own: Node, whole: Node) -> Node:
        """``own``, with an example of its shape beside that of the ``whole``."""
        given = example_value(whole)
        own.meta.pop("example_value", None)
        if isinstance(given, torch.Tensor):
            own.meta["example_value"] = shard(given, self.shards.size, self.shards.rank)
        return own

    def _drop_unread(self) -> None:
        """Sums of whole tensors, over blocks and over ranks, that nothing reads any more."""
        droppable = {self.whole[node] for node in (*self.own, *self.summed_over_ranks) if not is_depth_attention(node)}
        for node in reversed(list(self.graph.nodes)):
            if node in droppable and not node.users and node.op != "placeholder":
                self.graph.erase_node(node)
