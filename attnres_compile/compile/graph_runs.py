"""Runs of the graphs of one model, captured, rewritten or lowered, that keep what each read gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_leaves

from attnres_compile.capture.analysis import AnalysedGraph
from attnres_compile.capture.capture import copied_input
from attnres_passes.ir.annotations import annotation_of
from attnres_passes.ir.plan import Plan
from attnres_passes.ir.read_id import ReadId
from attnres_passes.ir.read_parameters import ParameterForm
from attnres_passes.rewrite.placeholders import placeholders_of_parameters
from attnres_passes.torch_private.example_values import size_hint
from attnres_passes.torch_private.ranks.dtensors import everywhere, spread_like

SEED = 0


@dataclass(frozen=True)
class Run:
    """What one run gave. outputs: the floating-point ones of the graph; reads: the value of each read."""

    outputs: list[Tensor]
    reads: dict[ReadId, Tensor]


class _ValueKeeper(Interpreter):
    """Runs a graph and keeps the values of some nodes, as they are when the node has run."""

    def __init__(self, gm: GraphModule, wanted: Mapping[Node, list[ReadId]]) -> None:
        super().__init__(gm)
        self.wanted = wanted
        self.kept: dict[ReadId, Tensor] = {}

    def value_of(self, n: Node) -> Any:
        """What a node gives."""
        return super().run_node(n)

    def run_node(self, n: Node) -> Any:
        result = self.value_of(n)
        for read in self.wanted.get(n, ()):
            self.kept[read] = everywhere(result.detach()).clone()
        return result


class _Rounder(_ValueKeeper):
    """Moves every element of every read to a neighbouring number, up or down by chance."""

    def __init__(self, gm: GraphModule, wanted: Mapping[Node, list[ReadId]]) -> None:
        super().__init__(gm, wanted)
        self.generator = torch.Generator().manual_seed(SEED)

    def value_of(self, n: Node) -> Any:
        result = super().value_of(n)
        if n not in self.wanted:
            return result
        up = torch.randint(2, result.shape, generator=self.generator).to(result.device, result.dtype) * 2 - 1
        return result + result * (up * torch.finfo(result.dtype).eps)


def run(
    gm: GraphModule,
    graph: AnalysedGraph,
    wanted: Mapping[Node, list[ReadId]],
    added: list[Tensor],
    moves_reads: bool = False,
) -> Run:
    """Run a graph under a fixed random state.

    Args:
        gm: the captured graph, or what was made of it.
        graph: whose captured inputs it runs on.
        wanted: nodes whose values are kept, with the reads that they give.
        added: values of the parameters that the rewrite added, in the order of their placeholders.
        moves_reads: whether every read is off by one rounding, to learn what that does to the others.
    """
    # Sizes that Dynamo has made dynamic, since an earlier call had others, are inputs of their own.
    given = (size_hint(value) if isinstance(value, torch.SymInt) else value for value in graph.captured.inputs)
    inputs = map(copied_input, given)
    torch.manual_seed(SEED)
    interpreter = (_Rounder if moves_reads else _ValueKeeper)(gm, wanted)
    result = interpreter.run(*inputs, *added)
    leaves = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    outputs = list(map(everywhere, leaves))
    return Run(outputs, interpreter.kept)


def stream_values(graph: AnalysedGraph) -> dict[Node, list[ReadId]]:
    """For each read with parameters, the node of the captured graph that gives the state it reads."""
    trace = graph.analysis.trace
    wanted: dict[Node, list[ReadId]] = {}
    for s, (stream, stream_nodes) in enumerate(
        zip(graph.analysis.plan.streams, graph.analysis.stream_nodes, strict=True)
    ):
        for k, (read, found) in enumerate(zip(stream.reads, stream_nodes.reads, strict=True)):
            if read.num_sources > 1:
                node = trace.nodes[trace.node_output.index(found.uses[0][0])]
                wanted.setdefault(node, []).append(ReadId(s, k))
    return wanted


def read_nodes(gm: GraphModule) -> dict[Node, list[ReadId]]:
    """For each node of a rewritten or lowered graph that gives a read, which one; of a DTensor, what gives that."""
    wanted: dict[Node, list[ReadId]] = {}
    for node in gm.graph.nodes:
        annotation = annotation_of(node)
        if annotation is not None and annotation.kind == "read" and annotation.read is not None:
            wanted.setdefault(node, []).append(annotation.read)
        if node.target is spread_like and node.args[0] in wanted:
            wanted[node] = wanted.pop(node.args[0])
    return wanted


def _added(gm: GraphModule, graph: AnalysedGraph, plan: Plan) -> Iterator[tuple[ParameterForm, Tensor]]:
    """Form of each parameter that the rewritten graph asks for, and a tensor of its dtype and device."""
    example = next(value for value in graph.captured.inputs if isinstance(value, Tensor) and value.is_floating_point())
    for _, form in placeholders_of_parameters(gm, plan):
        yield form, example


def zeros_and_ones(gm: GraphModule, graph: AnalysedGraph, plan: Plan | None = None) -> list[Tensor]:
    """The added parameters of a fresh rewrite: zero queries and unit key weights.

    Args:
        gm: the rewritten graph, whose placeholders give the order.
        graph: that it was made of; gives widths, dtype and device.
        plan: that it was rewritten by, if that is not the one of ``graph``.
    """
    return [
        (torch.zeros if form.first == "zeros" else torch.ones)(form.shape, dtype=example.dtype, device=example.device)
        for form, example in _added(gm, graph, plan or graph.analysis.plan)
    ]


def random_parameters(gm: GraphModule, graph: AnalysedGraph, plan: Plan | None = None) -> list[Tensor]:
    """Added parameters with which the softmax over depth is neither flat nor one-hot.

    Args:
        gm, graph, plan: those of ``zeros_and_ones``.
    """
    generator = torch.Generator().manual_seed(SEED)
    drawn = []
    for form, example in _added(gm, graph, plan or graph.analysis.plan):
        value = torch.randn(form.shape, generator=generator)
        # Logits of order one.
        value = value / form.elements**0.5 if form.first == "zeros" else 1 + value / 4
        drawn.append(value.to(dtype=example.dtype, device=example.device))
    return drawn
