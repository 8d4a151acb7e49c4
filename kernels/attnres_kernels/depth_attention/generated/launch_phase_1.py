"""Logits and phase 1 from tensors to tensors: shapes, allocation, grids; no autograd and no torch.library.

Sources and gradients may be any tensors ``[*, d]`` of one shape; rows at a constant stride are read in place. All
statistics are fp32. Runs on a GPU, or on the CPU in Triton's interpreter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attnres_kernels.depth_attention.generated import tensors, tiling
from attnres_kernels.depth_attention.generated.logits import logits_text
from attnres_kernels.depth_attention.generated.phase_1 import phase_1_text
from attnres_kernels.depth_attention.generated.phase_1_backward import gradients_text, projections_text
from attnres_kernels.depth_attention.generated.specs import (
    MOST_SOURCES,
    Phase1BackwardSpec,
    Phase1Spec,
    sources_per_backward,
)
from attnres_kernels.load_triton import launchable


def source_logits(source: Tensor, keys: Tensor, eps: float) -> Tensor:
    """Logits ``[rows, R]`` in fp32 of ``source`` ``[*, d]`` for the effective keys ``[R, d]`` in fp32."""
    tensors.check(source)
    flat = tensors.rows_of(source)
    reads, width = keys.shape
    logits = tensors.new(flat, (flat.shape[0], reads), torch.float32)
    if logits.numel() == 0:
        return logits
    tile = tiling.matrix_product(reads)
    # Triton's interpreter, which is what runs on the CPU, multiplies no matrices of bf16.
    kernel = launchable(logits_text(splits_keys=source.dtype == torch.bfloat16 and source.device.type != "cpu"))
    kernel[(tensors.cdiv(flat.shape[0], tile.rows),)](
        flat,
        keys.contiguous(),
        logits,
        flat.shape[0],
        width,
        reads,
        flat.stride(0),
        eps=eps,
        BLOCK_T=tile.rows,
        BLOCK_D=tile.columns,
        BLOCK_R=max(16, tiling.power_of_two(reads)),
        num_warps=tile.warps,
    )
    return logits


def phase_1(sources: Sequence[Tensor], logits: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Outputs of a block's reads over its completed blocks, and their log-sum-exps.

    Args:
        sources: ``n`` tensors ``[*, d]``.
        logits: ``n`` tensors ``[rows, S]`` in fp32, one column per read.

    Returns:
        ``S`` tensors ``[rows, d]`` in the dtype of the sources, fp32 where several launches work on them; and
        ``[S, rows]`` in fp32.
    """
    tensors.check(*sources)
    flat = [tensors.rows_of(source) for source in sources]
    rows, width = flat[0].shape
    reads = logits[0].shape[1]
    dtype = sources[0].dtype if len(flat) <= MOST_SOURCES else torch.float32
    outputs = [tensors.new(flat[0], (rows, width), dtype) for _ in range(reads)]
    log_sums = tensors.new(flat[0], (reads, rows), torch.float32)
    if log_sums.numel() == 0:
        return outputs, log_sums
    before: Tensor | None = None
    for first in range(0, len(flat), MOST_SOURCES):
        part, part_logits = flat[first : first + MOST_SOURCES], logits[first : first + MOST_SOURCES]
        tile = tiling.along_width(width)
        kernel = launchable(phase_1_text(Phase1Spec(len(part), reads, continues=first > 0)))
        after = log_sums if before is None else tensors.new(flat[0], (reads, rows), torch.float32)
        kernel[(tensors.cdiv(rows, tile.rows), tensors.cdiv(width, tile.columns))](
            *part,
            *part_logits,
            *outputs,
            *([] if before is None else [before]),
            after,
            rows,
            width,
            *(source.stride(0) for source in part),
            *(of_source.stride(0) for of_source in part_logits),
            BLOCK_T=tile.rows,
            BLOCK_D=tile.columns,
            num_warps=tile.warps,
        )
        before = after
    assert before is not None
    return outputs, before


