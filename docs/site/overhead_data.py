"""The data of docs/overhead.md for its table that can be sorted: the records of the folder docs/overhead."""

from __future__ import annotations

import json
from typing import Any

from overhead_records import overhead_records
from sphinx.application import Sphinx

from attnres_compile.models.presets import PRESETS

PAGE = "docs/overhead"
COLUMNS = ("plain", "attnres", "delta", "delta_percent")
"""Of a row, by the names that it has in the records; ``cells`` gives their text in this order."""


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("html-page-context", _add_data)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _add_data(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """In the page itself: what is opened as a file may not fetch another one."""
    if page == PAGE:
        # In JSON, "</" may be written as "<\/", which no parser of HTML takes for the end of a script.
        data = json.dumps(overhead_data(), separators=(",", ":")).replace("</", "<\\/")
        app.add_js_file(None, body=f"const overheadData = {data};", priority=700)
        app.add_js_file("overhead.js", priority=800)


def overhead_data() -> dict[str, Any]:
    """All presets with their rows: numbers to sort by, and their text as reports print it.

    Notes are kept once: a row has the index of its own.
    """
    notes: dict[str, int] = {}
    presets = []
    for name, report in overhead_records().items():
        rows = []
        for row in report.rows:
            metric, *texts, how = row.cells()
            rows.append(
                {
                    "metric": metric,
                    "values": [getattr(row, column) for column in COLUMNS],
                    "texts": texts,
                    "how": how,
                    "note": notes.setdefault(row.note, len(notes)),
                    "detail": row.is_detail,
                }
            )
        shape = [f"source: {PRESETS[name].source}", *report.shape]
        presets.append({"name": name, "shape": shape, "rows": rows})
    return {"presets": presets, "notes": list(notes)}
