"""From analysed graphs and what the passes made of them to the facts of a model."""

from __future__ import annotations

import importlib.metadata
import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from torch.fx import GraphModule, Node

from attnres_compile.capture.analysis import AnalysedGraph
from attnres_compile.capture.capture import Capture
from attnres_compile.compile.levels import ModelGraph
from attnres_compile.inspection.facts.borders import with_borders
from attnres_compile.inspection.facts.facts import AddedParameter, GraphBreak, Inspection, Kernel, Site, StreamFacts
from attnres_compile.inspection.facts.kernels import kernels_of
from attnres_kernels.definition import scheduled
from attnres_passes.analyses.stream_nodes import StreamNodes, WriteNode
from attnres_passes.ir import provenance
from attnres_passes.ir.annotations import Annotation, annotation_of
from attnres_passes.ir.levels import OWN_LOGITS_READS, SCHEDULED_READS, is_depth_attention
from attnres_passes.ir.plan import Plan, Stream
from attnres_passes.ir.read_id import ReadId
from attnres_passes.ir.read_parameters import forms_of_read
from attnres_passes.ir.text import tensor_text
from attnres_passes.pipeline import GraphLevels

BREAK_FIX = (
    "take that line out of the forward, or out of the part between the root and the last norm; "
    "torch.compile(model, fullgraph=True) shows the stack"
)
DECAY = "0 (group 'attnres')"
"""How ``param_groups`` decays the added parameters."""

_DIRECT = (scheduled.direct_read, scheduled.fused_direct_read, *OWN_LOGITS_READS)
_PACKAGES = ("attnres-compile", "torch", "triton", "transformers")


def inspection_of(
    plan: Plan, graphs: Sequence[ModelGraph], breaks: tuple[GraphBreak, ...], parts: Sequence[str] = ()
) -> Inspection:
    """The facts of a model.

    Args:
        plan: of all of it, with the streams in the order of the graphs.
        graphs: in the order they run.
        breaks: between them.
        parts: paths of the modules that are compiled by themselves.
    """
    streams: list[StreamFacts] = []
    kernels: list[Kernel] = []
    for graph in graphs:
        if graph.levels is not None:
            of_graph = plan.streams[len(streams) : len(streams) + len(graph.analysed.analysis.plan.streams)]
            found = tuple(_streams(of_graph, graph.analysed, graph.levels, parts))
            kernels.extend(kernels_of(graph.levels, found))
            streams.extend(found)
    nodes: Counter[str] = Counter()
    for graph in graphs:
        nodes.update({level.value: len(gm.graph.nodes) for level, gm in graph.by_level().items()})
    levels = [graph.levels for graph in graphs if graph.levels is not None]
    return Inspection(
        plan,
        tuple(streams),
        breaks,
        tuple(_added(plan)),
        tuple(kernels),
        "; ".join(dict.fromkeys(one.bound_text() for one in levels)),
        "\n\n".join(one.schedule_text() for one in levels),
        dict(nodes),
        _environment(graphs),
    )


def breaks_of(captured: Capture, cuts: str = "") -> tuple[GraphBreak, ...]:
    """Where the graphs of a model end before it does.

    Args:
        captured: all graphs of the model.
        cuts: the stream that the first break cuts, if any.
    """
    places = dict.fromkeys((end.source, end.reason) for end in (graph.end for graph in captured.graphs) if end.is_break)
    if captured.break_source and captured.break_source not in [source for source, _ in places]:
        places = dict.fromkeys([(captured.break_source, captured.break_reason), *places])
    return tuple(
        GraphBreak(source, reason, cuts if index == 0 else "", BREAK_FIX)
        for index, (source, reason) in enumerate(places)
    )


