"""Operators of the two-phase schedule, composed of in-place ATen calls; a compiler sees each as one opaque call.

A generated kernel per read would differ in its number of sources and so be compiled anew for every read; these run the
same code for any number. They work on tiles of tokens that stay in cache, and never stack or copy the sources.
Gradients are not registered here: `two_phase` ties forward and backward operators together.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from attnres_kernels.depth_attention.naive import key_vector, statistics_dtype

# Bytes of one source in a tile: with a few tiles live at once the working set stays in the last-level cache.
TILE_BYTES = 1 << 21


def _tiles(rows: int, width: int) -> Iterator[slice]:
    step = max(16, TILE_BYTES // (4 * max(width, 1)))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _inverse_rms(value: Tensor, eps: float) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(value, dim=-1)
    return norm.square_().div_(value.shape[-1]).add_(eps).rsqrt_()


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


def _group_logits(logits: Sequence[Tensor], first: int, count: int, total: int) -> Tensor:
    """Logits `[n, rows, count]` of reads `first .. first + count`; columns of a source end at read `total`."""
    return torch.stack([_flat(x).narrow(1, x.shape[-1] - (total - first), count) for x in logits])


@torch.library.custom_op("attnres::key_matrix", mutates_args=())
def key_matrix_op(queries: Sequence[Tensor], weights: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor]:
    """The `R` effective key vectors: the matrix `[R, d]`, then one matrix per count, then one row `[d]` per read.

    The copies keep the gradients of each reader apart, so that they are added in the backward operator.
    """
    matrix = torch.stack([key_vector(query, weight) for query, weight in zip(queries, weights, strict=True)])
    return [matrix, *(x.clone() for x in torch.split(matrix, list(counts))), *(x.clone() for x in matrix)]


@key_matrix_op.register_fake
def _(queries: Sequence[Tensor], weights: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor]:
    dtype = statistics_dtype(torch.promote_types(queries[0].dtype, weights[0].dtype))
    width = queries[0].shape[0]
    rows = [len(queries), *counts]
    matrices = [queries[0].new_empty((n, width), dtype=dtype) for n in rows]
    return matrices + [query.new_empty(width, dtype=dtype) for query in queries]


@torch.library.custom_op("attnres::key_matrix_backward", mutates_args=(), tags=(torch.Tag.flexible_layout,))
def key_matrix_backward_op(
    grad_groups: Sequence[Tensor | None],
    grad_rows: Sequence[Tensor | None],
    queries: Sequence[Tensor],
    weights: Sequence[Tensor],
    counts: Sequence[int],
) -> list[Tensor]:
    """Gradients of all queries, then of all key-norm weights."""
    dtype = statistics_dtype(torch.promote_types(queries[0].dtype, weights[0].dtype))
    grad = torch.zeros((len(queries), queries[0].shape[0]), dtype=dtype, device=queries[0].device)
    for part, piece in zip(torch.split(grad, list(counts)), grad_groups, strict=True):
        if piece is not None:
            part.add_(piece)
    for part, piece in zip(grad.unbind(0), grad_rows, strict=True):
        if piece is not None:
            part.add_(piece)
    to_queries = [(g * x).to(q.dtype) for g, q, x in zip(grad, queries, weights, strict=True)]
    return to_queries + [(g * q).to(x.dtype) for g, q, x in zip(grad, queries, weights, strict=True)]


@key_matrix_backward_op.register_fake
def _(
    grad_groups: Sequence[Tensor | None],
    grad_rows: Sequence[Tensor | None],
    queries: Sequence[Tensor],
    weights: Sequence[Tensor],
    counts: Sequence[int],
) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in [*queries, *weights]]


@torch.library.custom_op("attnres::source_logits", mutates_args=(), tags=(torch.Tag.flexible_layout,))
def source_logits_op(source: Tensor, keys: Tensor, first: int, eps: float) -> Tensor:
    """Logits `[*, R - first]` of `source` `[*, d]` for the reads `first ..` of `keys` `[R, d]`."""
    with torch.autocast(source.device.type, enabled=False):
        value = _flat(source).to(keys.dtype)
        logits = value @ keys[first:].t()
        logits.mul_(_inverse_rms(value, eps).unsqueeze(-1))
    return logits.reshape(*source.shape[:-1], logits.shape[-1])


@source_logits_op.register_fake
def _(source: Tensor, keys: Tensor, first: int, eps: float) -> Tensor:
    return keys.new_empty((*source.shape[:-1], keys.shape[0] - first))


@torch.library.custom_op("attnres::inter_block", mutates_args=(), tags=(torch.Tag.flexible_layout,))
def inter_block_op(
    sources: Sequence[Tensor], logits: Sequence[Tensor], first: int, count: int, total: int
) -> list[Tensor]:
    """Phase 1: `count` outputs `[*, d]`, then their log-sum-exp `[*]`, over the completed blocks `sources`."""
    group = _group_logits(logits, first, count, total)
    lse = group.logsumexp(0)
    weights = group.sub_(lse).exp_()
    flat = [_flat(source) for source in sources]
    shape = sources[0].shape
    outputs = [flat[0].new_empty(flat[0].shape, dtype=group.dtype) for _ in range(count)]
    for tile in _tiles(*flat[0].shape):
        for i, source in enumerate(flat):
            value = source[tile].to(group.dtype)
            for s, output in enumerate(outputs):
                weight = weights[i, tile, s : s + 1]
                if i == 0:
                    torch.mul(weight, value, out=output[tile])
                else:
                    output[tile].addcmul_(weight, value)
    columns = lse.t().contiguous().unbind(0) if count > 1 else (lse[:, 0],)
    return [x.reshape(shape) for x in outputs] + [x.clone().reshape(shape[:-1]) for x in columns]


@inter_block_op.register_fake
def _(sources: Sequence[Tensor], logits: Sequence[Tensor], first: int, count: int, total: int) -> list[Tensor]:
    shape, dtype = sources[0].shape, logits[0].dtype
    outputs = [sources[0].new_empty(shape, dtype=dtype) for _ in range(count)]
    return outputs + [sources[0].new_empty(shape[:-1], dtype=dtype) for _ in range(count)]


@torch.library.custom_op("attnres::inter_block_backward", mutates_args=(), tags=(torch.Tag.flexible_layout,))
def inter_block_backward_op(
    carried: Sequence[Tensor | None],
    grad_outputs: Sequence[Tensor | None],
    grad_lse: Sequence[Tensor | None],
    sources: Sequence[Tensor],
    logits: Sequence[Tensor],
    keys: Tensor,
    first: int,
    total: int,
    eps: float,
) -> list[Tensor]:
    """Gradients of phase 1: one per source, `carried` (from later blocks of reads) added in, then that of `keys`.

    `keys` `[count, d]` are the key vectors of this block's reads.
    """
    count, dtype = keys.shape[0], keys.dtype
    group = _group_logits(logits, first, count, total)
    weights = (group - group.logsumexp(0)).exp_()
    flat = [_flat(source) for source in sources]
    width = flat[0].shape[1]
    added = [None if x is None else _flat(x) for x in carried]
    incoming = [(s, _flat(x)) for s, x in enumerate(grad_outputs) if x is not None]
    results = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in flat]
    grad_keys = torch.zeros_like(keys)
    with torch.autocast(keys.device.type, enabled=False):
        for tile in _tiles(*flat[0].shape):
            grads = [(s, x[tile].to(dtype)) for s, x in incoming]
            weight = weights[:, tile]
            projected = torch.zeros_like(weight)
            for i, source in enumerate(flat):
                value = source[tile].to(dtype)
                for s, grad in grads:
                    torch.sum(grad * value, -1, out=projected[i, :, s])
            to_lse = -(weight * projected).sum(0)
            for s, x in enumerate(grad_lse):
                if x is not None:
                    to_lse[:, s].add_(x.reshape(-1)[tile])
            grad_logits = weight * projected.add_(to_lse)
            for i, source in enumerate(flat):
                value = source[tile].to(dtype)
                inverse_rms = _inverse_rms(value, eps).unsqueeze_(-1)
                to_key = grad_logits[i] * inverse_rms
                to_value = (grad_logits[i] * group[i, tile]).sum(-1, keepdim=True)
                to_value.mul_(inverse_rms.square_()).div_(width)
                carry = added[i]
                result = to_key @ keys if carry is None else torch.addmm(carry[tile].to(dtype), to_key, keys)
                result.addcmul_(to_value, value, value=-1)
                for s, grad in grads:
                    result.addcmul_(weight[i, :, s : s + 1], grad)
                results[i][tile] = result
                grad_keys.addmm_(to_key.t(), value)
    return [x.reshape(sources[0].shape) for x in results] + [grad_keys]


@inter_block_backward_op.register_fake
def _(
    carried: Sequence[Tensor | None],
    grad_outputs: Sequence[Tensor | None],
    grad_lse: Sequence[Tensor | None],
    sources: Sequence[Tensor],
    logits: Sequence[Tensor],
    keys: Tensor,
    first: int,
    total: int,
    eps: float,
) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in sources] + [keys.new_empty(keys.shape)]


def _merge_tile(value: Tensor, lse: Tensor, key: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Weight of the partial sum, its logit and its inverse RMS, each `[rows]`."""
    inverse_rms = _inverse_rms(value, eps)
    logit = torch.mv(value, key).mul_(inverse_rms)
    return torch.sigmoid(logit - lse), logit, inverse_rms


