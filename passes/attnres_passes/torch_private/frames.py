"""Who runs the caller: a backend that traces it, or Python itself and why Dynamo leaves it to Python."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from types import CodeType, FrameType, SimpleNamespace
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch._C._dynamo import eval_frame as c_eval_frame
from torch._dynamo import eval_frame

_OURS = "_is_attnres_backend"
# What torch (its wrappers for options, for debugging and for DDP) and functools put around a backend, and where they
# keep it.
_AROUND_A_BACKEND = (
    "_torchdynamo_orig_backend",
    "compiler_fn",
    "backend_compile_fn",
    "func",
    "__wrapped__",
    "__self__",
)

graph_break = torch._dynamo.graph_break
"""Ends the graph that Dynamo is tracing, where it is called; does nothing in Python."""

F = TypeVar("F", bound=Callable[..., Any])


def mark_as_backend(function: F) -> F:
    """Mark a backend as one that rewrites, or that only looks; what it traces is not plain in silence."""
    setattr(function, _OURS, True)
    return function


def seen_while_tracing(function: F) -> F:
    """Let Dynamo run a function while it traces a call of it, and take what it gives for a constant.

    Modules that it is called with are guarded by their identity.
    """
    return cast(F, torch._dynamo.assume_constant_result(function))  # type: ignore[no-untyped-call]


def never_traced(function: F) -> F:
    """Keep Dynamo out of a function and of all that it calls."""
    return cast(F, torch._dynamo.disable(function))  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Tracer:
    """The compilation that traces the caller.

    is_ours: whether its backend, or one that torch or functools wrapped into it, is marked; backend: its name; code: of
    the function that is compiled; module: the ``self`` of that function, if it is a module; must_be_whole: whether a
    graph break would be an error, as under ``fullgraph=True``, in an export, and inside operators that take a graph;
    compilation: its number.
    """

    is_ours: bool
    backend: str
    code: CodeType
    module: nn.Module | None
    must_be_whole: bool
    compilation: str


def tracer() -> Tracer:
    """The compilation that is tracing, for functions under ``seen_while_tracing``."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    current: Any = InstructionTranslator.current_tx()
    output = current.output
    links = list(_backend_links(output.compiler_fn))
    module = output.root_tx.f_locals.get("self")
    return Tracer(
        is_ours=any(getattr(link, _OURS, False) for link in links),
        backend=_backend_name(links),
        code=output.root_tx.f_code,
        module=module if isinstance(module, nn.Module) else None,
        must_be_whole=bool(
            current.one_graph
            or getattr(current, "error_on_graph_break", False)
            or output.export
            or output.current_tracer.parent is not None
        ),
        compilation=str(torch._guards.CompileContext.current_compile_id()),
    )


def _backend_links(backend: Any) -> Iterator[Any]:
    seen: set[int] = set()
    while backend is not None and id(backend) not in seen:
        seen.add(id(backend))
        yield backend
        backend = next((inner for name in _AROUND_A_BACKEND if (inner := getattr(backend, name, None))), None)


def _backend_name(links: list[Any]) -> str:
    return next((str(link.__name__) for link in reversed(links) if hasattr(link, "__name__")), "unknown")


def note_for_backend(value: Any) -> None:
    """Leave a value, while Dynamo traces, for the backend that is given the graph."""
    _notes().append(value)


def notes_for_backend() -> list[Any]:
    """What was left on the way for the graph that Dynamo is handing to the backend."""
    return list(_notes())


def _notes() -> list[Any]:
    from torch._dynamo.symbolic_convert import InstructionTranslator

    output: Any = InstructionTranslator.current_tx().output
    notes: list[Any] = output.__dict__.setdefault("_attnres_notes", [])
    return notes


class Around(Enum):
    """What Dynamo does around Python code that is running."""

    NOTHING = "no compiled call is on the way"
    CACHED_ONLY = "Dynamo runs what it has compiled, and compiles nothing more"
    COMPILES = "Dynamo compiles what it can, and left this frame to Python"