def _streams(
    planned: Sequence[Stream], graph: AnalysedGraph, levels: GraphLevels, parts: Sequence[str]
) -> Iterator[StreamFacts]:
    annotations = {
        annotation.read: (name, annotation)
        for name, annotation in _scheduled_reads(levels.scheduled.gm)
        if annotation.read is not None
    }
    stages = _stages_of_writes(levels.rewritten)
    trace = graph.analysis.trace
    for index, (stream, nodes) in enumerate(zip(planned, graph.analysis.stream_nodes, strict=True)):
        root = trace.nodes[nodes.root]
        value = trace.values[nodes.value]
        yield StreamFacts(
            stream.name,
            stream.width,
            str(value.dtype).removeprefix("torch."),
            tensor_text(value.shape, value.dtype),
            stream.block_size,
            stream.num_blocks,
            len(stream.writes),
            len(stream.reads),
            provenance.module_path(root) or str(root.name),
            provenance.source_line(root),
            tuple(
                with_borders(
                    tuple(_sites(index, stream, nodes, graph, annotations, stages)),
                    tuple(_nodes_of_sites(stream, nodes, graph)),
                    parts,
                    stream.block_size,
                )
            ),
        )


def _scheduled_reads(gm: GraphModule) -> Iterator[tuple[str, Annotation]]:
    """How each read of the plan is computed, with its annotation."""
    for node in gm.graph.nodes:
        is_definition = is_depth_attention(node)
        if is_definition or node.target in SCHEDULED_READS:
            annotation = annotation_of(node)
            assert annotation is not None
            yield "naive" if is_definition else "direct" if node.target in _DIRECT else "two_phase", annotation


def _stages_of_writes(gm: GraphModule) -> dict[tuple[int, int | None], int | None]:
    """The pipeline stage of each write, by stream and number; None without stages."""
    annotations = [one for one in map(annotation_of, gm.graph.nodes) if one is not None and one.kind == "write"]
    return {(annotation.stream, annotation.sublayer): annotation.stage for annotation in annotations}


def _sites(
    index: int,
    stream: Stream,
    nodes: StreamNodes,
    graph: AnalysedGraph,
    annotations: Mapping[ReadId, tuple[str, Annotation]],
    stages: Mapping[tuple[int, int | None], int | None],
) -> Iterator[Site]:
    """Reads of the root, then each write and the reads of the state that it makes."""
    values = graph.analysis.trace.values
    written = [values[step.after] for step in nodes.steps if isinstance(step, WriteNode)]
    reads: dict[int, list[int]] = {}
    for k, read in enumerate(stream.reads):
        reads.setdefault(read.state, []).append(k)
    for state in range(len(stream.writes) + 1):
        if state:
            write, value = stream.writes[state - 1], written[state - 1]
            shape, stage = tensor_text(value.shape, value.dtype), stages.get((index, state))
            yield Site("write", write.module, write.source, write.block, state, shape, stage=stage)
        for k in reads.get(state, ()):
            read, value = stream.reads[k], values[nodes.reads[k].uses[0][0]]
            schedule, annotation = annotations.get(ReadId(index, k), (None, None))
            yield Site(
                "read",
                read.module,
                read.source,
                read.block,
                state,
                tensor_text(value.shape, value.dtype),
                read.num_sources,
                read.normed,
                schedule,
                annotation.group if annotation else None,
                annotation.stage if annotation else None,
            )


def _nodes_of_sites(stream: Stream, nodes: StreamNodes, graph: AnalysedGraph) -> Iterator[Node]:
    """The node that reads or writes at each site."""
    of_graph = graph.analysis.trace.nodes
    writes = [step.node for step in nodes.steps if isinstance(step, WriteNode)]
    for state in range(len(stream.writes) + 1):
        if state:
            yield of_graph[writes[state - 1]]
        for read, group in zip(stream.reads, nodes.reads, strict=True):
            if read.state == state:
                yield of_graph[group.uses[0][1]]


def _added(plan: Plan) -> Iterator[AddedParameter]:
    for index, stream in enumerate(plan.streams):
        count = len(stream.parametrized_reads)
        if count:
            reads = f"0-{count - 1}" if count > 1 else "0"
            for form in forms_of_read(plan.config.mechanism, stream.width):
                path = f"attnres.streams.{index}.reads.{reads}.{form.path}"
                yield AddedParameter(path, form.shape, count, form.first, DECAY)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _environment(graphs: Sequence[ModelGraph]) -> dict[str, str]:
    versions = {name: version for name in _PACKAGES if (version := _version(name)) is not None}
    devices = dict.fromkeys(
        str(value.device) for graph in graphs for value in graph.analysed.captured.inputs if hasattr(value, "device")
    )
    system = f"{platform.system()} {platform.machine()}"
    return {**versions, "python": platform.python_version(), "system": system, "device": ", ".join(devices) or "cpu"}
