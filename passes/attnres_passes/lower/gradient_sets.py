"""Analysis: which reads give completed blocks their gradients in one pass of the backward.

A pass goes over every block once: it reads the block, one gradient per read, and what later reads gave the block, and
writes the sum. With more reads to a pass, blocks and their gradients are moved less often. But the gradients of all its
reads are kept until the first of them has its own, and a block that was completed between two of its reads is a set of
its own, for which the gradients of the reads behind it are read again. Where to cut is independent of the groups that
share phase 1 in the forward, and found exactly, by dynamic programming over the reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

MOST_READS = 8
"""Reads of a pass: as many gradients are alive at once."""


@dataclass(frozen=True)
class GradientSet:
    """Blocks ``start .. stop - 1`` of a segment, to which all the reads ``first .. first + reads - 1`` attend."""

    first: int
    reads: int
    start: int
    stop: int


@dataclass(frozen=True)
class GradientPass:
    """The reads ``first .. first + reads - 1``, which give their gradients together.

    moved: elements per token, in units of the width.
    """

    first: int
    reads: int
    sets: tuple[GradientSet, ...]
    moved: float


def gradient_passes(
    completed: Sequence[int], moved: Callable[[int, int], float], first: int = 0
) -> tuple[GradientPass, ...]:
    """Cut consecutive reads into passes.

    Args:
        completed: completed blocks that each read attends to; never falling.
        moved: what a set of so many blocks and reads moves per token, in units of the width.
        first: the number of the first read.
    """
    best: list[tuple[float, tuple[GradientPass, ...]]] = [(0.0, ())]
    for end in range(1, len(completed) + 1):
        candidates = []
        for begin in range(max(0, end - MOST_READS), end):
            sets = tuple(_sets(completed[begin:end], first + begin))
            cost = sum(moved(of_set.stop - of_set.start, of_set.reads) for of_set in sets)
            before, passes = best[begin]
            candidates.append((before + cost, (*passes, GradientPass(first + begin, end - begin, sets, cost))))
        # Of equally cheap cuts, the one with more passes: gradients are kept for a shorter time.
        best.append(min(candidates, key=lambda candidate: (candidate[0], -len(candidate[1]))))
    return best[-1][1]


def _sets(completed: Sequence[int], first: int) -> Iterator[GradientSet]:
    """Blocks that all reads attend to are one set; those completed since are sets for the reads from then on."""
    known = 0
    for place, count in enumerate(completed):
        if count > known:
            yield GradientSet(first + place, len(completed) - place, known, count)
            known = count
