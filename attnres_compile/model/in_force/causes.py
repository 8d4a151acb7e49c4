"""Why a prepared model is about to run plain, and what to do about it: the texts of NotInForceError."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from types import CodeType
from typing import get_args

from torch import nn

from attnres_compile.model.border.call_reads import CallReads
from attnres_compile.model.errors import NotInForceError
from attnres_compile.model.in_force.calls import Calls
from attnres_passes.ir.config import Inner
from attnres_passes.ir.plan import Plan, short_source
from attnres_passes.ir.read_id import ReadId
from attnres_passes.torch_private import frames
from attnres_passes.torch_private.frames import Around, Tracer
from attnres_passes.torch_private.version import TORCH_FOLDER

COMPILE = 'model.compile(backend="attnres")'
_NAMES_THE_LINE = 'model.compile(backend="attnres", fullgraph=True)'
_EXPORTED = "An exported or traced AttnRes model is not supported: run the compiled model instead."


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
    if by.code.co_filename.startswith(TORCH_FOLDER) and "export" in by.code.co_filename.removeprefix(TORCH_FOLDER):
        return Cause("tracer", name, "torch.export traces its plain forward", _EXPORTED)
    if is_root:
        return Cause(
            "traced",
            name,
            f"it is compiled with the backend {by.backend!r}, which traces its plain forward",
            f"Compile it with ours: {COMPILE}. {_place_of(by.backend)}",
        )
    if compiled_in_place:
        return Cause(
            "traced",
            name,
            f"the compiled function {root} takes it into one graph of the backend {by.backend!r}, where its own "
            "compilation is left out",
            'Compile that function with torch.compile(.., backend="attnres"), or without fullgraph=True: the model '
            "then runs in graphs of its own.",
        )
    return Cause(
        "traced",
        name,
        f"the compiled function {root} takes it into a graph of the backend {by.backend!r}",
        f'Compile the model itself: {COMPILE}; or that function with torch.compile(.., backend="attnres").',
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
        earlier = "" if frames.stance() == "force_eager" else ", or call the model once in this way before it is set"
        return Cause(
            "stance",
            name,
            f"torch.compiler.set_stance({frames.stance()!r}) keeps Dynamo from compiling this call",
            f'Take it back: torch.compiler.set_stance("default"){earlier}.',
        )
    if frames.is_disabled():
        return Cause(
            "disabled",
            name,
            "Dynamo is disabled (TORCHDYNAMO_DISABLE or torch._dynamo.config.disable)",
            "Enable it, since the rewrite is made by compiling: unset the variable before Python starts, and leave "
            "torch._dynamo.config.disable = False.",
        )
    if around is Around.NOTHING:
        # Compiled parts hand the stream on from one to the next; what they leave out is seen behind the call.
        return None if compiled_parts(module) else _uncompiled(module, path, calls)
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
        "It does so after an error in a compilation, which torch._dynamo.config.suppress_errors hides and "
        "attnres_compile.status(model).error may hold, and at a graph break in a loop. Call torch.compiler.reset(), "
        f"then {_NAMES_THE_LINE} and the model, which raises the error or names the line to mend.",
    )


def compiled_parts(module: nn.Module) -> list[str]:
    """Paths of the modules below one that are compiled, each on its own."""
    return [
        path
        for path, part in module.named_modules()
        if part is not module and (part._compiled_call_impl is not None or hasattr(part, "_orig_mod"))
    ]


def left_out(module: nn.Module, plan: Plan, missing: Sequence[ReadId], of_call: CallReads) -> Cause:
    """A call in pieces that made some reads of a stream, and not all.

    Args:
        module: that was called.
        plan: of the model.
        missing: reads that were not made.
        of_call: those that were.
    """
    read = plan.depth_reads[missing[0]]
    made = len([one for one in of_call.reads if one.stream == missing[0].stream])
    return Cause(
        "left out",
        type(module).__name__,
        f"its compiled parts made {made} reads of the stream {plan.streams[missing[0].stream].name!r} and left "
        f"{len(missing)} out, the first that of the state after {read.state} writes in {read.module or 'the model'} "
        f"({short_source(read.source)}), which Python ran outside of any compiled part",
        f"Put what reads there into a module of its own or compile it, too; or compile the whole model: {COMPILE}.",
    )


def _uncompiled(module: nn.Module, path: str, calls: Calls) -> Cause:
    name = type(module).__name__
    if path:
        return Cause(
            "uncompiled",
            name,
            f"it is the part {path!r} of the model, and was called by itself, outside of any compiled call",
            f"Call the whole model, compiled: {COMPILE}.",
        )
    if module._compiled_call_impl is not None:
        return Cause(
            "uncompiled",
            name,
            "its forward was called past the compiled call, as model.forward(..) does, or under torch.compiler.disable",
            "Call the model itself, model(..), outside of torch.compiler.disable.",
        )
    if calls.compiled:
        return Cause(
            "wrapper",
            name,
            "the module itself was called, and only a wrapper of it is compiled, which torch.compile(model) gave; "
            "methods of the wrapper, such as generate, call the module",
            f"Compile the module in place, so that every way leads through the compiled call: {COMPILE}.",
        )
    if calls.is_copy:
        return Cause(
            "uncompiled",
            name,
            "this copy of a prepared model was never compiled",
            'A compiled model is copied without its graphs: compile the copy, too: copy.compile(backend="attnres").',
        )
    return Cause("uncompiled", name, "it was never compiled", f"Compile it: {COMPILE}.")


def _limit(name: str, hit: frames.LimitHit) -> Cause:
    guard = f"; the last guard that failed is: {hit.guard}" if hit.guard else ""
    return Cause(
        "limit",
        name,
        f"Dynamo compiled it {hit.graphs} times, the limit of torch._dynamo.config.{hit.limit}, and runs other calls "
        f"plain{guard}",
        f"Keep what changes there constant; or, for sizes, call {COMPILE[:-1]}, dynamic=True); or raise the limit: "
        f"torch._dynamo.config.{hit.limit} = {2 * hit.graphs}. Then call torch.compiler.reset().",
    )


def _place_of(backend: str) -> str:
    """Where another backend belongs in a compilation with ours."""
    if backend in get_args(Inner):
        return f'{backend!r} runs behind it by options={{"inner": "{backend}"}}.'
    return "If that backend calls ours, make it with functools.wraps(attnres), so that it is known."


def _mend_of_tracer(tracer: str) -> str:
    if tracer == "torch.func":
        return (
            "Use torch.autograd on the compiled model in place of torch.func.grad, and a loop in place of "
            "torch.func.vmap; no transform works through the rewrite."
        )
    return _EXPORTED
