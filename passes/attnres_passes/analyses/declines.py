"""Analysis: why a candidate stream is left as it is, and what of that a person should read."""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Node

from attnres_passes.analyses.aten_trace import OPAQUE, AtenTrace, Op
from attnres_passes.analyses.chains import Candidate, Chains
from attnres_passes.analyses.exclusions.verdicts import Verdict, verdict_of, verdict_of_model
from attnres_passes.analyses.reads import StreamReads
from attnres_passes.analyses.stream_nodes import NotReplaceable
from attnres_passes.ir import provenance
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ir.plan import Decline, Reason, Stream, short_source
from attnres_passes.torch_private.operators import is_higher_order

_NO_STREAMS = frozenset({Reason.NO_SUBLAYER, Reason.INSIDE_SUBLAYER})
"""Reasons that say of a chain that it is no residual stream at all."""


def decline_of(trace: AtenTrace, candidate: Candidate, reads: StreamReads, config: AttnResConfig) -> Decline | None:
    """The first reason that forbids a rewrite, from the most basic to the most particular; None if none does.

    Args:
        trace: of the captured graph.
        candidate: the chain of additions.
        reads: those of the candidate.
        config: allow_unnormed is looked at.
    """
    verdict = verdict_of(trace, candidate, reads, config.allow_unnormed)
    return None if verdict is None else _decline(trace, candidate, verdict)


def decline_as_opaque(trace: AtenTrace, candidate: Candidate, obstacle: NotReplaceable) -> Decline:
    """That the nodes of a stream cannot be replaced.

    Args:
        trace: of the captured graph.
        candidate: the chain of additions.
        obstacle: the node in the way.
    """
    hidden = next((op for op in trace.ops if op.node == obstacle.node and _is_hidden(op.target)), None)
    remedy = obstacle.remedy or (
        f"{_name(trace, hidden)} hides it; keep the additions to the stream outside of it."
        if hidden is not None
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
    instead = () if found_streams else _declines_of_model(trace, chains)
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


def _declines_of_model(trace: AtenTrace, chains: Chains) -> tuple[Decline, ...]:
    found = verdict_of_model(trace, chains)
    if found is None:
        return ()
    (reason, message, node), additions = found
    return (_decline_at(trace.nodes[-1 if node is None else node], reason, message, additions),)


def _decline(trace: AtenTrace, candidate: Candidate, verdict: Verdict) -> Decline:
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
            f"no residual addition is in sight, and {_name(trace, opaque)} hides part of the model; if the layers are "
            "in it, keep the additions to the stream outside of it.",
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


def _name(trace: AtenTrace, op: Op) -> str:
    """What a person calls the operator that hides a part of the model."""
    target = trace.nodes[op.node].target
    if is_higher_order(target):
        return f"torch.ops.higher_order.{target}"
    return str(getattr(target, "__qualname__", target))
