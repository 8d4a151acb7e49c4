"""The effective key vectors of all reads, forward and backward: one opaque call each way."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from attnres_kernels.definition import scheduled
from attnres_kernels.definition.naive import statistics_dtype
from attnres_kernels.operators.definition import OperatorDefinition, Work, any_layout, torch_operator


class KeyRows(NamedTuple):
    """Pseudo-queries and key-norm weights `[d]` of `R` reads.

    ranges: first read and number of reads of each range, one after the other; they may overlap.
    """

    queries: Sequence[Tensor]
    weights: Sequence[Tensor]
    ranges: Sequence[int]

    def places(self) -> list[tuple[int, int]]:
        return list(zip(self.ranges[::2], self.ranges[1::2], strict=True))

    def dtype(self) -> torch.dtype:
        return statistics_dtype(torch.promote_types(self.queries[0].dtype, self.weights[0].dtype))


def _run(call: KeyRows) -> list[Tensor]:
    """Matrix `[R, d]`, then a matrix per range of reads, then a row `[d]` per read.

    The copies keep the gradients of each reader apart, so that they are added in the backward operator.
    """
    matrix = scheduled.key_matrix(call.queries, call.weights)
    parts = [matrix[first : first + count].clone() for first, count in call.places()]
    return [matrix, *parts, *(x.clone() for x in matrix)]


def _fake(call: KeyRows) -> list[Tensor]:
    like, dtype = call.queries[0], call.dtype()
    rows = [len(call.queries), *(count for _, count in call.places())]
    matrices = [like.new_empty((n, like.shape[0]), dtype=dtype) for n in rows]
    return matrices + [query.new_empty(query.shape, dtype=dtype) for query in call.queries]


KEY_ROWS = OperatorDefinition(
    "attnres::key_rows",
    KeyRows,
    list[Tensor],
    _run,
    _fake,
    work=lambda call: Work(reads=len(call.queries)),
    computes=(scheduled.key_matrix,),
    make=torch_operator(),
)


class KeyRowsBackward(NamedTuple):
    """Arguments of the backward of the key vectors.

    grads: of the matrices of the ranges and of the rows, or None; keys: what they were made of.
    """

    grads: Sequence[Tensor | None]
    keys: KeyRows


def _run_backward(call: KeyRowsBackward) -> list[Tensor]:
    """Gradients of all queries, then of all key-norm weights."""
    queries, weights = call.keys.queries, call.keys.weights
    grad = torch.zeros((len(queries), queries[0].shape[0]), dtype=call.keys.dtype(), device=queries[0].device)
    places = [*call.keys.places(), *((read, 1) for read in range(len(queries)))]
    for (first, count), piece in zip(places, call.grads, strict=True):
        if piece is not None:
            grad[first : first + count].add_(piece)
    to_queries = [(g * x).to(q.dtype) for g, q, x in zip(grad, queries, weights, strict=True)]
    return to_queries + [(g * q).to(x.dtype) for g, q, x in zip(grad, queries, weights, strict=True)]


KEY_ROWS_BACKWARD = OperatorDefinition(
    "attnres::key_rows_backward",
    KeyRowsBackward,
    list[Tensor],
    _run_backward,
    lambda call: [x.new_empty(x.shape) for x in (*call.keys.queries, *call.keys.weights)],
    make=any_layout,
)
