"""Pass: rewritten -> lowered. Each depth attention is bound to the functions of a schedule.

Before::

    key_0 = key_vector(query_0, key_weight_0)
    read_0 = torch.ops.attnres.depth_attention([x, block_1, partial], key_0, 1e-06, 'mean')

After, under ``two_phase`` (Algorithm 1 of the paper)::

    keys = key_matrix([query_0, ..], [key_weight_0, ..], [reads of each block])
    logits_x = source_logits(x, matrix, 0, 1e-06)                      # logits first: for all later reads at once
    phase_1 = inter_block([x, block_1], [logits_x, logits_1], ..)      # once per block
    read_0 = merge(inter_0, lse_0, partial, ..)                        # once per read

The graph given is not changed; the inner compiler traces through the functions.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.fx import GraphModule, Node

from attnres_kernels.depth_attention import direct, forms, two_phase
from attnres_passes import torch_compat
from attnres_passes.config import AttnResConfig
from attnres_passes.levels import is_depth_attention
from attnres_passes.plan import Plan
from attnres_passes.roles import Role, role_of, set_role


@dataclass(frozen=True)
class _Read:
    """A depth attention node taken apart. completed: the sources but the open partial sum."""

    node: Node
    role: Role
    completed: tuple[Node, ...]
    partial: Node | None
    query: Node
    weight: Node


@dataclass
class _Segment:
    """Consecutive reads of a stream, each of whose completed sources extend those of the read before.

    Carrying a stream through a cast or a permutation replaces all its sources, and begins another segment.
    """

    reads: list[_Read] = field(default_factory=list)

    def groups(self) -> list[list[_Read]]:
        """Reads of one block: those with the same completed sources."""
        groups: list[list[_Read]] = []
        for read in self.reads:
            if groups and groups[-1][0].completed == read.completed:
                groups[-1].append(read)
            else:
                groups.append([read])
        return groups


def lower(rewritten: GraphModule, plan: Plan, config: AttnResConfig) -> GraphModule:
    """A copy of ``rewritten`` with every depth attention bound to ``config.schedule``; "auto" is chosen per stream."""
    gm = torch_compat.copied(rewritten)
    for index, stream in enumerate(plan.streams):
        reads = [_taken_apart(node, plan) for node in gm.graph.nodes if _is_read_of(node, index)]
        schedule = config.schedule
        if schedule == "auto":
            most = max((read.num_sources for read in stream.reads), default=1)
            schedule = forms.automatic_schedule(stream.block_size, most)  # type: ignore[assignment]
        for segment in _segments(reads):
            _LOWERINGS[schedule](segment, config)
        for read in reads:
            read.node.graph.erase_node(read.node)
    for node in reversed(list(gm.graph.nodes)):
        role = role_of(node)
        if role is not None and role.kind == "key" and not node.users:
            gm.graph.erase_node(node)
    gm.recompile()
    return gm


def _is_read_of(node: Node, stream: int) -> bool:
    role = role_of(node)
    return is_depth_attention(node) and role is not None and role.stream == stream


def _taken_apart(node: Node, plan: Plan) -> _Read:
    role = role_of(node)
    assert role is not None
    assert role.read is not None
    stream = plan.streams[role.stream]
    sources, key = node.args[0], node.args[1]
    assert isinstance(sources, (list, tuple))
    assert isinstance(key, Node)
    nodes = tuple(source for source in sources if isinstance(source, Node))
    is_open = stream.reads[role.read].state % stream.block_size != 0
    completed, partial = (nodes[:-1], nodes[-1]) if is_open else (nodes, None)
    query, weight = key.args
    assert isinstance(query, Node)
    assert isinstance(weight, Node)
    return _Read(node, role, completed, partial, query, weight)


def _segments(reads: Sequence[_Read]) -> list[_Segment]:
    segments: list[_Segment] = []
    for read in reads:
        previous = segments[-1].reads[-1].completed if segments else None
        if previous is None or read.completed[: len(previous)] != previous:
            segments.append(_Segment())
        segments[-1].reads.append(read)
    return segments


class _Emitter:
    """Inserts calls before a node, each with the role of the read it is made for."""

    def __init__(self, before: Node, role: Role) -> None:
        self.before, self.role = before, role

    def call(self, function: Callable[..., Any], *args: Any) -> Node:
        with self.before.graph.inserting_before(self.before):
            node = self.before.graph.call_function(function, args)
        for name in ("stack_trace", "nn_module_stack"):
            if name in self.before.meta:
                node.meta[name] = self.before.meta[name]
        return set_role(node, Role("schedule", self.role.stream, block=self.role.block))

    def items(self, node: Node, count: int) -> list[Node]:
        return [self.call(operator.getitem, node, index) for index in range(count)]

    def replace(self, function: Callable[..., Any], *args: Any) -> None:
        """Put the call in place of the read itself."""
        node = self.call(function, *args)
        set_role(node, self.role)
        if "example_value" in self.before.meta:
            node.meta["example_value"] = self.before.meta["example_value"]
        self.before.replace_all_uses_with(node)


def _naive(segment: _Segment, config: AttnResConfig) -> None:
    for read in segment.reads:
        sources = [*read.completed, *(() if read.partial is None else (read.partial,))]
        emit = _Emitter(read.node, read.role)
        emit.replace(forms.naive_read, sources, read.query, read.weight, config.eps, config.scale)


def _direct(segment: _Segment, config: AttnResConfig) -> None:
    first = _Emitter(segment.reads[0].node, segment.reads[0].role)
    queries, weights = _parameters(segment)
    matrix = first.call(direct.key_matrix, queries, weights)
    logits: list[Node] = []
    for number, read in enumerate(segment.reads):
        emit = _Emitter(read.node, read.role)
        for source in read.completed[len(logits) :]:
            logits.append(emit.call(direct.source_logits, source, matrix, number, config.eps))
        sources = list(read.completed)
        emit.replace(direct.read, sources, list(logits), read.partial, matrix, number, config.scale, config.eps)


def _two_phase(segment: _Segment, config: AttnResConfig) -> None:
    first = _Emitter(segment.reads[0].node, segment.reads[0].role)
    groups, total = segment.groups(), len(segment.reads)
    queries, weights = _parameters(segment)
    keys = first.call(two_phase.key_matrix, queries, weights, [len(group) for group in groups])
    matrix, block_keys, read_keys = first.items(keys, 3)
    logits: list[Node] = []
    sources: list[Node] = []
    number = 0
    for index, group in enumerate(groups):
        emit = _Emitter(group[0].node, group[0].role)
        for source in group[0].completed[len(sources) :]:
            sources.append(source)
            logits.append(emit.call(two_phase.source_logits, source, matrix, number, config.eps))
        block_key = emit.call(operator.getitem, block_keys, index)
        phase_1 = emit.call(two_phase.inter_block, list(sources), list(logits), block_key, number, total, config.eps)
        inter, log_sums, passed_on = emit.items(phase_1, 3)
        given = list(sources)
        for position, read in enumerate(group):
            _merge(read, (inter, log_sums, read_keys), position, number, (given, list(logits)), total, config)
            number += 1
        sources = emit.items(passed_on, len(sources)) if index + 1 < len(groups) else sources


def _merge(
    read: _Read,
    phase_1: tuple[Node, Node, Node],
    position: int,
    number: int,
    completed: tuple[list[Node], list[Node]],
    total: int,
    config: AttnResConfig,
) -> None:
    """Phase 2 of one read, the ``position``-th of its block and the ``number``-th of its segment."""
    inter, log_sums, read_keys = phase_1
    sources, logits = completed
    emit = _Emitter(read.node, read.role)
    output = emit.call(operator.getitem, inter, position)
    if read.partial is None:
        emit.replace(two_phase.close, output, sources[0], len(sources), config.scale)
        return
    log_sum = emit.call(operator.getitem, log_sums, position)
    key = emit.call(operator.getitem, read_keys, number)
    emit.replace(
        two_phase.merge,
        output,
        log_sum,
        read.partial,
        key,
        sources,
        logits,
        number,
        total,
        config.scale,
        config.eps,
    )


def _parameters(segment: _Segment) -> tuple[list[Node], list[Node]]:
    return [read.query for read in segment.reads], [read.weight for read in segment.reads]


_LOWERINGS: dict[str, Callable[[_Segment, AttnResConfig], None]] = {
    "naive": _naive,
    "direct": _direct,
    "two_phase": _two_phase,
}
