"""A read with own logits and its backward as operators of torch, as ``operators``; ``depth_attention.own`` ties them
together.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from attnres_kernels.generation.own_read import statistics_of
from attnres_kernels.launch import launch_own_read
from attnres_kernels.launch.launch_read import norm_of
from attnres_kernels.launch.load_triton import triton_operator
from attnres_kernels.operators.tiles import flatten


@triton_operator("attnres::generated_own_read")
def own_read_op(
    sources: Sequence[Tensor],
    partial: Tensor | None,
    query: Tensor,
    key_weight: Tensor,
    branch: Tensor | None,
    norm: str | None,
    norm_eps: float,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    returns_value: bool,
    factor: float,
    eps: float,
) -> list[Tensor]:
    """The value, the normed value and the new partial sum ``[*, d]``, those that there are, and the statistics."""
    parts = launch_own_read.OwnRead(sources, partial, query, key_weight)
    shape = parts.values()[0].shape
    result = launch_own_read.own_read(
        parts, factor, eps, branch, norm_of(norm, norm_eps, norm_weight, norm_bias), returns_value
    )
    return result.as_list(shape)


@own_read_op.register_fake
def _(
    sources: Sequence[Tensor],
    partial: Tensor | None,
    query: Tensor,
    key_weight: Tensor,
    branch: Tensor | None,
    norm: str | None,
    norm_eps: float,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    returns_value: bool,
    factor: float,
    eps: float,
) -> list[Tensor]:
    parts = launch_own_read.OwnRead(sources, partial, query, key_weight)
    like, kept = parts.values()[0], statistics_of(parts.spec(branch is not None, None, True))
    count = (norm is None or returns_value) + (norm is not None) + (branch is not None)
    made = [like.new_empty(like.shape) for _ in range(count)]
    return [*made, like.new_empty((flatten(like).shape[0], kept), dtype=torch.float32)]


@triton_operator("attnres::generated_own_read_backward")
def own_read_backward_op(
    value_grad: Tensor | None,
    normed_grad: Tensor | None,
    partial_grad: Tensor | None,
    statistics: Tensor,
    sources: Sequence[Tensor],
    partial: Tensor | None,
    query: Tensor,
    key_weight: Tensor,
    norm: str | None,
    norm_eps: float,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    factor: float,
) -> list[Tensor]:
    """Gradients of the sources ``[*, d]``, the partial sum last; then of the key, and of the norm's weight and its bias
    if there is a gradient through it, ``[d]`` in fp32.
    """
    parts = launch_own_read.OwnRead(sources, partial, query, key_weight)
    found = launch_own_read.own_read_backward(
        parts,
        statistics.contiguous(),
        factor,
        value_grad,
        normed_grad,
        partial_grad,
        norm_of(norm, norm_eps, norm_weight, norm_bias),
    )
    wide = [grad.reshape(x.shape) for grad, x in zip(found.sources, parts.values(), strict=True)]
    return [*wide, *(x for x in (found.key, found.norm_weight, found.norm_bias) if x is not None)]


@own_read_backward_op.register_fake
def _(
    value_grad: Tensor | None,
    normed_grad: Tensor | None,
    partial_grad: Tensor | None,
    statistics: Tensor,
    sources: Sequence[Tensor],
    partial: Tensor | None,
    query: Tensor,
    key_weight: Tensor,
    norm: str | None,
    norm_eps: float,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    factor: float,
) -> list[Tensor]:
    values = launch_own_read.OwnRead(sources, partial, query, key_weight).values()
    has_norm = norm is not None and normed_grad is not None
    vectors = 1 + (has_norm and norm_weight is not None) + (has_norm and norm_bias is not None)
    wide = [x.new_empty(x.shape) for x in values]
    return [*wide, *(query.new_empty(query.shape, dtype=torch.float32) for _ in range(vectors))]
