"""Pass: captured -> captured. Calls that run a body of their own are opened: the body stands in their place.

Before, with ``body_0`` as ``s1 = x + a(x); return (s1,)``::

    checkpoint = tag_activation_checkpoint(body_0, x, weight, use_reentrant=False)
    x_1 = checkpoint[0]

After::

    a = linear(x, weight)       # region 0
    s1 = x + a                  # region 0

Opened are activation checkpoints, whose nodes keep what region they stand in (``ir.regions``), and regions that are
compiled once for several calls (``nested_compile_region``, Dynamo's deduplication), whose nodes carry the module paths
and sizes of the layer that calls. Operators that decide at run time what they run (cond, scan, while_loop) stay.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.fx.node import map_arg

from attnres_passes.inline.labels import Labels, Relabelling
from attnres_passes.ir.regions import Region, put_in_region
from attnres_passes.torch_private.example_values import example_value, fake_mode_of, is_fake, without_new_guards
from attnres_passes.torch_private.graph_copies import copy_dynamo_attributes, copy_dynamo_source
from attnres_passes.torch_private.recompute import RegionCall, context_fn_of, region_call
from attnres_passes.torch_private.state import restored_torch_state


def open_regions(gm: GraphModule) -> GraphModule:
    """A copy of a captured graph with the bodies of its regions in it; the graph itself where it has none.

    Args:
        gm: as Dynamo captured it; not changed.
    """
    if not any(region_call(node) for node in gm.graph.nodes):
        return gm
    return _Opener(gm).run()


@dataclass(frozen=True)
class _Frame:
    """A body that is being copied.

    path: of its module in the graph's, '' for the graph itself; region: that its nodes stand in; relabelling: from the
    module paths of its nodes to those of the layer that calls; is_repeated: whether another call was copied before.
    """

    gm: GraphModule
    path: str = ""
    region: Region | None = None
    relabelling: Relabelling | None = None
    is_repeated: bool = False


class _Opener:
    """Copies the graph node by node, and the nodes of bodies in place of their calls. first: labels at the first call
    of each body; regions: how many checkpoints were opened; unknown: nodes whose example value is another call's.
    """

    def __init__(self, gm: GraphModule) -> None:
        self.gm = gm
        self.graph = Graph()
        self.first: dict[int, Labels] = {}
        self.regions: Counter[str] = Counter()
        self.unknown: list[Node] = []

    def run(self) -> GraphModule:
        self._copy(_Frame(self.gm), {})
        opened = GraphModule(self.gm, self.graph)
        copy_dynamo_attributes(self.gm, opened)
        if self.unknown:
            _Examples(opened, self.unknown).make()
        return opened

    def _copy(self, frame: _Frame, env: dict[Node, Any]) -> Any:
        """Copy the nodes of a body. env: what its placeholders stand for; empty for the graph itself.

        Returns:
            What it gives: a tree of nodes and constants.
        """
        bodies = _opened_bodies(frame.gm.graph)
        for node in frame.gm.graph.nodes:
            if node in env or node in bodies:
                continue
            if node.op == "output" and frame.path:
                return map_arg(node.args[0], env.__getitem__)
            call = region_call(node)
            if call is not None:
                env[node] = self._opened(frame, node, call, env)
            elif _is_item(node) and not isinstance(env[node.args[0]], Node):
                env[node] = env[node.args[0]][node.args[1]]
            else:
                env[node] = self._copied(frame, node, env)
        return None

    def _copied(self, frame: _Frame, node: Node, env: Mapping[Node, Any]) -> Node:
        new = self.graph.node_copy(node, env.__getitem__)
        copy_dynamo_source(node, new)
        if frame.path and new.op in ("get_attr", "call_module"):
            new.target = f"{frame.path}.{new.target}"
        put_in_region(new, frame.region)
        if frame.relabelling is not None:
            frame.relabelling.relabel(new)
        if frame.is_repeated and new.op not in ("get_attr", "output"):
            new.meta.pop("example_value", None)
            self.unknown.append(new)
        return new

    def _opened(self, frame: _Frame, node: Node, call: RegionCall, env: Mapping[Node, Any]) -> Any:
        """The body of a call, in place of it."""
        body = _attribute(frame.gm, str(call.body.target))
        operands = [map_arg(operand, env.__getitem__) for operand in call.operands]
        region = frame.region
        if call.is_checkpoint:
            options = {name: value for name, value in node.kwargs.items() if not isinstance(value, Node)}
            region = Region(self.regions["opened"], options, context_fn_of(body), frame.region)
            self.regions["opened"] += 1
        labels = Labels.of(node, operands, frame.relabelling)
        is_repeated = id(body) in self.first
        relabelling = labels.relabelling(self.first.setdefault(id(body), labels), frame.relabelling)
        path = f"{frame.path}.{call.body.target}" if frame.path else str(call.body.target)
        inner = _Frame(body, path, region, relabelling, is_repeated or frame.is_repeated)
        placeholders = [one for one in body.graph.nodes if one.op == "placeholder"]
        return self._copy(inner, dict(zip(placeholders, operands, strict=True)))


def _opened_bodies(graph: Graph) -> set[Node]:
    """The nodes that give bodies to calls that are opened, and nothing to others."""
    calls = [call for call in map(region_call, graph.nodes) if call is not None]
    bodies = {call.body for call in calls}
    return {body for body in bodies if all(_opens(user, body) for user in body.users)}


def _opens(user: Node, body: Node) -> bool:
    call = region_call(user)
    return call is not None and call.body is body


def _is_item(node: Node) -> bool:
    return node.op == "call_function" and node.target is operator.getitem and isinstance(node.args[0], Node)


def _attribute(gm: GraphModule, target: str) -> GraphModule:
    found = gm.get_submodule(target)
    assert isinstance(found, GraphModule)
    return found


class _Examples(Interpreter):
    """Runs an opened graph on the values that Dynamo recorded, for the nodes that have none of their own."""

    def __init__(self, gm: GraphModule, unknown: Sequence[Node]) -> None:
        super().__init__(gm)
        self.unknown = set(unknown)

    def make(self) -> None:
        examples = [example_value(node) for node in self.graph.nodes if node.op == "placeholder"]
        self.fake_mode = fake_mode_of(examples)
        with restored_torch_state(), without_new_guards(self.fake_mode), self.fake_mode:
            self.run(*examples, enable_io_processing=False)

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n.op == "get_attr" and isinstance(result, Tensor) and not is_fake(result):
            return self.fake_mode.from_tensor(result, static_shapes=True)
        if n in self.unknown:
            n.meta["example_value"] = result
        return result
