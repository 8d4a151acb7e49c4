"""Analysis: which candidates are residual streams that can be rewritten, and the plan of those that are."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from torch.fx import Node

from attnres_passes.analyses import blocks
from attnres_passes.analyses.aten_trace import AtenTrace
from attnres_passes.analyses.chains import Candidate, is_matrix_product, search_chains
from attnres_passes.analyses.declines import (
    decline_as_inner,
    decline_as_opaque,
    decline_of,
    declines_of_unselected,
    worth_reporting,
)
from attnres_passes.analyses.exclusions.sublayers import Sublayers
from attnres_passes.analyses.left_out import left_out, operands_of_sum
from attnres_passes.analyses.reads import ReadGroup, StreamReads, find_reads
from attnres_passes.analyses.shared_reads import join_shared_reads
from attnres_passes.analyses.stream_nodes import NotReplaceable, StreamNodes, locate_stream
from attnres_passes.ir import provenance
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ir.plan import Decline, LeftOut, Plan, Read, Reason, Stream, Write

FARTHEST_PRODUCT = 64
"""Operations looked back through, from a write, for the matrix product that names its sublayer."""


@dataclass(frozen=True)
class Analysis:
    """The analysed level: a plan, and where each of its streams is in the graph of the trace."""

    plan: Plan
    stream_nodes: tuple[StreamNodes, ...]
    trace: AtenTrace


_Accepted = tuple[Stream, StreamNodes]


@dataclass(frozen=True)
class _Judged:
    candidate: Candidate
    reads: StreamReads
    verdict: _Accepted | Decline

    @property
    def is_stream(self) -> bool:
        """Whether sublayers are added, so that what is inside of one is none of this model's depth."""
        reason = self.verdict.reason if isinstance(self.verdict, Decline) else None
        return self.candidate.has_product and (len(self.candidate.additions) > 1 or reason is Reason.POST_NORM)

    @property
    def is_prenorm(self) -> bool:
        """Whether every write is made of a normed read, that of the root as well."""
        return not any(read.feeds_write for read in self.reads.groups)


def find_streams(trace: AtenTrace, config: AttnResConfig) -> Analysis:
    """Judge every candidate of a trace. Changes nothing.

    Args:
        trace: of a captured graph.
        config: how blocks are chosen, and what is allowed.

    Raises:
        ConfigError: ``heads`` does not divide the width of a stream.
    """
    chains = search_chains(trace)
    candidates, sublayer_sums = chains.candidates, chains.sublayer_sums
    judged: list[_Judged] = []
    for candidate in candidates:
        own = frozenset(addition.op for addition in candidate.additions)
        reads = join_shared_reads(trace, candidate, find_reads(trace, candidate, sublayer_sums - own))
        judged.append(_Judged(candidate, reads, _judge(trace, candidate, reads, config)))
    judged = _without_inner(trace, judged)
    accepted = [one.verdict for one in judged if not isinstance(one.verdict, Decline)]
    declined = [(one.candidate, one.verdict) for one in judged if isinstance(one.verdict, Decline)]
    accepted = _with_unique_names(_with_left_out(trace, accepted))
    declines = worth_reporting(trace, declined, chains, bool(accepted))
    if config.streams is not None:
        declines += declines_of_unselected([stream for stream, _ in accepted], config.streams)
        accepted = [(stream, nodes) for stream, nodes in accepted if stream.name in config.streams]
    for stream, _ in accepted:
        config.check_width(stream.name, stream.width)
    plan = Plan(tuple(stream for stream, _ in accepted), declines, config)
    return Analysis(plan, tuple(nodes for _, nodes in accepted), trace)


def _judge(trace: AtenTrace, candidate: Candidate, reads: StreamReads, config: AttnResConfig) -> _Accepted | Decline:
    decline = decline_of(trace, candidate, reads, config)
    if decline is not None:
        return decline
    stream_nodes = locate_stream(trace, candidate, reads.groups)
    if isinstance(stream_nodes, NotReplaceable):
        return decline_as_opaque(trace, candidate, stream_nodes)
    return _stream(trace, candidate, reads, config), stream_nodes


