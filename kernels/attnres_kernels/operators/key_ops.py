"""Operators for key vectors and logits: each is one opaque call, so that no kernel is generated for it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from attnres_kernels.definition.naive import key_vector, statistics_dtype
from attnres_kernels.operators.tiles import flatten, inverse_rms


@torch.library.custom_op("attnres::key_rows", mutates_args=())
def key_rows_op(queries: Sequence[Tensor], weights: Sequence[Tensor], ranges: Sequence[int]) -> list[Tensor]:
    """The `R` effective key vectors: matrix `[R, d]`, then a matrix per range of reads, then a row `[d]` per read.

    ranges: first read and number of reads of each range, one after the other; they may overlap. The copies keep the
    gradients of each reader apart, so that they are added in the backward operator.
    """
    matrix = torch.stack([key_vector(query, weight) for query, weight in zip(queries, weights, strict=True)])
    parts = [matrix[first : first + count].clone() for first, count in _pairs(ranges)]
    return [matrix, *parts, *(x.clone() for x in matrix)]


@key_rows_op.register_fake
def _(queries: Sequence[Tensor], weights: Sequence[Tensor], ranges: Sequence[int]) -> list[Tensor]:
    dtype = statistics_dtype(torch.promote_types(queries[0].dtype, weights[0].dtype))
    width = queries[0].shape[0]
    rows = [len(queries), *(count for _, count in _pairs(ranges))]
    matrices = [queries[0].new_empty((n, width), dtype=dtype) for n in rows]
    return matrices + [query.new_empty(width, dtype=dtype) for query in queries]


def _pairs(ranges: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(ranges[::2], ranges[1::2], strict=True))


@torch.library.custom_op("attnres::key_rows_backward", mutates_args=(), tags=(torch.Tag.flexible_layout,))
def key_rows_backward_op(
    grads: Sequence[Tensor | None], queries: Sequence[Tensor], weights: Sequence[Tensor], ranges: Sequence[int]
) -> list[Tensor]:
    """Gradients of all queries, then of all key-norm weights, from those of the ranges and rows."""
    dtype = statistics_dtype(torch.promote_types(queries[0].dtype, weights[0].dtype))
    grad = torch.zeros((len(queries), queries[0].shape[0]), dtype=dtype, device=queries[0].device)
    places = [*_pairs(ranges), *((read, 1) for read in range(len(queries)))]
    for (first, count), piece in zip(places, grads, strict=True):
        if piece is not None:
            grad[first : first + count].add_(piece)
    to_queries = [(g * x).to(q.dtype) for g, q, x in zip(grad, queries, weights, strict=True)]
    return to_queries + [(g * q).to(x.dtype) for g, q, x in zip(grad, queries, weights, strict=True)]


@key_rows_backward_op.register_fake
def _(
    grads: Sequence[Tensor | None], queries: Sequence[Tensor], weights: Sequence[Tensor], ranges: Sequence[int]
) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in [*queries, *weights]]


@torch.library.custom_op("attnres::source_logits", mutates_args=(), tags=(torch.Tag.flexible_layout,))
def source_logits_op(source: Tensor, keys: Tensor, first: int, eps: float) -> Tensor:
    """Logits `[*, R - first]` of `source` `[*, d]` for the reads `first ..` of `keys` `[R, d]`."""
    with torch.autocast(source.device.type, enabled=False):
        value = flatten(source).to(keys.dtype)
        logits = value @ keys[first:].t()
        logits.mul_(inverse_rms(value, eps).unsqueeze(-1))
    return logits.reshape(*source.shape[:-1], logits.shape[-1])


@source_logits_op.register_fake
def _(source: Tensor, keys: Tensor, first: int, eps: float) -> Tensor:
    return keys.new_empty((*source.shape[:-1], keys.shape[0] - first))
