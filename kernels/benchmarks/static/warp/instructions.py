"""The text of ``nvdisasm`` as instructions: opcode, flags, guard, operands and where a branch goes."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LABEL = re.compile(r"^(\.L\w+):")
_INSTRUCTION = re.compile(
    r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@(?P<guard>!?U?P[0-9T]+)\s+)?(?P<opcode>[A-Z][\w.]*)\s*(?P<operands>[^;]*);"
)
_TARGET = re.compile(r"`\((\.L\w+)\)")


@dataclass(frozen=True)
class Instruction:
    """One instruction of a kernel."""

    name: str
    """The opcode without its flags."""
    flags: frozenset[str]
    guard: str
    """The predicate that it runs under, such as "!P0"; '' for none."""
    operands: tuple[str, ...]
    target: int
    """Number of the instruction that it may go to; -1 if it goes to none."""


def instructions_of(text: str) -> list[Instruction]:
    """The instructions of a kernel and what it calls, without what pads the end.

    Args:
        text: that ``nvdisasm --print-code`` writes for a file with one kernel.
    """
    labels: dict[str, int] = {}
    found: list[re.Match[str]] = []
    for line in text.splitlines():
        if label := _LABEL.match(line.strip()):
            labels[label[1]] = len(found)
        elif instruction := _INSTRUCTION.match(line):
            found.append(instruction)
    made = [_made(match, labels) for match in found]
    while made and (made[-1].name == "NOP" or _is_trap(made[-1], len(made) - 1)):
        made.pop()
    return made


def _is_trap(instruction: Instruction, number: int) -> bool:
    """A branch to itself, which stands behind the last instruction and is never reached."""
    return instruction.name == "BRA" and instruction.target == number and not instruction.guard


def _made(match: re.Match[str], labels: dict[str, int]) -> Instruction:
    name, *flags = match["opcode"].split(".")
    target = _TARGET.search(match["operands"])
    operands = tuple(one.strip().replace(".reuse", "") for one in match["operands"].split(",") if one.strip())
    return Instruction(
        name, frozenset(flags), match["guard"] or "", operands, labels.get(target[1], -1) if target else -1
    )
