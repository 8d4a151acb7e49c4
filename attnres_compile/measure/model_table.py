"""The table of a record of ``attnres bench model``, from its JSON alone; older records too."""

from __future__ import annotations

import statistics
from typing import Any

from tabulate import tabulate

from attnres_compile.measure.compile_time import PREFILL
from attnres_compile.measure.model import KIND, SCHEMA_VERSION
from attnres_compile.measure.model_pair import ATTNRES, PLAIN
from attnres_compile.report.comparison import Comparison
from attnres_compile.report.records import check_record

HEADERS = ("median (p20 to p80)", "schedule", "plain", "attnres", "attnres / plain [95 % interval]", "rounds")
_MIB = 1 << 20
_NOTHING = ("n/a", "n/a", "n/a", "")
_FIRST_SCHEMA = 1

Row = tuple[str, ...]


def model_table(record: dict[str, Any]) -> str:
    """The table of a record of ``measure_model``: model, device and versions above it, what is missing below.

    Raises MeasureError if ``record`` is of another kind or of a later version.
    """
    record = in_this_schema(record)
    cells: list[dict[str, Any]] = record["cells"]
    notes: list[str] = []
    rows = [_latency_row(cell, notes) for cell in cells]
    rows += _cost_rows("peak memory", "[MiB]", "memory", "peak", cells, notes)
    rows += _cost_rows("kernels launched", "", "launches", "kernels", cells, notes)
    for cell in record.get("compile", ()):
        rows += _compile_rows(cell)
    notes += [note for cell in cells for note in _cell_notes(cell)]
    table = tabulate(rows, HEADERS, disable_numparse=True)
    return "\n".join([_heading(record), table, *dict.fromkeys(notes)])


def in_this_schema(record: dict[str, Any]) -> dict[str, Any]:
    """``record`` as today's version writes it. Raises MeasureError for another kind or a later version."""
    check_record(record, KIND, _FIRST_SCHEMA, SCHEMA_VERSION)
    if record["schema_version"] == SCHEMA_VERSION:
        return record
    # One schedule, the latencies and compile times under the names of their workloads, and nothing else.
    schedule = record["job"]["options"].get("schedule", "auto")
    latency = [_first_cell(name, schedule) | {"latency": data} for name, data in record["latency"].items()]
    compiled = [_first_cell(name, schedule) | data for name, data in record.get("compile", {}).items()]
    return record | {"cells": latency, "compile": compiled}


def _first_cell(workload: str, schedule: str) -> dict[str, Any]:
    return {"workload": PREFILL if workload == "forward" else workload, "schedule": schedule}


def _heading(record: dict[str, Any]) -> str:
    environment, load = record["environment"], record["job"]["load"]
    shapes = ", ".join(f"{name} {shape}" for name, shape in record["inputs"].items())
    blocks = ", ".join(f"{one['writes']} writes in {one['blocks']} blocks" for one in record["plan"])
    size = f" ({record['model']['bytes'] / _MIB:,.0f} MiB)" if "bytes" in record["model"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
    return (
        f"{record['model']['name']}: {record['model']['parameters']:,} parameters{size}, {shapes}, {load['dtype']}"
        f"{'; ' + blocks if blocks else ''}\n"
        f"{environment['device']}, {environment['threads']} threads, {versions}, {environment['date']}"
    )


def _latency_row(cell: dict[str, Any], notes: list[str]) -> Row:
    metric = f"{cell['workload']} [ms]"
    if "missing" in cell:
        notes.append(f"n/a {cell['workload']}, {cell['schedule']}: {cell['missing']}")
        return (metric, cell["schedule"], *_NOTHING)
    return _timed_row(metric, cell["schedule"], Comparison.from_dict(cell["latency"]), 1000)


def _timed_row(metric: str, schedule: str, timed: Comparison, scale: float) -> Row:
    plain, attnres = (
        f"{side.median * scale:.4g} ({side.p20 * scale:.4g} to {side.p80 * scale:.4g})"
        for side in (timed.baseline, timed.candidate)
    )
    ratio = str(timed.ratio)
    if timed.ratio.confidence < 0.95:
        ratio += f" at {100 * timed.ratio.confidence:.0f} %"
    return metric, schedule, plain, attnres, ratio, str(len(timed.baseline.seconds))


def _cost_rows(
    metric: str, unit: str, name: str, counted: str, cells: list[dict[str, Any]], notes: list[str]
) -> list[Row]:
    """A row per cell that was measured, or one if none has the number; the reasons among the notes."""
    measured = [(cell, cell[name]) for cell in cells if name in cell]
    reasons = {cost.get("missing") for _, cost in measured}
    if len(reasons) == 1 and None not in reasons:
        notes.append(f"n/a {metric}: {reasons.pop()}")
        return [(metric, "all", *_NOTHING)]
    rows: list[Row] = []
    for cell, cost in measured:
        label = " ".join(filter(None, (f"{metric}, {cell['workload']}", unit)))
        if "missing" in cost:
            rows.append((label, cell["schedule"], *_NOTHING))
            notes.append(f"n/a {metric}, {cell['workload']}: {cost['missing']}")
            continue
        plain, attnres = (_number(cost[side][counted], unit) for side in (PLAIN, ATTNRES))
        rows.append((label, cell["schedule"], plain, attnres, f"{cost['ratio']:.3f}", ""))
    return rows


def _number(value: int, unit: str) -> str:
    return f"{value / _MIB:,.1f}" if unit else f"{value:,}"


def _compile_rows(cell: dict[str, Any]) -> list[Row]:
    workload, schedule = cell["workload"], cell["schedule"]
    prepare = cell["prepare_seconds"]
    return [
        _timed_row(f"time to compile, {workload} [s]", schedule, Comparison.from_dict(cell), 1),
        (f"prepare, {workload} [s]", schedule, "n/a", f"{statistics.median(prepare):.4g}", "n/a", str(len(prepare))),
    ]


def _cell_notes(cell: dict[str, Any]) -> list[str]:
    """How a cell was measured, where that is not said by its name."""
    workload, memory, launches = cell["workload"], cell.get("memory", {}), cell.get("launches", {})
    notes = []
    if PLAIN in memory:
        own = ", ".join(f"{side} {memory[side]['model'] / _MIB:,.1f} MiB" for side in (PLAIN, ATTNRES))
        notes.append(f"peak memory: the model ({own}) and the most that one call allocates beyond")
    if "cache" in cell:
        cache = cell["cache"]
        graphs = "under CUDA graphs" if cell["cuda_graphs"] else "without CUDA graphs"
        notes.append(
            f"{workload}: one token a row against {cache['tokens']} in a static cache of {cache['bytes'] / _MIB:,.1f} "
            f"MiB, {graphs}"
        )
    if cell.get("cuda_graphs"):
        without = [side for side in (PLAIN, ATTNRES) if side in launches and not launches[side]["graphs"]]
        notes += [
            f"{workload}, {cell['schedule']}: {side} launched NO CUDA GRAPH; TORCH_LOGS=cudagraphs says why"
            for side in without
        ]
    return notes
