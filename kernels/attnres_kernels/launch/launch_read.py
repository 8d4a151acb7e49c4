"""One read from tensors to tensors, its neighbours fused, and its backward; shapes as in ``launch_phase_1``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from attnres_kernels.definition.read_parts import ALONE, Neighbours, OutputGradients, ReadParts
from attnres_kernels.generation.read import read_text
from attnres_kernels.generation.read_backward import read_backward_text
from attnres_kernels.generation.specs import KernelSpec, NormKind, ReadBackwardSpec, ReadSpec
from attnres_kernels.launch import candidates, rows, tiling
from attnres_kernels.launch.launch_phase_1 import phase_1, phase_1_specs
from attnres_kernels.launch.load_triton import launchable

STATISTICS = 5
"""Numbers of a token that a read keeps for its backward."""


def read_kernels(parts: ReadParts, neighbours: Neighbours) -> list[KernelSpec]:
    """What ``read`` launches.

    Args:
        parts, neighbours: of the read; of the tensors only the shapes count.
    """
    before, parts = _after_phase_1(parts)
    return [*before, read_spec(parts, neighbours)]


def read_backward_kernels(
    parts: ReadParts, grads: OutputGradients, adds: bool, neighbours: Neighbours
) -> list[KernelSpec]:
    """What ``read_backward`` launches.

    Args:
        parts, grads, adds, neighbours: of ``read_backward``; of the tensors only the shapes count.
    """
    before, parts = _after_phase_1(parts)
    return [*before, _backward_spec(parts, grads, adds, neighbours)]


def _is_condensed(parts: ReadParts) -> bool:
    """Whether there are more blocks in place than one launch reads: a phase 1 sums them up first."""
    return len(parts.sources) > tiling.most_in_place(parts.values()[0].shape[-1])


def _after_phase_1(parts: ReadParts) -> tuple[Sequence[KernelSpec], ReadParts]:
    """The launches of that phase 1, and the parts that it leaves."""
    if not _is_condensed(parts):
        return [], parts
    return phase_1_specs(len(parts.sources), 1), parts._replace(inter=parts.sources[0], sources=(), logits=())


def _condensed(parts: ReadParts) -> ReadParts:
    if not _is_condensed(parts):
        return parts
    assert parts.inter is None, f"phase 1's output and {len(parts.sources)} blocks: put them into phase 1"
    (inter,), log_sums = phase_1(parts.sources, [logits.unsqueeze(1) for logits in parts.logits])
    return ReadParts(inter, log_sums[0], (), (), parts.partial, parts.key)


def read_spec(parts: ReadParts, neighbours: Neighbours) -> ReadSpec:
    """What the kernel of a read is generated for.

    Args:
        parts, neighbours: of the read; of the tensors only whether they are there counts.
    """
    returns_value, _, adds = neighbours.results()
    return ReadSpec(
        len(parts.sources),
        has_inter=parts.inter is not None,
        has_partial=parts.partial is not None,
        adds=adds,
        norm=cast("NormKind | None", neighbours.norm),
        has_weight=neighbours.norm_weight is not None,
        has_bias=neighbours.norm_bias is not None,
        returns_value=returns_value,
    )


def _backward_spec(parts: ReadParts, grads: OutputGradients, adds: bool, neighbours: Neighbours) -> ReadBackwardSpec:
    behind, (value_grad, normed_grad, partial_grad) = through_norm(neighbours, grads)
    forward = replace(read_spec(parts, behind), adds=adds)
    has_grads = (value_grad is not None, normed_grad is not None, partial_grad is not None)
    return ReadBackwardSpec(forward, *has_grads, tiling.is_wide(parts.values()[0].shape[-1]))


def through_norm(neighbours: Neighbours, grads: OutputGradients) -> tuple[Neighbours, OutputGradients]:
    """The neighbours and gradients with the norm left out if no gradient comes through it.

    Args:
        neighbours: of the read.
        grads: of its outputs.
    """
    if neighbours.norm is not None and grads.normed_grad is not None:
        return neighbours, grads
    return ALONE._replace(returns_value=neighbours.returns_value), grads._replace(normed_grad=None)


def _flat(parts: ReadParts) -> ReadParts:
    """The parts as rows, read in place wherever that can be."""
    return ReadParts(
        None if parts.inter is None else rows.rows_of(parts.inter).contiguous(),
        None if parts.log_sum is None else parts.log_sum.reshape(-1).contiguous(),
        [rows.rows_of(source) for source in parts.sources],
        parts.logits,
        None if parts.partial is None else rows.rows_of(parts.partial),
        None if parts.key is None else parts.key.contiguous(),
    )


def _pointers(flat: ReadParts) -> list[Tensor]:
    given = [flat.inter, flat.log_sum, *flat.sources, *flat.logits, flat.partial, flat.key]
    return [x for x in given if x is not None]


def _strides(flat: ReadParts) -> list[int]:
    return [x.stride(0) for x in (*flat.sources, *flat.logits, flat.partial) if x is not None]


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
    def new(cls, neighbours: Neighbours, like: Tensor, dtype: torch.dtype, numbers: int) -> ReadResult:
        """Results that a kernel is to write.

        Args:
            neighbours: of the read, which say what it makes.
            like: ``[rows, d]``.
            dtype: of the results but the statistics.
            numbers: per token, of the statistics.
        """
        value, normed, partial = (rows.new(like, like.shape, dtype) if has else None for has in neighbours.results())
        return cls(value, normed, partial, rows.new(like, (like.shape[0], numbers), torch.float32))

    def as_list(self, shape: torch.Size) -> list[Tensor]:
        """The results that there are, in ``shape``, and last the statistics."""
        made = [x.reshape(shape) for x in (self.value, self.normed, self.partial) if x is not None]
        return [*made, self.statistics]

    def written(self) -> list[Tensor | None]:
        """All of them in the order of a kernel's arguments."""
        return [self.partial, self.value, self.normed, self.statistics]


