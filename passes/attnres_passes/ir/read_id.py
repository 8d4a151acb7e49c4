"""The one identity of a read, and of a write, from the plan of a model to its parameters and recordings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ParameterName = Literal["query", "query_matrix", "key_weight"]


@dataclass(frozen=True, order=True)
class ReadId:
    """A read of a plan, or of a graph, printed as ``0.3``.

    stream: index of its stream among those of the plan; index: its own among all reads of that stream, those with one
    source too. Both count from 0.
    """

    stream: int
    index: int

    def __str__(self) -> str:
        return f"{self.stream}.{self.index}"

    def named(self, what: str) -> str:
        """``what_0_3``: the name of a node that belongs to this read."""
        return f"{what}_{self.stream}_{self.index}"


@dataclass(frozen=True, order=True)
class WriteId:
    """A write of a plan. stream: index of its stream; index: its own in that stream, ``v_1`` being 0."""

    stream: int
    index: int


@dataclass(frozen=True)
class ReadParameter:
    """A parameter of a read: what a placeholder that the rewrite appends stands for."""

    read: ReadId
    name: ParameterName
