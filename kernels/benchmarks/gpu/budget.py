"""The budget: seconds that are left, by a clock that is handed in, and how long a cell is expected to take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from typing import Protocol

from .plan import Cell

RESERVE = 3.0
"""Seconds at the end of the budget that no cell gets: a worker is ended and the summary written in them."""
_LEAST, _MOST = 0.25, 4.0
"""Between these a correction of the estimates stays: a few cells may not be like the others."""


class Clock(Protocol):
    """Tells the time, and lets it pass."""

    def now(self) -> float:
        """Seconds since some moment."""

    def sleep(self, seconds: float) -> None:
        """Let seconds pass."""


class WallClock:
    """The machine's own."""

    def now(self) -> float:
        """Seconds since some moment."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Let seconds pass."""
        time.sleep(seconds)


class Budget:
    """Seconds in all, counted from when it is made."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        """
        Args:
            clock: that they are counted by.
            seconds: in all.
        """
        self.clock, self.seconds = clock, seconds
        self._begun = clock.now()

    @property
    def spent(self) -> float:
        return self.clock.now() - self._begun

    @property
    def left(self) -> float:
        """What cells may still take."""
        return self.seconds - RESERVE - self.spent


class Estimates:
    """Seconds that a cell will take: those of the plan, times what cells of its class took over their estimates."""

    def __init__(self, known: Iterable[tuple[str, float]] = ()) -> None:
        """known: class, and seconds over those of the plan, of cells that were measured before."""
        self._ratios: dict[str, list[float]] = {}
        for group, ratio in known:
            self._ratios.setdefault(group, []).append(ratio)

    def learn(self, cell: Cell, seconds: float) -> None:
        """Take over what a cell took.

        Args:
            cell: that was measured.
            seconds: that it took.
        """
        self._ratios.setdefault(cell.group, []).append(seconds / cell.seconds)

    def of(self, cell: Cell) -> float:
        """Seconds that a cell is expected to take, at most its limit."""
        ratios = self._ratios.get(cell.group, [1.0])
        return min(cell.limit, cell.seconds * min(max(statistics.median(ratios), _LEAST), _MOST))
