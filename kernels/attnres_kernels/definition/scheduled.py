"""The vocabulary of the scheduled level, in plain differentiable torch: what each node means, on any device.

A schedule groups consecutive reads. Of the completed blocks that all reads of a group share, `inter_block` makes one
output per read in one pass (phase 1 of Algorithm 1); `merge` adds what the group does not share: blocks completed
since, read in place, and the open partial sum (phase 2). `direct_read` reads all its sources in place. All logits of
completed blocks are made once, by `source_logits`; only `own_read` makes those of its sources itself. The `fused_`
forms have the residual add before and the norm behind in them, and `complete_block` is the add that completes a block
with its logits.

Lowering binds each node to an implementation for the device; these definitions are what implementations must equal.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from attnres_kernels.definition.naive import key_vector, statistics_dtype


def key_matrix(queries: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """The effective key vectors `query * weight` of `R` reads, as `[R, d]` in fp32 (fp64 for fp64)."""
    return torch.stack([key_vector(query, weight) for query, weight in zip(queries, weights, strict=True)])


def source_logits(source: Tensor, keys: Tensor, first: int, eps: float) -> Tensor:
    """Logits `[*, R - first]` of a completed block `[*, d]` for the reads `first ..` of `keys` (equation 2)."""
    with torch.autocast(source.device.type, enabled=False):
        value = source.to(keys.dtype)
        inverse_rms = torch.rsqrt(value.square().mean(-1, keepdim=True) + eps)
        return torch.matmul(value, keys[first:].t()) * inverse_rms


def complete_block(partial: Tensor, branch: Tensor, keys: Tensor, first: int, eps: float) -> tuple[Tensor, Tensor]:
    """The block `partial + branch` and its logits."""
    block = partial + branch
    return block, source_logits(block, keys, first, eps)


def inter_block(
    sources: Sequence[Tensor], logits: Sequence[Tensor], first: int, count: int, total: int
) -> list[Tensor]:
    """Phase 1 of the reads `first .. first + count - 1` of `total`.

    Args:
        sources: the `n` completed blocks `[*, d]` that all of them share.
        logits: of `source_logits`, one per source.

    Returns:
        `count` outputs `[*, d]`, then `count` log-sum-exps `[*]`, in the dtype of the logits.
    """
    outputs, log_sums = [], []
    with torch.autocast(sources[0].device.type, enabled=False):
        for number in range(first, first + count):
            columns = torch.stack([column(x, number, total) for x in logits], -1)
            weights = columns.softmax(-1)
            outputs.append(weighted_sum(weights, sources))
            log_sums.append(columns.logsumexp(-1))
    return outputs + log_sums


def merge(
    like: Tensor,
    inter: Tensor,
    log_sum: Tensor,
    sources: Sequence[Tensor],
    logits: Sequence[Tensor],
    partial: Tensor | None,
    keys: Tensor,
    number: int,
    factor: float,
    eps: float,
) -> Tensor:
    """Phase 2: one read `[*, d]`, from phase 1's result, blocks completed since and the open partial sum.

    Args:
        like: a source; the result has its dtype.
        inter, log_sum: of `inter_block` for this read.
        sources, logits: blocks completed since, and their logits.
        partial: open partial sum `[*, d]`, or None.
        keys: `[R, d]` of `key_matrix`; number: of this read among them.
        factor: of the result: the number of all sources for `scale="sum"`, else 1.
        eps: of the key norm.
    """
    return _read(like, [inter], [log_sum], sources, logits, partial, keys, number, factor, eps)


def direct_read(
    sources: Sequence[Tensor],
    logits: Sequence[Tensor],
    partial: Tensor | None,
    keys: Tensor,
    number: int,
    factor: float,
    eps: float,
) -> Tensor:
    """One read `[*, d]` from all its sources in place; arguments as for `merge`."""
    return _read(sources[0], [], [], sources, logits, partial, keys, number, factor, eps)


def own_read(sources: Sequence[Tensor], query: Tensor, weight: Tensor, factor: float, eps: float) -> Tensor:
    """One read `[*, d]` on its own, with the logits of all its sources.

    Args:
        sources: completed blocks `[*, d]` and, last, the open partial sum, if there is one.
        query, weight: `[d]`, the pseudo-query and the weight of the key norm; all others as for `merge`.
    """
    keys = key_matrix([query], [weight])
    logits = [source_logits(source, keys, 0, eps) for source in sources]
    return direct_read(sources, logits, None, keys, 0, factor, eps)


def fused_merge(
    like: Tensor,
    inter: Tensor,
    log_sum: Tensor,
    sources: Sequence[Tensor],
    logits: Sequence[Tensor],
    partial: Tensor | None,
    keys: Tensor,
    number: int,
    factor: float,
    eps: float,
    branch: Tensor | None,
    norm: str | None,
    norm_eps: float,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`merge` with its neighbours.

    Args:
        branch: `[*, d]`, added to the partial sum first; norm: "rms", "layer" or None; the norm's eps, weight `[d]` and
            bias `[d]`; all others as for `merge`.

    Returns:
        The value `[*, d]`, the normed value and the new partial sum; None for those that are not made.
    """

    def read(total: Tensor | None) -> Tensor:
        return merge(like, inter, log_sum, sources, logits, total, keys, number, factor, eps)

    return _with_neighbours(read, partial, branch, norm, norm_eps, norm_weight, norm_bias)


