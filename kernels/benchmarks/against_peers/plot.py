"""The picture of a record of kernels against peers: shares of the copy bandwidth, one mark per arm and shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attnres_compile.measure.figures import LINE, new_figure, title, wrapped, write_notes
from attnres_compile.report.comparison import MeasureError

from .arms.arm import KERNELS, PEER, TORCH
from .cell import MEASURED
from .table import cell_title, checked, not_timed, shape_text
from .work import DIRECTIONS, FORWARD, LEVELS

BANDWIDTH_GOALS = {"forward": 85.0, "backward": 75.0}
"""Of the project, in percent of the copy bandwidth, at least."""

_PARTS = {FORWARD: "forward"}
"""What a panel shows of its direction: of training the backward alone, as the goal is of it."""
_MARKS = {KERNELS: "oDs^v", PEER: "<>PXdph*", TORCH: "1234+x"}
_COLOURS = {KERNELS: "tab:red", TORCH: "0.45"}
_PANEL = 3.6
_LEGEND = (
    "Counted bytes per second over those of a copy. Kernels: the bytes that they move, and a line from each mark to "
    "the share of the ideal form's bytes, with which all others are charged; those compare times."
)


def kernels_figure(record: dict[str, Any]) -> Any:
    """A panel per level and direction; below, what was not timed and why.

    Raises MeasureError for another kind or version and for a record in which nothing was measured, MissingExtraError
    if matplotlib is not installed.
    """
    cells = [cell for cell in checked(record)["cells"] if _measured(cell)]
    panels = [
        [cell for cell in cells if (cell["level"], cell["direction"]) == (level, direction)]
        for level in reversed(LEVELS)
        for direction in DIRECTIONS
    ]
    panels = [panel for panel in panels if panel]
    if not panels:
        raise MeasureError("nothing was measured in this record, so there is nothing to draw: measure again")
    width = 5.0 + 0.7 * max(4, *map(len, panels))
    skipped = [f"{cell_title(cell)}: {cell['skipped']}" for cell in record["cells"] if "skipped" in cell]
    lines = wrapped([_LEGEND, *not_timed(record["cells"]), *skipped], width)
    below = LINE * (len(lines) + 1)
    figure = new_figure(width, _PANEL * len(panels) + below)
    upper, lower = figure.subfigures(2, 1, height_ratios=[_PANEL * len(panels), below])
    upper.suptitle(title(record), fontsize=10)
    names = {arm["name"]: arm["kind"] for panel in panels for cell in panel for arm in _measured(cell)}
    for axis, panel in zip(upper.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True):
        _draw(axis, panel, names)
    write_notes(lower, lines)
    return figure


def _measured(cell: dict[str, Any]) -> list[dict[str, Any]]:
    return [arm for arm in cell.get("arms", []) if arm["status"] == MEASURED]


def _draw(axis: Any, cells: Sequence[dict[str, Any]], names: dict[str, str]) -> None:
    """One panel. names: of all arms of the figure and their kinds, so that a mark means the same in each panel."""
    part = _PARTS.get(cells[0]["direction"], "backward")
    numbers: dict[str, int] = {}
    for place, (name, kind) in enumerate(names.items()):
        numbers[kind] = number = numbers.get(kind, -1) + 1
        offset = 0.7 * ((place + 0.5) / len(names) - 0.5)
        found = [(x + offset, arm) for x, cell in enumerate(cells) for arm in _measured(cell) if arm["name"] == name]
        if not found:
            continue
        xs, shares = [x for x, _ in found], [arm["fraction"][part] for _, arm in found]
        colour = _COLOURS.get(kind, f"C{number}")
        mark = _MARKS[kind][number % len(_MARKS[kind])]
        axis.plot(xs, shares, mark, ms=5, color=colour, label=name)
        if kind == KERNELS:
            axis.vlines(xs, [arm["ideal_fraction"][part] for _, arm in found], shares, color=colour, lw=0.8)
    for x in range(1, len(cells)):
        axis.axvline(x - 0.5, color="0.9", lw=0.8)
    goal = BANDWIDTH_GOALS[part] / 100
    axis.axhline(goal, color="tab:green", lw=1, ls="--", label=f"goal {goal:.0%}")
    dtypes = {cell["dtype"] for cell in cells}
    labels = [shape_text(cell, "\n") + (f"\n{cell['dtype']}" if len(dtypes) > 1 else "") for cell in cells]
    axis.set_xticks(range(len(cells)), labels)
    axis.set_xlim(-0.5, len(cells) - 0.5)
    axis.set_ylim(0, max(1.0, axis.get_ylim()[1]))
    axis.set_title(f"{cells[0]['level']}, {part}" + (f", {dtypes.pop()}" if len(dtypes) == 1 else ""), fontsize=10)
    axis.set_ylabel("share of the copy bandwidth", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
