"""Capture of a model by Dynamo, without compiling or changing anything.

A model that Dynamo takes in as one graph is captured without being run. One with graph breaks has to run once,
eagerly, for Dynamo to reach its later graphs; its buffers and the random state are put back afterwards. Dynamo finds
what it would find in a fresh process, and remembers nothing of it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from attnres_compile.capture.functions import functions_of
from attnres_compile.capture.pieces import Captured, Pieces
from attnres_compile.model.errors import CaptureError, EmptyBatchError, GraphBreakError
from attnres_compile.model.parameters import parameters_of, prepared_within, unwrapped
from attnres_compile.progress import stage
from attnres_passes.torch_private.captures.fresh_codes import fresh_codes
from attnres_passes.torch_private.dynamo import GraphEnd, graph_end, met_no_frame, without_recorded_shapes
from attnres_passes.torch_private.frames import mark_as_backend
from attnres_passes.torch_private.version import warn_if_untested


class _LeaveDynamo(BaseException):
    """Leaves Dynamo as soon as the graph is there; no Exception, so that nothing on the way handles it."""


@dataclass(frozen=True)
class Break:
    """The first graph break of a model: its line and its reason, as far as Dynamo says."""

    source: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Capture:
    """All graphs of a call, in the order they run. break_source, break_reason: of the first graph break, if known."""

    graphs: tuple[Captured, ...]
    is_whole: bool
    break_source: str = ""
    break_reason: str = ""


def capture(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None, static: bool = False) -> Capture:
    """Capture ``model(*args, **kwargs)``.

    Args:
        model: whose parameters, buffers and compiled call stay what they are.
        args, kwargs: example inputs.
        static: keep every size as it is, whatever sizes Dynamo has seen before.

    Raises:
        EmptyBatchError: an example tensor has no elements.
        GraphBreakError, CaptureError: Dynamo makes no graph of the model.
    """
    stage("capturing the model")
    whole = capture_whole(model, args, kwargs, static)
    if isinstance(whole, Captured):
        return Capture((whole,), is_whole=True)
    stage("capturing the model in pieces")
    model, first = unwrapped(model), whole or Break()
    graphs = _capture_pieces(model, args, kwargs or {}, GraphEnd(True, first.reason, first.source))
    if not graphs:
        if first.source:
            raise GraphBreakError(
                f"a graph break at {first.source} ({first.reason}) keeps Dynamo from making any graph of "
                f"{type(model).__name__}; take that line out of the forward. torch.compile(model, fullgraph=True) says "
                "more."
            )
        raise no_graph(model)
    return Capture(graphs, is_whole=False, break_source=first.source, break_reason=first.reason)


def capture_whole(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None, static: bool = False
) -> Captured | Break | None:
    """The one graph of ``model(*args, **kwargs)``, the first break if Dynamo would make several, None if none.

    Args:
        model, args, kwargs, static: those of ``capture``.

    Raises:
        EmptyBatchError: an example tensor has no elements.
    """
    warn_if_untested()
    check_not_empty(args, kwargs or {})
    whole = _whole_or_problem(unwrapped(model), args, kwargs or {}, static)
    return _break_of(whole) if isinstance(whole, Exception) else whole


def no_graph(model: nn.Module) -> CaptureError:
    """What a model becomes of which Dynamo makes no graph, and names no break."""
    return CaptureError(
        f"Dynamo made no graph of {type(model).__name__}. Compilation must not be disabled "
        "(torch.compiler.disable, set_stance, TORCHDYNAMO_DISABLE); if this code failed to compile before, call "
        "torch.compiler.reset()."
    )


def _whole_or_problem(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], static: bool
) -> Captured | Exception | None:
    """The one graph of the model, or what Dynamo says about why there is more than one."""
    found: list[Captured] = []

    @mark_as_backend
    def keep_and_leave(gm: GraphModule, inputs: list[Any]) -> Any:
        found.append(Captured(gm, tuple(inputs), graph_end()))
        raise _LeaveDynamo

    problem: Exception | None = None
    with _undisturbed(model, (args, kwargs)):
        try:
            dynamic = False if static else None
            _compiled(model, backend=keep_and_leave, fullgraph=True, dynamic=dynamic)(*args, **kwargs)
        except _LeaveDynamo:
            pass
        except Exception as error:  # kept: a run without Dynamo succeeds, or fails with an error that the user sees
            problem = None if met_no_frame(error) else error
    captured = found[0] if found and not found[0].end.is_break else problem
    # Dynamo remembers backends for good, and with this one the model's parameters.
    found.clear()
    return captured


def _break_of(problem: Exception) -> Break:
    """The break that an error of ``fullgraph=True`` is about."""
    stack = getattr(problem, "real_stack", None)
    if not stack:
        return Break()
    last = stack[-1]
    return Break(f"{last.filename}:{last.lineno}", str(problem).strip().splitlines()[0])


def _capture_pieces(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], first_break: GraphEnd
) -> tuple[Captured, ...]:
    pieces = Pieces(model, tree_leaves((args, kwargs)), first_break)

    @mark_as_backend
    def keep_and_run(gm: GraphModule, inputs: list[Any]) -> Any:
        return pieces.add(gm, inputs)

    with _undisturbed(model, (args, kwargs)), buffers_restored(model), torch.random.fork_rng():
        try:
            _compiled(model, backend=keep_and_run)(*args, **kwargs)
            return pieces.graphs()
        except Exception as error:
            raise does_not_run(model, error) from error
        finally:
            pieces.forget()


def _compiled(model: nn.Module, **options: Any) -> Callable[..., Any]:
    """``torch.compile`` of a module that is left as it was.

    What is set on a compiled module lands on the module in it. torch marks it so, and Lightning, which patches
    torch.compile, keeps the options there: with a backend that no pickle takes.
    """
    before = set(model.__dict__)
    compiled = torch.compile(model, **options)
    for name in set(model.__dict__) - before:
        del model.__dict__[name]
    return compiled


@contextlib.contextmanager
def _undisturbed(model: nn.Module, inputs: Any) -> Iterator[None]:
    """Capture the model itself; what Dynamo knows plays no part, and stays."""
    functions = functions_of(model, tree_leaves(inputs))
    with as_itself(model), without_recorded_shapes(), fresh_codes(functions):
        yield


@contextlib.contextmanager
def as_itself(model: nn.Module) -> Iterator[None]:
    """Let calls of a model run its own forward, even if it is compiled in place or prepared."""
    compiled_in_place = {name: value for name, value in vars(model).items() if name == "_compiled_call_impl"}
    model._compiled_call_impl = None
    prepared = [added for _, part in prepared_within(model) if (added := parameters_of(part)) is not None]
    try:
        with contextlib.ExitStack() as stack:
            for added in prepared:
                stack.enter_context(added.calls.uncounted())
            yield
    finally:
        del model._compiled_call_impl
        vars(model).update(compiled_in_place)


def does_not_run(model: nn.Module, error: Exception) -> CaptureError:
    """What an error of the model's own becomes."""
    return CaptureError(
        f"{type(model).__name__} does not run on these inputs: {type(error).__name__}: {error}\n"
        "Call the model once with the same args and kwargs, without compiling it, and mend what it says."
    )


