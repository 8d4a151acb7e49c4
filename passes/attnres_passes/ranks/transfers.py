"""Analysis: what each chunk of a pipeline is given, keeps, makes and sends on (paper section 4.1).

A read attends to every completed block, so a chunk needs all blocks that are complete where it begins, and the open
partial sum if it begins inside a block. Under naive transfer all of that arrives from the chunk before. Under cached
transfer a rank keeps, per micro-batch, every block that it was sent *or made itself* at an earlier chunk, and a hop
carries only what the receiving rank does not have. (The paper counts the blocks that were sent; a rank that keeps
its own as well is sent fewer.)

Everything follows from the layout, the cuts and the block size, so every rank derives the same plan by itself, and
``StagePlan.digest`` is there to prove it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Literal

from attnres_passes.ranks.layout import StageError, StageLayout

OPEN: Final = "open"
Key = int | Literal["open"]
"""A tensor that crosses boundaries: the number of a completed block (0 is the root), or the open partial sum."""


class Transfer(StrEnum):
    """NAIVE: every hop carries all that its receiver needs. CACHED: only what the receiving rank does not have."""

    NAIVE = "naive"
    CACHED = "cached"


@dataclass(frozen=True)
class ChunkPlan:
    """One chunk: the writes ``begin+1 .. end`` of the stream, and the reads of the states ``begin .. end-1``.

    arrives: keys handed over by the chunk before, in the order of the tensors; cached: keys taken from the rank's
    store; produced: blocks completed here; sends: keys handed to the next chunk, which are its ``arrives``; keeps:
    keys put into the rank's store, for later chunks of the same rank. is_local: the chunk before is on the same rank.
    """

    index: int
    rank: int
    begin: int
    end: int
    is_local: bool
    arrives: tuple[Key, ...]
    cached: tuple[int, ...]
    produced: tuple[int, ...]
    sends: tuple[Key, ...]
    keeps: tuple[int, ...]

    @property
    def needed(self) -> tuple[Key, ...]:
        """All sources that the chunk begins with: completed blocks in their order, then the open partial sum."""
        completed = sorted(key for key in (*self.arrives, *self.cached) if key != OPEN)
        return (*completed, OPEN) if OPEN in self.arrives else tuple(completed)


@dataclass(frozen=True)
class StagePlan:
    """The whole pipeline. cuts: writes before each chunk, from 0, and the number of all writes at the end.

    sublayers: module path of each write, for people to read; may be empty.
    """

    layout: StageLayout
    transfer: Transfer
    block_size: int
    cuts: tuple[int, ...]
    chunks: tuple[ChunkPlan, ...]
    sublayers: tuple[str, ...] = ()

    @property
    def writes(self) -> int:
        return self.cuts[-1]

    def of_rank(self, rank: int) -> tuple[ChunkPlan, ...]:
        """The chunks of a rank, in the order of a forward pass."""
        return tuple(chunk for chunk in self.chunks if chunk.rank == rank)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, in JSON's types but for tuples."""
        return dataclasses.asdict(self)

    @property
    def digest(self) -> str:
        """A hash of all of the plan: ranks whose plans are equal, and only those, have equal digests."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]


def plan_stages(
    layout: StageLayout,
    cuts: Sequence[int],
    block_size: int,
    transfer: Transfer | str = Transfer.CACHED,
    sublayers: Sequence[str] = (),
) -> StagePlan:
    """The plan of a stream whose chunks begin after ``cuts[0], cuts[1], ..`` writes; ``cuts[-1]`` is all of them.

    Raises StageError if the cuts do not fit the layout, or an option is out of range.
    """
    _check(layout, cuts, block_size, transfer)
    rule = Transfer(transfer)
    drafts = _arrivals(layout, cuts, block_size, rule)
    chunks = []
    for index, draft in enumerate(drafts):
        following = drafts[index + 1].arrives if index + 1 < len(drafts) else ()
        later = [other for other in drafts[index + 1 :] if other.rank == draft.rank]
        read_later = {key for other in later for key in other.cached}
        fresh: list[int] = [
            key for key in (*draft.arrives, *draft.produced) if key in read_later and key not in draft.known
        ]
        chunks.append(
            ChunkPlan(
                index=index,
                rank=draft.rank,
                begin=cuts[index],
                end=cuts[index + 1],
                is_local=layout.is_local(index),
                arrives=draft.arrives,
                cached=draft.cached,
                produced=draft.produced,
                sends=following,
                keeps=tuple(fresh),
            )
        )
    return StagePlan(layout, rule, block_size, tuple(cuts), tuple(chunks), tuple(sublayers))


@dataclass(frozen=True)
class _Draft:
    """A chunk before it is known what comes after it. known: blocks that its rank has when it begins."""

    rank: int
    arrives: tuple[Key, ...]
    cached: tuple[int, ...]
    produced: tuple[int, ...]
    known: frozenset[int]


def _arrivals(layout: StageLayout, cuts: Sequence[int], block_size: int, rule: Transfer) -> list[_Draft]:
    known: list[set[int]] = [set() for _ in range(layout.ranks)]
    drafts: list[_Draft] = []
    for index in range(layout.chunks):
        begin, end, rank = cuts[index], cuts[index + 1], layout.rank_of(index)
        completed = range(begin // block_size + 1) if index else range(0)
        produced = tuple(range(begin // block_size + 1, end // block_size + 1))
        if index == 0:
            produced = (0, *produced)
        held = frozenset(known[rank]) if rule is Transfer.CACHED else frozenset()
        # What the chunk before made on this very rank is handed over without cost, so that its gradient comes back
        # the way that it went.
        handed_over = set(drafts[-1].produced) if layout.is_local(index) else set()
        arrives: list[Key] = [block for block in completed if block not in held or block in handed_over]
        cached = tuple(block for block in completed if block not in arrives)
        if index and begin % block_size:
            arrives.append(OPEN)
        drafts.append(_Draft(rank, tuple(arrives), cached, produced, held))
        known[rank].update(completed, produced)
    return drafts


def _check(layout: StageLayout, cuts: Sequence[int], block_size: int, transfer: Transfer | str) -> None:
    if transfer not in tuple(Transfer):
        raise StageError(f"transfer={transfer!r} is unknown; give 'naive' or 'cached'.")
    if block_size < 1:
        raise StageError(f"block_size={block_size} is not at least 1; give the plan's.")
    if len(cuts) != layout.chunks + 1:
        raise StageError(
            f"{len(cuts)} cuts for {layout.chunks} chunks ({layout.ranks} ranks x {layout.virtual}); give one per "
            "chunk, and the number of writes at the end."
        )
    if cuts[0] != 0 or any(after <= before for before, after in itertools.pairwise(cuts)):
        raise StageError(f"cuts {tuple(cuts)} do not rise from 0 by at least one write per chunk; give such cuts.")
