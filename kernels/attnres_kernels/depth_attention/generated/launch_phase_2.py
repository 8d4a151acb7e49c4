"""Phase 2 from tensors to tensors, with the add before and the norm behind; as ``launch_phase_1``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attnres_kernels.depth_attention.generated import tensors, tiling
from attnres_kernels.depth_attention.generated.phase_2 import phase_2_text
from attnres_kernels.depth_attention.generated.phase_2_backward import phase_2_backward_text
from attnres_kernels.depth_attention.generated.specs import NormKind, Phase2BackwardSpec, Phase2Spec
from attnres_kernels.load_triton import launchable


@dataclass(frozen=True)
class Norm:
    """The norm behind a read. weight, bias: ``[d]``, or None."""

    kind: NormKind
    eps: float
    weight: Tensor | None = None
    bias: Tensor | None = None


@dataclass(frozen=True)
class Phase2Result:
    """What the kernel of one read writes, each ``[rows, d]`` in the dtype of the partial sum.

    value: the depth-attended value; normed: behind the norm; partial: the new partial sum; None where the spec has no
    such output. statistics: ``[5, rows]`` in fp32, for the backward.
    """

    value: Tensor | None
    normed: Tensor | None
    partial: Tensor | None
    statistics: Tensor


def phase_2(
    inter: Tensor,
    log_sum: Tensor,
    partial: Tensor,
    key: Tensor,
    factor: float,
    eps: float,
    branch: Tensor | None = None,
    norm: Norm | None = None,
    returns_value: bool = True,
) -> Phase2Result:
    """One read from phase 1's output and the open partial sum.

    Args:
        inter, log_sum: ``[rows, d]`` and ``[rows]``, of ``phase_1``.
        partial: ``[*, d]`` open partial sum.
        key: ``[d]`` effective key in fp32.
        factor: 1, or the number of sources for ``scale="sum"``.
        eps: of the key norm.
        branch: ``[*, d]``, added to ``partial`` first.
        norm: behind the read.
        returns_value: whether the value before the norm is wanted.
    """
    tensors.check(partial)
    flat = tensors.rows_of(partial)
    rows, width = flat.shape
    added = None if branch is None else tensors.rows_of(branch)
    spec = _phase_2_spec(added is not None, norm, returns_value)
    result = Phase2Result(
        tensors.new(flat, (rows, width), flat.dtype) if spec.returns_value else None,
        tensors.new(flat, (rows, width), flat.dtype) if spec.norm else None,
        tensors.new(flat, (rows, width), flat.dtype) if spec.adds else None,
        tensors.new(flat, (5, rows), torch.float32),
    )
    if rows == 0:
        return result
    tile = tiling.whole_rows(width)
    arguments = [inter.contiguous(), log_sum.contiguous(), flat, added, key.contiguous()]
    arguments += [norm.weight, norm.bias] if norm is not None else []
    arguments += [result.partial, result.value, result.normed, result.statistics]
    kernel = launchable(phase_2_text(spec))
    kernel[(tensors.cdiv(rows, tile.rows),)](
        *(argument for argument in arguments if argument is not None),
        rows,
        width,
        flat.stride(0),
        *([] if added is None else [added.stride(0)]),
        factor=factor,
        eps=eps,
        norm_eps=0.0 if norm is None else norm.eps,
        BLOCK_T=tile.rows,
        BLOCK_D=tile.columns,
        num_warps=tile.warps,
    )
    return result


@dataclass(frozen=True)
class Phase2Gradients:
    """inter and partial ``[rows, d]``, the second the gradient of the branch too; log_sum ``[rows]``; key, norm_weight
    and norm_bias ``[d]`` in fp32, the last two None where there is no such vector.
    """

    inter: Tensor
    log_sum: Tensor
    partial: Tensor
    key: Tensor
    norm_weight: Tensor | None
    norm_bias: Tensor | None


def phase_2_backward(
    inter: Tensor,
    partial: Tensor,
    key: Tensor,
    statistics: Tensor,
    factor: float,
    value_grad: Tensor | None = None,
    normed_grad: Tensor | None = None,
    partial_grad: Tensor | None = None,
    adds: bool = False,
    norm: Norm | None = None,
    returns_value: bool = True,
) -> Phase2Gradients:
    """Gradients of ``phase_2`` from those of its outputs.

    Args:
        inter, key, factor, norm, returns_value: as given to ``phase_2``; adds: whether it was given a branch.
        partial: ``[*, d]``, the partial sum that was read (the new one, with a branch).
        statistics: of ``phase_2``.
        value_grad, normed_grad, partial_grad: ``[*, d]``, gradients of the value, of the normed value, and of the
            partial sum from its later readers; None where there is none.
    """
    flat = tensors.rows_of(partial)
    rows, width = flat.shape
    if norm is None or normed_grad is None:
        norm, normed_grad = None, None
    weight, bias = (None, None) if norm is None else (norm.weight, norm.bias)
    given = [None if grad is None else tensors.rows_of(grad) for grad in (value_grad, normed_grad, partial_grad)]
    spec = Phase2BackwardSpec(
        _phase_2_spec(adds, norm, returns_value or norm is None), *(grad is not None for grad in given)
    )
    tile = tiling.whole_rows(width)
    programs, rows_per_program = tensors.shares(rows, tile.rows, 1)
    inter_grad, partial_grad_out = (
        tensors.new(flat, (rows, width), inter.dtype),
        tensors.new(flat, (rows, width), flat.dtype),
    )
    log_sum_grad = tensors.new(flat, (rows,), torch.float32)
    vectors = [
        None if vector is None else tensors.new(flat, (programs, width), torch.float32)
        for vector in (key, weight, bias)
    ]
    if rows > 0:
        arguments = [inter.contiguous(), flat, key.contiguous(), weight, statistics, *given]
        arguments += [inter_grad, log_sum_grad, partial_grad_out, *vectors]
        kernel = launchable(phase_2_backward_text(spec))
        kernel[(programs,)](
            *(argument for argument in arguments if argument is not None),
            rows,
            width,
            rows_per_program,
            flat.stride(0),
            *(grad.stride(0) for grad in given if grad is not None),
            factor=factor,
            BLOCK_T=tile.rows,
            BLOCK_D=tile.columns,
            num_warps=tile.warps,
        )
    key_grad, weight_grad, bias_grad = (None if vector is None else vector.sum(0) for vector in vectors)
    assert key_grad is not None
    return Phase2Gradients(inter_grad, log_sum_grad, partial_grad_out, key_grad, weight_grad, bias_grad)


def _phase_2_spec(adds: bool, norm: Norm | None, returns_value: bool) -> Phase2Spec:
    if norm is None:
        return Phase2Spec(adds)
    return Phase2Spec(adds, norm.kind, norm.weight is not None, norm.bias is not None, returns_value)
