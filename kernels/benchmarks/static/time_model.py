"""A model of the time of a launch, by bytes, instructions and what a multiprocessor holds at once.

A launch takes the longest of

* its bytes over the bandwidth that a copy reaches,
* its issue slots over those of all multiprocessors, four a cycle each, none of them lost,
* what its programs take one behind the other, where few are resident: a program waits for memory as often as there is a
  barrier behind loads, and neither loads while it computes nor computes while it loads; resident programs fill each
  other's gaps, and one that copies rows ahead counts twice.

Launches of an arm follow one another. What it leaves out: caches and their bandwidth, conflicts in shared memory, the
latency of floating-point operations and of barriers, the last wave of programs that is not full, and that threads of a
warp go apart. Operations of torch are bytes only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any


@dataclass(frozen=True)
class Gpu:
    """What the model takes a GPU to be; to be confirmed by the first run on one."""

    name: str
    bandwidth: float
    """Bytes a second, read and written, that a copy reaches."""
    multiprocessors: int = 132
    clock: float = 1.755e9
    """Cycles a second under load."""
    issues: int = 4
    """Instructions a cycle of a multiprocessor."""
    latency: float = 0.8e-6
    """Seconds that a program waits for its loads from memory when others load, too."""
    launch: float = 2e-6
    """Seconds of a launch behind another one on the same stream."""


H200 = Gpu("H200", 4.3e12)
H100 = Gpu("H100", 2.9e12)


@dataclass(frozen=True)
class Bounds:
    """Seconds of a launch by each of the three."""

    memory: float
    issue: float
    residency: float

    @property
    def seconds(self) -> float:
        return max(self.memory, self.issue, self.residency)

    @property
    def holds_up(self) -> str:
        """Which of them is the longest."""
        return max(("memory", "issue", "residency"), key=lambda name: float(getattr(self, name)))


def bounds(nbytes: int, facts: Mapping[str, Any] | None, gpu: Gpu = H200) -> Bounds:
    """What a launch takes by the model, without the launch itself.

    Args:
        nbytes: that it moves.
        facts: of its code; None for an operation of torch.
        gpu: that it runs on.
    """
    memory = nbytes / gpu.bandwidth
    if facts is None:
        return Bounds(memory, 0.0, 0.0)
    issue = facts["issue_slots"] / (gpu.multiprocessors * gpu.issues * gpu.clock)
    programs = prod(facts["grid"])
    at_once = max(1, facts["resident_programs"]) * (2 if facts["copies_ahead"] else 1)
    alone = facts["waits"] * gpu.latency + (memory + issue) * gpu.multiprocessors / programs
    rounds = max(1.0, programs / (gpu.multiprocessors * at_once))
    # Copies ahead overlap the rows of one program, of which a grid that shares out tokens has no second round.
    overlap = 2 if facts["copies_ahead"] and programs <= gpu.multiprocessors * at_once else 1
    return Bounds(memory, issue, alone * rounds / overlap)
