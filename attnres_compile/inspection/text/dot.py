"""The folded streams as Graphviz text: sublayers, blocks, and the blocks that each read attends over."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from attnres_compile.inspection.facts.facts import Inspection, StreamFacts
from attnres_compile.inspection.fold.folding import check_expand, fold
from attnres_compile.inspection.fold.layers import Row


def dot(inspection: Inspection, expand: Collection[str] = ()) -> str:
    """A digraph with a cluster per stream. An edge that only some of the folded layers have is dashed.

    Args:
        inspection: of the model.
        expand: layers that are not folded into their neighbours.

    Raises:
        ExpandError: no stream has such a layer.
    """
    check_expand([stream.sites for stream in inspection.streams], expand)
    lines = ["digraph attnres {", "  rankdir=LR;", "  node [fontname=monospace, fontsize=10];"]
    lines.append(f"  label={_quoted(inspection.headline)};")
    for index, stream in enumerate(inspection.streams):
        lines.extend(_cluster(index, stream, expand))
    return "\n".join([*lines, "}"]) + "\n"


def _cluster(index: int, stream: StreamFacts, expand: Collection[str]) -> Iterator[str]:
    yield f"  subgraph cluster_{index} {{"
    yield f"    label={_quoted(stream.name)};"
    for block in range(stream.num_blocks + 1):
        name = stream.root if block == 0 else f"block {block}"
        yield f"    s{index}_b{block} [shape=ellipse, label={_quoted(name)}];"
    number = 0
    for layer in fold(stream.sites, expand):
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
