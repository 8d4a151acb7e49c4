"""The two-phase schedule (Algorithm 1) as functions a graph pass calls, one stream at a time.

Order of calls for a stream whose reads with two sources or more are numbered `0 .. R-1`:

1. `keys.key_matrix` once.
2. `source_logits` once per completed block, as soon as it is complete (logits first).
3. `inter_block` once per block, for all its reads (phase 1); hand the sources it returns, not the ones passed
   in, to the next block's call: gradients then accumulate inside one operator per block.
4. `merge` per read with an open partial sum (phase 2), `close` per read without one.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attnres_kernels.operators import inter_ops, key_ops, merge_ops


class _InterBlock(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, first: int, total: int, eps: float, keys: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        count, blocks = keys.shape[0], len(tensors) // 2
        ctx.layout = (first, total, eps, count, blocks)
        ctx.save_for_backward(keys, *tensors)
        ctx.set_materialize_grads(False)
        sources, logits = list(tensors[:blocks]), list(tensors[blocks:])
        return *inter_ops.inter_block_forward(sources, logits, first, count, total), *sources

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        first, total, eps, count, blocks = ctx.layout
        keys, *tensors = ctx.saved_tensors
        *grad_sources, grad_keys = inter_ops.inter_block_backward_op(
            list(grads[2 * count :]),
            list(grads[:count]),
            list(grads[count : 2 * count]),
            tensors[:blocks],
            tensors[blocks:],
            keys,
            first,
            total,
            eps,
        )
        return None, None, None, grad_keys, *grad_sources, *([None] * blocks)


class _Merge(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        layout: tuple[int, int, float, float],
        inter: Tensor,
        lse: Tensor,
        partial: Tensor,
        key: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        _, _, factor, eps = layout
        ctx.layout = layout
        ctx.save_for_backward(partial, key, *tensors)
        return merge_ops.merge_forward(inter, lse, partial, key, factor, eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        read, total, factor, eps = ctx.layout
        partial, key, *tensors = ctx.saved_tensors
        blocks = len(tensors) // 2
        grads = merge_ops.merge_backward_op(
            grad, tensors[:blocks], tensors[blocks:], partial, key, read, total, factor, eps
        )
        return None, *grads, *([None] * len(tensors))


def source_logits(source: Tensor, matrix: Tensor, first: int, eps: float) -> Tensor:
    """Logits of a completed block for all later reads: one matrix product and one inverse RMS (equation 2).

    Args:
        source: `[*, d]`.
        matrix: `[R, d]` of `key_matrix`.
        first: the first read that has `source` among its completed blocks.
        eps: of the key norm.

    Returns:
        `[*, R - first]`, for `inter_block` and `merge`. It carries no gradient:
        `inter_block` gives the sources and key vectors theirs.
    """
    logits: Tensor = key_ops.source_logits_op(source.detach(), matrix.detach(), first, eps)
    return logits


def inter_block(
    sources: Sequence[Tensor], logits: Sequence[Tensor], keys: Tensor, first: int, total: int, eps: float
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Phase 1: all reads of a block over its completed blocks, in one pass over them.

    Args:
        sources: `n` tensors `[*, d]`; the first `n - 1` as returned by the call for the block before.
        logits: of `source_logits`, one per source.
        keys: `[count, d]`, this block's matrix of `key_matrix`.
        first: number of the block's first read.
        total: `R`.
        eps: of the key norm.

    Returns:
        `count` outputs `[*, d]`, each the softmax-weighted mean over the completed blocks, and their
        log-sum-exp `[*]`, both in fp32 (fp64 for fp64); and the `n` sources, unchanged, for the next
        block's call.
    """
    outputs = _InterBlock.apply(first, total, eps, keys, *sources, *logits)  # type: ignore[no-untyped-call]
    count = len(outputs) - len(sources) >> 1
    return list(outputs[:count]), list(outputs[count : 2 * count]), list(outputs[2 * count :])


def merge(
    inter: Tensor,
    lse: Tensor,
    partial: Tensor,
    key: Tensor,
    sources: Sequence[Tensor],
    logits: Sequence[Tensor],
    read: int,
    total: int,
    factor: float,
    eps: float,
) -> Tensor:
    """Phase 2: one read, from phase 1's result and the open partial sum (online softmax).

    Args:
        inter, lse: `[*, d]` and `[*]`: the outputs of `inter_block` for this read.
        partial: `[*, d]` open partial sum.
        key: `[d]` row of `key_matrix` for this read.
        sources, logits: those given to `inter_block`; the backward recomputes `inter` from them.
        read: number of this read.
        total: `R`.
        factor: of the result: the number of all sources for `scale="sum"`, else 1.
        eps: of the key norm.

    Returns:
        `[*, d]` in the dtype of `partial`.
    """
    held = [x.detach() for x in sources]
    out: Tensor = _Merge.apply((read, total, factor, eps), inter, lse, partial, key, *held, *logits)  # type: ignore[no-untyped-call]
    return out


def close(inter: Tensor, like: Tensor, factor: float) -> Tensor:
    """A read without an open partial sum: phase 1's output, scaled and rounded to the dtype of `like`."""
    return (inter if factor == 1.0 else inter * factor).to(like.dtype)
