"""Analysis: which consecutive reads share phase 1, by the bytes that they move.

A group of reads makes one pass over the completed blocks that all of them share, and each read takes what was completed
since in place. One group per block is Algorithm 1 of the paper; a group without shared blocks is direct reads; and with
``block_size=1``, where every read completes a block, groups of several reads are the paper's two-phase schedule for
Full AttnRes. Which cut is best follows from the numbers of completed blocks alone, and is found exactly, by dynamic
programming over the reads.

Where nothing is differentiated, bytes are not all that counts: with few tokens, as in a decode step, what a model pays
for is kernels. There a read may make the logits of its sources itself, in one launch with the add before it and the
norm behind it, as many as the plain model has. Logits made first cost a launch per block; but as soon as one read needs
them, so do those of all blocks before it, and nothing is lost if earlier reads use them too. So such reads come last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from tabulate import tabulate

from attnres_kernels.definition import cost
from attnres_kernels.launch.launch_phase_1 import phase_1_specs

MOST_READS = 16
"""Reads of one group: as many outputs of phase 1 are alive at once."""


@dataclass(frozen=True)
class Group:
    """Reads ``first .. first + len(completed) - 1`` of a stream.

    completed: completed blocks that each read attends to; shared: how many of them phase 1 goes over, none if direct;
    own_logits: direct reads that make the logits of their sources themselves.
    """

    first: int
    completed: tuple[int, ...]
    shared: int
    own_logits: bool = False

    @property
    def schedule(self) -> str:
        """Its name in the table of ``ReadGroups``."""
        return "two_phase" if self.shared else "own logits" if self.own_logits else "direct"

    @property
    def moved(self) -> float:
        """Elements per token, in units of the width, with the add before and the norm behind each read."""
        return cost.group(self.shared, self.completed)


@dataclass(frozen=True)
class Inference:
    """What counts beside bytes where nothing is differentiated.

    launch: what one more kernel costs, in units of the width moved per token (``cost.launch``); most: completed blocks
    up to which a read may make the logits of its sources itself.
    """

    launch: float
    most: int


@dataclass(frozen=True)
class ReadGroups:
    """The groups of one stream; ``str()`` is the cost model's table.

    inference: what else they were compared by; note: a further line of the table, on what was chosen and why.
    """

    groups: tuple[Group, ...]
    inference: Inference | None = None
    note: str = ""

    @property
    def moved(self) -> float:
        """Of all groups."""
        return sum(group.moved for group in self.groups)

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
        text = f"{table}\nmoved per read and token, in units of the width: the add before and the norm behind included"
        if self.inference is not None:
            text = f"{text}\nnothing is differentiated: a launch counts as {self.inference.launch:.3g}"
        return f"{text}\n{self.note}" if self.note else text


def group_reads(
    completed: Sequence[int],
    schedule: str,
    most_in_place: int,
    inference: Inference | None = None,
    runs: Sequence[int] = (),
) -> ReadGroups:
    """Cut the reads of one stream, or of one layout of it, into groups.

    Args:
        completed: completed blocks of each read, in order; never falling.
        schedule: "auto" for the cut that moves fewest bytes, "direct", or "two_phase" for one group per block, and for
            the best cut without direct reads where every read has a block of its own.
        most_in_place: completed blocks that a read may take in place; phase 1's output beside them counts as one.
        inference: for "auto", what counts beside bytes; None where something is differentiated.
        runs: numbers of consecutive reads that may be in one group; all of them, if it is left out.
    """
    has_one_read_per_block = len(set(completed)) == len(completed)
    of_inference = inference if schedule == "auto" else None

    def cut(run: Sequence[int]) -> tuple[Group, ...]:
        if schedule == "direct":
            return _joined(Group(first, (n,), 0) for first, n in enumerate(run))
        if schedule == "two_phase" and not has_one_read_per_block:
            return tuple(_per_block(run))
        if of_inference is not None:
            return _joined(_cheapest_inference(run, most_in_place, of_inference))
        return _joined(_cheapest(run, schedule != "two_phase", most_in_place, 0.0)[-1].groups)

    groups: list[Group] = []
    start = 0
    for count in runs or (len(completed),):
        groups += (replace(group, first=start + group.first) for group in cut(completed[start : start + count]))
        start += count
    return ReadGroups(tuple(groups), of_inference)


def group_reads_on_cpu(
    completed: Sequence[int], tokens: int, width: int, most_in_place: int, runs: Sequence[int] = ()
) -> ReadGroups:
    """Direct reads or one group per block, whichever costs less on a CPU where nothing is differentiated.

    Args:
        completed, most_in_place, runs: those of ``group_reads``.
        tokens: of the batch. Of more than were measured, the reads are in one group per block.
        width: of the stream.
    """
    direct, two_phase = (group_reads(completed, name, most_in_place, runs=runs) for name in ("direct", "two_phase"))
    if tokens > cost.MOST_TOKENS_ON_CPU:
        return replace(two_phase, note=f"on a CPU: two_phase, as for all over {cost.MOST_TOKENS_ON_CPU} tokens")
    phases = sum(group.shared > 0 for group in two_phase.groups)
    in_phases = cost.two_phase_on_cpu(two_phase.moved, phases, tokens, width)
    chosen = direct if direct.moved <= in_phases else two_phase
    note = (
        f"on a CPU, nothing differentiated, {tokens} tokens: direct costs {direct.moved:.4g}, two_phase {in_phases:.4g}"
    )
    return replace(chosen, note=note)


def _per_block(completed: Sequence[int]) -> Iterator[Group]:
    first = 0
    for shared, reads in groupby(completed):
        count = len(list(reads))
        yield Group(first, (shared,) * count, shared)
        first += count


@dataclass(frozen=True)
class _Cut:
    cost: float
    groups: tuple[Group, ...]


def _cheapest(completed: Sequence[int], allows_direct: bool, most_in_place: int, launch: float) -> list[_Cut]:
    """The cuts of least cost of the first 0, 1, .. reads: the best one before a group, extended by each group that can
    end there. launch: what phase 1 costs beside what it moves, for each of its launches.
    """
    best = [_Cut(0.0, ())]
    for end in range(1, len(completed) + 1):
        candidates = []
        for first in range(max(0, end - MOST_READS), end):
            for group in _groups(first, completed[first:end], allows_direct, most_in_place):
                cost_of_group = group.moved + launch * len(phase_1_specs(group.shared, len(group.completed)))
                candidates.append(_Cut(best[first].cost + cost_of_group, (*best[first].groups, group)))
        # Of equally cheap cuts, the one with fewer groups: fewer launches.
        best.append(min(candidates, key=lambda cut: (cut.cost, len(cut.groups))))
    return best


def _cheapest_inference(completed: Sequence[int], most_in_place: int, inference: Inference) -> tuple[Group, ...]:
    """Reads with logits made first up to some read, and from there on reads that make their own."""
    before = _cheapest(completed, True, most_in_place, inference.launch)
    cuts = []
    for first in range(len(completed) + 1):
        own = [Group(k, (n,), 0, own_logits=True) for k, n in enumerate(completed) if k >= first]
        if own and completed[-1] > inference.most:
            continue
        blocks = completed[first - 1] if first else 0
        logits = blocks * (cost.logits_first() + inference.launch)
        cuts.append(_Cut(before[first].cost + logits + sum(x.moved for x in own), (*before[first].groups, *own)))
    return min(cuts, key=lambda cut: cut.cost).groups


def _joined(groups: Iterable[Group]) -> tuple[Group, ...]:
    """Neighbouring direct reads as one group, whose backward then goes over their blocks once."""
    joined: list[Group] = []
    for group in groups:
        before = joined[-1] if joined else None
        if before and before.schedule == group.schedule and not group.shared and len(before.completed) < MOST_READS:
            joined[-1] = replace(before, completed=(*before.completed, *group.completed))
        else:
            joined.append(group)
    return tuple(joined)


def _groups(first: int, completed: Sequence[int], allows_direct: bool, most_in_place: int) -> Iterator[Group]:
    shared = completed[0]
    if len(completed) == 1 or 1 + completed[-1] - shared <= most_in_place:
        yield Group(first, tuple(completed), shared)
    if allows_direct and len(completed) == 1 and shared <= most_in_place:
        yield Group(first, tuple(completed), 0)
