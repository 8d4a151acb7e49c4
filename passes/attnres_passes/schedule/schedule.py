"""Pass: rewritten -> scheduled. Reads are grouped; each group shares one pass over completed blocks, or none.

Before::

    key_0 = key_vector(query_0, key_weight_0)
    read_0 = torch.ops.attnres.depth_attention([x, block_1, partial], key_0, 1e-06, 'mean')

After (Algorithm 1 of the paper, with logits first)::

    keys = key_matrix([query_0, ..], [key_weight_0, ..])
    logits_x = source_logits(x, keys, 0, 1e-06)                        # for all later reads at once
    inter = inter_block([x, block_1], [logits_x, logits_1], 0, 3, 24)  # once per group
    read_0 = merge(x, inter[0], inter[3], [], [], partial, keys, ..)   # once per read

Groups are cut by what they move (``group_reads``); under ``direct`` there is no ``inter_block``. Where nothing is
differentiated and tokens are few, a read makes its own logits (``own_logits_read``). With ``naive``, and for mechanisms
that are computed by their definition, the graph stays as it is. The graph given is not changed. All nodes are plain
differentiable torch (``scheduled``), which computes what the rewritten graph does.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from torch.fx import GraphModule, Node

from attnres_kernels.definition import cost, scheduled
from attnres_passes.ir.annotations import Annotation, annotate, annotation_of, read_of
from attnres_passes.ir.levels import is_depth_attention
from attnres_passes.ir.plan import Plan
from attnres_passes.ir.regions import put_in_region, region_of
from attnres_passes.schedule.group_reads import Group, Inference, ReadGroups, group_reads, group_reads_on_cpu
from attnres_passes.schedule.provider import Provider, ProviderChoice
from attnres_passes.schedule.scheduled_nodes import call
from attnres_passes.torch_private.example_values import example_value, size_hint
from attnres_passes.torch_private.graph_copies import copied


@dataclass(frozen=True)
class Scheduled:
    """The scheduled level. read_groups: per stream of the plan, one for each layout of it."""

    gm: GraphModule
    read_groups: tuple[tuple[ReadGroups, ...], ...]

    def __str__(self) -> str:
        return "\n\n".join(str(groups) for of_stream in self.read_groups for groups in of_stream)


def schedule(rewritten: GraphModule, plan: Plan, choice: ProviderChoice) -> Scheduled:
    """A copy of a rewritten graph with its reads grouped as ``plan.config.schedule`` says.

    Args:
        rewritten: of a model, or of a part of one.
        plan: of the whole model.
        choice: what the reads will be bound to. For kernels, "auto" looks for the cheapest cut; for torch calls, it is
            the cut by blocks, "two_phase", or on a CPU, where nothing is differentiated and tokens are few, "direct".
    """
    gm = copied(rewritten)
    if plan.config.by_definition:
        return Scheduled(gm, ())
    read_groups = []
    for index in range(len(plan.streams)):
        reads = [_taken_apart(node, plan) for node in gm.graph.nodes if _is_read_of(node, index)]
        of_stream = []
        for segment in _segments(reads):
            found = _groups_of(segment, plan, choice)
            _Segment(segment, plan).emit(found)
            of_stream.append(found)
        read_groups.append(tuple(of_stream))
        for read in reads:
            gm.graph.erase_node(read.node)
    for node in reversed(list(gm.graph.nodes)):
        annotation = annotation_of(node)
        if annotation is not None and annotation.kind == "key" and not node.users:
            gm.graph.erase_node(node)
    gm.recompile()
    return Scheduled(gm, tuple(read_groups))


@dataclass(frozen=True)
class _Read:
    """A depth attention node taken apart. completed: the sources but the open partial sum."""

    node: Node
    annotation: Annotation
    completed: tuple[Node, ...]
    partial: Node | None
    query: Node
    weight: Node


def _is_read_of(node: Node, stream: int) -> bool:
    annotation = annotation_of(node)
    return is_depth_attention(node) and annotation is not None and annotation.stream == stream


def _taken_apart(node: Node, plan: Plan) -> _Read:
    read_id, annotation = read_of(node), annotation_of(node)
    assert annotation is not None
    stream = plan.streams[read_id.stream]
    sources, key = node.args[0], node.args[1]
    assert isinstance(sources, (list, tuple))
    assert isinstance(key, Node)
    nodes = tuple(source for source in sources if isinstance(source, Node))
    is_open = stream.reads[read_id.index].state % stream.block_size != 0
    completed, partial = (nodes[:-1], nodes[-1]) if is_open else (nodes, None)
    query, weight = key.args
    assert isinstance(query, Node)
    assert isinstance(weight, Node)
    return _Read(node, annotation, completed, partial, query, weight)


def _groups_of(segment: Sequence[_Read], plan: Plan, choice: ProviderChoice) -> ReadGroups:
    asked, runs = plan.config.schedule, _runs(segment)
    completed = [len(read.completed) for read in segment]
    value, tokens = example_value(segment[0].node), _tokens(segment[0])
    width = plan.streams[segment[0].annotation.stream].width
    if asked != "auto" or choice.provider is Provider.TRITON:
        inference = None
        if choice.most_with_own_logits and tokens is not None:
            inference = Inference(cost.launch(tokens, width, value.dtype.itemsize), choice.most_with_own_logits)
        return group_reads(completed, asked, choice.most_in_place, inference, runs)
    if tokens is None or choice.differentiates or value.device.type != "cpu":
        return group_reads(completed, "two_phase", choice.most_in_place, None, runs)
    return group_reads_on_cpu(completed, tokens, width, choice.most_in_place, runs)


def _tokens(read: _Read) -> int | None:
    """Tokens of a read, as far as they are known before the call."""
    value = example_value(read.node)
    return None if value is None else size_hint(math.prod(value.shape[:-1]))


def _segments(reads: Sequence[_Read]) -> list[list[_Read]]:
    """Consecutive reads each of whose completed sources extend those of the read before.

    Carrying a stream through a cast or a permutation replaces all its sources, and begins another segment.
    """
    segments: list[list[_Read]] = []
    for read in reads:
        previous = segments[-1][-1].completed if segments else None
        if previous is None or read.completed[: len(previous)] != previous:
            segments.append([])
        segments[-1].append(read)
    return segments


def _runs(segment: Sequence[_Read]) -> list[int]:
    """How many consecutive reads the backward computes again together, or keeps.

    What phase 1 made for a read in another region would be kept until that region is computed again.
    """
    return [len(list(run)) for _, run in groupby(segment, key=lambda read: region_of(read.node))]


@dataclass
class _Segment:
    """Emits the nodes of one segment, in the order of its reads. logits: of each completed block, as far as made."""

    reads: list[_Read]
    plan: Plan
    logits: list[Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        parameters = [read.query for read in self.reads], [read.weight for read in self.reads]
        self.keys = _call(self.reads[0], scheduled.key_matrix, *parameters, name="keys")
        # Made of parameters, and for the reads of all regions.
        put_in_region(self.keys, None)

    def emit(self, found: ReadGroups) -> None:
        for index, group in enumerate(found.groups):
            self._emit_group(index, group)
        if not self.keys.users:
            self.keys.graph.erase_node(self.keys)

    def _emit_group(self, index: int, group: Group) -> None:
        reads = self.reads[group.first : group.first + len(group.completed)]
        reads = [replace(read, annotation=replace(read.annotation, group=index)) for read in reads]
        inter: list[Node] = []
        if group.shared:
            self._make_logits(reads[0], group.first)
            sources, logits = list(reads[0].completed), list(self.logits)
            arguments = sources, logits, group.first, len(reads), len(self.reads)
            phase_1 = _call(reads[0], scheduled.inter_block, *arguments)
            names = [f"{kind}_{group.first + k}" for kind in ("inter", "log_sum") for k in range(len(reads))]
            inter = [_call(reads[0], operator.getitem, phase_1, k, name=name) for k, name in enumerate(names)]
        for place, read in enumerate(reads):
            of_phase_1 = (inter[place], inter[len(reads) + place]) if group.shared else ()
            node = (
                self._own_logits_read(read)
                if group.own_logits
                else self._read(read, group, group.first + place, of_phase_1)
            )
            annotate(node, read.annotation)
            if "example_value" in read.node.meta:
                node.meta["example_value"] = read.node.meta["example_value"]
            read.node.replace_all_uses_with(node)

    def _read(self, read: _Read, group: Group, number: int, of_phase_1: tuple[Node, ...]) -> Node:
        self._make_logits(read, number)
        in_place = slice(group.shared, len(read.completed))
        given = list(read.completed[in_place]), self.logits[in_place], read.partial, self.keys, number
        if group.shared:
            return _call(read, scheduled.merge, read.completed[0], *of_phase_1, *given, *self._form(read))
        return _call(read, scheduled.direct_read, *given, *self._form(read))

    def _own_logits_read(self, read: _Read) -> Node:
        sources = [*read.completed, *([] if read.partial is None else [read.partial])]
        return _call(read, scheduled.own_logits_read, sources, read.query, read.weight, *self._form(read))

    def _form(self, read: _Read) -> tuple[float, float]:
        """Factor and eps."""
        factor = float(len(read.node.args[0])) if self.plan.config.scale == "sum" else 1.0  # type: ignore[arg-type]
        return factor, self.plan.config.eps

    def _make_logits(self, read: _Read, number: int) -> None:
        """Logits of the blocks that were completed since the read before."""
        for source in read.completed[len(self.logits) :]:
            name = f"logits_{len(self.logits)}"
            arguments = source, self.keys, number, self.plan.config.eps
            self.logits.append(_call(read, scheduled.source_logits, *arguments, name=name))


def _call(read: _Read, function: Callable[..., Any], *args: Any, name: str | None = None) -> Node:
    return call(read.node, function, *args, annotation=read.annotation, name=name)
