"""The text of an inspection, in the order in which people ask: is it rewritten, what, what not, at what price."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tabulate import tabulate

from attnres_compile.inspection.facts.facts import AddedParameter, GraphBreak, Inspection, Kernel, StreamFacts
from attnres_compile.inspection.fold.folding import FoldedInspection, FoldedStream
from attnres_compile.inspection.fold.layers import Layer
from attnres_passes.ir.plan import short_source

Table = tuple[list[str], list[list[str]]]
"""Headers and rows."""


def inspection_text(inspection: FoldedInspection) -> str:
    """Verdict, streams, sites, declines, graph breaks, parameters, kernels, environment."""
    return "\n\n".join(_sections(inspection.facts, inspection.streams))


def _sections(inspection: Inspection, streams: Sequence[FoldedStream]) -> Iterator[str]:
    yield inspection.headline
    for stream in streams:
        yield f"stream {stream.facts.name}: {stream_line(stream.facts)}\n{_table(site_table(stream))}"
    if inspection.plan.declined:
        yield "declined\n" + "\n".join(f"  - {decline}" for decline in inspection.plan.declined)
    if inspection.breaks:
        yield "graph breaks\n" + "\n".join(f"  - {break_line(found)}" for found in inspection.breaks)
    if inspection.parameters:
        yield f"parameters added: {added_elements(inspection):,}\n{_table(parameter_table(inspection.parameters))}"
    if inspection.kernels:
        yield f"kernels: {inspection.bound}\n{_table(kernel_table(inspection.kernels))}"
    yield f"nodes: {pairs(inspection.nodes)}\nmade with: {pairs(inspection.environment)}"


def stream_line(stream: StreamFacts) -> str:
    """Width, shape and blocks of a stream."""
    blocks = f"{stream.num_blocks} block{'s' if stream.num_blocks > 1 else ''} of {stream.block_size}"
    root = ", ".join(part for part in (stream.root, short_source(stream.root_source)) if part)
    counts = f"{stream.writes} writes in {blocks}, {stream.reads} reads"
    return f"width {stream.width}, {counts}; {stream.shape} from {root}"


def site_table(stream: FoldedStream) -> Table:
    """One row per site, repeated layers folded; the last columns only if some site has a pipeline stage, or a word on
    its query.
    """
    headers = ["", "module", "source", "", "block", "sources", "normed", "schedule", "stage", "query"]
    rows = [row for layer in stream.layers for row in _layer_rows(layer)]
    shown = [k for k, header in enumerate(headers) if header not in ("stage", "query") or any(row[k] for row in rows)]
    return [headers[k] for k in shown], [[row[k] for k in shown] for row in rows]


def _layer_rows(layer: Layer) -> Iterator[list[str]]:
    times = f"x{layer.repeats}" if layer.is_folded else ""
    for row in layer.rows:
        site = row.first
        normed = "" if site.normed is None else "yes" if site.normed else "no"
        rest = [times, row.block, row.sources, normed, row.schedule, row.stage, row.query]
        if row.borders:
            crossing = _span_of([border.sources for border in row.borders])
            many = f"x{len(row.borders)}" if len(row.borders) > 1 else ""
            yield ["border", f"{row.border}: {row.crossing}", "", many, "", crossing, "", "", "", ""]
        yield [site.kind, row.module, short_source(site.source), *rest]


def _span_of(numbers: list[int]) -> str:
    return _extent((min(numbers), max(numbers)))


def break_line(found: GraphBreak) -> str:
    """Where, why, what it cuts, and what to do."""
    cuts = f"; it cuts the stream {found.cuts}" if found.cuts else ""
    return f"{short_source(found.source)}: {found.reason}{cuts}; {found.fix}"


def added_elements(inspection: Inspection) -> int:
    """Numbers in all parameters that are added."""
    return sum(added.elements for added in inspection.parameters)


def parameter_table(parameters: Sequence[AddedParameter]) -> Table:
    """One row per stream and kind."""
    headers = ["name", "shape", "tensors", "parameters", "init", "weight decay"]
    rows = [
        [one.name, str(list(one.shape)), str(one.count), f"{one.elements:,}", one.init, one.decay] for one in parameters
    ]
    return headers, rows


def kernel_table(kernels: Sequence[Kernel]) -> Table:
    """One row per form of a call."""
    headers = ["kernel", "on", "stream", "calls", "n sources", "reads", "d", "dtype", "takes in"]
    rows = [
        [
            *(one.name, one.implementation, one.stream, str(one.calls), _extent(one.sources), _extent(one.reads)),
            *(str(one.d), one.dtype, one.fused),
        ]
        for one in kernels
    ]
    return headers, rows


def pairs(values: dict[str, int] | dict[str, str]) -> str:
    """``captured 312, rewritten 350``."""
    return ", ".join(
        f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}" for name, value in values.items()
    )


def _extent(numbers: tuple[int, int] | None) -> str:
    if numbers is None:
        return ""
    return str(numbers[0]) if numbers[0] == numbers[1] else f"{numbers[0]}-{numbers[1]}"


def _table(table: Table) -> str:
    headers, rows = table
    return tabulate(rows, headers=headers, disable_numparse=True)
