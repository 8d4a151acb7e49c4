"""Pass: lowered -> lowered. What was opened as a checkpoint is one again, with all that the passes put into it.

Before::

    a = linear(x, weight)                     # region 0
    read = merge(x, inter, .., key)           # region 0, attnres: read 0.1
    m = linear(read, weight_1)                # region 0
    partial = add(a, m)                       # region 0

After::

    checkpoint = tag_activation_checkpoint(region_0, x, weight, inter, key, weight_1)
    partial = checkpoint[0]

So the backward computes a read again where it computes the layer again, by torch's own rules, and what is kept at the
border of a layer is what later layers read: the open partial sum, and each completed block once. The nodes of a region
are moved together; what they need of the others comes before.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import Argument

from attnres_passes.ir import provenance
from attnres_passes.ir.annotations import annotation_of
from attnres_passes.ir.levels import LevelError
from attnres_passes.ir.regions import Region, put_in_region, region_of
from attnres_passes.torch_private.example_values import example_value
from attnres_passes.torch_private.graph_copies import copied, copy_dynamo_attributes, copy_dynamo_source
from attnres_passes.torch_private.recompute import (
    checkpoint_in_graph,
    checkpoint_in_python,
    leave_out_of_policies,
    set_policy,
)


def close_regions(gm: GraphModule, in_python: bool) -> GraphModule:
    """A copy of a graph with a checkpoint for each region; the graph itself where it has none.

    Args:
        gm: lowered; not changed.
        in_python: Python runs the graph as it is, and no compiler.

    Raises:
        LevelError: what a region needs is made of what it gives; a fault of ours.
    """
    closed = gm
    while any(region_of(node) is not None for node in closed.graph.nodes):
        closed = _Closer(copied(closed), in_python).run()
    return closed


def without_regions(gm: GraphModule) -> GraphModule:
    """A copy of a graph that nothing differentiates, and so nothing computes again; the graph itself without regions.

    Args:
        gm: of any level; not changed.
    """
    if all(region_of(node) is None for node in gm.graph.nodes):
        return gm
    plain = copied(gm)
    for node in plain.graph.nodes:
        put_in_region(node, None)
    return plain


class _Closer:
    """Copies a graph with its innermost regions closed. members: the nodes of each of them, in order."""

    def __init__(self, gm: GraphModule, in_python: bool) -> None:
        self.gm = gm
        self.target = checkpoint_in_python if in_python else checkpoint_in_graph
        _place_items(gm.graph)
        regions = {node: region for node in gm.graph.nodes if (region := region_of(node)) is not None}
        depth = max(len(region.path) for region in regions.values())
        self.region = {node: region for node, region in regions.items() if len(region.path) == depth}
        self.members: dict[Region, list[Node]] = {}
        for node, region in self.region.items():
            self.members.setdefault(region, []).append(node)
        self.graph = Graph()
        self.env: dict[Node, Node] = {}
        self.open: set[Region] = set()
        self.closed: set[Region] = set()

    def run(self) -> GraphModule:
        for node in self.gm.graph.nodes:
            self._emit(node)
        closed = GraphModule(self.gm, self.graph)
        copy_dynamo_attributes(self.gm, closed)
        return closed

    def _emit(self, node: Node) -> None:
        """Copy a node, or close its region, behind all that it needs."""
        if node in self.env:
            return
        region = self.region.get(node)
        if region is not None:
            self._close(region, node)
            return
        for given in node.all_input_nodes:
            self._emit(given)
        self.env[node] = self.graph.node_copy(node, self.env.__getitem__)
        copy_dynamo_source(node, self.env[node])

    def _close(self, region: Region, asked: Node) -> None:
        """The call of the body, and its results in place of the members that others need; once. asked: a member."""
        if region in self.open:
            raise LevelError(
                f"lowered graph: what needs {asked.format_node()} ({provenance.source_line(asked)}) is needed by its "
                "checkpoint. Report this with the files that ATTNRES_DUMP=dir writes."
            )
        if region in self.closed:
            return
        self.open.add(region)
        members = self.members[region]
        inside = set(members)
        given = list(dict.fromkeys(node for one in members for node in one.all_input_nodes if node not in inside))
        for node in given:
            self._emit(node)
        results = [node for node in members if not inside.issuperset(node.users)]
        name = f"attnres_region_{region.number}"
        self.gm.add_submodule(name, self._body(region, given, results))
        origin = next((node for node in members if "stack_trace" in node.meta), members[0])
        body = self._call("get_attr", name, (), {}, origin)
        operands = (body, *(self.env[node] for node in given))
        call = self._call("call_function", self.target, operands, dict(region.options), origin)
        call.meta["example_value"] = tuple(example_value(node) for node in results)
        for index, node in enumerate(results):
            self.env[node] = self._call("call_function", operator.getitem, (call, index), {}, node)
            if "example_value" in node.meta:
                self.env[node].meta["example_value"] = node.meta["example_value"]
        self.open.remove(region)
        self.closed.add(region)

    def _call(
        self, op: str, target: Any, args: tuple[Argument, ...], kwargs: dict[str, Argument], origin: Node
    ) -> Node:
        node = self.graph.create_node(op, target, args, kwargs)
        provenance.copy(origin, node)
        region = region_of(origin)
        put_in_region(node, None if region is None else region.outer)
        return node

    def _body(self, region: Region, given: Sequence[Node], results: Sequence[Node]) -> GraphModule:
        graph = Graph()
        env: dict[Node, Node] = {}
        for node in given:
            env[node] = graph.placeholder(node.name)
            env[node].meta["example_value"] = example_value(node)
        for node in self.members[region]:
            env[node] = graph.node_copy(node, env.__getitem__)
            if annotation_of(node) is not None:
                leave_out_of_policies(env[node])
        graph.output(tuple(env[node] for node in results))
        body = GraphModule(self.gm, graph)
        set_policy(body, region.context_fn)
        return body


def _place_items(graph: Graph) -> None:
    """An item of a tuple stands where the tuple does, so that only tensors cross the borders of a region."""
    for node in graph.nodes:
        if node.op != "call_function" or node.target is not operator.getitem or not isinstance(node.args[0], Node):
            continue
        if not isinstance(example_value(node.args[0]), Tensor):
            put_in_region(node, region_of(node.args[0]))
