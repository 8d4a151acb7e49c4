"""The levels of the graph and, for each, the rules that a graph of that level keeps.

One row per rule: what it says, and a function that yields the nodes that break it. Checked at both ends of every
compilation, and between all passes in tests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

import torch
from torch.fx import GraphModule, Node

import attnres_kernels
import attnres_kernels.operators  # defines the operators
from attnres_kernels.definition import scheduled
from attnres_kernels.errors import AttnResError
from attnres_passes.ir import provenance
from attnres_passes.ir.annotations import annotation_of, read_of
from attnres_passes.ir.plan import Plan, Read
from attnres_passes.ir.read_id import ReadId

OWN_LOGITS_READS = (scheduled.own_logits_read, scheduled.fused_own_logits_read)
"""Reads that make the logits of their sources themselves."""
FUSED = (scheduled.fused_merge, scheduled.fused_direct_read, scheduled.fused_own_logits_read)
SCHEDULED_READS = (scheduled.merge, scheduled.direct_read, scheduled.own_logits_read, *FUSED)
"""What a read is at the scheduled level."""


class Level(Enum):
    """Where a graph is between Dynamo and the inner compiler."""

    CAPTURED = "captured"
    REWRITTEN = "rewritten"
    SCHEDULED = "scheduled"
    LOWERED = "lowered"


class LevelError(AttnResError):
    """A graph breaks a rule of its level: a fault of a pass, never of the user's model."""


Reads = Mapping[ReadId, Read]
Broken = tuple[Node | None, str]


@dataclass(frozen=True)
class LevelRule:
    """A rule that graphs of a level keep.

    says: the rule in words; broken_by: from a graph, and the depth attentions that it has to hold, to the nodes that
    break the rule, with what is wrong there.
    """

    says: str
    broken_by: Callable[[GraphModule, Reads], Iterator[Broken]]


def check_level(gm: GraphModule, level: Level, plan: Plan, only: Collection[ReadId] | None = None) -> None:
    """Check every rule of a level.

    Args:
        gm: a graph of that level.
        level: which rules.
        plan: of the whole model.
        only: the reads that the graph holds, if it is a part of the model's, as a pipeline chunk is.

    Raises:
        LevelError: for the first rule that is broken.
    """
    reads = plan.depth_reads
    reads = reads if only is None else {read: reads[read] for read in only}
    gm.graph.lint()
    for rule in RULES[level]:
        for node, wrong in rule.broken_by(gm, reads):
            where = "" if node is None else f" at {node.format_node()} ({provenance.source_line(node)})"
            raise LevelError(
                f"{level.value} graph: {rule.says}; {wrong}{where}. Report this with the files that ATTNRES_DUMP=dir "
                "writes."
            )


def is_depth_attention(node: Node) -> bool:
    """Whether a node is a read of the rewritten level, by the paper's mechanism or by another."""
    return node.op == "call_function" and (
        node.target is torch.ops.attnres.depth_attention.default or is_variant_attention(node)
    )


def is_variant_attention(node: Node) -> bool:
    """Whether a node is a read on sources and parameters, of a mechanism that is computed by its definition."""
    return node.op == "call_function" and node.target is torch.ops.attnres.variant_attention.default


def is_ours(node: Node) -> bool:
    """Whether a node calls an operator or a function of attnres_kernels."""
    if node.op != "call_function":
        return False
    module = getattr(node.target, "__module__", "") or ""
    return module.split(".")[0] == attnres_kernels.__name__ or str(node.target).startswith("attnres.")


def _no_nodes_of_ours(gm: GraphModule, reads: Reads) -> Iterator[Broken]:
    for node in gm.graph.nodes:
        if is_ours(node) or annotation_of(node) is not None:
            yield node, "a node of the rewrite is in it"


def _every_node_of_ours_is_annotated(gm: GraphModule, reads: Reads) -> Iterator[Broken]:
    for node in gm.graph.nodes:
        if is_ours(node) and annotation_of(node) is None:
            yield node, "this one has no metadata"


def _reads_match_the_plan(gm: GraphModule, reads: Reads) -> Iterator[Broken]:
    nodes = [node for node in gm.graph.nodes if is_depth_attention(node)]
    found = {read_of(node): node for node in nodes}
    if len(found) != len(nodes):
        yield None, "two reads have the same place in the plan"
    for read in reads.keys() ^ found.keys():
        yield found.get(read), f"read {read} is in one of the two only"
    for read in reads.keys() & found.keys():
        sources = found[read].args[0]
        assert isinstance(sources, (list, tuple))
        if len(sources) != reads[read].num_sources:
            yield found[read], f"{len(sources)} sources where the plan has {reads[read].num_sources}"


