"""What the report needs to know of a model: its plan, and the counts of executing and scheduling its graphs.

The model is captured without data, on the meta device, so that its size does not matter. Its graphs are executed once
as they were captured, and the residual path, taken out of the rewritten graph, once on its own: what the sublayers
do is the same on both sides.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from attnres_compile.capture.analysis import AnalysedGraph, analyse_model, apply_on_decline, plan_of
from attnres_compile.capture.weightless import weightless_copy, weightless_inputs
from attnres_compile.model.errors import CaptureError, GraphBreakError
from attnres_compile.progress import each, stage
from attnres_compile.report.counting.execution import Counted, count, weightless
from attnres_compile.report.counting.formulas import ATTENTION
from attnres_kernels.generation.traffic import Traffic
from attnres_kernels.launch import tiling
from attnres_kernels.launch.rows import DTYPES
from attnres_passes.analyses.aten_trace import AtenTrace
from attnres_passes.analyses.streams import find_streams
from attnres_passes.cost.residual_path import residual_path_of
from attnres_passes.cost.traffic import plain_traffic, traffic
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ir.plan import Plan
from attnres_passes.lower.lower import lower
from attnres_passes.rewrite.placeholders import placeholders_of_parameters
from attnres_passes.rewrite.rewrite import rewrite
from attnres_passes.schedule.fuse import fuse
from attnres_passes.schedule.provider import Provider, ProviderChoice
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
    """The shape ``[rows, width]`` of the states of one stream, rows being the tokens of the whole batch."""

    width: int
    rows: int
    element_bytes: int
    dtype: str

    @property
    def row_bytes(self) -> int:
        return self.width * self.element_bytes


@dataclass(frozen=True)
class ModelCounts:
    """The plan of a model, and what was counted of its streams and its graphs."""

    plan: Plan
    shapes: tuple[StreamShape, ...]
    plain_traffic: tuple[Traffic, ...]
    """Of each stream of the plain model, in units of ``[T, d]``."""
    traffic: Mapping[str, tuple[Traffic, ...]]
    """Of each stream with AttnRes, by schedule."""
    plain: tuple[Counted, ...] | None
    """Of each graph as it was captured, or None: ``not_counted`` says why."""
    residual_path: tuple[Counted, ...] | None
    """Of what the rewrite put into each graph, or None."""
    not_counted: str
    without_kernels: str
    """Why the reads are not on generated kernels; '' where they are."""
    lengths: Lengths

    def bytes_per_write(self, traffic: Sequence[Traffic]) -> float:
        """Bytes per token and sublayer of what is moved for each stream."""
        total = sum(one.total * shape.row_bytes for one, shape in zip(traffic, self.shapes, strict=True))
        return total / sum(len(stream.writes) for stream in self.plan.streams)

    def states_bytes(self) -> int:
        """The states that norms read, which a norm keeps for its backward."""
        return sum(
            len({read.state for read in stream.reads}) * shape.rows * shape.row_bytes
            for stream, shape in zip(self.plan.streams, self.shapes, strict=True)
        )


@dataclass(frozen=True)
class ModelGraphs:
    """The graphs of a model, without its data where they can be captured so, analysed under a config."""

    graphs: Sequence[AnalysedGraph]
    config: AttnResConfig
    not_counted: str = ""
    """Why they cannot be executed; '' if they can."""

    def under(self, config: AttnResConfig) -> ModelGraphs:
        """These graphs with the analysis that another config gives."""
        graphs = [AnalysedGraph(one.captured, find_streams(one.analysis.trace, config)) for one in self.graphs]
        return dataclasses.replace(self, graphs=graphs, config=config)

    def paths(self) -> list[ResidualPath]:
        """The residual paths of the graphs that have streams."""
        return [ResidualPath(graph) for graph in self.graphs if graph.analysis.plan.streams]

    def count(self, lengths: Lengths, with_model: bool = True) -> ModelCounts:
        """Execute and schedule the graphs.

        Args:
            lengths: that the numbers are scaled by.
            with_model: else the residual path alone is counted, under its own schedule alone.

        Raises:
            NoStreamError: nothing can be rewritten, and the config calls that an error.
        """
        plan = plan_of(self.graphs, self.config)
        if not plan.streams:
            apply_on_decline(plan)
        stage("rewriting the graph")
        paths = self.paths()
        schedules = _schedules(self.config) if with_model else (self.config.schedule,)
        of_schedules = each(schedules, "counting the traffic of a schedule")
        by_schedule = {name: tuple(x for one in paths for x in one.traffic(name)) for name in of_schedules}
        if with_model:
            full = self.under(dataclasses.replace(self.config, num_blocks=None, block_size=1))
            by_schedule[FULL] = tuple(x for one in full.paths() for x in one.traffic("auto"))
        plain, residual_path, not_counted = None, None, self.not_counted
        if not not_counted:
            stage("executing the graphs without data")
            try:
                captured = [graph.captured for graph in self.graphs]
                plain = tuple(count(one.gm, one.inputs) for one in captured) if with_model else None
                residual_path = tuple(one.counted() for one in paths)
            except NotImplementedError as error:  # how torch says that an operator has no shapes without data
                not_counted = f"the model cannot be executed without data: {str(error).splitlines()[0]}"
        return ModelCounts(
            plan=plan,
            shapes=tuple(shape for one in paths for shape in one.shapes()),
            plain_traffic=tuple(plain_traffic(stream) for stream in plan.streams),
            traffic=by_schedule,
            plain=plain,
            residual_path=residual_path,
            not_counted=not_counted,
            without_kernels=next((reason for one in paths if (reason := one.without_kernels())), ""),
            lengths=lengths,
        )


def model_graphs(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], config: AttnResConfig
) -> ModelGraphs:
    """Capture a model without its data, or with it, saying why, where capture needs it; the model is not changed.

    Args:
        model: plain, with data or on the meta device.
        args: of its call.
        kwargs: of its call.
        config: of the rewrite.

    Raises:
        AttnResError: what ``attnres_compile.explain`` raises.
    """
    try:
        inputs, named = weightless_inputs((args, dict(kwargs)))
        return ModelGraphs(analyse_model(weightless_copy(model), inputs, named, config), config)
    except (CaptureError, GraphBreakError) as error:
        if any(parameter.is_meta for parameter in model.parameters()):
            raise
        graphs = analyse_model(model, args, kwargs, config)
        first = str(error).splitlines()[0]
    reason = f"the model is not captured without data, on the meta device, where this is counted: {first}"
    return ModelGraphs(graphs, config, reason)


class ResidualPath:
    """What the rewrite put into one graph, scheduled in several ways."""

    def __init__(self, graph: AnalysedGraph) -> None:
        self.plan = graph.analysis.plan
        self.trace: AtenTrace = graph.analysis.trace
        self.stream_nodes = graph.analysis.stream_nodes
        self.rewritten = rewrite(graph.captured.gm, graph.analysis).gm
        self.gm = residual_path_of(self.rewritten, self.plan)

    def _root_value(self, index: int) -> Any:
        return self.trace.values[self.stream_nodes[index].value]

    def shapes(self) -> list[StreamShape]:
        found = []
        for index, stream in enumerate(self.plan.streams):
            value = self._root_value(index)
            rows = math.prod(int(size) for size in value.shape[:-1])
            found.append(StreamShape(stream.width, rows, value.dtype.itemsize, _dtype_name(value.dtype)))
        return found

    def without_kernels(self) -> str:
        """What generated kernels, which a model on a GPU runs on, cannot hold; '' if nothing."""
        for index, stream in enumerate(self.plan.streams):
            dtype = self._root_value(index).dtype
            if dtype not in DTYPES:
                return f"a stream is {_dtype_name(dtype)}, and the kernels compute in fp32"
            if stream.width > tiling.WIDEST:
                return f"a stream is {stream.width} wide, and the kernels hold rows of at most {tiling.WIDEST}"
        if self.plan.config.schedule == "naive":
            return "schedule='naive' is the definition in torch"
        return self.plan.config.mechanism.by_definition

    @property
    def is_fused(self) -> bool:
        """Whether the norm behind a read is part of its kernel."""
        return not self.without_kernels()

    def scheduled(self, gm: GraphModule, name: str) -> GraphModule:
        """The residual path, or the rewritten graph, under a schedule, fused as for kernels."""
        config = dataclasses.replace(self.plan.config, schedule=name)  # type: ignore[arg-type]
        plan = dataclasses.replace(self.plan, config=config)
        gm = schedule(gm, plan, ProviderChoice.of(plan, Provider.TRITON)).gm
        return gm if config.by_definition else fuse(gm, plan).gm

    def traffic(self, name: str) -> tuple[Traffic, ...]:
        return traffic(self.scheduled(self.gm, name), self.plan)

    def lowered(self, gm: GraphModule) -> GraphModule:
        """The path, or the rewritten graph, as it would be on a GPU, or torch calls where kernels cannot hold it."""
        if self.is_fused:
            return lower(self.scheduled(gm, self.plan.config.schedule), self.plan, Provider.TRITON)
        if self.plan.config.mechanism.by_definition:
            return gm  # its reads are operators that are counted, and torch calls once lowered
        # None in place: those would be plain torch, which tensors without data cannot run under autocast.
        on_torch = dataclasses.replace(ProviderChoice.of(self.plan, Provider.TORCH), most_in_place=0)
        return lower(schedule(gm, self.plan, on_torch).gm, self.plan, Provider.TORCH)

    def inputs(self, lowered: GraphModule) -> list[Tensor]:
        """On the meta device, for a graph that was lowered."""
        return weightless(lowered, self._root_value(0).dtype, _added_shapes(lowered, self.plan))

    def counted(self) -> Counted:
        """Counts of the path by itself."""
        lowered = self.lowered(self.gm)
        return count(lowered, self.inputs(lowered), keeps_inputs=True)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _added_shapes(gm: GraphModule, plan: Plan) -> dict[Node, tuple[int, ...]]:
    """The placeholders of the parameters that the rewrite adds."""
    return {node: form.shape for node, form in placeholders_of_parameters(gm, plan)}


def _schedules(config: AttnResConfig) -> tuple[str, ...]:
    """The schedules that there are for a mechanism."""
    return ("naive", "auto") if config.mechanism.by_definition else SCHEDULES


def total(counted: Sequence[Counted], field: str) -> Counter[str]:
    """The sum of a counter over graphs.

    Args:
        counted: of each graph.
        field: of ``Counted``: forward, training or uncounted.
    """
    return sum((getattr(one, field) for one in counted), Counter())
