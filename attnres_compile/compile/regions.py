"""``regions=True``: the parts of a graph between its reads are compiled, each kind of them once.

A deep model is the same few parts over and over. What is compiled for one part serves all that are alike: the same
calls, on inputs of the same sizes, strides, dtypes and devices. Python calls them one after the other, and autograd
goes from one to the next, as it does between layers that are compiled by themselves.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from attnres_passes.ir.plan import Plan
from attnres_passes.lower.split_at_reads import NotSplit, Part, split_at_reads
from attnres_passes.torch_private.borders.part_examples import (
    Example,
    example_of,
    is_plain,
    results_of,
)
from attnres_passes.torch_private.example_values import example_value, fake_mode_of
from attnres_passes.torch_private.inner_compilers import compile_examples, compile_inner

log = logging.getLogger("attnres_compile")


def compile_graph(gm: GraphModule, inputs: list[Any], plan: Plan, mode: str | None) -> Callable[..., Any]:
    """Hand a graph to the inner compiler, whole, or in parts where the config asks for it and the graph can be cut.

    Args:
        gm: lowered, its checkpoints closed.
        inputs: examples of its inputs, in order.
        plan: its config says how.
        mode: one of Inductor's modes; None for none.
    """
    config = plan.config
    if not config.regions:
        return compile_inner(gm, inputs, config.inner, mode)
    parts = split_at_reads(gm)
    if not isinstance(parts, NotSplit):
        compiled = _Compiler(gm, inputs, config.inner, mode).run(parts)
        if not isinstance(compiled, NotSplit):
            return compiled
        parts = compiled
    log.warning("attnres: regions=True, and yet this graph is compiled as one: %s", parts.message)
    return compile_inner(gm, inputs, config.inner, mode)


class _Compiled(nn.Module):
    """What an inner compiler made of a part, as graphs call it."""

    def __init__(self, compiled: Callable[..., Any]) -> None:
        super().__init__()
        self.compiled = compiled

    def forward(self, *given: Any) -> Any:
        return self.compiled(*given)


class _Compiler:
    """Follows the values of a graph without data, and compiles each kind of part when it first comes.

    known: by kind, what was compiled, and what it gives.
    """

    def __init__(self, gm: GraphModule, inputs: Sequence[Any], inner: str, mode: str | None) -> None:
        self.gm, self.inner, self.mode = gm, inner, mode
        placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
        self.fake_mode = fake_mode_of([*map(example_value, placeholders), *inputs])
        self.inputs = dict(zip(placeholders, inputs, strict=True))
        self.known: dict[Any, tuple[str, tuple[Example, ...]]] = {}
        self.calls = GraphModule({}, Graph())
        self.graph = Graph()
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
            examples = tuple(values[node] for node in part.inputs)
            kind = (part.token, examples)
            if kind not in self.known:
                made = self._compiled(part, examples, parts)
                if isinstance(made, NotSplit):
                    return made
                self.known[kind] = f"attnres_part_{len(self.known)}", made[1]
                self.calls.add_submodule(self.known[kind][0], _Compiled(made[0]))
            name, results = self.known[kind]
            call = self.graph.call_module(name, tuple(self.env[node] for node in part.inputs))
            for index, (node, result) in enumerate(zip(part.outputs, results, strict=True)):
                values[node] = result
                self.env[node] = self.graph.call_function(operator.getitem, (call, index))
        (output,) = (node for node in self.gm.graph.nodes if node.op == "output")
        for node in output.all_input_nodes:
            if node.op == "get_attr":
                self.env[node] = self.graph.node_copy(node)
                setattr(self.calls, str(node.target), operator.attrgetter(str(node.target))(self.gm))
        self.graph.node_copy(output, self.env.__getitem__)
        log.info("attnres: regions=True: %d parts, %d kinds, each compiled once", len(parts), len(self.known))
        return GraphModule(self.calls, self.graph).forward

    def _compiled(
        self, part: Part, examples: Sequence[Example], parts: Sequence[Part]
    ) -> tuple[Callable[..., Any], tuple[Example, ...]] | NotSplit:
        results, changed = results_of(part.gm, examples, self.fake_mode)
        for index in changed:
            node = part.inputs[index]
            if node.op != "placeholder" or sum(node in other.inputs for other in parts) > 1:
                return NotSplit(f"one sublayer changes in place what another one is given ({part.origin})")
        if [node.target for node in part.gm.graph.nodes if node.op.startswith("call")] == [torch.add]:
            # An addition to the partial sum: a compiler would only put calls around it.
            return part.gm.forward, results
        return compile_examples(part.gm, examples, self.fake_mode, self.inner, self.mode), results
