"""Analysis: the rules that say of a chain that it is left as it is, and what a model without a stream has instead."""

from __future__ import annotations

from collections.abc import Sequence

from attnres_passes.analyses.aten_trace import AtenTrace
from attnres_passes.analyses.carries.mixing import Mixing
from attnres_passes.analyses.chains import Candidate, Chains
from attnres_passes.analyses.degrees.degree import functional_name
from attnres_passes.analyses.exclusions.depth_attention import attends_over_depth
from attnres_passes.analyses.exclusions.interruptions import interruption
from attnres_passes.analyses.exclusions.lanes import written_in_lanes
from attnres_passes.analyses.exclusions.layout import features_elsewhere
from attnres_passes.analyses.exclusions.recurrence import is_recurrence
from attnres_passes.analyses.exclusions.reversible import is_reversible
from attnres_passes.analyses.reads import ReadGroup, StreamReads
from attnres_passes.ir import provenance
from attnres_passes.ir.plan import Reason, short_source

Verdict = tuple[Reason, str, int | None]
"""Reason, message, and the index of the node that it is about; None for the first addition."""

_LANES = "depth attention takes a sum apart that nothing mixes; leave it as it is, or use the model without lanes."
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


def verdict_of(trace: AtenTrace, candidate: Candidate, reads: StreamReads, allow_unnormed: bool) -> Verdict | None:
    """The first reason that forbids a rewrite, from the most basic to the most particular; None if none does.

    Args:
        trace: of the captured graph.
        candidate: the chain of additions.
        reads: those of the candidate.
        allow_unnormed: whether reads that feed a write may be without a norm.
    """
    if len(candidate.additions) < 2:
        return (
            _what_is_added(trace, candidate)
            or _where_features_are(trace, reads.channels_first)
            or (_interrupted(trace, candidate) or _too_short(reads))
        )
    return (
        _what_is_added(trace, candidate)
        or _where_features_are(trace, reads.channels_first)
        or _where_features_are(trace, features_elsewhere(trace, candidate))
        or _how_it_goes_on(trace, candidate, reads)
        or (None if allow_unnormed else _without_norm(trace, candidate, reads.groups))
    )


def _what_is_added(trace: AtenTrace, candidate: Candidate) -> Verdict | None:
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
    return None


def _where_features_are(trace: AtenTrace, shown_by: int | None) -> Verdict | None:
    if shown_by is None:
        return None
    return (
        Reason.CHANNELS_FIRST,
        "the features are not on the last axis (channels-first layout), where depth attention takes its norm; "
        "keep the stream channels-last.",
        trace.ops[shown_by].node,
    )


def _how_it_goes_on(trace: AtenTrace, candidate: Candidate, reads: StreamReads) -> Verdict | None:
    if (outer := written_in_lanes(trace, candidate)) is not None:
        return (
            Reason.LANES,
            "every sublayer writes its output to several lanes of the running sum, each by a weight of its own "
            "(hyper-connections), and reads a learned mixture of them; leave it as it is, or use the model without "
            "lanes.",
            trace.ops[outer].node,
        )
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
    return None


def _without_norm(trace: AtenTrace, candidate: Candidate, reads: Sequence[ReadGroup]) -> Verdict | None:
    # The root has one source, so a read of it stays what it was.
    offending = [read for read in reads if read.feeds_write and read.state > 0]
    if not offending:
        return None
    goes_on = all(read.state == len(candidate.additions) for read in offending)
    return (_interrupted(trace, candidate) if goes_on else None) or _unnormed(trace, candidate, reads, offending)


def _interrupted(trace: AtenTrace, candidate: Candidate) -> Verdict | None:
    op = interruption(trace, candidate)
    if op is None:
        return None
    name = functional_name(op)
    if name.startswith("aten.clamp"):
        return (
            Reason.CLAMPED,
            f"between two of its additions the running sum is clamped ({name}), as models guard float16; a clamp "
            "cannot be applied to the parts of a sum one by one. Run the model in bfloat16 or float32, where such "
            "a clamp is mostly left out, or take it out.",
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


def _too_short(reads: StreamReads) -> Verdict:
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
) -> Verdict:
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


def verdict_of_model(trace: AtenTrace, chains: Chains) -> tuple[Verdict, int] | None:
    """What a model without a residual stream carries from sublayer to sublayer, if it shows, and how many additions.

    Args:
        trace: of the captured graph.
        chains: what it adds up.
    """
    joined = attends_over_depth(trace)
    if joined is not None:
        message = (
            "what earlier layers gave is joined here and attended over, more of it from layer to layer: this model "
            "attends over depth already; leave it as it is."
        )
        return (Reason.DEPTH_ATTENTION, message, trace.ops[joined].node), 0
    for kind, reason, message in _MIXED:
        found = [op for op, mixing in chains.mixed if mixing is kind]
        if len(found) > 1:
            return (reason, message, trace.ops[found[0]].node), len(found)
    if chains.other_sums and not any(candidate.has_product for candidate in chains.candidates):
        first = trace.ops[min(chains.other_sums)]
        message = (
            f"sublayers are added by {functional_name(first)}, and a stream is followed through plain additions alone; "
            "write each as x + f, with the factors of x and f beside it."
        )
        return (Reason.OTHER_SUM, message, first.node), len(chains.other_sums)
    return None
