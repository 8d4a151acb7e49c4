"""Runs by a made clock, with workers that are objects of this process and do what they are told to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kernels.benchmarks.gpu.budget import Budget
from kernels.benchmarks.gpu.plan import BLOCKS, CHECKS, Cell
from kernels.benchmarks.gpu.record import RunRecord
from kernels.benchmarks.gpu.rehearsal import MadeClock
from kernels.benchmarks.gpu.run import Run

ENVIRONMENT = {"device": "Toy GPU", "date": "2026-12-01T10:00:00+00:00", "versions": {"torch": "2.11", "triton": "3.6"}}


def made(name: str, group: str = BLOCKS, seconds: float = 10, takes: float | None = None, **others: Any) -> Cell:
    """A cell that takes what its estimate says, or ``takes``, on the made clock; ``answer`` is what becomes of it."""
    answer = others.pop("answer", {"status": "measured"})
    work = {"do": "nothing", "name": name, "takes": seconds if takes is None else takes, "answer": answer}
    return Cell(name, group, work, seconds, **{"limit": 3 * seconds} | others)


def check(name: str, **others: Any) -> Cell:
    return made(name, CHECKS, **others)


class Toy:
    """Answers when its time on the made clock has passed."""

    def __init__(self, crew: Crew) -> None:
        self.crew, self.dead, self.ready = crew, False, 0.0
        self.work: dict[str, Any] = {}

    def begin(self, work: dict[str, Any]) -> None:
        assert not self.dead
        self.work, self.ready = work, self.crew.clock.now() + work["takes"]
        self.crew.begun.append((work["name"], self.crew.clock.now()))

    def answer(self) -> dict[str, Any] | None:
        return self.work["answer"] if self.crew.clock.now() >= self.ready else None

    def kill(self) -> None:
        self.dead = True

    close = kill


class Crew:
    """Workers of a run, and what they were told, with the time."""

    def __init__(self, minutes: float, path: Path | None = None, **told: Any) -> None:
        self.clock = MadeClock()
        self.begun: list[tuple[str, float]] = []
        self.started: list[Toy] = []
        self.lines: list[str] = []
        identity = {"environment": ENVIRONMENT, "source": "abc"} | told
        record = RunRecord(None if path is None else str(path), **identity, command=["toy"])
        self.run = Run(Budget(self.clock, 60 * minutes), record, self.start, self.lines.append)

    def start(self, _cell: Cell, _beside: int) -> Toy:
        self.started.append(Toy(self))
        return self.started[-1]

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.begun]

    def statuses(self) -> dict[str, str]:
        return {name: cell["status"] for name, cell in self.run.record.cells.items()}
