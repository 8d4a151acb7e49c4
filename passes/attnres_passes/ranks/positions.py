"""Analysis: which sublayer every node of a rewritten graph belongs to, and the sources of each of its states.

A node belongs to the last sublayer that it depends on: a read of ``s_j`` to sublayer ``j+1``, what follows it too,
up to the write. Positions never fall along an edge. Nodes that depend on no sublayer (positions, masks, parameters)
have none; they run where they are used.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import GraphModule, Node

from attnres_passes.ir.annotations import Annotation, annotation_of
from attnres_passes.ir.levels import is_depth_attention
from attnres_passes.ir.plan import Plan, Stream
from attnres_passes.ranks.layout import StageError


@dataclass(frozen=True)
class Positions:
    """Where the nodes of a graph stand along its stream.

    of: the sublayer of each node, from 1; sources: those of the reads of each state, in the order of the plan.
    """

    of: dict[Node, int | None]
    sources: dict[int, tuple[Node, ...]]


def single_stream(plan: Plan) -> Stream:
    """The stream that a pipeline is cut along.

    Raises:
        StageError: the plan has none, or several.
    """
    if len(plan.streams) != 1:
        names = ", ".join(repr(stream.name) for stream in plan.streams) or "none"
        raise StageError(
            f"a pipeline needs a model with one residual stream, and this one has {len(plan.streams)} ({names}); "
            "stages of models with several, such as encoder and decoder, are not supported."
        )
    return plan.streams[0]


def positions_of(gm: GraphModule, plan: Plan) -> Positions:
    """The positions in a graph of the rewritten level.

    Args:
        gm: the graph.
        plan: of its streams, of which there is one.

    Raises:
        StageError: there is none, or there are several.
    """
    stream = single_stream(plan)
    sources: dict[int, tuple[Node, ...]] = {}
    for node in gm.graph.nodes:
        annotation = annotation_of(node)
        if is_depth_attention(node) and annotation is not None and annotation.sublayer is not None:
            sources.setdefault(annotation.sublayer, tuple(node.args[0]))
    root = next(iter(sources.values()))[0]
    positions: dict[Node, int | None] = {}
    for node in gm.graph.nodes:
        found = [position for source in node.all_input_nodes if (position := positions[source]) is not None]
        own = _own_position(annotation_of(node), len(stream.writes))
        if node is root:
            own = 1
        positions[node] = max([*found, *([] if own is None else [own])], default=None)
    return Positions(positions, sources)


def _own_position(annotation: Annotation | None, writes: int) -> int | None:
    if annotation is None or annotation.sublayer is None:
        return None
    if annotation.kind == "read":
        # What reads the last state comes after the last sublayer, and goes with it.
        return min(annotation.sublayer + 1, writes)
    return annotation.sublayer if annotation.kind == "write" and annotation.block is not None else None
