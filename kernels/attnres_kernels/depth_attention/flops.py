"""FLOPs of the operator, for ``torch.utils.flop_counter``.

A module of its own, since that counter imports Triton where it is installed; import it where FLOPs are counted.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

import attnres_kernels.depth_attention.op  # noqa: F401  (defines the operator)


@register_flop_formula(torch.ops.attnres.depth_attention)
def depth_attention_flops(
    sources_shape: Sequence[Sequence[int]], key_vector_shape: Sequence[int], *args: Any, **kwargs: Any
) -> int:
    """FLOPs of one read: square sum, dot product and weighted sum, each two per element and source."""
    elements = 1
    for size in sources_shape[0]:
        elements *= size
    return 6 * len(sources_shape) * elements
