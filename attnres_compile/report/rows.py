"""The rows of the overhead table that follow from the plan alone: nothing is run for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from attnres_compile.report.table import OverheadRow
from attnres_kernels.depth_attention import cost
from attnres_kernels.depth_attention.generated import tiling
from attnres_passes.grouping import group_reads

if TYPE_CHECKING:
    from attnres_passes.plan import Plan, Read


def parameter_rows(plan: Plan, plain: int) -> list[OverheadRow]:
    """One pseudo-query and one key weight of the stream's width for each read with two sources or more."""
    added = sum(2 * stream.width * len(stream.parametrized_reads) for stream in plan.streams)
    return [OverheadRow("parameters", plain, plain + added, "", "exact")]


def io_rows(plan: Plan, element_bytes: int) -> list[OverheadRow]:
    """Bytes that one read moves per token, on average over the reads, for each schedule."""
    reads = sum(len(stream.parametrized_reads) for stream in plan.streams)
    if not reads:
        reason = "no read has two sources: nothing was rewritten"
        return [_io_row(schedule, None, None, reason) for schedule in _SCHEDULES]
    note = (
        f"mean over the {reads} reads with two sources or more; a read counts with the residual add before "
        "it and the norm after it"
    )
    widths = sum(stream.width * len(stream.parametrized_reads) for stream in plan.streams)
    plain = widths * cost.standard_residual() * element_bytes / reads
    return [
        _io_row(schedule, plain, elements(plan) * element_bytes / reads, note)
        for schedule, elements in _SCHEDULES.items()
    ]


def storage_rows(plan: Plan, element_bytes: int) -> list[OverheadRow]:
    """Bytes of residual state alive at the deepest read of each stream, per token."""
    note = "the state alone against the completed blocks and the open partial sum, at the deepest read"
    rows = []
    for stream in plan.streams:
        deepest = max((read.num_sources for read in stream.reads), default=1)
        state = stream.width * element_bytes
        name = f", {stream.name}" if len(plan.streams) > 1 else ""
        metric = f"stored block representations per token{name}"
        rows.append(OverheadRow(metric, state, deepest * state, "B", "closed form", note))
    return rows


def _io_row(schedule: str, plain: float | None, attnres: float | None, note: str) -> OverheadRow:
    metric = f"residual I/O per token and read, {schedule}"
    return OverheadRow(metric, plain, attnres, "B", "n/a" if plain is None else "closed form", note)


def _naive(plan: Plan) -> float:
    reads = [(stream.width, read) for stream in plan.streams for read in stream.parametrized_reads]
    return sum(
        width * cost.naive(_completed(read), has_partial=_completed(read) < read.num_sources) for width, read in reads
    )


def _grouped(schedule: str) -> Callable[[Plan], float]:
    def elements(plan: Plan) -> float:
        total = 0.0
        for stream in plan.streams:
            completed = [_completed(read) for read in stream.parametrized_reads]
            grouping = group_reads(completed, schedule, tiling.most_in_place(stream.width))
            total += stream.width * sum(group.moved for group in grouping.groups)
        return total

    return elements


_SCHEDULES: dict[str, Callable[[Plan], float]] = {
    "naive": _naive,
    "direct": _grouped("direct"),
    "two-phase": _grouped("two_phase"),
    "auto on kernels": _grouped("auto"),
}
"""Elements per token of all reads together."""


def _completed(read: Read) -> int:
    """Completed blocks at a read: the root and all blocks before the open one."""
    return min(read.block, read.num_sources)
