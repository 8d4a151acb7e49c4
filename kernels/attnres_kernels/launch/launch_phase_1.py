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
from attnres_kernels.launch import candidates, tensors
from attnres_kernels.launch.load_triton import launchable


def source_logits(source: Tensor, keys: Tensor, eps: float) -> Tensor:
    """Logits ``[rows, R]`` in fp32 of ``source`` ``[*, d]`` for the effective keys ``[R, d]`` in fp32."""
    tensors.check(source)
    flat = tensors.rows_of(source)
    logits = tensors.new(flat, (flat.shape[0], keys.shape[0]), torch.float32)
    if flat.shape[0] > 0:
        _logits(flat, None, None, keys, logits, eps)
    return logits


def complete_block(partial: Tensor, branch: Tensor, keys: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The block ``partial + branch`` ``[rows, d]`` and its logits, in one pass over both."""
    tensors.check(partial, branch)
    flat, added = tensors.rows_of(partial), tensors.rows_of(branch)
    block = tensors.new(flat, (flat.shape[0], flat.shape[1]), partial.dtype)
    logits = tensors.new(flat, (flat.shape[0], keys.shape[0]), torch.float32)
    if flat.shape[0] > 0:
        _logits(block, flat, added, keys, logits, eps)
    return block, logits


def _logits(
    source: Tensor, partial: Tensor | None, branch: Tensor | None, keys: Tensor, logits: Tensor, eps: float
) -> None:
    rows, width = source.shape
    reads = keys.shape[0]
    given = [x for x in (partial, branch) if x is not None]
    # Triton's interpreter, which is what runs on the CPU, multiplies no matrices of bf16.
    splits_keys = source.dtype == torch.bfloat16 and source.device.type != "cpu"
    kernel = launchable(logits_text(LogitsSpec(splits_keys, adds=bool(given))), candidates.logits(reads))
    kernel[lambda numbers: (tensors.cdiv(rows, numbers["BLOCK_T"]), tensors.cdiv(reads, numbers["BLOCK_R"]))](
        *given,
        source,
        keys.contiguous(),
        logits,
        rows,
        width,
        reads,
        *(x.stride(0) for x in given or [source]),
        eps=eps,
    )


def phase_1(sources: Sequence[Tensor], logits: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Outputs of a group's reads over the blocks complete before it, and their log-sum-exps.

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
    dtype = output_dtype(len(flat), sources[0].dtype)
    outputs = [tensors.new(flat[0], (rows, width), dtype) for _ in range(reads)]
    log_sums = tensors.new(flat[0], (reads, rows), torch.float32)
    if rows == 0:
        return outputs, log_sums
    before: Tensor | None = None
    for first in range(0, len(flat), MOST_SOURCES):
        part, part_logits = flat[first : first + MOST_SOURCES], logits[first : first + MOST_SOURCES]
        spec = Phase1Spec(len(part), reads, continues=first > 0)
        kernel = launchable(phase_1_text(spec), candidates.phase_1(spec, width))
        after = log_sums if before is None else tensors.new(flat[0], (reads, rows), torch.float32)
        kernel[lambda numbers: (rows, tensors.cdiv(width, numbers["BLOCK_D"]))](
            *part,
            *part_logits,
            *outputs,
            *([] if before is None else [before]),
            after,
            rows,
            width,
            *(source.stride(0) for source in part),
            *(of_source.stride(0) for of_source in part_logits),
        )
        before = after
    assert before is not None
    return outputs, before


def output_dtype(sources: int, dtype: torch.dtype) -> torch.dtype:
    """Dtype of phase 1's outputs: fp32 where further launches go on from them."""
    return dtype if sources <= MOST_SOURCES else torch.float32
