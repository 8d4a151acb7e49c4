"""A read that makes the logits of all its sources itself, on one generated kernel each way, with gradients.

Nothing of it is shared with other reads: neither logits nor the gradients of blocks (see `generated_reads` for that).
It needs one launch and one pass over memory, which is what a read on its own wants, and what `own_logits_read` and
`fused_own_logits_read` of `scheduled` are bound to: reads of few tokens without gradients.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attnres_kernels.autograd.first_order import first_order
from attnres_kernels.autograd.generated_reads import of_norm, of_outputs, with_tensors
from attnres_kernels.autograd.varying_arguments import varying_arguments
from attnres_kernels.definition.read_parts import ALONE, Neighbours, OwnLogitsParts
from attnres_kernels.operators.definition import described_by
from attnres_kernels.operators.own_logits_read import (
    GENERATED_OWN_READ,
    GENERATED_OWN_READ_BACKWARD,
    OwnLogitsRead,
    OwnLogitsReadBackward,
)


class _Layout(NamedTuple):
    """What a read is, apart from its tensors. factor: of the result; eps: of the key norm."""

    factor: float
    eps: float
    neighbours: Neighbours


class _OwnLogitsRead(torch.autograd.Function):
    @staticmethod
    @varying_arguments
    def forward(
        ctx: Any,
        layout: _Layout,
        query: Tensor,
        key_weight: Tensor,
        branch: Tensor | None,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        *sources: Any,
    ) -> tuple[Tensor, ...]:
        *blocks, partial = sources
        parts = OwnLogitsParts(blocks, partial, query, key_weight)
        neighbours = with_tensors(layout.neighbours, branch, norm_weight, norm_bias)
        *made, statistics = GENERATED_OWN_READ(OwnLogitsRead(parts, neighbours, layout.factor, layout.eps))
        ctx.layout, ctx.made = layout, neighbours.results()
        state = made[-1] if branch is not None else partial
        ctx.save_for_backward(statistics, query, key_weight, norm_weight, norm_bias, *blocks, state)
        ctx.set_materialize_grads(False)
        return tuple(made)

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        layout: _Layout = ctx.layout
        statistics, query, key_weight, norm_weight, norm_bias, *blocks, partial = ctx.saved_tensors
        parts = OwnLogitsParts(blocks, partial, query, key_weight)
        neighbours = with_tensors(layout.neighbours, None, norm_weight, norm_bias)
        given = of_outputs(ctx.made, grads)
        made = GENERATED_OWN_READ_BACKWARD(OwnLogitsReadBackward(given, statistics, parts, neighbours, layout.factor))
        of_blocks, rest = made[: len(blocks)], list(made[len(blocks) :])
        to_partial = None if partial is None else rest.pop(0)
        to_key = rest.pop(0)
        to_query, to_key_weight = (to_key * key_weight).to(query.dtype), (to_key * query).to(key_weight.dtype)
        to_branch = to_partial if ctx.made[2] else None
        return None, to_query, to_key_weight, to_branch, *of_norm(rest, neighbours, given), *of_blocks, to_partial


@described_by(GENERATED_OWN_READ)
def own_logits_read(
    sources: Sequence[Tensor],
    partial: Tensor | None,
    query: Tensor,
    key_weight: Tensor,
    factor: float,
    eps: float,
    neighbours: Neighbours = ALONE,
) -> tuple[Tensor, ...]:
    """One read with its neighbours (equations 1 to 6 of the paper).

    Args:
        sources: `n` completed blocks `[*, d]`.
        partial: open partial sum `[*, d]`, or None, which it may not be without a source.
        query, key_weight: `[d]`, the pseudo-query and the weight of the key norm.
        factor: of the result: the number of all sources for `scale="sum"`, else 1.
        eps: of the key norm.
        neighbours: what its kernel computes beside it.

    Returns:
        The value, the normed value and the new partial sum `[*, d]`, those that there are.

    Raises:
        UnsupportedSourcesError: a dtype or a width that the kernels cannot take.
    """
    branch, norm_weight, norm_bias = neighbours.branch, neighbours.norm_weight, neighbours.norm_bias
    layout = _Layout(factor, eps, with_tensors(neighbours, None, None, None))
    outputs: tuple[Tensor, ...] = _OwnLogitsRead.apply(  # type: ignore[no-untyped-call]
        layout, query, key_weight, branch, norm_weight, norm_bias, *sources, partial
    )
    return outputs
