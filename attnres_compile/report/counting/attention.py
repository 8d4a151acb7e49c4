"""Attention as one operator that has shapes, formulas and no computation: what stands for it where nothing is computed.

On tensors without data, torch takes ``scaled_dot_product_attention`` apart into matrix products, and autograd would
keep the scores of every pair of tokens. A model on a GPU runs a fused kernel instead, so here it is one operator that
keeps what FlashAttention keeps (queries, keys, values, output, one number per query), with the FLOPs that torch's
counter gives such a kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("attnres::counted_attention", mutates_args=())
def _counted(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Output ``[.., heads, queries, v]`` and log-sum-exps ``[.., heads, queries]``."""
    raise NotImplementedError("attnres::counted_attention counts, it does not compute: give it tensors on meta")


@_counted.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    output = query.new_empty((*query.shape[:-1], value.shape[-1]))
    return output, query.new_empty(query.shape[:-1], dtype=torch.float32)


@torch.library.custom_op("attnres::counted_attention_backward", mutates_args=())
def _counted_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, output: Tensor, log_sum: Tensor
) -> list[Tensor]:
    """Gradients of query, key, value and, if there is one, the mask."""
    raise NotImplementedError("attnres::counted_attention counts, it does not compute: give it tensors on meta")


@_counted_backward.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, output: Tensor, log_sum: Tensor
) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in (query, key, value, *([] if mask is None else [mask]))]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, mask, output, log_sum = ctx.saved_tensors
    grads = list(_counted_backward(grad, query, key, value, mask, output, log_sum))
    to_mask = grads[3] if mask is not None and mask.is_floating_point() else None
    return grads[0], grads[1], grads[2], to_mask


_counted.register_autograd(_backward, setup_context=_setup_context)


def attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
    """Stands for ``torch.nn.functional.scaled_dot_product_attention`` where nothing is computed.

    Args:
        query: ``[.., heads, queries, d]``.
        key: ``[.., heads, keys, d]``.
        value: ``[.., heads, keys, v]``.
        attn_mask: what autograd would keep of it counts; dropout and scale change no count.
    """
    output: Tensor = _counted(query, key, value, attn_mask)[0]
    return output
