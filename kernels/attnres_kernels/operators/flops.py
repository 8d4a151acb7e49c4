"""FLOPs of the operators, for ``torch.utils.flop_counter``: two per multiplication and addition.

Each counts its products of vectors and weighted sums over the width. Residual adds and norms that a kernel has fused in
are left out, as that counter leaves them out of every model. Import this module where FLOPs are counted: the counter
imports Triton where it is installed.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from attnres_kernels.operators import (  # noqa: F401  (these define the operators)
    inter_ops,
    key_ops,
    merge_ops,
    op,
    operators,
    own_operators,
)

Shape = Sequence[int]
Shapes = Sequence[Shape]
PAIR = 2
"""A multiplication and an addition."""


@register_flop_formula(torch.ops.attnres.depth_attention)
def depth_attention_flops(sources_shape: Shapes, key_vector_shape: Shape, *args: Any, **kwargs: Any) -> int:
    """Square sum, dot product and weighted sum of every source."""
    return 3 * PAIR * len(sources_shape) * math.prod(sources_shape[0])


@register_flop_formula([torch.ops.attnres.source_logits, torch.ops.attnres.generated_logits])
def logits_flops(source_shape: Shape, keys_shape: Shape, first: int, *args: Any, **kwargs: Any) -> int:
    """Square sum, and the dot product with every later read's key."""
    return PAIR * (keys_shape[0] - first + 1) * math.prod(source_shape)


@register_flop_formula(torch.ops.attnres.generated_block)
def block_flops(
    partial_shape: Shape, branch_shape: Shape, keys_shape: Shape, first: int, *args: Any, **kwargs: Any
) -> int:
    """As the logits of the block."""
    return logits_flops(partial_shape, keys_shape, first)


@register_flop_formula([torch.ops.attnres.inter_block, torch.ops.attnres.generated_phase_1])
def phase_1_flops(
    sources_shape: Shapes, logits_shape: Shapes, first: int, count: int, *args: Any, **kwargs: Any
) -> int:
    """A weighted sum of all sources for every read."""
    return PAIR * len(sources_shape) * count * math.prod(sources_shape[0])


@register_flop_formula(torch.ops.attnres.generated_read)
def read_flops(
    inter_shape: Shape | None,
    log_sum_shape: Shape | None,
    sources_shape: Shapes,
    logits_shape: Shapes,
    partial_shape: Shape | None,
    *args: Any,
    **kwargs: Any,
) -> int:
    """The weighted sum of all parts, and square sum and dot product of the partial sum."""
    parts, elements = _parts(inter_shape, sources_shape, partial_shape)
    return PAIR * (parts + (2 if partial_shape is not None else 0)) * elements


@register_flop_formula(torch.ops.attnres.generated_read_backward)
def read_backward_flops(
    value_grad_shape: Shape | None,
    normed_grad_shape: Shape | None,
    partial_grad_shape: Shape | None,
    statistics_shape: Shape,
    inter_shape: Shape | None,
    log_sum_shape: Shape | None,
    sources_shape: Shapes,
    logits_shape: Shapes,
    partial_shape: Shape | None,
    *args: Any,
    **kwargs: Any,
) -> int:
    """The weighted sum again, and times its gradient; of the partial sum a product, three terms and the key's."""
    parts, elements = _parts(inter_shape, sources_shape, partial_shape)
    return PAIR * (parts + 1 + (5 if partial_shape is not None else 0)) * elements


@register_flop_formula(torch.ops.attnres.generated_own_read)
def own_read_flops(sources_shape: Shapes, partial_shape: Shape | None, *args: Any, **kwargs: Any) -> int:
    """Square sum, dot product and weighted sum of every source, as the definition."""
    parts, elements = _parts(None, sources_shape, partial_shape)
    return 3 * PAIR * parts * elements


@register_flop_formula(torch.ops.attnres.generated_own_read_backward)
def own_read_backward_flops(
    value_grad_shape: Shape | None,
    normed_grad_shape: Shape | None,
    partial_grad_shape: Shape | None,
    statistics_shape: Shape,
    sources_shape: Shapes,
    partial_shape: Shape | None,
    *args: Any,
    **kwargs: Any,
) -> int:
    """Of every source a product, three terms and the key's; through a norm the weighted sum again."""
    parts, elements = _parts(None, sources_shape, partial_shape)
    return PAIR * parts * (5 + (normed_grad_shape is not None)) * elements


@register_flop_formula(torch.ops.attnres.generated_sources_backward)
def sources_backward_flops(
    read_grads_shape: Sequence[Shape | None],
    scalars_shape: Sequence[Shape | None],
    carried_shape: Sequence[Shape | None],
    sources_shape: Shapes,
    *args: Any,
    **kwargs: Any,
) -> int:
    """Of every source a square sum and its own term, and per read a product, two terms and the key's."""
    reads = sum(shape is not None for shape in read_grads_shape)
    return PAIR * len(sources_shape) * (2 + 4 * reads) * math.prod(sources_shape[0])


@register_flop_formula(torch.ops.attnres.inter_block_backward)
def inter_block_backward_flops(
    carried_shape: Sequence[Shape | None],
    grad_outputs_shape: Sequence[Shape | None],
    grad_lse_shape: Sequence[Shape | None],
    sources_shape: Shapes,
    logits_shape: Shapes,
    keys_shape: Shape,
    *args: Any,
    **kwargs: Any,
) -> int:
    """As the sources' backward of the generated kernels; the keys' terms are made for all reads."""
    given = sum(shape is not None for shape in grad_outputs_shape)
    return PAIR * len(sources_shape) * (2 + 2 * given + 2 * keys_shape[0]) * math.prod(sources_shape[0])


@register_flop_formula(torch.ops.attnres.merge_backward)
def merge_backward_flops(
    grad_shape: Shape, sources_shape: Shapes, logits_shape: Shapes, partial_shape: Shape, *args: Any, **kwargs: Any
) -> int:
    """Phase 1's output again, the partial sum's logit, and as a read's backward."""
    return PAIR * (len(sources_shape) + 2 + 1 + 5) * math.prod(partial_shape)


def _parts(inter_shape: Shape | None, sources_shape: Shapes, partial_shape: Shape | None) -> tuple[int, int]:
    """How many parts a read has, and the elements of one."""
    shapes = [shape for shape in (inter_shape, *sources_shape, partial_shape) if shape is not None]
    return len(shapes), math.prod(shapes[0])
