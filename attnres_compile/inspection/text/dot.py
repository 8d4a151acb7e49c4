"""The folded streams as Graphviz text: sublayers, blocks, and the blocks that each read attends over."""

from __future__ import annotations

from collections.abc import Iterator

from attnres_compile.inspection.fold.folding import FoldedInspection, FoldedStream
from attnres_compile.inspection.fold.layers import Row


def dot(inspection: FoldedInspection) -> str:
    """A digraph with a cluster per stream. An edge that only some of the folded layers have is dashed."""
    lines = ["digraph attnres {", "  rankdir=LR;", "  node [fontname=monospace, fontsize=10];"]
    lines.append(f"  label={_quoted(inspection.facts.headline)};")
    for index, stream in enumerate(inspection.streams):
        lines.extend(_cluster(index, stream))
    return "\n".join([*lines, "}"]) + "\n"


def _cluster(index: int, stream: FoldedStream) -> Iterator[str]:
    yield f"  subgraph cluster_{index} {{"
    yield f"    label={_quoted(stream.facts.name)};"
    for block in range(stream.facts.num_blocks + 1):
        name = stream.facts.root if block == 0 else f"block {block}"
        yield f"    s{index}_b{block} [shape=ellipse, label={_quoted(name)}];"
    number = 0
    for layer in stream.layers:
        for row in layer.rows:
            times = f"\\nx{layer.repeats}" if layer.is_folded else ""
            shape = "box, style=rounded" if row.first.kind == "read" else "box"
            node = f"s{index}_n{number}"
            yield f"    {node} [shape={shape}, label={_quoted(row.module, times)}];"
            yield from (f"    {edge};" for edge in _edges(f"s{index}_b", node, row))
            number += 1
    yield "  }"


def _edges(block: str, node: str, row: Row) -> Iterator[str]:
    if row.first.kind == "write":
        blocks = sorted({site.block for site in row.sites if site.block is not None})
        style = " [style=dashed]" if len(blocks) > 1 else ""
        yield from (f"{node} -> {block}{number}{style}" for number in blocks)
        return
    counts = [site.sources or 1 for site in row.sites]
    for number in range(max(counts)):
        yield f"{block}{number} -> {node}" + ("" if number < min(counts) else " [style=dashed]")


def _quoted(text: str, after: str = "") -> str:
    """A quoted string of Graphviz; ``after`` may hold its escapes."""
    plain = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{plain}{after}"'
