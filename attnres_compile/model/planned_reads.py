"""Where the reads of one graph are in the plan of its model, which may hold more streams than the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from attnres_passes.ir.plan import Plan
from attnres_passes.ir.read_id import ReadId, ReadParameter, WriteId


@dataclass(frozen=True)
class PlannedReads:
    """The reads of a plan, by those of a graph."""

    planned: Mapping[ReadId, ReadId]

    @classmethod
    def of(cls, plan: Plan) -> PlannedReads:
        """For a graph whose own plan is that of its model."""
        return cls({read: read for read in plan.depth_reads})

    def parameter(self, of_graph: ReadParameter) -> ReadParameter:
        """The parameter in the plan that a placeholder of the graph stands for."""
        return ReadParameter(self.planned[of_graph.read], of_graph.name)

    def write(self, of_graph: WriteId) -> WriteId:
        """A write of the graph in the plan: a stream is there as a whole, so its index stays."""
        stream = next(planned.stream for read, planned in self.planned.items() if read.stream == of_graph.stream)
        return WriteId(stream, of_graph.index)
