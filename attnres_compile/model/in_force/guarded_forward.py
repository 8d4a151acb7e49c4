"""The forward of a guarded module, which asks before it runs the plain one.

A guarded module gets a class of its own, with the name and the signature of the old one. Dynamo inlines both
forwards, so that a compiled call pays for a few checks of identity only.
"""

from __future__ import annotations

import copyreg
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch
from torch import nn

from attnres_compile.model.border import call_reads, python_reads
from attnres_compile.model.border.call_reads import CallReads
from attnres_compile.model.border.part_of import mark_parts_of_copy
from attnres_compile.model.in_force.calls import Calls
from attnres_compile.model.in_force.causes import before_call, behind_call, left_out, refuse, traced_by
from attnres_passes.ir.plan import Plan
from attnres_passes.ir.read_id import ReadId
from attnres_passes.torch_private.dynamo import as_backend_failure
from attnres_passes.torch_private.frames import (
    Around,
    dynamo_around,
    graph_break,
    leave_to_python,
    never_traced,
    note_for_backend,
    seen_while_tracing,
    tracer,
)

NAME = "_attnres_guard"
"""Name of the attribute that holds the guard of a module."""
PLAIN_CLASS = "_attnres_plain_class"
"""Name of the attribute by which a guarded class says what class it stands for."""

_ONCE = (None,)


@dataclass
class Guard:
    """What a guarded module knows.

    calls: of the model; plan: of the model; path: of the module in the model; streams: of the plan, whose writes are
    all inside the module; forward: what the module had as ``forward`` on itself, not on its class; installed: what a
    call that Python ran has put below the module.
    """

    calls: Calls
    plan: Plan
    path: str
    streams: tuple[int, ...]
    forward: Callable[..., Any] | None = None
    installed: python_reads.Installed | None = None


def guard_of(module: nn.Module) -> Guard | None:
    """The guard of a module, if it has one."""
    found = module.__dict__.get(NAME)
    return found if isinstance(found, Guard) else None


def codes_of(model: nn.Module) -> list[CodeType]:
    """The functions that Dynamo compiles when a guarded module is called: the guard, and the forward behind it."""
    found: list[CodeType] = []
    for forward in (model.forward, type(model).forward):
        link: Any = forward
        while link is not None:
            code = getattr(link, "__code__", None)
            if isinstance(code, CodeType) and not any(code is one for one in found):
                found.append(code)
            link = getattr(link, "__wrapped__", None)
    return found


_classes: dict[tuple[type[nn.Module], bool], type[nn.Module]] = {}


def guarded_class(plain: type[nn.Module], compiled_already: bool) -> type[nn.Module]:
    """The class of the guarded modules of a class.

    Args:
        plain: that class.
        compiled_already: as in ``guard.install``.
    """
    key = plain, compiled_already
    if key not in _classes:
        _classes[key] = _new_class(plain, compiled_already)
    return _classes[key]


def _new_class(plain: type[nn.Module], compiled_already: bool) -> type[nn.Module]:
    forward = forward_around(plain.forward, plain.forward)
    if compiled_already:
        leave_to_python(forward.__code__)
    space: Mapping[str, Any] = {
        "forward": forward,
        "__reduce_ex__": _reduce,
        "__module__": plain.__module__,
        "__qualname__": plain.__qualname__,
        "__doc__": plain.__doc__,
        NAME: None,
        PLAIN_CLASS: plain,
    }
    return type(plain.__name__, (plain,), dict(space))


def forward_around(plain_forward: Callable[..., Any], documented: Callable[..., Any]) -> Callable[..., Any]:
    """A forward that asks before it runs another one.

    Args:
        plain_forward: that is run, a function of the module and its arguments.
        documented: gives name and signature.
    """

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        guard = self._attnres_guard
        if guard is None:
            return plain_forward(self, *args, **kwargs)
        result = None
        # A graph break inside a loop makes Dynamo leave the whole of it to Python, which checks behind the call. It
        # takes for a loop what jumps back behind the break, before any return.
        for _ in _ONCE:
            if not torch.compiler.is_dynamo_compiling():
                result = _run_by_python(self, guard, plain_forward, args, kwargs)
                continue
            if _must_break(self, guard, guard.calls.on_purpose):
                graph_break("a model compiled by attnres runs in graphs of its own")
            result = plain_forward(self, *args, **kwargs)
        return result

    # Dynamo keeps its graphs, its limit and its memory of sizes by code object: each class has its own.
    code = forward.__code__
    name = getattr(documented, "__qualname__", "forward").replace(".", "_")
    forward.__code__ = code.replace(co_name=f"guarded_{name}")
    return functools.wraps(documented)(forward)


