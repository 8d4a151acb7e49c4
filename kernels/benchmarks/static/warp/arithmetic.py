"""The integer operations that decide where a thread goes.

An operation gives what it writes, or None if it does not know. Names and meanings: NVIDIA, CUDA Binary Utilities,
"Hopper Instruction Set".
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

from .instructions import Instruction
from .registers import MASK, Registers, following

_SPECIAL = {"SR_TID.X": 0, "SR_TID.Y": 0, "SR_TID.Z": 0, "SR_CgaCtaId": 0, "SR_LANEID": 0, "SRZ": 0}
_STACK = re.compile(r"^\[R1(?:\+(?P<offset>0x[0-9a-f]+))?\]$")

Written = dict[str, int | bool | None]


def signed(value: int, bits: int = 32) -> int:
    """The number that these bits are.

    Args:
        value: the bits.
        bits: how many there are.
    """
    return value - (1 << bits) if value >> (bits - 1) else value


def _split(one: Instruction) -> tuple[str, list[str], list[str], list[str]]:
    """Destination, predicates written behind it, operands, predicates read behind these."""
    destination, *rest = one.operands
    written = []
    while rest and rest[0].startswith(("P", "UP")):
        written.append(rest.pop(0))
    read: list[str] = []
    while rest and rest[-1].lstrip("!").startswith(("P", "UP")):
        read.insert(0, rest.pop())
    return destination, written, rest, read


def _copy(one: Instruction, registers: Registers) -> Written | None:
    destination, source = one.operands[0], one.operands[-1]
    if "64" not in one.flags:
        return {destination: registers.word(source)}
    value = registers.pair(source)
    low, high = following(destination, 2)
    return {low: None, high: None} if value is None else {low: value & MASK, high: value >> 32}


def _special(one: Instruction, registers: Registers) -> Written | None:
    destination, source = one.operands
    places = {f"SR_CTAID.{axis}": registers.program[i] for i, axis in enumerate("XYZ")}
    value = {**_SPECIAL, **places}.get(source)
    names = following(destination, 2) if one.name == "CS2R" and "32" not in one.flags else [destination]
    return dict.fromkeys(names, value)


def _add(one: Instruction, registers: Registers) -> Written | None:
    destination, carries, operands, read = _split(one)
    extends = "X" in one.flags
    terms = [registers.word(x, inverts=extends) for x in operands]
    carried = [registers.predicate(x) for x in read] if extends else []
    if None in terms or None in carried:
        return None
    # A negated word carries as its complement and one do.
    negative_zeros = 0 if extends else sum(x.startswith("-") and v == 0 for x, v in zip(operands, terms, strict=True))
    total = sum(x or 0 for x in terms) + sum(map(bool, carried)) + (negative_zeros << 32)
    above = total >> 32
    return {destination: total & MASK, **{name: above > i for i, name in enumerate(carries)}}


def _multiply_add(one: Instruction, registers: Registers) -> Written | None:
    destination, carries, operands, read = _split(one)
    if carries:
        return None
    a, b = registers.word(operands[0]), registers.word(operands[1])
    if 0 in (a, b):
        a = b = 0
    if a is None or b is None:
        return None
    if "U32" not in one.flags and {"WIDE", "HI"} & one.flags:
        a, b = signed(a), signed(b)
    if "WIDE" in one.flags:
        c = registers.pair(operands[2])
        low, high = following(destination, 2)
        if c is None:
            return None
        total = a * b + c & (1 << 64) - 1
        return {low: total & MASK, high: total >> 32}
    c = registers.word(operands[2])
    if "HI" in one.flags:
        return {destination: a * b >> 32 & MASK} if c == 0 else None
    carry = registers.predicate(read[0]) if "X" in one.flags and read else False
    return None if c is None or carry is None else {destination: a * b + c + carry & MASK}


def _shift_add(one: Instruction, registers: Registers) -> Written | None:
    destination, carries, operands, read = _split(one)
    a, b = registers.word(operands[0]), registers.word(operands[1], inverts="X" in one.flags)
    by = registers.word(operands[-1])
    if a is None or b is None or by is None:
        return None
    if "HI" not in one.flags:
        total = (a << by & MASK) + b
        return {destination: total & MASK, **dict.fromkeys(carries, total > MASK)}
    above = 0 if "SX32" not in one.flags else MASK * (a >> 31)
    if "SX32" not in one.flags and len(operands) == 4:
        upper = registers.word(operands[2])
        if upper is None:
            return None
        above = upper
    carry = registers.predicate(read[0]) if "X" in one.flags and read else False
    if carry is None or carries:
        return None
    return {destination: ((above << 32 | a) << by >> 32) + b + carry & MASK}


def _shift(one: Instruction, registers: Registers) -> Written | None:
    low, by, high = (registers.word(x) for x in one.operands[1:4])
    if low is None or by is None or high is None:
        return None
    both = high << 32 | low
    if "R" in one.flags:
        both = (signed(both, 64) if {"S32", "S64"} & one.flags else both) >> by
    else:
        both <<= by
    return {one.operands[0]: (both >> 32 if "HI" in one.flags else both) & MASK}


def _logic(one: Instruction, registers: Registers) -> Written | None:
    operands = list(one.operands)
    predicate = operands.pop(0) if operands[0].startswith(("P", "UP")) else None
    destination, *words, table, _also = operands
    a, b, c = (registers.word(x) for x in words)
    lut = int(table, 16)
    if lut == 0xC0 and 0 in (a, b):  # an and with zero
        a = b = c = 0
    if lut in (0xC0, 0xFC, 0x3C):
        c = 0
    if a is None or b is None or c is None:
        return None
    value = 0
    for case in range(8):
        if lut >> case & 1:
            ones = (x if case & bit else ~x for x, bit in ((a, 4), (b, 2), (c, 1)))
            x, y, z = ones
            value |= x & y & z
    written: Written = {destination: value & MASK}
    if predicate is not None:
        written[predicate] = value & MASK != 0
    return written


_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "LT": lambda a, b: a < b,
    "LE": lambda a, b: a <= b,
    "GT": lambda a, b: a > b,
    "GE": lambda a, b: a >= b,
    "EQ": lambda a, b: a == b,
    "NE": lambda a, b: a != b,
}


def _compare(one: Instruction, registers: Registers) -> Written | None:
    first, second, left, right, *read = one.operands
    a, b = registers.word(left), registers.word(right)
    given = [registers.predicate(x) for x in read]
    how = next(name for name in _COMPARE if name in one.flags)
    if a is None or b is None or None in given:
        return None
    if "U32" not in one.flags:
        a, b = signed(a), signed(b)
    result = _COMPARE[how](a, b)
    if "EX" in one.flags:  # the upper word, behind the comparison of the lower, which decides between equal ones
        if how in ("EQ", "NE"):
            result = (result and bool(given[1])) if how == "EQ" else (result or bool(given[1]))
        elif a == b:
            result = bool(given[1])

    def joined(value: bool) -> bool:
        return value and bool(given[0]) if "AND" in one.flags else value or bool(given[0])

    if "XOR" in one.flags:
        return None
    return {name: joined(x) for name, x in ((first, result), (second, not result)) if name not in ("PT", "UPT")}


def _predicates(one: Instruction, registers: Registers) -> Written | None:
    first, second, *read, table, _other = one.operands
    given = [registers.predicate(x) for x in read]
    if None in given or len(given) != 3:
        return None
    case = sum(bit for x, bit in zip(given, (4, 2, 1), strict=True) if x)
    written: Written = {first: bool(int(table, 16) >> case & 1), second: None}
    return {name: value for name, value in written.items() if name not in ("PT", "UPT")}


def _select(one: Instruction, registers: Registers) -> Written | None:
    destination, a, b, condition = one.operands
    takes = registers.predicate(condition)
    return None if takes is None else {destination: registers.word(a if takes else b)}


def _extreme(one: Instruction, registers: Registers) -> Written | None:
    destination, *terms, right, condition = one.operands
    found = [registers.word(x) for x in terms]
    b, is_least = registers.word(right), registers.predicate(condition)
    if None in found or b is None or is_least is None or "RELU" in one.flags:
        return None
    a = sum(x or 0 for x in found) & MASK  # one number, or the sum of two
    key: Callable[[int], int] = (lambda x: x) if "U32" in one.flags else signed
    return {destination: (min if is_least else max)(a, b, key=key)}


def _halves(one: Instruction, registers: Registers) -> Written | None:
    """A constant that is put together of two numbers of 16 bits, which is what this is used for beside arithmetic."""
    destination, *product, upper, lower = one.operands
    try:
        high, low = (int.from_bytes(struct.pack("<e", float(x)), "little") for x in (upper, lower))
    except (ValueError, OverflowError):
        return None
    return {destination: high << 16 | low} if product == ["-RZ", "RZ"] else None


def _stack_words(place: str, one: Instruction) -> list[str]:
    """Names for the words of the stack from a place on, or none for another place."""
    match = _STACK.match(place)
    count = 4 if "128" in one.flags else 2 if "64" in one.flags else 1
    return [f"stack {int(match['offset'] or '0', 16) + 4 * i}" for i in range(count)] if match else []


def _spill(one: Instruction, registers: Registers) -> Written | None:
    place, source = one.operands
    names = _stack_words(place, one)
    if not names:
        registers.values = {name: x for name, x in registers.values.items() if not name.startswith("stack")}
        return {}
    return dict(zip(names, map(registers.word, following(source, len(names))), strict=True))


def _unspill(one: Instruction, registers: Registers) -> Written | None:
    destination, place = one.operands
    names = _stack_words(place, one)
    if not names:
        return None
    return dict(zip(following(destination, len(names)), map(registers.values.get, names), strict=True))


OPERATIONS: dict[str, Callable[[Instruction, Registers], Written | None]] = {
    **dict.fromkeys(("MOV", "UMOV", "LDC", "ULDC", "R2UR"), _copy),
    **dict.fromkeys(("S2R", "S2UR", "CS2R"), _special),
    **dict.fromkeys(("IADD3", "UIADD3", "VIADD"), _add),
    **dict.fromkeys(("IMAD", "UIMAD"), _multiply_add),
    **dict.fromkeys(("LEA", "ULEA"), _shift_add),
    **dict.fromkeys(("SHF", "USHF"), _shift),
    **dict.fromkeys(("LOP3", "ULOP3"), _logic),
    **dict.fromkeys(("ISETP", "UISETP"), _compare),
    **dict.fromkeys(("PLOP3", "UPLOP3"), _predicates),
    **dict.fromkeys(("SEL", "USEL"), _select),
    "HFMA2": _halves,
    "STL": _spill,
    "LDL": _unspill,
    **dict.fromkeys(("VIMNMX", "IMNMX", "VIADDMNMX"), _extreme),
}
"""By opcode. What is missing is unknown, and never wrong."""
