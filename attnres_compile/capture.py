"""Capture of a model by Dynamo, without compiling or changing anything.

A model that Dynamo takes in as one graph is captured without being run. One with graph breaks has to run once,
eagerly, for Dynamo to reach its later graphs; its buffers and the random state are put back afterwards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from attnres_passes import torch_compat
from attnres_passes.torch_compat import GraphEnd
from torch import nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from attnres_compile.errors import CaptureError, EmptyBatchError
from attnres_compile.parameters import unwrapped


@dataclass(frozen=True)
class Captured:
    """One graph of a model. inputs: the values of its placeholders, real parameters among them."""

    gm: GraphModule
    inputs: tuple[Any, ...]
    end: GraphEnd


class _Done(BaseException):
    """Leaves Dynamo as soon as the graph is there; no Exception, so that nothing on the way handles it."""


def capture(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> tuple[Captured, ...]:
    """All graphs of ``model(*args, **kwargs)``, in the order they run.

    Raises EmptyBatchError if an example tensor has no elements, CaptureError if Dynamo makes no graph of the model.
    """
    _check_not_empty(args, kwargs or {})
    model = unwrapped(model)
    whole = _capture_whole(model, args, kwargs or {})
    graphs = (whole,) if whole is not None else _capture_pieces(model, args, kwargs or {})
    if not graphs:
        raise CaptureError(
            f"Dynamo made no graph of {type(model).__name__}; if compilation is disabled (torch.compiler.disable, "
            "set_stance, TORCHDYNAMO_DISABLE), enable it."
        )
    return graphs


def _capture_whole(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Captured | None:
    """The one graph of the model, or None if it breaks into several."""
    from torch._dynamo.exc import TorchDynamoException

    found: list[Captured] = []

    def keep_and_leave(gm: GraphModule, inputs: list[Any]) -> Any:
        found.append(Captured(gm, tuple(inputs), torch_compat.graph_end()))
        raise _Done

    with _undisturbed(model):
        with contextlib.suppress(_Done, TorchDynamoException):
            torch.compile(model, backend=keep_and_leave, fullgraph=True)(*args, **kwargs)
    return found[0] if found and not found[0].end.is_break else None


def _capture_pieces(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Captured, ...]:
    found: list[Captured] = []

    def keep_and_run(gm: GraphModule, inputs: list[Any]) -> Any:
        found.append(Captured(gm, tuple(inputs), torch_compat.graph_end()))
        return gm.forward

    with _undisturbed(model), buffers_restored(model), torch.random.fork_rng():
        try:
            torch.compile(model, backend=keep_and_run)(*args, **kwargs)
        except Exception as error:
            raise CaptureError(
                f"{type(model).__name__} does not run on these inputs: {type(error).__name__}: {error}\n"
                "Call the model once with the same args and kwargs, without compiling it, and mend what it says."
            ) from error
    return tuple(found)


@contextlib.contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Capture the model itself even if it is compiled in place, and leave no trace in Dynamo's memory of sizes."""
    compiled_in_place = model._compiled_call_impl
    model._compiled_call_impl = None
    try:
        with torch_compat.without_recorded_shapes():
            yield
    finally:
        model._compiled_call_impl = compiled_in_place


@contextlib.contextmanager
def buffers_restored(model: nn.Module) -> Iterator[None]:
    saved = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in saved:
                buffer.copy_(value)


def _check_not_empty(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    for name, value in [*((f"argument {index}", value) for index, value in enumerate(args)), *kwargs.items()]:
        for leaf in tree_leaves(value):
            if isinstance(leaf, torch.Tensor) and leaf.numel() == 0:
                raise EmptyBatchError(
                    f"the example input {name!r} has shape {tuple(leaf.shape)} and holds no element; give an example "
                    "with at least one row and one token."
                )
