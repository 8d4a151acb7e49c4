"""Rows on memory traffic of the residual path: counted from scheduled graphs, beside the paper's Table 1."""

from __future__ import annotations

from collections.abc import Sequence

from attnres_compile.report.counting.model_counts import FULL, ModelCounts
from attnres_compile.report.table import RESIDUAL_IO, OverheadRow
from attnres_kernels.definition import cost
from attnres_kernels.generation.traffic import Traffic

_MHC_STREAMS = 4
"""Streams of the mHC in the paper's Table 1."""

_SCHEDULE_NAMES = {"naive": "naive", "direct": "direct", "two_phase": "two-phase", "auto": "auto", FULL: "Full, auto"}
_COUNTED = (
    "tensors [tokens, d] that the kernels of the residual path read and write, over all reads, additions and the norms "
    "behind them; plain: each addition fused with the norm behind it, 3 d + 1 d"
)
_PAPER = (
    "Table 1 of the paper: 3 d, and N/S + 5 d for N blocks of S. It leaves the norm's output out, 1 d on both sides, "
    "which a kernel that fuses addition and norm writes; it has every phase 1 read all N blocks, where that of the "
    "k-th block reads the k there are; and it has every sublayer add to a partial sum, where the first of a block does "
    "not"
)


def io_rows(counts: ModelCounts) -> list[OverheadRow]:
    """Bytes per token and sublayer: of the schedule in force, and as details of every schedule and by the paper."""
    if not counts.plan.streams:
        reason = "nothing was rewritten"
        return [OverheadRow(RESIDUAL_IO, None, None, "B", "n/a", reason)]
    chosen = counts.plan.config.schedule
    rows = [_counted_row(counts, RESIDUAL_IO, counts.traffic[chosen], False)]
    rows += [
        _counted_row(counts, f"{RESIDUAL_IO}, {name}", counts.traffic[schedule], True)
        for schedule, name in _SCHEDULE_NAMES.items()
        if schedule in counts.traffic
    ]
    return rows + _paper_rows(counts)


def _counted_row(counts: ModelCounts, metric: str, traffic: Sequence[Traffic], is_detail: bool) -> OverheadRow:
    plain, attnres = (counts.bytes_per_write(side) for side in (counts.plain_traffic, traffic))
    return OverheadRow(metric, plain, attnres, "B", "counted", _COUNTED, is_detail, _unit(counts))


def _unit(counts: ModelCounts) -> float | None:
    """Bytes of one ``d``, if all streams have the same."""
    sizes = {shape.row_bytes for shape in counts.shapes}
    return sizes.pop() if len(sizes) == 1 else None


def _paper_rows(counts: ModelCounts) -> list[OverheadRow]:
    """What the paper counts for each stream, with its mHC of four streams for reference."""
    rows = []
    for stream, shape in zip(counts.plan.streams, counts.shapes, strict=True):
        name = f", {stream.name}" if len(counts.plan.streams) > 1 else ""
        blocks, size = stream.num_blocks, stream.block_size
        forms = {
            f"paper: Block, two-phase, N={blocks} S={size}": cost.paper_block(size, blocks),
            f"paper: Full, two-phase, N={blocks} S={size}": cost.paper_full(size, blocks),
            f"paper: mHC with {_MHC_STREAMS} streams": cost.paper_mhc(_MHC_STREAMS, stream.width),
        }
        plain = cost.paper_standard_residual() * shape.row_bytes
        rows += [
            OverheadRow(
                f"{metric}{name}", plain, form * shape.row_bytes, "B", "closed form", _PAPER, True, shape.row_bytes
            )
            for metric, form in forms.items()
        ]
    return rows
