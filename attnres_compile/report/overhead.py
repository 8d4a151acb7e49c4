"""What Block Attention Residuals cost a model: parameters, bytes moved and stored, and latency when asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from attnres_compile.bench import arms as model_arms
from attnres_compile.bench.environment import describe_environment
from attnres_compile.bench.measure import DEFAULT_ROUNDS, Comparison, compare
from attnres_compile.explanation import explain
from attnres_compile.parameters import parameters_of
from attnres_compile.preparation import config_from
from attnres_compile.report.rows import io_rows, parameter_rows, storage_rows
from attnres_compile.report.table import OverheadReport, OverheadRow
from attnres_passes.config import AttnResConfig

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
    config: AttnResConfig | None = None,
    **options: Any,
) -> OverheadReport:
    """The overhead table of ``model`` called as ``model(*args, **kwargs)``; ``model`` is never changed.

    measure: also time two compiled copies of the model, plain and with AttnRes, in turn in this process,
    ``rounds`` samples each: forward in eval mode, and forward with backward in training mode.
    training_kwargs: for the latter instead of ``kwargs``, say with labels. name: in the report, else the
    class of the model. config, options: as for ``prepare``; those of a prepared model are its plan's.

    Raises AttnResError for what cannot be rewritten, and MeasureError for what cannot be timed.
    """
    kwargs = dict(kwargs or {})
    prepared = parameters_of(model)
    if prepared is not None and config is None and not options:
        config = prepared.plan.config
    chosen = config_from(config, options)
    bare = model if prepared is None else model_arms.plain_copy(model)
    plan = explain(bare, args, kwargs, config=chosen).plan
    first = next(bare.parameters())
    rows = [
        *parameter_rows(plan, sum(parameter.numel() for parameter in bare.parameters())),
        *io_rows(plan, first.element_size()),
        *storage_rows(plan, first.element_size()),
    ]
    if measure:
        rows += _latency_rows(bare, args, kwargs, dict(training_kwargs or kwargs), chosen, rounds)
    else:
        reason = "not measured: pass measure=True, or --measure on the command line"
        rows += [OverheadRow(metric, None, None, "ms", "n/a", reason) for metric in _LATENCY_METRICS]
    return OverheadReport(
        name or type(model).__name__,
        tuple(rows),
        dataclasses.asdict(plan.config),
        describe_environment(first.device),
    )


_LATENCY_METRICS = ("forward latency, compiled", "forward and backward latency, compiled")


def _latency_rows(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    training_kwargs: dict[str, Any],
    config: AttnResConfig,
    rounds: int,
) -> list[OverheadRow]:
    arms = model_arms.compiled_arms(model, args, kwargs, config)
    device = next(model.parameters()).device
    workloads = zip(
        _LATENCY_METRICS,
        (model_arms.forward_call, model_arms.training_call),
        (kwargs, training_kwargs),
        strict=True,
    )
    return [
        latency_row(
            metric,
            compare(
                build(arms.plain, args, inputs),
                build(arms.attnres, args, inputs),
                rounds=rounds,
                device=device,
                names=(model_arms.PLAIN, model_arms.ATTNRES),
            ),
        )
        for metric, build, inputs in workloads
    ]


def latency_row(metric: str, timed: Comparison) -> OverheadRow:
    """A measured row in milliseconds; spread, interval and device are in its note."""
    spreads = "; ".join(
        f"{arm.name} p20 to p80 {1000 * arm.p20:.4g} to {1000 * arm.p80:.4g} ms"
        for arm in (timed.baseline, timed.candidate)
    )
    note = (
        f"medians of {len(timed.baseline.seconds)} paired rounds; {spreads}; ratio {timed.ratio} with "
        f"{100 * timed.ratio.confidence:.0f} % confidence; {timed.device}, {timed.threads} threads"
    )
    plain, attnres = 1000 * timed.baseline.median, 1000 * timed.candidate.median
    return OverheadRow(metric, plain, attnres, "ms", "measured", note, timed)
