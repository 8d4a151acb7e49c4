"""What compilation last did to each model: the notes that the backend takes, which ``status`` tells."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import nn

from attnres_passes.ir.plan import Plan

State = Literal["untouched", "prepared", "rewritten", "declined", "stale"]


@dataclass(frozen=True)
class Status:
    """State of a model.

    state: "untouched" (never prepared or compiled), "prepared" (not compiled yet), "rewritten", "declined" (compiled
    as it was) or "stale" (the last compilation failed, see ``error``); reads: depth attentions in the last graph;
    graphs: graphs compiled with streams in them, which recompiles are but for the first.
    """

    state: State
    reads: int = 0
    graphs: int = 0
    error: str = ""
    plan: Plan | None = field(default=None, repr=False)

    @property
    def recompiles(self) -> int:
        return max(0, self.graphs - 1)

    def __str__(self) -> str:
        graphs = f"{self.graphs} graph{'' if self.graphs == 1 else 's'} compiled"
        text = f"{self.state}: {self.reads} reads, {graphs}, {self.recompiles} recompiles"
        return f"{text}; {self.error}" if self.error else text


_last: weakref.WeakKeyDictionary[nn.Module, Status] = weakref.WeakKeyDictionary()


def last_note(model: nn.Module) -> Status | None:
    """What the backend last noted about ``model``."""
    return _last.get(model)


def note_rewritten(model: nn.Module, plan: Plan, reads: int) -> None:
    """Note that a graph was compiled with streams in it.

    Args:
        model: that the graph belongs to.
        plan: of the model.
        reads: depth attentions in the graph.
    """
    before = _last.get(model)
    graphs = before.graphs if before is not None and before.plan is plan else 0
    _last[model] = Status("rewritten", reads, graphs + 1, "", plan)


def note_declined(model: nn.Module, plan: Plan) -> None:
    """Note that a graph was compiled as it was.

    Args:
        model: that the graph belongs to.
        plan: that says why nothing was rewritten.
    """
    _last[model] = Status("declined", error="; ".join(str(decline) for decline in plan.declined), plan=plan)


def note_failed(model: nn.Module, plan: Plan, error: Exception) -> None:
    """Note that a graph could not be compiled.

    Args:
        model: that the graph belongs to.
        plan: of the model.
        error: that the user is given, unless torch suppresses it.
    """
    before = _last.get(model, Status("prepared"))
    _last[model] = replace(before, state="stale", error=str(error), plan=plan)
