"""Tile sizes and warps, a static table by width: the same for every number of tokens, so nothing is tuned at run time.

All tiles are about as large as a program's registers hold. Chosen by what offline compilation says of registers and
loads; no GPU has been asked yet.
"""

from __future__ import annotations

from dataclasses import dataclass

WIDEST = 16384
"""Phase 2 holds whole rows, of at most this width."""

PROGRAMS = 264
"""Programs that sum over tokens on their own: two for each multiprocessor of the largest GPUs."""


@dataclass(frozen=True)
class Tiling:
    """rows and columns of the tile of one program, and its warps of 32 threads."""

    rows: int
    columns: int
    warps: int


def power_of_two(number: int) -> int:
    """The smallest power of two that is at least ``number``, and 1 for 0."""
    return 1 << max(number - 1, 0).bit_length()


def along_width(width: int) -> Tiling:
    """For kernels whose tiles are cut along the width: 8 elements per thread, a load of 128 bits in bf16 and fp16."""
    columns = min(power_of_two(width), 1024)
    return Tiling(1024 // columns, columns, 4)


def whole_rows(width: int) -> Tiling:
    """For kernels that reduce whole rows in registers."""
    columns = power_of_two(width)
    return Tiling(max(1, 1024 // columns), columns, max(4, min(16, columns // 256)))


def matrix_product(reads: int) -> Tiling:
    """For the logits: tokens by reads, in steps of ``columns`` along the width."""
    return Tiling(64 if reads <= 64 else 32, 64, 4)
