"""Analysis: the nodes of a normed read from the state that it reads to where the scale of that state is gone.

For ``x * rsqrt(mean(x**2) + 1e-6) * weight`` these are the nodes up to the first product, and 1e-6 is what keeps the
scale from being gone entirely: a depth attention with fresh queries gives such a read the mean of the sources where the
plain model has their sum.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

from torch.utils._pytree import tree_leaves

from attnres_passes.analyses.aten_trace import AtenTrace, Op
from attnres_passes.analyses.carries.factor import is_zeros
from attnres_passes.analyses.degrees.degree import LARGEST_EPS, ZERO, Degree, is_shape_only
from attnres_passes.analyses.degrees.joined import Joined
from attnres_passes.analyses.degrees.rules import output_degrees


@dataclass(frozen=True)
class ScaleSpan:
    """Nodes of a read, by index, in graph order.

    ends: those among them behind which the scale is gone; eps: the constants, largest first, that are added on the way
    or bound a divisor.
    """

    nodes: tuple[int, ...]
    ends: frozenset[int]
    eps: tuple[float, ...]


def scale_span(trace: AtenTrace, uses: Sequence[tuple[int, int]]) -> ScaleSpan:
    """Follow a normed read. Looks once at each operation of its span.

    Args:
        trace: of the captured graph.
        uses: value on the stream, and index of the reading node, of each reader that belongs to the read.
    """
    degrees, ops = _followed(trace, uses)
    nodes = sorted({op.node for op in ops})
    eps = set[float]().union(*map(_small_constants, ops))
    ends = frozenset(node for node in nodes if _is_end(trace, node, degrees))
    return ScaleSpan(tuple(nodes), ends, tuple(sorted(eps, reverse=True)))


def felt_outputs(trace: AtenTrace, uses: Sequence[tuple[int, int]]) -> frozenset[int]:
    """Positions of the outputs of a graph that scale with what some readers are given, in any way.

    Args:
        trace, uses: those of ``scale_span``.
    """
    degrees, _ = _followed(trace, uses)
    return frozenset(place for place, value in enumerate(trace.graph_outputs) if value in degrees)


def _followed(trace: AtenTrace, uses: Sequence[tuple[int, int]]) -> tuple[dict[int, Degree | Joined], list[Op]]:
    """The values that scale with a state that is read, by their degrees, and the operations that read them."""
    degrees: dict[int, Degree | Joined] = {value: Fraction(1) for value, _ in uses}

    def shape(value: int) -> tuple[Any, ...]:
        return trace.values[value].shape

    pending = sorted({op for value, node in uses for op in trace.users[value] if trace.ops[op].node == node})
    queued, visited = set(pending), list[Op]()
    while pending:
        op = trace.ops[heapq.heappop(pending)]
        if is_shape_only(op):
            continue
        visited.append(op)
        found = output_degrees(op, lambda value: degrees.get(value, ZERO), partial(is_zeros, trace), shape)
        for value, degree in zip(op.outputs, found, strict=True):
            if degree == ZERO:
                continue
            degrees[value] = degree
            fresh = set(trace.users[value]) - queued
            queued |= fresh
            for user in fresh:
                heapq.heappush(pending, user)
    return degrees, visited


def _is_end(trace: AtenTrace, node: int, degrees: dict[int, Degree | Joined]) -> bool:
    output = trace.node_output[node]
    return output is not None and output not in degrees and trace.values[output].is_floating


def _small_constants(op: Op) -> set[float]:
    leaves = tree_leaves((op.args, op.kwargs))
    return {abs(leaf) for leaf in leaves if isinstance(leaf, float) and 0 < abs(leaf) <= LARGEST_EPS}
