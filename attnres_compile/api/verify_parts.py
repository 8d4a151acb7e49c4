"""``verify`` for a model of several graphs: its compiled parts, linked, against the plain model in eager.

With zero queries and ``scale="sum"``, every read is the sum of the sources that came in for it. So outputs, and the
gradients of all parameters of the model, are those of the plain model if and only if every state came with the sources
that it is the sum of, each of them once, and tied to what made it.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from attnres_compile.api.prepare import prepare, unprepare
from attnres_compile.api.verification import TOLERANCES, Check, dtype_name, relative_error
from attnres_compile.capture.analysis import apply_on_decline
from attnres_compile.capture.capture import copied_input
from attnres_compile.capture.functions import functions_of
from attnres_compile.model.parameters import parameters_of, require_parameters
from attnres_compile.progress import stage
from attnres_kernels.errors import AttnResError
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.torch_private.captures.fresh_codes import fresh_codes
from attnres_passes.torch_private.dynamo import without_recorded_shapes

NAME = "parts, zero queries, scale=sum = plain model in eager, with gradients"


def check_in_parts(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None, config: AttnResConfig
) -> Check:
    """Compare the compiled parts of a model with the plain model in eager, on copies of it.

    Args:
        model, args, kwargs: those of ``verify``.
        config: of the plan.

    Raises:
        CaptureError, NoStreamError: those of ``prepare``.
    """
    stage("checking the parts of the model against the plain model")
    plain = copy.deepcopy(model)
    if parameters_of(plain) is not None:
        unprepare(plain)
    rewritten = copy.deepcopy(plain)
    chosen = dataclasses.replace(config, scale="sum", inner="eager", on_plain="error")
    plan = prepare(rewritten, args, kwargs, config=chosen)
    if not plan.streams:
        apply_on_decline(plan)
        return Check(NAME, "", False, float("nan"), 0.0, skipped="nothing is rewritten")
    expected = _run(plain, args, kwargs)
    dtype = _least_precise(expected)
    tolerance = TOLERANCES.get(dtype, 5e-2)
    rewritten.compile(backend="attnres", options={"inner": "eager"})
    with without_recorded_shapes(), fresh_codes(functions_of(plain, tree_leaves((args, kwargs)))):
        try:
            found = _run(rewritten, args, kwargs)
        except AttnResError as error:
            return Check(NAME, dtype_name(dtype), False, float("inf"), tolerance, error.message)
    wrong = [name for name in expected if name not in found or _is_off(expected[name], found[name], tolerance)]
    worst = max((relative_error(expected[name], found[name]) for name in expected if name in found), default=0.0)
    reads = len(require_parameters(rewritten).plan.depth_reads)
    note = f"{wrong[0]} is off" if wrong else f"{reads} reads"
    return Check(NAME, dtype_name(dtype), not wrong, worst, tolerance, note)


def _run(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> dict[str, Tensor]:
    """The floating-point outputs of a call, and the gradients of a loss on all of them, by name."""
    given = tree_map_only(Tensor, copied_input, tuple(args))
    named: dict[str, Any] = tree_map_only(Tensor, copied_input, dict(kwargs or {}))
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        result = model(*given, **named)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        if losses := [_loss(output) for output in outputs if output.requires_grad]:
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
    found = {f"output {index}": output.detach() for index, output in enumerate(outputs)}
    own = (one for one in model.named_parameters() if not one[0].startswith("attnres."))
    return found | {f"the gradient of {name}": one.grad for name, one in own if one.grad is not None}


def _loss(output: Tensor) -> Tensor:
    """In a direction of its own: the mean square of what a norm gives has no gradient to speak of."""
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (output.double() * direction.to(output.device)).mean()


def _is_off(expected: Tensor, found: Tensor, tolerance: float) -> bool:
    # Gradients add up what outputs are made of, with rounding at every step.
    return not relative_error(expected, found) <= 20 * tolerance


def _least_precise(values: Mapping[str, Tensor]) -> torch.dtype:
    return max(
        (value.dtype for value in values.values()), key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32
    )
