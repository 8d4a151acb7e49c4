"""Facts read from a kernel's machine code: registers, spills, and how wide the loads of its tiles are.

Debug information names the statement of the kernel's text that each instruction is of, so that loads of tiles are told
from loads of one number per token. Since Triton 3.8 it places loads of one number a statement too late, next to one
that loads a tile; these have no mask. So on NVIDIA, widths are read from PTX, where a load has a predicate if and only
if it has a mask; the assembler neither splits nor joins loads.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_ROW_LOAD = re.compile(r"tl\.load\([^=]*\bcolumn\b[^=]*, mask=")
_PTX_LINE = re.compile(r"\s\.loc\s+\d+\s+\d+\s+\d+.*?// (?P<file>\S+):(?P<line>\d+):")
_PTX_LOAD = re.compile(r"\s@!?%\w+ ld\.global(?:\.[\w:]+)*?(?:\.v(?P<count>\d))?\.[bsuf](?P<bits>\d+) ")
_PTX_COPY = re.compile(r"\scp\.async\.c\w\.shared\.global .*, (?P<bytes>0x\w+|\d+)(?:, |;)")
_NVIDIA_LINE = re.compile(r'//## File "(?P<file>[^"]*)", line (?P<line>\d+)')
_NVIDIA_OPCODE = re.compile(r"\s(?P<name>LDGSTS|STL)(?P<flags>(?:\.\w+)*) ")
_AMD_LINE = re.compile(r"\s\.loc\s.*; (?P<file>\S+):(?P<line>\d+):")
_AMD_LOAD = re.compile(r"\s(?:global|buffer)_load_(?:dword(?:x(?P<count>\d))?|(?P<part>[us]?(?:short|byte)\w*))\s")
_BITS = {"8": 8, "16": 16, "64": 64, "128": 128, "256": 256}


@dataclass(frozen=True)
class Facts:
    """What the machine code of one kernel needs."""

    registers: int
    """Of one thread."""
    spilled_bytes: int
    """That one thread stores to memory for want of registers; a stack frame in which nothing is stored is none."""
    narrowest_load: int | None
    """Bits of the narrowest load among those of statements that load along the width; None if there are none."""
    copied_ahead: int
    """Statements that copy to shared memory without waiting, as a pipeline over rows does for each tile."""


def nvidia_facts(cubin: bytes, ptx: str, path: Path) -> Facts:
    """Facts of a kernel for NVIDIA.

    Args:
        cubin: its machine code.
        ptx: what that was assembled from.
        path: of its text, a file that the debug information names.
    """
    with _file_of(cubin) as name:
        usage = _tool("cuobjdump", "-res-usage", name)
        code = _tool("nvdisasm", "--no-dataflow", "--print-code", "--print-line-info", name)
    spilled, ahead = 0, set()
    for line, name, flags in _nvidia_instructions(code, path):
        bits = next((_BITS[flag.lstrip("US")] for flag in flags if flag.lstrip("US") in _BITS), 32)
        if name == "STL":
            spilled += bits // 8
        elif name == "LDGSTS" and bits == 128:
            ahead.add(line)
    registers = int(re.findall(r"REG:(\d+)", usage)[-1])
    return Facts(registers, spilled, narrowest_in_ptx(ptx, path), len(ahead))


def disassembled(cubin: bytes) -> str:
    """The text of a kernel's machine code, without lines of its source."""
    with _file_of(cubin) as name:
        return _tool("nvdisasm", "--no-dataflow", "--print-code", name)


@contextmanager
def _file_of(cubin: bytes) -> Iterator[str]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        yield file.name


def amd_facts(assembly: str, path: Path) -> Facts:
    """Facts of a kernel for AMD.

    Each spill is counted as the 4 bytes of one register; copies to shared memory are not told apart.

    Args:
        assembly: of the kernel.
        path: of its text, a file that the debug information names.
    """
    loads, line = [], 0
    for text in assembly.splitlines():
        if place := _AMD_LINE.match(text):
            line = int(place["line"]) if place["file"] == path.name else 0
        elif load := _AMD_LOAD.match(text):
            bits = 16 if load["part"] else 32 * int(load["count"] or 1)
            loads.append((line, bits))
    registers, spills = (int(re.findall(rf"\.vgpr_{name}:\s+(\d+)", assembly)[-1]) for name in ("count", "spill_count"))
    return Facts(registers, 4 * spills, _narrowest(loads, path), 0)


def narrowest_in_ptx(ptx: str, path: Path) -> int | None:
    """Bits of the narrowest load with a mask, or copy to shared memory, of a statement that loads along the width.

    Args:
        ptx: of a kernel for NVIDIA.
        path: of its text, a file that the debug information names.
    """
    loads, line = [], 0
    for text in ptx.splitlines():
        if place := _PTX_LINE.search(text):
            line = int(place["line"]) if place["file"] == path.name else 0
        elif load := _PTX_LOAD.search(text):
            loads.append((line, int(load["count"] or 1) * int(load["bits"])))
        elif copy := _PTX_COPY.search(text):
            loads.append((line, 8 * int(copy["bytes"], 0)))
    return _narrowest(loads, path)


def _nvidia_instructions(code: str, path: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Line in the text, or 0, name and flags of each instruction that copies to shared memory, or spills."""
    line = 0
    for text in code.splitlines():
        if place := _NVIDIA_LINE.search(text):
            line = int(place["line"]) if place["file"].endswith(path.name) else 0
        elif opcode := _NVIDIA_OPCODE.search(text):
            yield line, opcode["name"], opcode["flags"].split(".")


def _narrowest(loads: list[tuple[int, int]], path: Path) -> int | None:
    statements = enumerate(path.read_text().splitlines(), start=1)
    wanted = {number for number, statement in statements if _ROW_LOAD.search(statement)}
    return min((bits for line, bits in loads if line in wanted), default=None)


def _tool(name: str, *words: str) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([tool, *words], capture_output=True, text=True, check=True).stdout