def read(parts: ReadParts, dtype: torch.dtype, factor: float, eps: float, neighbours: Neighbours = ALONE) -> ReadResult:
    """One read (equations 2 to 6 of the paper; ``generation.read``).

    Args:
        parts: what it attends to, with logits ``[rows]``.
        dtype: of the sources and of what is returned.
        factor: 1, or the number of sources for ``scale="sum"``.
        eps: of the key norm.
        neighbours: what its kernel computes beside it.

    Raises:
        UnsupportedSourcesError: a dtype or a width that the kernels cannot take.
    """
    rows.check(parts.values()[0])
    parts = _condensed(parts)
    flat, like = _flat(parts), rows.rows_of(parts.values()[0])
    count, width = like.shape
    added = None if neighbours.branch is None else rows.rows_of(neighbours.branch)
    result = ReadResult.new(neighbours, like, dtype, STATISTICS)
    if count == 0:
        return result
    others = [added, neighbours.norm_weight, neighbours.norm_bias, *result.written()]
    kernel = launchable(read_text(read_spec(parts, neighbours)), candidates.read(width))
    kernel[(count,)](
        *_pointers(flat),
        *(x for x in others if x is not None),
        count,
        width,
        *_strides(flat),
        *([] if added is None else [added.stride(0)]),
        factor=factor,
        eps=eps,
        norm_eps=neighbours.norm_eps,
    )
    return result


@dataclass(frozen=True)
class ReadGradients:
    """What the backward of a read gives.

    read: ``[rows, d]``, the gradient of the weighted sum of the parts; scalars: ``[2, rows]`` in fp32, its product
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
    parts: ReadParts,
    statistics: Tensor,
    dtype: torch.dtype,
    factor: float,
    grads: OutputGradients,
    adds: bool = False,
    neighbours: Neighbours = ALONE,
) -> ReadGradients:
    """Gradients of ``read`` from those of its outputs (``generation.read_backward``).

    Args:
        parts: as given to ``read``, but the partial sum is the one that was read: the new one, with a branch.
        statistics: of ``read``.
        dtype, factor: as given to ``read``.
        grads: of its outputs.
        adds: whether there was a branch.
        neighbours: as given to ``read``, the branch aside.
    """
    parts = _condensed(parts)
    flat, like = _flat(parts), rows.rows_of(parts.values()[0])
    count, width = like.shape
    behind, grads = through_norm(neighbours, grads)
    given = [None if grad is None else rows.rows_of(grad) for grad in grads]
    spec = _backward_spec(parts, grads, adds, behind)
    forward = spec.forward
    programs, rows_per_program = rows.shares(like, 1, tiling.programs_at_once(tiling.whole_rows(width)))
    read_grad = rows.new(like, (count, width), dtype)
    scalars = rows.new(like, (2, count), torch.float32)
    partial_grad = None if parts.partial is None else rows.new(like, (count, width), dtype)
    sums = rows.sums(like, programs, (forward.has_partial, forward.has_weight, spec.sums_bias))
    if count > 0:
        others = [behind.norm_weight, statistics, *given, read_grad, scalars, partial_grad, *sums]
        choices = candidates.read_backward(spec, width, dtype.itemsize, tiling.shared_memory(like.device))
        kernel = launchable(read_backward_text(spec), choices)
        kernel[(programs,)](
            *_pointers(flat),
            *(x for x in others if x is not None),
            count,
            width,
            rows_per_program,
            0,
            *_strides(flat),
            *(grad.stride(0) for grad in given if grad is not None),
            factor=factor,
        )
    key_grad, weight_grad, bias_grad = (None if x is None else x.sum(0) for x in sums)
    if forward.has_bias and given[1] is not None and not spec.sums_bias:
        bias_grad = given[1].sum(0, dtype=torch.float32)
    return ReadGradients(read_grad, scalars, partial_grad, key_grad, weight_grad, bias_grad)
