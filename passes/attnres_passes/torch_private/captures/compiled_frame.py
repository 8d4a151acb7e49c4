"""Whose frame the graph is of that Dynamo is handing to the backend."""

from __future__ import annotations

from dataclasses import dataclass
from types import CodeType
from typing import Any


@dataclass(frozen=True)
class CompiledFrame:
    """The function, also where Dynamo goes on in it behind a graph break.

    code: of the function; subject: its first argument, None if that is not used any more; is_resumed: whether this is
    what comes behind a break.
    """

    code: CodeType
    subject: Any
    is_resumed: bool


def compiled_frame() -> CompiledFrame:
    """The frame of the graph, while Dynamo calls the backend."""
    from torch._dynamo.resume_execution import ContinueExecutionCache
    from torch._dynamo.symbolic_convert import InstructionTranslator

    root: Any = InstructionTranslator.current_tx().output.root_tx
    code, made_of = root.f_code, ContinueExecutionCache.generated_code_metadata
    is_resumed = code in made_of
    while code in made_of:
        code = made_of[code].code
    # Where Dynamo goes on behind a break, variables that are used there keep their names.
    return CompiledFrame(code, _first_argument(code, root.f_locals), is_resumed)


def _first_argument(code: CodeType, scope: dict[str, Any]) -> Any:
    """``self`` of a method, and of a wrapper that takes ``*args``."""
    if code.co_argcount == 0 and code.co_varnames:
        arguments = scope.get(code.co_varnames[code.co_kwonlyargcount], ())
        return arguments[0] if isinstance(arguments, tuple) and arguments else None
    return scope.get(code.co_varnames[0]) if code.co_varnames else None
