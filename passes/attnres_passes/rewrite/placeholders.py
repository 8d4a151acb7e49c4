"""The parameters of the reads as placeholders behind those of the model, and the key vectors that are made of them."""

from __future__ import annotations

from collections.abc import Iterable

from torch.fx import Graph, Node

from attnres_kernels.definition.naive import key_vector
from attnres_passes.ir.annotations import Annotation, annotate
from attnres_passes.ir.read_id import ParameterName, ReadId, ReadParameter
from attnres_passes.torch_private.graph_copies import mark_as_added

_NAMES: tuple[ParameterName, ...] = ("query", "key_weight")


def append_placeholders(graph: Graph, reads: Iterable[ReadId]) -> dict[ReadParameter, Node]:
    """Two placeholders per read with two sources or more, by what they stand for.

    Args:
        graph: that holds the placeholders of the model and nothing else.
        reads: of the graph, in read order.
    """
    added = {}
    for read_id in reads:
        for name in _NAMES:
            node = graph.placeholder(f"{read_id.named('attnres')}_{name}")
            mark_as_added(node)
            added[ReadParameter(read_id, name)] = annotate(node, Annotation("parameter", read_id.stream, read=read_id))
    return added


def add_key_vectors(graph: Graph, placeholders: dict[ReadParameter, Node]) -> dict[ReadId, Node]:
    """One effective key vector per read, query times key-norm weight (paper equations 2 and 3).

    Args:
        graph: with the placeholders.
        placeholders: those that ``append_placeholders`` gave.
    """
    keys = {}
    for read_id in dict.fromkeys(parameter.read for parameter in placeholders):
        arguments = tuple(placeholders[ReadParameter(read_id, name)] for name in _NAMES)
        node = graph.create_node("call_function", key_vector, arguments, name=read_id.named("key"))
        keys[read_id] = annotate(node, Annotation("key", read_id.stream, read=read_id))
    return keys
