"""The goals of the project on a GPU, and how far each is, from kept records alone.

Shares of the copy bandwidth are of bytes that are counted by hand (``against_peers.traffic``), for bf16 and the
shapes of ``TOKENS``, ``WIDTHS`` and ``SOURCES``, with any number of reads in a block. *Forward* is the one part of a
cell of direction "forward". *Backward* is neither a difference nor a training step: every sample of a training cell
puts one event between the forward and the backward call, and the record holds the seconds of each by themselves, with
``fraction["backward"]`` the bytes of the backward alone over their median. Each goal looks at our fastest arm that does
all of the work, chosen by the whole step in a training cell, so that no arm lends its forward and another its backward.
Speeds are over the fastest other people's kernel that the same cell timed: of the forward, or of the whole step.

Overheads are of ``schedule="auto"`` with default options, against the plain compiled model; a decode step counts if
both sides replayed a CUDA graph.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

from attnres_compile.measure.compile_time import TRAINING
from attnres_compile.measure.model import DECODE
from attnres_compile.measure.model_pair import ATTNRES, PLAIN
from attnres_compile.measure.model_plot import LATENCY_GOALS

from ..against_peers import work
from ..against_peers.arms.arm import KERNELS, PEER
from ..against_peers.arms.peers import NOT_INSTALLED
from ..against_peers.cell import MEASURED, SAME
from ..against_peers.plot import BANDWIDTH_GOALS
from ..against_peers.table import best_arm, shape_text
from .goal import NO_RECORD, Goal, Value
from .merged_records import Record, merged_kernels, merged_models

TOKENS, WIDTHS, SOURCES, DTYPE = (8192, 32768), (2048, 4096, 7168), (2, 4, 8), "bfloat16"
MODELS, INPUT = ("gpt2-2048", "llama-3.2-1b", "qwen3-1.7b"), [4, 2048]
PEAK_MEMORY = 3.0
"""Percent over the plain model, at most."""
PEER_SPEED, MEAN_SPEED = 1.0, 1.2
"""Times the speed of the fastest peer, at least: of each shape, and of their geometric mean."""


def project_goals(records: Iterable[Record]) -> dict[str, list[Goal]]:
    """Every goal for each GPU that ``records`` know, by its name; without any for "no GPU", none of them measured.

    Records of other kinds, of the CPU and of the interpreter count for nothing. Raises MeasureError for a version that
    is not known.
    """
    records = list(records)
    kernels = {record["environment"]["device"]: record["cells"] for record in merged_kernels(records)}
    models: dict[str, list[Record]] = {}
    for record in merged_models(records):
        models.setdefault(record["environment"]["device"], []).append(record)
    devices = sorted({*kernels, *models}) or ["no GPU"]
    return {name: [*_of_kernels(kernels.get(name, [])), *_of_models(models.get(name, []))] for name in devices}


def _of_kernels(cells: Sequence[Record]) -> Iterator[Goal]:
    for level in (work.BLOCK, work.OP):
        for part, direction in (("forward", work.FORWARD), ("backward", work.TRAINING)):
            found = _values(_chosen(cells, level, direction), functools.partial(_share, part))
            yield Goal(f"{level}, {part}: share of the copy bandwidth", BANDWIDTH_GOALS[part], "%", True, *found)
        for direction in work.DIRECTIONS:
            found = _values(_chosen(cells, level, direction, anywhere=True), _speed)
            yield Goal(f"{level}, {direction}: speed over the fastest peer", PEER_SPEED, "x", True, *found)
    for direction in work.DIRECTIONS:
        found = _values(_chosen(cells, work.BLOCK, direction), _speed)
        name = f"{work.BLOCK}, {direction}: geometric mean of the speed over the fastest peer"
        yield Goal(name, MEAN_SPEED, "x", True, *found, mean=True)


def _chosen(cells: Sequence[Record], level: str, direction: str, anywhere: bool = False) -> list[Record]:
    """The cells of the goals' shapes, or of all."""
    of_kind = [cell for cell in cells if (cell["level"], cell["direction"]) == (level, direction)]
    return [cell for cell in of_kind if anywhere or (cell["dtype"] == DTYPE and _place(cell) in _GRID)]


_GRID = list(itertools.product(TOKENS, WIDTHS, SOURCES))


