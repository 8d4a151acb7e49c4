"""The operator `attnres::depth_attention`: a read in the rewritten graph, before a schedule lowers it.

Opaque to a compiler, so that passes can find and regroup reads; correct on any device as it stands.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attnres_kernels.definition.naive import check_sources, depth_attention, depth_weights


@torch.library.custom_op("attnres::depth_attention", mutates_args=())
def depth_attention_op(sources: Sequence[Tensor], key_vector: Tensor, eps: float, scale: str) -> Tensor:
    """`naive.depth_attention` as an operator: same arguments, same result, never an alias of a source."""
    check_sources(sources, key_vector)
    with torch.autocast(sources[0].device.type, enabled=False):
        return depth_attention(sources, key_vector, eps, scale)


@depth_attention_op.register_fake
def _(sources: Sequence[Tensor], key_vector: Tensor, eps: float, scale: str) -> Tensor:
    check_sources(sources, key_vector)
    return sources[0].new_empty(sources[0].shape)


def _setup_context(ctx: Any, inputs: tuple[Sequence[Tensor], Tensor, float, str], output: Tensor) -> None:
    sources, key_vector, ctx.eps, ctx.scale = inputs
    ctx.save_for_backward(key_vector, *sources)


def depth_attention_backward(
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
    weights = depth_weights(sources, key_vector, eps)
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


def _backward(ctx: Any, grad: Tensor) -> tuple[list[Tensor], Tensor, None, None]:
    key_vector, *sources = ctx.saved_tensors
    with torch.autocast(grad.device.type, enabled=False):
        grad_sources, grad_key = depth_attention_backward(grad, sources, key_vector, ctx.eps, ctx.scale)
    return grad_sources, grad_key, None, None


depth_attention_op.register_autograd(_backward, setup_context=_setup_context)
