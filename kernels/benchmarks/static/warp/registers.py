"""Registers, predicates and constants as one thread knows them, and operands read from them.

A value is an int of 32 bits, a predicate a bool, and either None where it is unknown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache

MASK = 0xFFFFFFFF
_CONSTANT = re.compile(r"^c\[0x0\]\[(?:(?P<register>U?R\d+|URZ|RZ)\+?)?(?P<offset>0x[0-9a-f]+)?\]$")
_REGISTER = re.compile(r"^(?P<bank>UR|R)(?P<number>\d+)(?:\.64|\.U32)?$")


@dataclass
class Registers:
    """What one thread knows."""

    constants: dict[int, int]
    program: tuple[int, int, int]
    values: dict[str, int | None] = field(default_factory=dict)
    predicates: dict[str, bool | None] = field(default_factory=dict)

    def predicate(self, name: str) -> bool | None:
        negated, bare = name.startswith("!"), name.lstrip("!")
        value = True if bare in ("PT", "UPT") else self.predicates.get(bare)
        return None if value is None else value != negated

    def set(self, name: str, value: int | bool | None) -> None:
        if name.startswith(("P", "UP")):
            self.predicates[name] = None if value is None else bool(value)
        elif name not in ("RZ", "URZ"):
            self.values[name.removesuffix(".64")] = value

    def word(self, text: str, inverts: bool = False) -> int | None:
        """An operand's 32 bits.

        Args:
            text: of the operand.
            inverts: whether a minus sign means all bits inverted, as in the upper word of a sum.
        """
        sign = text[0] if text[:1] in ("-", "~") else ""
        inverts = inverts and not text.startswith("-0x")  # a number is itself
        value = self._plain(text[len(sign) :])
        if value is None:
            return None
        if sign == "~" or (sign and inverts):
            return ~value & MASK
        return -value & MASK if sign else value

    def pair(self, text: str) -> int | None:
        """An operand's 64 bits: of a register and the next, or of two words of the constants."""
        if text in ("RZ", "URZ"):
            return 0
        if match := _CONSTANT.match(text):
            low = int(match["offset"] or "0", 16)
            words = [self.constants.get(low), self.constants.get(low + 4)]
        elif _REGISTER.match(text):
            words = [self.values.get(name) for name in following(text, 2)]
        else:
            return None
        return None if words[0] is None or words[1] is None else words[0] | words[1] << 32

    def _plain(self, text: str) -> int | None:
        kind, name, number = _operand(text)
        if kind == "number":
            return number
        if kind == "register":
            return self.values.get(name)
        if kind == "constant":
            base = self.word(name) if name else 0
            return None if base is None else self.constants.get(base + number)
        return None


@cache
def _operand(text: str) -> tuple[str, str, int]:
    """Its kind, the register in it if there is one, and the number in it."""
    if text in ("RZ", "URZ"):
        return "number", "", 0
    if match := _REGISTER.match(text):
        return "register", f"{match['bank']}{match['number']}", 0
    if match := _CONSTANT.match(text):
        return "constant", match["register"] or "", int(match["offset"] or "0", 16)
    if re.fullmatch(r"0x[0-9a-f]+", text):
        return "number", "", int(text, 16) & MASK
    return "unknown", "", 0


@cache
def following(name: str, count: int) -> tuple[str, ...]:
    """The registers of a value of ``count`` words.

    Args:
        name: of the first.
        count: of them.
    """
    match = _REGISTER.match(name)
    if match is None:
        return (name,) * count
    return tuple(f"{match['bank']}{int(match['number']) + i}" for i in range(count))
