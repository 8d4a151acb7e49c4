"""Where checkpoints and collectives go in a captured graph: layers by their modules, branches by reads and writes.

Regions are what ``inline.open_regions`` would have made of the user's own checkpoints, so that the passes treat them as
theirs. They are put on the nodes for as long as something is counted, and taken off again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from torch.fx import Node

from attnres_compile.capture.analysis import AnalysedGraph
from attnres_compile.inspection.fold.paths import layer_paths
from attnres_compile.report.parallel import ParallelError
from attnres_passes.analyses.norms.norm_behind import Norm, norm_of_readers
from attnres_passes.analyses.stream_nodes import StreamNodes, WriteNode
from attnres_passes.ir import provenance
from attnres_passes.ir.plan import Plan
from attnres_passes.ir.regions import Region, put_in_region, region_of
from attnres_passes.torch_private.operators import flop_formula

_OPTIONS = {"use_reentrant": False}
_NO_CALLS = ("placeholder", "get_attr", "output")


class Mark(StrEnum):
    """What a node is to a count: ``node.meta["attnres_count"]``, which copies of the node keep.

    INSIDE: of a norm behind a read, but for its output; STATE: what such a norm reads; SUMMED: tensor-parallel ranks
    sum it.
    """

    INSIDE = "inside"
    STATE = "state"
    SUMMED = "summed"


MARK = "attnres_count"


@dataclass
class Places:
    """regions: of nodes that are computed again; marks: of nodes."""

    regions: dict[Node, Region] = field(default_factory=dict)
    marks: dict[Node, frozenset[Mark]] = field(default_factory=dict)

    def mark(self, mark: Mark, *nodes: Node) -> None:
        """Give a mark to some nodes."""
        for node in nodes:
            self.marks[node] = self.marks.get(node, frozenset()) | {mark}

    @contextlib.contextmanager
    def placed(self, graph: AnalysedGraph) -> Iterator[None]:
        """Regions and marks on the nodes of a graph; afterwards it is as it was."""
        nodes = list(graph.captured.gm.graph.nodes)
        before = {node: region_of(node) for node in nodes}
        try:
            for node in nodes:
                put_in_region(node, self.regions.get(node))
            for node, marks in self.marks.items():
                node.meta[MARK] = marks
            yield
        finally:
            for node in nodes:
                put_in_region(node, before[node])
                node.meta.pop(MARK, None)


@dataclass(frozen=True)
class Branch:
    """One sublayer. write: node that it adds to the stream; inputs: outputs of norms that it takes, or the state that
    it reads where no norm is found; inner: its nodes; module: its path.
    """

    write: Node
    inputs: tuple[Node, ...]
    inner: tuple[Node, ...]
    module: str


def layers_of(plan: Plan) -> tuple[str, ...]:
    """Paths of the layers of all streams.

    Raises:
        ParallelError: no module holds a layer of some stream.
    """
    found: list[str] = []
    for stream in plan.streams:
        paths = layer_paths(stream)
        if not paths:
            raise ParallelError(
                f"no module holds a layer of stream {stream.name}, its reads and its writes, so no layer can be "
                "checkpointed or sharded by itself: call each layer as a module of its own, or ask for "
                "checkpoint='branch'."
            )
        found.extend(paths)
    return tuple(dict.fromkeys(found))


def layer_regions(graph: AnalysedGraph) -> dict[Node, Region]:
    """One region for each call of a layer."""
    paths = set(layers_of(graph.analysis.plan))
    calls: dict[str, Region] = {}
    placed = {}
    for node in graph.captured.gm.graph.nodes:
        if node.op in _NO_CALLS:
            continue
        for call, (path, _) in (node.meta.get("nn_module_stack") or {}).items():
            if provenance.relative_path(path) in paths:
                placed[node] = calls.setdefault(call, Region(len(calls), _OPTIONS))
                break
    return placed


def branch_regions(branches: tuple[Branch, ...]) -> dict[Node, Region]:
    """One region for each sublayer; what several take stands in the first."""
    placed: dict[Node, Region] = {}
    for number, branch in enumerate(branches):
        region = Region(number, _OPTIONS)
        for node in branch.inner:
            placed.setdefault(node, region)
    return placed


def norms_of(graph: AnalysedGraph) -> Mapping[Node, tuple[Norm | None, tuple[Node, ...]]]:
    """Of each node that reads a state, the norm that it begins, if it is one, and the states that the norm reads."""
    analysis, nodes = graph.analysis, graph.analysis.trace.nodes
    found: dict[Node, tuple[Norm | None, tuple[Node, ...]]] = {}
    for stream in analysis.stream_nodes:
        for group in stream.reads:
            readers = [nodes[index] for _, index in group.uses]
            states = [_argument(graph, value, index) for value, index in group.uses]
            norm = norm_of_readers(states[0], readers, analysis.plan)
            is_norm = isinstance(norm, Norm) and set(readers) <= set(norm.inner)
            for reader in readers:
                found[reader] = (norm if is_norm else None, tuple(states))  # type: ignore[assignment]
    return found


def branches_of(graph: AnalysedGraph) -> tuple[Branch, ...]:
    """The sublayers of a graph, in the order in which they are added."""
    nodes = graph.analysis.trace.nodes
    order = {node: index for index, node in enumerate(nodes)}
    norms = norms_of(graph)
    begins = {reader: None if norm is None else norm.output for reader, (norm, _) in norms.items()}
    outputs = {output for output in begins.values() if output is not None}
    # What is neither a norm's output nor behind one belongs to no branch: embeddings, masks, rotations.
    behind: set[Node] = set()
    for node in nodes:
        if any(given in behind or given in outputs for given in node.all_input_nodes) or (
            node in begins and begins[node] is None
        ):
            behind.add(node)
    on_stream = _on_stream(graph.analysis.stream_nodes, nodes)
    found = []
    for stream, planned in zip(graph.analysis.stream_nodes, graph.analysis.plan.streams, strict=True):
        steps = [step for step in stream.steps if isinstance(step, WriteNode)]
        for step, write in zip(steps, planned.writes, strict=True):
            inner = _ancestors(step.branch, behind - on_stream - outputs)
            given = {one for node in inner for one in node.all_input_nodes}
            unnormed = [state for node in inner if node in begins and begins[node] is None for state in norms[node][1]]
            inputs = sorted({*(given & outputs), *unnormed}, key=order.__getitem__)
            found.append(Branch(step.branch, tuple(inputs), tuple(sorted(inner, key=order.__getitem__)), write.module))
    return tuple(sorted(found, key=lambda branch: order[branch.write]))


def last_product(graph: AnalysedGraph, branch: Branch) -> Node:
    """What tensor-parallel ranks sum of a branch: its last matrix product, or what joins several of them.

    Args:
        graph: that holds it.
        branch: one of its sublayers.
    """
    trace, inner, node = graph.analysis.trace, set(branch.inner), branch.write
    index = {one: number for number, one in enumerate(trace.nodes)}
    while not any(flop_formula(trace.ops[op].target) for op in trace.node_ops[index[node]]):
        given = [one for one in node.all_input_nodes if one in inner]
        if len(given) != 1:
            return node
        node = given[0]
    return node


def _on_stream(streams: tuple[StreamNodes, ...], nodes: Sequence[Node]) -> set[Node]:
    return {nodes[index] for stream in streams for index in (stream.root, *(step.node for step in stream.steps))}


def _ancestors(end: Node, within: set[Node]) -> set[Node]:
    found = {end} & within
    pending = list(found)
    while pending:
        for given in pending.pop().all_input_nodes:
            if given in within and given not in found:
                found.add(given)
                pending.append(given)
    return found


def _argument(graph: AnalysedGraph, value: int, index: int) -> Node:
    given = graph.analysis.trace.node_inputs[index]
    return next(argument for argument, number in given.items() if number == value)
