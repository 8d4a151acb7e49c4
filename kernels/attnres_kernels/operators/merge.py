"""Phase 2 on torch: forward in plain torch calls that a compiler fuses, backward as one operator on tiles of tokens."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from attnres_kernels.definition.read_parts import ReadForm
from attnres_kernels.operators.definition import OperatorDefinition, Work, any_layout, multiplied
from attnres_kernels.operators.tiles import flatten, group_logits, inverse_rms, tiles


def merge_forward(inter: Tensor, lse: Tensor, partial: Tensor, key: Tensor, factor: float, eps: float) -> Tensor:
    """Phase 2: the read `[*, d]` from phase 1's output and log-sum-exp and the open partial sum.

    Plain torch calls with the same code for every read, so that a compiler fuses them with the residual add before and
    the norm after, and compiles that kernel once.

    Args:
        inter, lse: phase 1's output `[*, d]` and log-sum-exp `[*]` of this read.
        partial: open partial sum `[*, d]`.
        key: effective key `[d]`.
        factor: of the result.
        eps: of the key norm.
    """
    value = partial.to(key.dtype)
    rms_inverse = torch.rsqrt(value.square().mean(-1) + eps)
    weight = torch.sigmoid((value * key).sum(-1) * rms_inverse - lse)
    merged = torch.lerp(inter, value, weight.unsqueeze(-1))
    return (merged if factor == 1.0 else merged * factor).to(partial.dtype)


def _merge_tile(value: Tensor, lse: Tensor, key: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Weight of the partial sum, its logit and its inverse RMS, each `[rows]`."""
    rms_inverse = inverse_rms(value, eps)
    logit = torch.mv(value, key).mul_(rms_inverse)
    return torch.sigmoid(logit - lse), logit, rms_inverse


class MergeBackward(NamedTuple):
    """Arguments of the backward of phase 2 on torch calls.

    grad: `[*, d]` of the result; sources, logits: those of phase 1; partial, key, form: of the read.
    """

    grad: Tensor
    sources: Sequence[Tensor]
    logits: Sequence[Tensor]
    partial: Tensor
    key: Tensor
    form: ReadForm


def _run_backward(call: MergeBackward) -> list[Tensor]:
    """Gradients of `inter`, `lse`, `partial` and `key`; `inter` is recomputed from `sources`."""
    grad, sources, logits, partial, key, (read, total, factor, eps) = call
    dtype = key.dtype
    group = group_logits(logits, read, 1, total)
    lse = group.logsumexp(0)
    block_weights = group.sub_(lse).exp_()
    flat_lse = lse[:, 0]
    flat = [flatten(source) for source in sources]
    flat_grad, flat_partial = flatten(grad), flatten(partial)
    width = flat_partial.shape[1]
    grad_inter = torch.empty_like(flat_partial, dtype=dtype, memory_format=torch.contiguous_format)
    grad_partial = torch.empty_like(flat_partial, memory_format=torch.contiguous_format)
    grad_lse = torch.empty_like(flat_lse)
    grad_key = torch.zeros_like(key)
    with torch.autocast(key.device.type, enabled=False):
        for tile in tiles(*flat_partial.shape):
            value = flat_partial[tile].to(dtype)
            scaled = flat_grad[tile].to(dtype)
            if factor != 1.0:
                scaled = scaled * factor
            weight, logit, rms_inverse = _merge_tile(value, flat_lse[tile], key, eps)
            difference = value.clone()
            for i, source in enumerate(flat):
                difference.addcmul_(block_weights[i, tile], source[tile].to(dtype), value=-1)
            grad_logit = difference.mul_(scaled).sum(-1).mul_(weight).mul_(1 - weight)
            torch.neg(grad_logit, out=grad_lse[tile])
            to_key = grad_logit * rms_inverse
            to_value = grad_logit.mul_(logit).mul_(rms_inverse.square_()).div_(width)
            from_output = scaled * weight.unsqueeze(-1)
            torch.sub(scaled, from_output, out=grad_inter[tile])
            from_output.addcmul_(to_key.unsqueeze(-1), key).addcmul_(to_value.unsqueeze(-1), value, value=-1)
            grad_partial[tile] = from_output
            grad_key.add_(torch.mv(value.t(), to_key))
    shape = partial.shape
    return [grad_inter.reshape(shape), grad_lse.reshape(shape[:-1]), grad_partial.reshape(shape), grad_key]


def _fake_backward(call: MergeBackward) -> list[Tensor]:
    key, shape = call.key, call.partial.shape
    made = [key.new_empty(shape), key.new_empty(shape[:-1]), call.partial.new_empty(shape)]
    return [*made, key.new_empty(key.shape)]


def _flops(call: MergeBackward) -> int:
    """Phase 1's output again, the partial sum's logit, and what a read's backward has."""
    return multiplied(len(call.sources) + 2 + 1 + 5, call.partial)


def _work(call: MergeBackward) -> Work:
    blocks = None if call.sources is None else len(call.sources)
    return Work(blocks, takes_in=["phase 1"] + ["partial sum"] * (call.partial is not None))


MERGE_BACKWARD = OperatorDefinition(
    "attnres::merge_backward",
    MergeBackward,
    list[Tensor],
    _run_backward,
    _fake_backward,
    flops=_flops,
    work=_work,
    make=any_layout,
)
