"""The vocabulary of the scheduled level, in plain differentiable torch: what each node means, on any device.

A schedule groups consecutive reads. Of the completed blocks that all reads of a group share, `inter_block` makes one
output per read in one pass (phase 1 of Algorithm 1); `merge` adds what the group does not share: blocks completed
since, read in place, and the open partial sum (phase 2). `direct_read` reads all its sources in place. All logits of
completed blocks are made once, by `source_logits`; only `own_logits_read` makes those of its sources itself. The
`fused_` forms have the residual add before and the norm behind in them, and `complete_block` is the add that completes
a block with its logits.

Lowering binds each node to a provider for the device, which must compute what these definitions do.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from attnres_kernels.definition.naive import autocast_device, key_vector, statistics_dtype, weighted_sum
from attnres_kernels.definition.read_parts import Neighbours, ReadForm, ReadParts


def key_matrix(queries: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """The effective key vectors `query * weight` of `R` reads, as `[R, d]` in fp32 (fp64 for fp64).

    Args:
        queries, weights: `R` tensors `[d]` each.
    """
    return torch.stack([key_vector(query, weight) for query, weight in zip(queries, weights, strict=True)])


def source_logits(source: Tensor, keys: Tensor, first: int, eps: float) -> Tensor:
    """Logits of a completed block for its later reads (equation 2 of the paper).

    Args:
        source: the block `[*, d]`.
        keys: `[R, d]` of `key_matrix`.
        first: the first read that attends to it.
        eps: of the key norm.

    Returns:
        `[*, R - first]` in the dtype of the keys.
    """
    with torch.autocast(autocast_device(source), enabled=False):
        value = source.to(keys.dtype)
        inverse_rms = torch.rsqrt(value.square().mean(-1, keepdim=True) + eps)
        return torch.matmul(value, keys[first:].t()) * inverse_rms


def complete_block(partial: Tensor, branch: Tensor, keys: Tensor, first: int, eps: float) -> tuple[Tensor, Tensor]:
    """The block `partial + branch` and its logits.

    Args:
        partial, branch: the open partial sum and the last write of the block, `[*, d]`.
        keys, first, eps: of `source_logits`.
    """
    block = partial + branch
    return block, source_logits(block, keys, first, eps)


def inter_block(
    sources: Sequence[Tensor], logits: Sequence[Tensor], first: int, count: int, total: int
) -> list[Tensor]:
    """Phase 1 of the reads `first .. first + count - 1` of `total`.

    Args:
        sources: the `n` completed blocks `[*, d]` that all of them share.
        logits: of `source_logits`, one per source.
        first, count: number of the first read, and of reads.
        total: reads that the columns of the logits end at.

    Returns:
        `count` outputs `[*, d]`, then `count` log-sum-exps `[*]`, in the dtype of the logits.
    """
    outputs, log_sums = [], []
    with torch.autocast(autocast_device(sources[0]), enabled=False):
        for number in range(first, first + count):
            columns = torch.stack([_column(x, number, total) for x in logits], -1)
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
        inter, log_sum: of `inter_block` for this read, `[*, d]` and `[*]`.
        sources, logits: blocks `[*, d]` completed since, and their logits of `source_logits`.
        partial: open partial sum `[*, d]`, or None.
        keys: `[R, d]` of `key_matrix`.
        number: of this read among them.
        factor: of the result: the number of all sources for `scale="sum"`, else 1.
        eps: of the key norm.
    """
    key = None if partial is None else keys[number]
    parts = ReadParts(inter, log_sum, sources, logits, partial, key)
    return _read(parts, ReadForm(number, keys.shape[0], factor, eps)).to(like.dtype)


def direct_read(
    sources: Sequence[Tensor],
    logits: Sequence[Tensor],
    partial: Tensor | None,
    keys: Tensor,
    number: int,
    factor: float,
    eps: float,
) -> Tensor:
    """One read `[*, d]` from all its sources in place.

    Args:
        sources, logits: its completed blocks `[*, d]`, and their logits of `source_logits`.
        partial, keys, number, factor, eps: of `merge`.
    """
    key = None if partial is None else keys[number]
    parts = ReadParts(None, None, sources, logits, partial, key)
    return _read(parts, ReadForm(number, keys.shape[0], factor, eps)).to(sources[0].dtype)


