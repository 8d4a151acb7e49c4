"""Phase 1 and its backward as operators of in-place ATen calls; a compiler sees one opaque call for each.

A generated kernel would differ in its number of sources and reads, and so be compiled anew for every block; these run
the same code for any number. They work on tiles of tokens that stay in cache, and never stack the sources.
Gradients are not registered here: `two_phase` ties forward and backward together.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from attnres_kernels.operators.tiles import flatten, group_logits, inverse_rms, tiles


@torch.library.custom_op("attnres::inter_block", mutates_args=(), tags=(torch.Tag.flexible_layout,))
def inter_block_op(
    sources: Sequence[Tensor], logits: Sequence[Tensor], first: int, count: int, total: int
) -> tuple[list[Tensor], Tensor]:
    """Phase 1: `count` outputs `[rows, d]` over the completed blocks, and their log-sum-exps `[count, rows]`."""
    group = group_logits(logits, first, count, total)
    log_sums = group.logsumexp(0)
    weights = group.sub_(log_sums).exp_()
    flat = [flatten(source) for source in sources]
    outputs = [flat[0].new_empty(flat[0].shape, dtype=group.dtype) for _ in range(count)]
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


@inter_block_op.register_fake
def _(
    sources: Sequence[Tensor], logits: Sequence[Tensor], first: int, count: int, total: int
) -> tuple[list[Tensor], Tensor]:
    rows = math.prod(sources[0].shape[:-1])  # Size.numel would make a dynamic size static
    outputs = [logits[0].new_empty((rows, sources[0].shape[-1])) for _ in range(count)]
    return outputs, logits[0].new_empty((count, rows))


def inter_block_forward(
    sources: Sequence[Tensor], logits: Sequence[Tensor], first: int, count: int, total: int
) -> list[Tensor]:
    """Phase 1: `count` outputs `[*, d]` over the completed blocks, then their log-sum-exp `[*]`."""
    outputs, log_sums = inter_block_op(list(sources), list(logits), first, count, total)
    shape = sources[0].shape
    return [output.reshape(shape) for output in outputs] + [log_sums[read].reshape(shape[:-1]) for read in range(count)]


@torch.library.custom_op("attnres::inter_block_backward", mutates_args=(), tags=(torch.Tag.flexible_layout,))
def inter_block_backward_op(
    carried: Sequence[Tensor | None],
    grad_outputs: Sequence[Tensor | None],
    grad_lse: Sequence[Tensor | None],
    sources: Sequence[Tensor],
    logits: Sequence[Tensor],
    keys: Tensor,
    first: int,
    total: int,
    eps: float,
) -> list[Tensor]:
    """Gradients of phase 1: one per source, then that of `keys` `[count, d]`.

    `carried` holds what later blocks of reads contribute to the sources; it is added here.
    """
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


@inter_block_backward_op.register_fake
def _(
    carried: Sequence[Tensor | None],
    grad_outputs: Sequence[Tensor | None],
    grad_lse: Sequence[Tensor | None],
    sources: Sequence[Tensor],
    logits: Sequence[Tensor],
    keys: Tensor,
    first: int,
    total: int,
    eps: float,
) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in sources] + [keys.new_empty(keys.shape)]
