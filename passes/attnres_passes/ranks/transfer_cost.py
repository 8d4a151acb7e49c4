"""What a pipeline plan sends and stores, in units of one ``[tokens, width]`` tensor per micro-batch.

The backward sends the gradient of every tensor back over the hop that it came by, so it costs what the forward
costs. Counted from the plan, and, for one block per chunk, as closed forms to compare with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from attnres_passes.ranks.cuts import even_cuts
from attnres_passes.ranks.layout import StageLayout, StageOrder
from attnres_passes.ranks.transfers import OPEN, Key, StagePlan, Transfer, plan_stages


@dataclass(frozen=True)
class TransferCost:
    """Forward, per micro-batch. hops[j]: keys that are sent from chunk j to chunk j+1; none on a local hop.

    stored[r]: blocks and partial sums that rank r holds after the forward of all its chunks, each copy counted:
    what was sent to it and what it made.
    """

    hops: tuple[tuple[Key, ...], ...]
    stored: tuple[int, ...]

    @property
    def hop_units(self) -> tuple[int, ...]:
        return tuple(len(hop) for hop in self.hops)

    @property
    def units(self) -> int:
        return sum(self.hop_units)

    @property
    def peak(self) -> int:
        """Units on the fullest hop."""
        return max(self.hop_units, default=0)

    @property
    def blocks(self) -> int:
        """Units that are completed blocks, the root not counted, as the paper counts."""
        return sum(key != OPEN and key != 0 for hop in self.hops for key in hop)

    @property
    def roots(self) -> int:
        """Units that are the root: the embedding."""
        return sum(key == 0 for hop in self.hops for key in hop)

    @property
    def partials(self) -> int:
        """Units that are open partial sums."""
        return sum(key == OPEN for hop in self.hops for key in hop)

    def step_bytes(self, unit_bytes: int, microbatches: int) -> int:
        """Bytes that all ranks send in a training step, forward and backward.

        unit_bytes: tokens of a micro-batch x width of the stream x bytes of an element.
        """
        return 2 * self.units * unit_bytes * microbatches


def transfer_cost(plan: StagePlan) -> TransferCost:
    """Count what ``plan`` sends and stores."""
    hops = tuple(() if chunk.is_local else chunk.arrives for chunk in plan.chunks[1:])
    stored = tuple(
        sum(len(chunk.produced) + (0 if chunk.is_local else len(chunk.arrives)) for chunk in plan.of_rank(rank))
        for rank in range(plan.layout.ranks)
    )
    return TransferCost(hops, stored)


@dataclass(frozen=True)
class ClosedForms:
    """Block units of a forward pass with exactly one block per chunk, roots and partial sums not counted.

    naive: ``C (C-1) / 2``; paper: ``P (P-1) / 2 + (V-1) P^2``, for a rank that keeps what it was sent; cached:
    ``P (P-1) (2V-1) / 2``, for one that keeps what it made as well, in loop order and in V order. The root adds
    ``naive_roots`` = C-1 and ``cached_roots`` = P-1. With two ranks or more; one rank sends nothing.
    """

    naive: int
    paper: int
    cached: int
    naive_roots: int
    cached_roots: int


def closed_forms(ranks: int, virtual: int) -> ClosedForms:
    """The closed forms for P = ``ranks`` and V = ``virtual``."""
    chunks = ranks * virtual
    return ClosedForms(
        naive=chunks * (chunks - 1) // 2,
        paper=ranks * (ranks - 1) // 2 + (virtual - 1) * ranks**2,
        cached=ranks * (ranks - 1) * (2 * virtual - 1) // 2,
        naive_roots=chunks - 1,
        cached_roots=ranks - 1,
    )


@dataclass(frozen=True)
class SweepRow:
    """Both transfers of one layout of a model, and the closed forms for one block per chunk."""

    layout: StageLayout
    naive: TransferCost
    cached: TransferCost
    forms: ClosedForms


def sweep(
    writes: int,
    block_size: int,
    ranks: Iterable[int],
    virtuals: Sequence[int],
    order: StageOrder = StageOrder.LOOP,
) -> tuple[SweepRow, ...]:
    """Costs over P and V of a stream of ``writes`` equal sublayers; layouts with more chunks than writes are left out.

    On paper: nothing is captured or run.
    """
    rows = []
    for layout in (StageLayout(p, v, order) for p in ranks for v in virtuals):
        if layout.chunks > writes:
            continue
        cuts = even_cuts(writes, layout.chunks)
        naive, cached = (transfer_cost(plan_stages(layout, cuts, block_size, rule)) for rule in Transfer)
        rows.append(SweepRow(layout, naive, cached, closed_forms(layout.ranks, layout.virtual)))
    return tuple(rows)
