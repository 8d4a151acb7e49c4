"""The overhead table: rows of plain against AttnRes, each with how its numbers were found."""

from __future__ import annotations

import csv
import dataclasses
import io
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from tabulate import tabulate

from attnres_compile.bench.measure import Comparison

SCHEMA_VERSION = 1
How = Literal["exact", "closed form", "measured", "n/a"]
HEADERS = ("metric", "plain", "attnres", "delta", "delta %", "how")


@dataclass(frozen=True)
class OverheadRow:
    """One metric of the plain and of the AttnRes model, in ``unit``.

    A number that is missing is None; ``how`` is then "n/a" or the note says why one side has none.
    ``comparison`` holds the samples of a measured row. Raises ValueError for a row that does not say why a
    number is missing.
    """

    metric: str
    plain: float | None
    attnres: float | None
    unit: str
    how: How
    note: str = ""
    comparison: Comparison | None = None

    def __post_init__(self) -> None:
        if self.how not in get_args(How):
            raise ValueError(f"how is {self.how!r}: pass one of {', '.join(get_args(How))}")
        if None in (self.plain, self.attnres) and not self.note:
            raise ValueError(f"the row {self.metric!r} misses a number: give the reason in its note")
        if self.how == "measured" and self.comparison is None:
            raise ValueError(f"the row {self.metric!r} is measured: give its comparison")

    @property
    def delta(self) -> float | None:
        """AttnRes less plain, in ``unit``."""
        return None if self.plain is None or self.attnres is None else self.attnres - self.plain

    @property
    def delta_percent(self) -> float | None:
        """The difference in percent of plain; for a measured row, that of the median paired ratio."""
        if self.comparison is not None:
            return 100 * (self.comparison.ratio.value - 1)
        return None if self.delta is None or not self.plain else 100 * self.delta / self.plain

    def cells(self) -> tuple[str, ...]:
        """Text of the columns HEADERS."""
        return (
            f"{self.metric} [{self.unit}]" if self.unit else self.metric,
            _number(self.plain),
            _number(self.attnres),
            _number(self.delta, sign="+"),
            self._percent_cell(),
            self.how,
        )

    def _percent_cell(self) -> str:
        if self.delta_percent is None:
            return "n/a"
        same = self.comparison is not None and not self.comparison.ratio.resolved
        return f"{'≈ ' if same else ''}{self.delta_percent:+.2f} %"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; a missing number is null."""
        values = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        values["comparison"] = self.comparison.to_dict() if self.comparison else None
        return values | {"delta": self.delta, "delta_percent": self.delta_percent}


@dataclass(frozen=True)
class OverheadReport:
    """What Block Attention Residuals cost one model. ``str()`` is the table with its notes."""

    model: str
    rows: tuple[OverheadRow, ...]
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self._table("simple")

    def to_markdown(self) -> str:
        """The table and its notes as GitHub markdown."""
        return self._table("github")

    def to_csv(self) -> str:
        """One line per row, numbers in full; a missing number is "n/a"."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("metric", "unit", "plain", "attnres", "delta", "delta_percent", "how", "note"))
        for row in self.rows:
            numbers = (row.plain, row.attnres, row.delta, row.delta_percent)
            shown = ("n/a" if number is None else number for number in numbers)
            writer.writerow((row.metric, row.unit, *shown, row.how, row.note))
        return text.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with ``schema_version``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": "overhead",
            "model": self.model,
            "config": self.config,
            "environment": self.environment,
            "rows": [row.to_dict() for row in self.rows],
        }

    def _table(self, style: str) -> str:
        notes = list(dict.fromkeys(row.note for row in self.rows if row.note))
        body = []
        for row in self.rows:
            metric, *rest = row.cells()
            body.append((f"{metric} ({notes.index(row.note) + 1})" if row.note else metric, *rest))
        align = ("left", "right", "right", "right", "right", "left")
        table = tabulate(body, HEADERS, tablefmt=style, colalign=align, disable_numparse=True)
        lines = [f"({number}) {note}" for number, note in enumerate(notes, 1)]
        separator = "\n\n" if style == "github" else "\n"
        return separator.join((table, *lines))


def _number(value: float | None, sign: str = "") -> str:
    if value is None:
        return "n/a"
    if value == int(value):
        return f"{int(value):{sign},}"
    return f"{value:{sign},.4g}" if abs(value) < 1000 else f"{value:{sign},.1f}"
