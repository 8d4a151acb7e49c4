"""The direct schedule, logits first: each read is one weighted sum over its sources, in plain torch calls.

A compiler fuses each read with its neighbours. `source_logits` gives the logits of a completed block for all
later reads by one matrix product, so a read computes the logit of the open partial sum only.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from attnres_kernels.depth_attention.naive import key_vector, statistics_dtype


def key_matrix(queries: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """The effective key vectors `query * weight` of `R` reads, as `[R, d]` in fp32 (fp64 for fp64)."""
    return torch.stack([key_vector(query, weight) for query, weight in zip(queries, weights, strict=True)])


def source_logits(source: Tensor, matrix: Tensor, first: int, eps: float) -> Tensor:
    """Logits of a completed block for all later reads: one matrix product and one inverse RMS (equation 2).

    Args:
        source: `[*, d]`.
        matrix: `[R, d]` of `key_matrix`.
        first: the first read that has `source` among its completed blocks.
        eps: of the key norm.

    Returns:
        `[*, R - first]` in the dtype of `matrix`, with gradients for `source` and `matrix`.
    """
    with torch.autocast(source.device.type, enabled=False):
        value = source.to(matrix.dtype)
        inverse_rms = torch.rsqrt(value.square().mean(-1, keepdim=True) + eps)
        return torch.matmul(value, matrix[first:].t()) * inverse_rms


def read(
    sources: Sequence[Tensor],
    logits: Sequence[Tensor],
    partial: Tensor | None,
    matrix: Tensor,
    number: int,
    scale: str,
    eps: float,
) -> Tensor:
    """One read over the completed blocks and the open partial sum, where there is one.

    Args:
        sources: `n` completed blocks `[*, d]`.
        logits: of `source_logits`, one per source.
        partial: `[*, d]` open partial sum, or None.
        matrix: `[R, d]` of `key_matrix`.
        number: of this read, in `0 .. R - 1`.
        scale: "mean" or "sum".
        eps: of the key norm.

    Returns:
        `[*, d]` in the dtype of the sources.
    """
    later = matrix.shape[0] - number
    columns = [x[..., x.shape[-1] - later] for x in logits]
    values = list(sources)
    with torch.autocast(sources[0].device.type, enabled=False):
        if partial is not None:
            value = partial.to(statistics_dtype(partial.dtype))
            inverse_rms = torch.rsqrt(value.square().mean(-1) + eps)
            columns.append((value * matrix[number]).sum(-1) * inverse_rms)
            values.append(partial)
        weights = torch.stack(columns, -1).softmax(-1)
        if scale == "sum":
            weights = weights * len(values)
        out = weights[..., :1] * values[0].to(weights.dtype)
        for i, source in enumerate(values[1:], start=1):
            out = out + weights[..., i : i + 1] * source.to(weights.dtype)
        return out.to(sources[0].dtype)
