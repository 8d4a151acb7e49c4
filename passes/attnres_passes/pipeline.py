"""The passes in the order in which they run, from a captured graph and its analysis to what is compiled.

A new pass is one line in ``run_passes``: compilation, explanation and verification all go through it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch.fx import GraphModule

from attnres_passes.fuse import Fused, fuse
from attnres_passes.implementation import Choice, Implementation, choose
from attnres_passes.levels import Level, check_level
from attnres_passes.lower import lower
from attnres_passes.plan import Plan
from attnres_passes.rewrite import ParameterSlot, Rewritten, rewrite
from attnres_passes.schedule import Scheduled, schedule
from attnres_passes.sequence import Shards
from attnres_passes.shard_sequence import shard_sequence
from attnres_passes.streams import Analysis

AfterStage = Callable[[GraphModule, Level, Plan], None]


@dataclass(frozen=True)
class Passed:
    """The graph at the levels after the captured one.

    result: of the rewrite; rewritten: its graph, cut along the sequence if the plan says so; choice: what the reads are
    bound to, and why; fused: what was fused with them, None where the inner compiler fuses.
    """

    result: Rewritten
    rewritten: GraphModule
    scheduled: Scheduled
    lowered: GraphModule
    choice: Choice
    fused: Fused | None

    @property
    def slots(self) -> tuple[ParameterSlot, ...]:
        """What the appended placeholders of all levels stand for."""
        return self.result.slots

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
        SequenceError: a stream cannot be cut along the sequence, or the process group is not there.
    """
    plan = analysis.plan
    rewritten = rewrite(gm, analysis)
    return run_later_passes(rewritten, plan, after_stage, keeps_values)


def run_later_passes(
    rewritten: Rewritten, plan: Plan, after_stage: AfterStage = check_level, keeps_values: bool = False
) -> Passed:
    """Take a rewritten graph of ``plan`` through the levels that follow; as ``run_passes``."""
    group = plan.config.sequence_group
    gm = rewritten.gm if group is None else shard_sequence(rewritten, Shards.of(group))
    after_stage(gm, Level.REWRITTEN, plan)
    choice = choose(gm, plan)
    uses_kernels = choice.implementation is Implementation.KERNELS
    scheduled = schedule(gm, plan, joins_blocks=uses_kernels, most_in_place=choice.most_in_place)
    fused = fuse(scheduled.gm, plan) if uses_kernels else None
    after_stage(scheduled.gm, Level.SCHEDULED, plan)
    lowered = lower(scheduled.gm, choice.implementation, keeps_values)
    after_stage(lowered, Level.LOWERED, plan)
    return Passed(rewritten, gm, scheduled, lowered, choice, fused)
