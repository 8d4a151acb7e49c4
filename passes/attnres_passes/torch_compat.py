"""The one place that touches private parts of torch; each function is covered by tests/passes/test_torch_compat.py.

Checked with torch 2.11 and 2.13.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

OLDEST_TORCH = (2, 11)
NEWEST_TORCH = (2, 13)


def torch_version() -> tuple[int, int]:
    """Major and minor version of the installed torch."""
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def fake_mode_of(values: list[Any]) -> FakeTensorMode:
    """The fake mode that the example values of a captured graph belong to, or a new one.

    The tracing context is no guide: while Dynamo calls a backend, it holds a mode newer than the graph's values.
    """
    for value in tree_leaves(values):
        if isinstance(value, FakeTensor):
            return value.fake_mode
    return FakeTensorMode(allow_non_fake_inputs=True)


@contextlib.contextmanager
def without_new_guards(fake_mode: FakeTensorMode) -> Iterator[None]:
    """Run fake tensors of ``fake_mode`` without adding guards or unbacked symbols to the graph being compiled."""
    shape_env = fake_mode.shape_env
    if shape_env is None:
        yield
        return
    with shape_env.suppress_guards(), shape_env.ignore_fresh_unbacked_symbols():
        yield


@contextlib.contextmanager
def restored_torch_state() -> Iterator[None]:
    """Put the random state, grad mode and autocast state back after running a captured graph.

    A captured graph may hold nodes that switch them.
    """
    grad = torch.is_grad_enabled()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_grad_enabled(grad)


@lru_cache(maxsize=4096)
def is_composite(operator: Any) -> bool:
    """Whether an ATen operator is defined by other operators for autograd and all backends alike."""
    return isinstance(operator, torch._ops.OpOverload) and torch._C._dispatch_has_kernel_for_dispatch_key(
        operator.name(), "CompositeImplicitAutograd"
    )


def size_token(size: Any) -> Any:
    """A size as an int or a sympy expression: comparing those adds no guard, as comparing symbolic sizes would."""
    return size.node.expr if isinstance(size, torch.SymInt) else int(size)


def example_value(node: torch.fx.Node) -> Any:
    """The fake value that Dynamo recorded for a node; None where it recorded none."""
    return node.meta.get("example_value", node.meta.get("val"))


_DYNAMO_MODULE_ATTRIBUTES = ("_param_name_to_source", "_source_to_user_stacks")


def copy_dynamo_attributes(old: torch.fx.GraphModule, new: torch.fx.GraphModule) -> None:
    """Give a copy of a captured graph what compilers look up on the module that Dynamo made."""
    new.meta.update(old.meta)
    for name in _DYNAMO_MODULE_ATTRIBUTES:
        if hasattr(old, name):
            setattr(new, name, getattr(old, name))


def copy_dynamo_source(old: torch.fx.Node, new: torch.fx.Node) -> None:
    """Placeholders carry the source of their value as an attribute, which copying a node leaves behind."""
    if old.op == "placeholder" and hasattr(old, "_dynamo_source"):
        new._dynamo_source = old._dynamo_source  # type: ignore[attr-defined]


def mark_as_added(placeholder: torch.fx.Node) -> None:
    """A placeholder that Dynamo knows nothing of."""
    placeholder._dynamo_source = None  # type: ignore[attr-defined]
