"""Transfers of a pipeline, against a replay of what each rank holds."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnres_passes.ranks.layout import StageError, StageLayout, StageOrder
from attnres_passes.ranks.transfers import OPEN, ChunkPlan, StagePlan, Transfer, plan_stages
from tests.passes.ranks.stage_plans import plan_of


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


def test_of_rank_is_in_forward_order() -> None:
    chunks: tuple[ChunkPlan, ...] = plan_of(3, 2, 6, 2).of_rank(1)
    assert [chunk.index for chunk in chunks] == [1, 4]
