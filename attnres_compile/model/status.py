"""What compilation last did to each model: the notes that the backend takes, and what ``status`` tells."""

from __future__ import annotations

import weakref
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import nn

from attnres_passes.ir.plan import Plan
from attnres_passes.ir.read_id import ReadId

State = Literal[
    "untouched",
    "prepared",
    "rewritten",
    "partly rewritten",
    "plain on purpose",
    "plain",
    "refused",
    "declined",
    "stale",
]


@dataclass(frozen=True)
class Status:
    """State of a model, and its history since it was prepared.

    state: what the last call was: "rewritten", "partly rewritten" (its plan leaves a part of a stream out),
        "plain on purpose" (inside ``attnres_compile.plain``), "plain" (warned of, under ``on_plain="warn"``) or
        "refused" (NotInForceError); or, without a call since: "untouched" (never prepared or compiled), "prepared"
        (not called yet), "declined" (compiled as it was) or "stale" (the last compilation failed, see ``error``).
    reads: depth attentions in the last graph that was compiled, or in all parts of a model that is compiled in parts.
    graphs: compiled with streams in them, which recompiles are but for the first.
    rewritten_calls: runs of graphs that hold the rewrite; a model in several such graphs runs each of them in a call.
    plain_on_purpose_calls, plain_calls, refused_calls: the other calls, by state.
    recompile_limit: graphs that Dynamo makes of one function for one model; graphs_kept: that count against it.
    parts: the reads of a model that is compiled in parts, as far as they are compiled.
    """

    state: State
    reads: int = 0
    graphs: int = 0
    error: str = ""
    plan: Plan | None = field(default=None, repr=False)
    rewritten_calls: int = 0
    plain_on_purpose_calls: int = 0
    plain_calls: int = 0
    refused_calls: int = 0
    graphs_kept: int = 0
    recompile_limit: int = 0
    parts: frozenset[ReadId] = field(default=frozenset(), repr=False)

    @property
    def recompiles(self) -> int:
        """None of a model that is compiled in parts, which are graphs of their own."""
        return 0 if self.parts else max(0, self.graphs - 1)

    @property
    def recompiles_left(self) -> int:
        """How many more graphs Dynamo makes before it refuses calls that fit none; plain ones count, too."""
        return max(0, self.recompile_limit - self.graphs_kept)

    def __str__(self) -> str:
        graphs = f"{self.graphs} graph{'' if self.graphs == 1 else 's'} compiled"
        again = f"{self.recompiles} recompile{'' if self.recompiles == 1 else 's'}"
        text = f"{self.state}: {self.reads} reads, {graphs}, {again}"
        if self.graphs_kept:
            text += f" ({self.recompiles_left} left before Dynamo's limit of {self.recompile_limit})"
        calls = {
            "rewritten": self.rewritten_calls,
            "plain on purpose": self.plain_on_purpose_calls,
            "plain": self.plain_calls,
            "refused": self.refused_calls,
        }
        made = ", ".join(f"{count} {kind}" for kind, count in calls.items() if count)
        text += f"; calls: {made}" if made else ""
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


def note_part(model: nn.Module, plan: Plan, reads: Collection[ReadId]) -> None:
    """Note that a graph was compiled that is a part of its model.

    Args:
        model: that the graph belongs to.
        plan: of the model.
        reads: depth attentions in the graph; none if it holds no part of a stream.
    """
    before = _last.get(model)
    if before is not None and before.plan is not plan:
        before = None
    if before is not None and before.state == "rewritten" and not reads:
        return  # what Dynamo compiles beside the graph that holds the reads, such as a checkpoint's own Python
    known = frozenset() if before is None else before.parts
    graphs = 0 if before is None else before.graphs
    parts = known | frozenset(reads)
    _last[model] = Status("rewritten", len(parts), graphs + bool(reads), "", plan, parts=parts)


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
