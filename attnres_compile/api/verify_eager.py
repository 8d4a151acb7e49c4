"""The check of ``verify`` that is independent of capture: the compiled rewrite against the plain model in eager.

With zero queries and ``scale="sum"``, every read is the sum of its sources. So outputs, and the gradients of all
parameters of the model, are those of the plain model if and only if every read is given the sources that its state is
the sum of, each of them once, and tied to what made it; in a model of several graphs, also across their borders.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from attnres_compile.api.prepare import prepare, unprepare
from attnres_compile.api.verification import TOLERANCES, Check, dtype_name, relative_error
from attnres_compile.capture.analysis import apply_on_decline
from attnres_compile.capture.capture import buffers_restored, copied_input, does_not_compile
from attnres_compile.capture.functions import functions_of
from attnres_compile.model.parameters import parameters_of, require_parameters
from attnres_compile.progress import stage
from attnres_kernels.errors import AttnResError
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.torch_private.captures.fresh_codes import fresh_codes
from attnres_passes.torch_private.dynamo import without_recorded_shapes

WHOLE = "compiled rewrite = plain module in eager, gradients too"
PARTS = "compiled parts = plain module in eager, gradients too"
GRADIENTS_OFF = 20.0
"""Gradients add up what outputs are made of, with rounding at every step: they may be off by so many tolerances."""
SMALLEST_GRADIENT = 1e-2
"""Of the largest element of all gradients: smaller ones are held against this, since some are rounding alone (the bias
of a key, which a softmax over keys takes off again)."""


def zero_query_identity(config: AttnResConfig) -> tuple[AttnResConfig, str]:
    """The config under which zero queries give back the plain sum, and in words what of the one asked for it lacks.

    Whatever the mechanism weighs sources by, it weighs all alike then; but a window leaves some out.
    """
    words = "" if config.window is None else ", window of all blocks"
    return dataclasses.replace(config, scale="sum", window=None), words


def check_against_eager(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    config: AttnResConfig,
    name: str,
    computed: torch.dtype | None = None,
) -> Check:
    """Run a copy of a model in eager, rewrite and compile the copy, and compare its outputs and gradients.

    Args:
        model, args, kwargs: those of ``verify``.
        config: of the plan.
        name: of the check.
        computed: the least precise dtype inside of the model, which says how much may differ; float64 converts the
            copy, for inputs that have been converted. None for that of outputs and gradients.

    Raises:
        CaptureError: those of ``prepare``, and that torch.compile does not run the plain model.
        NoStreamError: those of ``prepare``.
    """
    stage("checking the compiled model against the plain model in eager")
    original, model = model, _plain_copy(model, computed)
    codes = functions_of(model, tree_leaves((args, kwargs)))
    with buffers_restored(model):
        expected = _run(model, args, kwargs)
    identity, differs = zero_query_identity(config)
    chosen, name = dataclasses.replace(identity, inner="eager", regions=False, on_plain="error"), name + differs
    plan = prepare(model, args, kwargs, config=chosen)
    if not plan.streams:
        apply_on_decline(plan)
        return Check(name, "", False, float("nan"), 0.0, skipped="nothing is rewritten")
    computed = computed or _least_precise([*expected.outputs, *expected.gradients.values()])
    tolerance = TOLERANCES.get(computed, 5e-2)
    model.compile(backend="attnres", options={"inner": "eager"})
    with without_recorded_shapes(), fresh_codes(codes):
        try:
            found = _run(model, args, kwargs)
        except AttnResError as error:
            return Check(name, dtype_name(computed), False, float("inf"), tolerance, error.message, refused=True)
        except Exception as error:  # of any class: Dynamo's, or of what the rewrite made
            failure: Exception | None = error
        else:
            failure = None
    if failure is not None:
        try:
            _run_traced(original, args, kwargs, computed, codes)
        except Exception as own:
            raise does_not_compile(original, own) from own
        words = f"the rewritten model stopped, where torch.compile runs the plain one: {_first_line(failure)}"
        return Check(name, dtype_name(computed), False, float("inf"), tolerance, words)
    errors = _errors(expected, found)
    wrong = [what for what, error in errors.items() if not error <= tolerance]
    reads = len(require_parameters(model).plan.depth_reads)
    note = f"{wrong[0]} is off" if wrong else expected.no_gradients or f"{reads} reads"
    if found.no_gradients and not expected.no_gradients:
        return Check(name, dtype_name(computed), False, float("inf"), tolerance, found.no_gradients)
    if wrong:
        traced = _run_traced(original, args, kwargs, computed, codes)
        if not _errors(expected, traced).get(wrong[0], 0.0) <= tolerance:
            note += ", as it is where torch.compile traces the plain model"
    return Check(name, dtype_name(computed), not wrong, max(errors.values(), default=0.0), tolerance, note)


def _run_traced(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    computed: torch.dtype | None,
    codes: Sequence[FunctionType],
) -> _Result:
    """What a plain copy gives where Dynamo traces it, and nothing is compiled behind it."""
    plain = _plain_copy(model, computed)
    with without_recorded_shapes(), fresh_codes(codes):
        plain.compile(backend="eager")
        return _run(plain, args, kwargs)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def _plain_copy(model: nn.Module, computed: torch.dtype | None) -> nn.Module:
    plain = copy.deepcopy(model)
    if parameters_of(plain) is not None:
        unprepare(plain)
    return plain.double() if computed is torch.float64 else plain


@dataclass(frozen=True)
class _Result:
    """What a call gave. outputs: the floating-point ones; gradients: of a loss on all of them, by parameter of the
    model's own; no_gradients: why there are none, if the model itself has none."""

    outputs: list[Tensor]
    gradients: dict[str, Tensor]
    no_gradients: str = ""


