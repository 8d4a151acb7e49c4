"""A rehearsal without a GPU: the whole order, real workers, Triton's interpreter, tiny shapes, a clock that is made.

Each cell is done by a real process at a tiny size, and takes on the made clock what its estimate says, times a factor
of its name. So the log is the same on every machine, while what is killed, crashes or raises is a real process. Five
cells are spoiled: a check with wrong numbers, and of those that are timed one that raises, one that hangs, one whose
process ends, and one with wrong numbers.
"""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from attnres_compile.report.comparison import MeasureError

from ..goals.project_goals import INPUT
from .plan import BLOCKS, CHECKS, JSON, Cell
from .processes import Hand
from .record import RunRecord

DEVICE = "no GPU: a rehearsal, whose numbers say nothing"
RAISES, HANGS, ENDS, PERTURBS = "raises", "hangs", "ends its process", "gives wrong numbers"
LONGEST = 1800.0
"""Real seconds that a cell of a rehearsal may take."""

_TOKENS, _WIDTHS, _SOURCES = {8192: 1, 32768: 2}, {2048: 8, 4096: 12, 7168: 20}, {2: 2, 4: 3, 8: 3}
_TINY_MODELS = {"gpt2-2048": "gpt2-tiny", "llama-3.2-1b": "llama-tiny", "qwen3-1.7b": "qwen3-tiny"}


class MadeClock:
    """Passes when it is told to."""

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        """Seconds since it was made."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Let seconds pass, in no time."""
        self._now += seconds


class Stage:
    """Real workers, of which one works at a time, however many there are on the made clock."""

    def __init__(self, clock: MadeClock, start: Callable[[], Hand]) -> None:
        """
        Args:
            clock: that cells take time on.
            start: a real worker.
        """
        self.clock, self._start = clock, start
        self._free: list[Hand] = []

    def worker(self) -> Hand:
        """One that is free, or a new one."""
        return self._free.pop() if self._free else self._start()

    def free(self, worker: Hand) -> None:
        """Take back one that has answered."""
        self._free.append(worker)

    def end(self, worker: Hand) -> None:
        """Kill one, whether it works or has answered."""
        self._free = [one for one in self._free if one is not worker]
        worker.kill()

    def close(self) -> None:
        """Kill all that are free."""
        for worker in list(self._free):
            self.end(worker)


class RehearsedWorker:
    """A worker on the made clock: its cell is really done when its time there has passed, or at once if it hangs."""

    def __init__(self, stage: Stage) -> None:
        self._stage, self._ready, self.dead = stage, 0.0, False
        self._work: dict[str, Any] = {}
        self._real: Hand | None = None

    def begin(self, work: dict[str, Any]) -> None:
        """Tell it a cell."""
        self._work, self._ready = work, self._stage.clock.now() + float(work["takes"])
        self._real = None
        if self._ready == math.inf:
            self._begin_really()

    def _begin_really(self) -> Hand:
        self._real = self._stage.worker()
        self._real.begin(self._work)
        return self._real

    def answer(self) -> dict[str, Any] | None:
        """The real answer, once it is time for it; for a cell that hangs that is never."""
        if self._stage.clock.now() < self._ready:
            return None
        real, end = self._begin_really(), time.monotonic() + LONGEST
        while (found := real.answer()) is None:
            if time.monotonic() > end:
                self.kill()
                raise MeasureError(f"a cell of the rehearsal took over {LONGEST:.0f} s: rehearse on a faster machine")
            time.sleep(0.02)
        self.dead = real.dead
        if not self.dead:
            self._stage.free(real)
        return found

    def kill(self) -> None:
        """End it, and the real one that does its cell or has just done it."""
        self.dead = True
        if self._real is not None:
            self._stage.end(self._real)

    def close(self) -> None:
        """End it; the real one may go on for others."""
        self.dead = True


def rehearsed(plan: Sequence[Cell]) -> list[Cell]:
    """The cells of a plan with their names and estimates, doing tiny work; five of them spoiled."""
    faults = faults_of(plan)
    return [dataclasses.replace(cell, work=_tiny(cell, faults.get(cell.name, ""))) for cell in plan]


