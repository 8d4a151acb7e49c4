"""Plans of pipelines for tests."""

from __future__ import annotations

from attnres_passes.ranks.cuts import even_cuts
from attnres_passes.ranks.layout import StageLayout, StageOrder
from attnres_passes.ranks.transfers import StagePlan, plan_stages


def plan_of(
    ranks: int, virtual: int, writes: int, block_size: int, transfer: str = "cached", order: str = "loop"
) -> StagePlan:
    layout = StageLayout(ranks, virtual, StageOrder(order))
    return plan_stages(layout, even_cuts(writes, layout.chunks), block_size, transfer)
