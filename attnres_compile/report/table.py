"""The overhead table: rows of plain against AttnRes, each with how its numbers were found."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from tabulate import tabulate

from attnres_compile.report.comparison import Comparison
from attnres_compile.report.quantities import percent, quantity

SCHEMA_VERSION = 2
How = Literal["exact", "closed form", "counted", "measured", "n/a"]
HEADERS = ("metric", "plain", "attnres", "delta", "delta %", "how")
ALIGN = ("left", "right", "right", "right", "right", "left")


@dataclass(frozen=True)
class OverheadRow:
    """One metric of the plain and of the AttnRes model, in ``unit``.

    A number that is missing is None; ``how`` is then "n/a" or the note says why one side has none. Raises ValueError
    for a row that does not say why a number is missing.
    """

    metric: str
    plain: float | None
    attnres: float | None
    unit: str
    how: How
    note: str = ""
    is_detail: bool = False
    """Left out of the short table."""
    unit_size: float | None = None
    """One ``d``, the width of the stream, in ``unit``, for rows that are shown in both."""
    comparison: Comparison | None = None
    """The samples of a measured row."""

    def __post_init__(self) -> None:
        if self.how not in get_args(How):
            raise ValueError(f"how is {self.how!r}: pass one of {', '.join(get_args(How))}")
        if None in (self.plain, self.attnres) and not self.note:
            raise ValueError(f"the row {self.metric!r} misses a number: give the reason in its note")
        if self.how == "measured" and self.comparison is None and not self.note:
            raise ValueError(f"the row {self.metric!r} is measured: give its comparison, or a note on how and where")

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
        shown = (self._quantity(self.plain), self._quantity(self.attnres), self._quantity(self.delta, "+"))
        return self.metric, *shown, self._percent_cell(), self.how

    def _quantity(self, value: float | None, sign: str = "") -> str:
        text = quantity(value, self.unit, sign)
        if value is None or self.unit_size is None:
            return text
        return f"{text} = {value / self.unit_size:{sign}.2f} d"

    def _percent_cell(self) -> str:
        if self.delta_percent is None:
            return "n/a"
        same = self.comparison is not None and not self.comparison.ratio.resolved
        return f"{'≈ ' if same else ''}{percent(self.delta_percent)}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; a missing number is null."""
        values = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        values["comparison"] = self.comparison.to_dict() if self.comparison else None
        return values | {"delta": self.delta, "delta_percent": self.delta_percent}


@dataclass(frozen=True)
class OverheadReport:
    """What Block Attention Residuals cost one model. ``str()`` is the short table with its notes."""

    model: str
    rows: tuple[OverheadRow, ...]
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    shape: tuple[str, ...] = ()
    """Of the model and of its call, in lines for people."""
    uncounted: dict[str, int] = field(default_factory=dict)
    """Calls of operators whose FLOPs nobody counts, on both sides."""
    parallel: dict[str, Any] = field(default_factory=dict)
    """What is checkpointed and sharded; {} where nothing is."""

    def __str__(self) -> str:
        return self.to_text()

    def to_text(self, details: bool = False) -> str:
        """The table for a terminal, with its heading; details: all rows, and not the short table only."""
        return "\n".join((*self.heading(), "", self._table("simple", details)))

    def heading(self) -> tuple[str, ...]:
        """The model, its shape, and what AttnRes adds in one sentence."""
        return (self.model, *self.shape, *filter(None, [self.summary()]))

    def summary(self) -> str:
        """What a reader in a hurry wants to know; '' if nothing of it was counted."""
        parts = []
        for metric, text in _SUMMARY.items():
            row = next((row for row in self.rows if row.metric.partition(", ")[0] == metric), None)
            if row is not None and row.delta_percent is not None:
                parts.append(f"{percent(row.delta_percent)} {text}")
        return f"AttnRes: {', '.join(parts)}." if parts else ""

    def shown(self, details: bool) -> tuple[OverheadRow, ...]:
        """The rows of the short or of the long table."""
        return tuple(row for row in self.rows if details or not row.is_detail)

    def to_markdown(self, details: bool = False) -> str:
        """The table and its notes as GitHub markdown."""
        return self._table("github", details)

    def to_csv(self) -> str:
        """One line per row, details too, numbers in full; a missing number is "n/a"."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("metric", "unit", "plain", "attnres", "delta", "delta_percent", "how", "note"))
        for row in self.rows:
            numbers = (row.plain, row.attnres, row.delta, row.delta_percent)
            shown = ("n/a" if number is None else number for number in numbers)
            writer.writerow((row.metric, row.unit, *shown, row.how, row.note))
        return text.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with ``schema_version``; ``overhead.schema.json`` beside this file describes it."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": "overhead",
            "model": self.model,
            "shape": list(self.shape),
            "summary": self.summary(),
            "config": self.config,
            "environment": self.environment,
            "rows": [row.to_dict() for row in self.rows],
            "uncounted": self.uncounted,
            **({"parallel": self.parallel} if self.parallel else {}),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> OverheadReport:
        """The report that ``to_dict`` was taken of. Raises KeyError or TypeError on data of another shape."""
        rows = []
        for row in data["rows"]:
            values = {field.name: row[field.name] for field in dataclasses.fields(OverheadRow)}
            if values["comparison"] is not None:
                values["comparison"] = Comparison.from_dict(values["comparison"])
            rows.append(OverheadRow(**values))
        of_model = {name: data[name] for name in ("model", "config", "environment", "uncounted")}
        return cls(rows=tuple(rows), shape=tuple(data["shape"]), parallel=data.get("parallel", {}), **of_model)

    def _table(self, style: str, details: bool) -> str:
        body, notes = numbered(self.shown(details))
        table = tabulate(body, HEADERS, tablefmt=style, colalign=ALIGN, disable_numparse=True)
        lines = [f"({number}) {note}" for number, note in enumerate(notes, 1)]
        separator = "\n\n" if style == "github" else "\n"
        return separator.join((table, *lines))


PARAMETERS, FORWARD_FLOPS, TRAINING_FLOPS = "parameters", "forward FLOPs", "training FLOPs"
RESIDUAL_IO, SAVED = "residual I/O per token and sublayer", "activations kept for the backward"
_SUMMARY = {
    PARAMETERS: "parameters",
    FORWARD_FLOPS: "forward FLOPs",
    TRAINING_FLOPS: "training FLOPs",
    SAVED: "activations kept",
    RESIDUAL_IO: "memory traffic of the residual path alone",
}


def numbered(rows: Iterable[OverheadRow]) -> tuple[list[tuple[str, ...]], list[str]]:
    """The cells of each row, its metric with the number of its note, and the notes."""
    rows = list(rows)
    notes = list(dict.fromkeys(row.note for row in rows if row.note))
    body = []
    for row in rows:
        metric, *rest = row.cells()
        body.append((f"{metric} ({notes.index(row.note) + 1})" if row.note else metric, *rest))
    return body, notes
