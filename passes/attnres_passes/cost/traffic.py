"""Analysis: what the residual path moves through memory, counted from the nodes of a scheduled graph.

The unit is one ``[tokens, d]`` of the stream. Each node is charged with what the kernel that it is bound to reads and
writes (``generated.moved``); a residual addition of its own with three and a norm of its own with two. Scalars per
token and vectors are left out, as there.
"""

from __future__ import annotations

from torch.fx import GraphModule, Node

from attnres_kernels.definition import cost, scheduled
from attnres_kernels.generation import moved
from attnres_kernels.generation.moved import Moved
from attnres_kernels.generation.specs import MOST_SOURCES, LogitsSpec, Phase1Spec, ReadSpec
from attnres_kernels.launch import tiling
from attnres_passes.cost.residual_path import is_residual_add
from attnres_passes.ir.annotations import annotation_of, read_of
from attnres_passes.ir.levels import FUSED, OWN_READS, SCHEDULED_READS, is_depth_attention
from attnres_passes.ir.plan import Plan, Stream
from attnres_passes.ir.read_id import ReadId
from attnres_passes.schedule.scheduled_nodes import arguments, items

ADD = Moved(2, 1)
NORM = Moved(1, 1)
_VIEWS = ("detach", "view", "reshape", "view_as", "reshape_as", "permute", "transpose", "squeeze", "unsqueeze")


def plain_traffic(stream: Stream) -> Moved:
    """Of the standard residual with every addition fused with one norm behind it, which then writes and reads nothing.

    Further norms of the same state, and that of the root, read it.
    """
    total = Moved(0, 0)
    for _ in stream.writes:
        total += ADD
    seen = {0}
    for read in stream.reads:
        if read.normed:
            total += NORM if read.state in seen else Moved(0, 1)
            seen.add(read.state)
    return total


def traffic(gm: GraphModule, plan: Plan) -> tuple[Moved, ...]:
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


def _of_node(node: Node, width: int) -> Moved:
    if node.target in SCHEDULED_READS:
        return _of_read(node, width)
    if node.target is scheduled.inter_block:
        given = arguments(node)
        return _of_phase_1(len(given["sources"]), given["count"])
    if node.target is scheduled.source_logits:
        return moved.of_logits(LogitsSpec(splits_keys=False))
    if node.target is scheduled.complete_block:
        return moved.of_logits(LogitsSpec(splits_keys=False, adds=True))
    if is_depth_attention(node):
        sources = node.args[0]
        assert isinstance(sources, (list, tuple))
        return _of_definition(len(sources))
    if is_residual_add(node):
        return ADD
    annotation = annotation_of(node)
    assert annotation is not None
    is_pass = annotation.kind == "carry" and str(node.target) not in _VIEWS
    return NORM if is_pass else Moved(0, 0)


def _of_definition(sources: int) -> Moved:
    """The definition, stacked and unfused (``cost.naive``): the stack, three passes over it, and the result."""
    alone = cost.naive(sources, has_partial=False) - (ADD + NORM).total
    writes = sources + 1
    return Moved(int(alone) - writes, writes)


def _of_phase_1(sources: int, reads: int) -> Moved:
    """Launches of so many sources each, which go on from the outputs of the one before."""
    total = Moved(0, 0)
    for first in range(0, sources, MOST_SOURCES):
        part = min(MOST_SOURCES, sources - first)
        total += moved.of_phase_1(Phase1Spec(part, reads, continues=first > 0))
    return total


def _of_read(node: Node, width: int) -> Moved:
    given = arguments(node)
    is_own = node.target in OWN_READS
    has_inter = "inter" in given
    has_partial = is_own or given["partial"] is not None
    sources = len(given["sources"]) - is_own
    condensed = Moved(0, 0)
    if not is_own and sources > tiling.most_in_place(width):
        # More than a launch takes in place are summed up by a phase 1 of their own.
        condensed, sources, has_inter = _of_phase_1(sources, 1), 0, True
    norm = given.get("norm")
    is_fused = node.target in FUSED
    value_is_used = not is_fused or bool((value := items(node).get(0)) and value.users)
    adds = given.get("branch") is not None
    spec = ReadSpec(
        sources, has_inter, has_partial, adds, norm, False, False, returns_value=value_is_used or norm is None
    )
    return condensed + moved.of_read(spec)


def _norms_left(gm: GraphModule, stream: Stream, index: int) -> Moved:
    """Norms that read the stream and are in no kernel: of the root, and of reads that they were not fused with."""
    fused = {read_of(node) for node in gm.graph.nodes if node.target in FUSED and arguments(node)["norm"] is not None}
    total = Moved(0, 0)
    for k, read in enumerate(stream.reads):
        if read.normed and ReadId(index, k) not in fused:
            total += NORM
    return total
