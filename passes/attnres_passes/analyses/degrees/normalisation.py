"""Rules of normalisations, which take a degree away, and of attention, whose softmax is one."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from attnres_passes.analyses.degrees.degree import (
    LARGEST_EPS,
    UNKNOWN,
    ZERO,
    Call,
    Degree,
    functional_name,
    of_power,
    of_product,
    rule,
)


@rule(
    "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
    "_scaled_dot_product_attention_math _scaled_dot_product_fused_attention_overrideable"
)
def attention(call: Call) -> list[Degree]:
    """Softmax needs logits of degree 0; then the output scales as the values do."""
    others = call.tensors((call.op.args[3:], call.op.kwargs))
    invariant = of_product(call.degree(0), call.degree(1)) == ZERO and all(other == ZERO for other in others)
    return [call.degree(2) if invariant else UNKNOWN, *[ZERO if invariant else UNKNOWN] * (len(call.op.outputs) - 1)]


@rule("native_layer_norm")
def layer_norm(call: Call) -> list[Degree]:
    return _normalized(call, call.op.args[2:4], (1, -1), call.argument(4, "eps"))


@rule("_fused_rms_norm rms_norm")
def rms_norm(call: Call) -> list[Degree]:
    return _normalized(call, call.op.args[2:3], (-1,), call.argument(3, "eps"))


@rule("native_group_norm _batch_norm_with_update")
def group_norm(call: Call) -> list[Degree]:
    """Weight and bias come second, eps last; a batch norm that updates its statistics is in training."""
    return _normalized(call, call.op.args[1:3], (1, -1), call.op.args[-1])


@rule("native_batch_norm _native_batch_norm_legit cudnn_batch_norm")
def batch_norm(call: Call) -> Degree | list[Degree]:
    """With batch statistics it is a norm; with running statistics it is an affine map."""
    op = call.op
    has_running_statistics = len(op.args) > 7 or functional_name(op) != "aten._native_batch_norm_legit"
    training = op.args[5] if has_running_statistics else op.args[3]
    eps = next((argument for argument in reversed(op.args) if isinstance(argument, float)), None)
    return _normalized(call, op.args[1:3], (1, -1), eps) if training else UNKNOWN


def _normalized(call: Call, affine: Sequence[Any], statistics: Sequence[int], eps: float | None) -> list[Degree]:
    """Output of degree 0 when weight and bias are, and the statistics beside it with the given powers."""
    op, degree = call.op, call.degree()
    known = degree is not UNKNOWN and all(call.of(argument) == ZERO for argument in affine)
    if eps is not None and eps > LARGEST_EPS:  # it is felt beside the variance
        return [UNKNOWN] * len(op.outputs)
    degrees = [ZERO if known else UNKNOWN, *(of_power(degree, Fraction(power)) for power in statistics)]
    # What an operator changes in place, the running statistics of a batch norm, comes first among its outputs.
    written = len(op.outputs) - len(op.target._schema.returns)
    degrees = [*[UNKNOWN] * written, *degrees]
    return degrees[: len(op.outputs)] + [UNKNOWN] * (len(op.outputs) - len(degrees))
