"""The parts of overhead.md: what AttnRes adds to each preset, from the records of overhead_records.py."""

from __future__ import annotations

from overhead_records import overhead_records, published
from tabulate import tabulate

from attnres_compile.models.presets import PRESETS
from attnres_compile.report.quantities import percent, quantity
from attnres_compile.report.table import FORWARD_FLOPS, PARAMETERS, RESIDUAL_IO, SAVED, TRAINING_FLOPS
from parts import part


@part
def overhead_summary() -> str:
    """One line per preset: what a reader compares models by."""
    metrics = (PARAMETERS, FORWARD_FLOPS, TRAINING_FLOPS, SAVED, RESIDUAL_IO)
    rows = []
    for name, report in overhead_records().items():
        of_metric = {row.metric: row for row in report.rows}
        io = of_metric[RESIDUAL_IO]
        cells = [percent(of_metric[metric].delta_percent) for metric in metrics]
        bytes_moved = f"{quantity(io.plain, 'B')} → {quantity(io.attnres, 'B')}"
        rows.append([name, of_metric[PARAMETERS].cells()[1], *cells, bytes_moved])
    headers = ["preset", "parameters", *(f"Δ {metric}" for metric in metrics[:-1]), "Δ residual I/O", "per token"]
    lines = [tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True), ""]
    missing = [name for name in published() if name not in overhead_records()]
    if missing:
        lines += [f"Presets without a record yet: {', '.join(missing)}.", ""]
    return "\n".join(lines)


@part
def overhead_tables() -> str:
    texts = []
    for name, report in overhead_records().items():
        shape = "\n".join(f"- {line}" for line in (f"source: {PRESETS[name].source}", *report.shape))
        texts.append(f"### {name}\n\n{shape}\n\n{report.to_markdown()}\n")
    return "\n".join(texts)
