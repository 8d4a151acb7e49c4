"""The operator `attnres::depth_attention`: a read in the rewritten graph, before a schedule lowers it.

Opaque to a compiler, so that passes can find and regroup reads; correct on any device as it stands.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attnres_kernels.definition import naive
from attnres_kernels.operators.definition import OperatorDefinition, Work, multiplied, torch_operator


class DepthAttention(NamedTuple):
    """The arguments of `naive.depth_attention`."""

    sources: Sequence[Tensor]
    key_vector: Tensor
    eps: float
    scale: str


def _run(call: DepthAttention) -> Tensor:
    """`naive.depth_attention`, never an alias of a source."""
    naive.check_sources(call.sources, call.key_vector)
    with torch.autocast(call.sources[0].device.type, enabled=False):
        return naive.depth_attention(*call)


def _fake(call: DepthAttention) -> Tensor:
    naive.check_sources(call.sources, call.key_vector)
    return call.sources[0].new_empty(call.sources[0].shape)


def _flops(call: DepthAttention) -> int:
    """Square sum, dot product and weighted sum of every source."""
    return multiplied(3 * len(call.sources), call.sources[0])


DEPTH_ATTENTION = OperatorDefinition(
    "attnres::depth_attention",
    DepthAttention,
    Tensor,
    _run,
    _fake,
    flops=_flops,
    work=lambda call: Work(len(call.sources)),
    computes=(naive.naive_read,),
    make=torch_operator(),
)


def _gradients(
    grad: Tensor, sources: Sequence[Tensor], key_vector: Tensor, eps: float, scale: str
) -> tuple[list[Tensor], Tensor]:
    """Gradients of `depth_attention`; keeps nothing but its inputs and recomputes logits and weights.

    With `c` the scale factor, `r_i` the inverse RMS, `u_i = k . v_i`, `w` the weights and `g` the gradient of
    the output:

        a_i = c g . v_i        e_i = w_i (a_i - sum_j w_j a_j)          (gradient of logit i)
        dv_i = c w_i g + e_i (r_i k - u_i r_i^3 / d v_i)                dk = sum_tokens sum_i e_i r_i v_i

    Args:
        grad: `[*, d]` gradient of the output.
        sources, key_vector, eps, scale: as in `depth_attention`.

    Returns:
        The gradient of every source `[*, d]` in its dtype, and that of the key vector `[d]`.
    """
    weights = naive.depth_weights(sources, key_vector, eps)
    dtype, width = weights.dtype, sources[0].shape[-1]
    factor = float(len(sources)) if scale == "sum" else 1.0
    key, grad = key_vector.to(dtype), grad.to(dtype) * factor
    projected = torch.stack([(grad * source.to(dtype)).sum(-1) for source in sources], -1)
    grad_logits = weights * (projected - (weights * projected).sum(-1, keepdim=True))

    grad_sources = []
    grad_key = torch.zeros_like(key)
    for i, source in enumerate(sources):
        value = source.to(dtype)
        inverse_rms = torch.rsqrt(value.square().mean(-1, keepdim=True) + eps)
        to_key = grad_logits[..., i : i + 1] * inverse_rms
        to_value = to_key * (value * key).sum(-1, keepdim=True) * inverse_rms.square() / width
        grad_value = weights[..., i : i + 1] * grad + to_key * key - to_value * value
        grad_sources.append(grad_value.to(source.dtype))
        grad_key = grad_key + (to_key * value).reshape(-1, width).sum(0)
    return grad_sources, grad_key.to(key_vector.dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    sources, key_vector, ctx.eps, ctx.scale = inputs
    ctx.save_for_backward(key_vector, *sources)


def _backward(ctx: Any, grad: Tensor) -> tuple[list[Tensor], Tensor, None, None]:
    key_vector, *sources = ctx.saved_tensors
    with torch.autocast(grad.device.type, enabled=False):
        grad_sources, grad_key = _gradients(grad, sources, key_vector, ctx.eps, ctx.scale)
    return grad_sources, grad_key, None, None


DEPTH_ATTENTION.operator.register_autograd(_backward, setup_context=_setup_context)
