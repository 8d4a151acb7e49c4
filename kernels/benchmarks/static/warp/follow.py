"""How many instructions one warp issues: its integers and branches are followed through the machine code.

A loop is passed as often as it is with these arguments, however the assembler unrolled it. Integers of arguments and
of the grid are known, as are those made of them by the operations of ``arithmetic``; what comes from memory or from
floating point is unknown. A branch forward on something unknown is not taken, and counted; a branch back on it cannot
be followed. Followed is the first thread of the first warp of a program.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from .arithmetic import OPERATIONS
from .instructions import Instruction
from .registers import Registers, following

MOST_STEPS = 1_000_000


class UndecidedError(RuntimeError):
    """The instructions of a warp cannot be followed."""


@dataclass
class Trace:
    """What a warp issued."""

    issued: int = 0
    undecided: int = 0
    """Branches forward, and ends, on something unknown, that were not taken."""
    waits: int = 0
    """Times that it waits for loads from memory: at a barrier behind some, at most once for all of them."""
    by_name: dict[str, int] = field(default_factory=dict)
    """How often each opcode was issued."""

    def count(self, name: str) -> None:
        """One more. Raises UndecidedError beyond what a warp of a kernel that ends would issue."""
        self.issued += 1
        self.by_name[name] = self.by_name.get(name, 0) + 1
        if self.issued > MOST_STEPS:
            raise UndecidedError(f"a warp issues over {MOST_STEPS} instructions")


def follow(code: Sequence[Instruction], constants: Mapping[int, int], program: tuple[int, int, int]) -> Trace:
    """The instructions that a warp issues.

    Args:
        code: of a kernel.
        constants: words of the bank that arguments are in, by their offset in bytes.
        program: its place in the grid.

    Raises:
        UndecidedError: a branch back depends on data, or there is an instruction that goes somewhere unknown.
    """
    warp = _Warp(code, Registers(dict(constants), program))
    while warp.place < len(code):
        warp.step()
    warp.trace.waits += warp.loads
    return warp.trace


@dataclass
class _Warp:
    """A warp on its way."""

    code: Sequence[Instruction]
    registers: Registers
    trace: Trace = field(default_factory=Trace)
    place: int = 0
    calls: list[int] = field(default_factory=list)
    loads: bool = False
    """Whether there are loads that no barrier stood behind yet."""

    def step(self) -> None:
        """Issue one instruction."""
        one = self.code[self.place]
        self.trace.count(one.name)
        self.place += 1
        guard = self.registers.predicate(one.guard) if one.guard else True
        if one.name in ("BRA", "EXIT"):
            self._go(one, guard)
        elif one.name in ("CALL", "RET"):
            self._call(one, guard)
        elif one.name in _SOMEWHERE:
            raise UndecidedError(f"{one.name} goes to a place that is computed")
        else:
            self.loads |= one.name in ("LDG", "LDGSTS") and guard is not False
            if one.name == "BAR" and self.loads:
                self.trace.waits, self.loads = self.trace.waits + 1, False
            _run(one, guard, self.registers)

    def _go(self, one: Instruction, guard: bool | None) -> None:
        taken = _taken(one, guard, self.registers)
        if taken is None:
            if one.name == "BRA" and one.target < self.place:
                raise UndecidedError(f"a loop ends by data ({one.name} {', '.join(one.operands)})")
            self.trace.undecided += 1
        elif taken:
            self.place = len(self.code) if one.name == "EXIT" else one.target

    def _call(self, one: Instruction, guard: bool | None) -> None:
        if guard is not True:
            raise UndecidedError(f"{one.name} depends on data")
        if one.name == "CALL":
            self.calls.append(self.place)
            self.place = one.target
        elif self.calls:
            self.place = self.calls.pop()
        else:
            raise UndecidedError("a return without a call")


_SOMEWHERE = ("JMP", "BRX", "JMX", "BRXU")


def _taken(one: Instruction, guard: bool | None, registers: Registers) -> bool | None:
    if guard is False or "DIV" in one.flags:
        return False  # threads of a warp that go apart do so nowhere here
    conditions = [registers.predicate(x) for x in one.operands if x.lstrip("!").startswith(("P", "UP"))]
    if False in conditions:
        return False
    return None if guard is None or None in conditions else True


def _run(one: Instruction, guard: bool | None, registers: Registers) -> None:
    if guard is False:
        return
    operation = OPERATIONS.get(one.name)
    written = operation(one, registers) if operation is not None else None
    if written is None or guard is None:
        written = dict.fromkeys(written_names(one))
    for name, value in written.items():
        registers.set(name, value)


@cache
def written_names(one: Instruction) -> tuple[str, ...]:
    """Registers and predicates that an instruction writes.

    Args:
        one: any but those that store.
    """
    if one.name == "R2P":
        return tuple(f"P{i}" for i in range(7))
    if one.name.endswith(("SETP", "PLOP3")):
        return one.operands[:2]
    names: list[str] = []
    for number, name in enumerate(one.operands):
        if name.startswith(("P", "UP")):
            names.append(name)
        elif "[" not in name and name.startswith(("R", "UR")):
            names += following(name, _words(one))
            names += [x for x in one.operands[number + 1 : number + 2] if x.startswith(("P", "UP"))]
            break
        else:
            break
    return tuple(names)


def _words(one: Instruction) -> int:
    if one.name == "HFMA2":
        return 1
    if "128" in one.flags or one.name.endswith("MMA") or one.name == "LDSM":
        return 4
    is_wide = {"64", "WIDE", "F64", "U64", "S64"} & one.flags or one.name in ("CS2R", "DADD", "DMUL", "DFMA")
    return 2 if is_wide else 1
