"""Transfers of a pipeline, against a replay of what each rank holds, closed forms, and counted tables."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnres_passes.ranks.cuts import even_cuts
from attnres_passes.ranks.layout import StageError, StageLayout, StageOrder
from attnres_passes.ranks.plan_text import keys_text, stage_picture, stage_table
from attnres_passes.ranks.transfer_cost import closed_forms, sweep, transfer_cost
from attnres_passes.ranks.transfers import OPEN, ChunkPlan, StagePlan, Transfer, plan_stages


def plan_of(
    ranks: int, virtual: int, writes: int, block_size: int, transfer: str = "cached", order: str = "loop"
) -> StagePlan:
    layout = StageLayout(ranks, virtual, StageOrder(order))
    return plan_stages(layout, even_cuts(writes, layout.chunks), block_size, transfer)


@st.composite
def plans(draw: st.DrawFn) -> StagePlan:
    """Any layout, order and transfer, with uneven chunks and blocks that do not fit them."""
    layout = StageLayout(draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.sampled_from(StageOrder)))
    sizes = draw(st.lists(st.integers(1, 5), min_size=layout.chunks, max_size=layout.chunks))
    cuts = [sum(sizes[:index]) for index in range(layout.chunks + 1)]
    return plan_stages(layout, cuts, draw(st.integers(1, 8)), draw(st.sampled_from(Transfer)))


def sources_at(state: int, block_size: int) -> set:
    """Equation 6 of the paper: the completed blocks, and the partial sum of the one that is open."""
    return {*range(state // block_size + 1), *([OPEN] if state % block_size else [])}


@settings(deadline=None, max_examples=300)
@given(plans())
def test_replay_gives_every_chunk_its_sources(plan: StagePlan) -> None:
    """Run on sets: what a chunk sends, it must hold; what it takes from the store, must be there."""
    stores: list[set] = [set() for _ in range(plan.layout.ranks)]
    sent: set = set()
    for chunk in plan.chunks:
        store = stores[chunk.rank]
        assert set(chunk.arrives) == sent
        assert set(chunk.cached) <= store
        assert not set(chunk.cached) & set(chunk.arrives)
        held = {*chunk.arrives, *chunk.cached}
        assert held == (sources_at(chunk.begin, plan.block_size) if chunk.index else set())
        assert chunk.needed == tuple(sorted(held - {OPEN})) + ((OPEN,) if OPEN in held else ())
        for write in range(chunk.begin + 1, chunk.end + 1):
            if write % plan.block_size == 0:
                assert write // plan.block_size in chunk.produced
        end = sources_at(chunk.end, plan.block_size)
        held = {*(held - {OPEN}), *chunk.produced, *(end & {OPEN})}
        assert held == end
        assert set(chunk.sends) <= held
        assert not set(chunk.keeps) & store, "put into the store twice"
        store.update(chunk.keeps)
        sent = set(chunk.sends)
    assert not sent


@settings(deadline=None, max_examples=300)
@given(plans())
def test_what_is_sent_is_the_least_that_the_rule_allows(plan: StagePlan) -> None:
    """Cached: each rank is sent what it needs and has not made, once. Naive: every chunk is sent all that it needs."""
    for rank in range(plan.layout.ranks):
        own = plan.of_rank(rank)
        sent = [key for chunk in own if not chunk.is_local for key in chunk.arrives if key != OPEN]
        if plan.transfer is Transfer.NAIVE:
            assert sent == [
                key for c in own if not c.is_local and c.index for key in range(c.begin // plan.block_size + 1)
            ]
            continue
        needed = {key for chunk in own for key in chunk.needed if key != OPEN}
        made_in_time = {key for chunk in own for key in chunk.produced if any(key in c.needed for c in own)}
        # Of what the rank made itself, nothing comes back; a local chunk is handed what its rank just made.
        assert sorted(sent) == sorted(needed - made_in_time)


@settings(deadline=None, max_examples=200)
@given(plans())
def test_a_gradient_finds_its_way_back(plan: StagePlan) -> None:
    """A kept block either came by a hop or was made here and is an output: both ends carry its gradient."""
    for chunk in plan.chunks:
        for key in chunk.keeps:
            came, is_made = key in chunk.arrives, key in chunk.produced
            assert came != is_made
            assert came or key in chunk.sends
        assert set(chunk.sends) <= {*chunk.arrives, *chunk.cached, *chunk.produced, OPEN}
        if plan.layout.order is StageOrder.LOOP and plan.layout.ranks > 1:
            assert set(chunk.sends) <= {*chunk.arrives, *chunk.produced, OPEN}


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


def test_digest_tells_plans_apart() -> None:
    base = plan_of(2, 2, 8, 3)
    others = [
        plan_of(2, 2, 8, 3, "naive"),
        plan_of(2, 2, 8, 3, order="v"),
        plan_of(4, 1, 8, 3),
        plan_of(2, 2, 9, 3),
        plan_of(2, 2, 8, 2),
        dataclasses.replace(base, sublayers=tuple("abcdefgh")),
    ]
    assert plan_of(2, 2, 8, 3).digest == base.digest
    assert len({plan.digest for plan in (base, *others)}) == 1 + len(others)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((StageLayout(2), [0, 4], 2), "2 cuts for 2 chunks (2 ranks x 1); give one per chunk"),
        ((StageLayout(2), [0, 4, 4], 2), "do not rise from 0 by at least one write per chunk"),
        ((StageLayout(2), [1, 2, 4], 2), "do not rise from 0"),
        ((StageLayout(1), [0, 4], 0), "block_size=0 is not at least 1"),
        ((StageLayout(1), [0, 4], 1, "fast"), "transfer='fast' is unknown; give 'naive' or 'cached'"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(StageError) as caught:
        plan_stages(*arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize("arguments", [(0, 1), (2, 0), (True, 1), (2.0, 1), (2, 1, "w")])
def test_no_such_layout(arguments: tuple) -> None:
    with pytest.raises(StageError):
        StageLayout(*arguments)


def test_v_order_turns_at_the_last_rank() -> None:
    assert [StageLayout(3, 2, StageOrder.V).rank_of(chunk) for chunk in range(6)] == [0, 1, 2, 2, 1, 0]
    assert [StageLayout(3, 2).rank_of(chunk) for chunk in range(6)] == [0, 1, 2, 0, 1, 2]
    assert StageLayout(3, 2, StageOrder.V).chunks_of(2) == (2, 3)


PICTURE = """\
            0>1    1>2    2>3    3>4    4>5    5>6    6>7
