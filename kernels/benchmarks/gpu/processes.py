"""Workers from outside: started, told a cell, asked without waiting, killed with all they started."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO, Any, Protocol

from .worker import FAILED

WORKER = (sys.executable, "-m", "kernels.benchmarks.gpu.worker")
_LOG_LINES = 3


class Hand(Protocol):
    """Does one cell at a time."""

    def begin(self, work: dict[str, Any]) -> None:
        """Tell it a cell. It must have answered the one before."""

    def answer(self) -> dict[str, Any] | None:
        """Its answer, or None while it works. A worker that is gone answers so, and is ``dead``."""

    @property
    def dead(self) -> bool:
        """Whether it cannot be told another cell."""

    def kill(self) -> None:
        """End it and all that it started, at once."""

    def close(self) -> None:
        """End it; it does nothing now."""


class Worker:
    """A process of ``worker``."""

    def __init__(self, root: Path, environment: dict[str, str], log: Path) -> None:
        """
        Args:
            root: of the repository, where it runs.
            environment: of the process.
            log: what it and its libraries print, behind what is there.
        """
        self._log = log
        self._kept = 0
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115  (open as long as the worker lives)
        # A group of its own, so that what it starts is killed with it; not a session, which would outlast ours.
        self._process = subprocess.Popen(
            WORKER,
            cwd=root,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._printed,
            text=True,
            process_group=0,
        )
        assert self._process.stdout is not None
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=_read, args=(self._process.stdout, self._lines), daemon=True)
        self._reader.start()

    @property
    def dead(self) -> bool:
        """Whether it cannot be told another cell."""
        return self._process.poll() is not None

    def begin(self, work: dict[str, Any]) -> None:
        """Tell it a cell. It must have answered the one before."""
        assert self._process.stdin is not None
        self._keep_printed()
        with contextlib.suppress(BrokenPipeError):  # the answer says that it is gone
            self._process.stdin.write(json.dumps(work) + "\n")
            self._process.stdin.flush()

    def answer(self) -> dict[str, Any] | None:
        """Its answer, or None while it works."""
        was_dead = self.dead
        if was_dead:
            self._reader.join()
        try:
            found: dict[str, Any] = json.loads(self._lines.get_nowait())
        except queue.Empty:
            return self._gone() if was_dead else None
        return found

    def kill(self) -> None:
        """End it and all that it started, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # in the driver, which lets go when it likes
            self._process.wait(5)
        self._keep_printed()

    def close(self) -> None:
        """End it; it does nothing now."""
        self.kill()

    def _gone(self) -> dict[str, Any]:
        lines = [line for line in self._keep_printed().splitlines() if line.strip()]
        code = self._process.returncode
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        reason = ": ".join(filter(None, [f"the worker ended with {how}", " / ".join(lines[-_LOG_LINES:])]))
        return {"status": FAILED, "reason": reason[:500]}

    def _keep_printed(self) -> str:
        """Put what it printed since the last time behind the log."""
        new = os.pread(self._printed.fileno(), os.fstat(self._printed.fileno()).st_size, 0)[self._kept :]
        self._kept += len(new)
        with self._log.open("ab") as log:
            log.write(new)
        return new.decode(errors="replace")


def _read(pipe: IO[str], lines: queue.Queue[str]) -> None:
    for line in pipe:
        lines.put(line)
