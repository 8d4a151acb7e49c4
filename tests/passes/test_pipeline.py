"""Every pass is followed by the check of its level: for a model, for a recorded model and for a pipeline chunk."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from torch.fx import GraphModule

from attnres_compile.pipelines import build
from attnres_compile.recording import graph as recording_graph
from attnres_passes import pipeline
from attnres_passes.ir.levels import Level, LevelError, check_level, is_depth_attention
from attnres_passes.ir.plan import Plan
from attnres_passes.pipeline import lower_rewritten, run_passes
from attnres_passes.ranks.layout import StageLayout
from attnres_passes.ranks.split_stages import split
from attnres_passes.ranks.stages import stage
from attnres_passes.rewrite.record import record
from attnres_passes.schedule.provider import Provider, ProviderChoice
from tests.passes.helpers import analysed, rewritten
from tests.passes.rewrite.test_rewrite import tiny

LATER = [Level.SCHEDULED, Level.LOWERED]


def levels_checked(run: Callable[[Callable[..., None]], Any]) -> list[Level]:
    checked: list[Level] = []

    def check(gm: GraphModule, level: Level, plan: Plan) -> None:
        check_level(gm, level, plan)
        checked.append(level)

    run(check)
    return checked


@pytest.mark.parametrize(("options", "first"), [({}, [Level.REWRITTEN]), ({"stages": 2}, [Level.REWRITTEN] * 2)])
def test_a_model_is_checked_behind_every_pass(options: dict[str, Any], first: list[Level]) -> None:
    found, analysis = analysed(tiny, block_size=2, **options)
    assert levels_checked(lambda check: run_passes(found.gm, analysis, check)) == [*first, *LATER]


def test_fusion_is_a_pass_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def on_kernels(gm: GraphModule, plan: Plan, differentiates: bool) -> ProviderChoice:
        return ProviderChoice.of(plan, Provider.TRITON, "asked for", differentiates)

    monkeypatch.setattr(pipeline, "choose_provider", on_kernels)
    found, analysis = analysed(tiny, block_size=2)
    expected = [Level.REWRITTEN, Level.SCHEDULED, *LATER]
    assert levels_checked(lambda check: run_passes(found.gm, analysis, check)) == expected


def without_a_read(gm: GraphModule) -> GraphModule:
    read = next(node for node in gm.graph.nodes if is_depth_attention(node))
    read.replace_all_uses_with(read.args[0][0])
    gm.graph.erase_node(read)
    return gm


def test_a_recorded_graph_that_lost_a_read_is_refused() -> None:
    """By the very function that a recording calls."""
    _, analysis, result = rewritten(tiny, block_size=2)
    recorded = record(result, with_gradients=False).result.gm
    assert recording_graph.lower_rewritten is lower_rewritten
    assert levels_checked(lambda check: lower_rewritten(recorded, analysis.plan, check)) == [Level.REWRITTEN, *LATER]
    with pytest.raises(LevelError, match="rewritten graph: it has one depth attention per read"):
        lower_rewritten(without_a_read(recorded), analysis.plan)


def test_a_chunk_is_checked_against_its_own_reads() -> None:
    _, analysis, result = rewritten(tiny, block_size=2)
    chunks = split(stage(result.gm, analysis.plan, StageLayout(2)))
    assert build.lower_rewritten is lower_rewritten
    assert {read for chunk in chunks for read in chunk.reads} == analysis.plan.depth_reads.keys()
    for chunk in chunks:
        check = partial(check_level, only=chunk.reads)
        lower_rewritten(chunk.gm, analysis.plan, check)
        with pytest.raises(LevelError, match="rewritten graph: it has one depth attention per read"):
            lower_rewritten(without_a_read(chunk.gm), analysis.plan, check)
