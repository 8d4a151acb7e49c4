"""What the compiled kernel of a launch says: registers, shared memory, and instructions that are issued in all.

*Issue slots* of a launch are the instructions of all warps of its grid. A program in the middle of the grid is followed
(``warp``), and all are taken to do what it does; the last of a grid that shares out tokens may have fewer.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from functools import reduce
from operator import mul
from pathlib import Path
from typing import Any

from ..offline.machine_code import disassembled, nvidia_facts
from ..offline.occupancy import resident_warps
from .specialization import TARGET, Specialization
from .warp.follow import UndecidedError, follow
from .warp.instructions import instructions_of

_FIRST_ARGUMENT = 0x210
"""Of the constants' bank on sm_90, in bytes: what comes before is about the launch."""
_ARGUMENT = re.compile(r"\.param\s+\.(?P<kind>[busf])(?P<bits>\d+)\b")
_GRID, _BLOCK = 0x0C, 0x00


def code_facts(launched: Specialization) -> dict[str, Any]:
    """Facts of a specialization for JSON; ``error`` in place of them for a kernel that does not compile.

    Args:
        launched: a kernel and its launch.
    """
    told: dict[str, Any] = {"kernel": launched.kernel.__name__, "chosen": launched.chosen, "grid": list(launched.grid)}
    try:
        compiled = _compiled(launched)
    except Exception as error:  # of Triton or its assemblers, of any class
        return told | {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"}
    ptx, cubin, metadata = str(compiled.asm["ptx"]), compiled.asm["cubin"], compiled.metadata
    facts = nvidia_facts(cubin, ptx, Path(launched.kernel.fn.__code__.co_filename))
    warps = metadata.num_warps
    resident = resident_warps(TARGET, warps, facts.registers, metadata.shared) // warps
    told |= {"warps": warps, "stages": metadata.num_stages, "registers": facts.registers}
    told |= {"spilled_bytes": facts.spilled_bytes, "shared_bytes": metadata.shared, "resident_programs": resident}
    code = instructions_of(disassembled(cubin))
    told["instructions"] = len(code)
    place = tuple(size // 2 for size in launched.grid)
    try:
        trace = follow(code, constants_of(ptx, launched, warps), (place[0], place[1], place[2]))
    except UndecidedError as error:
        return told | {"not_followed": str(error)}
    return told | {
        "issued_by_warp": trace.issued,
        "undecided": trace.undecided,
        "loads_by_warp": sum(trace.by_name.get(name, 0) for name in ("LDG", "LDGSTS")),
        "waits": trace.waits,
        "copies_ahead": "LDGSTS" in trace.by_name,
        "issue_slots": trace.issued * warps * reduce(mul, launched.grid),
    }


def _compiled(launched: Specialization) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(launched.kernel, launched.signature, launched.constants, launched.attributes)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=launched.options)


def constants_of(ptx: str, launched: Specialization, warps: int) -> dict[int, int]:
    """The words of the bank that a launch's sizes and arguments are in.

    Args:
        ptx: of the kernel, which declares its arguments; behind those of the launch Triton adds some of its own.
        launched: the launch.
        warps: of a program.
    """
    words = {_BLOCK: 32 * warps, _BLOCK + 4: 1, _BLOCK + 8: 1}
    words |= {_GRID + 4 * axis: size for axis, size in enumerate(launched.grid)}
    offset = _FIRST_ARGUMENT
    arguments = [*launched.arguments, *(0,) * 8]
    for (kind, size), value in zip(_declared(ptx), arguments, strict=False):
        offset = -(-offset // size) * size
        bits = _bits(kind, size, value)
        for word in range(0, max(size, 4), 4):
            words[offset + word] = bits >> 8 * word & 0xFFFFFFFF
        offset += size
    return words


def _declared(ptx: str) -> Sequence[tuple[str, int]]:
    head = ptx[ptx.index(".entry") : ptx.index("{", ptx.index(".entry"))]
    return [(match["kind"], int(match["bits"]) // 8) for match in _ARGUMENT.finditer(head)]


def _bits(kind: str, size: int, value: float | None) -> int:
    if isinstance(value, float):
        return int.from_bytes(struct.pack("<d" if size == 8 else "<f", value), "little")
    return int(value or 0) & (1 << 8 * size) - 1
