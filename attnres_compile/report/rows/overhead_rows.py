"""The counted rows of the overhead table, and what is said above and below it."""

from __future__ import annotations

from attnres_compile.report.counting.model_counts import ModelCounts, total
from attnres_compile.report.rows.computation import flop_rows, launch_rows, parameter_rows, saved_rows
from attnres_compile.report.rows.memory import pipeline_rows, prefill_rows, storage_rows
from attnres_compile.report.rows.traffic import io_rows
from attnres_compile.report.table import OverheadRow
from attnres_passes.ranks.layout import StageLayout


def counted_rows(counts: ModelCounts, parameters: int, layout: StageLayout | None) -> list[OverheadRow]:
    """All rows that need no measuring, those for a reader in a hurry first.

    Args:
        counts: of the model.
        parameters: number of those of the plain model.
        layout: of a pipeline to count transfers for.
    """
    return [
        *parameter_rows(counts.plan, parameters),
        *flop_rows(counts),
        *io_rows(counts),
        *storage_rows(counts),
        *saved_rows(counts),
        *launch_rows(counts),
        *prefill_rows(counts),
        *([] if layout is None else pipeline_rows(counts, layout)),
    ]


def shape_lines(counts: ModelCounts) -> tuple[str, ...]:
    """One line per stream, and one on what the numbers are for."""
    lines = [
        f"{stream.name}: {len(stream.writes)} sublayers in {stream.num_blocks} blocks of {stream.block_size}, "
        f"width {stream.width:,}, up to {max((read.num_sources for read in stream.reads), default=1)} sources a read"
        for stream in counts.plan.streams
    ]
    tokens = sorted({round(shape.rows * counts.lengths.ratio) for shape in counts.shapes})
    if tokens:
        dtypes = " and ".join(sorted({shape.dtype for shape in counts.shapes}))
        lines.append(f"{' and '.join(f'{number:,}' for number in tokens)} tokens, {dtypes}")
    return tuple(lines)


def uncounted_calls(counts: ModelCounts) -> dict[str, int]:
    """Calls of operators without a FLOP formula in one training step, the most frequent first."""
    graphs = (*(counts.plain or ()), *(counts.residual_path or ()))
    return dict(total(graphs, "uncounted").most_common())
