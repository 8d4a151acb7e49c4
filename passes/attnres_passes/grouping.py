"""Analysis: which consecutive reads share phase 1, by the bytes that they move.

A group of reads makes one pass over the completed blocks that all of them share, and each read takes what was completed
since in place. One group per block is Algorithm 1 of the paper; a group without shared blocks is direct reads; and with
``block_size=1``, where every read completes a block, groups of several reads are the paper's two-phase schedule for
Full AttnRes. Which cut is best follows from the numbers of completed blocks alone, and is found exactly, by dynamic
programming over the reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from tabulate import tabulate

from attnres_kernels.depth_attention import cost

MOST_READS = 16
"""Reads of one group: as many outputs of phase 1 are alive at once."""


@dataclass(frozen=True)
class Group:
    """Reads ``first .. first + len(completed) - 1`` of a stream.

    completed: completed blocks that each read attends to; shared: how many of them phase 1 goes over, none if direct.
    """

    first: int
    completed: tuple[int, ...]
    shared: int

    @property
    def schedule(self) -> str:
        return "two_phase" if self.shared else "direct"

    @property
    def moved(self) -> float:
        """Elements per token, in units of the width, with the add before and the norm behind each read."""
        return cost.group(self.shared, self.completed)


@dataclass(frozen=True)
class Grouping:
    """The groups of one stream; ``str()`` is the cost model's table."""

    groups: tuple[Group, ...]

    def __str__(self) -> str:
        rows = []
        for group in self.groups:
            reads = len(group.completed)
            last = group.first + reads - 1
            rows.append(
                [
                    f"{group.first}-{last}" if reads > 1 else f"{last}",
                    f"{group.completed[0]}-{group.completed[-1]}" if reads > 1 else group.completed[0],
                    group.schedule,
                    group.shared,
                    f"{group.moved / reads:.2f}",
                    f"{sum(cost.direct(n) for n in group.completed) / reads:.2f}",
                    f"{cost.standard_residual():.2f}",
                ]
            )
        headers = ["reads", "completed", "schedule", "shared", "moved", "if direct", "plain"]
        table = tabulate(rows, headers=headers, disable_numparse=True)
        return f"{table}\nmoved per read and token, in units of the width: the add before and the norm behind included"


def group_reads(completed: Sequence[int], schedule: str, most_in_place: int) -> Grouping:
    """Cut the reads of one stream, or of one layout of it, into groups.

    Args:
        completed: completed blocks of each read, in order; never falling.
        schedule: "auto" for the cut that moves fewest bytes, "direct", or "two_phase" for one group per block, and for
            the best cut without direct reads where every read has a block of its own.
        most_in_place: completed blocks that a read may take in place; phase 1's output beside them counts as one.
    """
    if schedule == "direct":
        return Grouping(_joined(Group(first, (n,), 0) for first, n in enumerate(completed)))
    has_one_read_per_block = len(set(completed)) == len(completed)
    if schedule == "two_phase" and not has_one_read_per_block:
        return Grouping(tuple(_per_block(completed)))
    return Grouping(_joined(_cheapest(completed, schedule == "auto", most_in_place)))


def _per_block(completed: Sequence[int]) -> Iterator[Group]:
    first = 0
    for shared, reads in groupby(completed):
        count = len(list(reads))
        yield Group(first, (shared,) * count, shared)
        first += count


def _cheapest(completed: Sequence[int], allows_direct: bool, most_in_place: int) -> tuple[Group, ...]:
    """The cut of least cost: the best cut before each read, extended by each group that can end there."""
    best: list[tuple[float, tuple[Group, ...]]] = [(0.0, ())]
    for end in range(1, len(completed) + 1):
        candidates = []
        for first in range(max(0, end - MOST_READS), end):
            for group in _groups(first, completed[first:end], allows_direct, most_in_place):
                before, groups = best[first]
                candidates.append((before + group.moved, (*groups, group)))
        # Of equally cheap cuts, the one with fewer groups: fewer launches.
        best.append(min(candidates, key=lambda candidate: (candidate[0], len(candidate[1]))))
    return best[-1][1]


def _joined(groups: Iterable[Group]) -> tuple[Group, ...]:
    """Neighbouring direct reads as one group, whose backward then goes over their blocks once."""
    joined: list[Group] = []
    for group in groups:
        before = joined[-1] if joined else None
        if before and not before.shared and not group.shared and len(before.completed) < MOST_READS:
            joined[-1] = Group(before.first, (*before.completed, *group.completed), 0)
        else:
            joined.append(group)
    return tuple(joined)


def _groups(first: int, completed: Sequence[int], allows_direct: bool, most_in_place: int) -> Iterator[Group]:
    shared = completed[0]
    if len(completed) == 1 or 1 + completed[-1] - shared <= most_in_place:
        yield Group(first, tuple(completed), shared)
    if allows_direct and len(completed) == 1 and shared <= most_in_place:
        yield Group(first, tuple(completed), 0)
