"""Which operators of ours a lowered graph calls, how often, and on how many sources: counted from its nodes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from torch.fx import Node

from attnres_compile.inspection.facts.facts import Kernel, StreamFacts
from attnres_passes.ir.annotations import annotation_of
from attnres_passes.ir.levels import is_ours
from attnres_passes.pipeline import GraphLevels
from attnres_passes.schedule.scheduled_nodes import arguments

_SOURCES, _READS = ("sources", "blocks"), ("queries", "count")

Form = tuple[str, int, str]
"""Name, stream and what is fused: calls that agree in these are one line of the table."""


def kernels_of(levels: GraphLevels, streams: tuple[StreamFacts, ...]) -> tuple[Kernel, ...]:
    """The calls of one graph, in the order in which their forms first appear.

    Args:
        levels: of the graph.
        streams: those in it.
    """
    calls: dict[Form, list[dict[str, Any]]] = defaultdict(list)
    for node in filter(is_ours, levels.lowered.graph.nodes):
        annotation, given = annotation_of(node), arguments(node)
        assert annotation is not None
        calls[_name(node), annotation.stream, _fused(given)].append(given)
    return tuple(
        Kernel(
            name,
            levels.choice.provider.value,
            streams[stream].name,
            len(given),
            _extent(map(_sources, given)),
            _extent(map(_reads, given)),
            streams[stream].width,
            streams[stream].dtype,
            fused,
        )
        for (name, stream, fused), given in calls.items()
    )


def _name(node: Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _sources(given: dict[str, Any]) -> int | None:
    """Completed blocks that a call goes over."""
    if "source" in given or ("partial" in given and "branch" in given and "matrix" in given):
        return 1
    return next((len(given[name]) for name in _SOURCES if name in given), None)


def _reads(given: dict[str, Any]) -> int | None:
    """Reads that a call serves."""
    if "queries" in given:
        return len(given["queries"])
    return int(given["count"]) if isinstance(given.get("count"), int) else None


def _fused(given: dict[str, Any]) -> str:
    """What a read takes in: phase 1's result, the open partial sum, the add before it, the norm behind it."""
    parts = []
    if given.get("inter") is not None:
        parts.append("phase 1")
    if given.get("partial") is not None and "matrix" not in given:
        parts.append("partial sum")
    if given.get("branch") is not None:
        parts.append("add")
    if isinstance(given.get("norm"), str):
        parts.append(f"{given['norm']} norm")
    return ", ".join(parts)


def _extent(numbers: Iterable[int | None]) -> tuple[int, int] | None:
    known = [number for number in numbers if number is not None]
    return (min(known), max(known)) if known else None
