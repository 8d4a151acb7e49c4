"""The launches as operators of torch: named, with fake results, visible to a compiler as the kernels they launch.

No gradients are registered here: ``depth_attention.fused`` ties forward and backward together. All results are fresh
tensors; what an operator does not make of its possible results is left out of the list that it returns.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from attnres_kernels.launch import launch_phase_1, launch_read, launch_sources_backward, tensors
from attnres_kernels.launch.load_triton import triton_operator
from attnres_kernels.operators.tiles import flatten


def columns(logits: Sequence[Tensor], first: int, count: int, total: int) -> list[Tensor]:
    """Columns ``[rows, count]`` of the reads ``first ..``, of logits whose columns end at read ``total - 1``."""
    return [tensors.rows_of(x).narrow(1, x.shape[-1] - (total - first), count) for x in logits]


@triton_operator("attnres::generated_logits")
def logits_op(source: Tensor, keys: Tensor, first: int, eps: float) -> Tensor:
    """Logits ``[*, R - first]`` of ``source`` ``[*, d]`` for the reads ``first ..`` of ``keys`` ``[R, d]``."""
    logits = launch_phase_1.source_logits(source, keys[first:], eps)
    return logits.reshape(*source.shape[:-1], logits.shape[-1])


@logits_op.register_fake
def _(source: Tensor, keys: Tensor, first: int, eps: float) -> Tensor:
    return keys.new_empty((*source.shape[:-1], keys.shape[0] - first))


@triton_operator("attnres::generated_block")
def block_op(partial: Tensor, branch: Tensor, keys: Tensor, first: int, eps: float) -> tuple[Tensor, Tensor]:
    """The block ``partial + branch`` ``[*, d]`` and its logits."""
    block, logits = launch_phase_1.complete_block(partial, branch, keys[first:], eps)
    return block.reshape(partial.shape), logits.reshape(*partial.shape[:-1], logits.shape[-1])


@block_op.register_fake
def _(partial: Tensor, branch: Tensor, keys: Tensor, first: int, eps: float) -> tuple[Tensor, Tensor]:
    return partial.new_empty(partial.shape), keys.new_empty((*partial.shape[:-1], keys.shape[0] - first))


@triton_operator("attnres::generated_phase_1")
def phase_1_op(sources: Sequence[Tensor], logits: Sequence[Tensor], first: int, count: int, total: int) -> list[Tensor]:
    """``count`` outputs ``[*, d]`` and, last, their log-sum-exps ``[count, *]``."""
    outputs, log_sums = launch_phase_1.phase_1(sources, columns(logits, first, count, total))
    shape = sources[0].shape
    return [*(x.reshape(shape) for x in outputs), log_sums.reshape(count, *shape[:-1])]


@phase_1_op.register_fake
def _(sources: Sequence[Tensor], logits: Sequence[Tensor], first: int, count: int, total: int) -> list[Tensor]:
    shape = sources[0].shape
    dtype = launch_phase_1.output_dtype(len(sources), sources[0].dtype)
    outputs = [sources[0].new_empty(shape, dtype=dtype) for _ in range(count)]
    return [*outputs, sources[0].new_empty((count, *shape[:-1]), dtype=torch.float32)]


def _parts(
    inter: Tensor | None,
    log_sum: Tensor | None,
    sources: Sequence[Tensor],
    logits: Sequence[Tensor],
    partial: Tensor | None,
    key: Tensor | None,
    number: int,
    total: int,
) -> launch_read.Parts:
    of_read = [x.squeeze(1) for x in columns(logits, number, 1, total)]
    return launch_read.Parts(inter, log_sum, sources, of_read, partial, key)


@triton_operator("attnres::generated_read")
def read_op(
    inter: Tensor | None,
    log_sum: Tensor | None,
    sources: Sequence[Tensor],
    logits: Sequence[Tensor],
    partial: Tensor | None,
    key: Tensor | None,
    branch: Tensor | None,
    norm: str | None,
    norm_eps: float,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    returns_value: bool,
    number: int,
    total: int,
    factor: float,
    eps: float,
    dtype: torch.dtype,
) -> list[Tensor]:
    """The value, the normed value and the new partial sum ``[*, d]``, those that there are, and the statistics."""
    parts = _parts(inter, log_sum, sources, logits, partial, key, number, total)
    shape = parts.first().shape
    result = launch_read.read(
        parts, dtype, factor, eps, branch, launch_read.norm_of(norm, norm_eps, norm_weight, norm_bias), returns_value
    )
    return result.as_list(shape)


@read_op.register_fake
def _(
    inter: Tensor | None,
    log_sum: Tensor | None,
    sources: Sequence[Tensor],
    logits: Sequence[Tensor],
    partial: Tensor | None,
    key: Tensor | None,
    branch: Tensor | None,
    norm: str | None,
    norm_eps: float,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    returns_value: bool,
    number: int,
    total: int,
    factor: float,
    eps: float,
    dtype: torch.dtype,
) -> list[Tensor]:
    like = _parts(inter, log_sum, sources, logits, partial, key, number, total).first()
    count = (norm is None or returns_value) + (norm is not None) + (branch is not None)
    made = [like.new_empty(like.shape, dtype=dtype) for _ in range(count)]
    return [*made, like.new_empty((flatten(like).shape[0], 5), dtype=torch.float32)]


@triton_operator("attnres::generated_read_backward")
def read_backward_op(
    value_grad: Tensor | None,
    normed_grad: Tensor | None,
    partial_grad: Tensor | None,
    statistics: Tensor,
    inter: Tensor | None,
    log_sum: Tensor | None,
    sources: Sequence[Tensor],
    logits: Sequence[Tensor],
    partial: Tensor | None,
    key: Tensor | None,
    adds: bool,
    norm: str | None,
    norm_eps: float,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    returns_value: bool,
    number: int,
    total: int,
    factor: float,
    dtype: torch.dtype,
) -> list[Tensor]:
    """``h`` ``[*, d]`` and its scalars ``[2, rows]``; then gradients, those there are: of the partial sum ``[*, d]``,
    and of its key, the norm's weight and its bias ``[d]`` in fp32.
    """
    parts = _parts(inter, log_sum, sources, logits, partial, key, number, total)
    shape = parts.first().shape
    found = launch_read.read_backward(
        parts,
        statistics.contiguous(),
        dtype,
        factor,
        value_grad,
        normed_grad,
        partial_grad,
        adds,
        launch_read.norm_of(norm, norm_eps, norm_weight, norm_bias),
        returns_value,
    )
    of_partial = [] if found.partial is None else [found.partial.reshape(shape)]
    vectors = [x for x in (found.key, found.norm_weight, found.norm_bias) if x is not None]
    return [found.read.reshape(shape), found.scalars, *of_partial, *vectors]


@read_backward_op.register_fake
def _(
    value_grad: Tensor | None,
    normed_grad: Tensor | None,
    partial_grad: Tensor | None,
    statistics: Tensor,
    inter: Tensor | None,
    log_sum: Tensor | None,
    sources: Sequence[Tensor],
    logits: Sequence[Tensor],
    partial: Tensor | None,
    key: Tensor | None,
    adds: bool,
    norm: str | None,
    norm_eps: float,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    returns_value: bool,
    number: int,
    total: int,
    factor: float,
    dtype: torch.dtype,
) -> list[Tensor]:
    like = _parts(inter, log_sum, sources, logits, partial, key, number, total).first()
    wide = [like.new_empty(like.shape, dtype=dtype) for _ in range(1 + (partial is not None))]
    has_norm = norm is not None and normed_grad is not None
    vectors = (partial is not None) + (has_norm and norm_weight is not None) + (has_norm and norm_bias is not None)
    scalars = like.new_empty((2, flatten(like).shape[0]), dtype=torch.float32)
    return [
        wide[0],
        scalars,
        *wide[1:],
        *(like.new_empty((like.shape[-1],), dtype=torch.float32) for _ in range(vectors)),
    ]


@triton_operator("attnres::generated_sources_backward")
def sources_backward_op(
    read_grads: Sequence[Tensor | None],
    scalars: Sequence[Tensor | None],
    carried: Sequence[Tensor | None],
    sources: Sequence[Tensor],
    logits: Sequence[Tensor],
    keys: Tensor,
    first: int,
    total: int,
    eps: float,
) -> list[Tensor]:
    """Gradients of the sources ``[*, d]``, then that of the keys ``[S, d]`` in fp32."""
    of_reads = columns(logits, first, keys.shape[0], total)
    grads, key_grads = launch_sources_backward.sources_backward(
        sources, of_reads, keys, read_grads, scalars, carried, eps
    )
    return [*(grad.reshape(sources[0].shape) for grad in grads), key_grads]


@sources_backward_op.register_fake
def _(
    read_grads: Sequence[Tensor | None],
    scalars: Sequence[Tensor | None],
    carried: Sequence[Tensor | None],
    sources: Sequence[Tensor],
    logits: Sequence[Tensor],
    keys: Tensor,
    first: int,
    total: int,
    eps: float,
) -> list[Tensor]:
    return [*(x.new_empty(x.shape) for x in sources), keys.new_empty(keys.shape)]
