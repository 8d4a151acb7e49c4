"""What ``scale="mean"`` does to normed reads in ``verify``: how far an eps keeps a norm from taking the scale away.

With fresh queries a depth attention of ``n`` sources is their sum divided by ``n``. A norm gives the same of both, but
for its eps, which weighs more beside a mean of small sources. That is no error, and no check fails for it; it says how
far the rewritten model begins from the plain one, and where.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import map_aggregate

from attnres_compile.api.verification import Deviation, relative_error
from attnres_compile.capture.analysis import AnalysedGraph
from attnres_compile.capture.capture import copied_input
from attnres_compile.compile.graph_runs import SEED
from attnres_compile.progress import stage
from attnres_passes.analyses.norms.scale_span import ScaleSpan, scale_span
from attnres_passes.ir.plan import Read
from attnres_passes.torch_private.example_values import size_hint


@dataclass(frozen=True)
class _Normed:
    """A normed read of two sources or more. uses: value of the stream and index of the reading node."""

    read: Read
    uses: frozenset[tuple[int, int]]
    span: ScaleSpan


def scale_deviations(graph: AnalysedGraph) -> list[Deviation]:
    """Run a captured graph, and each norm behind a state a second time, on the mean in place of the sum.

    Every read is judged by itself: what comes before it is that of the plain model.

    Args:
        graph: with at least one stream.
    """
    stage("comparing the mean of the sources with their sum, behind every norm")
    reads = list(_normed_reads(graph))
    interpreter = _TwoScales(graph, reads)
    given = (size_hint(value) if isinstance(value, torch.SymInt) else value for value in graph.captured.inputs)
    torch.manual_seed(SEED)
    interpreter.run(*map(copied_input, given))
    return [
        Deviation(one.read.module, one.read.source, one.read.num_sources, error, one.span.eps[:1])
        for one, error in zip(reads, interpreter.errors, strict=True)
    ]


def _normed_reads(graph: AnalysedGraph) -> Iterator[_Normed]:
    analysis = graph.analysis
    for stream, stream_nodes in zip(analysis.plan.streams, analysis.stream_nodes, strict=True):
        for read, found in zip(stream.reads, stream_nodes.reads, strict=True):
            if read.normed and read.num_sources > 1:
                yield _Normed(read, frozenset(found.uses), scale_span(analysis.trace, found.uses))


class _TwoScales(Interpreter):
    """Runs a graph. errors: of each read, how far its norm is off where it is given the mean of its sources."""

    def __init__(self, graph: AnalysedGraph, reads: list[_Normed]) -> None:
        gm: GraphModule = graph.captured.gm
        super().__init__(gm)
        self.trace, self.reads = graph.analysis.trace, reads
        self.errors = [0.0] * len(reads)
        self.index = {node: k for k, node in enumerate(self.trace.nodes)}
        self.reads_at: dict[int, list[int]] = {}
        for number, one in enumerate(reads):
            for node in one.span.nodes:
                self.reads_at.setdefault(node, []).append(number)
        # What nodes give where a read is given the mean, until its scale is gone.
        self.scaled: dict[int, dict[Node, Any]] = {}

    def run_node(self, n: Node) -> Any:
        index = self.index[n]
        given = [(number, self._arguments(n, index, number)) for number in self.reads_at.get(index, ())]
        if not given:
            return super().run_node(n)
        # A norm that drops something out drops out the same.
        torch.manual_seed(SEED)
        result = super().run_node(n)
        for number, (args, kwargs) in given:
            torch.manual_seed(SEED)
            other = getattr(self, n.op)(n.target, args, kwargs)
            span = self.reads[number].span
            if index in span.ends:
                self.errors[number] = max(self.errors[number], relative_error(result, other))
            else:
                self.scaled.setdefault(number, {})[n] = other
            if index == span.nodes[-1]:
                self.scaled.pop(number, None)
        return result

    def _arguments(self, n: Node, index: int, number: int) -> Any:
        """The arguments of a node for a read that is given the mean; before the node runs, which may change its own."""
        one, scaled = self.reads[number], self.scaled.get(number, {})
        inputs: Mapping[Node, int] = self.trace.node_inputs[index]

        def argument(leaf: Any) -> Any:
            if not isinstance(leaf, Node):
                return leaf
            if leaf in scaled:
                return scaled[leaf]
            value = self.env[leaf]
            is_read = isinstance(value, Tensor) and (inputs.get(leaf, -1), index) in one.uses
            return value / one.read.num_sources if is_read else value

        return map_aggregate(n.args, argument), map_aggregate(n.kwargs, argument)
