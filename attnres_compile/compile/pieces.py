"""Graphs that are a piece of a model that was not prepared: a module by itself, or what comes before or behind a break.

A prepared model knows its streams. Of another one, such a graph may hold a piece of a stream, and would get parameters
for that piece alone.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from torch import nn

from attnres_compile.capture.cuts import placeholder_values
from attnres_compile.capture.graph_breaks import Cut, goes_on
from attnres_compile.model.errors import PartOfModelError
from attnres_compile.model.owner import Owner
from attnres_passes.analyses.left_out import open_sums, origin_of
from attnres_passes.analyses.streams import Analysis
from attnres_passes.torch_private.captures.compiled_frame import compiled_frame
from attnres_passes.torch_private.dynamo import GraphEnd, uncompiled_caller

_open: weakref.WeakKeyDictionary[nn.Module, dict[int, GraphEnd]] = weakref.WeakKeyDictionary()
"""By model: widths of the running sums that its graphs end with at a break, and that break."""


def check_not_a_piece(owner: Owner, analysis: Analysis, inputs: Sequence[Any], end: GraphEnd) -> None:
    """Check that no stream of a graph goes on outside of it, while Dynamo calls the backend.

    Args:
        owner: of the graph.
        analysis: of the graph.
        inputs: values of its placeholders, real parameters among them.
        end: how it ends.

    Raises:
        PartOfModelError: the module was called by the forward of another one, outside of any graph, and gives the
            running sum of a stream back to it.
        GraphBreakError: the graph goes on behind a break with the running sum of the graph before it.
    """
    if owner.parameters is not None:
        return
    if end.is_break:
        values = analysis.trace.values
        sums = {values[output].shape[-1]: end for output in open_sums(analysis.trace)}
        _open.setdefault(owner.model, {}).update(sums)
    if not analysis.plan.streams:
        return
    _check_beginning(owner, analysis, inputs)
    stream = next((stream for stream in analysis.plan.streams if goes_on(stream)), None)
    caller = "" if stream is None else uncompiled_caller(owner.frame.module)
    if stream is not None and caller:
        raise PartOfModelError(
            f"{type(owner.frame.module).__name__} is compiled on its own, called at {caller} outside of any graph, and "
            f"its residual stream of {len(stream.writes)} writes goes on there; it would get AttnRes parameters of its "
            "own, with the depth of a single part. Call attnres_compile.prepare(model, args) on the whole model first. "
            "If the whole model is compiled already, a graph break there cuts its stream: torch.compile(model, "
            "fullgraph=True) names the line."
        )


def _check_beginning(owner: Owner, analysis: Analysis, inputs: Sequence[Any]) -> None:
    before = _open.get(owner.model, {})
    if not before or not compiled_frame().is_resumed:
        return
    values = placeholder_values(analysis.trace)
    given = {value for value, held in zip(values, inputs, strict=True) if not isinstance(held, nn.Parameter)}
    for stream, nodes in zip(analysis.plan.streams, analysis.stream_nodes, strict=True):
        begins = origin_of(analysis.trace, nodes.trunk.order[0])
        if stream.width in before and not given.isdisjoint(begins.inputs):
            raise Cut(stream, "before its first write", before[stream.width]).error()