def _run(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> _Result:
    """Call a model, and differentiate a loss on all outputs; where that fails, the result says so.

    Args:
        model: plain or compiled.
        args, kwargs: its inputs, which are copied.
    """
    given, named = tree_map_only(object, _copied, (tuple(args), dict(kwargs or {})))
    failure = ""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        leaves = tree_leaves(model(*given, **named))
        outputs = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        kept = [output.detach().clone() for output in outputs]
        if losses := [_loss(output) for output in outputs if output.requires_grad]:
            try:
                torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
            except RuntimeError as error:
                failure = f"no gradients to compare: {str(error).splitlines()[0][:120]}"
    own = {name: one.grad for name, one in model.named_parameters() if not name.startswith("attnres.")}
    model.zero_grad(set_to_none=True)
    return _Result(kept, {} if failure else {name: one for name, one in own.items() if one is not None}, failure)


def _errors(expected: _Result, found: _Result) -> dict[str, float]:
    """How far each output and gradient is off, in units of the tolerance of outputs.

    Args:
        expected: of the plain model.
        found: of the rewritten one. A gradient that only one of them has is compared with zeros.
    """
    shapes = [[output.shape for output in result.outputs] for result in (expected, found)]
    if shapes[0] != shapes[1]:
        return {"the number or a shape of the outputs": float("inf")}
    pairs = zip(expected.outputs, found.outputs, strict=True)
    errors = {f"output {index}": relative_error(left, right) for index, (left, right) in enumerate(pairs)}
    if expected.no_gradients:
        return errors
    # Finite elements only: an infinite one would be what nothing is off against.
    sizes = [one.nan_to_num(0.0, 0.0, 0.0).abs().max() for one in expected.gradients.values() if one.numel()]
    largest = max(map(float, sizes), default=0.0)
    for name in expected.gradients | found.gradients:
        zeros = torch.zeros_like((expected.gradients | found.gradients)[name])
        left, right = expected.gradients.get(name, zeros), found.gradients.get(name, zeros)
        error = relative_error(left, right, at_least=SMALLEST_GRADIENT * largest)
        errors[f"the gradient of {name}"] = error / GRADIENTS_OFF
    return errors


def _copied(leaf: Any) -> Any:
    """Inputs that a call may change, such as a cache, are the call's own."""
    return copied_input(leaf) if isinstance(leaf, Tensor) else copy.deepcopy(leaf)


def _loss(output: Tensor) -> Tensor:
    """In a direction of its own: the mean square of what a norm gives has no gradient to speak of."""
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (output.double() * direction.to(output.device)).mean()


def _least_precise(values: Sequence[Tensor]) -> torch.dtype:
    return max((value.dtype for value in values), key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)
