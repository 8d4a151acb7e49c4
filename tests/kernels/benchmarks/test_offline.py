"""Generated kernels compile for GPUs that are not there: samples of them here, all of them in a record that is kept.

Compilation is in a process of its own, since this one may interpret them.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from attnres_compile.report.comparison import MeasureError
from kernels.benchmarks.offline import record as offline
from kernels.benchmarks.offline.catalogue import kernels_of_block
from kernels.benchmarks.offline.compilation import TARGETS
from kernels.benchmarks.offline.machine_code import amd_facts, narrowest_in_ptx
from kernels.benchmarks.offline.occupancy import resident_warps

RECORD = Path(__file__).resolve().parents[3] / "docs" / "benchmarks" / "offline.json"
NVIDIA = ("sm_80", "sm_90", "sm_100")
MOST_SPILLED_SINCE_3_8 = 68
"""Bytes of one thread. Tiles and warps were chosen with Triton 3.7, which spills nothing; wide backwards and reads of
nine blocks need a few more registers in 3.8 and 3.9.
"""

SCRIPT = """
import json, sys
from dataclasses import asdict
from attnres_kernels.launch import tiling
from kernels.benchmarks.offline.catalogue import kernels_of_block
from kernels.benchmarks.offline.occupancy import SHARED_MEMORY
from kernels.benchmarks.offline.compilation import compile_offline

found = []
for target, width, sources, reads in json.loads(sys.argv[1]):
    for entry in kernels_of_block(sources, reads, width, later_reads=32):
        tile = (entry.tile.rows, entry.tile.columns, entry.tile.warps)
        compiled = compile_offline(entry.text, entry.constants_on(SHARED_MEMORY[target]), tile, target)
        found.append({**asdict(compiled.facts), "kind": entry.kind, "target": target})
        share = SHARED_MEMORY[target] // tiling.programs_at_once(entry.tile)
        found[-1] |= {"copied": entry.copied, "has_room": compiled.shared_bytes + 1024 <= share}
print(json.dumps(found))
"""


def in_a_process(script: str, *words: str) -> str:
    """The last line that a fresh process prints, which compiles kernels."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    result = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.splitlines()[-1]


def triton_release() -> tuple[int, ...]:
    return tuple(map(int, importlib.metadata.version("triton").split(".")[:2]))


def compiled(*jobs: tuple[str, int, int, int]) -> list[dict[str, Any]]:
    return json.loads(in_a_process(SCRIPT, json.dumps(jobs)))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Shape:
    width: int
    sources: int
    reads: int


SHAPES = (Shape(768, 1, 1), Shape(768, 2, 2), Shape(2048, 4, 3), Shape(4096, 9, 3), Shape(7168, 9, 8))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"d{shape.width}-n{shape.sources}-s{shape.reads}")
def test_kernels_spill_nothing_and_load_128_bits_on_nvidia(shape: Shape) -> None:
    most = 0 if triton_release() < (3, 8) else MOST_SPILLED_SINCE_3_8
    for facts in compiled(("sm_90", shape.width, shape.sources, shape.reads)):
        assert facts["spilled_bytes"] <= most, facts
        assert facts["narrowest_load"] == 128, facts
        assert facts["copied_ahead"] == facts["copied"] or not facts["copied"], facts
        assert facts["has_room"], facts


def test_other_targets_compile() -> None:
    kinds = {
        (facts["target"], facts["kind"])
        for facts in compiled(*((t, 2048, 2, 2) for t in ("sm_80", "sm_100", "gfx942")))
    }
    expected = {entry.kind for entry in kernels_of_block(2, 2, 2048, later_reads=32)}
    assert kinds == {(target, kind) for target in ("sm_80", "sm_100", "gfx942") for kind in expected}


# What is read from machine code


def test_spills_and_narrow_loads_are_seen() -> None:
    """Registers have no room for 64 columns per thread and nine sources; what is not aligned is loaded in parts."""
    script = """
import json
from kernels.benchmarks.offline import compilation as offline
from attnres_kernels.generation.phase_1 import phase_1_text
from attnres_kernels.generation.specs import Phase1Spec
text = phase_1_text(Phase1Spec(9, 8))
odd = text.replace("+ column, mask", "+ column + 1, mask")
jobs = [(t, width) for t in (text, odd) for width in (1024, 8192)]
facts = [offline.compile_offline(t, {}, (1, width, 4), "sm_90").facts for t, width in jobs]
print(json.dumps([(x.spilled_bytes, x.narrowest_load) for x in facts]))
"""
    (good, large, odd, _) = json.loads(in_a_process(script))
    assert good == [0, 128]
    assert large[0] > 0
    assert odd == [0, 16]


