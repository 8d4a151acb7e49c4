"""The definition of reads that are not the paper's, in plain PyTorch; ``mechanism`` says how they differ.

With sources `v_i`, query `q` and key-norm weight `g`, `n` sources and `d` features:

    q   = q                           query="learned"; W v_n / rms(v_n) "input", with the newest source and a matrix
    k_i = g v_i / rms(v_i)            key_norm="weight"; v_i / rms(v_i) "plain"; v_i "none"
    l_ih = s sum_{c in head h} q_c k_ic
    w_ih = softmax_i(l_ih)            mixing="softmax"
         = (2 / n) sigmoid(l_ih)      mixing="sigmoid": of a zero query 1/n, as the softmax is
    u_i = v_i                         value_norm="none"; v_i / rms(v_i) "plain"
    out_c = sum_i w_ih(c) u_ic        times n for scale="sum"
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from attnres_kernels.definition.mechanism import Mechanism
from attnres_kernels.definition.naive import SCALES, autocast_device, check_sources, key_vector, statistics_dtype
from attnres_kernels.errors import UnsupportedSourcesError


def effective_weight(query: Tensor, weight: Tensor | None, logit_scale: float) -> Tensor:
    """What a query is multiplied by, elementwise, to be the effective key vector: weight of the key norm and scale.

    Args:
        query: `[d]`.
        weight: `[d]` of the key norm, or None for one without a weight.
        logit_scale: factor of the logits.

    Returns:
        `[d]` in fp32 (fp64 for fp64 parameters).
    """
    dtype = statistics_dtype(query.dtype if weight is None else torch.promote_types(query.dtype, weight.dtype))
    if weight is None:
        return torch.full_like(query, logit_scale, dtype=dtype, requires_grad=False)
    return weight.to(dtype) * logit_scale


def check_parameters(sources: Sequence[Tensor], parameters: Sequence[Tensor], how: Mechanism) -> None:
    """Check that a read can be made from these tensors.

    Args:
        sources, parameters, how: of `variant_weights`.

    Raises:
        UnsupportedSourcesError: they do not agree.
    """
    first = parameters[0]
    if how.query == "input" and (first.dim() != 2 or first.shape[0] != first.shape[1]):
        raise UnsupportedSourcesError(
            f"The matrix of an input-dependent query has shape {list(first.shape)}: pass one of [d, d]."
        )
    check_sources(sources, first[0] if how.query == "input" else first)


def query_and_factor(
    sources: Sequence[Tensor], parameters: Sequence[Tensor], eps: float, how: Mechanism
) -> tuple[Tensor, Tensor]:
    """The query of a read, and what it is multiplied by to be the effective key vector.

    Args:
        sources, parameters, eps, how: of `variant_weights`.

    Returns:
        `[d]`, or `[*, d]` if it is made of the input; and a tensor that it is multiplied by.
    """
    first, *weight = parameters
    query = first
    if how.query == "input":
        newest = normed(sources[-1], eps)
        query = torch.nn.functional.linear(newest, first.to(newest.dtype))
    return query, effective_weight(query, weight[0] if weight else None, how.logit_scale)


def normed(source: Tensor, eps: float) -> Tensor:
    """`v / rms(v)` in fp32 (fp64 for fp64)."""
    value = source.to(statistics_dtype(source.dtype))
    return value * torch.rsqrt(value.square().mean(-1, keepdim=True) + eps)


def mixed_value(source: Tensor, eps: float, how: Mechanism) -> Tensor:
    """What is mixed of a source `[*, d]`: itself, or `v / rms(v)` in fp32 (fp64 for fp64)."""
    return source if how.value_norm == "none" else normed(source, eps)


def per_head(value: Tensor, heads: int) -> Tensor:
    """`[*, d]` as `[*, heads, d / heads]`."""
    return value.reshape(*value.shape[:-1], heads, value.shape[-1] // heads)


def variant_weights(sources: Sequence[Tensor], parameters: Sequence[Tensor], eps: float, how: Mechanism) -> Tensor:
    """The weights of one read under `scale="mean"`.

    Args:
        sources: `n` tensors `[*, d]`, those in the window.
        parameters: the query `[d]`, or the matrix `[d, d]` that makes it, and the weight `[d]` of the key norm if it
            has one.
        eps: of the key norm.
        how: the mechanism.

    Returns:
        `[*, heads, n]` in fp32 (fp64 for fp64 sources).

    Raises:
        UnsupportedSourcesError: sources and parameters do not agree.
    """
    check_parameters(sources, parameters, how)
    if sources[0].shape[-1] % how.heads:
        raise UnsupportedSourcesError(
            f"heads={how.heads} does not divide the width {sources[0].shape[-1]} of the sources: pass a divisor."
        )
    dtype = statistics_dtype(sources[0].dtype)
    query, factor = query_and_factor(sources, parameters, eps, how)
    key = key_vector(query, factor).to(dtype)
    logits = []
    for source in sources:
        value = source.to(dtype)
        logit = per_head(value * key, how.heads).sum(-1)
        if how.key_norm != "none":
            logit = logit * torch.rsqrt(value.square().mean(-1, keepdim=True) + eps)
        logits.append(logit)
    stacked = torch.stack(logits, -1)
    return stacked.sigmoid() * (2.0 / len(sources)) if how.mixing == "sigmoid" else stacked.softmax(-1)


def variant_attention(
    sources: Sequence[Tensor], parameters: Sequence[Tensor], eps: float, scale: str, how: Mechanism
) -> Tensor:
    """One read of the residual stream by a mechanism.

    Args:
        sources, parameters, eps, how: of `variant_weights`.
        scale: "mean", or "sum" for `n` times that.

    Returns:
        `[*, d]` in the dtype of the sources, contiguous; rounded to that dtype once.

    Raises:
        UnsupportedSourcesError: sources, parameters and scale do not agree.
    """
    if scale not in SCALES:
        raise UnsupportedSourcesError(f"scale is {scale!r}: pass one of {', '.join(map(repr, SCALES))}.")
    weights = variant_weights(sources, parameters, eps, how)
    if scale == "sum":
        weights = weights * len(sources)
    values = [mixed_value(source, eps, how).to(weights.dtype) for source in sources]
    parts = [weights[..., i, None] * per_head(value, how.heads) for i, value in enumerate(values)]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total.flatten(-2).to(sources[0].dtype).contiguous()


def variant_read(
    sources: Sequence[Tensor], parameters: Sequence[Tensor], eps: float, scale: str, how: Mechanism
) -> Tensor:
    """`variant_attention` in plain torch calls that a compiler traces through, with autocast off.

    Args:
        sources, parameters, eps, scale, how: of `variant_attention`.
    """
    with torch.autocast(autocast_device(sources[0]), enabled=False):
        return variant_attention(sources, parameters, eps, scale, how)
