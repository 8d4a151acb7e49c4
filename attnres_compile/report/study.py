"""What the report needs to know of a model: its plan, and what executing and scheduling its graphs counts.

The model is captured without data, on the meta device, so that its size does not matter. Its graphs are executed once
as they were captured, and the residual mechanism, taken out of the rewritten graph, once on its own: what the sublayers
do is the same on both sides.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.fx import GraphModule, Node

from attnres_compile.api.preparation import AnalysedGraph, analyse_model, apply_on_decline, plan_of
from attnres_compile.capture.weightless import weightless_copy, weightless_inputs
from attnres_compile.model.errors import CaptureError, GraphBreakError
from attnres_compile.report.execution import Counted, count, weightless
from attnres_compile.report.formulas import ATTENTION
from attnres_kernels.generation.traffic import Traffic
from attnres_kernels.launch import rows, tiling
from attnres_passes.analyses.aten_trace import AtenTrace
from attnres_passes.analyses.streams import find_streams
from attnres_passes.cost.residual_path import residual_path_of
from attnres_passes.cost.traffic import plain_traffic, traffic
from attnres_passes.ir.annotations import annotation_of
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ir.plan import Plan
from attnres_passes.lower.lower import lower
from attnres_passes.lower.provider import Provider
from attnres_passes.rewrite.rewrite import rewrite
from attnres_passes.schedule.fuse import fuse
from attnres_passes.schedule.schedule import schedule

SCHEDULES = ("naive", "direct", "two_phase", "auto")
FULL = "full"
"""Full AttnRes, every write a block of its own, in the best schedule."""


@dataclass(frozen=True)
class Lengths:
    """Tokens per row: captured, and asked for. What was counted at the one is scaled to the other."""

    captured: int = 1
    asked: int = 1

    @property
    def ratio(self) -> float:
        return self.asked / self.captured

    def flops(self, by_operator: Counter[str]) -> float:
        """Attention over all pairs of tokens grows with the square of their number, all else with it."""
        pairs = sum(number for name, number in by_operator.items() if name in _OF_PAIRS)
        return (sum(by_operator.values()) - pairs) * self.ratio + pairs * self.ratio**2


_OF_PAIRS = {str(operator) for operator in ATTENTION}


@dataclass(frozen=True)
class StreamShape:
    """Of one stream of the plan. rows: tokens of all rows of the batch; element_bytes: of one number of ``dtype``."""

    width: int
    rows: int
    element_bytes: int
    dtype: str

    @property
    def row_bytes(self) -> int:
        return self.width * self.element_bytes


@dataclass(frozen=True)
class Study:
    """plan: of the whole model; shapes, plain_moved, moved: of its streams, the last by schedule.

    plain, mechanism: what executing counted, one per graph, or None and ``not_counted`` says why.
    kernels: why the reads are not on generated kernels; '' where they are.
    """

    plan: Plan
    shapes: tuple[StreamShape, ...]
    plain_moved: tuple[Traffic, ...]
    moved: Mapping[str, tuple[Traffic, ...]]
    plain: tuple[Counted, ...] | None
    residual_path: tuple[Counted, ...] | None
    not_counted: str
    kernels: str
    lengths: Lengths


def study(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], config: AttnResConfig, lengths: Lengths
) -> Study:
    """Study ``model(*args, **kwargs)``; changes nothing. Raises what ``explain`` raises."""
    graphs, not_counted = captured_graphs(model, args, kwargs, config)
    return study_graphs(graphs, config, lengths, not_counted)


def study_graphs(
    graphs: Sequence[AnalysedGraph],
    config: AttnResConfig,
    lengths: Lengths,
    not_counted: str = "",
    with_model: bool = True,
) -> Study:
    """Study captured graphs, analysed under ``config``.

    not_counted: why they cannot be executed; '' if they can. with_model: else the mechanism alone is studied, under its
    own schedule alone.
    """
    plan = plan_of(graphs, config)
    if not plan.streams:
        apply_on_decline(plan)
    rewritten = [_Rewritten(graph) for graph in graphs if graph.analysis.plan.streams]
    schedules = SCHEDULES if with_model else (config.schedule,)
    moved = {name: tuple(x for one in rewritten for x in one.moved(name)) for name in schedules}
    if with_model:
        full = [_Rewritten(under(graph, _full(config))) for graph in graphs if graph.analysis.plan.streams]
        moved[FULL] = tuple(x for one in full for x in one.moved("auto"))
    plain, residual_path = None, None
    if not not_counted:
        try:
            plain = tuple(count(one.captured.gm, one.captured.inputs) for one in graphs) if with_model else None
            residual_path = tuple(one.counted() for one in rewritten)
        except NotImplementedError as error:  # how torch says that an operator has no shapes without data
            not_counted = f"the model cannot be executed without data: {str(error).splitlines()[0]}"
    return Study(
        plan=plan,
        shapes=tuple(shape for one in rewritten for shape in one.shapes()),
        plain_moved=tuple(plain_traffic(stream) for stream in plan.streams),
        moved=moved,
        plain=plain,
        residual_path=residual_path,
        not_counted=not_counted,
        kernels=next((reason for one in rewritten if (reason := one.without_kernels())), ""),
        lengths=lengths,
    )


def captured_graphs(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], config: AttnResConfig
) -> tuple[tuple[AnalysedGraph, ...], str]:
    """The graphs of the model without data; of the model itself, and why, where it needs data to be captured."""
    try:
        inputs, named = weightless_inputs((args, dict(kwargs)))
        return analyse_model(weightless_copy(model), inputs, named, config), ""
    except (CaptureError, GraphBreakError) as error:
        if any(parameter.is_meta for parameter in model.parameters()):
            raise
        graphs = analyse_model(model, args, kwargs, config)
        first = str(error).splitlines()[0]
        return graphs, f"the model is not captured without data, on the meta device, where this is counted: {first}"


def under(graph: AnalysedGraph, config: AttnResConfig) -> AnalysedGraph:
    """The same graph, analysed under another config."""
    return AnalysedGraph(graph.captured, find_streams(graph.analysis.trace, config))


def _full(config: AttnResConfig) -> AttnResConfig:
    return dataclasses.replace(config, num_blocks=None, block_size=1)


class _Rewritten:
    """One graph with its mechanism, scheduled in several ways."""

    def __init__(self, graph: AnalysedGraph) -> None:
        self.plan = graph.analysis.plan
        self.trace: AtenTrace = graph.analysis.trace
        self.stream_nodes = graph.analysis.stream_nodes
        self.gm = residual_path_of(rewrite(graph.captured.gm, graph.analysis).gm, self.plan)

    def _root_value(self, index: int) -> Any:
        number = self.trace.node_output[self.stream_nodes[index].root]
        assert number is not None
        return self.trace.values[number]

    def shapes(self) -> list[StreamShape]:
        found = []
        for index, stream in enumerate(self.plan.streams):
            value = self._root_value(index)
            tokens = 1
            for size in value.shape[:-1]:
                tokens *= int(size)
            dtype = str(value.dtype).removeprefix("torch.")
            found.append(StreamShape(stream.width, tokens, value.dtype.itemsize, dtype))
        return found

    def without_kernels(self) -> str:
        """What generated kernels, which a model on a GPU runs on, cannot hold; '' if nothing."""
        for index, stream in enumerate(self.plan.streams):
            dtype = self._root_value(index).dtype
            if dtype not in rows.DTYPES:
                return f"a stream is {str(dtype).removeprefix('torch.')}, and the kernels compute in fp32"
            if stream.width > tiling.WIDEST:
                return f"a stream is {stream.width} wide, and the kernels hold rows of at most {tiling.WIDEST}"
        if self.plan.config.schedule == "naive":
            return "schedule='naive' is the definition in torch"
        return ""

    def scheduled(self, name: str) -> GraphModule:
        """The mechanism under a schedule, fused as for kernels."""
        config = dataclasses.replace(self.plan.config, schedule=name)  # type: ignore[arg-type]
        plan = dataclasses.replace(self.plan, config=config)
        widest = max(stream.width for stream in plan.streams)
        gm = schedule(self.gm, plan, joins_blocks=True, most_in_place=tiling.most_in_place(widest)).gm
        if name != "naive":
            fuse(gm, plan)
        return gm

    def moved(self, name: str) -> tuple[Traffic, ...]:
        return traffic(self.scheduled(name), self.plan)

    def counted(self) -> Counted:
        """Of the mechanism, lowered as it would be on a GPU, or to torch calls where kernels cannot hold it."""
        on_kernels = not self.without_kernels()
        if on_kernels:
            lowered = lower(self.scheduled(self.plan.config.schedule), self.plan, Provider.KERNELS)
        else:
            lowered = lower(schedule(self.gm, self.plan, False, 0).gm, self.plan, Provider.TORCH)
        widths = _added_widths(lowered, self.plan)
        return count(lowered, weightless(lowered, self._root_value(0).dtype, widths), keeps_inputs=True)


def _added_widths(gm: GraphModule, plan: Plan) -> dict[Node, int]:
    """The placeholders of the parameters that the rewrite adds."""
    annotations = {node: annotation_of(node) for node in gm.graph.nodes if node.op == "placeholder"}
    return {
        node: plan.streams[annotation.stream].width
        for node, annotation in annotations.items()
        if annotation is not None and annotation.kind == "parameter"
    }


def total(counted: Sequence[Counted], field: str) -> Counter[str]:
    """The sum of a counter over graphs."""
    return sum((getattr(one, field) for one in counted), Counter())