def _scheduled_reads_match_the_plan(gm: GraphModule, reads: Reads) -> Iterator[Broken]:
    nodes = [node for node in gm.graph.nodes if node.target in SCHEDULED_READS or is_depth_attention(node)]
    found = [read_of(node) for node in nodes]
    if len(found) != len(set(found)) or set(found) != reads.keys():
        yield None, f"{len(found)} reads where the plan has {len(reads)}"


def _groups_are_whole(gm: GraphModule, reads: Reads) -> Iterator[Broken]:
    for node in gm.graph.nodes:
        if node.target is scheduled.inter_block:
            merged = {
                user
                for item in node.users
                for user in item.users
                if user.target in (scheduled.merge, scheduled.fused_merge)
            }
            if len(merged) != node.args[3]:
                yield node, f"it is made for {node.args[3]} reads and {len(merged)} merge with it"


def _nothing_scheduled_left(gm: GraphModule, reads: Reads) -> Iterator[Broken]:
    for node in gm.graph.nodes:
        if node.target in (scheduled.inter_block, scheduled.complete_block, *FUSED):
            yield node, "this one is left"


def _keys_feed_reads(gm: GraphModule, reads: Reads) -> Iterator[Broken]:
    for node in gm.graph.nodes:
        if is_variant_attention(node):
            given = node.args[1]
            assert isinstance(given, (list, tuple))
            if any(not isinstance(one, Node) or not _has_kind(one, "parameter") for one in given):
                yield node, "it reads something else than its parameters"
        elif is_depth_attention(node):
            key = node.args[1]
            if not isinstance(key, Node) or not _has_kind(key, "key"):
                yield node, "its key vector is something else"


def _parameters_come_last(gm: GraphModule, reads: Reads) -> Iterator[Broken]:
    placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
    added = [_has_kind(node, "parameter") for node in placeholders]
    of_read = Counter(read_of(node) for node, ours in zip(placeholders, added, strict=True) if ours)
    # How many a read has is the mechanism's; all reads have as many.
    expected = max(of_read.values(), default=0) * len(reads)
    if sum(added) != expected or not all(added[len(added) - expected :]):
        yield None, f"{sum(added)} of {len(added)} placeholders are ours where the plan has {expected}"


def _no_depth_attention_left(gm: GraphModule, reads: Reads) -> Iterator[Broken]:
    for node in gm.graph.nodes:
        if is_depth_attention(node):
            yield node, "this one is left"


def _statistics_feed_nothing(gm: GraphModule, reads: Reads) -> Iterator[Broken]:
    for node in gm.graph.nodes:
        if _has_kind(node, "statistic"):
            for user in node.users:
                if user.op != "output" and not _has_kind(user, "statistic"):
                    yield user, f"this one reads {node.name}"


def _has_kind(node: Node, kind: str) -> bool:
    annotation = annotation_of(node)
    return annotation is not None and annotation.kind == kind


_COMMON = (
    LevelRule("the parameters of the reads are its last placeholders", _parameters_come_last),
    LevelRule("every node of ours carries metadata", _every_node_of_ours_is_annotated),
    LevelRule("what is recorded of it goes to the output and nowhere else", _statistics_feed_nothing),
)

RULES: dict[Level, tuple[LevelRule, ...]] = {
    Level.CAPTURED: (LevelRule("it is what Dynamo captured", _no_nodes_of_ours),),
    Level.REWRITTEN: (
        *_COMMON,
        LevelRule("it has one depth attention per read of the plan", _reads_match_the_plan),
        LevelRule("every depth attention reads a key vector", _keys_feed_reads),
    ),
    Level.SCHEDULED: (
        *_COMMON,
        LevelRule("it has one scheduled read per read of the plan", _scheduled_reads_match_the_plan),
        LevelRule("every read of a group merges with its phase 1", _groups_are_whole),
    ),
    Level.LOWERED: (
        *_COMMON,
        LevelRule("every phase 1 and every fused read is bound to an implementation", _nothing_scheduled_left),
        LevelRule("no depth attention is left to lower", _no_depth_attention_left),
    ),
}
