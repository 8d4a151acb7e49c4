"""``attnres plot``: the picture of a recording of depth weights, or of a record of ``attnres bench model``."""

from __future__ import annotations

import argparse
from pathlib import Path

from attnres_compile.cli.output import (
    OutputError,
    check_writable,
    read_record,
    record_kind,
    refuse_kernel_record,
    write_bytes,
)
from attnres_compile.progress import stage


def run_plot(arguments: argparse.Namespace) -> int:
    """Draw what the file holds, which it says itself."""
    check_writable(arguments.output)
    from attnres_compile.measure.model import KIND
    from attnres_compile.recording.weights import CONTENT, DepthWeights

    record = read_record(arguments.file)
    refuse_kernel_record(record, "plot", arguments.file)
    kind = record_kind(record)
    stage("drawing")
    if kind == CONTENT:
        DepthWeights.from_dict(record).plot(arguments.output)
        return 0
    if kind != KIND:
        raise OutputError(
            f"{arguments.file} is no recording of depth weights and no record of a benchmark that can be drawn (its "
            f"kind is {kind!r}): pass what w.save(FILE) or `attnres {KIND} --json FILE` wrote"
        )
    from attnres_compile.measure.figures import figure_bytes
    from attnres_compile.measure.model_plot import model_figure

    write_bytes(figure_bytes(model_figure(record), Path(arguments.output).suffix[1:].lower()), arguments.output)
    return 0
