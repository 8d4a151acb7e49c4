"""How passes after the schedule read its nodes: arguments by name, and the reads of one layout of a stream."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch.fx import GraphModule, Node

from attnres_kernels.definition import scheduled
from attnres_passes.ir import provenance
from attnres_passes.ir.annotations import Annotation, annotate, annotation_of
from attnres_passes.ir.levels import SCHEDULED_READS


def arguments(node: Node) -> dict[str, Any]:
    """The arguments of a node of ours by their names."""
    assert callable(node.target)
    return dict(_signature(node.target).bind(*node.args, **node.kwargs).arguments)


@cache
def _signature(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(function)


def calls(gm: GraphModule, *functions: Callable[..., Any]) -> list[Node]:
    """Nodes that call one of these, in graph order."""
    return [node for node in gm.graph.nodes if node.op == "call_function" and node.target in functions]


@dataclass(frozen=True)
class ScheduledRead:
    """A read of the scheduled level. given: its arguments by name."""

    node: Node
    given: dict[str, Any]

    @property
    def number(self) -> int:
        return int(self.given["number"])

    @property
    def inter_block(self) -> Node | None:
        """The phase 1 that it merges with; None for a direct read."""
        return self.given["inter"].args[0] if "inter" in self.given else None

    @property
    def completed(self) -> list[Node]:
        """All its completed blocks."""
        return self._shared("sources") + list(self.given["sources"])

    @property
    def logits(self) -> list[Node]:
        """The logits of all its completed blocks."""
        return self._shared("logits") + list(self.given["logits"])

    def _shared(self, name: str) -> list[Node]:
        return [] if self.inter_block is None else list(arguments(self.inter_block)[name])


@dataclass(frozen=True)
class Segment:
    """The reads that share one matrix of keys, by group. keys: the node that makes it, with a row for each read of the
    segment, those that make their own logits among them, which are in no group.
    """

    keys: Node
    groups: list[list[ScheduledRead]]

    @property
    def total(self) -> int:
        return len(self.keys.args[0])  # type: ignore[arg-type]


def segments(gm: GraphModule) -> list[Segment]:
    """All segments of a scheduled graph."""
    reads = [ScheduledRead(node, arguments(node)) for node in calls(gm, *SCHEDULED_READS)]
    found = []
    for keys in calls(gm, scheduled.key_matrix):
        groups: dict[int | None, list[ScheduledRead]] = {}
        for read in reads:
            if read.given.get("keys") is keys:
                annotation = annotation_of(read.node)
                assert annotation is not None
                groups.setdefault(annotation.group, []).append(read)
        found.append(Segment(keys, list(groups.values())))
    return found


def items(node: Node) -> dict[int, Node]:
    """The nodes that take an item of a node's result, by index."""
    return {int(user.args[1]): user for user in node.users if user.target is operator.getitem}  # type: ignore[arg-type]


def call(
    before: Node,
    function: Callable[..., Any],
    *args: Any,
    annotation: Annotation | None = None,
    name: str | None = None,
) -> Node:
    """A new call, with the provenance of the node that it is put before, and the annotation of a helper.

    Args:
        before: a node of the rewrite.
        function, args: what is called, on what.
        annotation: of the node that the call helps, by default that of ``before``.
        name: for the reader of the graph's text; nothing depends on it.
    """
    with before.graph.inserting_before(before):
        node = before.graph.create_node("call_function", function, args, name=name)
    provenance.copy(before, node)
    annotation = annotation or annotation_of(before)
    assert annotation is not None
    return annotate(
        node,
        Annotation(
            "schedule", annotation.stream, block=annotation.block, stage=annotation.stage, group=annotation.group
        ),
    )
