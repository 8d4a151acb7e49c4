"""One read with own logits from tensors to tensors, its neighbours fused, and its backward; one launch each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attnres_kernels.generation.own_read import own_read_text, statistics_of
from attnres_kernels.generation.own_read_backward import own_read_backward_text
from attnres_kernels.generation.specs import ReadSpec
from attnres_kernels.launch import candidates, own_tiling, tensors
from attnres_kernels.launch.launch_read import Norm, ReadResult
from attnres_kernels.launch.load_triton import launchable


@dataclass(frozen=True)
class OwnRead:
    """What a read attends to.

    sources: completed blocks ``[*, d]``; partial: the open partial sum ``[*, d]``, or None; query, key_weight: ``[d]``
    of the read, whose product is the key.
    """

    sources: Sequence[Tensor]
    partial: Tensor | None
    query: Tensor
    key_weight: Tensor

    def values(self) -> list[Tensor]:
        """All sources."""
        return [*self.sources, *([] if self.partial is None else [self.partial])]

    def spec(self, adds: bool, norm: Norm | None, returns_value: bool) -> ReadSpec:
        return ReadSpec(
            len(self.sources),
            has_inter=False,
            has_partial=self.partial is not None,
            adds=adds,
            norm=None if norm is None else norm.kind,
            has_weight=norm is not None and norm.weight is not None,
            has_bias=norm is not None and norm.bias is not None,
            returns_value=returns_value or norm is None,
        )


def own_read(
    parts: OwnRead,
    factor: float,
    eps: float,
    branch: Tensor | None = None,
    norm: Norm | None = None,
    returns_value: bool = True,
) -> ReadResult:
    """One read; ``statistics`` of the result is ``[rows, own_read.statistics_of]``.

    Args:
        parts: what it attends to.
        factor: 1, or the number of sources for ``scale="sum"``.
        eps: of the key norm.
        branch: ``[*, d]``, added to the partial sum first.
        norm: behind the read.
        returns_value: whether the value before the norm is wanted.

    Raises:
        UnsupportedSourcesError: a dtype or a width that the kernels cannot take.
    """
    tensors.check(*parts.values())
    flat = [tensors.rows_of(x) for x in parts.values()]
    (rows, width), dtype = flat[0].shape, flat[0].dtype
    added = None if branch is None else tensors.rows_of(branch)
    read = parts.spec(added is not None, norm, returns_value)
    result = ReadResult.new(read, flat[0], dtype, numbers=statistics_of(read))
    if rows == 0:
        return result
    others = [parts.query.contiguous(), parts.key_weight.contiguous(), added]
    others += [] if norm is None else [norm.weight, norm.bias]
    others += [result.partial, result.value, result.normed, result.statistics]
    kernel = launchable(own_read_text(own_tiling.forward_spec(read, width)), candidates.own_read(width, dtype))
    kernel[(rows,)](
        *flat,
        *(x for x in others if x is not None),
        rows,
        width,
        *(x.stride(0) for x in flat),
        *([] if added is None else [added.stride(0)]),
        factor=factor,
        eps=eps,
        norm_eps=0.0 if norm is None else norm.eps,
    )
    return result


@dataclass(frozen=True)
class OwnReadGradients:
    """sources: of each source ``[rows, d]``, the partial sum, whose gradient is the branch's too, last; key,
    norm_weight, norm_bias: ``[d]`` in fp32; None where there is no such input.
    """

    sources: list[Tensor]
    key: Tensor
    norm_weight: Tensor | None
    norm_bias: Tensor | None


def own_read_backward(
    parts: OwnRead,
    statistics: Tensor,
    factor: float,
    value_grad: Tensor | None = None,
    normed_grad: Tensor | None = None,
    partial_grad: Tensor | None = None,
    norm: Norm | None = None,
) -> OwnReadGradients:
    """Gradients of ``own_read`` from those of its outputs.

    Args:
        parts, factor, norm: as given to ``own_read``, but the partial sum is the one that was read (the new one, with a
            branch).
        statistics: of ``own_read``.
        value_grad, normed_grad, partial_grad: ``[*, d]``, gradients of the value, of the normed value, and of the
            partial sum from its later readers; None where there is none.
    """
    flat = [tensors.rows_of(x) for x in parts.values()]
    rows, width = flat[0].shape
    given = [None if grad is None else tensors.rows_of(grad) for grad in (value_grad, normed_grad, partial_grad)]
    through_norm = norm if normed_grad is not None else None
    forward = parts.spec(False, through_norm, value_grad is not None)
    spec = own_tiling.backward_spec(forward, width, *(grad is not None for grad in given))
    programs, rows_per_program = own_tiling.shares(flat[0])
    grads = [tensors.new(x, (rows, width), x.dtype) for x in flat]
    sums = [
        tensors.new(flat[0], (programs, width), torch.float32) if wanted else None
        for wanted in (True, forward.has_weight, forward.has_bias)
    ]
    if rows > 0:
        weight = None if through_norm is None else through_norm.weight
        others = [parts.query.contiguous(), parts.key_weight.contiguous(), weight, statistics, *given, *grads, *sums]
        kernel = launchable(own_read_backward_text(spec), candidates.own_read_backward(width, flat[0].dtype))
        kernel[(programs,)](
            *flat,
            *(x for x in others if x is not None),
            rows,
            width,
            rows_per_program,
            0,
            *(x.stride(0) for x in flat),
            *(grad.stride(0) for grad in given if grad is not None),
            factor=factor,
        )
    else:
        sums = [None if x is None else torch.zeros_like(x) for x in sums]
    of_key, of_weight, of_bias = (None if x is None else x.sum(0) for x in sums)
    assert of_key is not None
    return OwnReadGradients(grads, of_key, of_weight, of_bias)
