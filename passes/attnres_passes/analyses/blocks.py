"""Analysis: partition of the writes of a stream into blocks (paper equations 5 and 6)."""

from __future__ import annotations

import math

from attnres_passes.ir.config import AttnResConfig


def block_size_for(writes: int, config: AttnResConfig) -> int:
    """Writes per block; ``num_blocks = N`` asks for ``ceil(W / N)``, so more blocks than writes get one write each."""
    if config.block_size is not None:
        return min(config.block_size, writes)
    assert config.num_blocks is not None, "AttnResConfig sets one of the two"
    return math.ceil(writes / config.num_blocks)


def num_blocks_for(writes: int, block_size: int) -> int:
    """Number of blocks; the last one may be short."""
    return math.ceil(writes / block_size)


def block_of_write(index: int, block_size: int) -> int:
    """Block of the write with this index, both from 1: block 0 is the root."""
    return (index - 1) // block_size + 1


def block_of_read(state: int, block_size: int, num_blocks: int) -> int | None:
    """The block that is open, or about to open, at ``s_state``; None where the last one has been completed."""
    block = state // block_size + 1
    return block if block <= num_blocks else None


def sources_of_read(state: int, block_size: int) -> int:
    """Root and completed blocks, and the open partial sum unless a block has just been completed."""
    return 1 + math.ceil(state / block_size)
