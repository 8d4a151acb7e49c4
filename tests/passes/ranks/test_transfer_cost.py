"""What a plan sends and stores, against closed forms and counted tables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnres_passes.ranks.layout import StageOrder
from attnres_passes.ranks.transfer_cost import closed_forms, sweep, transfer_cost
from attnres_passes.ranks.transfers import Transfer
from tests.passes.ranks.stage_plans import plan_of


@given(st.integers(2, 9), st.integers(1, 6), st.sampled_from(StageOrder), st.integers(1, 3))
def test_closed_forms(ranks: int, virtual: int, order: StageOrder, block_size: int) -> None:
    """One block per chunk, of any size."""
    chunks, forms = ranks * virtual, closed_forms(ranks, virtual)
    naive, cached = (
        transfer_cost(plan_of(ranks, virtual, chunks * block_size, block_size, rule, order)) for rule in Transfer
    )
    assert (cached.blocks, cached.roots, cached.partials) == (forms.cached, forms.cached_roots, 0)
    assert forms.cached == forms.paper - (virtual - 1) * ranks
    if order is StageOrder.LOOP:
        assert (naive.blocks, naive.roots, naive.partials) == (forms.naive, forms.naive_roots, 0)
        # From the second pass on, a hop carries P - 1 blocks, however many passes there are.
        assert set(cached.hop_units[ranks - 1 :]) <= {ranks - 1}


COUNTED = {
    # (ranks, virtual, writes per block): units per hop, counted at the sends of real runs
    (4, 2, 1, "naive"): (2, 3, 4, 5, 6, 7, 8),
    (4, 2, 1, "cached"): (2, 3, 4, 3, 3, 3, 3),
    (4, 2, 2, "naive"): (2, 2, 3, 3, 4, 4, 5),
    (4, 2, 2, "cached"): (2, 2, 3, 2, 2, 2, 2),
    (2, 4, 1, "naive"): (2, 3, 4, 5, 6, 7, 8),
    (2, 4, 1, "cached"): (2, 1, 1, 1, 1, 1, 1),
    (2, 4, 2, "naive"): (2, 2, 3, 3, 4, 4, 5),
    (2, 4, 2, "cached"): (2, 1, 1, 1, 1, 1, 1),
}


@pytest.mark.parametrize("case", COUNTED, ids=str)
def test_units_per_hop(case: tuple[int, int, int, str]) -> None:
    ranks, virtual, block_size, transfer = case
    cost = transfer_cost(plan_of(ranks, virtual, ranks * virtual, block_size, transfer))
    assert cost.hop_units == COUNTED[case]
    assert cost.units == cost.blocks + cost.roots + cost.partials
    assert cost.peak == max(COUNTED[case])


def test_step_bytes() -> None:
    """The total of P=4, V=2 with a block per chunk: 8192 B a unit, 4 micro-batches, there and back."""
    assert transfer_cost(plan_of(4, 2, 8, 1, "naive")).step_bytes(8192, 4) // 4 == 573440
    assert transfer_cost(plan_of(4, 2, 8, 1, "cached")).step_bytes(2048, 4) == 344064


def test_stored_copies() -> None:
    """P=2, V=2: rank 0 makes b0, b1 and b3; b2 comes by hop; naive transfer sends it b0 and b1 again."""
    assert transfer_cost(plan_of(2, 2, 4, 1, "naive")).stored == (6, 8)
    assert transfer_cost(plan_of(2, 2, 4, 1, "cached")).stored == (4, 5)


def test_sweep_reaches_far() -> None:
    """Kimi-K3's shape: 93 layers, 12 a block; a layout with more chunks than sublayers has no row."""
    rows = sweep(186, 24, [4, 16, 64], [1, 2, 4, 8])
    assert [(row.layout.ranks, row.layout.virtual) for row in rows] == [
        (4, 1), (4, 2), (4, 4), (4, 8), (16, 1), (16, 2), (16, 4), (16, 8), (64, 1), (64, 2),
    ]  # fmt: skip
    assert all(row.cached.units <= row.naive.units for row in rows)
    # However the pipeline is cut, a rank is sent each of the 8 blocks, the last of them short, once at most.
    assert all(row.cached.blocks <= 7 * row.layout.ranks for row in rows)
    (largest,) = sweep(512, 1, [64], [8])
    assert (
        (largest.naive.blocks, largest.cached.blocks) == (largest.forms.naive, largest.forms.cached) == (130816, 30240)
    )
