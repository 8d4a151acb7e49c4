"""The passes in the order in which they run, from a captured graph and its analysis to what is compiled.

A new pass is one line in ``run_passes``: compilation, explanation and verification all go through it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch.fx import GraphModule

from attnres_passes.levels import Level, check_level
from attnres_passes.lower import lower
from attnres_passes.plan import Plan
from attnres_passes.rewrite import ParameterSlot, rewrite
from attnres_passes.streams import Analysis

AfterStage = Callable[[GraphModule, Level, Plan], None]


@dataclass(frozen=True)
class Passed:
    """The graph at the levels after the captured one. slots: what their appended placeholders stand for."""

    rewritten: GraphModule
    lowered: GraphModule
    slots: tuple[ParameterSlot, ...]


def run_passes(gm: GraphModule, analysis: Analysis, after_stage: AfterStage = check_level) -> Passed:
    """Take ``gm``, on which ``analysis`` was made, through all levels. Neither is changed.

    after_stage: called with the graph of each level, when it is made; checks it and may keep it.
    """
    plan = analysis.plan
    rewritten = rewrite(gm, analysis)
    after_stage(rewritten.gm, Level.REWRITTEN, plan)
    lowered = lower(rewritten.gm, plan, plan.config)
    after_stage(lowered, Level.LOWERED, plan)
    return Passed(rewritten.gm, lowered, rewritten.slots)
