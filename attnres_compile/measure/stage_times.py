"""Seconds of one compilation, stage by stage up to the rewritten graph; nothing goes further."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from attnres_compile.measure.measure import MeasureError
from attnres_passes.analyses.aten_recorder import trace_aten
from attnres_passes.analyses.streams import find_streams
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ir.plan import Stream
from attnres_passes.rewrite.rewrite import rewrite

STAGES = ("capture", "analysis", "rewrite")


@dataclass(frozen=True)
class StageTimes:
    """seconds: by the names of STAGES; nodes: of the captured graph."""

    seconds: dict[str, float]
    nodes: int


def stage_times(model: nn.Module, args: tuple[Any, ...], config: AttnResConfig | None = None) -> StageTimes:
    """Capture ``model(*args)`` as one graph, analyse and rewrite it, and time each.

    The compiled code that torch keeps for other models is dropped, so that every call captures anew. Raises
    MeasureError if the model has no stream, and what Dynamo raises for a model that it cannot capture whole.
    """
    taken: list[StageTimes] = []
    streams: list[Stream] = []

    def backend(gm: GraphModule, example_inputs: list[torch.Tensor]) -> GraphModule:
        captured = time.perf_counter()
        analysis = find_streams(trace_aten(gm), config or AttnResConfig())
        analysed = time.perf_counter()
        rewrite(gm, analysis)
        rewritten = time.perf_counter()
        seconds = (captured - start, analysed - captured, rewritten - analysed)
        taken.append(StageTimes(dict(zip(STAGES, seconds, strict=True)), len(gm.graph.nodes)))
        streams.extend(analysis.plan.streams)
        return gm

    torch.compiler.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    # Else the garbage of an earlier call is collected at this one's expense.
    gc.collect()
    start = time.perf_counter()
    with torch.no_grad():
        compiled(*args)
    if not streams:
        raise MeasureError(f"{type(model).__name__} has no stream to rewrite: time a PreNorm model")
    return taken[0]
