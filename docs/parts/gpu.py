"""The part of gpu.md that comes from a record: launches and bytes of a read, ours and other people's."""

import json

from benchmark_records import BENCHMARKS

from kernels.benchmarks.static.table import static_table
from parts import part
from parts.layout import fenced

STATIC = BENCHMARKS / "static.json"
"""Written by ``python -m kernels.benchmarks static``, which needs the packages of other people."""


@part
def static() -> str:
    return fenced(static_table(json.loads(STATIC.read_text())))
