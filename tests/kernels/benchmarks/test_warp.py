"""A warp that is followed through machine code: each integer operation, carries, loops, and what cannot be followed."""

from __future__ import annotations

import pytest

from kernels.benchmarks.static.warp.arithmetic import OPERATIONS
from kernels.benchmarks.static.warp.follow import UndecidedError, follow, written_names
from kernels.benchmarks.static.warp.instructions import instructions_of
from kernels.benchmarks.static.warp.registers import Registers

ONE = 0x210
"""Where the first argument is."""


def code(*lines: str) -> str:
    numbered = []
    for line in lines:
        at = 16 * sum(not one.startswith(".L") for one in numbered)
        numbered.append(line if line.startswith(".L") else f"        /*{at:04x}*/   {line} ;")
    return "\n".join(numbered)


# What an operation writes, by arithmetic of this file and not of that.
CASES = (
    ("MOV R0, 0x7", {"R0": 7}),
    ("LDC.64 R4, c[0x0][0x210]", {"R4": 11, "R5": 12}),
    ("ULDC UR3, c[0x0][0x214]", {"UR3": 12}),
    ("S2R R0, SR_CTAID.Y", {"R0": 5}),
    ("CS2R R6, SRZ", {"R6": 0, "R7": 0}),
    ("IADD3 R0, R1, -R2, 0x1", {"R0": 100 - 7 + 1}),
    ("IADD3 R0, P0, R3, 0x1, RZ", {"R0": 0, "P0": True}),
    ("IADD3 R0, P0, R1, -RZ, RZ", {"R0": 100, "P0": True}),
    ("IADD3.X R0, R1, -0x1, RZ, P1, !PT", {"R0": 100}),
    ("IADD3.X R0, RZ, ~R1, RZ, P2, !PT", {"R0": 2**32 - 101}),
    ("IMAD R0, R1, R2, 0x3", {"R0": 703}),
    ("IMAD.MOV.U32 R0, RZ, RZ, R9", {}),
    ("IMAD.WIDE R4, R3, 0x2, R10", {"R4": 2**32 - 1, "R5": 2**32 - 1}),
    ("IMAD.WIDE.U32 R4, R3, 0x2, RZ", {"R4": 2**32 - 2, "R5": 1}),
    ("IMAD.HI.U32 R0, R3, 0x10, RZ", {"R0": 15}),
    ("LEA R0, P0, R1, R2, 0x3", {"R0": 807, "P0": False}),
    ("LEA.HI R0, R3, R2, RZ, 0x3", {"R0": 14}),
    ("LEA.HI.SX32 R0, R1, 0x1, 0x1f", {"R0": 51}),
    ("SHF.R.S32.HI R0, RZ, 0x1f, R3", {"R0": 2**32 - 1}),
    ("SHF.R.U32.HI R0, RZ, 0x1f, R3", {"R0": 1}),
    ("SHF.L.U32 R0, R1, 0x2, RZ", {"R0": 400}),
    ("SHF.R.U64 R0, R2, 0x1, R1", {"R0": 3}),
    ("SHF.L.U64.HI R0, R3, 0x4, RZ", {"R0": 15}),
    ("LOP3.LUT R0, R1, 0x3f, RZ, 0xc0, !PT", {"R0": 36}),
    ("LOP3.LUT P0, RZ, R2, 0x8, RZ, 0xc0, !PT", {"P0": False}),
    ("LOP3.LUT R0, R1, R2, RZ, 0x3c, !PT", {"R0": 100 ^ 7}),
    ("LOP3.LUT R0, R1, R2, R3, 0x80, !PT", {"R0": 100 & 7}),
    ("ISETP.LT.AND P0, PT, R3, RZ, PT", {"P0": True}),
    ("ISETP.LT.U32.AND P0, PT, R3, RZ, PT", {"P0": False}),
    ("ISETP.GE.OR P0, P3, R1, R2, P2", {"P0": True, "P3": False}),
    ("ISETP.NE.U32.AND.EX P0, PT, RZ, RZ, PT, P1", {"P0": True}),
    ("ISETP.GT.AND.EX P0, PT, R1, R2, PT, P2", {"P0": True}),
    ("ISETP.LT.AND.EX P0, PT, R1, R1, PT, P1", {"P0": True}),
    ("PLOP3.LUT P0, PT, P1, P2, PT, 0x80, 0x0", {"P0": False}),
    ("SEL R0, R1, R2, P2", {"R0": 7}),
    ("VIMNMX R0, R1, R3, PT", {"R0": 2**32 - 1}),
    ("VIADDMNMX R0, R1, R3, R2, !PT", {"R0": 99}),
    ("VIMNMX.U32 R0, R1, R3, !PT", {"R0": 2**32 - 1}),
    ("HFMA2.MMA R0, -RZ, RZ, 1.875, 5.9604644775390625e-08", {"R0": 0x3F800001}),
    ("HFMA2.MMA R0, R1, R2, 1, 0", {}),
    ("ISETP.LT.AND P0, PT, R9, RZ, PT", {}),
)


