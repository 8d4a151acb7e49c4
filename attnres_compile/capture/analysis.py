"""The analysis of all graphs of a model, and the plan that they make together."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.fx import GraphModule

from attnres_compile.capture import cuts
from attnres_compile.capture.capture import Break, Capture, capture, capture_whole, no_graph
from attnres_compile.capture.eager_trace import trace_eagerly
from attnres_compile.capture.graph_breaks import Cut, check_pieces
from attnres_compile.capture.pieces import Captured
from attnres_compile.model.errors import NoStreamError
from attnres_compile.model.parameters import unwrapped
from attnres_compile.progress import stage
from attnres_passes.analyses.aten_recorder import trace_aten
from attnres_passes.analyses.left_out import open_sums
from attnres_passes.analyses.streams import Analysis, find_streams
from attnres_passes.inline.norms_apart import analysed_apart
from attnres_passes.inline.open_regions import open_regions
from attnres_passes.ir.config import AttnResConfig, ConfigError
from attnres_passes.ir.plan import Decline, Plan, Reason, Stream
from attnres_passes.torch_private.example_values import depends_on_data

log = logging.getLogger("attnres_compile")


@dataclass(frozen=True)
class AnalysedGraph:
    """A captured graph, its regions open, with its analysis.

    plain: the graph before norms were put apart for several queries; None if that is the one captured.
    """

    captured: Captured
    analysis: Analysis
    plain: GraphModule | None = None

    @property
    def plain_gm(self) -> GraphModule:
        """What the plain model computes, as it computes it."""
        return self.captured.gm if self.plain is None else self.plain

    def before_norms_apart(self) -> AnalysedGraph:
        """The same graph as it was captured, with reads of one query each."""
        if self.plain_gm is self.captured.gm:
            return self
        config = dataclasses.replace(self.analysis.plan.config, queries="one")
        captured = dataclasses.replace(self.captured, gm=self.plain_gm)
        return AnalysedGraph(captured, find_streams(trace_aten(captured.gm), config))


def analyse_model(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    config: AttnResConfig,
    static: bool = False,
) -> tuple[AnalysedGraph, ...]:
    """Capture ``model`` and analyse each of its graphs. Changes nothing.

    Args:
        model, args, kwargs, static: those of ``capture``.
        config: of the analysis.

    Raises:
        CaptureError, GraphBreakError: those of ``capture`` and ``analyse_capture``.
    """
    return analyse_capture(capture(model, args, kwargs, static), config)


def analyse_capture(captured: Capture, config: AttnResConfig) -> tuple[AnalysedGraph, ...]:
    """Analyse each graph of a capture.

    Args:
        captured: all graphs of a model.
        config: of the analysis.

    Raises:
        GraphBreakError: under ``on_decline="error"``, no graph of a model in pieces holds a whole stream.
    """
    stage("analysing the captured graph")
    opened = [dataclasses.replace(graph, gm=open_regions(graph.gm)) for graph in captured.graphs]
    graphs = tuple(_analysed(graph, config) for graph in opened)
    if not captured.is_whole and config.on_decline == "error":
        check_pieces(captured, [graph.analysis.plan for graph in graphs])
    return graphs


def _analysed(graph: Captured, config: AttnResConfig) -> AnalysedGraph:
    apart, analysis = analysed_apart(graph.gm, config)
    return AnalysedGraph(dataclasses.replace(graph, gm=apart), analysis, graph.gm)


def plan_of(graphs: Sequence[AnalysedGraph], config: AttnResConfig) -> Plan:
    """The plan of a model whose streams are each in one of its graphs.

    Args:
        graphs: all of its graphs, in the order they run.
        config: that they were analysed with.

    Raises:
        GraphBreakError: a stream goes on beyond its graph.
    """
    cut = first_cut(graphs)
    if cut is not None:
        raise cut.error_of_capture()
    streams: list[Stream] = []
    declined: list[Decline] = []
    names: Counter[str] = Counter()
    for graph in graphs:
        plan = graph.analysis.plan
        for stream in plan.streams:
            names[stream.name] += 1
            repeated = names[stream.name] > 1
            streams.append(
                dataclasses.replace(stream, name=f"{stream.name}.{names[stream.name]}") if repeated else stream
            )
        declined.extend(_with_its_break(graph, decline) for decline in plan.declined)
    if streams:
        # A piece of the model that holds no stream at all declines none.
        declined = [decline for decline in declined if decline.reason is not Reason.NO_RESIDUAL]
    return Plan(tuple(streams), tuple(declined), config)


def _with_its_break(graph: AnalysedGraph, decline: Decline) -> Decline:
    """A single addition is few because a graph break cuts its stream, if one does."""
    end = graph.captured.end
    if decline.reason is not Reason.TOO_FEW_WRITES or not end.is_break or not open_sums(graph.analysis.trace):
        return decline
    message = f"a graph break cuts the stream that this addition is a part of: {end.reason} at {end.source}; take that "
    return dataclasses.replace(decline, message=f"{message}line out of the forward, or leave this stream as it is.")


def plan_model(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None, config: AttnResConfig) -> Plan:
    """The plan of a whole model: of its one graph, or of a run by Python where Dynamo makes no such graph.

    Where sizes depend on data, it makes one under ``fullgraph=True`` only, and several otherwise: one plan serves both.

    Args:
        model, args, kwargs: those of ``capture``.
        config: of the analysis.

    Raises:
        CaptureError: Dynamo makes no graph at all, or the model does not run.
    """
    whole = one_graph(model, args, kwargs)
    if isinstance(whole, Captured):
        return plan_of(analyse_capture(Capture((whole,), is_whole=True), config), config)
    plan = plan_eagerly(model, args, kwargs, config)
    log.info("attnres: %s breaks into several graphs%s; planned from an uncompiled run", type(model).__name__, whole)
    return plan


def one_graph(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> Captured | str:
    """The one graph that Dynamo makes of a model; where and why it makes several, in words, if it does.

    Args:
        model, args, kwargs: those of ``capture``.

    Raises:
        CaptureError: Dynamo makes no graph at all.
    """
    whole = capture_whole(model, args, kwargs)
    if whole is None:
        raise no_graph(unwrapped(model))
    if isinstance(whole, Break):
        return f" at {whole.source} ({whole.reason})" if whole.source else ""
    return ", since its sizes depend on data" if depends_on_data(whole.gm) else whole


def plan_eagerly(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None, config: AttnResConfig
) -> Plan:
    """The plan of a whole model, however many graphs Dynamo makes of it: found in a run by Python. Changes nothing.

    Args:
        model, args, kwargs: those of ``trace_eagerly``.
        config: of the analysis.

    Raises:
        CaptureError: that of ``trace_eagerly``.
        ConfigError: ``queries`` asks for norms to be put apart, and there is no graph.
    """
    if config.queries != "one":
        raise ConfigError(
            f"queries={config.queries!r} puts the norms of one graph apart, and {type(model).__name__} is planned from "
            "an uncompiled run, since Dynamo makes several graphs of it; leave queries out, or take the graph breaks "
            "out of the forward (torch.compile(model, fullgraph=True) names the line)."
        )
    return find_streams(trace_eagerly(model, args, kwargs), config).plan


def first_cut(graphs: Sequence[AnalysedGraph]) -> Cut | None:
    """The first stream that goes on beyond its graph; None if there is none."""
    return cuts.first_cut([graph.captured for graph in graphs], [graph.analysis for graph in graphs])


def warn_if_partial(plan: Plan, stacklevel: int = 3) -> None:
    """Say that a plan covers a piece of a stream only, whatever ``on_decline`` says: what is rewritten is a choice.

    Args:
        plan: of a model.
        stacklevel: of the warning.
    """
    if not plan.partial:
        return
    declined = [str(decline) for decline in plan.declined if decline.reason is not Reason.NOT_SELECTED]
    found = "; ".join(dict.fromkeys(declined))
    warnings.warn(
        f"attnres: {plan.partial_text}. Depth attention then sees the layers of that piece only, and begins at a sum "
        "of all before it. What stands between the pieces changes the running sum itself (a clamp, a gate, an index); "
        "move it into the sublayers' outputs, or behind a norm, for the whole stream to be rewritten"
        + (f". Declined: {found}" if found else "."),
        stacklevel=stacklevel,
    )


def apply_on_decline(plan: Plan, note: str = "") -> None:
    """Say that nothing of a model can be rewritten: by an error, a warning, or not at all, as its config wants.

    Args:
        plan: without streams.
        note: what the message says of the model besides.

    Raises:
        NoStreamError: under ``on_decline="error"``.
    """
    if plan.config.on_decline == "error":
        raise NoStreamError(plan.declined, note)
    if plan.config.on_decline == "warn":
        found = "; ".join(str(decline) for decline in plan.declined)
        warnings.warn(f"attnres: no residual stream can be rewritten, the model stays as it is: {found}", stacklevel=3)