def dynamo_around() -> Around:
    """What Dynamo does around the caller, which Python runs."""
    callback = c_eval_frame.get_eval_frame_callback()
    if callback is None:
        return Around.NOTHING
    return Around.CACHED_ONLY if callback is False else Around.COMPILES


def leave_to_python(code: CodeType) -> None:
    """Let Python run a function, and Dynamo compile what it calls."""
    action = c_eval_frame._FrameAction
    c_eval_frame.set_code_exec_strategy(code, c_eval_frame._FrameExecStrategy(action.SKIP, action.DEFAULT))


leave_to_python(dynamo_around.__code__)


def stance() -> str:
    """The stance of ``torch.compiler.set_stance``; "default" if none was set."""
    return str(eval_frame._stance.stance)


def is_disabled() -> bool:
    """Whether Dynamo is switched off altogether."""
    return bool(torch._dynamo.config.disable)


def outside_tracer() -> str:
    """What other than Dynamo traces or transforms the caller, in words; '' for nothing."""
    from torch.fx._symbolic_trace import is_fx_symbolic_tracing

    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "torch.func"
    if torch.compiler.is_exporting():
        return "torch.export"
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return "torch.jit.trace"
    if is_fx_symbolic_tracing():
        return "torch.fx.symbolic_trace"
    return ""


@dataclass(frozen=True)
class LimitHit:
    """A frame that Dynamo compiled as often as it may. graphs: compiled; limit: its option; guard: that failed."""

    graphs: int
    limit: str
    guard: str


def recompile_limit_hit(codes: list[CodeType]) -> LimitHit | None:
    """The recompile limit that keeps one of the frames around the caller in Python.

    Args:
        codes: of the frames that are looked for.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code in codes:
            entries = cache_entries(frame.f_code, frame.f_locals)
            everything = len(cache_entries(frame.f_code))
            for count, limit in ((len(entries), "recompile_limit"), (everything, "accumulated_recompile_limit")):
                if count and count >= getattr(torch._dynamo.config, limit):
                    return LimitHit(count, limit, _failed_guard((entries or cache_entries(frame.f_code))[0], frame))
        frame = frame.f_back
    return None


def recompile_limit() -> int:
    """How many graphs Dynamo makes of one function, for the same modules."""
    return int(torch._dynamo.config.recompile_limit)


def graphs_against_limit(code: CodeType, scope: dict[str, Any]) -> int:
    """How many graphs of a function count against the recompile limit.

    Args:
        code: of the function.
        scope: its local variables, for whose modules the graphs are.
    """
    return len(cache_entries(code, scope))


def cache_entries(code: CodeType, scope: dict[str, Any] | None = None) -> list[Any]:
    """What Dynamo has compiled of a function.

    Args:
        code: of the function.
        scope: its local variables, if only graphs for these very modules count.
    """
    from torch._dynamo.cache_size import _has_same_id_matched_objs

    entries: list[Any] = c_eval_frame._debug_get_cache_entry_list(code)
    if scope is None:
        return entries
    frame = cast(Any, SimpleNamespace(f_locals=scope))
    return [entry for entry in entries if _has_same_id_matched_objs(frame, entry)]


def _failed_guard(entry: Any, frame: FrameType) -> str:
    """The guard that keeps a graph from being used for a frame, in Dynamo's words."""
    from torch._dynamo.guards import get_guard_fail_reason

    reason = get_guard_fail_reason(
        entry.guard_manager, frame.f_code, dict(frame.f_locals), entry.compile_id, entry.backend, skip_logging=True
    )
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    return lines[0].partition(": ")[2] or lines[0] if lines else ""


def try_again(code: CodeType) -> None:
    """Let Dynamo compile a function that it has decided to leave to Python."""
    action = c_eval_frame._FrameAction.DEFAULT
    c_eval_frame.set_code_exec_strategy(code, c_eval_frame._FrameExecStrategy(action, action))
