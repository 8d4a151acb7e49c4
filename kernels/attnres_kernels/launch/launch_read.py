"""One read from tensors to tensors, its neighbours fused, and its backward; shapes and grids as ``launch_phase_1``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from attnres_kernels.generation.read import read_text
from attnres_kernels.generation.read_backward import read_backward_text
from attnres_kernels.generation.specs import NormKind, ReadBackwardSpec, ReadSpec
from attnres_kernels.launch import candidates, tensors, tiling
from attnres_kernels.launch.launch_phase_1 import phase_1
from attnres_kernels.launch.load_triton import launchable


@dataclass(frozen=True)
class Norm:
    """The norm behind a read. weight, bias: ``[d]``, or None."""

    kind: NormKind
    eps: float
    weight: Tensor | None = None
    bias: Tensor | None = None


def norm_of(kind: str | None, eps: float, weight: Tensor | None, bias: Tensor | None) -> Norm | None:
    """The norm, from what an operator is called with."""
    return None if kind is None else Norm(cast(NormKind, kind), eps, weight, bias)


@dataclass(frozen=True)
class Parts:
    """What a read attends to.

    inter, log_sum: ``[rows, d]`` and ``[rows]`` of ``phase_1``, or None; sources, logits: further completed blocks
    ``[*, d]`` and their logits ``[rows]``, a column of ``source_logits`` each; partial, key: the open partial sum
    ``[*, d]`` and the effective key ``[d]`` in fp32, or None.
    """

    inter: Tensor | None = None
    log_sum: Tensor | None = None
    sources: Sequence[Tensor] = ()
    logits: Sequence[Tensor] = ()
    partial: Tensor | None = None
    key: Tensor | None = None

    def first(self) -> Tensor:
        """A tensor of the shape and dtype of the read."""
        return next(x for x in (self.partial, *self.sources, self.inter) if x is not None)

    def flat(self) -> Parts:
        """With all values as rows, read in place wherever that can be."""
        return Parts(
            None if self.inter is None else tensors.rows_of(self.inter).contiguous(),
            None if self.log_sum is None else self.log_sum.reshape(-1).contiguous(),
            [tensors.rows_of(source) for source in self.sources],
            self.logits,
            None if self.partial is None else tensors.rows_of(self.partial),
            None if self.key is None else self.key.contiguous(),
        )

    def condensed(self) -> Parts:
        """With no more blocks in place than one launch reads: phase 1 sums up the others first."""
        most = tiling.most_in_place(self.first().shape[-1])
        if len(self.sources) <= most:
            return self
        assert self.inter is None, f"phase 1's output and {len(self.sources)} blocks: put them into phase 1"
        columns = [logits.unsqueeze(1) for logits in self.logits]
        (inter,), log_sums = phase_1(self.sources, columns)
        return Parts(inter, log_sums[0], (), (), self.partial, self.key)

    def pointers(self) -> list[Tensor]:
        given = [self.inter, self.log_sum, *self.sources, *self.logits, self.partial, self.key]
        return [x for x in given if x is not None]

    def strides(self) -> list[int]:
        strides = [*(x.stride(0) for x in self.sources), *(x.stride(0) for x in self.logits)]
        return strides + ([] if self.partial is None else [self.partial.stride(0)])

    def spec(self, adds: bool, norm: Norm | None, returns_value: bool) -> ReadSpec:
        has_weight, has_bias = (norm is not None and x is not None for x in (norm and norm.weight, norm and norm.bias))
        kind = None if norm is None else norm.kind
        has_inter, has_partial = self.inter is not None, self.partial is not None
        return ReadSpec(
            len(self.sources), has_inter, has_partial, adds, kind, has_weight, has_bias, returns_value or norm is None
        )


@dataclass(frozen=True)
class ReadResult:
    """What the kernel of one read writes, each ``[rows, d]`` in the dtype of the sources.

    value: the depth-attended value; normed: behind the norm; partial: the new partial sum; None where the spec has no
    such output. statistics: ``[rows, numbers]`` in fp32, for the backward.
    """

    value: Tensor | None
    normed: Tensor | None
    partial: Tensor | None
    statistics: Tensor

    @classmethod
    def new(cls, spec: ReadSpec, like: Tensor, dtype: torch.dtype, numbers: int) -> ReadResult:
        """To be written. like: ``[rows, d]``; numbers: per token, of the statistics."""
        wanted = (spec.returns_value, spec.norm is not None, spec.adds)
        value, normed, partial = (tensors.new(like, like.shape, dtype) if has else None for has in wanted)
        return cls(value, normed, partial, tensors.new(like, (like.shape[0], numbers), torch.float32))

    def as_list(self, shape: torch.Size) -> list[Tensor]:
        """Those that there are, in ``shape``, and last the statistics."""
        made = [x.reshape(shape) for x in (self.value, self.normed, self.partial) if x is not None]
        return [*made, self.statistics]


def read(
    parts: Parts,
    dtype: torch.dtype,
    factor: float,
    eps: float,
    branch: Tensor | None = None,
    norm: Norm | None = None,
    returns_value: bool = True,
) -> ReadResult:
    """One read.

    Args:
        parts: what it attends to.
        dtype: of the sources and of what is returned.
        factor: 1, or the number of sources for ``scale="sum"``.
        eps: of the key norm.
        branch: ``[*, d]``, added to the partial sum first.
        norm: behind the read.
        returns_value: whether the value before the norm is wanted.
    """
    tensors.check(parts.first())
    parts = parts.condensed()
    flat, like = parts.flat(), tensors.rows_of(parts.first())
    rows, width = like.shape
    added = None if branch is None else tensors.rows_of(branch)
    spec = parts.spec(added is not None, norm, returns_value)
    result = ReadResult.new(spec, like, dtype, numbers=5)
    if rows == 0:
        return result
    others = [added, *([norm.weight, norm.bias] if norm is not None else [])]
    others += [result.partial, result.value, result.normed, result.statistics]
    kernel = launchable(read_text(spec), candidates.read(width))
    kernel[(rows,)](
        *flat.pointers(),
        *(x for x in others if x is not None),
        rows,
        width,
        *flat.strides(),
        *([] if added is None else [added.stride(0)]),
        factor=factor,
        eps=eps,
        norm_eps=0.0 if norm is None else norm.eps,
    )
    return result


@dataclass(frozen=True)
class ReadGradients:
    """read: ``[rows, d]``, the gradient of the weighted sum of the parts; scalars: ``[2, rows]`` in fp32, its product
    with that sum and the log-sum-exp of all logits: both for ``sources_backward``. partial: ``[rows, d]``, the gradient
    of the branch too; key, norm_weight, norm_bias: ``[d]`` in fp32; None where there is no such input.
    """

    read: Tensor
    scalars: Tensor
    partial: Tensor | None
    key: Tensor | None
    norm_weight: Tensor | None
    norm_bias: Tensor | None


def read_backward(
    parts: Parts,
    statistics: Tensor,
    dtype: torch.dtype,
    factor: float,
    value_grad: Tensor | None = None,
    normed_grad: Tensor | None = None,
    partial_grad: Tensor | None = None,
    adds: bool = False,
    norm: Norm | None = None,
    returns_value: bool = True,
) -> ReadGradients:
    """Gradients of ``read`` from those of its outputs.

    Args:
        parts, dtype, factor, norm, returns_value: as given to ``read``, but the partial sum is the one that was read
            (the new one, with a branch); adds: whether there was a branch.
        statistics: of ``read``.
        value_grad, normed_grad, partial_grad: ``[*, d]``, gradients of the value, of the normed value, and of the
            partial sum from its later readers; None where there is none.
    """
    parts = parts.condensed()
    flat, like = parts.flat(), tensors.rows_of(parts.first())
    rows, width = like.shape
    if norm is None or normed_grad is None:
        norm, normed_grad = None, None
    given = [None if grad is None else tensors.rows_of(grad) for grad in (value_grad, normed_grad, partial_grad)]
    has_value_grad, has_normed_grad, has_partial_grad = (grad is not None for grad in given)
    forward = parts.spec(adds, norm, returns_value)
    spec = ReadBackwardSpec(forward, has_value_grad, has_normed_grad, has_partial_grad, tiling.is_wide(width))
    programs, rows_per_program = tensors.shares(like, 1, tiling.programs_at_once(tiling.whole_rows(width)))
    read_grad = tensors.new(like, (rows, width), dtype)
    scalars = tensors.new(like, (2, rows), torch.float32)
    partial_grad_out = None if parts.partial is None else tensors.new(like, (rows, width), dtype)
    sums = [
        tensors.new(like, (programs, width), torch.float32) if wanted else None
        for wanted in (forward.has_partial, forward.has_weight, spec.sums_bias)
    ]
    if rows > 0:
        others = [norm.weight if norm is not None else None, statistics, *given]
        others += [read_grad, scalars, partial_grad_out, *sums]
        choices = candidates.read_backward(spec, width, dtype.itemsize, tiling.shared_memory(like.device))
        kernel = launchable(read_backward_text(spec), choices)
        kernel[(programs,)](
            *flat.pointers(),
            *(x for x in others if x is not None),
            rows,
            width,
            rows_per_program,
            0,
            *flat.strides(),
            *(grad.stride(0) for grad in given if grad is not None),
            factor=factor,
        )
    else:
        sums = [None if x is None else torch.zeros_like(x) for x in sums]
    key_grad, weight_grad, bias_grad = (None if x is None else x.sum(0) for x in sums)
    if forward.has_bias and given[1] is not None and not spec.sums_bias:
        bias_grad = given[1].sum(0, dtype=torch.float32)
    return ReadGradients(read_grad, scalars, partial_grad_out, key_grad, weight_grad, bias_grad)
