"""Compile generated kernels for a GPU that is not there, and read from the machine code what they need.

Triton brings the assemblers along, so neither a driver nor a device is needed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from attnres_kernels.launch.load_triton import load_kernel

from .machine_code import Facts, amd_facts, nvidia_facts

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
    r"|query|key_weight"
)


@dataclass(frozen=True)
class Compiled:
    """One kernel for one target."""

    name: str
    target: str
    facts: Facts
    shared_bytes: int
    """Shared memory of one program."""


def compile_offline(text: str, constants: dict[str, float], tile: tuple[int, int, int], target: str) -> Compiled:
    """Compile the kernel of ``text`` for bf16 sources whose pointers and sizes are divisible by 16.

    Args:
        text: of a generator of ``attnres_kernels.generation``.
        constants: compile-time arguments other than the tile.
        tile: rows, columns and warps.
        target: a name of ``TARGETS``.

    Raises:
        ImportError: Triton is not installed; and what Triton raises for a kernel that does not compile.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = load_kernel(text)
    rows, columns, warps = tile
    of_tile = {"BLOCK_T": rows, "BLOCK_D": columns}
    known = {**constants, **{name: size for name, size in of_tile.items() if name in kernel.arg_names}}
    signature = {name: "constexpr" if name in known else _type(name) for name in kernel.arg_names}
    divisible = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if name not in known}
    source = ASTSource(fn=kernel, signature=signature, constexprs=known, attrs=divisible)
    compiled = triton.compile(source, target=GPUTarget(*TARGETS[target]), options={"num_warps": warps})
    path, code = Path(kernel.fn.__code__.co_filename), compiled.asm
    if "cubin" in code:
        facts = nvidia_facts(code["cubin"], str(code["ptx"]), path)
    else:
        facts = amd_facts(str(code["amdgcn"]), path)
    return Compiled(kernel.__name__, target, facts, compiled.metadata.shared)


def _type(name: str) -> str:
    if name in _INTEGERS or "stride" in name:
        return "i32"
    is_half = _HALF.fullmatch(name) or name in ("norm_weight", "norm_bias", "partial_grad_before")
    return "*bf16" if is_half else "*fp32"
