"""Rows on computation and on what training keeps, from what was counted of the model."""

from __future__ import annotations

from collections import Counter

from attnres_compile.report.counting.model_counts import Lengths, ModelCounts, total
from attnres_compile.report.table import FORWARD_FLOPS, PARAMETERS, SAVED, TRAINING_FLOPS, OverheadRow
from attnres_passes.ir.plan import Plan
from attnres_passes.ir.read_parameters import elements_of_read

RECOMPUTED = "activations kept, sublayers made again"
LAUNCHES, TRAINING_LAUNCHES = "launches of the residual path, forward", "launches of the residual path, both ways"


def parameter_rows(plan: Plan, plain: int) -> list[OverheadRow]:
    """Those of each read with two sources or more; the paper's has a pseudo-query and a key weight.

    Args:
        plan: of the model.
        plain: number of parameters of the plain model.
    """
    added = sum(
        elements_of_read(plan.config.mechanism, stream.width) * len(stream.parametrized_reads)
        for stream in plan.streams
    )
    return [OverheadRow(PARAMETERS, plain, plain + added, "", "exact")]


def flop_rows(counts: ModelCounts) -> list[OverheadRow]:
    """FLOPs of a forward, and of both directions: of the executed graph, and with the executed residual path added."""
    if counts.plain is None or counts.residual_path is None:
        return [missing(metric, "FLOP", counts.not_counted) for metric in (FORWARD_FLOPS, TRAINING_FLOPS)]
    rows = [
        _flop_row(FORWARD_FLOPS, total(counts.plain, "forward"), total(counts.residual_path, "forward"), counts.lengths)
    ]
    if any(one.training is None for one in counts.plain):
        return [*rows, missing(TRAINING_FLOPS, "FLOP", "no parameter or no output of the model wants a gradient")]
    both = total(counts.plain, "training"), total(counts.residual_path, "training")
    return [*rows, _flop_row(TRAINING_FLOPS, *both, counts.lengths)]


def _flop_row(metric: str, plain: Counter[str], added: Counter[str], lengths: Lengths) -> OverheadRow:
    before, more = lengths.flops(plain), lengths.flops(added)
    note = "by torch.utils.flop_counter, a multiplication and an addition being 2; additions and norms count as 0"
    return OverheadRow(metric, before, before + more, "FLOP", "counted", scaled(note, lengths, pairs=True))


def saved_rows(counts: ModelCounts) -> list[OverheadRow]:
    """What autograd keeps; and what is kept where every sublayer is made again in the backward."""
    if counts.plain is None or counts.residual_path is None:
        return [missing(metric, "B", counts.not_counted) for metric in (SAVED, RECOMPUTED)]
    note = (
        "distinct storages in saved-tensor hooks over the graphs, parameters and inputs left out; attention as "
        "FlashAttention keeps it; AttnRes: the plain number less the states, plus what the reads keep, with phase 1 "
        "made again"
    )
    ratio = counts.lengths.ratio
    plain = sum(one.saved_bytes for one in counts.plain) * ratio
    states = counts.states_bytes() * ratio
    reads = sum(one.saved_bytes for one in counts.residual_path) * ratio
    if any(one.training is None for one in counts.plain):
        kept = missing(SAVED, "B", "no parameter or no output of the model wants a gradient")
    else:
        note = scaled(note, counts.lengths)
        kept = OverheadRow(SAVED, plain, plain - states + reads, "B", "counted", note)
    return [kept, _recomputed_row(counts)]


def _recomputed_row(counts: ModelCounts) -> OverheadRow:
    """A state per write, against a partial sum per write: the last one of a block is the block."""
    kept = sum(
        (1 + len(stream.writes)) * shape.rows * shape.row_bytes
        for stream, shape in zip(counts.plan.streams, counts.shapes, strict=True)
    )
    kept_at_length = kept * counts.lengths.ratio
    note = scaled(
        "only the stream is kept: the root and one tensor per sublayer, its state or its open partial sum; the last "
        "partial sum of a block is the block",
        counts.lengths,
    )
    return OverheadRow(RECOMPUTED, kept_at_length, kept_at_length, "B", "closed form", note)


def launch_rows(counts: ModelCounts) -> list[OverheadRow]:
    """Kernels that the residual path launches: one per addition and norm, against those of the reads."""
    reason = counts.not_counted or (counts.without_kernels and f"no generated kernels: {counts.without_kernels}")
    if reason or counts.residual_path is None:
        return [missing(LAUNCHES, "", reason)]
    plain = sum(max(1, len({read.state for read in stream.reads})) for stream in counts.plan.streams)
    forward = sum(one.launches[0] for one in counts.residual_path)
    both = sum(one.launches[1] for one in counts.residual_path)
    note = "plain: one kernel for each addition with the norm behind it; AttnRes: of the generated kernels"
    return [
        OverheadRow(LAUNCHES, plain, forward, "", "counted", note),
        OverheadRow(
            TRAINING_LAUNCHES,
            None,
            both,
            "",
            "counted",
            "plain: how the inner compiler fuses the backward of norms is known only after it has compiled",
            is_detail=True,
        ),
    ]


def missing(metric: str, unit: str, reason: str) -> OverheadRow:
    """A row without numbers.

    Args:
        metric: its name.
        unit: of the numbers.
        reason: why there are none.
    """
    return OverheadRow(metric, None, None, unit, "n/a", reason)


def scaled(note: str, lengths: Lengths, pairs: bool = False) -> str:
    """The note, with how numbers were scaled if they were.

    Args:
        note: of the row.
        lengths: that its numbers are scaled by.
        pairs: whether some of them grow with the square of the length.
    """
    if lengths.ratio == 1:
        return note
    rule = "attention by the square of the length, all else by the length" if pairs else "by the length"
    return f"{note}; counted at {lengths.captured:,} tokens a row and scaled to {lengths.asked:,}, {rule}"
