"""The rows of the overhead table that follow from the plan alone: nothing is run for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from attnres_compile.report.table import OverheadRow
from attnres_kernels.depth_attention import cost

if TYPE_CHECKING:
    from attnres_passes.plan import Plan, Read

Elements = Callable[["Read", int], float]


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
    plain = _mean_bytes(plan, element_bytes, lambda read, together: cost.standard_residual())
    return [
        _io_row(schedule, plain, _mean_bytes(plan, element_bytes, elements), note)
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


def _naive(read: Read, together: int) -> float:
    return cost.naive(_completed(read), has_partial=_completed(read) < read.num_sources)


def _direct(read: Read, together: int) -> float:
    return cost.direct(_completed(read))


def _two_phase(read: Read, together: int) -> float:
    return cost.two_phase(_completed(read), together)


def _cheaper(read: Read, together: int) -> float:
    """What a schedule chosen per block by bytes alone would move."""
    cheaper = cost.cheaper_schedule(_completed(read), together)
    return _direct(read, together) if cheaper == "direct" else _two_phase(read, together)


_SCHEDULES: dict[str, Elements] = {
    "naive": _naive,
    "direct": _direct,
    "two-phase": _two_phase,
    "cheaper of both": _cheaper,
}


def _completed(read: Read) -> int:
    """Completed blocks at a read: the root and all blocks before the open one."""
    return min(read.block, read.num_sources)


def _mean_bytes(plan: Plan, element_bytes: int, elements: Elements) -> float:
    """Mean over the mixing reads of ``elements(read, reads of its block)``, in bytes."""
    total, count = 0.0, 0
    for stream in plan.streams:
        reads = stream.parametrized_reads
        together = Counter(read.block for read in reads)
        total += sum(elements(read, together[read.block]) for read in reads) * stream.width * element_bytes
        count += len(reads)
    return total / count
