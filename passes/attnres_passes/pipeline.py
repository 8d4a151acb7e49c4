"""The passes in the order in which they run, from a captured graph and its analysis to what is compiled.

A new pass is one line in ``run_passes``: compilation, explanation and verification all go through it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch.fx import GraphModule

from attnres_passes.fuse import Fused, fuse
from attnres_passes.implementation import Choice, Implementation, choose
from attnres_passes.levels import Level, check_level
from attnres_passes.lower import lower
from attnres_passes.plan import Plan
from attnres_passes.rewrite import ParameterSlot, rewrite
from attnres_passes.schedule import Scheduled, schedule
from attnres_passes.stage_layout import StageLayout
from attnres_passes.stages import stage
from attnres_passes.streams import Analysis

AfterStage = Callable[[GraphModule, Level, Plan], None]


@dataclass(frozen=True)
class Passed:
    """The graph at the levels after the captured one. slots: what their appended placeholders stand for.

    choice: what the reads are bound to, and why; fused: what was fused with them, None where the inner compiler fuses.
    """

    rewritten: GraphModule
    scheduled: Scheduled
    lowered: GraphModule
    slots: tuple[ParameterSlot, ...]
    choice: Choice
    fused: Fused | None

    def schedule_text(self) -> str:
        """The cost model's table for each stream, what reads are bound to, and what was fused."""
        bound = f"bound to {self.choice.implementation.value}: {self.choice.why}"
        parts = [str(self.scheduled), bound, *([] if self.fused is None else [str(self.fused)])]
        return "\n".join(part for part in parts if part)


def run_passes(
    gm: GraphModule, analysis: Analysis, after_stage: AfterStage = check_level, keeps_values: bool = False
) -> Passed:
    """Take ``gm``, on which ``analysis`` was made, through all levels. Neither is changed.

    after_stage: called with the graph of each level, when it is made; checks it and may keep it; keeps_values: as for
    ``lower``, to compare the values of reads.

    Raises:
        ConfigError: ATTNRES_KERNELS asks for what cannot be.
        StageError: ``stages`` of the config are asked for, and the graph cannot be cut so.
    """
    plan = analysis.plan
    rewritten = rewrite(gm, analysis)
    if plan.config.stages is not None and plan.streams:
        rewritten = replace(rewritten, gm=stage(rewritten.gm, plan, StageLayout(plan.config.stages)).gm)
    after_stage(rewritten.gm, Level.REWRITTEN, plan)
    choice = choose(rewritten.gm, plan)
    uses_kernels = choice.implementation is Implementation.KERNELS
    scheduled = schedule(rewritten.gm, plan, joins_blocks=uses_kernels, most_in_place=choice.most_in_place)
    fused = fuse(scheduled.gm, plan) if uses_kernels else None
    after_stage(scheduled.gm, Level.SCHEDULED, plan)
    lowered = lower(scheduled.gm, choice.implementation, keeps_values)
    after_stage(lowered, Level.LOWERED, plan)
    return Passed(rewritten.gm, scheduled, lowered, rewritten.slots, choice, fused)
