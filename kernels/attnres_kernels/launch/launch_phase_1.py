"""Logits and phase 1 from tensors to tensors: shapes, allocation, grids; no autograd and no torch.library.

Sources and gradients may be any tensors ``[*, d]`` of one shape; rows at a constant stride are read in place. All
statistics are fp32. Runs on a GPU, or on the CPU in Triton's interpreter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attnres_kernels.generation.logits import logits_text
from attnres_kernels.generation.phase_1 import phase_1_text
from attnres_kernels.generation.specs import MOST_SOURCES, LogitsSpec, Phase1Spec
from attnres_kernels.launch import candidates, rows, tiling
from attnres_kernels.launch.load_triton import launchable


def source_logits(source: Tensor, keys: Tensor, eps: float) -> Tensor:
    """Logits of a completed block (equation 2 of the paper; ``generation.logits``).

    Args:
        source: the block ``[*, d]``.
        keys: the effective keys ``[R, d]`` in fp32.
        eps: of the key norm.

    Returns:
        ``[rows, R]`` in fp32.

    Raises:
        UnsupportedSourcesError: a dtype or a width that the kernels cannot take.
    """
    rows.check(source)
    flat = rows.rows_of(source)
    logits = rows.new(flat, (flat.shape[0], keys.shape[0]), torch.float32)
    if flat.shape[0] > 0:
        _logits(flat, None, None, keys, logits, eps)
    return logits


def complete_block(partial: Tensor, branch: Tensor, keys: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The block ``partial + branch`` ``[rows, d]`` and its logits, in one pass over both.

    Args:
        partial, branch: ``[*, d]``.
        keys: the effective keys ``[R, d]`` in fp32.
        eps: of the key norm.

    Raises:
        UnsupportedSourcesError: a dtype or a width that the kernels cannot take.
    """
    rows.check(partial, branch)
    flat, added = rows.rows_of(partial), rows.rows_of(branch)
    block = rows.new(flat, (flat.shape[0], flat.shape[1]), partial.dtype)
    logits = rows.new(flat, (flat.shape[0], keys.shape[0]), torch.float32)
    if flat.shape[0] > 0:
        _logits(block, flat, added, keys, logits, eps)
    return block, logits


def _logits(
    source: Tensor, partial: Tensor | None, branch: Tensor | None, keys: Tensor, logits: Tensor, eps: float
) -> None:
    count, width = source.shape
    reads = keys.shape[0]
    given = [x for x in (partial, branch) if x is not None]
    # Triton's interpreter, which is what runs on the CPU, multiplies no matrices of bf16.
    splits_keys = source.dtype == torch.bfloat16 and tiling.is_gpu(source.device)
    kernel = launchable(logits_text(LogitsSpec(splits_keys, adds=bool(given))), candidates.logits(reads))
    kernel[lambda numbers: (rows.cdiv(count, numbers["BLOCK_T"]), rows.cdiv(reads, numbers["BLOCK_R"]))](
        *given,
        source,
        keys.contiguous(),
        logits,
        count,
        width,
        reads,
        *(x.stride(0) for x in given or [source]),
        eps=eps,
    )


def phase_1_specs(sources: int, reads: int) -> list[Phase1Spec]:
    """The launches of phase 1, each of which goes on from the outputs of the one before.

    Args:
        sources: completed blocks.
        reads: of the group.
    """
    firsts = range(0, sources, MOST_SOURCES)
    return [Phase1Spec(min(MOST_SOURCES, sources - first), reads, continues=first > 0) for first in firsts]


def phase_1(sources: Sequence[Tensor], logits: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Outputs of a group's reads over the blocks complete before it, and their log-sum-exps.

    Args:
        sources: ``n`` tensors ``[*, d]``.
        logits: ``n`` tensors ``[rows, S]`` in fp32, one column per read.

    Returns:
        ``S`` tensors ``[rows, d]`` in the dtype of the sources, fp32 where several launches work on them; and
        ``[S, rows]`` in fp32.

    Raises:
        UnsupportedSourcesError: a dtype or a width that the kernels cannot take.
    """
    rows.check(*sources)
    flat = [rows.rows_of(source) for source in sources]
    count, width = flat[0].shape
    reads = logits[0].shape[1]
    dtype = output_dtype(len(flat), sources[0].dtype)
    outputs = [rows.new(flat[0], (count, width), dtype) for _ in range(reads)]
    log_sums = rows.new(flat[0], (reads, count), torch.float32)
    if count == 0:
        return outputs, log_sums
    before: Tensor | None = None
    left, left_logits = flat, list(logits)
    for spec in phase_1_specs(len(flat), reads):
        part, left = left[: spec.sources], left[spec.sources :]
        part_logits, left_logits = left_logits[: spec.sources], left_logits[spec.sources :]
        kernel = launchable(phase_1_text(spec), candidates.phase_1(spec, width))
        after = log_sums if before is None else rows.new(flat[0], (reads, count), torch.float32)
        kernel[lambda numbers: (count, rows.cdiv(width, numbers["BLOCK_D"]))](
            *part,
            *part_logits,
            *outputs,
            *([] if before is None else [before]),
            after,
            count,
            width,
            *(source.stride(0) for source in part),
            *(of_source.stride(0) for of_source in part_logits),
        )
        before = after
    assert before is not None
    return outputs, before


def output_dtype(sources: int, dtype: torch.dtype) -> torch.dtype:
    """Dtype of phase 1's outputs: fp32 where further launches go on from them.

    Args:
        sources: completed blocks.
        dtype: of these.
    """
    return dtype if sources <= MOST_SOURCES else torch.float32
