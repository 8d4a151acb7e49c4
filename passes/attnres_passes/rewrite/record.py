"""Pass: rewritten -> rewritten. What a recording of the model asks for is one more output of the graph.

Before::

    read_0_1 = torch.ops.attnres.depth_attention([x, linear_1], key_0_1, 1e-06, 'mean')
    ...
    return (logits,)

After::

    probe = probes[0]
    written_0_1 = gradient_probe(linear_1, probe)
    write_statistics = torch.ops.attnres.write_statistics(written_0_1, written_0_1)
    read_0_1 = torch.ops.attnres.depth_attention([x, written_0_1], key_0_1, 1e-06, 'mean')
    read_statistics = torch.ops.attnres.read_statistics([x, written_0_1], key_0_1, read_0_1, 1e-06)
    ...
    statistics = gather_statistics([write_statistics, read_statistics, ..])
    return (logits, statistics)

Statistics stand right behind what they are about, which may be changed in place later. They are made of the sources,
by the definition, so that they are the same under every schedule. Probes come in as one more input, before the
parameters of the reads, and only in a graph that has gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from attnres_kernels.operators import statistics
from attnres_passes.ir import provenance
from attnres_passes.ir.annotations import Annotation, annotate, annotation_of, read_of
from attnres_passes.ir.levels import is_depth_attention
from attnres_passes.ir.read_id import ReadId, WriteId
from attnres_passes.rewrite.places import RewrittenStream, RewrittenWrite
from attnres_passes.rewrite.rewrite import Rewritten
from attnres_passes.torch_private.example_values import example_value
from attnres_passes.torch_private.graph_copies import copy_dynamo_attributes, copy_dynamo_source, mark_as_unknown


@dataclass(frozen=True)
class Entry:
    """A part of the statistics.

    about: the read or the write that it is of; start, size: of the part. A read has the sums of its weights, of their
    entropy and of its mean square, and its tokens; a write has those of the mean squares of its output and of its
    block, and its tokens. probe: of a write whose gradient is measured, its place among the probes.
    """

    about: ReadId | WriteId
    start: int
    size: int
    probe: int | None = None


@dataclass(frozen=True)
class Recorded:
    """A rewritten graph whose last output is its statistics.

    entries: the parts of the statistics; num_probes: size of the vector of probes that comes before the parameters of
    the reads, 0 without one.
    """

    result: Rewritten
    entries: tuple[Entry, ...]
    num_probes: int


def record(rewritten: Rewritten, with_gradients: bool) -> Recorded:
    """A copy of a rewritten graph with its statistics as one more output.

    Args:
        rewritten: of one process; the graph is not changed.
        with_gradients: the norms of the gradients of its writes, too.
    """
    return _Recorder(rewritten, with_gradients).run()


class _Recorder:
    """Copies the graph node by node. branches, partials: the writes by the node behind which they happen."""

    def __init__(self, rewritten: Rewritten, with_gradients: bool) -> None:
        self.rewritten, self.with_gradients = rewritten, with_gradients
        self.graph = Graph()
        self.env: dict[Node, Node] = {}
        self.entries: list[Entry] = []
        self.parts: list[Node] = []
        self.probes: Node | None = None
        self.probed: dict[WriteId, int] = {}
        self.branches: dict[Node, list[tuple[WriteId, RewrittenWrite]]] = {}
        self.partials: dict[Node, list[tuple[WriteId, RewrittenWrite]]] = {}
        for s, stream in enumerate(rewritten.streams):
            for k, write in enumerate(stream.writes):
                self.branches.setdefault(write.after, []).append((WriteId(s, k), write))
                if write.partial is not write.branch:
                    self.partials.setdefault(write.partial, []).append((WriteId(s, k), write))

    def run(self) -> Recorded:
        for node in self.rewritten.gm.graph.nodes:
            if node.op == "output":
                self._add_output(node)
                break
            annotation = annotation_of(node)
            if (
                self.with_gradients
                and self.probes is None
                and annotation is not None
                and annotation.kind == "parameter"
            ):
                self._add_probes()
            self.env[node] = self.graph.node_copy(node, self.env.__getitem__)
            copy_dynamo_source(node, self.env[node])
            self._record_at(node)
        gm = GraphModule(self.rewritten.gm, self.graph)
        copy_dynamo_attributes(self.rewritten.gm, gm)
        streams = tuple(
            RewrittenStream(
                self.env[stream.root],
                tuple(
                    RewrittenWrite(self.env[write.branch], self.env[write.after], self.env[write.partial])
                    for write in stream.writes
                ),
            )
            for stream in self.rewritten.streams
        )
        result = Rewritten(gm, self.rewritten.parameters, streams, self.rewritten.groups)
        return Recorded(result, tuple(self.entries), len(self.probed))

    def _record_at(self, node: Node) -> None:
        for about, write in self.branches.get(node, ()):
            if self.with_gradients:
                self._probe(about, write)
            if write.partial is write.branch:
                self._record_write(about, write)
        for about, write in self.partials.get(node, ()):
            self._record_write(about, write)
        if is_depth_attention(node):
            self._record_read(node)

    def _add_probes(self) -> None:
        self.probes = self.graph.placeholder("attnres_probes")
        mark_as_unknown(self.probes)
        annotate(self.probes, Annotation("probe", 0))

    def _probe(self, about: WriteId, write: RewrittenWrite) -> None:
        """From here on, what reads ``v_k`` reads it through a probe."""
        annotation = Annotation("probe", about.stream, sublayer=about.index + 1)
        probe = self._call(torch.select, (self.probes, 0, len(self.probed)), write.partial, annotation)
        self.probed[about] = len(self.probed)
        given = self.env[write.branch]
        name = f"written_{about.stream}_{about.index + 1}"
        node = self._call(statistics.gradient_probe, (given, probe), write.partial, annotation, name)
        value = example_value(given)
        if value is not None:
            node.meta["example_value"] = value
        self.env[write.branch] = node

    def _record_write(self, about: WriteId, write: RewrittenWrite) -> None:
        arguments = (self.env[write.branch], self.env[write.partial])
        annotation = Annotation("statistic", about.stream, sublayer=about.index + 1)
        part = self._call(torch.ops.attnres.write_statistics.default, arguments, write.partial, annotation)
        self._add_entry(part, about, statistics.WRITE_SIZE, self.probed.get(about))

    def _record_read(self, node: Node) -> None:
        read_id, annotation = read_of(node), annotation_of(node)
        assert annotation is not None
        copy = self.env[node]
        sources, asked, eps, _, *how = copy.args
        assert isinstance(sources, (list, tuple))
        arguments = (list(sources), asked, copy, eps, *how)
        operator = torch.ops.attnres.variant_statistics if how else torch.ops.attnres.read_statistics
        of_statistic = Annotation("statistic", read_id.stream, sublayer=annotation.sublayer, read=read_id)
        part = self._call(operator.default, arguments, node, of_statistic)
        self._add_entry(part, read_id, len(sources) + statistics.READ_EXTRA)

    def _add_entry(self, part: Node, about: ReadId | WriteId, size: int, probe: int | None = None) -> None:
        start = self.entries[-1].start + self.entries[-1].size if self.entries else 0
        self.entries.append(Entry(about, start, size, probe))
        self.parts.append(part)

    def _add_output(self, node: Node) -> None:
        gathered = self._call(
            statistics.gather_statistics, (self.parts,), node, Annotation("statistic", 0), "statistics"
        )
        (outputs,) = node.args
        assert isinstance(outputs, (list, tuple)), "Dynamo's graphs return a tuple"
        old = torch.fx.map_arg(tuple(outputs), self.env.__getitem__)
        self.graph.output((*old, gathered)).meta.update(node.meta)

    def _call(
        self, target: Any, arguments: tuple[Any, ...], origin: Node, annotation: Annotation, name: str | None = None
    ) -> Node:
        node = self.graph.create_node("call_function", target, arguments, name=name)
        provenance.copy(origin, node)
        return annotate(node, annotation)