def own_logits_read(sources: Sequence[Tensor], query: Tensor, weight: Tensor, factor: float, eps: float) -> Tensor:
    """One read `[*, d]` on its own, with the logits of all its sources.

    Args:
        sources: completed blocks `[*, d]` and, last, the open partial sum, if there is one.
        query, weight: `[d]`, the pseudo-query and the weight of the key norm.
        factor, eps: of `merge`.
    """
    keys = key_matrix([query], [weight])
    logits = [source_logits(source, keys, 0, eps) for source in sources]
    return direct_read(sources, logits, None, keys, 0, factor, eps)


Fused = tuple[Tensor, Tensor | None, Tensor | None]
"""The value `[*, d]`, the normed value and the new partial sum; None for those that are not made."""


def _fused(read: Callable[..., Tensor]) -> Callable[..., Fused]:
    """A read with its neighbours: a function with the arguments of ``read`` and, last, ``Neighbours``.

    The branch is added to the read's last source first, which is its open partial sum, or of a read that makes its own
    logits the last one given: a partial sum, or the block that the branch completes.
    """
    signature = inspect.signature(read)

    def fused(*args: Any) -> Fused:
        *of_read, (branch, norm, norm_eps, norm_weight, norm_bias, _) = args
        given = signature.bind(*of_read).arguments
        *others, last = [given["partial"]] if "partial" in given else given["sources"]
        total = last if branch is None or last is None else last + branch
        value = read(**given | ({"partial": total} if "partial" in given else {"sources": [*others, total]}))
        normed = None if norm is None else normalise(value, norm, norm_eps, norm_weight, norm_bias)
        return value, normed, None if branch is None else total

    fused.__name__ = fused.__qualname__ = f"fused_{read.__name__}"
    neighbours = inspect.Parameter("neighbours", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Neighbours)
    parameters = [*signature.parameters.values(), neighbours]
    fused.__signature__ = inspect.Signature(parameters, return_annotation=Fused)  # type: ignore[attr-defined]
    return fused


fused_merge = _fused(merge)
fused_direct_read = _fused(direct_read)
fused_own_logits_read = _fused(own_logits_read)


def _read(parts: ReadParts, form: ReadForm) -> Tensor:
    """A softmax over all parts, in the dtype of the logits."""
    values = [x for x in (parts.inter, *parts.sources) if x is not None]
    columns = [] if parts.log_sum is None else [parts.log_sum]
    columns += [_column(x, form.number, form.total) for x in parts.logits]
    with torch.autocast(autocast_device(parts.values()[0]), enabled=False):
        if parts.partial is not None and parts.key is not None:
            value = parts.partial.to(statistics_dtype(parts.partial.dtype))
            columns.append((value * parts.key).sum(-1) * torch.rsqrt(value.square().mean(-1) + form.eps))
            values.append(parts.partial)
        merged = weighted_sum(torch.stack(columns, -1).softmax(-1), values)
        return merged if form.factor == 1.0 else merged * form.factor


def _column(logits: Tensor, number: int, total: int) -> Tensor:
    """Logits `[*]` of read `number`, of logits whose columns end at read `total - 1`."""
    return logits[..., logits.shape[-1] - (total - number)]


def normalise(value: Tensor, kind: str, eps: float, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """RMSNorm or LayerNorm over the last axis, in fp32 (fp64 for fp64), rounded once.

    Args:
        value: `[*, d]`.
        kind: "rms" or "layer".
        eps: of the norm.
        weight, bias: `[d]`, or None.
    """
    unit = value.to(statistics_dtype(value.dtype))
    if kind == "layer":
        unit = unit - unit.mean(-1, keepdim=True)
    unit = unit * torch.rsqrt(unit.square().mean(-1, keepdim=True) + eps)
    unit = unit if weight is None else unit * weight
    return (unit if bias is None else unit + bias).to(value.dtype)
