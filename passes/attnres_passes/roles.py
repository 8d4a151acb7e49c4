"""What a node means to the rewrite: ``node.meta["attnres"]``, kept through all levels and shown in their text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch.fx import Node

KEY = "attnres"
Kind = Literal["parameter", "key", "root", "write", "read", "carry", "schedule", "norm", "probe", "statistic"]


@dataclass(frozen=True)
class Role:
    """stream: its index in the plan; block and sublayer count from 1; stage: pipeline stage, once it is planned.

    sublayer: index of the write that the node belongs to, or of the read's state; read: index of the read in the
    stream, for reads, keys and parameters; group: of reads that share a pass over completed blocks, from 0 in each
    layout of the stream.
    """

    kind: Kind
    stream: int
    block: int | None = None
    sublayer: int | None = None
    read: int | None = None
    stage: int | None = None
    group: int | None = None

    def __str__(self) -> str:
        parts = [f"{self.kind} stream={self.stream}"]
        for name in ("read", "block", "sublayer", "group", "stage"):
            value = getattr(self, name)
            if value is not None:
                parts.append(f"{name}={value}")
        return " ".join(parts)


def role_of(node: Node) -> Role | None:
    """The role of a node; None for nodes that the rewrite did not make."""
    role = node.meta.get(KEY)
    assert role is None or isinstance(role, Role)
    return role


def set_role(node: Node, role: Role) -> Node:
    node.meta[KEY] = role
    return node