def fused_direct_read(
    sources: Sequence[Tensor],
    logits: Sequence[Tensor],
    partial: Tensor | None,
    keys: Tensor,
    number: int,
    factor: float,
    eps: float,
    branch: Tensor | None,
    norm: str | None,
    norm_eps: float,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`direct_read` with its neighbours, as `fused_merge`."""

    def read(total: Tensor | None) -> Tensor:
        return direct_read(sources, logits, total, keys, number, factor, eps)

    return _with_neighbours(read, partial, branch, norm, norm_eps, norm_weight, norm_bias)


def fused_own_read(
    sources: Sequence[Tensor],
    query: Tensor,
    weight: Tensor,
    factor: float,
    eps: float,
    branch: Tensor | None,
    norm: str | None,
    norm_eps: float,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`own_read` with its neighbours, as `fused_merge`; the branch is added to the last source, a partial sum or the
    block that it completes, and the third result is that sum.
    """
    *others, last = sources

    def read(total: Tensor | None) -> Tensor:
        assert total is not None
        return own_read([*others, total], query, weight, factor, eps)

    return _with_neighbours(read, last, branch, norm, norm_eps, norm_weight, norm_bias)


def _with_neighbours(
    read: Callable[[Tensor | None], Tensor],
    last: Tensor | None,
    branch: Tensor | None,
    norm: str | None,
    norm_eps: float,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The read of `last + branch`, the norm of it, and the sum. read: from that sum, its last source."""
    total = last if branch is None or last is None else last + branch
    value = read(total)
    normed = None if norm is None else normalise(value, norm, norm_eps, norm_weight, norm_bias)
    return value, normed, None if branch is None else total


def _read(
    like: Tensor,
    inter: list[Tensor],
    log_sum: list[Tensor],
    sources: Sequence[Tensor],
    logits: Sequence[Tensor],
    partial: Tensor | None,
    keys: Tensor,
    number: int,
    factor: float,
    eps: float,
) -> Tensor:
    values = [*inter, *sources]
    columns = [*log_sum, *(column(x, number, keys.shape[0]) for x in logits)]
    with torch.autocast(values[0].device.type, enabled=False):
        if partial is not None:
            value = partial.to(statistics_dtype(partial.dtype))
            columns.append((value * keys[number]).sum(-1) * torch.rsqrt(value.square().mean(-1) + eps))
            values.append(partial)
        merged = weighted_sum(torch.stack(columns, -1).softmax(-1), values)
        return (merged if factor == 1.0 else merged * factor).to(like.dtype)


def column(logits: Tensor, number: int, total: int) -> Tensor:
    """Logits `[*]` of read `number`, of logits whose columns end at read `total - 1`."""
    return logits[..., logits.shape[-1] - (total - number)]


def weighted_sum(weights: Tensor, values: Sequence[Tensor]) -> Tensor:
    """`sum_i weights[.., i] values[i]` in the dtype of the weights."""
    out = weights[..., :1] * values[0].to(weights.dtype)
    for i, value in enumerate(values[1:], start=1):
        out = out + weights[..., i : i + 1] * value.to(weights.dtype)
    return out


def normalise(value: Tensor, kind: str, eps: float, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """RMSNorm ("rms") or LayerNorm ("layer") over the last axis, in fp32 (fp64 for fp64), rounded once."""
    unit = value.to(statistics_dtype(value.dtype))
    if kind == "layer":
        unit = unit - unit.mean(-1, keepdim=True)
    unit = unit * torch.rsqrt(unit.square().mean(-1, keepdim=True) + eps)
    unit = unit if weight is None else unit * weight
    return (unit if bias is None else unit + bias).to(value.dtype)
