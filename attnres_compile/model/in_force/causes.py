"""Why a prepared model is about to run plain, and what to do about it: the texts of NotInForceError."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from types import CodeType

from torch import nn

from attnres_compile.model.errors import NotInForceError, PartOfPreparedModelError
from attnres_compile.model.in_force.calls import Calls
from attnres_passes.torch_private import frames
from attnres_passes.torch_private.frames import Around, Tracer

COMPILE = 'model.compile(backend="attnres")'


@dataclass(frozen=True)
class Cause:
    """kind: in one word; model: name of its class; what: ran instead of the rewrite; mend: what to do.

    error_class: of what is raised.
    """

    kind: str
    model: str
    what: str
    mend: str
    error_class: type[NotInForceError] = NotInForceError

    def __str__(self) -> str:
        return (
            f"the prepared {self.model} was called without its depth attention: {self.what}. {self.mend} To run "
            "the plain model on purpose, call it inside `with attnres_compile.plain(model):`."
        )

    def error(self) -> NotInForceError:
        return self.error_class(str(self))


def refuse(cause: Cause, calls: Calls, on_plain: str) -> None:
    """Stop a call, or warn of it once per cause.

    Args:
        cause: of the plain call.
        calls: of the model.
        on_plain: that of its config.

    Raises:
        NotInForceError: under "error".
    """
    if on_plain == "error":
        calls.note_refused()
        raise cause.error()
    calls.note_plain()
    if cause.kind not in calls.warned:
        calls.warned.add(cause.kind)
        warnings.warn(f"attnres: {cause}", stacklevel=5)


def traced_by(by: Tracer, name: str, is_root: bool, compiled_in_place: bool) -> Cause:
    """Another compilation traces the model.

    Args:
        by: that compilation.
        name: of the class of the module that it traces.
        is_root: whether it compiles that module, rather than a function that calls it.
        compiled_in_place: whether the module is compiled with our backend.
    """
    root = f"{by.code.co_name} ({by.code.co_filename}:{by.code.co_firstlineno})"
    if is_root:
        return Cause(
            "traced",
            name,
            f"it is compiled with the backend {by.backend!r}, which traces its plain forward",
            f'Compile it with backend="attnres": {COMPILE}; {by.backend!r} can run behind it, where it is "inductor", '
            '"aot_eager" or "eager", by options={"inner": ..}.',
        )
    if compiled_in_place:
        return Cause(
            "traced",
            name,
            f"the compiled function {root} takes it into one graph of the backend {by.backend!r}, where its own "
            "compilation is left out",
            'Compile that function with torch.compile(.., backend="attnres"), or without fullgraph=True, so that '
            "the model runs in graphs of its own.",
        )
    return Cause(
        "traced",
        name,
        f"the compiled function {root} takes it into a graph of the backend {by.backend!r}",
        f'Compile that function with torch.compile(.., backend="attnres"), or the model before it: {COMPILE}.',
    )


def before_call(module: nn.Module, path: str, calls: Calls, codes: Sequence[CodeType], around: Around) -> Cause | None:
    """What keeps the rewrite from running, so far as that can be told before; None if pieces may be rewritten.

    Args:
        module: that is called.
        path: of the module in the model.
        calls: of the model.
        codes: the functions that Dynamo compiles of it.
        around: what Dynamo does around the call.
    """
    name = type(module).__name__
    tracer = frames.outside_tracer()
    if tracer:
        for code in codes:
            # Dynamo gives up for good on a function that it meets inside a transform.
            frames.try_again(code)
        return Cause(
            "tracer", name, f"{tracer} runs its forward, which Dynamo does not compile there", _mend_of_tracer(tracer)
        )
    if frames.stance() != "default":
        return Cause(
            "stance",
            name,
            f"torch.compiler.set_stance({frames.stance()!r}) keeps Dynamo from compiling this call",
            "Take the stance back, or call the model once in this way before it is set.",
        )
    if frames.is_disabled():
        return Cause(
            "disabled",
            name,
            "Dynamo is disabled (TORCHDYNAMO_DISABLE or torch._dynamo.config.disable)",
            "Enable it: the rewrite is made by compiling.",
        )
    if around is Around.NOTHING:
        return _uncompiled(module, path, calls)
    hit = frames.recompile_limit_hit(list(codes))
    return None if hit is None else _limit(name, hit)


def behind_call(module: nn.Module, codes: Sequence[CodeType]) -> Cause:
    """What kept the rewrite out of a call that Dynamo left to Python.

    Args:
        module: that was called.
        codes: the functions that Dynamo compiles of it.
    """
    name = type(module).__name__
    hit = frames.recompile_limit_hit(list(codes))
    if hit is not None:
        return _limit(name, hit)
    return Cause(
        "left to Python",
        name,
        "Dynamo left its forward to Python and compiled no graph with its residual stream",
        "A graph break in it, an error that torch._dynamo.config.suppress_errors hides, or another backend around it "
        "does that: torch.compile(model, fullgraph=True) names the line. If this code failed to compile before, call "
        "torch.compiler.reset() first.",
    )


def _uncompiled(module: nn.Module, path: str, calls: Calls) -> Cause:
    name = type(module).__name__
    if path:
        return Cause(
            "uncompiled",
            name,
            f"it is the part {path!r} of the model, and was called by itself, outside of any compiled call",
            f"Call the model, after {COMPILE}.",
        )
    if module._compiled_call_impl is not None:
        return Cause(
            "uncompiled",
            name,
            "its forward was called past the compiled call, as model.forward(..) does, or under torch.compiler.disable",
            "Call model(..) instead, outside of torch.compiler.disable.",
        )
    if calls.compiled:
        return Cause(
            "wrapper",
            name,
            "a wrapper that torch.compile(model) gave is compiled, and the module behind it was called, as methods of "
            "the wrapper such as generate do",
            f"Compile the module itself, in place, so that every way leads through the compiled call: {COMPILE}.",
        )
    parts = [path for path, part in module.named_modules() if part._compiled_call_impl is not None]
    if parts:
        listed = ", ".join(map(repr, parts[:2])) + (f" and {len(parts) - 2} others" if len(parts) > 2 else "")
        return Cause(
            "part",
            name,
            f"{listed} is compiled on its own, and the model, whose residual stream runs through all parts, is not",
            f"Take those compilations back and compile the whole model: {COMPILE}.",
            PartOfPreparedModelError,
        )
    copied = "this copy of a prepared model was never compiled" if calls.is_copy else "it was never compiled"
    return Cause("uncompiled", name, copied, f"Compile it: {COMPILE}.")


def _limit(name: str, hit: frames.LimitHit) -> Cause:
    guard = f"; the last guard that failed is: {hit.guard}" if hit.guard else ""
    return Cause(
        "limit",
        name,
        f"Dynamo compiled it {hit.graphs} times, the limit of torch._dynamo.config.{hit.limit}, and runs other calls "
        f"plain{guard}",
        "Make what changes there constant, or dynamic (model.compile(.., dynamic=True) for sizes); or raise the limit: "
        f"torch._dynamo.config.{hit.limit} = {2 * hit.graphs}.",
    )


def _mend_of_tracer(tracer: str) -> str:
    if tracer == "torch.func":
        return (
            "Use torch.autograd on the compiled model, or apply the transform inside a function that is compiled "
            'with backend="attnres".'
        )
    return "An exported or traced AttnRes model is not supported: take the compiled model instead."
