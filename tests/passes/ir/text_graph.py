"""The text of a graph, executed: on stand-ins that build a new graph, or on the values of a call."""

from __future__ import annotations

import ast
import builtins
import importlib
import operator
import pkgutil
from collections.abc import Callable, Sequence
from functools import cache
from math import inf, nan
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_aggregate

import attnres_kernels
from attnres_passes.ir.text import graph_text

CONSTANTS = {"device": torch.device, "inf": inf, "nan": nan, "slice": slice, "Ellipsis": Ellipsis}
"""Names that stand for themselves in both executions; the names of values that FX keeps free are among them."""


def executed(gm: GraphModule, *inputs: Any) -> Any:
    """What the text of a graph computes."""
    text = graph_text(gm)
    return function_of(text, {name: CONSTANTS.get(name) or module_named(name) for name in free_names(text)})(
        gm, *inputs
    )


def assert_text_is_the_graph(gm: GraphModule) -> None:
    """The text, executed on stand-ins, builds the graph that it is of, node by node."""
    text = graph_text(gm)
    graph = graph_of_text(text, gm)
    expected = {node: node.name for node in gm.graph.nodes}
    names = [*argument_names(text), *assigned_names(text), list(expected.values())[-1]]  # the output has none in it
    assert len(graph.nodes) == len(names), "a line makes no node, or more than one"
    assert described(dict(zip(graph.nodes, names, strict=True))) == described(expected)


def graph_of_text(text: str, gm: GraphModule) -> Graph:
    """The graph that the text builds. gm: only its own attributes are used, which the text calls ``self``."""
    graph = Graph()
    attributes = paths_of_self(text)
    roots = {name: CONSTANTS.get(name) or Path(graph, name, module_named(name)) for name in free_names(text)}
    arguments = [Value(graph.placeholder(name)) for name in argument_names(text)]
    graph.output(unwrapped(function_of(text, roots)(Path(graph, "self", gm, attributes), *arguments)))
    return graph


def described(names: dict[Node, str]) -> list[tuple[Any, ...]]:
    """Name, opcode, target and arguments of each node, with names for the nodes in them."""

    def plain(value: Any) -> str:
        return repr(map_aggregate(value, lambda part: Named(names[part]) if isinstance(part, Node) else part))

    return [
        (name, node.op, target_of(node), *(() if node.op == "placeholder" else (plain(node.args), plain(node.kwargs))))
        for node, name in names.items()
    ]


class Named(str):
    """The name of a node, which is not the same as a string."""

    def __repr__(self) -> str:
        return f"%{self}"


def target_of(node: Node) -> Any:
    """What is called; of an operator that has a default, that one, since the text leaves ``.default`` out."""
    target = None if node.op in ("placeholder", "output") else node.target
    return getattr(target, "default", target) if isinstance(target, torch._ops.OpOverloadPacket) else target


class Value:
    """A node in the place of its value."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def __getattr__(self, name: str) -> Callable[..., Value]:
        graph = self.node.graph
        return lambda *args, **kwargs: Value(graph.call_method(name, unwrapped((self, *args)), unwrapped(kwargs)))


class Path:
    """A name with its attributes, in the place of what it leads to. Calling it makes a node.

    attributes: under ``self``, the paths that stand for a value and not for a step on the way to one.
    """

    def __init__(self, graph: Graph, path: str, found: Any, attributes: frozenset[str] = frozenset()) -> None:
        self.graph, self.path, self.found, self.attributes = graph, path, found, attributes

    def __getattr__(self, name: str) -> Any:
        path, found = f"{self.path}.{name}", getattr(self.found, name)
        if path in self.attributes:
            return Value(self.graph.create_node("get_attr", path.removeprefix("self.")))
        return Path(self.graph, path, found, self.attributes)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.found, type) and issubclass(self.found, tuple):
            return self.found(*args, **kwargs)  # a tuple with names, which is an argument of a node
        is_module = self.path.startswith("self.")
        op, target = ("call_module", self.path.removeprefix("self.")) if is_module else ("call_function", self.found)
        return Value(self.graph.create_node(op, target, unwrapped(args), unwrapped(kwargs)))


def unwrapped(value: Any) -> Any:
    """Nodes in the place of ``Value``, and what they lead to in the place of ``Path``."""
    if isinstance(value, Value):
        return value.node
    if isinstance(value, Path):
        return value.found
    if isinstance(value, dict):
        return {key: unwrapped(part) for key, part in value.items()}
    if isinstance(value, slice):
        return slice(*map(unwrapped, (value.start, value.stop, value.step)))
    if hasattr(value, "_fields"):
        return type(value)(*map(unwrapped, value))
    return type(value)(map(unwrapped, value)) if isinstance(value, (list, tuple)) else value


def module_named(name: str) -> Any:
    """What a name that the text does not define itself is."""
    if name in ("operator", "F", "builtins"):
        return {"operator": operator, "F": F, "builtins": builtins}[name]
    return our_modules().get(name) or importlib.import_module(name)


@cache
def our_modules() -> dict[str, Any]:
    """The modules of attnres_kernels that no other has the name of."""
    found: dict[str, list[str]] = {}
    for module in pkgutil.walk_packages(attnres_kernels.__path__, "attnres_kernels."):
        found.setdefault(module.name.rpartition(".")[2], []).append(module.name)
    return {name: importlib.import_module(paths[0]) for name, paths in found.items() if len(paths) == 1}


def function_of(text: str, roots: dict[str, Any]) -> Callable[..., Any]:
    namespace = dict(roots)
    exec(compile(f"from __future__ import annotations\n{text}", "<graph>", "exec"), namespace)
    function: Callable[..., Any] = namespace["forward"]
    return function


def definition(text: str) -> ast.FunctionDef:
    (function,) = ast.parse(text).body
    assert isinstance(function, ast.FunctionDef)
    return function


def argument_names(text: str) -> list[str]:
    return [argument.arg for argument in definition(text).args.args[1:]]


def assigned_names(text: str) -> list[str]:
    """The names that the lines assign, in order."""
    *assignments, last = definition(text).body
    assert isinstance(last, ast.Return)
    targets = [line.target if isinstance(line, ast.AnnAssign) else line.targets[0] for line in assignments]
    return [target.id for target in targets]


def expressions(text: str) -> Sequence[ast.expr]:
    """The right sides of the lines, and what is returned."""
    return [line.value for line in definition(text).body if line.value is not None]


def free_names(text: str) -> set[str]:
    """Names that the text uses and does not define."""
    used = {part.id for right in expressions(text) for part in ast.walk(right) if isinstance(part, ast.Name)}
    return used - {"self", *argument_names(text), *assigned_names(text)}


def paths_of_self(text: str) -> frozenset[str]:
    """Right sides that are nothing but an attribute of ``self``."""
    return frozenset(ast.unparse(right) for right in expressions(text) if isinstance(right, ast.Attribute))
