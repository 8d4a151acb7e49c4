"""Formulas that ``FlopCounterMode`` lacks, or has wrong, for operators of models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from attnres_compile.report.counting import attention as _attention  # noqa: F401  (registers its operators)
from attnres_passes.torch_private.operators import grouped_product

Shape = Sequence[int]
_PAIR = 2
"""A multiplication and an addition."""


def _attention_flops(query_shape: Shape, key_shape: Shape, value_shape: Shape, *args: Any, **kwargs: Any) -> int:
    """Two matrix products over all pairs of a query and a key, also where a mask hides some."""
    return _PAIR * math.prod(query_shape[:-1]) * key_shape[-2] * (query_shape[-1] + value_shape[-1])


def _attention_backward_flops(
    grad_shape: Shape, query_shape: Shape, key_shape: Shape, value_shape: Shape, *args: Any, **kwargs: Any
) -> int:
    """The scores again, and the gradients of queries, keys, values and scores."""
    return _PAIR * math.prod(query_shape[:-1]) * key_shape[-2] * (3 * query_shape[-1] + 2 * value_shape[-1])


def _grouped_product_flops(first_shape: Shape, second_shape: Shape, *args: Any, **kwargs: Any) -> int:
    """FLOPs of ``grouped_product`` in a mixture of experts: each row of the first input meets one matrix.

    Two matrices, where the groups cut the dimension that is summed over, or a stack of them on either side.
    """
    if len(first_shape) == 2:
        return _PAIR * math.prod(first_shape) * second_shape[-1]
    return _PAIR * math.prod(first_shape[-2:]) * second_shape[-1] * (first_shape[0] if len(second_shape) == 3 else 1)


def _convolution_backward_flops(
    grad_shape: Shape, input_shape: Shape, weight_shape: Shape, *args: Any, **kwargs: Any
) -> int:
    """As much as the forward for the gradient of the input, and as much for that of the weight.

    torch's own formula does not know of groups, and gives a depthwise convolution as many FLOPs as a dense one.
    """
    _bias, _stride, _padding, _dilation, transposed, _output_padding, _groups, output_mask = args
    positions = (input_shape if transposed else grad_shape)[2:]
    forward = _PAIR * grad_shape[0] * math.prod(positions) * math.prod(weight_shape)
    return forward * (bool(output_mask[0]) + bool(output_mask[1]))


FORMULAS = {
    torch.ops.attnres.counted_attention: _attention_flops,
    torch.ops.attnres.counted_attention_backward: _attention_backward_flops,
    grouped_product: _grouped_product_flops,
    torch.ops.aten.convolution_backward: _convolution_backward_flops,
}
"""For ``FlopCounterMode(custom_mapping=..)``."""

ATTENTION = (torch.ops.attnres.counted_attention, torch.ops.attnres.counted_attention_backward)
"""The operators whose FLOPs grow with the square of the number of tokens."""
