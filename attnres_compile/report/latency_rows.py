"""Rows that are measured: latency and peak memory of two compiled copies of the model, in turn, in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from attnres_compile.measure import arms as model_arms
from attnres_compile.measure.device_cost import peak_memory
from attnres_compile.measure.environment import device_name
from attnres_compile.measure.measure import Comparison, compare
from attnres_compile.report.table import OverheadRow
from attnres_passes.ir.config import AttnResConfig

FORWARD, TRAINING = "forward", "training step"


def not_measured_rows() -> list[OverheadRow]:
    """The latencies, missing."""
    reason = "not measured: pass measure=True, or --measure on the command line"
    return [OverheadRow(_latency(name), None, None, "ms", "n/a", reason) for name in (FORWARD, TRAINING)]


def measured_rows(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    training_kwargs: dict[str, Any],
    config: AttnResConfig,
    rounds: int,
) -> list[OverheadRow]:
    """Forward in eval mode, and forward with backward in training mode. Raises MeasureError."""
    arms = model_arms.compiled_arms(model, args, kwargs, config)
    device = next(model.parameters()).device
    rows = []
    for name, build, inputs in (
        (FORWARD, model_arms.forward_call, kwargs),
        (TRAINING, model_arms.training_call, training_kwargs),
    ):
        plain, attnres = build(arms.plain, args, inputs), build(arms.attnres, args, inputs)
        names = (model_arms.PLAIN, model_arms.ATTNRES)
        rows.append(latency_row(_latency(name), compare(plain, attnres, rounds=rounds, device=device, names=names)))
        rows.append(_memory_row(name, (plain, attnres), (arms.plain, arms.attnres), device))
    return rows


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
