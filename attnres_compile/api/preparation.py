"""``prepare``: analyse a model once, register the parameters of its reads, and return the plan."""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from attnres_compile.api import optimizers
from attnres_compile.capture.capture import Capture, Captured, capture
from attnres_compile.model import parameters
from attnres_compile.model.errors import AlreadyPreparedError, GraphBreakError, NoStreamError
from attnres_compile.model.parameters import parameters_of, unwrapped
from attnres_passes.analyses.aten_recorder import trace_aten
from attnres_passes.analyses.streams import Analysis, find_streams
from attnres_passes.ir.config import AttnResConfig, ConfigError
from attnres_passes.ir.plan import Decline, Plan, Reason, Stream
from attnres_passes.torch_private.dynamo import GraphEnd


@dataclass(frozen=True)
class AnalysedGraph:
    """A captured graph with its analysis."""

    captured: Captured
    analysis: Analysis


def prepare(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    config: AttnResConfig | None = None,
    **options: Any,
) -> Plan:
    """Find the residual streams of ``model`` and register the parameters that depth attention adds, in place.

    The model is captured on ``model(*args, **kwargs)`` and not trained, compiled or otherwise changed. Call this
    before an optimizer, DDP or FSDP take the parameters, and before ``model.compile(backend="attnres")``.

    Args:
        model: any module; its forward on the example inputs is what is analysed.
        args, kwargs: example inputs; sizes may differ later, optional inputs and outputs should not.
        config: an AttnResConfig, or its fields as keywords in ``options``.

    Returns:
        The plan. ``model.attnres.streams[i].reads[k]`` holds ``query`` ``[d]`` (zeros) and ``key_norm.weight``
        ``[d]`` (ones) of the k-th read with two sources or more of its i-th stream.

    Raises:
        ConfigError, CaptureError, NoStreamError (unless ``on_decline`` is "warn" or "ignore"), GraphBreakError,
        AlreadyPreparedError (with another plan), RegistrationError. The model is then as it was.
    """
    chosen = config_from(config, options)
    model = unwrapped(model)
    plan = plan_of(analyse_model(model, args, kwargs, chosen), chosen)
    existing = parameters_of(model)
    if existing is not None:
        if dataclasses.replace(existing.plan, declined=()) != dataclasses.replace(plan, declined=()):
            raise AlreadyPreparedError(
                f"{type(model).__name__} is already prepared with another plan; call "
                "attnres_compile.unprepare(model) first, which drops the trained pseudo-queries."
            )
        return existing.plan
    if not plan.streams:
        apply_on_decline(plan)
        return plan
    parameters.register(model, plan)
    optimizers.watch()
    return plan


def unprepare(model: nn.Module) -> None:
    """Take the AttnRes parameters off ``model``, which is then what it was before ``prepare``.

    Graphs that were compiled with them are dropped by Dynamo at the next call. Raises NotPreparedError.
    """
    model = unwrapped(model)
    parameters.remove(model)
    if model._compiled_call_impl is not None:
        model._compiled_call_impl = None


def config_from(config: AttnResConfig | None, options: Mapping[str, Any]) -> AttnResConfig:
    """One config from ``config=`` or keywords. Raises ConfigError."""
    if config is None:
        return AttnResConfig.from_options(options)
    if options:
        raise ConfigError(
            f"config= and the options {sorted(options)} are both given; give one of them, or use "
            "dataclasses.replace(config, ..)."
        )
    return config


def analyse_model(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    config: AttnResConfig,
    static: bool = False,
) -> tuple[AnalysedGraph, ...]:
    """Capture ``model`` and analyse each of its graphs. Changes nothing. static: as for ``capture``.

    Raises CaptureError.
    """
    return analyse_capture(capture(model, args, kwargs, static), config)


def analyse_capture(captured: Capture, config: AttnResConfig) -> tuple[AnalysedGraph, ...]:
    """Analyse each graph of a capture. Raises GraphBreakError under ``on_decline="error"``."""
    graphs = tuple(AnalysedGraph(graph, find_streams(trace_aten(graph.gm), config)) for graph in captured.graphs)
    if not captured.is_whole and config.on_decline == "error":
        _check_pieces(captured, graphs)
    return graphs


def _check_pieces(captured: Capture, graphs: Sequence[AnalysedGraph]) -> None:
    """A model in pieces must hold a whole stream in one of them. Raises GraphBreakError."""
    if any(graph.analysis.plan.streams for graph in graphs):
        return
    place = f" at {captured.break_source} ({captured.break_reason})" if captured.break_source else ""
    found = {str(decline) for graph in graphs for decline in graph.analysis.plan.declined}
    raise GraphBreakError(
        f"the model breaks into {len(graphs)} graphs{place}, and none of them holds a whole residual stream. A stream "
        "can be rewritten only inside one graph: take what breaks it out of the forward; torch.compile(model, "
        "fullgraph=True) says more. Found in the pieces:\n" + "\n".join(f"  - {text}" for text in sorted(found))
    )


def plan_of(graphs: Sequence[AnalysedGraph], config: AttnResConfig) -> Plan:
    """The plan of a whole model, from its graphs. Raises GraphBreakError."""
    streams: list[Stream] = []
    declined: list[Decline] = []
    names: Counter[str] = Counter()
    for graph in graphs:
        plan = graph.analysis.plan
        for stream in plan.streams:
            check_not_cut(stream, graph.captured.end)
            names[stream.name] += 1
            repeated = names[stream.name] > 1
            streams.append(
                dataclasses.replace(stream, name=f"{stream.name}.{names[stream.name]}") if repeated else stream
            )
        declined.extend(plan.declined)
    if streams:
        # A piece of the model that holds no stream at all declines none.
        declined = [decline for decline in declined if decline.reason is not Reason.NO_RESIDUAL]
    return Plan(tuple(streams), tuple(declined), config)


def first_cut(graphs: Sequence[AnalysedGraph]) -> Stream | None:
    """The first stream that goes on after the break in which its graph ends; None if there is none."""
    found = ((stream, graph.captured.end) for graph in graphs for stream in graph.analysis.plan.streams)
    return next((stream for stream, end in found if _is_cut(stream, end)), None)


def _is_cut(stream: Stream, end: GraphEnd) -> bool:
    return end.is_break and any(not read.normed and read.state == len(stream.writes) for read in stream.reads)


def check_not_cut(stream: Stream, end: GraphEnd) -> None:
    """Raise GraphBreakError if the graph ended in a break and the stream goes on after it."""
    if _is_cut(stream, end):
        raise GraphBreakError(
            f"a graph break cuts the residual stream {stream.name!r} after "
            f"{stream.writes[-1].module or 'its last write'}: {end.reason} at {end.source}. A stream can be rewritten "
            "only inside one graph: take that line out of the forward, or see it with torch.compile(model, "
            "fullgraph=True)."
        )


def apply_on_decline(plan: Plan, note: str = "") -> None:
    """A model without any stream: an error, a warning, or nothing, as the config says. Raises NoStreamError."""
    if plan.config.on_decline == "error":
        raise NoStreamError(plan.declined, note)
    if plan.config.on_decline == "warn":
        found = "; ".join(str(decline) for decline in plan.declined)
        warnings.warn(f"attnres: no residual stream can be rewritten, the model stays as it is: {found}", stacklevel=3)
