"""Formulas that ``FlopCounterMode`` lacks, or has wrong, for operators of models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from attnres_compile.report.attention import PAIR, attention_backward_flops, attention_flops
from attnres_passes.torch_private.operators import grouped_product

Shape = Sequence[int]


def grouped_product_flops(first_shape: Shape, second_shape: Shape, *args: Any, **kwargs: Any) -> int:
    """Of ``grouped_product``, of a mixture of experts: each row of the first meets one matrix.

    Two matrices, where the groups cut the dimension that is summed over, or a stack of them on either side.
    """
    if len(first_shape) == 2:
        return PAIR * math.prod(first_shape) * second_shape[-1]
    return PAIR * math.prod(first_shape[-2:]) * second_shape[-1] * (first_shape[0] if len(second_shape) == 3 else 1)


def convolution_backward_flops(
    grad_shape: Shape,
    input_shape: Shape,
    weight_shape: Shape,
    bias_sizes: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    output_mask: Sequence[bool],
    **kwargs: Any,
) -> int:
    """As much as the forward for the gradient of the input, and as much for that of the weight.

    torch's own formula does not know of groups, and gives a depthwise convolution as many FLOPs as a dense one.
    """
    positions = (input_shape if transposed else grad_shape)[2:]
    forward = PAIR * grad_shape[0] * math.prod(positions) * math.prod(weight_shape)
    return forward * (bool(output_mask[0]) + bool(output_mask[1]))


FORMULAS = {
    torch.ops.attnres.counted_attention: attention_flops,
    torch.ops.attnres.counted_attention_backward: attention_backward_flops,
    grouped_product: grouped_product_flops,
    torch.ops.aten.convolution_backward: convolution_backward_flops,
}
"""For ``FlopCounterMode(custom_mapping=..)``."""

ATTENTION = (torch.ops.attnres.counted_attention, torch.ops.attnres.counted_attention_backward)
"""The operators whose FLOPs grow with the square of the number of tokens."""
