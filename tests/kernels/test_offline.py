"""Generated kernels compile for GPUs that are not there: in a process of its own, since this one may interpret them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest

SCRIPT = """
import json, sys
from dataclasses import asdict
from attnres_kernels.depth_attention.generated.catalogue import kernels_of_block
from attnres_kernels.offline import compile_offline

found = []
for target, width, sources, reads in json.loads(sys.argv[1]):
    for entry in kernels_of_block(sources, reads, width, later_reads=32):
        tile = (entry.tile.rows, entry.tile.columns, entry.tile.warps)
        compiled = compile_offline(entry.text, entry.constants, tile, target)
        found.append({**asdict(compiled), "kind": entry.kind})
print(json.dumps(found))
"""


def compiled(*jobs: tuple[str, int, int, int]) -> list[dict[str, Any]]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(jobs)], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Shape:
    width: int
    sources: int
    reads: int


SHAPES = (Shape(768, 1, 1), Shape(2048, 4, 3), Shape(4096, 9, 3), Shape(7168, 9, 8))
NARROW = Shape(768, 2, 2)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"d{shape.width}-n{shape.sources}-s{shape.reads}")
def test_forward_kernels_spill_nothing_and_load_128_bits_on_nvidia(shape: Shape) -> None:
    found = compiled(("sm_90", shape.width, shape.sources, shape.reads))
    forward = [facts for facts in found if "backward" not in facts["kind"]]
    assert len(forward) == 4
    for facts in forward:
        assert (facts["spilled_bytes"], facts["widest_load"]) == (0, 128), facts


def test_backward_kernels_spill_nothing_for_a_narrow_stream() -> None:
    for facts in compiled(("sm_90", NARROW.width, NARROW.sources, NARROW.reads)):
        assert (facts["spilled_bytes"], facts["widest_load"]) == (0, 128), facts


def test_other_targets_compile() -> None:
    kinds = {
        (facts["target"], facts["kind"])
        for facts in compiled(*((t, 2048, 2, 2) for t in ("sm_80", "sm_100", "gfx942")))
    }
    assert len(kinds) == 3 * 8
