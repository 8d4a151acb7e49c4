"""Pass: a rewritten graph marked with stages -> one graph per chunk.

Before::

    n1 = layer_norm(x)                                           # attnres: stage=0
    a = linear(n1, weight_0)                                     # attnres: stage=0
    read_1 = torch.ops.attnres.depth_attention([x, a], ..)       # attnres: .. stage=1

After, the graphs of chunk 0 and chunk 1::

    def forward(self, tokens, weight_0): ..; return (x, a)
    def forward(self, b0, open, weight_1, query_1, key_weight_1): read_1 = ..; return (logits,)

A graph takes what arrives, what is cached on its rank, then those of the whole graph's placeholders that it uses. It
gives what the plan sends, or, the last one, what the whole graph gave. No graph keeps a state of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from attnres_passes.ir.annotations import read_of, stages_of
from attnres_passes.ir.levels import is_depth_attention
from attnres_passes.ir.read_id import ReadId
from attnres_passes.ranks.plan_text import key_text
from attnres_passes.ranks.stages import StagedGraph
from attnres_passes.ranks.transfers import ChunkPlan, Key
from attnres_passes.torch_private.graph_copies import copy_dynamo_source
from attnres_passes.torch_private.operators import set_grad_enabled


@dataclass(frozen=True)
class ChunkGraph:
    """The graph of one chunk.

    gm: ``forward(*arrives, *cached, *given) -> tuple``; given: indices of placeholders of the whole graph; reads: the
    depth attentions that the chunk runs.
    """

    gm: GraphModule
    chunk: ChunkPlan
    given: tuple[int, ...]
    reads: tuple[ReadId, ...]


def split(staged: StagedGraph, device: torch.device | None = None) -> tuple[ChunkGraph, ...]:
    """The graphs of all chunks.

    Args:
        staged: the whole graph, which is not changed.
        device: where the chunks are to run, if they were captured without data, on "meta"; nodes that name the device
            are made to name this one.
    """
    return tuple(_Splitter(staged, chunk, device).run() for chunk in staged.plan.chunks)


class _Splitter:
    """Copies the nodes of one chunk."""

    def __init__(self, staged: StagedGraph, chunk: ChunkPlan, device: torch.device | None) -> None:
        self.staged, self.chunk, self.device = staged, chunk, device
        self.graph = Graph()
        self.env: dict[Node, Node] = {}

    def run(self) -> ChunkGraph:
        nodes = list(self.staged.gm.graph.nodes)
        sources = self.staged.sources[self.chunk.index]
        for key in (*self.chunk.arrives, *self.chunk.cached):
            self._add_source(key, sources[key])
        placeholders = [node for node in nodes if node.op == "placeholder"]
        given = [k for k, node in enumerate(placeholders) if self._runs_here(node)]
        for k in given:
            self._copy(placeholders[k])
        for node in nodes:
            if node.op not in ("placeholder", "output") and self._runs_here(node):
                self._copy(node)
        self.graph.output(self._outputs(nodes[-1]))
        _drop_idle_switches(self.graph)
        gm = GraphModule(self.staged.gm, self.graph)
        gm.graph.lint()
        reads = (read_of(node) for node in nodes if is_depth_attention(node) and self.chunk.index in stages_of(node))
        return ChunkGraph(gm, self.chunk, tuple(given), tuple(reads))

    def _runs_here(self, node: Node) -> bool:
        return self.chunk.index in stages_of(node) and node not in self.env

    def _add_source(self, key: Key, node: Node) -> None:
        source = self.graph.placeholder(f"arriving_{key_text(key)}")
        if "example_value" in node.meta:
            source.meta["example_value"] = node.meta["example_value"]
        self.env[node] = source

    def _copy(self, node: Node) -> None:
        new = self.graph.node_copy(node, self.env.__getitem__)
        copy_dynamo_source(node, new)
        if self.device is not None:
            new.args = torch.fx.node.map_aggregate(new.args, self._on_device)
            new.kwargs = torch.fx.node.map_aggregate(new.kwargs, self._on_device)
        self.env[node] = new

    def _on_device(self, argument: Any) -> Any:
        is_meta = isinstance(argument, torch.device) and argument.type == "meta"
        return self.device if is_meta or argument == "meta" else argument

    def _outputs(self, output: Node) -> Any:
        following = self.chunk.index + 1
        if following == len(self.staged.plan.chunks):
            return torch.fx.node.map_arg(output.args[0], self.env.__getitem__)
        return tuple(self.env[self.staged.sources[following][key]] for key in self.chunk.sends)


def _drop_idle_switches(graph: Graph) -> None:
    """Take out switches of the grad mode that the next node switches again: nothing of this chunk is in between."""
    previous: Node | None = None
    for node in list(graph.nodes):
        is_switch = node.op == "call_function" and node.target is set_grad_enabled
        if is_switch and previous is not None:
            graph.erase_node(previous)
        previous = node if is_switch else None