def forward_on_module(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    guard = guard_of(self)
    assert guard is not None
    assert guard.forward is not None
    return guard.forward(*args, **kwargs)


@seen_while_tracing
def _must_break(module: nn.Module, guard: Guard, on_purpose: bool) -> bool:
    """Whether what Dynamo traces must leave a call of the model to Python. Raises NotInForceError."""
    if on_purpose:
        return False
    by = tracer()
    if by.is_ours:
        # The backend holds the graph against the streams that are due in it.
        note_for_backend(guard)
        return False
    compiled_in_place = not guard.path and module._compiled_call_impl is not None
    is_root = by.module is module
    if compiled_in_place and not is_root and not by.must_be_whole:
        return True
    cause = traced_by(by, type(module).__name__, is_root, compiled_in_place)
    if guard.plan.config.on_plain == "error":
        guard.calls.note_refused()
        raise as_backend_failure(cause.error())
    if by.compilation != guard.calls.traced_in:
        # The guards of the model and of its part are in one graph.
        guard.calls.traced_in = by.compilation
        refuse(cause, guard.calls, "warn")
    return False


def _run_by_python(
    module: nn.Module, guard: Guard, forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """Run the forward that Dynamo left to Python, if pieces of it are rewritten. Raises NotInForceError."""
    calls = guard.calls
    if calls.on_purpose:
        before = calls.plain_on_purpose
        result = forward(module, *args, **kwargs)
        if not guard.path and calls.plain_on_purpose == before:
            calls.note_plain_on_purpose()
        return result
    if calls.let_through:
        return forward(module, *args, **kwargs)
    if _refused_before(module, guard, dynamo_around()):
        with calls.uncounted():
            return forward(module, *args, **kwargs)
    runs = list(calls.runs)
    of_call = _begin(module, guard)
    try:
        result = forward(module, *args, **kwargs)
        if not guard.path:
            result = python_reads.with_reads_of_result(result, of_call, guard.plan)
    finally:
        call_reads.end_call(of_call)
    _check_behind(module, guard, runs, of_call)
    return result


# Dynamo is to compile the forward that this calls, not this.
leave_to_python(_run_by_python.__code__)


@never_traced
def _refused_before(module: nn.Module, guard: Guard, around: Around) -> bool:
    """Whether a call that is about to run plain was warned of. Raises NotInForceError."""
    cause = before_call(module, guard.path, guard.calls, codes_of(module), around)
    if cause is not None:
        refuse(cause, guard.calls, guard.plan.config.on_plain)
    return cause is not None


@never_traced
def _begin(module: nn.Module, guard: Guard) -> CallReads:
    """What Python runs of a model may read its streams, and every read of the plan is to be made by the end."""
    if not guard.path:
        mark_parts_of_copy(module)
    if guard.installed is None or not guard.installed.is_current(guard.plan):
        guard.installed = python_reads.install(module, guard.path, guard.plan)
    return call_reads.begin_call(guard.calls)


@never_traced
def _check_behind(module: nn.Module, guard: Guard, runs: Sequence[int], of_call: CallReads) -> None:
    """Check that a call behind us ran rewritten, as a whole or in pieces. Raises NotInForceError.

    Args:
        module, guard: that was called.
        runs: of graphs with whole streams, by stream, before the call.
        of_call: the reads that its pieces made.
    """
    ran = {stream for stream, before in enumerate(runs) if guard.calls.runs[stream] > before}
    left = len(ran) < len(runs)  # most models run whole, and this is on the way of every step
    missing = call_reads.missing_reads(of_call, guard.plan, guard.path) if left else []
    # What a part returns to the model is read by what the model makes of it, and what the model returns, by the caller.
    missing = [one for one in missing if one.stream not in ran and not (of_call.depth and _is_returned(guard, one))]
    in_pieces = {read.stream for read in of_call.reads} - ran
    unfinished = [read for read in missing if read.stream in in_pieces]
    due = set(guard.streams) or set(range(len(runs)))
    complete = ran | (in_pieces - {read.stream for read in unfinished})
    if unfinished:
        cause = left_out(module, guard.plan, unfinished, of_call)
    elif complete >= due if guard.streams else complete & due:
        if not of_call.depth and in_pieces:
            guard.calls.note_run(in_pieces)
        return
    else:
        cause = behind_call(module, codes_of(module))
    refuse(cause, guard.calls, guard.plan.config.on_plain)


def _is_returned(guard: Guard, read: ReadId) -> bool:
    return guard.plan.depth_reads[read].returned


def _reduce(self: Any, protocol: int) -> Any:
    """Copies and pickles name the plain class, which can be found by its name."""
    plain = type(self)._attnres_plain_class
    made, args, *rest = super(_class_in(type(self)), self).__reduce_ex__(max(protocol, 2))
    by_class = made is copyreg.__newobj__ and args[0] is type(self)  # type: ignore[attr-defined]
    if by_class and PLAIN_CLASS in type(self).__dict__:
        return _new_guarded, (plain, *args[1:]), *rest
    return made, args, *rest


def _class_in(derived: Any) -> Any:
    """The guarded class that a class is or was derived from."""
    return next(cls for cls in derived.__mro__ if PLAIN_CLASS in cls.__dict__)


def _new_guarded(plain: type[nn.Module], *args: Any) -> nn.Module:
    cls = guarded_class(plain, False)
    made: nn.Module = cls.__new__(cls, *args)
    return made
