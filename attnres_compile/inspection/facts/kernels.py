"""Which operators of ours a lowered graph calls, how often, and on how many sources: counted from its nodes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from torch.fx import Node

from attnres_compile.inspection.facts.facts import Kernel, StreamFacts
from attnres_kernels.operators.definition import Work, definition_of
from attnres_passes.ir.annotations import annotation_of
from attnres_passes.ir.levels import is_ours
from attnres_passes.pipeline import GraphLevels
from attnres_passes.schedule.scheduled_nodes import arguments
from attnres_passes.torch_private.operators import is_operator

Form = tuple[str, int, str]
"""Name, stream and what is fused: calls that agree in these are one line of the table."""


def kernels_of(levels: GraphLevels, streams: tuple[StreamFacts, ...]) -> tuple[Kernel, ...]:
    """The calls of one graph, in the order in which their forms first appear.

    Args:
        levels: of the graph.
        streams: those in it.
    """
    calls: dict[Form, list[Work]] = defaultdict(list)
    for node in filter(is_ours, levels.lowered.graph.nodes):
        annotation, work = annotation_of(node), _work(node)
        assert annotation is not None
        calls[_name(node), annotation.stream, ", ".join(work.takes_in)].append(work)
    return tuple(
        Kernel(
            name,
            levels.choice.provider.value,
            streams[stream].name,
            len(found),
            _extent(work.sources for work in found),
            _extent(work.reads for work in found),
            streams[stream].width,
            streams[stream].dtype,
            takes_in,
        )
        for (name, stream, takes_in), found in calls.items()
    )


def _name(node: Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _work(node: Node) -> Work:
    """What a call goes over, by the definition of its operator."""
    definition = definition_of(node.target)
    if definition is None:
        return Work()
    by_position = is_operator(node.target)
    return definition.work(definition.bound(node.args) if by_position else definition.named(arguments(node)))


def _extent(numbers: Iterable[int | None]) -> tuple[int, int] | None:
    known = [number for number in numbers if number is not None]
    return (min(known), max(known)) if known else None
