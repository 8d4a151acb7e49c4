"""Analysis: why a candidate stream is left as it is, and what of that a person should read."""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Node

from attnres_passes.analyses.aten_trace import OPAQUE, AtenTrace
from attnres_passes.analyses.carries.mixing import Mixing
from attnres_passes.analyses.chains import Candidate, Chains
from attnres_passes.analyses.degrees.degree import functional_name
from attnres_passes.analyses.exclusions.depth_attention import attends_over_depth
from attnres_passes.analyses.exclusions.interruptions import interruption
from attnres_passes.analyses.exclusions.layout import features_elsewhere
from attnres_passes.analyses.exclusions.recurrence import is_recurrence
from attnres_passes.analyses.exclusions.reversible import is_reversible
from attnres_passes.analyses.reads import ReadGroup, StreamReads
from attnres_passes.analyses.stream_nodes import NotReplaceable
from attnres_passes.ir import provenance
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ir.plan import Decline, Reason, Stream, short_source
from attnres_passes.torch_private.operators import is_higher_order

_NO_STREAMS = frozenset({Reason.NO_SUBLAYER, Reason.INSIDE_SUBLAYER})
"""Reasons that say of a chain that it is no residual stream at all."""

_LANES = (
    "depth attention takes a sum apart that nothing mixes; leave it as it is, or use the model without lanes."
)
_MIXED = (
    (
        Mixing.LANES,
        Reason.LANES,
        "the running sum is a stack of lanes, which a matrix product mixes before each addition (hyper-connections, "
        f"mHC); {_LANES}",
    ),
    (
        Mixing.GATE,
        Reason.GATED,
        "the running sum is multiplied by a gate made of it before each addition, so that no state is a term of the "
        "next; leave it as it is, or use the model without gates.",
    ),
)

_Verdict = tuple[Reason, str, int | None]
"""Reason, message, and the index of the node that it is about; None for the first addition."""


def decline_of(trace: AtenTrace, candidate: Candidate, reads: StreamReads, config: AttnResConfig) -> Decline | None:
    """The first reason that forbids a rewrite, from the most basic to the most particular; None if none does.

    Args:
        trace: of the captured graph.
        candidate: the chain of additions.
        reads: those of the candidate.
        config: allow_unnormed is looked at.
    """
    verdict = _verdict(trace, candidate, reads, config.allow_unnormed)
    return None if verdict is None else _decline(trace, candidate, verdict)


def decline_as_opaque(trace: AtenTrace, candidate: Candidate, obstacle: NotReplaceable) -> Decline:
    """That the nodes of a stream cannot be replaced.

    Args:
        trace: of the captured graph.
        candidate: the chain of additions.
        obstacle: the node in the way.
    """
    hidden = any(_is_hidden(op.target) for op in trace.ops if op.node == obstacle.node)
    remedy = obstacle.remedy or (
        "if the layers are under torch.utils.checkpoint, turn activation checkpointing off."
        if hidden
        else "write it as a plain addition of tensors that nothing else changes in place."
    )
    return _decline(trace, candidate, (obstacle.reason, f"{obstacle.message}; {remedy}", obstacle.node))


def decline_as_inner(trace: AtenTrace, candidate: Candidate, around: Candidate) -> Decline:
    """That a chain is inside a sublayer of another stream.

    Args:
        trace: of the captured graph.
        candidate: the chain of additions.
        around: the stream.
    """
    line = short_source(provenance.source_line(trace.nodes[trace.ops[around.additions[0].op].node]))
    message = (
        f"this sum is inside one sublayer of the stream that is added to at {line}, and depth is counted in sublayers; "
        "leave it as it is."
    )
    return _decline(trace, candidate, (Reason.INSIDE_SUBLAYER, message, None))


def declines_of_unselected(streams: Sequence[Stream], names: Sequence[str]) -> tuple[Decline, ...]:
    """One for each stream that the user did not ask for.

    Args:
        streams: all that could be rewritten.
        names: of those that the user wants.
    """
    there = ", ".join(repr(stream.name) for stream in streams)
    return tuple(
        Decline(
            Reason.NOT_SELECTED,
            f"stream {stream.name!r} is not among streams={list(names)!r}; the model has {there}.",
            stream.writes[0].module,
            stream.writes[0].source,
            len(stream.writes),
        )
        for stream in streams
        if stream.name not in names
    )


