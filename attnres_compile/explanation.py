"""``explain``: what would be done to a model, without doing it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.fx import GraphModule

from attnres_compile.preparation import AnalysedGraph, analyse_model, config_from, plan_of, settle_declined
from attnres_passes.config import AttnResConfig
from attnres_passes.levels import Level, check_level
from attnres_passes.pipeline import Passed, run_passes
from attnres_passes.plan import Plan
from attnres_passes.rewrite import rewrite
from attnres_passes.streams import Analysis
from attnres_passes.text import graph_text


@dataclass(frozen=True)
class Explanation:
    """A plan and its graphs at each level.

    plan: of the whole model; before: the captured graph; after: the rewritten one (``before`` where nothing is
    rewritten); scheduled: its reads grouped; lowered: what the inner compiler is given; schedule: the cost model's
    table, and what reads are bound to. Of a model with several graphs, they are those of the first graph with a stream.
    """

    plan: Plan
    before: GraphModule = field(repr=False)
    after: GraphModule = field(repr=False)
    scheduled: GraphModule = field(repr=False)
    lowered: GraphModule = field(repr=False)
    schedule: str = field(repr=False)

    def text(self, level: str) -> str:
        """The graph of a level ("captured", "rewritten", "scheduled", "lowered") as Python text."""
        return graph_text(self._graphs()[Level(level)])

    def _graphs(self) -> dict[Level, GraphModule]:
        return {
            Level.CAPTURED: self.before,
            Level.REWRITTEN: self.after,
            Level.SCHEDULED: self.scheduled,
            Level.LOWERED: self.lowered,
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data: the plan, and the number of nodes at each level."""
        nodes = {level.value: len(gm.graph.nodes) for level, gm in self._graphs().items()}
        return {**self.plan.to_dict(), "nodes": nodes}

    def __str__(self) -> str:
        nodes = self.to_dict()["nodes"]
        sizes = ", ".join(f"{level} {count}" for level, count in nodes.items())
        return f"{self.plan}\n\n{self.schedule}\n\nnodes: {sizes}"


def explain(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    config: AttnResConfig | None = None,
    **options: Any,
) -> Explanation:
    """Analyse and rewrite ``model`` on example inputs and return plan and graphs; the model is not changed.

    Args:
        model, args, kwargs, config, options: as for ``prepare``.

    Raises:
        ConfigError, CaptureError, GraphBreakError, NoStreamError (unless ``on_decline`` is "warn" or "ignore").
    """
    chosen = config_from(config, options)
    graphs = analyse_model(model, args, kwargs, chosen)
    plan = plan_of(graphs, chosen)
    if not plan.streams:
        settle_declined(plan)
    graph = next((graph for graph in graphs if graph.analysis.plan.streams), graphs[0])
    passed = passed_under(graph, chosen)
    return Explanation(
        plan, graph.captured.gm, passed.rewritten, passed.scheduled.gm, passed.lowered, passed.schedule_text()
    )


def passed_under(graph: AnalysedGraph, config: AttnResConfig, keeps_values: bool = False) -> Passed:
    """The levels of one captured graph under ``config``, each checked.

    The partition into blocks is that of the analysis; scale, eps and schedule are those of ``config``. keeps_values: as
    for ``run_passes``.
    """
    return run_passes(graph.captured.gm, _under(graph, config), keeps_values=keeps_values)


def rewritten_under(graph: AnalysedGraph, config: AttnResConfig) -> GraphModule:
    """The rewritten level alone, as ``passed_under``."""
    analysis = _under(graph, config)
    gm = rewrite(graph.captured.gm, analysis).gm
    check_level(gm, Level.REWRITTEN, analysis.plan)
    return gm


def _under(graph: AnalysedGraph, config: AttnResConfig) -> Analysis:
    return dataclasses.replace(graph.analysis, plan=dataclasses.replace(graph.analysis.plan, config=config))
