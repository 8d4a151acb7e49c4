"""Ours beside the best peer on every shape: bytes, instructions per byte, and where and why it is not as it should be.

Of a launch that tunes itself the configuration with the fewest issue slots is taken, on both sides, of those that do
not spill where there are such: the hardest to beat. *The best peer* of a shape is that which moves the fewest bytes, of
equals that with fewer issue slots. *Instructions per byte* are issue slots over bytes of launches of kernels;
operations of torch between them, of which the code is not known, count in the bytes only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from ..against_peers.arms.arm import KERNELS
from .time_model import H200, Bounds, Gpu, bounds

PER_TOKEN = 0.005
"""Of the bytes, for scalars of a token, such as logits, of which arms keep some more or fewer."""
MOST_PER_BYTE = 1.2
"""Of ours over the best peer's instructions per byte, at most."""


@dataclass(frozen=True)
class Candidate:
    """An arm's forward or backward by its code."""

    name: str
    is_ours: bool
    nbytes: int
    in_torch: int
    """Bytes of operations of torch, of those."""
    slots: int
    most_slots: int
    """With the configurations of most issue slots."""
    launches: tuple[tuple[int, Mapping[str, Any] | None], ...]
    """Bytes and facts of each."""

    @property
    def per_byte(self) -> float:
        return self.slots / max(1, self.nbytes - self.in_torch)

    def seconds(self, gpu: Gpu = H200) -> float:
        return sum(bounds(moved, facts, gpu).seconds + gpu.launch for moved, facts in self.launches)

    def longest(self, gpu: Gpu = H200) -> Bounds:
        """Of the launch that takes longest."""
        return max((bounds(*one, gpu) for one in self.launches), key=lambda one: one.seconds)


def fewest_slots(code: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Facts of the configuration with the fewest issue slots, without spills if any is; None if none was followed.

    Args:
        code: facts of each that a launch chooses among.
    """
    followed = [facts for facts in code if "issue_slots" in facts and facts["resident_programs"]]
    return min(followed, key=lambda facts: (facts["spilled_bytes"] > 0, facts["issue_slots"]), default=None)


def candidate(arm: Mapping[str, Any], part: str, codes: Mapping[str, Any]) -> Candidate | None:
    """An arm's part by its code; None where a kernel of it did not compile or could not be followed.

    Args:
        arm: of a record.
        part: "forward" or "backward".
        codes: of the record.
    """
    launches: list[tuple[int, Mapping[str, Any] | None]] = []
    most = 0
    for one in arm.get(part, ()):
        if not one["choices"]:
            launches.append((int(one["nbytes"]), None))
            continue
        code = [codes[digest] for digest in one["code"]]
        best = fewest_slots(code)
        if best is None:
            return None
        launches.append((int(one["nbytes"]), best))
        most += max(facts.get("issue_slots", 0) for facts in code)
    if not any(facts is not None for _, facts in launches):
        return None
    in_torch = sum(moved for moved, facts in launches if facts is None)
    slots = sum(int(facts["issue_slots"]) for _, facts in launches if facts is not None)
    total = sum(moved for moved, _ in launches)
    return Candidate(arm["name"], arm["kind"] == KERNELS, total, in_torch, slots, most, tuple(launches))


def candidates(cell: Mapping[str, Any], part: str, codes: Mapping[str, Any]) -> list[Candidate]:
    """All arms of a cell whose code is known.

    Args:
        cell: of a record.
        part: "forward" or "backward".
        codes: of the record.
    """
    found = (candidate(arm, part, codes) for arm in cell["arms"] if part in arm)
    return [one for one in found if one is not None]


@dataclass(frozen=True)
class Comparison:
    """Ours and the best peer, both by bytes."""

    ours: Candidate
    peer: Candidate
    fewest: Candidate
    """The peer with the fewest issue slots a row, whatever it moves, of those that leave nothing to torch if any."""

    @property
    def bytes_ratio(self) -> float:
        return self.ours.nbytes / self.peer.nbytes

    @property
    def per_byte_ratio(self) -> float:
        return self.ours.per_byte / self.peer.per_byte

    @property
    def is_reached(self) -> bool:
        return self.bytes_ratio <= 1 + PER_TOKEN and self.per_byte_ratio <= MOST_PER_BYTE

    def why(self) -> str:
        """What is missed, and what it comes of by the parts that the record has."""
        reasons = []
        if self.bytes_ratio > 1 + PER_TOKEN:
            sums = self.ours.in_torch / self.ours.nbytes
            behind = f", {sums:.1%} of ours in torch (sums over programs)" if sums else ""
            reasons.append(f"bytes {self.bytes_ratio:.3f}x{behind}")
        if self.per_byte_ratio > MOST_PER_BYTE:
            of_both = ", ".join(_told(_most(one)) for one in (self.ours, self.peer))
            reasons.append(f"instructions per byte {self.per_byte_ratio:.2f}x: {of_both}")
        return "; ".join(reasons)


def _told(facts: Mapping[str, Any]) -> str:
    resident = f"{facts['resident_programs']} resident"
    return f"{facts['kernel']} {facts['issued_by_warp']} x {facts['warps']} warps x {prod(facts['grid'])}, {resident}"


def _most(one: Candidate) -> Mapping[str, Any]:
    return max((facts for _, facts in one.launches if facts is not None), key=lambda facts: int(facts["issue_slots"]))


def comparison(cell: Mapping[str, Any], part: str, codes: Mapping[str, Any]) -> Comparison | None:
    """Ours beside the best peer; None without one of them.

    Args:
        cell: of a record.
        part: "forward" or "backward".
        codes: of the record.
    """
    found = candidates(cell, part, codes)
    ours, peers = [x for x in found if x.is_ours], [x for x in found if not x.is_ours]
    if not ours or not peers:
        return None
    whole = [x for x in peers if x.in_torch < PER_TOKEN * x.nbytes] or peers
    return Comparison(_best(ours), _best(peers), min(whole, key=lambda x: x.slots))


def _best(found: Sequence[Candidate]) -> Candidate:
    least = min(one.nbytes for one in found)
    return min((one for one in found if one.nbytes <= least * (1 + PER_TOKEN)), key=lambda one: one.slots)
