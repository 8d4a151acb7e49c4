"""A recording as text: a table for people, and one number per line for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from tabulate import tabulate

from attnres_compile.recording.recorded import Recorded, RecordedRead, RecordedWrite

CSV_COLUMNS = ("stream", "module", "line", "sublayer", "place", "block", "quantity", "source", "value")
"""place: writes before a read, or the number of a write; source: of a weight: 0 for the root, i for block i."""


def csv_text(weights: Recorded) -> str:
    """All numbers of a recording under CSV_COLUMNS."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for read in weights.reads:
        head = (read.stream, read.module, read.source, read.before, read.state, read.block)
        writer.writerows((*head, *row) for row in _read_rows(read))
    for write in weights.writes:
        head = (write.stream, write.module, write.source, write.sublayer, write.index, write.block)
        writer.writerows((*head, *row) for row in _write_rows(write))
    return out.getvalue()


def _read_rows(read: RecordedRead) -> Iterator[tuple[str, int | str, float]]:
    for source, weight in enumerate(read.weights):
        yield "weight", source, weight
    yield "entropy", "", read.entropy
    yield "read_magnitude", "", read.magnitude


def _write_rows(write: RecordedWrite) -> Iterator[tuple[str, str, float]]:
    yield "output_magnitude", "", write.output_magnitude
    yield "block_magnitude", "", write.block_magnitude
    if write.gradient_norm is not None:
        yield "gradient_norm", "", write.gradient_norm


def text(weights: Recorded) -> str:
    """Two tables per stream: its reads and its writes."""
    parts = []
    for name in weights.streams:
        reads = [read for read in weights.reads if read.stream == name]
        writes = [write for write in weights.writes if write.stream == name]
        if writes:
            tokens, backwards = writes[0].tokens, writes[0].backwards
            parts.append(f"stream {name} of {weights.model}: {tokens:,} tokens, {backwards:,} backward passes")
            parts.append(_reads_table(reads))
            parts.append(_writes_table(writes))
    return "\n\n".join(parts)


def _reads_table(reads: list[RecordedRead]) -> str:
    most = max((len(read.weights) for read in reads), default=0)
    sources = ["root", *(f"b{block}" for block in range(1, most))]
    rows = []
    for read in reads:
        shown = [f"{weight:.3f}" for weight in read.weights]
        if read.is_open:
            shown[-1] += "*"
        shown += [""] * (most - len(shown))
        rows.append([read.module, read.before, *shown, f"{read.entropy:.3f}", f"{read.magnitude:.4g}"])
    headers = ["read in", "before", *sources, "entropy", "magnitude"]
    return tabulate(rows, headers=headers, disable_numparse=True) + "\n(* the open block)"


def _writes_table(writes: list[RecordedWrite]) -> str:
    rows = [
        [
            write.module,
            write.sublayer,
            write.block,
            f"{write.output_magnitude:.4g}",
            f"{write.block_magnitude:.4g}",
            "n/a" if write.gradient_norm is None else f"{write.gradient_norm:.4g}",
        ]
        for write in writes
    ]
    headers = ["write of", "sublayer", "block", "output magnitude", "block magnitude", "gradient norm"]
    return tabulate(rows, headers=headers, disable_numparse=True)
