"""``attnres plot``: the picture of a recording of depth weights, or of a record of a benchmark."""

from __future__ import annotations

import argparse
from pathlib import Path

from attnres_compile.cli.output import OutputError, check_writable, read_record, write_bytes


def run_plot(arguments: argparse.Namespace) -> int:
    """Draw what the file holds, which it says itself."""
    check_writable(arguments.output)
    from attnres_compile.measure.model import KIND as MODEL
    from attnres_compile.recording.weights import CONTENT, DepthWeights
    from kernels.benchmarks.against_peers.run import KIND as KERNELS

    data = read_record(arguments.file)
    kind = data.get("kind", data.get("content")) if isinstance(data, dict) else None
    if kind == CONTENT:
        DepthWeights.from_dict(data).plot(arguments.output)
        return 0
    if kind not in (KERNELS, MODEL):
        raise OutputError(
            f"{arguments.file} is no recording of depth weights and no record of a benchmark that can be drawn (its "
            f"kind is {kind!r}): pass what w.save(FILE), `attnres {KERNELS} --json FILE` or `attnres {MODEL} --json "
            "FILE` wrote"
        )
    from attnres_compile.measure.model_plot import model_figure
    from attnres_compile.measure.picture import picture
    from kernels.benchmarks.against_peers.plot import kernels_figure

    figure = kernels_figure(data) if kind == KERNELS else model_figure(data)
    write_bytes(picture(figure, Path(arguments.output).suffix[1:].lower()), arguments.output)
    return 0
