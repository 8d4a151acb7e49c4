"""What is kept of one model of a sweep: one line of JSON."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from attnres_kernels.errors import AttnResError


class SweepFileError(AttnResError, ValueError):
    """A file is no record of a sweep."""


class Outcome(StrEnum):
    """What became of a model."""

    REWRITTEN = "rewritten"
    """Whole streams, and ``verify`` passed."""
    PARTIAL = "partial"
    """Pieces of streams, and ``verify`` passed."""
    DECLINED = "declined"
    """Nothing is rewritten, with reasons."""
    REFUSED = "refused"
    """An error of ours that says what to do."""
    NOT_MADE = "not made"
    """No small model that runs by itself; not counted."""
    LIMIT = "limit"
    """The time or the memory of its process ran out."""
    WRONG = "wrong"
    """Rewritten, and ``verify`` did not pass."""
    FAULT = "fault"
    """An error that is none of ours, or one that says that the compiler is at fault; or its process died."""


FAULTS = frozenset({Outcome.WRONG, Outcome.FAULT})
DECIDED = frozenset(Outcome) - {Outcome.NOT_MADE, Outcome.LIMIT}
"""Those that say something of the rewrite."""


@dataclass(frozen=True)
class Found:
    """A stream that is rewritten. at: how many of its writes are at each ``file:line``."""

    name: str
    width: int
    writes: int
    reads: int
    unnormed: int
    left_out: int
    at: dict[str, int]


@dataclass(frozen=True)
class ModelRecord:
    """One model."""

    name: str
    library: str
    outcome: Outcome
    how: str = ""
    """In which size it was made, and on what it ran."""
    layers: dict[str, int] = field(default_factory=dict)
    """Calls in a plain run of each class that a list of the model's modules holds, by ``module.Class``."""
    streams: tuple[Found, ...] = ()
    declined: tuple[tuple[str, int, str], ...] = ()
    """Reason, additions and ``file:line`` of what was declined, the longest first."""
    verified: dict[str, Any] = field(default_factory=dict)
    """Checks that were made, skipped and failed, and the largest error."""
    reason: str = ""
    """Why it was not made, refused or at fault; where a process died, how."""
    seconds: dict[str, float] = field(default_factory=dict)
    """That its process computed, by step."""
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def writes(self) -> int:
        """Of all its streams."""
        return sum(stream.writes for stream in self.streams)

    def to_line(self) -> str:
        """JSON without what is empty."""
        data = {name: value for name, value in dataclasses.asdict(self).items() if value not in ("", (), [], {})}
        return json.dumps(data, separators=(",", ":"))

    @classmethod
    def from_line(cls, line: str) -> ModelRecord:
        """The record that ``to_line`` wrote. Raises KeyError, TypeError or ValueError on anything else."""
        data = json.loads(line)
        data["outcome"] = Outcome(data["outcome"])
        data["streams"] = tuple(Found(**stream) for stream in data.get("streams", ()))
        data["declined"] = tuple((reason, writes, at) for reason, writes, at in data.get("declined", ()))
        return cls(**data)


def read_records(path: Path) -> list[ModelRecord]:
    """The records of a file; of a model that has several, the last. A last line that a killed run left is skipped.

    Raises SweepFileError.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SweepFileError(f"{path} cannot be read ({error}): pass what `attnres sweep --out FILE` wrote") from error
    found: dict[tuple[str, str], ModelRecord] = {}
    for number, line in enumerate(lines[:-1], start=1):
        try:
            record = ModelRecord.from_line(line)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SweepFileError(
                f"line {number} of {path} is no record of a model ({type(error).__name__}: {error}): pass what "
                "`attnres sweep --out FILE` wrote, or another FILE"
            ) from error
        found[record.library, record.name] = record
    return list(found.values())


def write_records(records: Iterable[ModelRecord], path: Path) -> None:
    """Put a whole file in place of the one before.

    Args:
        records: in the order they are kept in.
        path: of the file.
    """
    temporary = path.with_name(path.name + ".part")
    temporary.write_text("".join(f"{record.to_line()}\n" for record in records), encoding="utf-8")
    os.replace(temporary, path)