----------  -----  -----  -----  -----  -----  -----  -----
ranks       0>1    1>2    2>3    3>0    0>1    1>2    2>3
b0          #      #      #      -      -      -      -
b1                 #      #      #      -      -      -
b2                        #      #      #      -      -
b3                               #      #      #      -
b4                                             #      #
b5                                                    #
open        #      #      #             #      #      #
units sent  2      3      4      3      3      3      3
# sent   - the receiving rank has it   = handed over on one rank, nothing is sent"""

V_TABLE = """\
chunk    rank    sublayers    arrives    cached    produced    sends    keeps
-------  ------  -----------  ---------  --------  ----------  -------  -------
0        0       1-2: a .. b                       b0          b0 open  b0
1        1       3-4: c .. d  b0 open              b1          b1 open  b0
2        1       5: e         b1 open    b0                    b1 open
3        0       6: f         b1 open    b0        b2"""


def test_picture_of_twelve_layers() -> None:
    assert stage_picture(plan_of(4, 2, 24, 4)) == PICTURE


def test_table_in_v_order() -> None:
    plan = plan_stages(StageLayout(2, 2, StageOrder.V), [0, 2, 4, 5, 6], 3, "cached", list("abcdef"))
    head, _, table = stage_table(plan).partition("\n")
    assert [line.rstrip() for line in table.splitlines()] == V_TABLE.splitlines()
    assert head == f"2 ranks x 2 chunks, v order, cached transfer, 6 sublayers in blocks of 3, plan {plan.digest}"
    assert "=" in stage_picture(plan)


def test_keys_are_drawn_together() -> None:
    assert keys_text((0, 1, 2, 5, OPEN)) == "b0-b2 b5 open"
    assert keys_text(()) == ""


def test_of_rank_is_in_forward_order() -> None:
    chunks: tuple[ChunkPlan, ...] = plan_of(3, 2, 6, 2).of_rank(1)
    assert [chunk.index for chunk in chunks] == [1, 4]
