"""The two-phase schedule (Algorithm 1) as functions that a graph pass calls, one stream at a time.

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

from attnres_kernels.autograd.first_order import first_order
from attnres_kernels.autograd.varying_arguments import varying_arguments
from attnres_kernels.definition.read_parts import ReadForm
from attnres_kernels.operators.definition import described_by
from attnres_kernels.operators.logits import SOURCE_LOGITS, Logits
from attnres_kernels.operators.merge import MERGE_BACKWARD, MergeBackward, merge_forward
from attnres_kernels.operators.phase_1 import INTER_BLOCK, INTER_BLOCK_BACKWARD, Phase1, Phase1Backward


class _InterBlock(torch.autograd.Function):
    @staticmethod
    @varying_arguments
    def forward(ctx: Any, first: int, total: int, eps: float, keys: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        count, blocks = keys.shape[0], len(tensors) // 2
        ctx.layout = (first, total, eps, count, blocks)
        ctx.save_for_backward(keys, *tensors)
        ctx.set_materialize_grads(False)
        sources, logits = list(tensors[:blocks]), list(tensors[blocks:])
        outputs, log_sums = INTER_BLOCK(Phase1(sources, logits, first, count, total))
        shape = sources[0].shape
        of_reads = [log_sums[read].reshape(shape[:-1]) for read in range(count)]
        return *(output.reshape(shape) for output in outputs), *of_reads, *sources

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        first, total, eps, count, blocks = ctx.layout
        keys, *tensors = ctx.saved_tensors
        given = list(grads[2 * count :]), list(grads[:count]), list(grads[count : 2 * count])
        call = Phase1Backward(*given, tensors[:blocks], tensors[blocks:], keys, first, total, eps)
        *grad_sources, grad_keys = INTER_BLOCK_BACKWARD(call)
        return None, None, None, grad_keys, *grad_sources, *([None] * blocks)


class _Merge(torch.autograd.Function):
    @staticmethod
    @varying_arguments
    def forward(
        ctx: Any, form: ReadForm, inter: Tensor, lse: Tensor, partial: Tensor, key: Tensor, *tensors: Tensor
    ) -> Tensor:
        ctx.form = form
        ctx.save_for_backward(partial, key, *tensors)
        return merge_forward(inter, lse, partial, key, form.factor, form.eps)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        partial, key, *tensors = ctx.saved_tensors
        blocks = len(tensors) // 2
        grads = MERGE_BACKWARD(MergeBackward(grad, tensors[:blocks], tensors[blocks:], partial, key, ctx.form))
        return None, *grads, *([None] * len(tensors))


@described_by(SOURCE_LOGITS)
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
    logits: Tensor = SOURCE_LOGITS(Logits(source.detach(), matrix.detach(), first, eps))
    return logits


@described_by(INTER_BLOCK)
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


@described_by(MERGE_BACKWARD)
def merge(
    inter: Tensor,
    lse: Tensor,
    partial: Tensor,
    key: Tensor,
    sources: Sequence[Tensor],
    logits: Sequence[Tensor],
    form: ReadForm,
) -> Tensor:
    """Phase 2: one read, from phase 1's result and the open partial sum (online softmax).

    Args:
        inter, lse: `[*, d]` and `[*]`: the outputs of `inter_block` for this read.
        partial: `[*, d]` open partial sum.
        key: `[d]` row of `key_matrix` for this read.
        sources, logits: those given to `inter_block`; the backward recomputes `inter` from them.
        form: which read it is, and how it is scaled.

    Returns:
        `[*, d]` in the dtype of `partial`.
    """
    held = [x.detach() for x in sources]
    out: Tensor = _Merge.apply(form, inter, lse, partial, key, *held, *logits)  # type: ignore[no-untyped-call]
    return out


@described_by(MERGE_BACKWARD)
def close(inter: Tensor, like: Tensor, factor: float) -> Tensor:
    """A read without an open partial sum: phase 1's output, scaled and rounded.

    Args:
        inter: `[*, d]`, of `inter_block` for this read.
        like: a source; the result has its dtype.
        factor: of the result.
    """
    return (inter if factor == 1.0 else inter * factor).to(like.dtype)
