"""The picture of a record of ``attnres bench model``: overhead over the plain model, with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attnres_compile.measure.compile_time import PREFILL, TRAINING
from attnres_compile.measure.figures import LINE, new_figure, title, wrapped, write_notes
from attnres_compile.measure.model import DECODE, WORKLOADS
from attnres_compile.measure.model_table import in_this_schema
from attnres_compile.report.comparison import MeasureError

LATENCY_GOALS = {TRAINING: 2.0, PREFILL: 2.0, DECODE: 5.0}
"""Of the project, in percent over the plain model, at most."""
_PANEL = 3.4
_LEGEND = "Median of the paired ratios AttnRes / plain, less one, with its interval."


def model_figure(record: dict[str, Any]) -> Any:
    """A panel per workload with a mark per schedule; below, what is missing and why.

    Raises MeasureError for another kind or version and for a record in which nothing was measured, MissingExtraError
    if matplotlib is not installed.
    """
    record = in_this_schema(record)
    cells: list[dict[str, Any]] = record["cells"]
    panels = [[cell for cell in cells if cell["workload"] == name and "latency" in cell] for name in WORKLOADS]
    panels = [panel for panel in panels if panel]
    if not panels:
        raise MeasureError("nothing was measured in this record, so there is nothing to draw: measure again")
    width = 3.4 * max(2, len(panels))
    missing = [f"{cell['workload']}, {cell['schedule']}: {cell['missing']}" for cell in cells if "missing" in cell]
    lines = wrapped([_LEGEND, *missing], width)
    below = LINE * (len(lines) + 1)
    figure = new_figure(width, _PANEL + below)
    upper, lower = figure.subfigures(2, 1, height_ratios=[_PANEL, below])
    inputs = ", ".join(f"{name} {shape}" for name, shape in record["inputs"].items())
    heading = f"{record['model']['name']}, {inputs}, {record['job']['load']['dtype']}"
    upper.suptitle(f"{heading}\n{title(record)}", fontsize=9)
    for axis, panel in zip(upper.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw(axis, panel)
    write_notes(lower, lines)
    return figure


def _draw(axis: Any, cells: Sequence[dict[str, Any]]) -> None:
    workload = cells[0]["workload"]
    goal = LATENCY_GOALS[workload]
    ratios = [cell["latency"]["ratio"] for cell in cells]
    middle, low, high = ([100 * (ratio[name] - 1) for ratio in ratios] for name in ("median", "low", "high"))
    reach = [[m - x for m, x in zip(middle, low, strict=True)], [x - m for m, x in zip(middle, high, strict=True)]]
    axis.errorbar(range(len(cells)), middle, yerr=reach, fmt="o", color="tab:red", capsize=4)
    for x, number in enumerate(middle):
        axis.annotate(f"{number:+.2f} %", (x, number), xytext=(6, 4), textcoords="offset points", fontsize=7)
    axis.axhline(0, color="0.6", lw=0.8)
    axis.axhline(goal, color="tab:green", lw=1, ls="--", label=f"goal {goal:+g} %")
    axis.set_xticks(range(len(cells)), [cell["schedule"] for cell in cells])
    axis.set_xlim(-0.6, len(cells) - 0.2)
    bottom, top = axis.get_ylim()
    axis.set_ylim(min(bottom, -0.5), max(top, goal + 0.5))
    axis.set_title(workload, fontsize=10)
    axis.set_ylabel("over plain [%]", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.legend(fontsize=7, loc="best")
