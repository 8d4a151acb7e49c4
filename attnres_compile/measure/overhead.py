"""What Block Attention Residuals cost a model: what ``attnres_compile.report`` counts, and latency when asked for.

What is measured are two compiled copies of the model, plain and with AttnRes, in turn, in this process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from attnres_compile.api.prepare import config_from
from attnres_compile.measure.device_cost import peak_memory
from attnres_compile.measure.model_pair import ATTNRES, PLAIN, compile_pair, model_call, plain_copy, prepared_pair
from attnres_compile.measure.timing import DEFAULT_ROUNDS, compare
from attnres_compile.model.parameters import parameters_of
from attnres_compile.progress import each
from attnres_compile.report.comparison import Comparison, MeasureError
from attnres_compile.report.counting.model_counts import Lengths, model_graphs
from attnres_compile.report.parallel import Parallel
from attnres_compile.report.records import describe_environment, device_name
from attnres_compile.report.rows.overhead_rows import counted_rows, setting_rows, shape_lines, uncounted_calls
from attnres_compile.report.table import OverheadReport, OverheadRow
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ranks.layout import StageLayout

FORWARD, TRAINING = "forward", "training step"


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
    parallel: Parallel | None = None,
    config: AttnResConfig | None = None,
    **options: Any,
) -> OverheadReport:
    """The overhead table of ``model`` called as ``model(*args, **kwargs)``; ``model`` is never changed.

    ``model`` may have its parameters on the meta device, without data: a model of any size. One with data is captured
    and executed without it, too.

    Args:
        model: plain or prepared.
        args: of its call.
        kwargs: of its call.
        measure: also time forward in eval mode, and forward with backward in training mode.
        rounds: samples of each that is timed.
        training_kwargs: for training instead of ``kwargs``, say with labels.
        name: of the model in the report, else its class.
        note: on the model, a line of the report.
        lengths: tokens per row that ``args`` and ``kwargs`` have, and those that the report is to be scaled to, for
            models that cannot be captured at their full length.
        pipeline: ranks and chunks per rank of a pipeline to plan, for what it sends.
        parallel: what is checkpointed and sharded; nothing by default.
        config: of the rewrite; that of a prepared model is its plan's.
        options: fields of the config in its place.

    Raises:
        AttnResError: the model cannot be rewritten.
        StageError: a pipeline with more chunks than sublayers.
        ParallelError: the model cannot be checkpointed or sharded so.
        MeasureError: the model cannot be timed.
    """
    kwargs = dict(kwargs or {})
    prepared = parameters_of(model)
    if prepared is not None and config is None and not options:
        config = prepared.plan.config
    chosen = config_from(config, options)
    is_weightless = any(parameter.is_meta for parameter in model.parameters())
    if measure and is_weightless:
        raise MeasureError("a model without data cannot be timed: build it with its weights, or leave measure out")
    bare = model if prepared is None else plain_copy(model)
    graphs = model_graphs(bare, tuple(args), kwargs, chosen)
    counts = graphs.count(Lengths(*(lengths or (1, 1))))
    parameters = sum(parameter.numel() for parameter in bare.parameters())
    parallel = parallel or Parallel()
    setting = None if parallel.is_plain else setting_rows(graphs, counts, bare, parallel)
    rows = counted_rows(counts, parameters, None if pipeline is None else StageLayout(*pipeline), setting)
    if measure:
        rows += _measured_rows(bare, tuple(args), kwargs, dict(training_kwargs or kwargs), chosen, rounds)
    else:
        rows += _not_measured_rows()
    device = next(bare.parameters()).device
    return OverheadReport(
        name or type(model).__name__,
        tuple(rows),
        counts.plan.config.to_dict(),
        describe_environment(device if measure else "meta"),
        (*shape_lines(counts), *filter(None, [parallel.line(), note])),
        uncounted_calls(counts),
        {} if parallel.is_plain else parallel.to_dict(),
    )


def _not_measured_rows() -> list[OverheadRow]:
    reason = "not measured: pass measure=True, or --measure on the command line"
    return [OverheadRow(_latency(name), None, None, "ms", "n/a", reason) for name in (FORWARD, TRAINING)]


def _measured_rows(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    training_kwargs: dict[str, Any],
    config: AttnResConfig,
    rounds: int,
) -> list[OverheadRow]:
    pair = prepared_pair(model, args, kwargs, config)
    compile_pair(pair)
    device = next(model.parameters()).device
    rows = []
    for name, inputs in each(((FORWARD, kwargs), (TRAINING, training_kwargs)), "measuring forward and training"):
        plain, attnres = (model_call(one, args, inputs, name == TRAINING) for one in (pair.plain, pair.attnres))
        timed = compare(plain, attnres, rounds=rounds, device=device, names=(PLAIN, ATTNRES))
        rows.append(latency_row(_latency(name), timed))
        rows.append(_memory_row(name, (plain, attnres), (pair.plain, pair.attnres), device))
    return rows


def latency_row(metric: str, timed: Comparison) -> OverheadRow:
    """A measured row in milliseconds; spread, interval and device are in its note.

    Args:
        metric: the name of the row.
        timed: plain against AttnRes.
    """
    spreads = "; ".join(
        f"{side.name} p20 to p80 {1000 * side.p20:.4g} to {1000 * side.p80:.4g} ms"
        for side in (timed.baseline, timed.candidate)
    )
    note = (
        f"medians of {len(timed.baseline.seconds)} paired rounds; {spreads}; ratio {timed.ratio} with "
        f"{100 * timed.ratio.confidence:.0f} % confidence; {timed.device}, {timed.threads} threads"
    )
    plain, attnres = 1000 * timed.baseline.median, 1000 * timed.candidate.median
    return OverheadRow(metric, plain, attnres, "ms", "measured", note, comparison=timed)


def _memory_row(
    name: str,
    calls: tuple[Callable[[], object], Callable[[], object]],
    models: tuple[nn.Module, nn.Module],
    device: torch.device,
) -> OverheadRow:
    metric = f"peak memory, {name}"
    found = [peak_memory(call, model, 0, device) for call, model in zip(calls, models, strict=True)]
    missing = next((one["missing"] for one in found if "missing" in one), None)
    if missing is not None:
        return OverheadRow(metric, None, None, "B", "n/a", missing)
    plain, attnres = (float(one["peak"]) for one in found)
    note = (
        f"on {device_name(device)}: parameters and buffers, and the most that one call allocates beyond them, as "
        "torch's allocator counts"
    )
    return OverheadRow(metric, plain, attnres, "B", "measured", note)


def _latency(name: str) -> str:
    return f"{name} latency, compiled"
