"""What a run found, on one screen: cells and faults, then each goal with what decides it and how far it is."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from attnres_compile.cli.output import keep_record

from ..goals.goal import NOT_MEASURED, PARTLY, REACHED, Goal
from ..goals.merged_records import merged_kernels, merged_models
from ..goals.project_goals import MODELS, project_goals
from .plan import WARM_UPS, Cell
from .record import FAULTS, RunRecord
from .run import clock_text

WIDTH = 80
FAULTS_SHOWN = 3
_SHORT = {
    "share of the copy bandwidth": "of copy",
    "geometric mean of the speed over the fastest peer": "mean speed",
    "speed over the fastest peer": "lowest speed",
    "peak memory of a training step": "memory",
    "training step": "training",
    "decode step": "decode",
    " over plain": "",
}
_STATES = {REACHED: "reached", PARTLY: "reached so far", NOT_MEASURED: "not measured"}


def summary(record: RunRecord, plan: Sequence[Cell], budget: tuple[float, float], records: list[Any]) -> str:
    """The screen.

    Args:
        record: of the run.
        plan: all of its cells.
        budget: seconds that were spent, and seconds in all.
        records: of kernels and models, in ``record``.
    """
    goals = next(iter(project_goals(records).values()))
    of_models = [goal for goal in goals if goal.name.startswith(MODELS)]
    of_kernels = [goal for goal in goals if goal not in of_models]
    lines = [*_head(record, plan, budget), *_fault_lines(record), "", _kernels(of_kernels), "", _models(of_models)]
    return "\n".join(lines)


def _head(record: RunRecord, plan: Sequence[Cell], budget: tuple[float, float]) -> Iterator[str]:
    environment = record.data["environment"]
    versions = environment["versions"]
    told = f"{environment['device']}, torch {versions['torch']}, triton {versions['triton']}"
    yield f"{told}, {environment['date'][:10]}"[:WIDTH]
    names = [cell.name for cell in plan if cell.group != WARM_UPS]
    counts = Counter(record.cells.get(name, {}).get("status", "not begun") for name in names)
    shown = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    spent = f"{clock_text(budget[0])} of {clock_text(budget[1])} min; {len(names)} cells: {shown}"
    yield from textwrap.wrap(spent, WIDTH)


def _fault_lines(record: RunRecord) -> Iterator[str]:
    faults = record.faults()
    for name, cell in list(faults.items())[:FAULTS_SHOWN]:
        yield _cut(f"{cell['status']}: {name}: {cell['reason']}")
    if len(faults) > FAULTS_SHOWN:
        yield f"and {len(faults) - FAULTS_SHOWN} more that are wrong, failed or were killed: see the record"


def _cut(text: str) -> str:
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."


def _kernels(goals: Sequence[Goal]) -> str:
    rows = [[_short(goal.name), _number(goal, goal.limit), *_decided(goal), _count(goal)] for goal in goals]
    headers = ["kernels", "wanted", "measured", "verdict", "shapes"]
    return tabulate(rows, headers, disable_numparse=True)


def _models(goals: Sequence[Goal]) -> str:
    """A row per model, a column per goal."""
    of_model: dict[str, dict[str, Goal]] = {}
    for goal in goals:
        model, _, what = goal.name.partition(": ")
        of_model.setdefault(model, {})[_short(what)] = goal
    wanted = {name: goal for found in of_model.values() for name, goal in found.items()}
    rows = [["at most", *(_number(goal, goal.limit) for goal in wanted.values())]]
    rows += [[model, *(_one(found[name]) for name in wanted)] for model, found in of_model.items()]
    return tabulate(rows, ["over plain", *wanted], disable_numparse=True)


def _one(goal: Goal) -> str:
    number, verdict = _decided(goal)
    return f"{number} {verdict.partition(' ')[0]}" if number else "-"


def _decided(goal: Goal) -> tuple[str, str]:
    """The number that decides, and what it means for the goal."""
    if goal.lacks is None:
        return "", NOT_MEASURED
    number = goal.limit - goal.lacks if goal.at_least else goal.limit + goal.lacks
    if goal.lacks > 0:
        return _number(goal, number), f"missed by {_number(goal, goal.lacks).lstrip('+')}"
    return _number(goal, number), _STATES[goal.state]


def _number(goal: Goal, number: float) -> str:
    return {"%": f"{number:.1f} %", "+%": f"{number:+.1f} %", "x": f"{number:.3f}x"}[goal.unit]


def _count(goal: Goal) -> str:
    """Shapes that were measured, of all that the goal asks for."""
    return f"{len(goal.values)} of {len(goal.values) + len(goal.missing)}"


def _short(name: str) -> str:
    for long, short in _SHORT.items():
        name = name.replace(long, short)
    return name


def has_faults(record: RunRecord) -> bool:
    """Whether a cell is wrong, failed or was killed."""
    return any(cell["status"] in FAULTS for cell in record.cells.values())


def split(record: RunRecord, folder: str) -> list[str]:
    """Write what a run measured as one record of kernels and one of each model, as the other commands keep them.

    Args:
        record: of the run.
        folder: of the files, which docs/regenerate.py reads if it is docs/benchmarks.

    Returns:
        the paths.

    Raises:
        OutputError: one cannot be written.
    """
    merged = dict(zip(["gpu-kernels"], merged_kernels(record.records()), strict=False))
    merged |= {f"gpu-{one['model']['name']}": one for one in merged_models(record.records())}
    paths = [str(Path(folder) / f"{name}.json") for name in merged]
    for path, one in zip(paths, merged.values(), strict=True):
        keep_record(one, path)
    return paths
