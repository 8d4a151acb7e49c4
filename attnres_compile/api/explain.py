"""``explain``: what would be done to a model, without doing it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.fx import GraphModule

from attnres_compile.api.prepare import config_from
from attnres_compile.capture.analysis import analyse_capture, apply_on_decline, first_cut, plan_of
from attnres_compile.capture.capture import capture
from attnres_compile.compile.levels import ModelGraph, run_passes_under
from attnres_compile.progress import stage
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ir.levels import Level
from attnres_passes.ir.plan import Plan
from attnres_passes.ir.text import graph_text

# Pages and pictures are loaded by the methods that make them, so that no other verb pays for them.
if TYPE_CHECKING:
    from attnres_compile.inspection.facts.facts import Inspection
    from attnres_compile.inspection.fold.folding import FoldedInspection


@dataclass(frozen=True)
class Explanation:
    """A plan, the graphs at each level, and all that there is to say about them; ``str()`` is a report in text.

    plan, inspection: of the whole model; graphs: in the order they run. ``before``, ``after``, ``scheduled`` and
    ``lowered`` are the levels of the first graph with a stream.
    """

    plan: Plan
    inspection: Inspection
    graphs: tuple[ModelGraph, ...] = field(repr=False)
    name: str

    @property
    def before(self) -> GraphModule:
        """The captured graph."""
        return self._levels[Level.CAPTURED]

    @property
    def after(self) -> GraphModule:
        """The rewritten graph; ``before`` where nothing is rewritten."""
        return self._levels[Level.REWRITTEN]

    @property
    def scheduled(self) -> GraphModule:
        """The graph with its reads grouped."""
        return self._levels[Level.SCHEDULED]

    @property
    def lowered(self) -> GraphModule:
        """What the inner compiler is given."""
        return self._levels[Level.LOWERED]

    @property
    def schedule(self) -> str:
        """The cost model's table, and what reads are bound to."""
        return self.inspection.schedule

    @cached_property
    def _levels(self) -> Mapping[Level, GraphModule]:
        return next((graph for graph in self.graphs if graph.levels is not None), self.graphs[0]).by_level()

    def _folded(self, expand: Collection[str]) -> FoldedInspection:
        from attnres_compile.inspection.fold.folding import fold_streams

        return fold_streams(self.inspection, expand)

    def text(self, level: str) -> str:
        """The graphs of a level ("captured", "rewritten", "scheduled", "lowered") as Python text."""
        texts = [graph_text(graph.by_level()[Level(level)]) for graph in self.graphs]
        if len(texts) == 1:
            return texts[0]
        return "\n".join(f"# graph {number} of {len(texts)}\n{text}" for number, text in enumerate(texts, start=1))

    def report(self, expand: Collection[str] = ()) -> str:
        """What is rewritten and what is not, as text. expand: layers that are not folded into their neighbours.

        Raises ExpandError.
        """
        from attnres_compile.inspection.text.inspection_text import inspection_text

        return inspection_text(self._folded(expand))

    def diff(self, expand: Collection[str] = ()) -> str:
        """The residual streams before and after, as a unified diff. Raises ExpandError."""
        from attnres_compile.inspection.text.skeleton import skeleton_diff

        return skeleton_diff(self._folded(expand))

    def to_svg(self, expand: Collection[str] = ()) -> str:
        """The residual streams before and after, side by side, as an SVG document. Raises ExpandError."""
        from attnres_compile.inspection.pictures.picture import svg

        return svg(self._folded(expand))

    def to_dot(self, expand: Collection[str] = ()) -> str:
        """The rewritten streams as Graphviz text. Raises ExpandError."""
        from attnres_compile.inspection.text.dot import dot

        return dot(self._folded(expand))

    def to_html(self, path: str | Path | None = None, expand: Collection[str] = ()) -> str:
        """A page with pictures, tables and graphs that needs no other file.

        Args:
            path: where to write it, if anywhere.
            expand: layers that are not folded into their neighbours.

        Raises:
            ExpandError: no stream has such a layer.
        """
        from attnres_compile.inspection.pictures.page import page

        text = page(self.name, self._folded(expand), {level.value: self.text(level.value) for level in Level})
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def to_dict(self) -> dict[str, Any]:
        """Plain data with a ``schema_version``; ``inspection/facts/inspection.schema.json`` describes it."""
        return {**self.inspection.to_dict(), "model": self.name}

    def __str__(self) -> str:
        return f"{self.report()}\n\nschedule\n{self.schedule}" if self.schedule else self.report()


def explain(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    config: AttnResConfig | None = None,
    name: str | None = None,
    **options: Any,
) -> Explanation:
    """Analyse and rewrite ``model`` on example inputs and return plan and graphs; the model is not changed.

    Args:
        model, args, kwargs, config, options: those of ``prepare``. With ``on_decline`` "warn" or "ignore", a model of
            which nothing can be rewritten is explained too, also one whose stream a graph break cuts. Under
            ``torch.no_grad()``, the schedule is that of a graph without gradients.
        name: of the model in reports; by default its class's.

    Raises:
        ConfigError, CaptureError, GraphBreakError, NoStreamError.
    """
    from attnres_compile.inspection.facts.borders import compiled_parts
    from attnres_compile.inspection.facts.build import breaks_of, inspection_of

    chosen = config_from(config, options)
    captured = capture(model, args, kwargs)
    graphs = analyse_capture(captured, chosen)
    cut = first_cut(graphs)
    if cut is not None and chosen.on_decline != "error":
        # Compilation stops at the break, so that nothing is rewritten.
        declined = tuple(decline for graph in graphs for decline in graph.analysis.plan.declined)
        plan = Plan((), declined, chosen)
    else:
        plan = plan_of(graphs, chosen)
        if not plan.streams:
            apply_on_decline(plan)
    model_graphs = tuple(
        ModelGraph(
            graph,
            run_passes_under(graph, chosen, differentiates=torch.is_grad_enabled())
            if plan.streams and graph.analysis.plan.streams
            else None,
        )
        for graph in graphs
    )
    stage("describing what is rewritten")
    breaks = breaks_of(captured, "" if cut is None else cut.stream.name)
    parts = compiled_parts(model)
    return Explanation(
        plan, inspection_of(plan, model_graphs, breaks, parts), model_graphs, name or type(model).__name__
    )