def faults_of(plan: Sequence[Cell]) -> dict[str, str]:
    """What goes wrong, by the name of the cell."""
    checks = [cell.name for cell in plan if cell.group == CHECKS]
    blocks = [cell.name for cell in plan if cell.group == BLOCKS]
    of_blocks = zip(blocks[2:], (RAISES, HANGS, ENDS, PERTURBS), strict=False)
    return {**dict.fromkeys(checks[2:3], PERTURBS), **dict(of_blocks)}


def _tiny(cell: Cell, fault: str) -> dict[str, Any]:
    work = {**cell.work, "takes": math.inf if fault == HANGS else cell.seconds * _factor(cell.name)}
    if "device" in work:
        work["device"] = "cpu"
    if "shape" in work:
        sizes = {name: of(work["shape"][name]) for name, of in _SIZES.items()}
        work["shape"] = work["shape"] | sizes | {"dtype": "float32"}
    if "job" in work:
        job = work["job"]
        work["job"] = job | {name: [of(job[name][0])] for name, of in _SIZES.items()} | {"dtype": ["float32"]}
        work["job"] |= {"rounds": 1, "device": "cpu", "copied": 1 << 16}
    if "words" in work:
        work["words"] = _tiny_words(work["words"])
    return work | ({"fault": fault} if fault else {})


_SIZES: dict[str, Callable[[int], int]] = {
    "tokens": lambda real: _TOKENS.get(real, 1),
    "width": lambda real: _WIDTHS.get(real, 17),
    "sources": lambda real: _SOURCES.get(real, 2),
    "reads": lambda real: min(real, 2),
}


def _tiny_words(words: list[str]) -> list[str]:
    if "pytest" in words:
        return [*words[:-1], "tests/kernels/operators/test_on_gpu.py"]
    model, workload = words[words.index("model") + 1], words[words.index("--workload") + 1]
    sizes = ["--device", "cpu", "--batch", "1", "--seq", "8", "--rounds", "1", "--inner", "eager", "--quiet"]
    command = ["-m", "attnres_compile", "bench", "model", _TINY_MODELS[model]]
    return [*command, *sizes, "--workload", workload, "--json", JSON]


def _factor(name: str) -> float:
    """From 0.6 to 1.4."""
    return 0.6 + 0.8 * (zlib.crc32(name.encode()) % 1000) / 999


def spoil(work: dict[str, Any]) -> dict[str, Any]:
    """In a worker: what its kernels do wrong."""
    fault = work["fault"]

    def change(arm: Any) -> Any:
        if arm.call is None or not arm.name.startswith("kernels"):
            return arm
        return dataclasses.replace(arm, call=lambda inputs, given: _FAULTS[fault](arm.call(inputs, given)))

    return work | {"change": change}


def _raise(_outputs: list[Any]) -> list[Any]:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def _hang(_outputs: list[Any]) -> list[Any]:
    time.sleep(24 * 3600)
    return []


def _end(_outputs: list[Any]) -> list[Any]:
    os.kill(os.getpid(), signal.SIGABRT)
    return []


_FAULTS: dict[str, Callable[[list[Any]], list[Any]]] = {
    RAISES: _raise,
    HANGS: _hang,
    ENDS: _end,
    PERTURBS: lambda outputs: [1.25 * output for output in outputs],
}


def pretended(record: RunRecord, plan: Sequence[Cell]) -> list[dict[str, Any]]:
    """The records of a rehearsal as if they were of the plan's shapes and models on a GPU, to fill a summary with. They
    are never written.

    Args:
        record: of the rehearsal.
        plan: as it was made, with real sizes.
    """
    found = []
    for cell in plan:
        kept = record.cells.get(cell.name, {}).get("record")
        if kept is None:
            continue
        environment = kept["environment"] | {"device": DEVICE, "triton_interpreter": False}
        if "job" in cell.work:
            sizes = {name: cell.work["job"][name][0] for name in (*_SIZES, "dtype")}
            cells = [one | sizes for one in kept["cells"]]
            job = kept["job"] | {"device": "cuda"}
            found.append(kept | {"environment": environment, "job": job, "cells": cells})
        else:
            name = cell.work["words"][cell.work["words"].index("model") + 1]
            job = kept["job"] | {"load": {"device": "cuda", "dtype": "bfloat16"}, "options": {}}
            told = {"model": kept["model"] | {"name": name}, "inputs": {"input_ids": INPUT}}
            found.append(kept | {"environment": environment, "job": job, **told})
    return found
