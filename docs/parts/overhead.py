"""The parts of overhead.md: what AttnRes adds to each preset, from the records of overhead_records.py."""

from __future__ import annotations

import dataclasses

from overhead_records import overhead_records, published
from tabulate import tabulate

from attnres_compile.measure.overhead import overhead
from attnres_compile.models.load_options import LoadOptions
from attnres_compile.models.source import load_model
from attnres_compile.report.parallel import Parallel
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


_SETTING = "gpt2", LoadOptions(seq=1024, dtype="bfloat16", weightless=True)


@part
def overhead_setting() -> str:
    """The rows of two settings that are not those of a report without one."""
    name, options = _SETTING
    loaded = load_model(name, options)
    texts = []
    for parallel in (Parallel("layer", fsdp=8, tp=4), Parallel("branch")):
        report = overhead(loaded.model, loaded.args, loaded.kwargs, name=name, parallel=parallel)
        rows = tuple(
            row for row in report.shown(False) if row.metric.startswith(_OF_SETTING) or _IS_UNDER in row.metric
        )
        texts.append(f"{parallel.line()}:\n\n{dataclasses.replace(report, rows=rows).to_markdown()}\n")
    return "\n".join(texts)


_OF_SETTING, _IS_UNDER = ("FSDP2", "tensor parallelism"), "checkpointed"
