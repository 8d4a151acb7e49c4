"""Which reads of the plan one call of a model has made, where no single graph holds them all."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

from attnres_passes.ir.plan import Plan
from attnres_passes.ir.read_id import ReadId
from attnres_passes.torch_private.frames import never_traced

if TYPE_CHECKING:
    from attnres_compile.model.in_force.calls import Calls


class CallReads:
    """One call of a model. reads: made by its pieces; pieces: that ran; depth: calls of its parts on their way."""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self.reads: set[ReadId] = set()
        self.pieces = self.depth = 0


class _Open(threading.local):
    """Calls on their way in this thread, the innermost last."""

    def __init__(self) -> None:
        self.calls: list[CallReads] = []


_open = _Open()


@never_traced
def begin_call(calls: Calls) -> CallReads:
    """Collect the reads that are made from now on; of a call inside another one of the same model, for the outer."""
    outer = next((one for one in _open.calls if one.calls is calls), None)
    of_call = CallReads(calls) if outer is None else outer
    of_call.depth += 1
    if outer is None:
        _open.calls.append(of_call)
    return of_call


@never_traced
def end_call(of_call: CallReads) -> None:
    """The call, or the one inside it, has ended."""
    of_call.depth -= 1
    if not of_call.depth:
        _open.calls.remove(of_call)


def note_reads(calls: Calls, reads: Iterable[ReadId]) -> None:
    """Note reads that a graph, or Python, makes now. A backward that runs a graph again is no call."""
    for one in _open.calls:
        if one.calls is calls:
            one.reads.update(reads)
            one.pieces += 1


def missing_reads(of_call: CallReads, plan: Plan, path: str) -> list[ReadId]:
    """The reads of the plan inside a module that a call of it has left out.

    Args:
        of_call: so far.
        plan: of the model.
        path: of the module in the model.
    """
    prefix = f"{path}." if path else ""
    return [
        read_id
        for read_id, read in plan.depth_reads.items()
        if f"{read.module}.".startswith(prefix) and read_id not in of_call.reads
    ]
