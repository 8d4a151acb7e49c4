"""Rows on memory traffic of the residual mechanism: counted from scheduled graphs, beside the paper's Table 1."""

from __future__ import annotations

from collections.abc import Sequence

from attnres_compile.report.study import FULL, Study
from attnres_compile.report.table import RESIDUAL_IO, OverheadRow
from attnres_kernels.definition import cost
from attnres_kernels.generation.traffic import Traffic

MHC_STREAMS = 4
"""Of the reference in the paper's Table 1."""

NAMES = {"naive": "naive", "direct": "direct", "two_phase": "two-phase", "auto": "auto", FULL: "Full, auto"}
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


def io_rows(found: Study) -> list[OverheadRow]:
    """Bytes per token and sublayer: of the schedule in force, and as details of every schedule and by the paper."""
    if not found.plan.streams:
        reason = "nothing was rewritten"
        return [OverheadRow(RESIDUAL_IO, None, None, "B", "n/a", reason)]
    chosen = found.plan.config.schedule
    rows = [_counted_row(found, RESIDUAL_IO, found.moved[chosen], False)]
    rows += [
        _counted_row(found, f"{RESIDUAL_IO}, {name}", found.moved[schedule], True) for schedule, name in NAMES.items()
    ]
    return rows + _paper_rows(found)


def _counted_row(found: Study, metric: str, moved: Sequence[Traffic], is_detail: bool) -> OverheadRow:
    writes = sum(len(stream.writes) for stream in found.plan.streams)
    plain, attnres = (_bytes(found, side) / writes for side in (found.plain_moved, moved))
    return OverheadRow(metric, plain, attnres, "B", "counted", _COUNTED, is_detail, _unit(found))


def _bytes(found: Study, moved: Sequence[Traffic]) -> float:
    return sum(one.total * shape.row_bytes for one, shape in zip(moved, found.shapes, strict=True))


def _unit(found: Study) -> float | None:
    """Bytes of one ``d``, if all streams have the same."""
    sizes = {shape.row_bytes for shape in found.shapes}
    return sizes.pop() if len(sizes) == 1 else None


def _paper_rows(found: Study) -> list[OverheadRow]:
    """Of each stream; mHC with its four streams for reference."""
    rows = []
    for stream, shape in zip(found.plan.streams, found.shapes, strict=True):
        name = f", {stream.name}" if len(found.plan.streams) > 1 else ""
        blocks, size = stream.num_blocks, stream.block_size
        forms = {
            f"paper: Block, two-phase, N={blocks} S={size}": cost.paper_block(size, blocks),
            f"paper: Full, two-phase, N={blocks} S={size}": cost.paper_full(size, blocks),
            f"paper: mHC with {MHC_STREAMS} streams": cost.paper_mhc(MHC_STREAMS, stream.width),
        }
        plain = cost.paper_standard_residual() * shape.row_bytes
        rows += [
            OverheadRow(
                f"{metric}{name}", plain, form * shape.row_bytes, "B", "closed form", _PAPER, True, shape.row_bytes
            )
            for metric, form in forms.items()
        ]
    return rows
