"""Reads of a stream that is a DTensor: of what this rank holds of its sources, and made a DTensor again.

Before::

    read_0_1 = torch.ops.attnres.depth_attention([x, written], key_0_1, 1e-06, 'mean')

After, with states that are cut along their second dimension::

    x_own = local_part(x, (1,))
    written_own = local_part(written, (1,))
    read_0_1 = torch.ops.attnres.depth_attention([x_own, written_own], key_0_1, 1e-06, 'mean')
    read_0_1_spread = spread_like(read_0_1, x, (1,))

A read mixes the sources of one token, and needs all of its features and the whole of each source: a state that is cut
along features, or is a summand on each rank, is put together first, as it is for a norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Graph, Node

from attnres_passes.ir import provenance
from attnres_passes.ir.annotations import Annotation, annotate
from attnres_passes.ir.regions import put_in_region, region_of
from attnres_passes.torch_private.ranks.dtensors import (
    Part,
    held,
    is_spread,
    local_part,
    placed,
    read_parts,
    spread_like,
)


class OwnParts:
    """What this rank holds of the sources of one stream.

    Args:
        graph: that is built.
        stream: its index in the plan.
    """

    def __init__(self, graph: Graph, stream: int) -> None:
        self.graph, self.stream = graph, stream
        self.made: dict[tuple[Node, tuple[Part, ...]], Node] = {}

    def of(self, sources: Sequence[Node], example: Any) -> tuple[list[Node], tuple[Part, ...] | None]:
        """Sources as this rank reads them, and what of each that is; as they are, and None, if they are no DTensors.

        Args:
            sources: of a read.
            example: a state in the layout of the sources.
        """
        if not is_spread(example):
            return list(sources), None
        parts = read_parts(example)
        return [self._own(source, parts, example) for source in sources], parts

    def _own(self, source: Node, parts: tuple[Part, ...], example: Any) -> Node:
        if (source, parts) not in self.made:
            # One node for all reads, which share what they make of a source: where the source is, its region too.
            behind = source
            while source.op == "placeholder" and behind.next.op == "placeholder":
                behind = behind.next
            with self.graph.inserting_after(behind):
                node = self._call(local_part, (source, parts), source, f"{source.name}_own")
            put_in_region(node, region_of(source))
            node.meta["example_value"] = _own_example(example, parts)
            self.made[source, parts] = node
        return self.made[source, parts]

    def spread(self, read: Node, source: Node, parts: tuple[Part, ...], example: Any) -> Node:
        """A read as its readers take it.

        Args:
            read: the depth attention.
            source: one of its sources, of the same shape.
            parts: what of the sources it was given.
            example: a state in the layout of the sources.
        """
        read.meta["example_value"] = _own_example(example, parts)
        node = self._call(spread_like, (read, source, parts), read, f"{read.name}_spread")
        spread = placed(example)
        if spread is not None and spread.parts == parts:
            node.meta["example_value"] = example
        return node

    def _call(self, function: Any, arguments: tuple[Any, ...], origin: Node, name: str) -> Node:
        node = self.graph.create_node("call_function", function, arguments, name=name)
        provenance.copy(origin, node)
        return annotate(node, Annotation("carry", self.stream))


def _own_example(example: Any, parts: tuple[Part, ...]) -> Any:
    """The fake value of what this rank holds of a state."""
    assert is_spread(example)
    with torch.no_grad():
        spread = placed(example)
        own = held(example) if spread is not None and spread.parts == parts else local_part(example, parts)
    return torch.empty_like(own, memory_format=torch.contiguous_format).requires_grad_(example.requires_grad)
