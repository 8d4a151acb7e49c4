"""Where the parts of a stream are in a rewritten graph."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node


@dataclass(frozen=True)
class RewrittenWrite:
    """Where ``v_i`` joins its block in a rewritten graph.

    branch: the node that gives ``v_i``; after: the last node of the graph at that moment, since ``branch`` may be
    changed in place before; partial: the node that gives the sum of the block up to and with ``v_i``.
    """

    branch: Node
    after: Node
    partial: Node


@dataclass(frozen=True)
class RewrittenStream:
    """The places of a stream in a rewritten graph. root: the node that gives ``s_0``; writes: one per write."""

    root: Node
    writes: tuple[RewrittenWrite, ...]
