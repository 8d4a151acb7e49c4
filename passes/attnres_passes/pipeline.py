"""The passes in the order in which they run, from a captured graph and its analysis to what is compiled.

A new pass is one line in ``run_passes``: compilation, explanation and verification all go through it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch.fx import GraphModule

from attnres_passes.analyses.streams import Analysis
from attnres_passes.ir.levels import Level, check_level
from attnres_passes.ir.plan import Plan
from attnres_passes.lower.lower import lower
from attnres_passes.lower.provider import Provider, ProviderChoice, choose_provider
from attnres_passes.ranks.layout import StageLayout
from attnres_passes.ranks.shard_sequence import shard_sequence
from attnres_passes.ranks.shards import Shards
from attnres_passes.ranks.stages import stage
from attnres_passes.rewrite.rewrite import ParameterSlot, Rewritten, rewrite
from attnres_passes.schedule.fuse import Fused, fuse
from attnres_passes.schedule.schedule import Scheduled, schedule

AfterStage = Callable[[GraphModule, Level, Plan], None]


@dataclass(frozen=True)
class GraphLevels:
    """The graph at the levels after the captured one.

    result: of the rewrite; rewritten: its graph, over several ranks if the plan says so; choice: what the reads are
    bound to, and why; fused: what was fused with them, None where the inner compiler fuses.
    """

    result: Rewritten
    rewritten: GraphModule
    scheduled: Scheduled
    lowered: GraphModule
    choice: ProviderChoice
    fused: Fused | None

    @property
    def slots(self) -> tuple[ParameterSlot, ...]:
        """What the appended placeholders of all levels stand for."""
        return self.result.slots

    def bound_text(self) -> str:
        """What reads are bound to, and why."""
        return f"bound to {self.choice.provider.value}: {self.choice.why}"

    def schedule_text(self) -> str:
        """The cost model's table for each stream, what reads are bound to, and what was fused."""
        parts = [str(self.scheduled), self.bound_text(), *([] if self.fused is None else [str(self.fused)])]
        return "\n".join(part for part in parts if part)


def lower_chunk(chunk: GraphModule, plan: Plan) -> GraphModule:
    """Take the rewritten graph of one pipeline chunk to the lowered level. plan: of the whole model.

    Raises:
        ConfigError: ATTNRES_KERNELS asks for what cannot be.
    """
    choice = choose_provider(chunk, plan)
    uses_kernels = choice.provider is Provider.KERNELS
    scheduled = schedule(chunk, plan, uses_kernels, choice.most_in_place, choice.most_with_own_logits)
    if uses_kernels:
        fuse(scheduled.gm, plan)
    lowered = lower(scheduled.gm, plan, choice.provider)
    lowered.graph.lint()
    return lowered


def run_passes(
    gm: GraphModule,
    analysis: Analysis,
    after_stage: AfterStage = check_level,
    keeps_values: bool = False,
    differentiates: bool = True,
) -> GraphLevels:
    """Take ``gm``, on which ``analysis`` was made, through all levels. Neither is changed.

    after_stage: called with the graph of each level, when it is made; checks it and may keep it; keeps_values: as for
    ``lower``, to compare the values of reads; differentiates: gradients may be wanted, so that reads are scheduled
    for a backward, too.

    Raises:
        ConfigError: ATTNRES_KERNELS asks for what cannot be.
        StageError: ``stages`` of the config are asked for, and the graph cannot be cut so.
        SequenceError: a stream cannot be cut along the sequence, or the process group is not there.
    """
    plan = analysis.plan
    rewritten = rewrite(gm, analysis)
    return run_later_passes(rewritten, _placed(rewritten, plan), plan, after_stage, keeps_values, differentiates)


def _placed(rewritten: Rewritten, plan: Plan) -> GraphModule:
    """The graph of ``rewritten`` as the config wants it over several ranks: cut along the sequence, or in stages."""
    config = plan.config
    if config.sequence_group is not None:
        return shard_sequence(rewritten, Shards.of(config.sequence_group))
    if config.stages is not None and plan.streams:
        return stage(rewritten.gm, plan, StageLayout(config.stages)).gm
    return rewritten.gm


def run_later_passes(
    result: Rewritten,
    rewritten: GraphModule,
    plan: Plan,
    after_stage: AfterStage = check_level,
    keeps_values: bool = False,
    differentiates: bool = True,
) -> GraphLevels:
    """Take the graph ``rewritten``, which is that of ``result`` or was made of it, on; as ``run_passes``."""
    after_stage(rewritten, Level.REWRITTEN, plan)
    choice = choose_provider(rewritten, plan, differentiates)
    uses_kernels = choice.provider is Provider.KERNELS
    scheduled = schedule(rewritten, plan, uses_kernels, choice.most_in_place, choice.most_with_own_logits)
    fused = fuse(scheduled.gm, plan) if uses_kernels else None
    after_stage(scheduled.gm, Level.SCHEDULED, plan)
    lowered = lower(scheduled.gm, plan, choice.provider, keeps_values)
    after_stage(lowered, Level.LOWERED, plan)
    return GraphLevels(result, rewritten, scheduled, lowered, choice, fused)
