"""What Block Attention Residuals cost a model: parameters, FLOPs, bytes moved and stored, and latency when asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from attnres_compile.api.prepare import config_from
from attnres_compile.measure import arms as model_arms
from attnres_compile.measure.environment import describe_environment
from attnres_compile.measure.measure import DEFAULT_ROUNDS, MeasureError
from attnres_compile.model.parameters import parameters_of
from attnres_compile.report.io_rows import io_rows
from attnres_compile.report.latency_rows import measured_rows, not_measured_rows
from attnres_compile.report.memory_rows import pipeline_rows, prefill_rows, storage_rows
from attnres_compile.report.rows import flop_rows, launch_rows, parameter_rows, saved_rows
from attnres_compile.report.study import Lengths, Study, study, total
from attnres_compile.report.table import OverheadReport, OverheadRow
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ranks.layout import StageLayout

__all__ = ["OverheadReport", "OverheadRow", "overhead"]


def overhead(
    model: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    measure: bool = False,
    rounds: int = DEFAULT_ROUNDS,
    training_kwargs: Mapping[str, Any] | None = None,
    name: str | None = None,
    note: str = "",
    lengths: tuple[int, int] | None = None,
    pipeline: tuple[int, int] | None = None,
    config: AttnResConfig | None = None,
    **options: Any,
) -> OverheadReport:
    """The overhead table of ``model`` called as ``model(*args, **kwargs)``; ``model`` is never changed.

    ``model`` may have its parameters on the meta device, without data: a model of any size. One with data is captured
    and executed without it, too.

    Args:
        measure: also time two compiled copies of the model, plain and with AttnRes, in turn in this process,
            ``rounds`` samples each: forward in eval mode, and forward with backward in training mode.
        training_kwargs: for the latter instead of ``kwargs``, say with labels.
        name, note: of the model and on it, in the report; the name is else the class of the model.
        lengths: tokens per row that ``args`` and ``kwargs`` have, and those that the report is to be scaled to, for
            models that cannot be captured at their full length.
        pipeline: ranks and chunks per rank of a pipeline to plan, for what it sends.
        config, options: as for ``prepare``; those of a prepared model are its plan's.

    Raises:
        AttnResError for what cannot be rewritten, StageError for a pipeline with more chunks than sublayers, and
        MeasureError for what cannot be timed.
    """
    kwargs = dict(kwargs or {})
    prepared = parameters_of(model)
    if prepared is not None and config is None and not options:
        config = prepared.plan.config
    chosen = config_from(config, options)
    is_weightless = any(parameter.is_meta for parameter in model.parameters())
    if measure and is_weightless:
        raise MeasureError("a model without data cannot be timed: build it with its weights, or leave measure out")
    bare = model if prepared is None else model_arms.plain_copy(model)
    found = study(bare, tuple(args), kwargs, chosen, Lengths(*(lengths or (1, 1))))
    rows = counted_rows(found, bare, None if pipeline is None else StageLayout(*pipeline))
    if measure:
        rows += measured_rows(bare, tuple(args), kwargs, dict(training_kwargs or kwargs), chosen, rounds)
    else:
        rows += not_measured_rows()
    device = next(bare.parameters()).device
    return OverheadReport(
        name or type(model).__name__,
        tuple(rows),
        dataclasses.asdict(found.plan.config),
        describe_environment(device if measure else "meta"),
        (*shape_lines(found), *([note] if note else [])),
        uncounted_calls(found),
    )


def counted_rows(found: Study, model: nn.Module, layout: StageLayout | None) -> list[OverheadRow]:
    """All rows that need no measuring, those for a reader in a hurry first."""
    return [
        *parameter_rows(found.plan, sum(parameter.numel() for parameter in model.parameters())),
        *flop_rows(found),
        *io_rows(found),
        *storage_rows(found),
        *saved_rows(found),
        *launch_rows(found),
        *prefill_rows(found),
        *([] if layout is None else pipeline_rows(found, layout)),
    ]


def shape_lines(found: Study) -> tuple[str, ...]:
    """One line per stream, and one on what the numbers are for."""
    lines = [
        f"{stream.name}: {len(stream.writes)} sublayers in {stream.num_blocks} blocks of {stream.block_size}, "
        f"width {stream.width:,}, up to {max((read.num_sources for read in stream.reads), default=1)} sources a read"
        for stream in found.plan.streams
    ]
    tokens = sorted({round(shape.rows * found.lengths.ratio) for shape in found.shapes})
    if tokens:
        dtypes = " and ".join(sorted({shape.dtype for shape in found.shapes}))
        lines.append(f"{' and '.join(f'{number:,}' for number in tokens)} tokens, {dtypes}")
    return tuple(lines)


def uncounted_calls(found: Study) -> dict[str, int]:
    """Calls of operators without a FLOP formula in one training step, the most frequent first."""
    graphs = (*(found.plain or ()), *(found.residual_path or ()))
    return dict(total(graphs, "uncounted").most_common())