def test_loads_are_told_apart_by_the_statement_they_are_of(tmp_path: Path) -> None:
    path = tmp_path / "kernel.py"
    path.write_text("\na = tl.load(x + row)\nb = tl.load(x + column, mask=inside, other=0.0)\n")
    lines = {name: f"; {path.name}:{line}:5" for name, line in (("scalar", 2), ("tile", 3))}
    assembly = f"""
\t.loc\t1 2 5 {lines["scalar"]}
\tglobal_load_dword v1, v2, s[0:1]
\t.loc\t1 3 5 {lines["tile"]}
\tglobal_load_dwordx4 v[0:3], v2, s[0:1]
\tbuffer_load_dwordx2 v[0:1], v2, s[0:3], 0 offen
.vgpr_count: 9
.vgpr_spill_count: 2
"""
    facts = amd_facts(assembly, path)
    assert (facts.registers, facts.spilled_bytes, facts.narrowest_load) == (9, 8, 64)
    assert amd_facts(assembly.replace("buffer", "ignore"), path).narrowest_load == 128


def test_loads_of_one_number_are_not_taken_for_a_tile_of_the_next_statement(tmp_path: Path) -> None:
    """Triton 3.8 and later put them there; they have no mask, and what has one counts, however narrow."""
    path = tmp_path / "kernel.py"
    path.write_text("\na = tl.load(x + row)\nb = tl.load(x + column, mask=inside, other=0.0)\n")
    place = f"\t.loc\t1 3 5                          // {path.name}:3:5\n"
    scalar = "\tld.global.b32 { %r54 }, [ %rd13 + 0 ];\n"
    tile = "\t@%p1 ld.global.v4.b32 { %r26, %r27, %r28, %r29 }, [ %rd6 + 0 ];\n"
    narrow = "\t@!%p1 ld.global.L1::evict_last.v2.b16 { %r26, %r27 }, [ %rd6 + 0 ];\n"
    copy = "\tcp.async.ca.shared.global [ %r20 + 0 ], [ %rd4 + 0 ], 0x8, %r21;\n"
    assert narrowest_in_ptx(place + scalar + tile, path) == 128
    assert narrowest_in_ptx(place + scalar + tile + narrow, path) == 32
    assert narrowest_in_ptx(place + tile + copy, path) == 64
    assert narrowest_in_ptx(place.replace("1 3", "1 2").replace(":3:", ":2:") + narrow, path) is None


# The record of all of them


@cache
def record() -> dict[str, Any]:
    return json.loads(RECORD.read_text())  # type: ignore[no-any-return]


def results() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for kernel in record()["kernels"]:
        for target, facts in kernel["compiled"].items():
            yield f"{kernel['kind']}, {kernel['digest']}", target, facts


def test_the_record_is_of_the_kernels_as_they_are() -> None:
    """Else: `python -m kernels.benchmarks offline --output docs/benchmarks/offline.json`."""
    grid = record()["grid"]
    assert (grid["targets"], grid["widths"]) == (list(TARGETS), list(offline.WIDTHS))
    assert (grid["sources"], grid["reads"]) == (list(range(1, 10)), list(range(1, 9)))
    assert record()["environment"]["versions"]["triton"]

    recorded = [kernel["digest"] for kernel in record()["kernels"]]
    assert recorded == [kernel.digest for kernel in offline.distinct_kernels()]


def test_every_kernel_compiled_for_every_target() -> None:
    assert not offline.failures(record())
    assert {tuple(kernel["compiled"]) for kernel in record()["kernels"]} == {tuple(TARGETS)}


def test_no_kernel_spills_on_nvidia() -> None:
    assert not [found for found in results() if found[1] in NVIDIA and found[2]["spilled_bytes"] != 0]


def test_every_kernel_loads_128_bits_at_a_time_on_nvidia() -> None:
    assert not [found for found in results() if found[1] in NVIDIA and found[2]["narrowest_load"] != 128]


def test_what_has_not_changed_is_taken_over_from_an_earlier_record(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = {kernel["digest"]: kernel for kernel in record()["kernels"]}
    same = [kernel for kernel in offline.distinct_kernels() if kernel.digest in recorded]
    monkeypatch.setattr(offline, "distinct_kernels", lambda widths: same)
    again = offline.compile_kernels(earlier=record())
    assert again["kernels"] == [recorded[kernel.digest] for kernel in same]
    other = {**record(), "environment": {"versions": {"triton": "1.0"}}}
    with pytest.raises(MeasureError, match=r"made with Triton 1\.0, and here is"):
        offline.compile_kernels(earlier=other)


# Warps that a multiprocessor holds


@pytest.mark.parametrize(
    ("target", "warps", "registers", "shared_bytes", "expected"),
    [
        ("sm_90", 8, 32, 0, 64),  # all that there are
        ("sm_90", 1, 32, 0, 32),  # no more than 32 programs
        ("sm_90", 8, 128, 0, 16),  # 32768 of 65536 registers each
        ("sm_90", 8, 129, 0, 8),  # 136 registers of a thread are taken, so that one program fits
        ("sm_90", 16, 64, 113 << 10, 32),  # 114 KB each with what the system takes
        ("sm_90", 16, 64, 114 << 10, 16),
        ("sm_80", 16, 64, 113 << 10, 16),
        ("sm_80", 4, 64, 200 << 10, 0),
    ],
)
def test_what_is_short_decides(target: str, warps: int, registers: int, shared_bytes: int, expected: int) -> None:
    assert resident_warps(target, warps, registers, shared_bytes) == expected
