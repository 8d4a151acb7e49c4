"""Phase 1 and its backward: operators of in-place ATen calls, and the generated kernel.

On torch a compiler sees one opaque call for each. A kernel that it generates would differ in its number of sources and
reads, and so be compiled anew for every block; these run the same code for any number. They work on tiles of tokens
that stay in cache, and never stack the sources.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from attnres_kernels.definition import scheduled
from attnres_kernels.launch import launch_phase_1
from attnres_kernels.launch.rows import rows_of
from attnres_kernels.operators.definition import OperatorDefinition, Work, any_layout, multiplied
from attnres_kernels.operators.tiles import flatten, group_logits, inverse_rms, tiles


class Phase1(NamedTuple):
    """The arguments of `scheduled.inter_block`."""

    sources: Sequence[Tensor]
    logits: Sequence[Tensor]
    first: int
    count: int  # type: ignore[assignment]  # in place of the method of tuples
    total: int


def _flops(call: Phase1) -> int:
    """A weighted sum of all sources for every read."""
    return multiplied(len(call.sources) * call.count, call.sources[0])


def _work(call: Phase1) -> Work:
    return Work(len(call.sources), call.count)


def _run_on_torch(call: Phase1) -> tuple[list[Tensor], Tensor]:
    """Phase 1: `count` outputs `[rows, d]` over the completed blocks, and their log-sum-exps `[count, rows]`."""
    group = group_logits(call.logits, call.first, call.count, call.total)
    log_sums = group.logsumexp(0)
    weights = group.sub_(log_sums).exp_()
    flat = [flatten(source) for source in call.sources]
    outputs = [flat[0].new_empty(flat[0].shape, dtype=group.dtype) for _ in range(call.count)]
    for tile in tiles(*flat[0].shape):
        parts = [output[tile] for output in outputs]
        # One column [rows, 1] per source and read, cut out here and not in the inner loop.
        columns = [torch.split(of_source, 1, dim=1) for of_source in weights[:, tile].unbind(0)]
        for i, source in enumerate(flat):
            value = source[tile].to(group.dtype)
            for part, column in zip(parts, columns[i], strict=True):
                if i == 0:
                    torch.mul(value, column, out=part)
                else:
                    part.addcmul_(value, column)
    return outputs, log_sums.t().contiguous()


def _fake_on_torch(call: Phase1) -> tuple[list[Tensor], Tensor]:
    sources, logits = call.sources, call.logits[0]
    rows = math.prod(sources[0].shape[:-1])  # Size.numel would make a dynamic size static
    outputs = [logits.new_empty((rows, sources[0].shape[-1])) for _ in range(call.count)]
    return outputs, logits.new_empty((call.count, rows))


INTER_BLOCK = OperatorDefinition(
    "attnres::inter_block",
    Phase1,
    tuple[list[Tensor], Tensor],
    _run_on_torch,
    _fake_on_torch,
    flops=_flops,
    work=_work,
    make=any_layout,
)


class Phase1Backward(NamedTuple):
    """Arguments of the backward of phase 1.

    carried: what later blocks of reads contribute to the sources, which is added; grad_outputs, grad_lse: of phase
    1's results; keys: `[count, d]` of its reads; the others as it was given them.
    """

    carried: Sequence[Tensor | None]
    grad_outputs: Sequence[Tensor | None]
    grad_lse: Sequence[Tensor | None]
    sources: Sequence[Tensor]
    logits: Sequence[Tensor]
    keys: Tensor
    first: int
    total: int
    eps: float


def _run_backward(call: Phase1Backward) -> list[Tensor]:
    """Gradients of phase 1: one per source, then that of `keys` `[count, d]`."""
    carried, grad_outputs, grad_lse, sources, logits, keys, first, total, eps = call
    count, dtype = keys.shape[0], keys.dtype
    group = group_logits(logits, first, count, total)
    weights = (group - group.logsumexp(0)).exp_()
    flat = [flatten(source) for source in sources]
    width = flat[0].shape[1]
    added = [None if x is None else flatten(x) for x in carried]
    incoming = [(s, flatten(x)) for s, x in enumerate(grad_outputs) if x is not None]
    results = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in flat]
    grad_keys = torch.zeros_like(keys)
    with torch.autocast(keys.device.type, enabled=False):
        for tile in tiles(*flat[0].shape):
            grads = [(s, x[tile].to(dtype)) for s, x in incoming]
            weight = weights[:, tile]
            projected = torch.zeros_like(weight)
            for i, source in enumerate(flat):
                value = source[tile].to(dtype)
                for s, grad in grads:
                    torch.sum(grad * value, -1, out=projected[i, :, s])
            to_lse = -(weight * projected).sum(0)
            for s, x in enumerate(grad_lse):
                if x is not None:
                    to_lse[:, s].add_(x.reshape(-1)[tile])
            grad_logits = weight * projected.add_(to_lse)
            for i, source in enumerate(flat):
                value = source[tile].to(dtype)
                rms_inverse = inverse_rms(value, eps).unsqueeze_(-1)
                to_key = grad_logits[i] * rms_inverse
                to_value = (grad_logits[i] * group[i, tile]).sum(-1, keepdim=True)
                to_value.mul_(rms_inverse.square_()).div_(width)
                carry = added[i]
                result = to_key @ keys if carry is None else torch.addmm(carry[tile].to(dtype), to_key, keys)
                result.addcmul_(to_value, value, value=-1)
                for s, grad in grads:
                    result.addcmul_(weight[i, :, s : s + 1], grad)
                results[i][tile] = result
                grad_keys.addmm_(to_key.t(), value)
    return [x.reshape(sources[0].shape) for x in results] + [grad_keys]


def _backward_flops(call: Phase1Backward) -> int:
    """As many as the sources' backward of the generated kernels has, but the keys' terms are made for all reads."""
    given = sum(grad is not None for grad in call.grad_outputs)
    return multiplied(len(call.sources) * (2 + 2 * given + 2 * call.keys.shape[0]), call.sources[0])


INTER_BLOCK_BACKWARD = OperatorDefinition(
    "attnres::inter_block_backward",
    Phase1Backward,
    list[Tensor],
    _run_backward,
    lambda call: [x.new_empty(x.shape) for x in (*call.sources, call.keys)],
    flops=_backward_flops,
    make=any_layout,
)


def columns(logits: Sequence[Tensor], first: int, count: int, total: int) -> list[Tensor]:
    """Columns `[rows, count]` of some reads, of logits whose columns end at read `total - 1`.

    Args:
        logits: of each source, `[*, n]`.
        first, count: number of the first read, and of reads.
        total: number of all reads.
    """
    return [rows_of(x).narrow(1, x.shape[-1] - (total - first), count) for x in logits]


def _run(call: Phase1) -> list[Tensor]:
    """`count` outputs `[*, d]` and, last, their log-sum-exps `[count, *]`."""
    of_reads = columns(call.logits, call.first, call.count, call.total)
    outputs, log_sums = launch_phase_1.phase_1(call.sources, of_reads)
    shape = call.sources[0].shape
    return [*(x.reshape(shape) for x in outputs), log_sums.reshape(call.count, *shape[:-1])]


def _fake(call: Phase1) -> list[Tensor]:
    like = call.sources[0]
    dtype = launch_phase_1.output_dtype(len(call.sources), like.dtype)
    outputs = [like.new_empty(like.shape, dtype=dtype) for _ in range(call.count)]
    return [*outputs, like.new_empty((call.count, *like.shape[:-1]), dtype=torch.float32)]


GENERATED_PHASE_1 = OperatorDefinition(
    "attnres::generated_phase_1",
    Phase1,
    list[Tensor],
    _run,
    _fake,
    kernels=lambda call: launch_phase_1.phase_1_specs(len(call.sources), call.count),
    flops=_flops,
    work=_work,
    computes=(scheduled.inter_block,),
)
