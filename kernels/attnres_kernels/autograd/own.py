"""A read that makes the logits of all its sources itself, on one generated kernel each way, with gradients.

Nothing of it is shared with other reads: neither logits nor the gradients of blocks (see `fused` for that). It needs
one launch and one pass over memory, which is what a read on its own wants, and what `own_read` and `fused_own_read` of
`scheduled` are bound to: reads of few tokens without gradients.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnres_kernels.operators import own_operators


@dataclass(frozen=True)
class OwnForm:
    """What a read is, apart from its tensors.

    factor: of the result; eps: of the key norm; norm, norm_eps: the norm behind, "rms", "layer" or None; returns_value:
    whether the value before the norm is wanted.
    """

    factor: float
    eps: float
    norm: str | None
    norm_eps: float
    returns_value: bool


class _OwnRead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        form: OwnForm,
        partial: Tensor | None,
        branch: Tensor | None,
        query: Tensor,
        key_weight: Tensor,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        *sources: Tensor,
    ) -> tuple[Tensor, ...]:
        *made, statistics = own_operators.own_read_op(
            list(sources),
            partial,
            query,
            key_weight,
            branch,
            form.norm,
            form.norm_eps,
            norm_weight,
            norm_bias,
            form.returns_value,
            form.factor,
            form.eps,
        )
        ctx.form, ctx.adds = form, branch is not None
        state = made[-1] if branch is not None else partial
        ctx.save_for_backward(statistics, state, query, key_weight, norm_weight, norm_bias, *sources)
        ctx.set_materialize_grads(False)
        return tuple(made)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        form: OwnForm = ctx.form
        statistics, partial, query, key_weight, norm_weight, norm_bias, *sources = ctx.saved_tensors
        given = list(grads)
        value_grad = given.pop(0) if form.returns_value else None
        normed_grad = given.pop(0) if form.norm is not None else None
        partial_grad = given.pop(0) if ctx.adds else None
        made = own_operators.own_read_backward_op(
            value_grad,
            normed_grad,
            partial_grad,
            statistics,
            sources,
            partial,
            query,
            key_weight,
            form.norm,
            form.norm_eps,
            norm_weight,
            norm_bias,
            form.factor,
        )
        of_sources, rest = made[: len(sources)], list(made[len(sources) :])
        to_partial = None if partial is None else rest.pop(0)
        to_key = rest.pop(0)
        to_weight, to_bias = (
            rest.pop(0).to(x.dtype) if x is not None and normed_grad is not None else None
            for x in (norm_weight, norm_bias)
        )
        to_query, to_key_weight = (to_key * key_weight).to(query.dtype), (to_key * query).to(key_weight.dtype)
        to_branch = to_partial if ctx.adds else None
        return None, to_partial, to_branch, to_query, to_key_weight, to_weight, to_bias, *of_sources


def own_read(
    sources: Sequence[Tensor],
    partial: Tensor | None,
    query: Tensor,
    key_weight: Tensor,
    factor: float,
    eps: float,
    branch: Tensor | None = None,
    norm: str | None = None,
    norm_eps: float = 0.0,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    returns_value: bool = True,
) -> tuple[Tensor, ...]:
    """One read (equations 1 to 6 of the paper), with its neighbours.

    Args:
        sources: `n` completed blocks `[*, d]`.
        partial: open partial sum `[*, d]`, or None, which it may not be without a source.
        query, key_weight: `[d]`, the pseudo-query and the weight of the key norm.
        factor: of the result: the number of all sources for `scale="sum"`, else 1.
        eps: of the key norm.
        branch: `[*, d]`, added to the partial sum first.
        norm: the norm behind, "rms", "layer" or None; its eps, weight `[d]` and bias `[d]`.
        returns_value: whether the value before the norm is wanted; without a norm it always is.

    Returns:
        The value, the normed value and the new partial sum `[*, d]`, those that there are.

    Raises:
        UnsupportedSourcesError: a dtype or a width that the kernels cannot take.
    """
    form = OwnForm(factor, eps, norm, norm_eps, returns_value or norm is None)
    outputs: tuple[Tensor, ...] = _OwnRead.apply(  # type: ignore[no-untyped-call]
        form, partial, branch, query, key_weight, norm_weight, norm_bias, *sources
    )
    return outputs
