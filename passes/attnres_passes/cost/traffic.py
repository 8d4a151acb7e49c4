"""Analysis: what the residual path moves through memory, counted from the nodes of a scheduled graph.

The unit is one ``[tokens, d]`` of the stream. Each node is charged with what the kernel that it is bound to reads and
writes (``OperatorDefinition.traffic``); a residual addition of its own with three and a norm of its own with two.
Scalars per token and vectors are left out.
"""

from __future__ import annotations

from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from attnres_kernels.definition import cost, scheduled
from attnres_kernels.generation.traffic import Traffic
from attnres_kernels.operators.definition import Shaped, definition_of
from attnres_passes.cost.residual_path import is_residual_add
from attnres_passes.ir.annotations import annotation_of, read_of
from attnres_passes.ir.levels import FUSED, OWN_LOGITS_READS, SCHEDULED_READS, is_depth_attention
from attnres_passes.ir.plan import Plan, Stream
from attnres_passes.ir.read_id import ReadId
from attnres_passes.schedule.scheduled_nodes import arguments, items

ADD = Traffic(2, 1)
NORM = Traffic(1, 1)
_BY_KERNELS = (*SCHEDULED_READS, scheduled.inter_block, scheduled.source_logits, scheduled.complete_block)
_VIEWS = ("detach", "view", "reshape", "view_as", "reshape_as", "permute", "transpose", "squeeze", "unsqueeze")


def plain_traffic(stream: Stream) -> Traffic:
    """What the standard residual moves, every addition fused with one norm behind it, which then only writes.

    Further norms of the same state, and all those of the root, read it, too. A norm that stands several times, since
    q, k and v have a read each, is one norm of the plain model.
    """
    total = Traffic(0, 0)
    for _ in stream.writes:
        total += ADD
    seen = {0}
    apart: set[tuple[int, str, str]] = set()
    for read in stream.reads:
        norm = read.state, read.module, read.source
        if read.normed and not (read.argument and norm in apart):
            apart |= {norm} if read.argument else set()
            total += NORM if read.state in seen else Traffic(0, 1)
            seen.add(read.state)
    return total


def traffic(gm: GraphModule, plan: Plan) -> tuple[Traffic, ...]:
    """What each stream of the plan moves per token, in units of ``[d]``.

    Args:
        gm: a rewritten, a scheduled or a fused graph, or the residual path of one.
        plan: of the graph.
    """
    totals = [_norms_left(gm, stream, index) for index, stream in enumerate(plan.streams)]
    for node in gm.graph.nodes:
        annotation = annotation_of(node)
        if annotation is not None and node.op in ("call_function", "call_method"):
            totals[annotation.stream] += _of_node(node, plan.streams[annotation.stream].width)
    return tuple(totals)


def _of_node(node: Node, width: int) -> Traffic:
    if node.target in _BY_KERNELS:
        return _of_kernels(node, width)
    if is_depth_attention(node):
        sources = node.args[0]
        assert isinstance(sources, (list, tuple))
        return _of_definition(len(sources))
    if is_residual_add(node):
        return ADD
    annotation = annotation_of(node)
    assert annotation is not None
    is_pass = annotation.kind == "carry" and str(node.target) not in _VIEWS
    return NORM if is_pass else Traffic(0, 0)


def _of_definition(sources: int) -> Traffic:
    """What the definition moves, stacked, not fused (``cost.naive``): stack, three passes over it, result."""
    alone = cost.naive(sources, has_partial=False) - (ADD + NORM).total
    writes = sources + 1
    return Traffic(int(alone) - writes, writes)


def _of_kernels(node: Node, width: int) -> Traffic:
    """What a scheduled node moves, by the definition of its operator; every tensor that counts has this width."""
    definition = definition_of(node.target)
    assert definition is not None
    given = arguments(node)
    if node.target in OWN_LOGITS_READS:
        *sources, partial = given["sources"]
        given |= {"sources": sources, "partial": partial}
    if node.target in FUSED:
        value = items(node).get(0)
        given["neighbours"] = given["neighbours"]._replace(returns_value=value is not None and bool(value.users))
    return definition.traffic(definition.named(map_arg(given, lambda _: Shaped((1, width)))))


def _norms_left(gm: GraphModule, stream: Stream, index: int) -> Traffic:
    """Norms that read the stream and are in no kernel: of the root, and of reads that they were not fused with."""
    fused = {
        read_of(node)
        for node in gm.graph.nodes
        if node.target in FUSED and arguments(node)["neighbours"].norm is not None
    }
    total = Traffic(0, 0)
    for k, read in enumerate(stream.reads):
        if read.normed and ReadId(index, k) not in fused:
            total += NORM
    return total
