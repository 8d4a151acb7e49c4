"""The operator `attnres::variant_attention`: a read in the rewritten graph by a mechanism that is not the paper's.

Opaque to a compiler, as `attnres::depth_attention` is; lowering puts `variants.variant_read` in its place, in plain
torch. Where the graph is run as it stands, and where its FLOPs are counted, its gradients are those below.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attnres_kernels.definition import naive, variants
from attnres_kernels.definition.mechanism import Mechanism
from attnres_kernels.operators.definition import OperatorDefinition, Work, any_layout, multiplied, torch_operator


class VariantAttention(NamedTuple):
    """The arguments of `variants.variant_attention`."""

    sources: Sequence[Tensor]
    parameters: Sequence[Tensor]
    eps: float
    scale: str
    how: Mechanism


def _run(call: VariantAttention) -> Tensor:
    """`variants.variant_attention`, never an alias of a source."""
    return variants.variant_read(*call)


def _fake(call: VariantAttention) -> Tensor:
    variants.check_parameters(call.sources, call.parameters, call.how)
    return call.sources[0].new_empty(call.sources[0].shape)


def _flops(call: VariantAttention) -> int:
    """Square sum of every source that is normed, dot product, and weighted sum; the matrix of a query."""
    passes = 2 if call.how.key_norm == call.how.value_norm == "none" else 3
    width = call.sources[0].shape[-1] if call.how.query == "input" else 0
    return multiplied(passes * len(call.sources) + width, call.sources[0])


VARIANT_ATTENTION = OperatorDefinition(
    "attnres::variant_attention",
    VariantAttention,
    Tensor,
    _run,
    _fake,
    flops=_flops,
    work=lambda call: Work(len(call.sources)),
    computes=(variants.variant_read,),
    make=torch_operator(),
)


class VariantBackward(NamedTuple):
    """Arguments of the backward. grad: `[*, d]` of the output; call: what was computed."""

    grad: Tensor
    call: VariantAttention


def _run_backward(call: VariantBackward) -> list[Tensor]:
    """Gradients of all sources, then of all parameters; keeps nothing but the inputs.

    With `k_i` the normed source without a weight, `y_i` what is mixed, `u` the effective key vector, `g` the gradient
    of the output times `n` for `scale="sum"`, `w` the weights, sums over `c` within a head:

        a_ih = sum_c g_c y_ic
        e_ih = w_ih (a_ih - sum_j w_jh a_jh)     softmax
             = w_ih (1 - n w_ih / 2) a_ih        sigmoid
        dv_i = w_i g + r_i (x_i - k_i mean(x_i k_i)),  x_i = e_i u   (w_i g + x_i without a key norm)
        du = sum_tokens sum_i e_i k_i

    Where values are normed, `w_i g` goes through the norm as `x_i` does.

    A query that is made of the newest source has a gradient per token, `dq`, which goes on to its matrix and, through
    the norm, to that source.
    """
    with torch.autocast(call.grad.device.type, enabled=False):
        return _gradients(call.grad, *call.call)


def _gradients(
    grad: Tensor, sources: Sequence[Tensor], parameters: Sequence[Tensor], eps: float, scale: str, how: Mechanism
) -> list[Tensor]:
    weights = variants.variant_weights(sources, parameters, eps, how)
    dtype, count, width = weights.dtype, len(sources), sources[0].shape[-1]
    grad = grad.to(dtype) * (float(count) if scale == "sum" else 1.0)
    query, factor = variants.query_and_factor(sources, parameters, eps, how)
    key = naive.key_vector(query, factor).to(dtype)

    def per_head(value: Tensor) -> Tensor:
        return variants.per_head(value, how.heads)

    mixed = [variants.mixed_value(source, eps, how).to(dtype) for source in sources]
    projected = torch.stack([per_head(grad * value).sum(-1) for value in mixed], -1)
    if how.mixing == "sigmoid":
        of_logits = weights * (1 - weights * (count / 2)) * projected
    else:
        of_logits = weights * (projected - (weights * projected).sum(-1, keepdim=True))

    of_sources, of_key = [], torch.zeros_like(grad)
    for i, source in enumerate(sources):
        to_logit, value = of_logits[..., i, None], source.to(dtype)
        of_keyed = (to_logit * per_head(key)).flatten(-2)
        of_keyed = of_keyed if how.key_norm == "none" else _through_norm(value, of_keyed, eps)
        of_mixed = (weights[..., i, None] * per_head(grad)).flatten(-2)
        of_mixed = of_mixed if how.value_norm == "none" else _through_norm(value, of_mixed, eps)
        of_sources.append(of_mixed + of_keyed)
        normed = value if how.key_norm == "none" else variants.normed(value, eps)
        of_key = of_key + (to_logit * per_head(normed)).flatten(-2)
    of_key, (first, *weight) = of_key.to(factor.dtype), parameters
    of_query, of_weight = of_key * factor, of_key * query.to(factor.dtype) * how.logit_scale
    of_first = of_query.reshape(-1, width).sum(0)
    if how.query == "input":
        newest, of_query = variants.normed(sources[-1], eps), of_query.to(dtype)
        of_first = of_query.reshape(-1, width).t() @ newest.reshape(-1, width)
        of_sources[-1] = of_sources[-1] + _through_norm(sources[-1].to(dtype), of_query @ first.to(dtype), eps)
    of_parameters = [of_first, *(of_weight.reshape(-1, width).sum(0) for _ in weight)]
    likes = [*sources, *parameters]
    return [x.to(like.dtype) for x, like in zip([*of_sources, *of_parameters], likes, strict=True)]


def _through_norm(value: Tensor, of_normed: Tensor, eps: float) -> Tensor:
    """The gradient of `v` from that of `v / rms(v)`."""
    inverse_rms = torch.rsqrt(value.square().mean(-1, keepdim=True) + eps)
    normed = value * inverse_rms
    return inverse_rms * (of_normed - normed * (of_normed * normed).mean(-1, keepdim=True))


def _flops_backward(call: VariantBackward) -> int:
    """The forward once more, and twice as many for the gradients of what is multiplied."""
    return 3 * _flops(call.call)


VARIANT_BACKWARD = OperatorDefinition(
    "attnres::variant_backward",
    VariantBackward,
    list[Tensor],
    _run_backward,
    lambda call: [x.new_empty(x.shape) for x in (*call.call.sources, *call.call.parameters)],
    flops=_flops_backward,
    make=any_layout,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    sources, parameters, *ctx.rest = inputs
    ctx.count = len(sources)
    ctx.save_for_backward(*sources, *parameters)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    sources, parameters = list(ctx.saved_tensors[: ctx.count]), list(ctx.saved_tensors[ctx.count :])
    eps, scale, *how = ctx.rest
    call = VariantAttention(sources, parameters, eps, scale, Mechanism(*how))
    grads = VARIANT_BACKWARD(VariantBackward(grad, call))
    return grads[: ctx.count], grads[ctx.count :], *([None] * len(ctx.rest))


VARIANT_ATTENTION.operator.register_autograd(_backward, setup_context=_setup_context)
