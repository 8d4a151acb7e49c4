"""Compile generated kernels for a GPU that is not there, and read from the machine code what they need.

Triton brings the assemblers along, so neither a driver nor a device is needed.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnres_kernels.load_triton import load_kernel

TARGETS: dict[str, tuple[str, int | str, int]] = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
"""Backend, architecture and warp size by the usual name."""

_INTEGERS = ("rows", "width", "reads", "rows_per_program", "zero")
_HALF = re.compile(
    r"(source|output|read_grad|carried|source_grad)_\d+|source|inter|partial|branch|new_partial|value|normed|.*_grad"
)


@dataclass(frozen=True)
class Compiled:
    """One kernel for one target.

    registers and spilled_bytes per thread and widest_load in bits, where the target's code says so, else None.
    """

    name: str
    target: str
    registers: int | None
    spilled_bytes: int | None
    widest_load: int | None


def compile_offline(text: str, constants: dict[str, float], tile: tuple[int, int, int], target: str) -> Compiled:
    """Compile the kernel of ``text`` for bf16 sources whose pointers and sizes are divisible by 16.

    Args:
        text: of a generator of ``depth_attention.generated``.
        constants: compile-time arguments other than the tile.
        tile: rows, columns and warps.
        target: a name of ``TARGETS``.

    Raises:
        ImportError: Triton is not installed. What Triton raises for a kernel that does not compile.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = load_kernel(text)
    rows, columns, warps = tile
    known = {**constants, "BLOCK_T": rows, "BLOCK_D": columns}
    signature = {name: "constexpr" if name in known else _type(name) for name in kernel.arg_names}
    divisible = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if name not in known}
    source = ASTSource(fn=kernel, signature=signature, constexprs=known, attrs=divisible)
    compiled = triton.compile(source, target=GPUTarget(*TARGETS[target]), options={"num_warps": warps})
    return Compiled(kernel.__name__, target, *_facts(compiled.asm))


def _type(name: str) -> str:
    if name in _INTEGERS or "stride" in name:
        return "i32"
    is_half = _HALF.fullmatch(name) or name in ("norm_weight", "norm_bias", "partial_grad_before")
    return "*bf16" if is_half else "*fp32"


def _facts(code: dict[str, Any]) -> tuple[int | None, int | None, int | None]:
    if "cubin" in code:
        usage = _cuobjdump(code["cubin"])
        registers, stack, local = (int(re.findall(rf"{key}:(\d+)", usage)[-1]) for key in ("REG", "STACK", "LOCAL"))
        return registers, stack + local, _widest_load(code["ptx"])
    text = str(code.get("amdgcn", ""))
    registers_found = re.findall(r"\.vgpr_count:\s+(\d+)", text)
    spills = re.findall(r"\.vgpr_spill_count:\s+(\d+)", text)
    return _last(registers_found), _last(spills), None


def _widest_load(ptx: str) -> int | None:
    loads = re.findall(r"ld\.global[\w.:]*?(?:\.v(\d))?\.b(\d+)", ptx)
    copies = re.findall(r"cp\.async\.\w+\.shared\.global \[[^]]*\], \[[^]]*\], (0x\w+|\d+)", ptx)
    bits = [int(count or 1) * int(size) for count, size in loads] + [8 * int(size, 0) for size in copies]
    return max(bits, default=None)


def _last(found: list[str]) -> int | None:
    return int(found[-1]) if found else None


def _cuobjdump(cubin: bytes) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
