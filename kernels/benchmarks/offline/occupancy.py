"""How many warps of a kernel a multiprocessor holds at once, from what one program needs (NVIDIA).

Warps that wait for memory cost nothing as long as others have work, so that few resident warps are a sign of a kernel
that hides latency badly, unless it prefetches. Limits and units of allocation: CUDA C++ Programming Guide, "Compute
Capabilities".
"""

from __future__ import annotations

from dataclasses import dataclass

_REGISTERS = 65536
_REGISTERS_PER_WARP = 256
"""A warp is given registers in multiples of this."""
_RESERVED_SHARED = 1024
"""Shared memory that the system takes for each program."""
_THREADS = 32

SHARED_MEMORY = {"sm_80": 164 << 10, "sm_90": 228 << 10, "sm_100": 228 << 10, "gfx942": 64 << 10}
"""Bytes of shared memory of a multiprocessor, of all its programs together."""


@dataclass(frozen=True)
class Multiprocessor:
    """What one multiprocessor holds."""

    warps: int
    programs: int


MULTIPROCESSORS = {
    "sm_80": Multiprocessor(64, 32),
    "sm_90": Multiprocessor(64, 32),
    "sm_100": Multiprocessor(64, 32),
}


def resident_warps(target: str, warps: int, registers: int, shared_bytes: int) -> int:
    """Warps that a multiprocessor of ``target`` holds of a kernel; 0 if not even one program fits.

    Args:
        target: a name of ``MULTIPROCESSORS``.
        warps: of one program.
        registers: of one thread.
        shared_bytes: of one program.
    """
    limits = MULTIPROCESSORS[target]
    of_warp = -(-registers * _THREADS // _REGISTERS_PER_WARP) * _REGISTERS_PER_WARP
    by_registers = _REGISTERS // max(of_warp * warps, 1)
    by_shared = SHARED_MEMORY[target] // (shared_bytes + _RESERVED_SHARED)
    return warps * min(by_registers, by_shared, limits.warps // warps, limits.programs)
