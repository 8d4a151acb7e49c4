"""Records of a GPU, merged: of many records the newest measurement of each cell, merged by device.

A grid takes long, so it may lie in several records, each with a part of it. Merged records have
the form of their kind, so that tables and plots take them. A record of the CPU, or of Triton's interpreter on whatever
device, is never one of a GPU; nor is one that does not say how its kernels ran.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable
from typing import Any

from attnres_compile.measure.model import KIND as MODEL_KIND
from attnres_compile.measure.model_table import in_this_schema

from ..against_peers import run as kernel_run
from ..against_peers.table import checked

Record = dict[str, Any]


def on_gpu(record: Record) -> bool:
    """Whether a record of kernels or models was measured on a GPU, with compiled kernels."""
    job, environment = record["job"], record["environment"]
    device = str(job["device"] if record["kind"] == kernel_run.KIND else job["load"]["device"])
    is_cuda = device.partition(":")[0] == "cuda" and not str(environment["device"]).startswith("CPU")
    return is_cuda and environment.get("triton_interpreter") is False


def merged_kernels(records: Iterable[Record]) -> list[Record]:
    """One record of kernels per GPU, its cells in the order of the grid; others are left out.

    Raises MeasureError for a record of another version.
    """
    groups = _groups(records, kernel_run.KIND, checked, lambda record: record["environment"]["device"])
    merged = [_merged(group, _shape, "skipped") for group in groups]
    return [record | {"cells": sorted(record["cells"], key=_shape)} for record in merged]


def _shape(cell: Record) -> tuple[Any, ...]:
    return tuple(cell[name] for name in ("level", "direction", "dtype", "tokens", "width", "sources", "reads"))


def merged_models(records: Iterable[Record]) -> list[Record]:
    """One record per GPU, model, dtype, inputs and options of the rewrite; others are left out.

    Raises MeasureError for a record of a later version.
    """
    groups = _groups(records, MODEL_KIND, in_this_schema, _of_model)
    return [_merged(group, lambda cell: (cell["workload"], cell["schedule"]), "missing") for group in groups]


def _of_model(record: Record) -> Hashable:
    job = record["job"]
    told = [job["load"]["dtype"], record["inputs"], job["options"], job["without_dropout"]]
    return record["environment"]["device"], record["model"]["name"], json.dumps(told, sort_keys=True)


def _groups(
    records: Iterable[Record], kind: str, read: Callable[[Record], Record], key: Callable[[Record], Hashable]
) -> list[list[Record]]:
    """The records of a kind and of GPUs that belong together, in the order of their dates."""
    found: dict[Hashable, list[Record]] = {}
    of_gpus = filter(on_gpu, [read(record) for record in records if record.get("kind") == kind])
    for record in sorted(of_gpus, key=lambda record: str(record["environment"]["date"])):
        found.setdefault(key(record), []).append(record)
    return list(found.values())


def _merged(records: list[Record], key: Callable[[Record], Hashable], lacking: str) -> Record:
    """The newest record with the cells of all. lacking: what a cell without a measurement has in its place; it stands
    for its cell only where none was measured.
    """
    cells: dict[Hashable, Record] = {}
    for cell in (cell for record in records for cell in record["cells"]):
        if lacking not in cell or lacking in cells.get(key(cell), cell):
            cells[key(cell)] = cell
    return records[-1] | {"cells": list(cells.values())}
