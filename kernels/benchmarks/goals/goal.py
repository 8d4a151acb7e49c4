"""A goal: a limit, what was measured of it, and whether that reaches it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tabulate import tabulate

from ..against_peers.table import TABLE_FORMATS

NOT_MEASURED, REACHED, MISSED, PARTLY = "not measured", "reached", "missed", "reached where measured"
NO_RECORD = "no record"
"""Why something is missing that nothing was measured of; any other reason is worth a word."""


@dataclass(frozen=True)
class Value:
    """One measurement, with its interval where it has one."""

    number: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Goal:
    """A limit and what was measured of it."""

    name: str
    limit: float
    unit: str
    """"%" of the copy bandwidth, "+%" over plain, or "x" for times the speed."""
    at_least: bool
    values: dict[str, Value] = field(default_factory=dict)
    """By shape or model."""
    missing: dict[str, str] = field(default_factory=dict)
    """Why what the goal also asks for was not measured, by shape or model."""
    mean: bool = False
    """Whether the geometric mean of the values has to reach it, else each of them."""

    @property
    def lacks(self) -> float | None:
        """How much is missing to the limit, in its unit; at most 0 if it is reached, None without a measurement."""
        numbers = self._numbers()
        if not numbers:
            return None
        return self.limit - min(numbers) if self.at_least else max(numbers) - self.limit

    @property
    def state(self) -> str:
        """NOT_MEASURED, MISSED, REACHED, or PARTLY: something is missing, and the rest reaches it."""
        if self.lacks is None:
            return NOT_MEASURED
        if self.lacks > 0:
            return MISSED
        return PARTLY if self.missing else REACHED

    @property
    def measured(self) -> str:
        """The number that decides, with its interval or its shape; '' without one."""
        if not self.values:
            return ""
        if self.mean:
            return f"{self._shown(self._numbers()[0])} over {len(self.values)} shapes"
        pick, form = min if self.at_least else max, ".3f" if self.unit == "x" else "+.2f"
        subject, worst = pick(self.values.items(), key=lambda item: item[1].number)
        interval = "" if worst.low is None or worst.high is None else f" [{worst.low:{form}}, {worst.high:{form}}]"
        return f"{self._shown(worst.number)}{interval}{f' ({subject})' if len(self.values) > 1 else ''}"

    @property
    def verdict(self) -> str:
        """The state in words: by how much it is missed, and what is missing."""
        words = [self.state]
        if self.lacks is not None and self.lacks > 0:
            words = [f"missed by {self.lacks:.3f}x" if self.unit == "x" else f"missed by {self.lacks:.2f} points"]
            if len(self.values) > 1 and not self.mean:
                words.append(f"{sum(map(self._reaches, self.values.values()))} of {len(self.values)} reach it")
        if self.missing and self.values:
            words.append(f"{len(self.missing)} not measured")
        reasons = dict.fromkeys(reason for reason in self.missing.values() if reason != NO_RECORD)
        return "; ".join([*words, *reasons])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with what follows from it."""
        return asdict(self) | {"state": self.state, "lacks": self.lacks}

    @property
    def wanted(self) -> str:
        """The limit in words."""
        return f"at {'least' if self.at_least else 'most'} {self._shown(self.limit)}"

    def _numbers(self) -> list[float]:
        numbers = [value.number for value in self.values.values()]
        return [statistics.geometric_mean(numbers)] if self.mean and numbers else numbers

    def _reaches(self, value: Value) -> bool:
        return value.number >= self.limit if self.at_least else value.number <= self.limit

    def _shown(self, number: float) -> str:
        return {"%": f"{number:.1f} %", "+%": f"{number:+.2f} %", "x": f"{number:.3f}x"}[self.unit]


def goals_table(found: Sequence[Goal], style: str = "table") -> str:
    """A row per goal: what is wanted, what was measured, and whether it is reached.

    Args:
        found: the goals of one GPU.
        style: a name of TABLE_FORMATS.
    """
    rows = [[goal.name, goal.wanted, goal.measured, goal.verdict] for goal in found]
    headers = ["goal", "wanted", "measured", "verdict"]
    return tabulate(rows, headers, tablefmt=TABLE_FORMATS[style], disable_numparse=True)