@torch.library.custom_op("attnres::merge", mutates_args=(), tags=(torch.Tag.flexible_layout,))
def merge_op(inter: Tensor, lse: Tensor, partial: Tensor, key: Tensor, factor: float, eps: float) -> Tensor:
    """Phase 2: the read `[*, d]` from phase 1's output and log-sum-exp and the open partial sum."""
    flat_inter, flat_lse, flat_partial = _flat(inter), lse.reshape(-1), _flat(partial)
    out = torch.empty_like(flat_partial, memory_format=torch.contiguous_format)
    with torch.autocast(key.device.type, enabled=False):
        for tile in _tiles(*flat_inter.shape):
            value = flat_partial[tile].to(key.dtype)
            weight, _, _ = _merge_tile(value, flat_lse[tile], key, eps)
            merged = torch.lerp(flat_inter[tile], value, weight.unsqueeze_(-1))
            out[tile] = merged if factor == 1.0 else merged.mul_(factor)
    return out.reshape(partial.shape)


@merge_op.register_fake
def _(inter: Tensor, lse: Tensor, partial: Tensor, key: Tensor, factor: float, eps: float) -> Tensor:
    return partial.new_empty(partial.shape)


@torch.library.custom_op("attnres::merge_backward", mutates_args=(), tags=(torch.Tag.flexible_layout,))
def merge_backward_op(
    grad: Tensor,
    sources: Sequence[Tensor],
    logits: Sequence[Tensor],
    partial: Tensor,
    key: Tensor,
    read: int,
    total: int,
    factor: float,
    eps: float,
) -> list[Tensor]:
    """Gradients of phase 2: of `inter`, `lse`, `partial` and `key`; phase 1's output is recomputed from `sources`."""
    dtype = key.dtype
    group = _group_logits(logits, read, 1, total)
    lse = group.logsumexp(0)
    block_weights = group.sub_(lse).exp_()
    flat_lse = lse[:, 0]
    flat = [_flat(source) for source in sources]
    flat_grad, flat_partial = _flat(grad), _flat(partial)
    width = flat_partial.shape[1]
    grad_inter = torch.empty_like(flat_partial, dtype=dtype, memory_format=torch.contiguous_format)
    grad_partial = torch.empty_like(flat_partial, memory_format=torch.contiguous_format)
    grad_lse = torch.empty_like(flat_lse)
    grad_key = torch.zeros_like(key)
    with torch.autocast(key.device.type, enabled=False):
        for tile in _tiles(*flat_partial.shape):
            value = flat_partial[tile].to(dtype)
            scaled = flat_grad[tile].to(dtype)
            if factor != 1.0:
                scaled = scaled * factor
            weight, logit, inverse_rms = _merge_tile(value, flat_lse[tile], key, eps)
            difference = value.clone()
            for i, source in enumerate(flat):
                difference.addcmul_(block_weights[i, tile], source[tile].to(dtype), value=-1)
            grad_logit = difference.mul_(scaled).sum(-1).mul_(weight).mul_(1 - weight)
            torch.neg(grad_logit, out=grad_lse[tile])
            to_key = grad_logit * inverse_rms
            to_value = grad_logit.mul_(logit).mul_(inverse_rms.square_()).div_(width)
            from_output = scaled * weight.unsqueeze(-1)
            torch.sub(scaled, from_output, out=grad_inter[tile])
            from_output.addcmul_(to_key.unsqueeze(-1), key).addcmul_(to_value.unsqueeze(-1), value, value=-1)
            grad_partial[tile] = from_output
            grad_key.add_(torch.mv(value.t(), to_key))
    shape = partial.shape
    return [grad_inter.reshape(shape), grad_lse.reshape(shape[:-1]), grad_partial.reshape(shape), grad_key]


@merge_backward_op.register_fake
def _(
    grad: Tensor,
    sources: Sequence[Tensor],
    logits: Sequence[Tensor],
    partial: Tensor,
    key: Tensor,
    read: int,
    total: int,
    factor: float,
    eps: float,
) -> list[Tensor]:
    return [
        key.new_empty(partial.shape),
        key.new_empty(partial.shape[:-1]),
        partial.new_empty(partial.shape),
        key.new_empty(key.shape),
    ]
