"""The definition of the depth attention in plain PyTorch; every other form must equal it up to rounding."""

from collections.abc import Sequence

import torch
from torch import Tensor

from attnres_kernels.errors import UnsupportedSourcesError

SCALES = ("mean", "sum")


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of logits, softmax and accumulation: fp32, or fp64 for fp64 sources."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def autocast_device(tensor: Tensor) -> str:
    """The device type for which autocast is switched off around work on a tensor.

    torch knows no autocast for "meta", not even one that is off; there it is that of "cpu", which casts nothing then.
    """
    return "cpu" if tensor.is_meta else tensor.device.type


def key_vector(query: Tensor, weight: Tensor) -> Tensor:
    """The effective key vector `query * weight`: the pseudo-query with the weight of the key norm folded in.

    Args:
        query: `[d]` pseudo-query of a read.
        weight: `[d]` weight of the RMSNorm on the keys of that read.

    Returns:
        `[d]`, fp32 (fp64 for fp64 parameters), so that low-precision parameters are multiplied exactly.
    """
    dtype = statistics_dtype(torch.promote_types(query.dtype, weight.dtype))
    return query.to(dtype) * weight.to(dtype)


def depth_weights(sources: Sequence[Tensor], key_vector: Tensor, eps: float) -> Tensor:
    """The softmax weights of one read (equations 2 and 3 of the paper).

    Args:
        sources: `n` tensors `[*, d]`: the completed blocks, and the open partial sum where there is one.
        key_vector: `[d]` effective key vector.
        eps: of the key norm.

    Returns:
        `[*, n]` weights in fp32 (fp64 for fp64 sources); they sum to one over the last dimension.
    """
    check_sources(sources, key_vector)
    dtype = statistics_dtype(sources[0].dtype)
    key = key_vector.to(dtype)
    logits = []
    for source in sources:
        value = source.to(dtype)
        inverse_rms = torch.rsqrt(value.square().mean(-1) + eps)
        logits.append((value * key).sum(-1) * inverse_rms)
    return torch.stack(logits, -1).softmax(-1)


def depth_attention(sources: Sequence[Tensor], key_vector: Tensor, eps: float, scale: str) -> Tensor:
    """One read of the residual stream as a softmax over its sources (equations 1 to 6 of the paper).

    Args:
        sources: `n` tensors `[*, d]`: the completed blocks, and the open partial sum where there is one.
        key_vector: `[d]` effective key vector (see `key_vector`).
        eps: of the key norm.
        scale: "mean" gives the weighted mean of the sources; "sum" multiplies it by `n`, so that a zero
            `key_vector` gives the plain sum.

    Returns:
        `[*, d]` in the dtype of the sources, contiguous; rounded to that dtype once.
    """
    if scale not in SCALES:
        raise UnsupportedSourcesError(f"scale is {scale!r}: pass one of {', '.join(map(repr, SCALES))}.")
    weights = depth_weights(sources, key_vector, eps)
    if scale == "sum":
        weights = weights * len(sources)
    return weighted_sum(weights, sources).to(sources[0].dtype).contiguous()


def weighted_sum(weights: Tensor, values: Sequence[Tensor]) -> Tensor:
    """`sum_i weights[.., i] values[i]` in the dtype of the weights.

    Args:
        weights: `[*, n]`.
        values: `n` tensors `[*, d]`.
    """
    out = weights[..., :1] * values[0].to(weights.dtype)
    for i, value in enumerate(values[1:], start=1):
        out = out + weights[..., i : i + 1] * value.to(weights.dtype)
    return out


def naive_read(sources: Sequence[Tensor], query: Tensor, weight: Tensor, eps: float, scale: str) -> Tensor:
    """One read by the definition, in plain torch calls that a compiler traces through.

    Args:
        sources: `n` tensors `[*, d]`.
        query, weight: `[d]` pseudo-query and key-norm weight.
        eps: of the key norm.
        scale: "mean" or "sum".

    Returns:
        `[*, d]` in the dtype of the sources.
    """
    with torch.autocast(autocast_device(sources[0]), enabled=False):
        return depth_attention(sources, key_vector(query, weight), eps, scale)


def check_sources(sources: Sequence[Tensor], key_vector: Tensor) -> None:
    """Check that a read can be made from these tensors.

    Args:
        sources: `n` tensors `[*, d]`.
        key_vector: `[d]`.

    Raises:
        UnsupportedSourcesError: they do not agree in shape or dtype, or are not floating point.
    """
    if len(sources) == 0:
        raise UnsupportedSourcesError("A depth attention got no sources: pass at least the root of the stream.")
    first = sources[0]
    if not first.dtype.is_floating_point:
        raise UnsupportedSourcesError(
            f"The sources of a depth attention are {first.dtype}: convert them to a floating-point dtype."
        )
    if first.dim() == 0:
        raise UnsupportedSourcesError("The sources of a depth attention are scalars: give them a last dimension d.")
    for i, source in enumerate(sources):
        if source.dtype != first.dtype:
            raise UnsupportedSourcesError(
                f"Source {i} of a depth attention is {source.dtype} and source 0 is {first.dtype}: "
                "convert all sources to one dtype."
            )
        if source.shape != first.shape:
            raise UnsupportedSourcesError(
                f"Source {i} of a depth attention has shape {list(source.shape)} and source 0 has "
                f"{list(first.shape)}: expand or reshape the sources to one shape."
            )
    if not key_vector.dtype.is_floating_point:
        raise UnsupportedSourcesError(
            f"The key vector of a depth attention is {key_vector.dtype}: convert it to a floating-point dtype."
        )
    if key_vector.dim() != 1 or key_vector.shape[0] != first.shape[-1]:
        raise UnsupportedSourcesError(
            f"The key vector of a depth attention has shape {list(key_vector.shape)} "
            f"and the sources have width {first.shape[-1]}: "
            f"pass a query and key-norm weight of shape [{first.shape[-1]}]."
        )
