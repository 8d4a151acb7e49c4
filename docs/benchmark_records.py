"""The records of the folder ``benchmarks``: whatever the benchmarks wrote there, found by what a record says it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from attnres_compile.measure.model import KIND as MODEL
from kernels.benchmarks.against_peers.run import KIND as KERNELS
from kernels.benchmarks.goals.merged_records import on_gpu

BENCHMARKS = Path(__file__).resolve().parent / "benchmarks"


def benchmark_records() -> dict[str, dict[str, Any]]:
    """Every record, by the name of its file."""
    return {path.name: json.loads(path.read_text()) for path in sorted(BENCHMARKS.glob("*.json"))}


def gpu_records() -> dict[str, dict[str, Any]]:
    """The records of kernels and models that were measured on a GPU, by the names of their files."""
    kinds = (KERNELS, MODEL)
    return {
        name: record for name, record in benchmark_records().items() if record.get("kind") in kinds and on_gpu(record)
    }
