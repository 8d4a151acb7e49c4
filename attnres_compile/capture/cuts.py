"""Streams of a capture in pieces that go on in another piece, or in the Python code between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from attnres_compile.capture.graph_breaks import Cut, after_last_write, goes_on
from attnres_compile.capture.pieces import Captured
from attnres_passes.analyses.aten_trace import AtenTrace
from attnres_passes.analyses.chains import Candidate, search_chains
from attnres_passes.analyses.left_out import open_sums, origin_of, sums_with
from attnres_passes.analyses.norms.scale_span import felt_outputs
from attnres_passes.analyses.reads import find_reads
from attnres_passes.analyses.stream_nodes import StreamNodes, WriteNode
from attnres_passes.analyses.streams import Analysis
from attnres_passes.ir.plan import Stream


def first_cut(graphs: Sequence[Captured], analyses: Sequence[Analysis]) -> Cut | None:
    """The first stream of a model that goes on beyond its graph; None if there is none.

    Args:
        graphs: all of a model, in the order they run.
        analyses: one of each.
    """
    return next(_Cuts(graphs, analyses).find(), None)


class _Cuts:
    """One search. A model in one graph has nothing to find: it takes nothing from a graph before it."""

    def __init__(self, graphs: Sequence[Captured], analyses: Sequence[Analysis]) -> None:
        self.graphs = graphs
        self.traces = [analysis.trace for analysis in analyses]
        self.analyses = analyses
        self.given = [placeholder_values(analysis.trace) for analysis in analyses]

    def find(self) -> Iterator[Cut]:
        for index, (graph, analysis) in enumerate(zip(self.graphs, self.analyses, strict=True)):
            for stream, nodes in zip(analysis.plan.streams, analysis.stream_nodes, strict=True):
                if graph.end.is_break and goes_on(stream):
                    yield Cut(stream, after_last_write(stream), graph.end)
                yield from self._begun_before(index, stream, nodes)
                held = {value for value, state in nodes.trunk.state_of.items() if state > 0}
                if self._is_added_later(index, held):
                    yield Cut(stream, "that a later graph adds to", graph.end)
                for read, found in zip(stream.reads, nodes.reads, strict=True):
                    if read.num_sources > 1 and not read.normed and self._feeds_later(index, found.uses):
                        yield Cut(
                            stream, f"behind {read.module or 'a read'}, un-normed, for a later sublayer", graph.end
                        )

    def _begun_before(self, index: int, stream: Stream, nodes: StreamNodes) -> Iterator[Cut]:
        """What a stream begins with, or adds, is the running sum of an earlier graph."""
        trace = self.traces[index]
        added = [trace.node_inputs[step.node][step.branch] for step in nodes.steps if isinstance(step, WriteNode)]
        for value in (nodes.trunk.order[0], *added):
            place = "before its first write" if value == nodes.trunk.order[0] else "that another one is added to"
            for giver in self._sums_behind(index, value):
                yield Cut(stream, place, self.graphs[giver].end)
        if self._is_of_python(index, nodes.trunk.order[0]):
            # What Python computed between two graphs may be the sum that the first one ended with.
            width = trace.values[nodes.trunk.order[0]].shape[-1]
            for giver in range(index):
                if self.graphs[giver].end.is_break and self._ends_in_sum(giver, width):
                    yield Cut(stream, "before its first write", self.graphs[giver].end)

    def _sums_behind(self, index: int, value: int) -> Iterator[int]:
        """Earlier graphs from whose running sums a value of a graph is carried on."""
        inputs = origin_of(self.traces[index], value).inputs
        for taken in self.graphs[index].taken:
            if self.given[index][taken.position] in inputs and taken.graph is not None and taken.output is not None:
                output = self.traces[taken.graph].graph_outputs[taken.output]
                if origin_of(self.traces[taken.graph], output).additions:
                    yield taken.graph
                elif taken.graph < index:
                    yield from self._sums_behind(taken.graph, output)

    def _is_of_python(self, index: int, value: int) -> bool:
        """Whether a value is carried on from one that no graph made."""
        inputs = origin_of(self.traces[index], value).inputs
        return any(
            taken.graph is None and self.given[index][taken.position] in inputs for taken in self.graphs[index].taken
        )

    def _ends_in_sum(self, index: int, width: int) -> bool:
        """Whether a graph gives a running sum of some width that it adds nothing more to."""
        trace = self.traces[index]
        return any(trace.values[output].shape[-1:] == (width,) for output in open_sums(trace))

    def _is_added_later(self, index: int, held: set[int]) -> bool:
        """Whether what some values of a graph are carried on to is added to something in a later graph."""
        for _ in sums_with(self.traces[index], held):
            pass  # it takes into `held` what they are carried on to
        given = {position for position, output in enumerate(self.traces[index].graph_outputs) if output in held}
        for later in range(index + 1, len(self.graphs)):
            graph, trace = self.graphs[later], self.traces[later]
            for taken in graph.taken:
                if taken.graph != index or taken.output not in given:
                    continue
                followed = {value for value in [self.given[later][taken.position]] if value is not None}
                if any(not self._is_of_parameters(later, other) for _, other in sums_with(trace, followed)):
                    return True
                if self._is_added_later(later, followed):
                    return True
        return False

    def _feeds_later(self, index: int, uses: Sequence[tuple[int, int]]) -> bool:
        """Whether what some readers of a graph make of a state feeds a write of a later graph without a norm."""
        felt = felt_outputs(self.traces[index], uses)
        for later in range(index + 1, len(self.graphs)):
            trace = self.traces[later]
            for taken in self.graphs[later].taken:
                value = self.given[later][taken.position]
                if taken.graph != index or taken.output not in felt or value is None:
                    continue
                reads = find_reads(trace, Candidate(value, (), (), False), search_chains(trace).sublayer_sums)
                if any(read.feeds_write for read in reads.groups):
                    return True
                if self._feeds_later(later, [(value, trace.ops[op].node) for op in trace.users[value]]):
                    return True
        return False

    def _is_of_parameters(self, index: int, value: int) -> bool:
        """Whether a value is carried on from parameters alone, such as a shift of every state."""
        inputs = origin_of(self.traces[index], value).inputs
        held = dict(zip(self.given[index], self.graphs[index].inputs, strict=True))
        return bool(inputs) and all(isinstance(held.get(one), nn.Parameter) for one in inputs)


def placeholder_values(trace: AtenTrace) -> list[int | None]:
    """The value of each placeholder; None for what is no tensor."""
    return [trace.node_output[k] for k, node in enumerate(trace.nodes) if node.op == "placeholder"]
