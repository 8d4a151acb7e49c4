"""The partition into blocks, against a simulation of equation 6 of the paper."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from attnres_passes.analyses.blocks import (
    block_of_read,
    block_of_write,
    block_size_for,
    num_blocks_for,
    sources_of_read,
)
from attnres_passes.ir.config import AttnResConfig

WRITES = st.integers(1, 300)
SIZES = st.integers(1, 40)


def simulated(writes: int, size: int) -> tuple[list[list[int]], list[int], list[int]]:
    """Blocks of write numbers; sources, and the block that is open or about to open, at each state."""
    completed: list[list[int]] = []
    partial: list[int] = []
    sources, opened = [1], [1]
    for write in range(1, writes + 1):
        partial = [*partial, write]
        if len(partial) == size:
            completed, partial = [*completed, partial], []
        sources.append(1 + len(completed) + bool(partial))
        opened.append(len(completed) + 1)
    return [*completed, *([partial] if partial else [])], sources, opened


@given(WRITES, SIZES)
def test_blocks_are_those_of_the_simulation(writes: int, size: int) -> None:
    blocks, sources, opened = simulated(writes, size)
    numbers = {write: number for number, block in enumerate(blocks, start=1) for write in block}
    assert {write: block_of_write(write, size) for write in range(1, writes + 1)} == numbers
    assert num_blocks_for(writes, size) == len(blocks)
    assert [sources_of_read(state, size) for state in range(writes + 1)] == sources
    opened = [block if block <= len(blocks) else None for block in opened]  # none is about to open behind the last one
    assert [block_of_read(state, size, len(blocks)) for state in range(writes + 1)] == opened


@given(WRITES, st.integers(1, 400))
def test_num_blocks_covers_all_writes_in_at_most_that_many_blocks(writes: int, wanted: int) -> None:
    size = block_size_for(writes, AttnResConfig(num_blocks=wanted))
    assert 1 <= size <= writes
    assert num_blocks_for(writes, size) <= wanted
    assert size * num_blocks_for(writes, size) >= writes
    # No smaller block would do.
    assert size == 1 or num_blocks_for(writes, size - 1) > wanted


@given(WRITES, st.integers(1, 400))
def test_block_size_is_kept_unless_the_stream_is_shorter(writes: int, size: int) -> None:
    assert block_size_for(writes, AttnResConfig(block_size=size)) == min(size, writes)


def test_shape_of_the_largest_published_model() -> None:
    """54 sublayers, 6 a block: 9 blocks, and 10 sources with the embedding."""
    assert num_blocks_for(54, 6) == 9
    assert sources_of_read(54, 6) == 10
    assert block_size_for(54, AttnResConfig(num_blocks=9)) == 6


def test_one_write_a_block_is_full_attention_residuals() -> None:
    size = block_size_for(12, AttnResConfig(num_blocks=12))
    assert size == 1
    assert [sources_of_read(state, size) for state in range(13)] == list(range(1, 14))


def test_one_block_keeps_the_root_apart() -> None:
    size = block_size_for(12, AttnResConfig(num_blocks=1))
    assert [sources_of_read(state, size) for state in range(13)] == [1, *[2] * 12]
