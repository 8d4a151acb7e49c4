"""Dynamo around a backend: the frame behind the graph it hands over, where the graph ends, what errors become."""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from attnres_passes.torch_private.version import TORCH_FOLDER


@dataclass(frozen=True)
class FrameModule:
    """A module of the frame that is being compiled, and how Dynamo reaches it."""

    module: torch.nn.Module
    source: Any


def frame_modules(gm: torch.fx.GraphModule) -> list[FrameModule]:
    """The outermost modules that the parameters of a graph were reached through, while Dynamo calls the backend.

    Each placeholder's source is a chain such as ``L['self']._modules['h']._parameters['weight']``; its first link
    that is a module is what the user compiled, or what the compiled function calls.
    """
    from torch._dynamo.symbolic_convert import InstructionTranslator

    frame = InstructionTranslator.current_tx().output.root_tx
    scope = {"G": frame.f_globals, "L": frame.f_locals}
    found: dict[int, FrameModule] = {}
    bases: set[str] = set()
    for node in gm.graph.nodes:
        source = getattr(node, "_dynamo_source", None) if node.op == "placeholder" else None
        if source is None:
            continue
        for link in _links_from_base(source):
            name = link.name if isinstance(link.name, str) else link.name()
            if name in bases:
                break
            value = _evaluated(name, scope)
            if isinstance(value, torch.nn.Module):
                bases.add(name)
                found.setdefault(id(value), FrameModule(value, link))
                break
    return list(found.values())


def guard_identity(module: FrameModule, parts: Sequence[str] = ()) -> None:
    """Make the graph being compiled valid for this very module only, and for these very modules inside it.

    Dynamo reuses a graph for another module of the same structure, with that one's parameters as inputs; it cannot
    know of parameters that a backend adds.

    Args:
        module: of the frame.
        parts: paths of modules inside it.
    """
    from torch._dynamo.guards import GuardBuilder, install_guard

    sources = [module.source, *(_source_of(module, part) for part in parts)]
    install_guard(*(source.make_guard(GuardBuilder.ID_MATCH) for source in sources))


def guard_value(module: FrameModule, path: str, *names: str) -> None:
    """Make the graph being compiled valid only while a constant that a module holds stays what it is.

    Args:
        module: of the frame.
        path: of the module inside it that holds the constant.
        names: attributes that lead from that module to the constant.
    """
    from torch._dynamo.guards import GuardBuilder, install_guard
    from torch._dynamo.source import AttrSource

    source = _source_of(module, path)
    for name in names:
        source = AttrSource(source, name)
    install_guard(source.make_guard(GuardBuilder.CONSTANT_MATCH))


def _source_of(module: FrameModule, path: str) -> Any:
    from torch._dynamo.source import AttrSource, DictGetItemSource

    source = module.source
    for name in path.split(".") if path else ():
        source = DictGetItemSource(AttrSource(source, "_modules"), name)
    return source


def _links_from_base(source: Any) -> list[Any]:
    links = [source]
    while getattr(links[-1], "base", None) is not None:
        links.append(links[-1].base)
    return links[::-1]


def _evaluated(name: str, scope: dict[str, Any]) -> Any:
    """The value of a source by its name, as guards evaluate it; None for links that only guards can evaluate."""
    try:
        return eval(name, scope)
    except (NameError, KeyError, AttributeError, IndexError, TypeError, SyntaxError):
        return None


@dataclass(frozen=True)
class GraphEnd:
    """Where a graph stands in its frame.

    is_break: whether the frame goes on after it, in another graph; reason and source: of that break.
    """

    is_break: bool
    reason: str = ""
    source: str = ""


def graph_end() -> GraphEnd:
    """Why the graph that Dynamo is handing to the backend ends where it does."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    reason: Any = InstructionTranslator.current_tx().output.compile_subgraph_reason
    if reason is None:
        return GraphEnd(False)
    last = reason.user_stack[-1] if reason.user_stack else None
    source = f"{last.filename}:{last.lineno}" if last is not None else ""
    first_line = str(reason.reason).strip().splitlines()[0] if str(reason.reason).strip() else ""
    return GraphEnd(bool(reason.graph_break), first_line, source)


def met_no_frame(error: Exception) -> bool:
    """Whether an error of ``fullgraph=True`` says that the call ran and Dynamo looked at none of it."""
    return isinstance(error, RuntimeError) and "fullgraph=True found no compiled frames" in str(error)


def uncompiled_caller(module: torch.nn.Module) -> str:
    """``file:line`` of the forward of a module around ``module`` that runs uncompiled now; '' if there is none.

    A graph break in a loop makes Dynamo leave the whole frame to Python and compile what it calls piece by piece.
    """
    frame = sys._getframe()
    while (frame := frame.f_back) is not None:  # type: ignore[assignment]
        caller = frame.f_locals.get("self")
        if (
            not isinstance(caller, torch.nn.Module)
            or caller is module
            or frame.f_code.co_filename.startswith(TORCH_FOLDER)
        ):
            continue
        if any(part is module for part in caller.modules()):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
    return ""


def as_backend_failure(error: Exception) -> Exception:
    """An error that is both ``error``'s class and torch's BackendCompilerFailed.

    Dynamo wraps whatever a backend raises, unless it is of this family.
    """
    from torch._dynamo.exc import BackendCompilerFailed, ShortenTraceback

    class Failure(type(error), BackendCompilerFailed):  # type: ignore[misc]
        def __init__(self) -> None:
            # Not by the constructor of BackendCompilerFailed, which makes a message of its own.
            ShortenTraceback.__init__(self, *error.args, first_useful_frame=None)
            self.__dict__.update(error.__dict__)
            self.backend_name, self.inner_exception = "attnres", error

        def __reduce__(self) -> Any:
            # This class cannot be found by its name.
            return error.__reduce__()

    Failure.__name__, Failure.__qualname__ = type(error).__name__, type(error).__qualname__
    Failure.__module__ = type(error).__module__
    return Failure()


@contextlib.contextmanager
def without_recorded_shapes() -> Iterator[None]:
    """Keep a capture out of Dynamo's memory of sizes, which decides what the next compilation makes dynamic."""
    from torch._dynamo import pgo

    pgo.get_code_state()
    saved = copy.deepcopy(pgo._CODE_STATE)
    try:
        yield
    finally:
        pgo._CODE_STATE = saved
