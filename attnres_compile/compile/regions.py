"""``regions=True``: the parts of a graph between its reads are compiled, each kind of them once.

A deep model is the same few parts over and over. What is compiled for one part serves all that are alike: the same
calls, on inputs of the same sizes, strides, dtypes and devices. Python calls them one after the other, and autograd
goes from one to the next, as it does between layers that are compiled by themselves. Layers of one model that are
compiled by themselves share their kinds, whichever graph a kind came in first.
"""

from __future__ import annotations

import logging
import operator
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from attnres_compile.model.parameters import AttnResParameters
from attnres_kernels import autograd
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.lower.split_at_reads import NotSplit, Part, split_at_reads
from attnres_passes.torch_private import inner_compilers
from attnres_passes.torch_private.borders.part_examples import (
    Example,
    example_of,
    is_plain,
    results_of,
)
from attnres_passes.torch_private.example_values import example_value, fake_mode_of, storage_id

log = logging.getLogger("attnres_compile")


def compile_graph(gm: GraphModule, inputs: list[Any], config: AttnResConfig, mode: str | None) -> Callable[..., Any]:
    """Hand a whole graph to the inner compiler, in parts where the config asks for it and the graph can be cut.

    Args:
        gm: lowered, its checkpoints closed.
        inputs: examples of its inputs, in order.
        config: says how.
        mode: one of Inductor's modes; None for none.
    """
    if not config.regions:
        return inner_compilers.compile_inner(gm, inputs, config.inner, mode)
    return _in_parts(gm, inputs, config, mode, {})


def compile_piece_graph(
    gm: GraphModule, inputs: list[Any], config: AttnResConfig, mode: str | None, *, added: AttnResParameters
) -> Callable[..., Any]:
    """``compile_graph`` of a graph that is a piece of a prepared model: in training in parts, if nothing forbids it.

    Args:
        gm, inputs, config, mode: those of ``compile_graph``.
        added: parameters of the model, whose pieces have their kinds in common.
    """
    by_itself = config.regions is None and config.inner != "eager" and torch.is_grad_enabled()
    if not (config.regions or by_itself):
        return inner_compilers.compile_inner(gm, inputs, config.inner, mode)
    return _in_parts(gm, inputs, config, mode, _shared_kinds.setdefault(added, {}))


def _in_parts(
    gm: GraphModule, inputs: list[Any], config: AttnResConfig, mode: str | None, kinds: dict[Any, _Kind]
) -> Callable[..., Any]:
    parts = split_at_reads(gm)
    if not isinstance(parts, NotSplit):
        compiled = _Compiler(gm, inputs, config.inner, mode, kinds).run(parts)
        if not isinstance(compiled, NotSplit):
            return compiled
        parts = compiled
    level = logging.WARNING if config.regions else logging.INFO
    log.log(level, "attnres: regions=True, and yet this graph is compiled as one: %s", parts.message)
    return inner_compilers.compile_inner(gm, inputs, config.inner, mode)


def compile_graph_later(
    gm: GraphModule, inputs: list[Any], config: AttnResConfig, mode: str | None
) -> Callable[..., Any]:
    """``compile_graph`` during a call of a graph, which can get no more guards: whole.

    Args:
        gm, inputs, config, mode: those of ``compile_graph``.
    """
    return inner_compilers.compile_later(gm, inputs, config.inner, mode)


class _Compiled(nn.Module):
    """What an inner compiler made of a part, as graphs call it."""

    def __init__(self, compiled: Callable[..., Any]) -> None:
        super().__init__()
        self.compiled = compiled

    def forward(self, *given: Any) -> Any:
        return self.compiled(*given)


def _is_operators(gm: GraphModule) -> bool:
    """Whether a graph calls functions on operators of ours alone, or adds once."""
    called = [node.target for node in gm.graph.nodes if node.op.startswith("call")]
    if called == [torch.add]:
        return True
    return all(
        target is operator.getitem or getattr(target, "__module__", "").startswith(autograd.__name__)
        for target in called
    )


@dataclass(frozen=True)
class _Kind:
    """Parts that are alike. module: runs them; results: what they give; changed: the places of the inputs that they
    change in place.
    """

    module: _Compiled
    results: tuple[Example, ...]
    changed: tuple[int, ...]


