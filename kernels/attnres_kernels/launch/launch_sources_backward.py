"""The backward of several reads into completed blocks, from tensors to tensors; shapes as in ``launch_phase_1``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attnres_kernels.generation.sources_backward import gradients_text, keys_text
from attnres_kernels.generation.specs import SourcesBackwardSpec
from attnres_kernels.launch import candidates, rows, tiling
from attnres_kernels.launch.load_triton import launchable
from attnres_kernels.launch.split_sources_backward import split_into_launches


def sources_backward(
    sources: Sequence[Tensor],
    logits: Sequence[Tensor],
    keys: Tensor,
    read_grads: Sequence[Tensor | None],
    scalars: Sequence[Tensor | None],
    carried: Sequence[Tensor | None],
    eps: float,
) -> tuple[list[Tensor], Tensor]:
    """Gradients of the sources and of the keys.

    Args:
        sources: ``n`` tensors ``[*, d]``.
        logits: ``n`` tensors ``[rows, S]`` in fp32, one column per read.
        keys: ``[S, d]`` in fp32.
        read_grads, scalars: per read what ``read_backward`` gave, or None for both.
        carried: per source a gradient ``[*, d]`` from later reads, which is added, or None.
        eps: of the key norm.

    Returns:
        Per source its gradient ``[rows, d]`` in its dtype, and that of the keys ``[S, d]`` in fp32.
    """
    rows.check(*sources)
    flat = [rows.rows_of(source) for source in sources]
    results = [None if grad is None else rows.rows_of(grad) for grad in carried]
    key_grads: list[Tensor | None] = [None] * keys.shape[0]
    given = [s for s, grad in enumerate(read_grads) if grad is not None]
    if not given or flat[0].shape[0] == 0:
        results = [None if grad is None else grad.clone() for grad in results]
        given = []
    grads = [rows.rows_of(grad) for s in given if (grad := read_grads[s]) is not None]
    of_reads = [x.reshape(2, -1).contiguous() for s in given if (x := scalars[s]) is not None]
    later = tuple(i for i, grad in enumerate(results) if grad is not None)
    for launch in split_into_launches(len(flat), tuple(given), later, flat[0].shape[1]):
        spec = launch.spec
        part = slice(launch.first_source, launch.first_source + spec.sources)
        of_part = slice(launch.first_read, launch.first_read + len(spec.reads))
        results[part], sums = _launch(
            spec, flat[part], logits[part], keys, grads[of_part], of_reads[of_part], results[part], eps
        )
        for s, of_read in zip(spec.reads, sums.unbind(0), strict=True):
            before = key_grads[s]
            key_grads[s] = of_read if before is None else before + of_read
    # One by one: a list of reads as an index would be a tensor of the host, which a launch waits for.
    of_keys = [key.new_zeros(key.shape) if x is None else x for key, x in zip(keys, key_grads, strict=True)]
    source_grads = [torch.zeros_like(x) if grad is None else grad for x, grad in zip(flat, results, strict=True)]
    return source_grads, torch.stack(of_keys)


def _launch(
    spec: SourcesBackwardSpec,
    flat: list[Tensor],
    logits: Sequence[Tensor],
    keys: Tensor,
    grads: list[Tensor],
    scalars: list[Tensor],
    carried: list[Tensor | None],
    eps: float,
) -> tuple[list[Tensor | None], Tensor]:
    count, width = flat[0].shape
    later = [grad for grad in carried if grad is not None]
    programs, rows_per_program = rows.shares(flat[0], 1) if spec.sums_keys else (count, 1)
    weights, to_keys = (rows.new(flat[0], (programs, len(flat), len(grads)), torch.float32) for _ in range(2))
    to_selves = rows.new(flat[0], (programs, len(flat)), torch.float32)
    source_grads: list[Tensor | None] = [rows.new(x, (count, width), x.dtype) for x in flat]
    key_grads = [rows.new(flat[0], (programs, len(grads), width), torch.float32)] if spec.sums_keys else []
    launchable(gradients_text(spec), candidates.gradients(spec, width))[(programs,)](
        *flat,
        *logits,
        *grads,
        *scalars,
        *later,
        keys.contiguous(),
        *source_grads,
        weights,
        to_keys,
        to_selves,
        *key_grads,
        count,
        width,
        *([rows_per_program] if spec.sums_keys else []),
        0,
        *(source.stride(0) for source in flat),
        *(of_source.stride(0) for of_source in logits),
        *(grad.stride(0) for grad in grads),
        *(grad.stride(0) for grad in later),
        eps=eps,
    )
    return source_grads, (key_grads[0] if key_grads else _key_grads(spec, flat, to_keys)).sum(0)


def _key_grads(spec: SourcesBackwardSpec, flat: list[Tensor], to_keys: Tensor) -> Tensor:
    count, width = flat[0].shape
    programs, rows_per_program = rows.shares(flat[0], rows.cdiv(width, tiling.along_width(width).columns))
    key_grads = rows.new(flat[0], (programs, len(spec.reads), width), torch.float32)
    kernel = launchable(keys_text(spec), candidates.keys(width))
    kernel[lambda numbers: (programs, rows.cdiv(width, numbers["BLOCK_D"]))](
        *flat,
        to_keys,
        key_grads,
        count,
        width,
        rows_per_program,
        0,
        *(source.stride(0) for source in flat),
    )
    return key_grads