@pytest.mark.parametrize(("text", "written"), CASES, ids=[text for text, _ in CASES])
def test_an_operation_writes_what_it_computes_and_knows_nothing_of_unknown_numbers(text, written):
    values = {"R1": 100, "R2": 7, "R3": 2**32 - 1, "R10": 1, "R11": 0}
    registers = Registers({ONE: 11, ONE + 4: 12}, (4, 5, 6), values, {"P1": True, "P2": False})
    (one,) = instructions_of(code(text))
    done = OPERATIONS[one.name](one, registers) or {}
    assert {name: value for name, value in done.items() if value is not None and name not in ("RZ", "PT")} == written


def test_what_is_written_is_forgotten_where_it_is_not_known():
    for text, names in (
        ("LDG.E.128 R4, desc[UR4][R2.64]", ("R4", "R5", "R6", "R7")),
        ("SHFL.BFLY PT, R5, R4, 0x1, 0x1f", ("PT", "R5")),
        ("FSETP.GEU.AND P1, PT, R4, -126, PT", ("P1", "PT")),
        ("STG.E desc[UR4][R2.64], R39", ()),
        ("HMMA.16816.F32.BF16 R8, R4, R12, R8", ("R8", "R9", "R10", "R11")),
        ("R2P PR, R4, 0x7f", tuple(f"P{i}" for i in range(7))),
    ):
        assert written_names(instructions_of(code(text))[0]) == names, text


LOOP = (
    "MOV R0, RZ",
    "LDG.E R2, desc[UR4][R4.64]",
    ".L_x_0:",
    "IADD3 R0, R0, 0x1, RZ",
    "BAR.SYNC 0x0",
    "FADD R2, R2, R2",
    "ISETP.GE.AND P0, PT, R0, c[0x0][0x210], PT",
    "@!P0 BRA `(.L_x_0)",
    "EXIT",
    ".L_x_1:",
    "BRA `(.L_x_1)",
    "NOP",
)


@pytest.mark.parametrize("times", [1, 6])
def test_a_loop_is_passed_as_often_as_its_argument_says(times):
    instructions = instructions_of(code(*LOOP))
    assert len(instructions) == 8, "what pads the end is none"
    trace = follow(instructions, {ONE: times}, (0, 0, 0))
    assert (trace.issued, trace.by_name["FADD"], trace.waits, trace.undecided) == (2 + 5 * times + 1, times, 1, 0)


def test_a_branch_on_data_is_not_taken_and_counted_and_a_loop_that_data_ends_is_an_error(monkeypatch):
    monkeypatch.setattr("kernels.benchmarks.static.warp.follow.MOST_STEPS", 1000)
    on_data = ("LDG.E R0, desc[UR4][R4.64]", "ISETP.NE.AND P0, PT, R0, RZ, PT")
    forward = code(*on_data, "@P0 BRA `(.L_x_0)", "FADD R2, R2, R2", ".L_x_0:", "@!P0 EXIT", "EXIT")
    trace = follow(instructions_of(forward), {}, (0, 0, 0))
    assert (trace.issued, trace.undecided) == (6, 2)
    with pytest.raises(UndecidedError, match="a loop ends by data"):
        follow(instructions_of(code(".L_x_0:", *on_data, "@P0 BRA `(.L_x_0)", "EXIT")), {}, (0, 0, 0))
    with pytest.raises(UndecidedError, match="over 1000 instructions"):
        follow(instructions_of(code(".L_x_0:", "NOP", "BRA `(.L_x_0)", "EXIT")), {}, (0, 0, 0))
    with pytest.raises(UndecidedError, match="BRX"):
        follow(instructions_of(code("BRX R4 -0x10", "EXIT")), {}, (0, 0, 0))


def test_a_number_of_times_that_is_spilled_is_read_back():
    spilling = code(
        *("MOV R0, 0x4", "MOV R3, 0x9", ".L_x_0:", "IADD3 R0, R0, -0x1, RZ", "STL.64 [R1+0x8], R2", "STL [R1+0x8], R0"),
        *("LDG.E R0, desc[UR4][R4.64]", "LDL.LU R0, [R1+0x8]", "LDL R6, [R1+0xc]", "ISETP.NE.AND P0, PT, R0, RZ, PT"),
        *("ISETP.NE.AND P1, PT, R6, 0x9, PT", "@P1 EXIT", "@P0 BRA `(.L_x_0)", "EXIT"),
    )
    trace = follow(instructions_of(spilling), {}, (0, 0, 0))
    assert (trace.issued, trace.undecided) == (2 + 4 * 10 + 1, 0)
    anywhere = code(
        "STL [R1], RZ", "STL [R7], R0", "LDL R0, [R1]", "ISETP.NE.AND P0, PT, R0, RZ, PT", "@P0 EXIT", "EXIT"
    )
    assert follow(instructions_of(anywhere), {}, (0, 0, 0)).undecided == 1, "what was there may be written over"


def test_a_call_comes_back_and_an_end_under_a_false_predicate_is_none():
    text = code(
        "@!PT EXIT", "CALL.REL.NOINC `(.L_x_1)", "EXIT", ".L_x_1:", "FADD R2, R2, R2", "RET.REL.NODEC R4 `(.L_x_9)"
    )
    assert follow(instructions_of(text), {}, (0, 0, 0)).issued == 5
