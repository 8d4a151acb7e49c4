"""What the calls of a prepared model were: inside its rewrite, plain on purpose, or stopped."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, Literal

LastCall = Literal["", "rewritten", "plain on purpose", "plain", "refused"]


class Calls:
    """Counts of the calls of one model since it was prepared or copied, and what the last one was.

    rewritten: runs of graphs that hold its rewrite; runs: the same, by stream of the plan; plain_on_purpose: calls
    inside ``attnres_compile.plain``; plain: calls that ran plain under ``on_plain="warn"``; refused: calls that
    NotInForceError stopped. on_purpose: whether ``attnres_compile.plain`` is open now; let_through: whether plain
    calls run now that are not counted; compiled: graphs compiled; warned: kinds of causes that were warned of;
    traced_in: the last compilation of another backend that took the model in.
    """

    def __init__(self, num_streams: int, is_copy: bool = False) -> None:
        self.is_copy = is_copy
        self.on_purpose = self.let_through = False
        self.rewritten = self.plain_on_purpose = self.plain = self.refused = self.compiled = 0
        self.runs = [0] * num_streams
        self.traced_in = ""
        self.last: LastCall = ""
        self.warned: set[str] = set()

    def note_run(self, streams: Iterable[int]) -> None:
        """Note that a rewritten graph runs. streams: of the plan, that are in it."""
        self.rewritten += 1
        for stream in streams:
            self.runs[stream] += 1
        self.last = "rewritten"

    def note_plain_on_purpose(self) -> None:
        self.plain_on_purpose += 1
        self.last = "plain on purpose"

    def note_plain(self) -> None:
        self.plain += 1
        self.last = "plain"

    def note_refused(self) -> None:
        self.refused += 1
        self.last = "refused"

    @contextlib.contextmanager
    def uncounted(self) -> Iterator[None]:
        """Let calls through that are no calls of the user's: plain ones, for a capture or behind a warning."""
        before = self.let_through
        self.let_through = True
        try:
            yield
        finally:
            self.let_through = before

    def __deepcopy__(self, memo: dict[int, Any]) -> Calls:
        """A copy of a model was never called."""
        return Calls(len(self.runs), is_copy=True)

    def __reduce__(self) -> tuple[type[Calls], tuple[int, bool]]:
        return Calls, (len(self.runs), True)
