"""Pass: lowered -> the calls of its parts. A part is what lies between two reads, or a read; alike parts are one graph.

Before::

    read = naive_read([x, a], query, key_weight)
    m = linear(norm(read), weight)
    partial = add(a, m)
    read_1 = naive_read([x, partial], query_1, key_weight_1)
    m_1 = linear(norm(read_1), weight_1)

After::

    read = part_1(x, a, query, key_weight)
    m = part_2(read, weight)
    partial = part_3(a, m)
    read_1 = part_1(x, partial, query_1, key_weight_1)
    m_1 = part_2(read_1, weight_1)

So what all layers have in common is compiled once, and a read once for each number of sources. A cut lies behind every
source of a read and around every read. What several parts need and no source goes into (masks, rotary angles) comes
before the first of them; otherwise the first sublayer would be a part of its own kind.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import SymInt, Tensor
from torch.fx import Graph, GraphModule, Node

from attnres_passes.ir import provenance
from attnres_passes.ir.annotations import annotation_of
from attnres_passes.lower.alike import GraphToken, is_in_place, token_of
from attnres_passes.torch_private.example_values import example_value, symbols_of
from attnres_passes.torch_private.graph_copies import copy_dynamo_source, mark_as_unknown
from attnres_passes.torch_private.operators import begins_mode, ends_mode

_OF_READS = ("read", "schedule", "key", "norm")


@dataclass(frozen=True)
class Part:
    """One part of a graph, and where its values come from.

    gm: takes ``inputs`` and gives ``outputs``, as a tuple; inputs, outputs: nodes of the whole graph; token: equal for
    parts that do the same with what they are given; origin: the module and line of its first node.
    """

    gm: GraphModule
    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]
    token: GraphToken
    origin: str


@dataclass(frozen=True)
class NotSplit:
    """Why a graph stays one. message: what is in the way, with its module and line."""

    message: str


def split_at_reads(gm: GraphModule) -> tuple[Part, ...] | NotSplit:
    """Cut a graph into parts, in the order in which they run. Changes nothing.

    Args:
        gm: lowered, its checkpoints closed.
    """
    numbers = _numbers(gm)
    if isinstance(numbers, NotSplit):
        return numbers
    members: dict[int, list[Node]] = {}
    for node, number in numbers.items():
        members.setdefault(number, []).append(node)
    placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
    sizes = {
        symbol: node
        for node in placeholders
        if isinstance(example_value(node), SymInt)
        for symbol in symbols_of(example_value(node))
    }
    parts = tuple(_part(gm, members[number], numbers, sizes) for number in sorted(members))
    for part in parts:
        for node in part.outputs:
            if not isinstance(example_value(node), (Tensor, SymInt, type(None))):
                return NotSplit(f"several sublayers need a {type(example_value(node)).__name__} ({_origin(node)})")
    return parts


def _numbers(gm: GraphModule) -> dict[Node, int] | NotSplit:
    """The number of the part that each node is in, in the order of the nodes."""
    nodes = [node for node in gm.graph.nodes if node.op not in ("placeholder", "output", "get_attr")]
    reads = [node for node in nodes if _mark(node)]
    if not reads:
        return dict.fromkeys(nodes, 0)
    sources = {given for read in reads for given in read.all_input_nodes if not _mark(given) and not _is_added(given)}
    numbers: dict[Node, int] = {}
    number, open_modes, begins = 0, 0, False
    previous = ""
    for node in nodes:
        mark = _mark(node)
        is_sum = _is_write(node) and not sources.isdisjoint(node.all_input_nodes)
        if begins or mark != previous or is_sum:
            if open_modes and mark != previous:
                return NotSplit(f"a mode is on around a read ({_origin(node)})")
            number += not open_modes
        open_modes += begins_mode(node) - ends_mode(node)
        numbers[node] = number
        begins, previous = node in sources or _is_write(node), mark
    _with_their_tuples(numbers)
    _before_the_first(numbers, sources)
    return numbers


def _mark(node: Node) -> str:
    """The read or group of reads that a node is for; '' for nodes of sublayers."""
    found = annotation_of(node)
    if found is None or found.kind not in _OF_READS:
        return ""
    return f"{found.stream} {found.read or found.group}"


def _is_write(node: Node) -> bool:
    found = annotation_of(node)
    return found is not None and found.kind == "write"


def _is_added(node: Node) -> bool:
    found = annotation_of(node)
    return found is not None and found.kind == "parameter"


def _with_their_tuples(numbers: dict[Node, int]) -> None:
    """Take items of tuples where the tuple is made: tensors alone go from part to part."""
    for node in numbers:
        made = node.args[0] if node.target is operator.getitem else None
        if isinstance(made, Node) and made in numbers and not isinstance(example_value(made), Tensor):
            numbers[node] = numbers[made]


def _before_the_first(numbers: dict[Node, int], sources: set[Node]) -> None:
    """Move what several parts need, or none, and no source goes into before all that a source goes into."""
    modes = list(_under_modes(numbers))
    free = _free(numbers, sources, modes)
    first = min(numbers[node] for node in sources if node in numbers) if _has_root(numbers, sources) else -1
    needed = [node for node in free if not any(numbers.get(user) == numbers[node] for user in node.users)]
    needed += [node for node in free if any(numbers.get(user, numbers[node]) != numbers[node] for user in node.users)]
    moved: set[Node] = set()
    while needed:
        node = needed.pop()
        if node in moved or node not in free:
            continue
        moved.add(node)
        needed += [given for given in node.all_input_nodes if given in numbers]
        needed += [other for unit in modes if node in unit for other in unit]
    for node in moved:
        numbers[node] = first
    _with_their_tuples(numbers)


def _free(numbers: Mapping[Node, int], sources: set[Node], modes: Sequence[Sequence[Node]]) -> set[Node]:
    """Nodes that no source goes into, and that read nothing that another one changes.

    What stands under a mode moves with it: all of it is free, or none.
    """
    changed = {node.args[0] for node in numbers if is_in_place(node) and node.args}
    switches = {node for unit in modes for node in unit if begins_mode(node) or ends_mode(node)}
    held: set[Node] = set()
    while True:
        free = set(switches) - held
        for node in numbers:
            fixed = node in sources or node in changed or node in held or node in switches
            fixed = fixed or bool(_mark(node)) or node.is_impure() or is_in_place(node)
            given = node.all_input_nodes
            if not fixed and changed.isdisjoint(given) and all(one in free or one not in numbers for one in given):
                free.add(node)
        new = {node for unit in modes if not free.issuperset(unit) for node in unit} - held
        if not new:
            return free
        held |= new


def _has_root(numbers: Mapping[Node, int], sources: set[Node]) -> bool:
    """Whether the graph makes the root of a stream, and is not given it."""
    return any(node in numbers and not _is_write(node) for node in sources)


def _under_modes(nodes: Iterable[Node]) -> Iterator[list[Node]]:
    """Nodes from where a mode begins to where it ends, all together; one after the other."""
    depth, unit = 0, []
    for node in nodes:
        depth += begins_mode(node)
        if depth:
            unit.append(node)
        depth -= ends_mode(node)
        if unit and not depth:
            yield unit
            unit = []


def _part(gm: GraphModule, members: Sequence[Node], numbers: Mapping[Node, int], sizes: Mapping[Any, Node]) -> Part:
    inside = set(members)
    given = dict.fromkeys(
        node for member in members for node in member.all_input_nodes if node not in inside and node.op != "get_attr"
    )
    for node in list(given):
        # A compiler finds a size by the input that is this size.
        given.update(dict.fromkeys(sizes[symbol] for symbol in symbols_of(example_value(node)) if symbol in sizes))
    outputs = tuple(node for node in members if not inside.issuperset(node.users))
    graph, env = Graph(), {}
    for node in given:
        env[node] = graph.placeholder(node.name)
        env[node].meta = dict(node.meta)
        mark_as_unknown(env[node])
        copy_dynamo_source(node, env[node])
    for member in members:
        for node in member.all_input_nodes:
            if node.op == "get_attr" and node not in env:
                env[node] = graph.node_copy(node)
        env[member] = graph.node_copy(member, env.__getitem__)
    graph.output(tuple(env[node] for node in outputs))
    part = GraphModule(gm, graph)
    return Part(part, tuple(given), outputs, token_of(part), _origin(members[0]))


def _origin(node: Node) -> str:
    where = provenance.source_line(node)
    path = provenance.module_path(node)
    return f"{path} {where}".strip() or node.format_node() or node.name
