"""The values without data that Dynamo recorded for the nodes of a graph, and their sizes, which may be symbols."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, TypeGuard

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves


def example_value(node: torch.fx.Node) -> Any:
    """The fake value that Dynamo recorded for a node; None where it recorded none."""
    return node.meta.get("example_value", node.meta.get("val"))


def fake_mode_of(values: list[Any]) -> FakeTensorMode:
    """The fake mode that the example values of a captured graph belong to, or a new one.

    The tracing context is no guide: while Dynamo calls a backend, it holds a mode newer than the graph's values.
    """
    for value in tree_leaves(values):
        if isinstance(value, FakeTensor):
            return value.fake_mode
    return FakeTensorMode(allow_non_fake_inputs=True)


def is_fake(value: Any) -> bool:
    """Whether a value is a tensor without data."""
    return isinstance(value, FakeTensor)


def is_plain_tensor(value: Any) -> TypeGuard[torch.Tensor]:
    """A tensor that is not a wrapper of a functorch level (those cannot be inspected from outside the level)."""
    return isinstance(value, torch.Tensor) and not torch._C._functorch.is_functorch_wrapped_tensor(value)


def is_wrapper(value: Any) -> bool:
    """Whether a value is a tensor that holds other tensors, as a DTensor holds its local part."""
    return torch.utils._python_dispatch.is_traceable_wrapper_subclass(value)


def storage_id(tensor: torch.Tensor) -> int:
    """A number of the memory that holds a tensor, while a tensor in it is alive.

    Tensors without storage (sparse ones, functional wrappers) share theirs with no other.
    """
    return int(tensor.untyped_storage()._cdata) if tensor.layout is torch.strided else -id(tensor)


def storage_number_kept(tensor: torch.Tensor) -> Any:
    """While this is held, ``storage_id`` of a strided tensor stands for no other memory, and the memory may go."""
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


def size_token(size: Any) -> Any:
    """A size as an int or a sympy expression: comparing those adds no guard, as comparing symbolic sizes would."""
    return size.node.expr if isinstance(size, torch.SymInt) else int(size)


def symbols_of(value: Any) -> list[Any]:
    """The symbols in the sizes of a value, or in the number that it is, in their order."""
    from torch.fx.experimental.symbolic_shapes import free_symbols

    leaves = [leaf for leaf in tree_leaves(value) if _has_sizes(leaf)]
    return sorted({symbol for leaf in leaves for symbol in free_symbols(leaf)}, key=str)


def size_hint(size: Any) -> int | None:
    """A size as it is in this call, without a guard on it; None where that is not known before the call."""
    return size.node.hint if isinstance(size, torch.SymInt) else int(size)


def depends_on_data(gm: torch.fx.GraphModule) -> bool:
    """Whether a captured graph holds numbers or sizes that are not known before it has run."""
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    values = (example_value(node) for node in gm.graph.nodes)
    return any(free_unbacked_symbols(leaf) for value in values for leaf in tree_leaves(value) if _has_sizes(leaf))


def sizes_as_symbols(gm: torch.fx.GraphModule) -> contextlib.AbstractContextManager[Any]:
    """Where sizes of a captured graph are symbols, composites that take numbers alone decompose in Python.

    Elsewhere nothing is changed: what a composite decomposes into may be other operators in Python than in C++.
    """
    if any(symbols_of(example_value(node)) for node in gm.graph.nodes):
        return enable_python_dispatcher()
    return contextlib.nullcontext()


def _has_sizes(value: Any) -> bool:
    return isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)) or is_plain_tensor(value)


@contextlib.contextmanager
def without_new_guards(fake_mode: FakeTensorMode) -> Iterator[None]:
    """Run fake tensors of ``fake_mode`` without adding guards or unbacked symbols to the graph being compiled."""
    shape_env = fake_mode.shape_env
    if shape_env is None:
        yield
        return
    with shape_env.suppress_guards(), shape_env.ignore_fresh_unbacked_symbols():
        yield