_shared_kinds: weakref.WeakKeyDictionary[AttnResParameters, dict[Any, _Kind]] = weakref.WeakKeyDictionary()


class _Compiler:
    """Follows the values of a graph without data, and compiles each kind of part that is not known yet."""

    def __init__(
        self, gm: GraphModule, inputs: Sequence[Any], inner: str, mode: str | None, kinds: dict[Any, _Kind]
    ) -> None:
        self.gm, self.inner, self.mode, self.kinds = gm, inner, mode, kinds
        placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
        self.fake_mode = fake_mode_of([*map(example_value, placeholders), *inputs])
        self.inputs = dict(zip(placeholders, inputs, strict=True))
        self.state = (inner, mode, inner_compilers.settings_token())
        self.names: dict[_Kind, str] = {}
        self.compiled = 0
        self.calls, self.graph = GraphModule({}, Graph()), Graph()
        self.env: dict[Node, Node] = {}

    def run(self, parts: Sequence[Part]) -> Callable[..., Any] | NotSplit:
        values: dict[Node, Example] = {}
        for node, given in self.inputs.items():
            value = example_value(node)
            value = given if value is None else value
            if isinstance(value, Tensor) and not is_plain(value):
                return NotSplit(f"the input {node.name} is a {type(value).__name__}")
            values[node] = example_of(value, requires_grad=isinstance(given, Tensor) and given.requires_grad)
            self.env[node] = self.graph.placeholder(node.name)
        for part in parts:
            kind = self._kind(part, tuple(values[node] for node in part.inputs))
            if any(self._is_shared(part.inputs[place], parts) for place in kind.changed):
                return NotSplit(f"one sublayer changes in place what another one is given ({part.origin})")
            call = self.graph.call_module(self._name(kind), tuple(self.env[node] for node in part.inputs))
            for index, (node, result) in enumerate(zip(part.outputs, kind.results, strict=True)):
                values[node] = result
                self.env[node] = self.graph.call_function(operator.getitem, (call, index))
        (output,) = (node for node in self.gm.graph.nodes if node.op == "output")
        for node in output.all_input_nodes:
            if node.op == "get_attr":
                self.env[node] = self.graph.node_copy(node)
                setattr(self.calls, str(node.target), operator.attrgetter(str(node.target))(self.gm))
        self.graph.node_copy(output, self.env.__getitem__)
        log.info("attnres: regions=True: %d parts, %d kinds of them compiled, each once", len(parts), self.compiled)
        return GraphModule(self.calls, self.graph).forward

    def _kind(self, part: Part, examples: tuple[Example, ...]) -> _Kind:
        """The kind of a part that is given such values; compiled, if it is the first."""
        # Symbols of sizes mean nothing outside of their own graph.
        graphs = inner_compilers.sizes_of(self.fake_mode) if any(one.has_symbols for one in examples) else None
        key = self.state, graphs, part.token, examples
        known = self.kinds.get(key)
        if known is not None:
            return known
        results, changed = results_of(part.gm, examples, self.fake_mode)
        if _is_operators(part.gm):
            # Of reads that are operators, and of an addition to the partial sum, a compiler would make no more.
            compiled = part.gm.forward
        else:
            self.compiled += 1
            compiled = inner_compilers.compile_examples(part.gm, examples, self.fake_mode, self.inner, self.mode)
        kind = self.kinds[key] = _Kind(_Compiled(compiled), results, tuple(changed))
        return kind

    def _name(self, kind: _Kind) -> str:
        """Of the module that runs a kind, in the graph of calls."""
        if kind not in self.names:
            self.names[kind] = f"attnres_part_{len(self.names)}"
            self.calls.add_submodule(self.names[kind], kind.module)
        return self.names[kind]

    def _is_shared(self, node: Node, parts: Sequence[Part]) -> bool:
        """Whether a value that a part changes is another part's as well, or lies in the memory of another input.

        A part is compiled for inputs that lie apart.
        """
        value = self.inputs.get(node)
        if not isinstance(value, Tensor) or sum(node in part.inputs for part in parts) > 1:
            return True
        others = (other for other in self.inputs.values() if isinstance(other, Tensor) and other is not value)
        return any(storage_id(other) == storage_id(value) for other in others)
