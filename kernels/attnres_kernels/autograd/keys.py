"""The effective key vectors of a stream, with one gradient from all that read them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attnres_kernels.autograd.first_order import first_order
from attnres_kernels.autograd.varying_arguments import varying_arguments
from attnres_kernels.operators.definition import described_by
from attnres_kernels.operators.key_rows import KEY_ROWS, KEY_ROWS_BACKWARD, KeyRows, KeyRowsBackward


class _KeyMatrix(torch.autograd.Function):
    @staticmethod
    @varying_arguments
    def forward(ctx: Any, ranges: tuple[tuple[int, int], ...], *parameters: Tensor) -> tuple[Tensor, ...]:
        reads = len(parameters) // 2
        ctx.reads, ctx.ranges = reads, ranges
        ctx.save_for_backward(*parameters)
        ctx.set_materialize_grads(False)
        outputs = KEY_ROWS(KeyRows(list(parameters[:reads]), list(parameters[reads:]), _flat(ranges)))
        ctx.mark_non_differentiable(outputs[0])
        return tuple(outputs)

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        parameters, reads = ctx.saved_tensors, ctx.reads
        keys = KeyRows(list(parameters[:reads]), list(parameters[reads:]), _flat(ctx.ranges))
        return None, *KEY_ROWS_BACKWARD(KeyRowsBackward(list(grads[1:]), keys))


def _flat(ranges: tuple[tuple[int, int], ...]) -> list[int]:
    return [number for pair in ranges for number in pair]


@described_by(KEY_ROWS)
def key_matrix(
    queries: Sequence[Tensor], weights: Sequence[Tensor], ranges: Sequence[tuple[int, int]]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """All effective key vectors of a stream, `query * weight`, in fp32 (fp64 for fp64).

    Args:
        queries, weights: `R` tensors `[d]`, in read order.
        ranges: first read and number of reads of each group of reads that shares completed blocks; they may overlap.

    Returns:
        The matrix `[R, d]` for logits (it carries no gradient), a matrix `[count, d]` per range for what gives the
        shared blocks their gradients, and one row `[d]` per read for the logit of its open partial sum.
    """
    outputs = _KeyMatrix.apply(tuple(map(tuple, ranges)), *queries, *weights)  # type: ignore[no-untyped-call]
    return outputs[0], list(outputs[1 : 1 + len(ranges)]), list(outputs[1 + len(ranges) :])
