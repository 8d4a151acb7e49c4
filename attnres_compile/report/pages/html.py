"""Self-contained HTML pages of a report and of a sweep: one file, no network, no script."""

from __future__ import annotations

from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from attnres_compile.report.block_sweep import HEADERS as SWEEP_HEADERS
from attnres_compile.report.block_sweep import NOTE, BlockSweep
from attnres_compile.report.pages.sweep_plot import sweep_svg
from attnres_compile.report.table import HEADERS, OverheadReport, numbered


def report_page(report: OverheadReport) -> str:
    """The short table, the details folded below it, and what was not counted."""
    short, details = report.shown(False), tuple(row for row in report.rows if row.is_detail)
    body, notes = numbered((*short, *details))
    return _page(
        title=report.model,
        lines=report.heading()[1:],
        headers=HEADERS,
        rows=body[: len(short)],
        details=body[len(short) :],
        notes=notes,
        uncounted=report.uncounted,
        picture="",
        config={name: value for name, value in report.config.items() if value is not None},
    )


def sweep_page(sweep: BlockSweep) -> str:
    """The plot and the table."""
    return _page(
        title=sweep.model,
        lines=("Cost over the number of blocks",),
        headers=SWEEP_HEADERS,
        rows=[point.cells() for point in sweep.points],
        details=[],
        notes=[NOTE],
        uncounted={},
        picture=Markup(sweep_svg(sweep)),  # made here, with what is not ours escaped
        config={},
    )


def _page(**values: Any) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = resources.files(__package__).joinpath("page.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(text).render(**values)
