"""The residual streams alone, before and after, line by line, and their difference.

Before, every sublayer reads and adds to one state ``x``; after, writes go to the blocks ``b1, b2, ..`` and reads attend
over those there are. Layers are folded, so that a model of a hundred layers is a dozen lines.
"""

from __future__ import annotations

from collections.abc import Iterator

from attnres_compile.inspection.fold.folding import FoldedInspection, FoldedStream
from attnres_compile.inspection.fold.layers import Row

Pair = tuple[str, str]
"""A line before and after the rewrite."""


def _pairs(stream: FoldedStream) -> Iterator[Pair]:
    """The lines of one stream."""
    yield f"x = {stream.facts.root}", f"b0 = {stream.facts.root}"
    for layer in stream.layers:
        if layer.is_folded:
            line = f"# {layer.label}: {layer.repeats} times"
            yield line, line
        for row in layer.rows:
            yield _row_pair(row)


def _row_pair(row: Row) -> Pair:
    if row.first.kind == "write":
        return f"x += {row.module}", f"{_block(row.block)} += {row.module}"
    deep = [site.sources for site in row.sites if (site.sources or 0) > 1]
    if not deep:
        return f"{row.module}(x)", f"{row.module}(b0)"
    least, most = min(number - 1 for number in deep if number), max(number - 1 for number in deep if number)
    last = f"b{most}" if least == most else _block(f"{least}-{most}")
    return f"{row.module}(x)", f"{row.module}(depth_attention(b0{', ' if most == 1 else ' .. '}{last}))"


def _block(number: str) -> str:
    return f"b[{number}]" if "-" in number else f"b{number}"


def skeleton_diff(inspection: FoldedInspection) -> str:
    """A unified diff of the residual streams; '' if nothing is rewritten.

    Lines that replace each other stand together, which a unified diff allows.
    """
    parts = []
    for stream in inspection.streams:
        pairs = list(_pairs(stream))
        lines = []
        for before, after in pairs:
            lines.extend([f" {before}"] if before == after else [f"-{before}", f"+{after}"])
        name, count = stream.facts.name, len(pairs)
        head = f"--- {name} as it was\n+++ {name} rewritten\n@@ -1,{count} +1,{count} @@"
        parts.append("\n".join([head, *lines]))
    return "\n".join(parts)
