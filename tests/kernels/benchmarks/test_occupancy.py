"""Resident warps, against numbers that follow from the limits by hand."""

from __future__ import annotations

import pytest

from kernels.benchmarks.offline.occupancy import resident_warps


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