def does_not_compile(model: nn.Module, error: Exception) -> CaptureError:
    """What an error becomes that torch.compile raises of a plain model which runs without it."""
    first = next(iter(str(error).splitlines()), "")
    # Dynamo has the lines of the model in its message, the innermost one last.
    lines = re.findall(r'File "([^"]+)", line (\d+)', str(error))
    at = "".join(f" at {file}:{line}" for file, line in lines[-1:])
    return CaptureError(
        f"torch.compile does not run {type(model).__name__} on these inputs, prepared or not: "
        f"{type(error).__name__}{at}: {first}\n"
        'Make model.compile(backend="eager") run on them first; the line that Dynamo stops at can be put into a '
        "function under torch.compiler.disable."
    )


def copied_input(value: Any) -> Any:
    """An input for a run that may write to it (caches, statistics); parameters are not written to."""
    return value.detach().clone() if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter) else value


@contextlib.contextmanager
def buffers_restored(model: nn.Module) -> Iterator[None]:
    saved = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in saved:
                buffer.copy_(value)


def check_not_empty(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Check that the example inputs hold something to analyse. Raises EmptyBatchError."""
    for name, value in [*((f"argument {index}", value) for index, value in enumerate(args)), *kwargs.items()]:
        for leaf in tree_leaves(value):
            if isinstance(leaf, torch.Tensor) and leaf.numel() == 0:
                raise EmptyBatchError(
                    f"the example input {name!r} has shape {tuple(leaf.shape)} and holds no element; give an example "
                    "with at least one row and one token."
                )
