"""Goes through the plan within the budget: what is not timed on many workers at once, what is timed alone.

No cell is begun whose estimate does not fit into what is left; a smaller one behind it may still be. A cell is killed
when it passes its own limit or the budget, with all that it started; the next one gets a new worker.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .budget import Budget, Estimates
from .plan import CLASSES, Cell
from .processes import Hand
from .record import ANSWERED, CUT, KILLED, RunRecord

TICK = 0.1
MEMORY = 120.0
"""Gigabytes of the GPU that cells which run beside each other may need together; one alone may need more."""
UNTIMED_SHARE = 0.3
"""Of the budget that checks and warm-ups may take; checks that did not fit come back in the next run."""

Log = Callable[[str], None]


@dataclass
class _Running:
    cell: Cell
    hand: Hand
    began: float
    ends: float
    """When it is killed."""


class Run:
    """One run."""

    def __init__(self, budget: Budget, record: RunRecord, start: Callable[[Cell, int], Hand], log: Log) -> None:
        """
        Args:
            budget: that it keeps.
            record: that cells are kept in.
            start: a worker for a cell, one of so many that run beside each other.
            log: gets a line for all that happens.
        """
        self.budget, self.record, self.start, self._log = budget, record, start, log
        self.estimates = Estimates(record.known_ratios())
        self._idle: list[Hand] = []
        self._running: list[_Running] = []

    def go(self, plan: Sequence[Cell], lanes: int) -> None:
        """Do what is still to do of a plan.

        Args:
            plan: its cells in order.
            lanes: workers beside each other while nothing is timed.
        """
        left = self.record.still_to_do(plan)
        untimed, timed = ([cell for cell in left if cell.is_timed is wanted] for wanted in (False, True))
        try:
            self.log(f"beside each other, on {lanes} workers: {_counted(untimed)}")
            self._phase(untimed, lanes, UNTIMED_SHARE * self.budget.seconds)
            self.log(f"timed, one at a time: {_counted(timed)}")
            self._phase(timed, 1, self.budget.seconds)
        finally:
            self._end_workers()

    def log(self, text: str) -> None:
        """A line with the time of the budget before it."""
        self._log(f"[{clock_text(self.budget.spent)}] {text}")

    def _phase(self, cells: Sequence[Cell], lanes: int, until: float) -> None:
        """Cells in order, so many at a time; none is begun or goes on past ``until`` seconds of the budget."""
        waiting, skipped = list(cells), []
        while waiting or self._running:
            skipped += self._begin_what_fits(waiting, lanes, until)
            if self._running:
                self.budget.clock.sleep(TICK)
            for one in list(self._running):
                self._look_at(one)
        if skipped:
            self.log(f"no time was left for {_counted(skipped)}; the first of them: {skipped[0].name}")
        self._end_workers()

    def _begin_what_fits(self, waiting: list[Cell], lanes: int, until: float) -> list[Cell]:
        """Begin cells as long as there are workers for them; those that do not fit are returned."""
        skipped: list[Cell] = []
        while waiting and len(self._running) < lanes:
            left = min(self.budget.left, until - self.budget.spent)
            cell = waiting[0]
            if self.estimates.of(cell) > left:
                skipped.append(waiting.pop(0))
                continue
            if self._running and cell.gigabytes + sum(one.cell.gigabytes for one in self._running) > MEMORY:
                break
            waiting.pop(0)
            hand = self._idle.pop() if self._idle else self.start(cell, lanes)
            now = self.budget.clock.now()
            self._running.append(_Running(cell, hand, now, now + min(cell.limit, left)))
            hand.begin(cell.work)
        return skipped

    def _look_at(self, one: _Running) -> None:
        answer, now = one.hand.answer(), self.budget.clock.now()
        if answer is None and now < one.ends:
            return
        self._running.remove(one)
        seconds = now - one.began
        if answer is None:
            own = seconds >= one.cell.limit
            answer = {"status": KILLED if own else CUT, "reason": f"killed after {seconds:.0f} s"}
            if not own:
                answer["reason"] += " by the end of the time for it"
        if answer["status"] in ANSWERED and not one.hand.dead:
            self._idle.append(one.hand)
        else:
            one.hand.kill()  # a GPU that met an error answers nothing more in the same process
        self._take(one.cell, answer, seconds)

    def _take(self, cell: Cell, answer: dict[str, Any], seconds: float) -> None:
        if answer["status"] in ANSWERED:
            self.estimates.learn(cell, seconds)
        self.record.add(cell, answer, seconds)
        reason = f": {answer['reason']}" if answer.get("reason") else ""
        self.log(f"{answer['status']:<9}{seconds:5.1f} s of {cell.seconds:3.0f}  {cell.name}{reason}"[:400])

    def _end_workers(self) -> None:
        for one in self._running:
            one.hand.kill()
        for hand in self._idle:
            hand.close()
        self._running, self._idle = [], []


def clock_text(seconds: float) -> str:
    """Minutes and seconds."""
    whole = int(seconds)
    return f"{whole // 60:02d}:{whole % 60:02d}"


def _counted(cells: Sequence[Cell]) -> str:
    """How many of each class."""
    counts = Counter(cell.group for cell in cells)
    return ", ".join(f"{counts[group]} {group}" for group in CLASSES if group in counts) or "nothing is left to do"
