"""What Python calls on its way through a model: modules and autograd functions, and the lines that it is at."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

import torch
import torch.overrides
from torch import nn
from torch.utils.checkpoint import CheckpointFunction

from attnres_passes.torch_private.version import TORCH_FOLDER


@contextlib.contextmanager
def watched_calls(
    around_module: Callable[[nn.Module], contextlib.AbstractContextManager[None]],
    run_function: Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any],
) -> Iterator[None]:
    """See what this thread calls meanwhile of modules and of autograd functions.

    Reentrant checkpoints are opened: their function runs as if it were called, under the caller's grad mode.

    Args:
        around_module: entered around each call of a module, its hooks included.
        run_function: runs an autograd function's ``apply`` on its arguments.
    """
    thread = threading.get_ident()
    call, apply = nn.Module.__call__, torch.autograd.Function.__dict__["apply"]

    def watched_call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread:
            return call(module, *args, **kwargs)
        with around_module(module):
            return call(module, *args, **kwargs)

    def watched_apply(function: Any, *args: Any, **kwargs: Any) -> Any:
        plain = apply.__get__(None, function)
        if threading.get_ident() != thread:
            return plain(*args, **kwargs)
        if issubclass(function, CheckpointFunction):
            checkpointed, _preserves_random_state, *inputs = args
            return checkpointed(*inputs)
        return run_function(plain, args, kwargs)

    nn.Module.__call__ = watched_call  # type: ignore[method-assign]
    torch.autograd.Function.apply = classmethod(watched_apply)  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        nn.Module.__call__ = call  # type: ignore[method-assign]
        torch.autograd.Function.apply = apply  # type: ignore[method-assign]


_OUR_FILES = frozenset({__file__, contextlib.__file__})
_MACHINERY = tuple(TORCH_FOLDER + one for one in ("overrides.py", "_compile.py", "_dynamo/", "nn/modules/"))
"""Dynamo leaves the lines of torch's own modules out of what it notes at nodes, too."""


def lines_until(entry: FrameType, called: Any, runs: CodeType, skipped: frozenset[str]) -> str:
    """The lines that Python is at, the innermost last, in the form of a stack trace.

    Args:
        entry: the frame where they begin.
        called: the function that the innermost of them calls, whose own lines are left out.
        runs: what runs that function, if it is on the way: what is inside of it is left out.
        skipped: files whose lines are left out.
    """
    code = getattr(called, "__code__", None)
    frame: FrameType | None = sys._getframe(1)
    lines: list[str] = []
    while frame is not None and frame is not entry:
        if frame.f_code is runs:
            lines.clear()
        elif not _is_machinery(frame.f_code, code, skipped):
            lines.append(f'File "{frame.f_code.co_filename}", line {frame.f_lineno}, in {frame.f_code.co_name}')
        frame = frame.f_back
    return "\n".join(reversed(lines))


def _is_machinery(code: CodeType, called: CodeType | None, skipped: frozenset[str]) -> bool:
    file = code.co_filename
    return code is called or file in _OUR_FILES or file in skipped or file.startswith(_MACHINERY)
