"""Analysis: the matrix products behind the norm of a read that make q, k and v of an attention.

For ``n = norm(x)`` and ``attention(rotary(q_proj(n)), rotary(k_proj(n)), v_proj(n))`` these are the three projections,
by what the attention takes them as. They are told apart by where they lead to in the graph, and by no name.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from attnres_passes.analyses.arguments.attentions import ARGUMENTS, Argument
from attnres_passes.analyses.aten_trace import AtenTrace
from attnres_passes.analyses.chains import is_matrix_product
from attnres_passes.analyses.degrees.degree import is_shape_only
from attnres_passes.analyses.reads import ReadGroup
from attnres_passes.ir import provenance

_NORMED = -1
"""In place of a matrix product: what has been through none."""

Arguments = Mapping[int, Mapping[int, frozenset[Argument]]]
"""What ``attention_arguments`` gives."""


@dataclass(frozen=True)
class Projections:
    """Nodes of the graph, by index. of: those that make each argument; every: these, and all others behind the norm."""

    of: Mapping[Argument, frozenset[int]]
    every: frozenset[int]


def projections_behind(
    trace: AtenTrace, read: ReadGroup, arguments: Arguments, stream_ops: Collection[int]
) -> Projections | str:
    """The projections of q, k and v behind a read, or why they cannot be told apart.

    Looks once at each operation between the read and the next ones of the stream.

    Args:
        trace: of the captured graph.
        read: of a state.
        arguments: of the graph.
        stream_ops: operations that carry a stream on, or add to it; nothing is followed through them.
    """
    if not read.normed:
        return "it is not normed"
    if read.projected_first:
        return "projections read the state itself, and norms are behind them"
    taken_as, products = _followed(trace, read, arguments, stream_ops)
    if not taken_as:
        return "no attention that is recognised takes what its norm leads to"
    if _NORMED in taken_as:
        return f"an attention takes the normed state as {_listed(taken_as[_NORMED])}, without a matrix product"
    return _told_apart(trace, taken_as, products)


def _told_apart(
    trace: AtenTrace, taken_as: Mapping[int, Collection[Argument]], products: frozenset[int]
) -> Projections | str:
    """The projections, if each makes one argument, and each argument has one.

    Args:
        trace: of the captured graph.
        taken_as: of each matrix product that leads to an attention.
        products: nodes of all matrix products behind the norm.
    """
    of: dict[Argument, set[int]] = defaultdict(set)
    for product, taken in taken_as.items():
        if len(taken) > 1:
            return f"{_listed(taken)} are of one matrix product{_place(trace, trace.ops[product].node)}"
        for argument in taken:
            of[argument].add(trace.ops[product].node)
    if len(of) < len(ARGUMENTS):
        return f"its norm leads to {_listed(of)} of an attention alone"
    for node in of["q"] | of["k"] | of["v"]:
        made = [argument for argument in ARGUMENTS if node in of[argument]]
        if len(made) > 1:
            return f"{_listed(made)} are made in one operation of the graph{_place(trace, node)}"
    return Projections({argument: frozenset(of[argument]) for argument in ARGUMENTS}, products)


def _followed(
    trace: AtenTrace, read: ReadGroup, arguments: Arguments, stream_ops: Collection[int]
) -> tuple[dict[int, set[Argument]], frozenset[int]]:
    """What each matrix product behind a read is taken as, in the order of the graph; and the nodes of all of them."""
    through: dict[int, frozenset[int]] = {}
    taken_as: dict[int, set[Argument]] = {}
    products: set[int] = set()
    uses = set(read.uses)
    pending = sorted({op for value, node in uses for op in trace.users[value] if trace.ops[op].node == node})
    queued = set(pending)
    while pending:
        op = trace.ops[heapq.heappop(pending)]
        if is_shape_only(op) or op.index in stream_ops:
            continue
        given = {
            value: through[value] if value in through else frozenset([_NORMED])
            for value in op.inputs
            if value in through or (value, op.node) in uses
        }
        if op.index in arguments:
            for value, argument in arguments[op.index].items():
                for product in sorted(given.get(value, ())):
                    taken_as.setdefault(product, set()).update(argument)
            continue
        led = frozenset[int]().union(*given.values())
        if _NORMED in led and is_matrix_product(op):
            products.add(op.node)
            led = led - {_NORMED} | {op.index}
        for output in op.outputs:
            through[output] = led
            for user in trace.users[output]:
                if user not in queued:
                    queued.add(user)
                    heapq.heappush(pending, user)
    return taken_as, frozenset(products)


def _listed(arguments: Collection[Argument]) -> str:
    """``q, k and v``"""
    *first, last = [argument for argument in ARGUMENTS if argument in arguments]
    return f"{', '.join(first)} and {last}" if first else last


def _place(trace: AtenTrace, node: int) -> str:
    module = provenance.module_path(trace.nodes[node])
    return f" ({module})" if module else ""