def worth_reporting(
    trace: AtenTrace, declined: Sequence[tuple[Candidate, Decline]], chains: Chains, found_streams: bool
) -> tuple[Decline, ...]:
    """What a person should read: real streams one by one, single additions together by reason.

    A model without a stream may have something else in its place: gates, lanes, a depth attention of its own.

    Chains without a matrix product (polynomials, running sums) and those inside a sublayer are no streams, and neither
    is a single addition that is made again and again from one value (a mask added to the scores of every layer); they
    are named only if there is nothing else to say.

    Args:
        trace: of the captured graph.
        declined: every candidate that was declined, and why.
        chains: what the trace adds up.
        found_streams: whether the trace has streams that were not declined.
    """
    relevant = [
        (candidate, decline)
        for candidate, decline in declined
        if decline.reason not in _NO_STREAMS and (len(candidate.additions) > 1 or not candidate.forks)
    ]
    instead = () if found_streams else _instead_of_stream(trace, chains)
    if not relevant and not found_streams and not instead:
        relevant = list(declined)
    if not relevant and not found_streams and not instead:
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
    return (*instead, *reported)


def _instead_of_stream(trace: AtenTrace, chains: Chains) -> tuple[Decline, ...]:
    """What a model without a residual stream carries from sublayer to sublayer, if it shows."""
    joined = attends_over_depth(trace)
    if joined is not None:
        return (
            _decline_at(
                trace.nodes[trace.ops[joined].node],
                Reason.DEPTH_ATTENTION,
                "what earlier layers gave is joined here and attended over, more of it from layer to layer: this model "
                "attends over depth already; leave it as it is.",
            ),
        )
    for kind, reason, message in _MIXED:
        found = [op for op, mixing in chains.mixed if mixing is kind]
        if len(found) > 1:
            return (_decline_at(trace.nodes[trace.ops[found[0]].node], reason, message, len(found)),)
    return ()


def _verdict(trace: AtenTrace, candidate: Candidate, reads: StreamReads, allow_unnormed: bool) -> _Verdict | None:
    if not all(trace.values[addition.after].is_floating for addition in candidate.additions):
        dtype = trace.values[candidate.additions[-1].after].dtype
        return Reason.NON_FLOATING, f"the stream is {dtype}; give a model whose stream is floating point.", None
    if not candidate.has_product:
        return (
            Reason.NO_SUBLAYER,
            "what is added is made without a matrix product, a convolution or attention, as the terms of a polynomial "
            "are, so that it is no sublayer's output; leave it as it is.",
            None,
        )
    if len(candidate.additions) > 1 and is_recurrence(trace, candidate):
        return (
            Reason.RECURRENCE,
            "each addition takes another position of one tensor with the same weights, so that the sum runs over time "
            "and not over depth; leave it as it is.",
            None,
        )
    channels_first = reads.channels_first
    if channels_first is None and len(candidate.additions) > 1:
        channels_first = features_elsewhere(trace, candidate)
    if channels_first is not None:
        return (
            Reason.CHANNELS_FIRST,
            "the features are not on the last axis (channels-first layout), where depth attention takes its norm; "
            "keep the stream channels-last.",
            trace.ops[channels_first].node,
        )
    if len(candidate.additions) < 2:
        return _interrupted(trace, candidate) or _too_short(reads)
    if not _has_depth(reads, len(candidate.additions)):
        return (
            Reason.INSIDE_SUBLAYER,
            "all that is added is made of one value that is not normed, so that this is a sum inside of one sublayer; "
            "leave it as it is.",
            None,
        )
    if candidate.forks and is_reversible(trace, candidate):
        return (
            Reason.REVERSIBLE,
            "two running sums start from one value, and each is written from the other (reversible layers), so that "
            "neither is the sum of its sublayers; leave it as it is.",
            trace.ops[candidate.forks[0]].node,
        )
    if candidate.forks:
        return (
            Reason.FORKED,
            "two additions start from the same state, so that the stream has two continuations; norm the state "
            "before the one that is no sublayer of this stream.",
            trace.ops[candidate.forks[0]].node,
        )
    # The root has one source, so a read of it stays what it was.
    offending = [read for read in reads.groups if read.feeds_write and read.state > 0]
    if not offending or allow_unnormed:
        return None
    if all(read.state == len(candidate.additions) for read in offending):
        interrupted = _interrupted(trace, candidate)
        if interrupted is not None:
            return interrupted
    return _unnormed(trace, candidate, reads.groups, offending)


