"""Values without data for a part of a graph: what it is given, and what it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import GraphModule, Interpreter

from attnres_passes.torch_private.example_values import size_token, symbols_of
from attnres_passes.torch_private.recompute import checkpoint_in_graph


@dataclass(frozen=True)
class Example:
    """What a compiler is told of one value: of a tensor all but its data, of a number the number or its symbol.

    Equal where the same compiled code serves: sizes are compared as expressions, which adds no guard. value: to make
    the tensor of, or the number.
    """

    kind: tuple[Any, ...]
    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Example) and self.kind == other.kind

    def __hash__(self) -> int:
        return hash(self.kind)

    @property
    def has_symbols(self) -> bool:
        """Whether it is a symbol, or has one among its sizes."""
        return bool(symbols_of(self.value))

    def fresh(self) -> Any:
        """A new tensor without data, or the number; call it under the fake mode.

        Two parts may be given the same tensor, or one two: no tensor stands for two, as compilers would take two inputs
        for one.
        """
        value = self.value
        if not isinstance(value, Tensor):
            return value
        requires_grad, is_leaf = self.kind[-2:]
        made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
        made.requires_grad_(requires_grad)
        return made if is_leaf or not requires_grad else made.view_as(made)


def is_plain(value: Tensor) -> bool:
    """Whether a tensor is strided, and of no class with a behaviour of its own."""
    return type(value) in (Tensor, FakeTensor, nn.Parameter, nn.Buffer) and value.layout is torch.strided


def example_of(value: Any, requires_grad: bool = False) -> Example:
    """The example of a value.

    Args:
        value: a tensor, with data or without, or a number, which may be a symbol.
        requires_grad: of the tensor that will be given.
    """
    if not isinstance(value, Tensor):
        symbolic = isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool))
        return Example(("number", type(value), str(value.node.expr) if symbolic else value), value)
    sizes, strides = tuple(map(size_token, value.shape)), tuple(map(size_token, value.stride()))
    return Example(("tensor", sizes, strides, value.dtype, value.device, requires_grad, value.is_leaf), value)


class _WithoutCheckpoints(Interpreter):
    """Runs bodies of checkpoints as what they are: there is nothing to compute again of values without data."""

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is checkpoint_in_graph:
            body, *operands = args
            return _WithoutCheckpoints(body).run(*operands)
        return super().call_function(target, args, kwargs)


def results_of(
    part: GraphModule, examples: Sequence[Example], fake_mode: FakeTensorMode
) -> tuple[tuple[Example, ...], list[int]]:
    """What a part gives, and the places of the inputs that it changes in place.

    Args:
        part: gives a tuple.
        examples: of its inputs.
        fake_mode: of all values of the graph, while Dynamo hands it over: what they decide, its guards hold.
    """
    with fake_mode, enable_python_dispatcher():
        given = [example.fresh() for example in examples]
        versions = [value._version if isinstance(value, Tensor) else 0 for value in given]
        results = _WithoutCheckpoints(part).run(*given)
        now = [value._version if isinstance(value, Tensor) else 0 for value in given]
    changed = [index for index, (before, after) in enumerate(zip(versions, now, strict=True)) if before != after]
    return tuple(example_of(value, isinstance(value, Tensor) and value.requires_grad) for value in results), changed