def _without_inner(trace: AtenTrace, judged: list[_Judged]) -> list[_Judged]:
    """Decline what is inside a sublayer of another stream.

    A stack of PreNorm sublayers is no inside of what will not be rewritten itself, such as the steps of a solver.
    """
    rewritten = Sublayers(trace, [one.candidate for one in judged if not isinstance(one.verdict, Decline)])
    streams = Sublayers(trace, [one.candidate for one in judged if one.is_stream])
    found = []
    for one in judged:
        around = (rewritten if one.is_prenorm else streams).around_chain(one.candidate)
        found.append(one if around is None else replace(one, verdict=decline_as_inner(trace, one.candidate, around)))
    return found


def _stream(trace: AtenTrace, candidate: Candidate, reads: StreamReads, config: AttnResConfig) -> Stream:
    count = len(candidate.additions)
    size = blocks.block_size_for(count, config)
    num_blocks = blocks.num_blocks_for(count, size)
    writes = []
    for index, addition in enumerate(candidate.additions, start=1):
        node = trace.nodes[trace.ops[addition.op].node]
        module = _sublayer(trace, provenance.module_path(node), addition.branch)
        writes.append(Write(module, provenance.source_line(node), blocks.block_of_write(index, size)))
    found = tuple(
        Read(
            module=provenance.module_path(_reader(trace, read)),
            source=provenance.source_line(_reader(trace, read)),
            num_sources=blocks.sources_of_read(read.state, size, config.window),
            block=blocks.block_of_read(read.state, size, num_blocks),
            state=read.state,
            normed=read.normed,
            returned=all(trace.nodes[user].op == "output" for _, user in read.uses),
        )
        for read in reads.groups
    )
    name = provenance.common_prefix([write.module for write in writes])
    width = trace.values[candidate.root].shape[-1]
    return Stream(name or "model", width, tuple(writes), found, size, num_blocks)


def _reader(trace: AtenTrace, read: ReadGroup) -> Node:
    """The node that reads; for a state that the graph returns, the node that made it, or whose tensor became it."""
    value, user = read.uses[0]
    node = trace.nodes[user]
    if node.op != "output":
        return node
    if value in trace.node_output:
        return trace.nodes[trace.node_output.index(value)]
    return next(argument for argument, given in trace.node_inputs[user].items() if given == value)


def _sublayer(trace: AtenTrace, add_module: str, branch: int) -> str:
    """The module of a write: where its last matrix product is, seen from the module that adds."""
    pending, nearest = [branch], None
    for _ in range(FARTHEST_PRODUCT):
        if not pending:
            break
        op = trace.maker(pending.pop(0))
        if op is None:
            continue
        nearest = op if nearest is None else nearest
        if is_matrix_product(op):
            nearest = op
            break
        pending.extend(op.inputs)
    if nearest is None:
        return add_module
    return provenance.sublayer_path(add_module, provenance.module_path(trace.nodes[nearest.node]))


def _with_left_out(trace: AtenTrace, accepted: list[_Accepted]) -> list[_Accepted]:
    """Each stream with the additions of its own chain that it does not hold.

    Judged over all that could be rewritten: a stream that the user leaves out by name is none of these, unless it is
    a piece of the same chain.
    """
    planned = frozenset[int]().union(*(nodes.trunk.ops for _, nodes in accepted))
    return [
        (replace(stream, left_out=tuple(_left_out(trace, op) for op in left_out(trace, nodes.trunk, planned))), nodes)
        for stream, nodes in accepted
    ]


def _left_out(trace: AtenTrace, op: int) -> LeftOut:
    node = trace.nodes[trace.ops[op].node]
    module, operands = provenance.module_path(node), operands_of_sum(trace, trace.ops[op])
    if operands is not None:
        module = _sublayer(trace, module, max(operands, key=lambda value: trace.values[value].producer))
    return LeftOut(module, provenance.source_line(node))


def _with_unique_names(accepted: list[_Accepted]) -> list[_Accepted]:
    """Streams of one module are told apart by a number: ``encoder``, ``encoder.2``."""
    seen: Counter[str] = Counter()
    named = []
    for stream, nodes in accepted:
        seen[stream.name] += 1
        number = seen[stream.name]
        named.append((stream if number == 1 else replace(stream, name=f"{stream.name}.{number}"), nodes))
    return named
