"""The schedules a read can be lowered to, and which one "auto" stands for.

- "naive": `naive_read`, the definition op by op; the form every other one is tested against.
- "direct": module `direct`, logits first, one weighted sum per read.
- "two_phase": module `two_phase`, phase 1 once per block and a merge per read.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from attnres_kernels.depth_attention.naive import depth_attention, key_vector

SCHEDULES = ("naive", "direct", "two_phase")


def naive_read(sources: Sequence[Tensor], query: Tensor, weight: Tensor, eps: float, scale: str) -> Tensor:
    """One read by the definition, in plain torch calls that a compiler traces through.

    Args:
        sources: `n` tensors `[*, d]`.
        query, weight: `[d]` pseudo-query and key-norm weight.
        eps: of the key norm.
        scale: "mean" or "sum".

    Returns:
        `[*, d]` in the dtype of the sources.
    """
    with torch.autocast(sources[0].device.type, enabled=False):
        return depth_attention(sources, key_vector(query, weight), eps, scale)


def automatic_schedule(block_size: int, num_sources: int) -> str:
    """The schedule "auto" stands for, chosen for a stream.

    Args:
        block_size: writes per block, `S`.
        num_sources: most sources any read of the stream has.

    Two-phase for all of them: a compiler builds one kernel for all its merges, where the other forms need one for each
    number of sources, forward and backward.
    """
    del block_size, num_sources
    return "two_phase"