def _place(cell: Record) -> tuple[int, int, int]:
    return cell["tokens"], cell["width"], cell["sources"]


Found = tuple[dict[str, Value], dict[str, str]]


def _values(cells: Sequence[Record], take: Callable[[Record, Record], Value | str]) -> Found:
    """What ``take`` finds of each cell and our fastest arm in it: a value, why there is none, or '' for a cell that
    the goal does not ask for; and which of the goals' shapes have no cell.
    """
    values: dict[str, Value] = {}
    places = {_place(cell) for cell in cells if cell["dtype"] == DTYPE}
    missing = {f"T {t}, d {d}, n {n}": NO_RECORD for t, d, n in _GRID if (t, d, n) not in places}
    for cell in cells:
        subject = shape_text(cell) + ("" if cell["dtype"] == DTYPE else f", {cell['dtype']}")
        arm = best_arm(cell)
        taken = _why_not(cell) if arm is None else take(cell, arm)
        if isinstance(taken, Value):
            values[subject] = taken
        elif taken:
            missing[subject] = taken
    return values, missing


def _why_not(cell: Record) -> str:
    own = [arm for arm in cell.get("arms", []) if arm["kind"] == KERNELS and arm["status"] not in (MEASURED, SAME)]
    reasons = [f"{arm['name']}: {arm['status']}, {arm['reason']}" for arm in own]
    return str(cell.get("skipped") or next(iter(reasons), "no generated kernel was among the arms"))


def _share(part: str, _cell: Record, arm: Record) -> Value:
    return Value(100 * arm["fraction"][part])


def _speed(cell: Record, arm: Record) -> Value | str:
    over = arm.get("speed_over", {}).get(PEER)
    if over is not None:
        return Value(over["median"], over["low"], over["high"])
    peers = [one for one in cell["arms"] if one["kind"] == PEER]
    if not peers:
        return "no peer was among the arms"
    absent = [one["name"] for one in peers if one.get("reason") == NOT_INSTALLED]
    return f"not installed: {', '.join(absent)}" if absent else ""


def _of_models(records: Sequence[Record]) -> Iterator[Goal]:
    for model in MODELS:
        cells: dict[str, Record] = {}
        for record in sorted(records, key=lambda record: str(record["environment"]["date"])):
            if _is_asked_for(record, model):
                cells |= {cell["workload"]: cell for cell in record["cells"] if cell["schedule"] == "auto"}
        for workload, limit in LATENCY_GOALS.items():
            found = _latency(cells.get(workload))
            yield _overhead(f"{model}: {workload} over plain", limit, model, found)
        found = _memory(cells.get(TRAINING))
        yield _overhead(f"{model}: peak memory of a {TRAINING} over plain", PEAK_MEMORY, model, found)


def _is_asked_for(record: Record, model: str) -> bool:
    job = record["job"]
    is_model = record["model"]["name"] == model and record["inputs"].get("input_ids") == INPUT
    return is_model and job["load"]["dtype"] == DTYPE and not job["options"]


def _overhead(name: str, limit: float, model: str, found: Value | str) -> Goal:
    if isinstance(found, Value):
        return Goal(name, limit, "+%", False, {model: found})
    return Goal(name, limit, "+%", False, missing={model: found})


def _latency(cell: Record | None) -> Value | str:
    if cell is None or "missing" in cell:
        return NO_RECORD if cell is None else str(cell["missing"])
    if cell["workload"] == DECODE:
        launches = cell["launches"]
        if not cell["cuda_graphs"] or any(launches.get(arm, {}).get("graphs") == 0 for arm in (PLAIN, ATTNRES)):
            return "it ran without a CUDA graph"
    ratio = cell["latency"]["ratio"]
    return Value(*(_over(ratio[name]) for name in ("median", "low", "high")))


def _memory(cell: Record | None) -> Value | str:
    if cell is None or "missing" in cell:
        return NO_RECORD if cell is None else str(cell["missing"])
    memory = cell["memory"]
    return str(memory["missing"]) if "missing" in memory else Value(_over(memory["ratio"]))


def _over(ratio: float) -> float:
    """Percent above 1, without the noise of the last bits, which would miss a goal that is met exactly."""
    return round(100 * (ratio - 1), 9)
