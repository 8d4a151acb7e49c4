"""The passes in the order in which they run: one way through the levels, for a model, a recorded model and a chunk.

A whole model enters at ``run_passes``, its regions opened (``inline/open_regions.py``) before it was analysed. A
recorded model and a pipeline chunk, which are made of a rewritten graph, enter behind the rewrite, at
``lower_rewritten``. Every pass gives a new graph and leaves the one it is given as it was;
behind every pass, the rules of the graph's level are checked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch.fx import GraphModule

from attnres_passes.analyses.streams import Analysis
from attnres_passes.inline.close_regions import close_regions, without_regions
from attnres_passes.ir.levels import Level, check_level
from attnres_passes.ir.plan import Plan
from attnres_passes.lower.lower import lower
from attnres_passes.ranks.layout import StageLayout
from attnres_passes.ranks.shard_sequence import shard_sequence
from attnres_passes.ranks.shards import Shards
from attnres_passes.ranks.stages import stage
from attnres_passes.rewrite.rewrite import Rewritten, rewrite
from attnres_passes.schedule.fuse import Fused, fuse
from attnres_passes.schedule.provider import Provider, ProviderChoice, choose_provider
from attnres_passes.schedule.schedule import Scheduled, schedule

AfterPass = Callable[[GraphModule, Level, Plan], None]
"""Called with the graph that a pass gave, its level, and the plan of the whole model; checks it, and may keep it."""


@dataclass(frozen=True)
class LoweredLevels:
    """The graph from the rewritten level on.

    rewritten: over several ranks, if the plan says so; scheduled: with what was fused; lowered: with every read bound;
    closed: the same with its checkpoints, which the inner compiler is given; choice: what the reads are bound to, and
    why; fused: None where the inner compiler fuses.
    """

    rewritten: GraphModule
    scheduled: Scheduled
    lowered: GraphModule
    closed: GraphModule
    choice: ProviderChoice
    fused: Fused | None

    def bound_text(self) -> str:
        """What reads are bound to, and why."""
        return f"bound to {self.choice.provider.value}: {self.choice.why}"

    def schedule_text(self) -> str:
        """The cost model's table for each stream, what reads are bound to, and what was fused."""
        parts = [str(self.scheduled), self.bound_text(), *([] if self.fused is None else [str(self.fused)])]
        return "\n".join(part for part in parts if part)


@dataclass(frozen=True)
class GraphLevels(LoweredLevels):
    """All levels after the captured one. rewrite: what the rewrite gave, before it was placed on ranks."""

    rewrite: Rewritten


def run_passes(
    gm: GraphModule,
    analysis: Analysis,
    after_pass: AfterPass = check_level,
    keeps_values: bool = False,
    differentiates: bool = True,
) -> GraphLevels:
    """Take a captured graph through all levels.

    Args:
        gm: as Dynamo captured it, with its regions open.
        analysis: made on ``gm``; its plan may have another config than it was made with, but for the blocks.
        after_pass: called behind every pass.
        keeps_values: keep the value of every read, to compare them, also where a kernel would not write it.
        differentiates: gradients may be wanted, so that reads are scheduled for a backward, too.

    Raises:
        ConfigError: ATTNRES_KERNELS asks for what cannot be.
        StageError: the graph cannot be cut into the ``stages`` of the config.
        SequenceError: a stream cannot be cut along the sequence, or the process group is not there.
        LevelError: a pass broke a rule; a fault of ours.
    """
    plan = analysis.plan
    rewritten = rewrite(gm, analysis)
    # Over several ranks before the schedule, which then groups the reads of each rank and stage by themselves.
    placed = rewritten.gm
    if plan.config.sequence_group is not None:
        after_pass(rewritten.gm, Level.REWRITTEN, plan)
        placed = shard_sequence(rewritten, Shards.of(plan.config.sequence_group))
    elif plan.config.stages is not None and plan.streams:
        after_pass(rewritten.gm, Level.REWRITTEN, plan)
        placed = stage(rewritten.gm, plan, StageLayout(plan.config.stages)).gm
    lower_levels = lower_rewritten(placed, plan, after_pass, keeps_values, differentiates)
    return GraphLevels(**vars(lower_levels), rewrite=rewritten)


def lower_rewritten(
    rewritten: GraphModule,
    plan: Plan,
    after_pass: AfterPass = check_level,
    keeps_values: bool = False,
    differentiates: bool = True,
) -> LoweredLevels:
    """Take a graph of the rewritten level to the lowered one.

    Args:
        rewritten: of a model, with or without its statistics, or of one pipeline chunk.
        plan: of the whole model.
        after_pass, keeps_values, differentiates: those of ``run_passes``.

    Raises:
        ConfigError: ATTNRES_KERNELS asks for what cannot be.
        LevelError: a pass broke a rule; a fault of ours.
    """
    # Whatever pass made the graph, it is checked here, before the next one reads it.
    after_pass(rewritten, Level.REWRITTEN, plan)
    if not differentiates:
        rewritten = without_regions(rewritten)
    # The provider comes first, since a schedule for kernels weighs bytes and launches that torch calls do not have.
    choice = choose_provider(rewritten, plan, differentiates)
    is_auto = plan.config.schedule == "auto" and choice.provider is Provider.TORCH
    if plan.config.regions and is_auto and not differentiates:
        # Reads by the definition are alike; direct ones, which would be compiled, differ by their place in the block.
        plan = replace(plan, config=replace(plan.config, schedule="naive"))
    scheduled = schedule(rewritten, plan, choice)
    after_pass(scheduled.gm, Level.SCHEDULED, plan)
    fused = None
    if choice.provider is Provider.TRITON:
        fused = fuse(scheduled.gm, plan)
        scheduled = replace(scheduled, gm=fused.gm)
        after_pass(scheduled.gm, Level.SCHEDULED, plan)
    lowered = lower(scheduled.gm, plan, choice.provider, keeps_values)
    after_pass(lowered, Level.LOWERED, plan)
    closed = close_regions(lowered, plan.config.inner == "eager")
    return LoweredLevels(rewritten, scheduled, lowered, closed, choice, fused)
