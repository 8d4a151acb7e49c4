"""The part of overhead_tables.md: the report of every preset, from the records of overhead_records.py."""

from __future__ import annotations

from overhead_records import overhead_records

from attnres_compile.models.presets import PRESETS
from parts import part


@part
def overhead_tables() -> str:
    texts = []
    for name, report in overhead_records().items():
        shape = "\n".join(f"- {line}" for line in (f"source: {PRESETS[name].source}", *report.shape))
        texts.append(f"## {name}\n\n{shape}\n\n{report.to_markdown()}\n")
    return "\n".join(texts)