def phase_1_backward(
    sources: Sequence[Tensor],
    logits: Sequence[Tensor],
    keys: Tensor,
    grads: Sequence[Tensor | None],
    log_sum_grads: Sequence[Tensor | None],
    carried: Sequence[Tensor | None],
    eps: float,
) -> tuple[list[Tensor], Tensor]:
    """Gradients of the sources and of the keys.

    Args:
        sources, logits: as given to ``phase_1``.
        keys: ``[S, d]`` in fp32.
        grads: per read the gradient of its output ``[*, d]``, or None.
        log_sum_grads: per read that of its log-sum-exp ``[*]``, or None.
        carried: per source a gradient ``[*, d]`` from later blocks, which is added, or None.
        eps: of the key norm.

    Returns:
        Per source its gradient ``[rows, d]`` in its dtype, and that of the keys ``[S, d]`` in fp32.
    """
    tensors.check(*sources)
    flat = [tensors.rows_of(source) for source in sources]
    rows, width = flat[0].shape
    reads = keys.shape[0]
    source_grads = [tensors.new(x, (rows, width), x.dtype) for x in flat]
    if rows == 0:
        return source_grads, torch.zeros_like(keys)
    given = {s: tensors.rows_of(grad) for s, grad in enumerate(grads) if grad is not None}
    step = sources_per_backward(reads)
    parts = [range(first, min(first + step, len(flat))) for first in range(0, len(flat), step)]
    measured = [_projections([flat[i] for i in part], given, reads, eps) for part in parts]
    projected, inverse_rms = (torch.cat(of_parts, -2) for of_parts in zip(*measured, strict=True))
    weights, to_keys, to_selves = _scalars(logits, given, log_sum_grads, projected, inverse_rms, width)
    key_grads = torch.zeros_like(keys)
    for part in parts:
        chosen = slice(part.start, part.stop)
        later = {k: tensors.rows_of(grad) for k, i in enumerate(part) if (grad := carried[i]) is not None}
        key_grads += _gradients(
            flat[chosen],
            given,
            later,
            keys,
            (weights[chosen], to_keys[chosen], to_selves[chosen]),
            source_grads[chosen],
        )
    return source_grads, key_grads


def _projections(flat: list[Tensor], grads: dict[int, Tensor], reads: int, eps: float) -> tuple[Tensor, Tensor]:
    rows, width = flat[0].shape
    projected = tensors.new(flat[0], (len(grads), len(flat), rows), torch.float32)
    inverse_rms = tensors.new(flat[0], (len(flat), rows), torch.float32)
    tile = tiling.along_width(width)
    kernel = launchable(projections_text(Phase1BackwardSpec(len(flat), reads, tuple(grads), ())))
    kernel[(tensors.cdiv(rows, tile.rows),)](
        *flat,
        *grads.values(),
        projected,
        inverse_rms,
        rows,
        width,
        *(source.stride(0) for source in flat),
        *(grad.stride(0) for grad in grads.values()),
        eps=eps,
        BLOCK_T=tile.rows,
        BLOCK_D=tile.columns,
        num_warps=tile.warps,
    )
    return projected, inverse_rms


def _scalars(
    logits: Sequence[Tensor],
    grads: dict[int, Tensor],
    log_sum_grads: Sequence[Tensor | None],
    projected: Tensor,
    inverse_rms: Tensor,
    width: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights and gradients of the logits times inverse RMS, ``[n, S, rows]``, and ``[n, rows]`` of each source."""
    values = torch.stack([of_source.t() for of_source in logits])
    weights = values.softmax(0)
    centered = torch.zeros_like(weights)
    if grads:
        centered[:, list(grads)] = projected.transpose(0, 1)
    centered = centered - (weights * centered).sum(0)
    for s, grad in enumerate(log_sum_grads):
        if grad is not None:
            centered[:, s] += grad.reshape(-1)
    logit_grads = weights * centered
    to_keys = logit_grads * inverse_rms.unsqueeze(1)
    to_selves = (logit_grads * values).sum(1) * inverse_rms.square() / width
    return weights.contiguous(), to_keys.contiguous(), to_selves.contiguous()


def _gradients(
    flat: list[Tensor],
    grads: dict[int, Tensor],
    carried: dict[int, Tensor],
    keys: Tensor,
    scalars: tuple[Tensor, Tensor, Tensor],
    source_grads: list[Tensor],
) -> Tensor:
    rows, width = flat[0].shape
    reads = keys.shape[0]
    tile = tiling.along_width(width)
    programs, rows_per_program = tensors.shares(rows, tile.rows, tensors.cdiv(width, tile.columns))
    key_grads = tensors.new(flat[0], (programs, reads, width), torch.float32)
    kernel = launchable(gradients_text(Phase1BackwardSpec(len(flat), reads, tuple(grads), tuple(carried))))
    kernel[(programs, tensors.cdiv(width, tile.columns))](
        *flat,
        *grads.values(),
        *carried.values(),
        keys.contiguous(),
        *scalars,
        *source_grads,
        key_grads,
        rows,
        width,
        rows_per_program,
        *(source.stride(0) for source in flat),
        *(grad.stride(0) for grad in grads.values()),
        *(grad.stride(0) for grad in carried.values()),
        BLOCK_T=tile.rows,
        BLOCK_D=tile.columns,
        num_warps=tile.warps,
    )
    return key_grads.sum(0)
