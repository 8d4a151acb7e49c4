"""How the two-phase operators walk over tokens: tiles of rows, flattened views, row statistics."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# Bytes of one fp32 source in a tile: the few tiles live at once stay together in the last-level cache.
TILE_BYTES = 1 << 21


def tiles(rows: int, width: int) -> Iterator[slice]:
    """Slices that cover all rows, each about `TILE_BYTES` in fp32.

    Args:
        rows: how many there are.
        width: of a row.
    """
    step = max(16, TILE_BYTES // (4 * max(width, 1)))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def flatten(tensor: Tensor) -> Tensor:
    """`[*, d]` as `[rows, d]`; well defined for empty tensors too."""
    return tensor.reshape(tensor.shape[:-1].numel(), tensor.shape[-1])


def inverse_rms(value: Tensor, eps: float) -> Tensor:
    """`rsqrt(mean(v^2) + eps)` of each row, as `[rows]`.

    Args:
        value: `[rows, d]`.
        eps: of the key norm.
    """
    norm: Tensor = torch.linalg.vector_norm(value, dim=-1)
    return norm.square_().div_(value.shape[-1]).add_(eps).rsqrt_()


def group_logits(logits: Sequence[Tensor], first: int, count: int, total: int) -> Tensor:
    """Logits `[n, rows, count]` of some reads, of `n` sources.

    Args:
        logits: per source; the columns end at read `total - 1` and start at the first read that sees the source.
        first, count: number of the first read, and of reads.
        total: number of all reads.
    """
    return torch.stack([flatten(x).narrow(1, x.shape[-1] - (total - first), count) for x in logits])
