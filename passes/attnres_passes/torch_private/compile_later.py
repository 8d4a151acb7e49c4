"""Compiling a copy of a captured graph after Dynamo is done with it, while the graph is being called."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule

from attnres_passes.torch_private import torch_compat


def compile_later(gm: GraphModule, inputs: list[Any], inner: str, mode: str | None) -> Callable[..., Any]:
    """``torch_compat.compile_inner`` of a copy of a captured graph, during a call of that graph.

    inputs: those of the call. Sizes are dynamic where Dynamo found them to be: the values that it recorded for its
    placeholders stand for them, and its guards hold. Placeholders without such a value have the sizes of their input.
    """
    if inner == "eager":
        return torch_compat.compile_inner(gm, inputs, inner, mode)
    recorded = [torch_compat.example_value(node) for node in gm.graph.nodes if node.op == "placeholder"]
    fake_mode = torch_compat.fake_mode_of(recorded)
    examples = [_as_called(example, value, fake_mode) for example, value in zip(recorded, inputs, strict=True)]
    with torch_compat.tracing_under(fake_mode), torch_compat.without_new_guards(fake_mode):
        return torch_compat.compile_inner(gm, examples, inner, mode)


def _as_called(example: Any, value: Any, fake_mode: Any) -> Any:
    """The recorded value of a placeholder; a new one where tracing the graph has changed it, or recorded none."""
    if not isinstance(value, torch.Tensor):
        return value if example is None else example
    if not torch_compat.is_fake(example):
        return fake_mode.from_tensor(value, static_shapes=True)
    if example.requires_grad == value.requires_grad and example.is_leaf == value.is_leaf:
        return example
    with fake_mode:
        fresh = torch.empty_strided(
            example.shape, example.stride(), dtype=example.dtype, device=example.device
        ).requires_grad_(value.requires_grad)
        return fresh if value.is_leaf else fresh.view_as(fresh)


def unseen_by_checkpoints() -> contextlib.AbstractContextManager[Any]:
    """Compile or analyse inside a forward pass under activation checkpointing, which counts the tensors it saves."""
    return torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
