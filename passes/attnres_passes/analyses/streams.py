"""Analysis: which candidates are residual streams that can be rewritten, and why the others are not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from torch.fx import Node

from attnres_passes.analyses import blocks
from attnres_passes.analyses.aten_trace import OPAQUE as OPAQUE_OP
from attnres_passes.analyses.aten_trace import AtenTrace
from attnres_passes.analyses.chains import Candidate, find_chains, is_matrix_product
from attnres_passes.analyses.reads import ReadGroup, StreamReads, find_reads, trunk_of
from attnres_passes.analyses.shared_reads import join_shared_reads
from attnres_passes.analyses.stream_nodes import NotReplaceable, StreamNodes, locate_stream
from attnres_passes.ir import provenance
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ir.plan import Decline, Plan, Read, Reason, Stream, Write, short_source
from attnres_passes.torch_private.operators import is_higher_order

FARTHEST_PRODUCT = 64
"""Operations looked back through, from a write, for the matrix product that names its sublayer."""


@dataclass(frozen=True)
class Analysis:
    """The analysed level: a plan, and where each of its streams is in the graph. sites: one per plan.streams."""

    plan: Plan
    stream_nodes: tuple[StreamNodes, ...]
    trace: AtenTrace


@dataclass(frozen=True)
class _Accepted:
    stream: Stream
    stream_nodes: StreamNodes


def find_streams(trace: AtenTrace, config: AttnResConfig) -> Analysis:
    """Judge every candidate of a trace. Changes nothing."""
    candidates = find_chains(trace)
    long = [candidate for candidate in candidates if len(candidate.additions) > 1]
    all_long_additions = frozenset(addition.op for candidate in long for addition in candidate.additions)
    accepted: list[_Accepted] = []
    declined: list[tuple[Candidate, Decline]] = []
    for candidate in candidates:
        own = frozenset(addition.op for addition in candidate.additions)
        reads = join_shared_reads(trace, candidate, find_reads(trace, candidate, all_long_additions - own))
        verdict = _judge(trace, candidate, reads, config)
        if isinstance(verdict, Decline):
            declined.append((candidate, verdict))
        else:
            accepted.append(verdict)
    accepted = _with_unique_names(accepted)
    accepted, unselected = _select(accepted, config)
    declines = (*_report(trace, declined, bool(accepted or unselected)), *unselected)
    plan = Plan(tuple(item.stream for item in accepted), declines, config)
    return Analysis(plan, tuple(item.stream_nodes for item in accepted), trace)


def _judge(trace: AtenTrace, candidate: Candidate, reads: StreamReads, config: AttnResConfig) -> _Accepted | Decline:
    reason = _reason_against(trace, candidate, reads, config)
    if reason is not None:
        return reason
    stream_nodes = locate_stream(trace, candidate, trunk_of(candidate), reads.groups)
    if isinstance(stream_nodes, NotReplaceable):
        message = f"{stream_nodes.message}; {_opaque_remedy(trace, stream_nodes.node)}"
        return _decline(trace, candidate, Reason.OPAQUE, message, stream_nodes.node)
    return _Accepted(_stream(trace, candidate, reads, config), stream_nodes)


def _opaque_remedy(trace: AtenTrace, node: int) -> str:
    if any(_is_hidden(op.target) for op in trace.ops if op.node == node):
        return "if the layers are under torch.utils.checkpoint, turn activation checkpointing off."
    return "write it as a plain addition of tensors that nothing else changes in place."


def _reason_against(
    trace: AtenTrace, candidate: Candidate, reads: StreamReads, config: AttnResConfig
) -> Decline | None:
    """The first reason that forbids a rewrite, from the most basic to the most particular."""
    if not all(trace.values[addition.after].is_floating for addition in candidate.additions):
        dtype = trace.values[candidate.additions[-1].after].dtype
        return _decline(
            trace,
            candidate,
            Reason.NON_FLOATING,
            f"the stream is {dtype}; give a model whose stream is floating point.",
        )
    if reads.channels_first is not None:
        return _decline(
            trace,
            candidate,
            Reason.CHANNELS_FIRST,
            "the features are not on the last axis (channels-first layout), where depth attention takes its norm; "
            "keep the stream channels-last.",
            trace.ops[reads.channels_first].node,
        )
    if len(candidate.additions) < 2:
        return _decline_short(trace, candidate, reads)
    if candidate.forks:
        return _decline(
            trace,
            candidate,
            Reason.FORKED,
            "two additions start from the same state, so that the stream has two continuations; norm the state "
            "before the one that is no sublayer of this stream.",
            trace.ops[candidate.forks[0]].node,
        )
    # The root has one source, so a read of it stays what it was.
    offending = [read for read in reads.groups if read.feeds_write and read.state > 0]
    if offending and not config.allow_unnormed:
        return _decline_unnormed(trace, candidate, reads.groups, offending)
    return None


def _decline_short(trace: AtenTrace, candidate: Candidate, reads: StreamReads) -> Decline:
    """One addition: PostNorm if the norm comes after it and not before, else a stream too short to have depth."""
    sum_is_normed = any(read.state == 1 and read.normed for read in reads.groups)
    root_is_normed = all(read.normed for read in reads.groups if read.state == 0)
    if sum_is_normed and not root_is_normed:
        return _decline(
            trace,
            candidate,
            Reason.POST_NORM,
            "the norm follows the addition and its output is the next residual (PostNorm), so there is no running "
            "sum to attend over; use the model's PreNorm variant.",
        )
    return _decline(
        trace,
        candidate,
        Reason.TOO_FEW_WRITES,
        "a single addition is fewer than the 2 writes that depth attention needs; leave it as it is, or give a model "
        "with more sublayers.",
    )


def _decline_unnormed(
    trace: AtenTrace, candidate: Candidate, reads: tuple[ReadGroup, ...], offending: list[ReadGroup]
) -> Decline:
    read = offending[0]
    reader = trace.nodes[read.uses[0][1]]
    where = provenance.module_path(reader) or "the model"
    lost = ""
    if read.lost_at is not None:
        op = trace.ops[read.lost_at]
        line = short_source(provenance.source_line(trace.nodes[op.node]))
        lost = f" (its scale is still felt in {op.name}, {line})"
    return _decline(
        trace,
        candidate,
        Reason.UNNORMED_READ,
        f"{len(offending)} of {len(reads)} reads of the stream feed a write without being normed, the first in "
        f"{where}{lost}; averaging over depth would change its scale. Norm the input of that sublayer, or pass "
        "allow_unnormed=True.",
        read.uses[0][1],
    )


def _decline(trace: AtenTrace, candidate: Candidate, reason: Reason, message: str, node: int | None = None) -> Decline:
    place = trace.nodes[trace.ops[candidate.additions[0].op].node if node is None else node]
    return Decline(
        reason,
        message,
        provenance.module_path(place),
        provenance.source_line(place),
        len(candidate.additions),
    )


def _stream(trace: AtenTrace, candidate: Candidate, reads: StreamReads, config: AttnResConfig) -> Stream:
    count = len(candidate.additions)
    size = blocks.block_size_for(count, config)
    writes = []
    for index, addition in enumerate(candidate.additions, start=1):
        node = trace.nodes[trace.ops[addition.op].node]
        module = _sublayer(trace, provenance.module_path(node), addition.branch)
        writes.append(Write(module, provenance.source_line(node), blocks.block_of_write(index, size)))
    found = tuple(
        Read(
            module=provenance.module_path(_reader(trace, read)),
            source=provenance.source_line(_reader(trace, read)),
            num_sources=blocks.sources_of_read(read.state, size),
            block=blocks.block_of_read(read.state, size),
            state=read.state,
            normed=read.normed,
        )
        for read in reads.groups
    )
    name = provenance.common_prefix([write.module for write in writes])
    width = trace.values[candidate.root].shape[-1]
    return Stream(name or "model", width, tuple(writes), found, size, blocks.num_blocks_for(count, size))


def _reader(trace: AtenTrace, read: ReadGroup) -> Node:
    """The node that reads; for a state that the graph returns, the node that made it."""
    value, user = read.uses[0]
    node = trace.nodes[user]
    return trace.nodes[trace.node_output.index(value)] if node.op == "output" else node


def _sublayer(trace: AtenTrace, add_module: str, branch: int) -> str:
    """The module of a write: where its last matrix product is, seen from the module that adds."""
    pending, nearest = [branch], None
    for _ in range(FARTHEST_PRODUCT):
        if not pending:
            break
        producer = trace.values[pending.pop(0)].producer
        if producer < 0:
            continue
        op = trace.ops[producer]
        nearest = op if nearest is None else nearest
        if is_matrix_product(op):
            nearest = op
            break
        pending.extend(op.inputs)
    if nearest is None:
        return add_module
    return provenance.sublayer_path(add_module, provenance.module_path(trace.nodes[nearest.node]))


def _with_unique_names(accepted: list[_Accepted]) -> list[_Accepted]:
    """Streams of one module are told apart by a number: ``encoder``, ``encoder.2``."""
    seen: Counter[str] = Counter()
    named = []
    for item in accepted:
        seen[item.stream.name] += 1
        number = seen[item.stream.name]
        name = item.stream.name if number == 1 else f"{item.stream.name}.{number}"
        named.append(_Accepted(replace(item.stream, name=name), item.stream_nodes))
    return named


def _select(accepted: list[_Accepted], config: AttnResConfig) -> tuple[list[_Accepted], tuple[Decline, ...]]:
    if config.streams is None:
        return accepted, ()
    chosen = [item for item in accepted if item.stream.name in config.streams]
    names = ", ".join(repr(item.stream.name) for item in accepted)
    declines = tuple(
        Decline(
            Reason.NOT_SELECTED,
            f"stream {item.stream.name!r} is not among streams={list(config.streams)!r}; the model has {names}.",
            item.stream.writes[0].module,
            item.stream.writes[0].source,
            len(item.stream.writes),
        )
        for item in accepted
        if item.stream.name not in config.streams
    )
    return chosen, declines


def _report(trace: AtenTrace, declined: list[tuple[Candidate, Decline]], found_streams: bool) -> tuple[Decline, ...]:
    """What a person should read: real streams one by one, single additions together by reason.

    Chains without a matrix product (polynomials, running sums) are no sublayers, and a single addition that is made
    again and again from one value (a mask added to the scores of every layer) is no stream; they are named only if
    there is nothing else to say.
    """
    relevant = [
        (candidate, decline)
        for candidate, decline in declined
        if candidate.has_product and (len(candidate.additions) > 1 or not candidate.forks)
    ]
    if not relevant and not found_streams:
        relevant = declined
    if not relevant and not found_streams:
        return (_no_residual(trace),)
    reported = [decline for candidate, decline in relevant if len(candidate.additions) > 1]
    singles: dict[Reason, list[Decline]] = {}
    for candidate, decline in relevant:
        if len(candidate.additions) == 1:
            singles.setdefault(decline.reason, []).append(decline)
    for members in singles.values():
        first = members[0]
        message = first.message if len(members) == 1 else f"({len(members)} such additions) {first.message}"
        reported.append(Decline(first.reason, message, first.module, first.source, len(members)))
    return tuple(reported)


def _no_residual(trace: AtenTrace) -> Decline:
    opaque = next((op for op in trace.ops if _is_hidden(op.target)), None)
    if opaque is not None:
        node = trace.nodes[opaque.node]
        return Decline(
            Reason.OPAQUE,
            f"no residual addition is in sight, and {node.target} hides part of the model; if the layers are under "
            "torch.utils.checkpoint, turn activation checkpointing off.",
            provenance.module_path(node),
            provenance.source_line(node),
        )
    last = next((node for node in reversed(trace.nodes) if provenance.source_line(node)), trace.nodes[-1])
    return Decline(
        Reason.NO_RESIDUAL,
        "no value is added to another one that it depends on, so there is no residual stream; give a model whose "
        "sublayers add to one, x = x + f(norm(x)).",
        provenance.module_path(last),
        provenance.source_line(last),
    )


def _is_hidden(target: object) -> bool:
    """Whether an operation runs a part of the model that dispatch does not see into."""
    return target == OPAQUE_OP or is_higher_order(target)
