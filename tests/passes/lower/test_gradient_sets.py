"""Passes of the backward over completed blocks: the cheapest cut is found, and every read reaches its blocks once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnres_passes.lower.gradient_sets import MOST_READS, GradientPass, gradient_passes


def moved(blocks: int, reads: int) -> float:
    """Every block, its gradient twice, and the gradient of every read."""
    return 3 * blocks + reads


rising = st.lists(st.integers(0, 2), min_size=1, max_size=11).map(
    lambda steps: [1 + sum(steps[:k]) for k in range(len(steps))]
)


def cuts(completed: Sequence[int]) -> Iterator[float]:
    """What each cut into passes of few enough reads moves."""
    if not completed:
        yield 0.0
    for size in range(1, min(MOST_READS, len(completed)) + 1):
        new = [n - before for n, before in zip(completed[:size], [0, *completed], strict=False)]
        cost = sum(moved(blocks, size - place) for place, blocks in enumerate(new) if blocks)
        for rest in cuts(completed[size:]):
            yield cost + rest


def attended(passes: Sequence[GradientPass]) -> list[tuple[int, int]]:
    """Every pair of a read and a block that some set ties together."""
    return [
        (read, block)
        for of_pass in passes
        for of_set in of_pass.sets
        for read in range(of_set.first, of_set.first + of_set.reads)
        for block in range(of_set.start, of_set.stop)
    ]


@given(rising)
def test_the_cut_is_the_cheapest_of_all(completed: list[int]) -> None:
    passes = gradient_passes(completed, moved)
    assert sum(of_pass.moved for of_pass in passes) == pytest.approx(min(cuts(completed)))


@given(rising, st.integers(0, 3))
def test_every_read_reaches_each_of_its_blocks_once(completed: list[int], first: int) -> None:
    passes = gradient_passes(completed, moved, first)
    assert sorted(attended(passes)) == [
        (read, block) for read, n in enumerate(completed, start=first) for block in range(n)
    ]
    assert [of_pass.first for of_pass in passes] == [
        first + sum(of_pass.reads for of_pass in passes[:k]) for k in range(len(passes))
    ]
    assert sum(of_pass.reads for of_pass in passes) == len(completed)
    assert max(of_pass.reads for of_pass in passes) <= MOST_READS


def test_a_pass_goes_on_past_the_end_of_a_block_where_that_moves_less() -> None:
    """It goes over the older blocks once for all reads, and over the newest for the reads that see it."""
    (of_pass,) = gradient_passes([3, 3, 3, 4, 4, 4], moved)
    assert [(s.first, s.reads, s.start, s.stop) for s in of_pass.sets] == [(0, 6, 0, 3), (3, 3, 3, 4)]
    # Over a single older block, two passes move as much, and keep gradients for a shorter time.
    assert [of_pass.reads for of_pass in gradient_passes([1, 1, 1, 2, 2, 2], moved)] == [3, 3]
