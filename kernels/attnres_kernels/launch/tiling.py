"""Tile sizes and warps, a static table by width: the same for every number of tokens, so nothing is tuned at run time.

All tiles are about as large as a program's registers hold. Chosen by what offline compilation says of registers and
loads; no GPU has been asked yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from attnres_kernels.generation.specs import MOST_IN_PLACE, MOST_IN_PLACE_WIDE

WIDEST = 16384
"""A read holds whole rows, of at most this width."""

WIDEST_HELD = 4096
"""The widest rows of which a thread holds eight columns; there is room for fewer blocks and sums beside wider ones."""

MOST_READS_OF_LOGITS = 128
"""Reads whose logits one program makes: their keys fit into 96 KiB of shared memory, which all GPUs have."""

WARPS_AT_ONCE = 16
"""Warps that work on a multiprocessor at once, with 128 registers for each of their threads."""

IN_FLIGHT = 64 << 10
"""Bytes that a multiprocessor waits for at once, which hide how long memory takes."""

RESERVED = 2048
"""Bytes of shared memory of a program that are not for tiles: 1 KiB of the driver's, and what sums over a row need."""

INTERPRETED_PROGRAMS = 3
"""Programs that sum over tokens in Triton's interpreter, which runs them one after the other."""


@dataclass(frozen=True)
class Tiling:
    """rows and columns of the tile of one program, and its warps of 32 threads.

    Where a tile has one row, all numbers that belong to a row are scalars, which all threads share.
    """

    rows: int
    columns: int
    warps: int


def power_of_two(number: int) -> int:
    """The smallest power of two that is at least ``number``, and 1 for 0."""
    return 1 << max(number - 1, 0).bit_length()


def along_width(width: int) -> Tiling:
    """For kernels whose tiles are cut along the width: 8 elements per thread, a load of 128 bits in bf16 and fp16."""
    columns = min(power_of_two(width), 1024)
    return Tiling(1, columns, max(1, columns // 256))


def lanes(columns: int) -> int:
    """Sums that a row of a tile is kept in: one per thread of ``along_width``, each over 8 neighbouring columns."""
    return max(1, columns // 8)


def whole_rows(width: int) -> Tiling:
    """For kernels that reduce whole rows in registers."""
    columns = power_of_two(width)
    return Tiling(1, columns, max(1, min(16, columns // 256)))


def steps(width: int) -> Tiling:
    """For kernels that go over whole rows in steps: as ``along_width`` with twice the columns for wider rows, whose
    programs are fewer then, so that the cache holds the rows of all that run at once.
    """
    columns = min(power_of_two(width), 2048)
    return Tiling(1, columns, max(1, columns // 256))


def reads_of_logits(reads: int) -> int:
    """Reads of one program, rounded up to what a matrix product on tensor cores takes."""
    return min(MOST_READS_OF_LOGITS, max(16, power_of_two(reads)))


def matrix_product(reads: int) -> Tiling:
    """For the logits: tokens by reads, in steps of ``columns`` along the width."""
    return Tiling(64, 64, 4) if reads <= 64 else Tiling(32, 64, 8)


def is_wide(width: int) -> bool:
    """Whether a thread holds more than eight columns of a row."""
    return width > WIDEST_HELD


def programs_at_once(tile: Tiling) -> int:
    """Programs of this tile that work on a multiprocessor at once, where they go over rows of their own."""
    return max(1, WARPS_AT_ONCE // tile.warps)


def stages(copied: int, tile: Tiling, itemsize: int, shared_memory: int) -> int:
    """Stages of a pipeline over rows: 3 to copy two rows ahead, 2 for one, 1 for none.

    Two where one of each program is less than ``IN_FLIGHT``, and as shared memory has room.

    Args:
        copied: rows that it copies at a time.
        tile: of a program.
        itemsize: bytes of an element.
        shared_memory: bytes of a multiprocessor.
    """
    in_flight = programs_at_once(tile) * _copied_bytes(copied, tile, itemsize)
    return min(2 if in_flight >= IN_FLIGHT else 3, most_stages(copied, tile, itemsize, shared_memory))


def most_stages(copied: int, tile: Tiling, itemsize: int, shared_memory: int) -> int:
    """The most stages of a pipeline over rows for which shared memory has room, of 3.

    Args:
        copied, tile, itemsize, shared_memory: of ``stages``.
    """
    room = max(0, shared_memory // programs_at_once(tile) - RESERVED)
    return 1 + min(2, room // _copied_bytes(copied, tile, itemsize))


def _copied_bytes(copied: int, tile: Tiling, itemsize: int) -> int:
    return copied * tile.rows * tile.columns * itemsize


def most_in_place(width: int) -> int:
    """Completed blocks that a read of this width attends to in place."""
    return MOST_IN_PLACE_WIDE if is_wide(width) else MOST_IN_PLACE


def is_gpu(device: torch.device) -> bool:
    """Whether launches are made for a GPU; those on the CPU are for Triton's interpreter."""
    return device.type != "cpu"


@cache
def programs(device: torch.device, at_once: int = 2) -> int:
    """Programs that sum over tokens on their own.

    Args:
        device: that they run on.
        at_once: programs for each multiprocessor.
    """
    if not is_gpu(device):
        return INTERPRETED_PROGRAMS
    return at_once * int(torch.cuda.get_device_properties(device).multi_processor_count)


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory of a multiprocessor; the interpreter has none."""
    if not is_gpu(device):
        return 0
    return int(torch.cuda.get_device_properties(device).shared_memory_per_multiprocessor)
