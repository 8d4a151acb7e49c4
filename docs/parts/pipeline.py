"""The parts of pipeline.md: stages, what travels between them, and what that costs."""

from __future__ import annotations

from attnres_passes.ranks.cuts import even_cuts
from attnres_passes.ranks.layout import StageLayout
from attnres_passes.ranks.plan_text import stage_picture, stage_table
from attnres_passes.ranks.transfer_cost import sweep
from attnres_passes.ranks.transfers import StagePlan, plan_stages
from parts import part
from parts.layout import fenced, table


def stage_plan(transfer: str) -> StagePlan:
    """12 layers of two sublayers each, on 4 processes of 2 chunks."""
    layers = [f"h.{layer}.{part}" for layer in range(12) for part in ("attn", "mlp")]
    layout = StageLayout(4, 2)
    return plan_stages(layout, even_cuts(len(layers), layout.chunks), 3, transfer, layers)


@part
def pipeline_stages() -> str:
    plan = stage_plan("cached")
    return fenced(f"{stage_table(plan)}\n\n{stage_picture(plan)}")


@part
def pipeline_naive() -> str:
    return fenced(stage_picture(stage_plan("naive")))


@part
def pipeline_costs() -> str:
    """Layouts of the 12-layer model, and of one of Kimi K3's shape: 93 layers, 12 a block."""
    rows: list[list[object]] = []
    for writes, block_size, ranks, virtuals in ((24, 3, (2, 4), (1, 2, 4)), (186, 24, (4, 8, 16), (1, 2, 4))):
        for row in sweep(writes, block_size, ranks, virtuals):
            costs = [f"{cost.units} ({cost.peak} at most on a hop)" for cost in (row.naive, row.cached)]
            stored = [max(cost.stored) for cost in (row.naive, row.cached)]
            rows.append([writes // 2, row.layout.ranks, row.layout.virtual, *costs, *stored])
    headers = ["layers", "P", "V", "naive, units", "cached, units", "naive, stored", "cached, stored"]
    return table(rows, headers)
