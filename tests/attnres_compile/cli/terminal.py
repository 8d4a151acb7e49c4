"""A pseudo-terminal that stands for standard error, and what was drawn on it."""

from __future__ import annotations

import contextlib
import os
import pty
import termios
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest


@dataclass
class Terminal:
    """``raw`` is all that was written, with the carriage returns between one drawing of a line and the next."""

    raw: str = ""
    chunks: list[bytes] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        """What stood on a line at some time, without what cleared it."""
        return [line.strip() for line in self.raw.replace("\n", "\r").split("\r") if line.strip()]

    @property
    def left(self) -> list[str]:
        """The lines that are there in the end, as a terminal shows them: what comes later covers what was there."""
        shown = []
        for row in self.raw.split("\n"):
            cells: list[str] = []
            for part in row.split("\r"):
                cells[: len(part)] = part
            shown.append("".join(cells).rstrip())
        return [line for line in shown if line]


@contextlib.contextmanager
def standard_error_on_a_terminal(monkeypatch: pytest.MonkeyPatch, columns: int = 200) -> Iterator[Terminal]:
    """Inside, ``sys.stderr`` is a terminal; what was written there is in the result behind the block."""
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, columns))
    seen = Terminal()
    reader = threading.Thread(target=_read, args=(leader, seen.chunks))
    reader.start()
    try:
        with os.fdopen(follower, "w") as file, monkeypatch.context() as patched:
            patched.setattr("sys.stderr", file)
            yield seen
    finally:
        reader.join()
        os.close(leader)
        # A terminal turns a line's end into a carriage return and a new line.
        seen.raw = b"".join(seen.chunks).decode().replace("\r\n", "\n")


def _read(leader: int, chunks: list[bytes]) -> None:
    while True:
        try:
            chunk = os.read(leader, 65536)
        except OSError:  # the other end is closed
            return
        chunks.append(chunk)
