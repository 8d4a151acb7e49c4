"""The parts of kernels.md: the text of one kernel, and what the kernels compile to."""

import json
from pathlib import Path

from attnres_compile.bench.offline import offline_table
from attnres_kernels.depth_attention.generated.read import read_text
from attnres_kernels.depth_attention.generated.specs import ReadSpec
from parts import part
from parts.layout import fenced

RECORD = Path(__file__).resolve().parents[1] / "benchmarks" / "offline.json"
"""Written by ``attnres bench offline``, which takes long."""


@part
def kernel_text() -> str:
    spec = ReadSpec(sources=1, has_inter=False, adds=True, norm="rms", has_weight=True, returns_value=False)
    return fenced(read_text(spec))


@part
def compiled_kernels() -> str:
    return fenced(offline_table(json.loads(RECORD.read_text())))