def _interrupted(trace: AtenTrace, candidate: Candidate) -> _Verdict | None:
    op = interruption(trace, candidate)
    if op is None:
        return None
    name = functional_name(op)
    if name.startswith("aten.clamp"):
        return (
            Reason.CLAMPED,
            f"between two of its additions the running sum is clamped ({name}), as models guard float16; a clamp cannot "
            "be applied to the parts of a sum one by one. Run the model in bfloat16 or float32, where such a clamp is "
            "mostly left out, or take it out.",
            op.node,
        )
    return (
        Reason.INTERRUPTED,
        f"between two of its additions the running sum itself goes through {name}, which cannot be applied to the "
        "parts of a sum one by one; move it into the sublayers' outputs, or behind a norm.",
        op.node,
    )


def _has_depth(reads: StreamReads, writes: int) -> bool:
    """Whether some write is made of a sum, or each of a normed read of the root, as parallel sublayers are."""
    return any(0 < read.state < writes for read in reads.groups) or not any(
        read.feeds_write for read in reads.groups if read.state == 0
    )


def _too_short(reads: StreamReads) -> _Verdict:
    """One addition: PostNorm if the norm comes after it and not before, else a stream too short to have depth."""
    sum_is_normed = any(read.state == 1 and read.normed for read in reads.groups)
    root_is_normed = all(read.normed for read in reads.groups if read.state == 0)
    if sum_is_normed and not root_is_normed:
        return (
            Reason.POST_NORM,
            "the norm follows the addition and its output is the next residual (PostNorm), so there is no running "
            "sum to attend over; use the model's PreNorm variant.",
            None,
        )
    return (
        Reason.TOO_FEW_WRITES,
        "a single addition is fewer than the 2 writes that depth attention needs; leave it as it is, or give a model "
        "with more sublayers.",
        None,
    )


def _unnormed(
    trace: AtenTrace, candidate: Candidate, reads: Sequence[ReadGroup], offending: Sequence[ReadGroup]
) -> _Verdict:
    read = offending[0]
    stack = trace.values[candidate.root].producer
    if stack >= 0 and trace.ops[stack].name == "aten.stack" and trace.ops[stack].args[1:] != (-1,):
        lanes = len(trace.ops[stack].inputs)
        message = f"the running sum is a stack of {lanes} lanes, which are mixed without a norm (AltUp); {_LANES}"
        return Reason.LANES, message, read.uses[0][1]
    reader = read.uses[0][1]
    where = provenance.module_path(trace.nodes[reader]) or "the model"
    lost = ""
    if read.lost_at is not None:
        op = trace.ops[read.lost_at]
        line = short_source(provenance.source_line(trace.nodes[op.node]))
        lost = f" (its scale is still felt in {op.name}, {line})"
    return (
        Reason.UNNORMED_READ,
        f"{len(offending)} of {len(reads)} reads of the stream feed a write without being normed, the first in "
        f"{where}{lost}; averaging over depth would change its scale. Norm the input of that sublayer, or pass "
        "allow_unnormed=True.",
        reader,
    )


def _decline(trace: AtenTrace, candidate: Candidate, verdict: _Verdict) -> Decline:
    reason, message, node = verdict
    place = trace.nodes[trace.ops[candidate.additions[0].op].node if node is None else node]
    return _decline_at(place, reason, message, len(candidate.additions))


def _decline_at(place: Node, reason: Reason, message: str, additions: int = 0) -> Decline:
    return Decline(reason, message, provenance.module_path(place), provenance.source_line(place), additions)


def _no_residual(trace: AtenTrace) -> Decline:
    opaque = next((op for op in trace.ops if _is_hidden(op.target)), None)
    if opaque is not None:
        node = trace.nodes[opaque.node]
        return _decline_at(
            node,
            Reason.OPAQUE,
            f"no residual addition is in sight, and {node.target} hides part of the model; if the layers are under "
            "torch.utils.checkpoint, turn activation checkpointing off.",
        )
    last = next((node for node in reversed(trace.nodes) if provenance.source_line(node)), trace.nodes[-1])
    return _decline_at(
        last,
        Reason.NO_RESIDUAL,
        "no value is added to another one that it depends on, so there is no residual stream; give a model whose "
        "sublayers add to one, x = x + f(norm(x)).",
    )


def _is_hidden(target: object) -> bool:
    """Whether an operation runs a part of the model that dispatch does not see into."""
    return target == OPAQUE or is_higher_order(target)
