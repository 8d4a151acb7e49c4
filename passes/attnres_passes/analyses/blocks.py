"""Analysis: partition of the writes of a stream into blocks (paper equations 5 and 6)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

from attnres_passes.ir.config import AttnResConfig

Source = TypeVar("Source")


def block_size_for(writes: int, config: AttnResConfig) -> int:
    """Writes per block; ``num_blocks = N`` asks for ``ceil(W / N)``, so more blocks than writes get one write each.

    Args:
        writes: of the stream.
        config: sets num_blocks or block_size.
    """
    if config.block_size is not None:
        return min(config.block_size, writes)
    assert config.num_blocks is not None, "AttnResConfig sets one of the two"
    return math.ceil(writes / config.num_blocks)


def num_blocks_for(writes: int, block_size: int) -> int:
    """Number of blocks; the last one may be short.

    Args:
        writes: of the stream.
        block_size: writes per block.
    """
    return math.ceil(writes / block_size)


def block_of_write(index: int, block_size: int) -> int:
    """The block that a write is part of; block 0 is the root.

    Args:
        index: of the write, from 1.
        block_size: writes per block.
    """
    return (index - 1) // block_size + 1


def block_of_read(state: int, block_size: int, num_blocks: int) -> int | None:
    """The block that is open, or about to open, where a state is read; None where the last one has been completed.

    Args:
        state: number of writes that it holds.
        block_size: writes per block.
        num_blocks: of the stream.
    """
    block = state // block_size + 1
    return block if block <= num_blocks else None


def sources_of_read(state: int, block_size: int, window: int | None = None) -> int:
    """How many sources a read has: root, completed blocks, and the open partial sum unless a block is just complete.

    Args:
        state: number of writes that the state holds.
        block_size: writes per block.
        window: completed blocks that a read attends to, None for all.
    """
    blocks, has_partial = divmod(state, block_size)
    return 1 + (blocks if window is None else min(blocks, window)) + bool(has_partial)


def attended(sources: Sequence[Source], state: int, block_size: int, window: int | None) -> list[Source]:
    """Of all sources of a state, those that a read of it attends to: root, last ``window`` blocks, open partial sum.

    Args:
        sources: the root, the completed blocks, and the open partial sum where there is one.
        state: number of writes that it holds.
        block_size: writes per block.
        window: completed blocks that a read attends to, None for all.
    """
    left_out = len(sources) - sources_of_read(state, block_size, window)
    return [*sources[:1], *sources[1 + left_out :]]
