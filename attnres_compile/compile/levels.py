"""The graphs of a model with their levels, and the passes run under another config than that of the analysis."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from torch.fx import GraphModule

from attnres_compile.capture.analysis import AnalysedGraph
from attnres_compile.progress import stage
from attnres_passes.analyses.streams import Analysis
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ir.levels import Level, check_level
from attnres_passes.pipeline import GraphLevels, run_passes
from attnres_passes.rewrite.rewrite import rewrite


@dataclass(frozen=True)
class ModelGraph:
    """A graph of a model. levels: what the passes made of it, None where it holds no stream."""

    analysed: AnalysedGraph
    levels: GraphLevels | None

    def by_level(self) -> Mapping[Level, GraphModule]:
        """The graph at each level; as it was captured where nothing is rewritten."""
        before = self.analysed.captured.gm
        if self.levels is None:
            return dict.fromkeys(Level, before)
        after = self.levels.rewritten, self.levels.scheduled.gm, self.levels.lowered
        return dict(zip(Level, (before, *after), strict=True))


def run_passes_under(
    graph: AnalysedGraph, config: AttnResConfig, keeps_values: bool = False, differentiates: bool = True
) -> GraphLevels:
    """The levels of one captured graph under another config than that of the analysis, each checked.

    Args:
        graph: its partition into blocks stays.
        config: gives scale, eps and schedule.
        keeps_values, differentiates: those of ``run_passes``.
    """
    stage("rewriting and scheduling the graph")
    return run_passes(
        graph.captured.gm, _under(graph, config), keeps_values=keeps_values, differentiates=differentiates
    )


def rewritten_under(graph: AnalysedGraph, config: AttnResConfig) -> GraphModule:
    """The rewritten level alone, checked.

    Args:
        graph: its partition into blocks stays.
        config: gives scale and eps.
    """
    analysis = _under(graph, config)
    gm = rewrite(graph.captured.gm, analysis).gm
    check_level(gm, Level.REWRITTEN, analysis.plan)
    return gm


def _under(graph: AnalysedGraph, config: AttnResConfig) -> Analysis:
    return dataclasses.replace(graph.analysis, plan=dataclasses.replace(graph.analysis.plan, config=config))
