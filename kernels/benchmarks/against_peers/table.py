"""The tables of a record of kernels against peers, from the record alone."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from tabulate import tabulate

from attnres_compile.report.comparison import quantile
from attnres_compile.report.records import check_record

from .arms.arm import KERNELS, PEER, TORCH
from .cell import MEASURED
from .run import COMMAND, KIND, SCHEMA_VERSION
from .work import BLOCK, TRAINING

TABLE_FORMATS = {"table": "simple", "md": "github"}
_LEGEND = (
    "us: median (p20 to p80), one call\n"
    "moved: counted bytes per second over those of the copy; kernels: what they move, others: the ideal form's bytes\n"
    "ideal: the same with the ideal form's bytes for all; error: the largest of a row, relative, against fp64"
)


def kernels_table(record: dict[str, Any], style: str = "table") -> str:
    """A table per cell, and one of the best arm of ours in each.

    Args:
        record: that ``measure_kernels`` made.
        style: a name of TABLE_FORMATS.

    Raises:
        MeasureError: another kind or version.
    """
    checked(record)
    environment = record["environment"]
    heading = f"{environment['device']}, torch {environment['versions']['torch']}, {environment['date']}"
    cells = [_cell(cell, style) for cell in record["cells"]]
    reasons = "\n".join(_listed(not_timed(record["cells"]), style))
    parts = [heading, *cells, reasons, *_summary(record["cells"], style), _LEGEND]
    return "\n\n".join(part for part in parts if part)


def checked(record: dict[str, Any]) -> dict[str, Any]:
    """``record`` itself. Raises MeasureError for another kind or version."""
    check_record(record, KIND, SCHEMA_VERSION, command=COMMAND)
    return record


def _cell(cell: dict[str, Any], style: str) -> str:
    title = cell_title(cell)
    if "skipped" in cell:
        return f"{title}: {cell['skipped']}"
    parts = _parts(cell)
    rows = [_row(arm, parts) for arm in cell["arms"]]
    headers = ["arm", *(f"{part} [us]" for part in parts), "moved", "ideal", "error", "late"]
    copied = cell["copy"]["bytes_per_second"] / 1e9
    table = tabulate(rows, headers, tablefmt=TABLE_FORMATS[style], disable_numparse=True)
    return "\n".join([f"{title}; copy {copied:.4g} GB/s", *[""] * (style == "md"), table])


def _parts(cell: dict[str, Any]) -> list[str]:
    return ["forward", "backward", "step"] if cell["direction"] == TRAINING else ["forward"]


def not_timed(cells: Sequence[dict[str, Any]]) -> list[str]:
    """Why arms were not timed, each reason once, with the number of cells that it holds for."""
    arms = [arm for cell in cells for arm in cell.get("arms", []) if "reason" in arm]
    counted = Counter(f"{arm['name']}: {arm['status']}, {arm['reason']}" for arm in arms)
    return [f"{reason} ({count} of {len(cells)} cells)" for reason, count in counted.items()]


def _listed(lines: Sequence[str], style: str) -> list[str]:
    return [f"- {line}" for line in lines] if style == "md" else list(lines)


def cell_title(cell: dict[str, Any]) -> str:
    """Level, direction, shape and dtype of a cell."""
    return f"{cell['level']}, {cell['direction']}: {shape_text(cell)}, {cell['dtype']}"


def shape_text(cell: dict[str, Any], separator: str = ", ") -> str:
    """The numbers of a cell's shape: ``T 8192, d 2048, n 4, S 6``.

    Args:
        cell: of a record.
        separator: between two numbers.
    """
    reads = [f"S {cell['reads']}"] if cell["level"] == BLOCK else []
    return separator.join([f"T {cell['tokens']}", f"d {cell['width']}", f"n {cell['sources']}", *reads])


def _row(arm: dict[str, Any], parts: Sequence[str]) -> list[str]:
    # JSON has no number for what is not finite.
    worst = max((math.inf if value is None else value for value in arm.get("errors", {}).values()), default=None)
    error = "" if worst is None else f"{worst:.1e}"
    if arm["status"] != MEASURED:
        return [arm["name"], arm["status"], *[""] * (len(parts) - 1), "", "", error, ""]
    times = []
    for part in parts:
        seconds = [1e6 * x for x in arm["seconds"][part]]
        low, high = quantile(seconds, 0.2), quantile(seconds, 0.8)
        times.append(f"{statistics.median(seconds):.1f} ({low:.1f} to {high:.1f})")
    moved, ideal = (" / ".join(f"{arm[key][part]:.2f}" for part in parts) for key in ("fraction", "ideal_fraction"))
    return [arm["name"], *times, moved, ideal, error, str(arm["late"])]


def _summary(cells: Sequence[dict[str, Any]], style: str) -> Iterator[str]:
    """Per cell our fastest arm and its speed over the fastest peer and torch code; then their geometric means."""
    best = [(cell, found) for cell in cells if (found := best_arm(cell)) is not None]
    if not best:
        return
    headers = ["cell", "our fastest", "[us]", "moved", "ideal", "speed over the fastest peer", "over torch code"]
    rows = [_summary_row(cell, arm) for cell, arm in best]
    yield tabulate(rows, headers, tablefmt=TABLE_FORMATS[style], disable_numparse=True)
    speeds: dict[tuple[str, str, str], list[float]] = {}
    for cell, arm in best:
        for kind, one in arm.get("speed_over", {}).items():
            speeds.setdefault((cell["level"], cell["direction"], kind), []).append(one["median"])
    means = [
        f"{level}, {direction}, geometric mean of the speed over the fastest {'peer' if kind == PEER else 'torch code'}"
        f": {statistics.geometric_mean(values):.3f} ({len(values)} cells, lowest {min(values):.3f})"
        for (level, direction, kind), values in speeds.items()
    ]
    if means:
        yield "\n".join(_listed(means, style))


def summary_table(cells: Sequence[dict[str, Any]], style: str = "table") -> str:
    """Our fastest arm of each cell and the geometric means; '' if none was measured.

    Args:
        cells: of a record.
        style: a name of TABLE_FORMATS.
    """
    return "\n\n".join(_summary(cells, style))


def _summary_row(cell: dict[str, Any], arm: dict[str, Any]) -> list[str]:
    parts = _parts(cell)
    times = " / ".join(f"{1e6 * arm['median'][part]:.1f}" for part in parts)
    moved, ideal = (" / ".join(f"{arm[key][part]:.2f}" for part in parts) for key in ("fraction", "ideal_fraction"))
    over = [_speed(arm.get("speed_over", {}).get(kind)) for kind in (PEER, TORCH)]
    return [cell_title(cell), arm["name"], times, moved, ideal, *over]


def best_arm(cell: dict[str, Any]) -> dict[str, Any] | None:
    """Our fastest measured arm that does all of the work, if there is one; a note says what an arm leaves out."""
    part = "step" if cell["direction"] == TRAINING else "forward"
    arms = cell.get("arms", [])
    own = [arm for arm in arms if arm["kind"] == KERNELS and arm["status"] == MEASURED and not arm["note"]]
    return min(own, key=lambda arm: float(arm["median"][part]), default=None)


def _speed(one: dict[str, Any] | None) -> str:
    if one is None:
        return "n/a"
    return f"{one['median']:.3f} [{one['low']:.3f}, {one['high']:.3f}] ({one['name']})"
