"""The progress bar of a command: one line on standard error that says what is being done and how far it is.

attnres bench model gpt2 > cell 2/3 > training step, schedule auto > round:  45%|████▌     | 9/20 [00:12<00:14]
attnres inspect gpt2: capturing the model [00:03]
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import IO, Any

from attnres_compile.progress import Task, heard_by, stage, task

_COUNTED = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]"
_NOT_COUNTED = "{desc} [{elapsed}]"
_SECONDS_BETWEEN_TICKS = 1.0


@contextlib.contextmanager
def progress_bar(text: str, quiet: bool = False) -> Iterator[None]:
    """Show what is done inside, if standard error is a terminal; what is printed meanwhile stands above the bar.

    Args:
        text: the name of all of it.
        quiet: show nothing.
    """
    if quiet or not sys.stderr.isatty():
        yield
        return
    terminal = sys.stderr
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(_Bar(terminal))
        stack.enter_context(contextlib.redirect_stderr(_Above(terminal, bar)))
        if sys.stdout.isatty():
            stack.enter_context(contextlib.redirect_stdout(_Above(sys.stdout, bar)))
        stack.enter_context(heard_by(bar))
        stack.enter_context(task(text))
        # It is what takes the first seconds of every command.
        stage("importing torch")
        yield


class _Above:
    """A file that goes to a terminal with the bar taken away, and drawn again once a line has ended.

    tqdm's own file of that kind knows only one of standard output and standard error while both are replaced.
    """

    def __init__(self, file: IO[str], bar: _Bar) -> None:
        self._file, self._bar = file, bar

    def write(self, text: str) -> int:
        self._bar.write_above(text, self._file)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _Bar:
    """A listener that keeps one bar of tqdm, for the innermost task, and moves its clock while nothing is timed."""

    def __init__(self, terminal: IO[str]) -> None:
        from tqdm import tqdm

        class Bar(tqdm):  # type: ignore[misc]
            monitor_interval = 0  # no thread of tqdm's beside what is measured

        # Drawn whenever it changes, as a long step may follow, but not before it has a text: hence the delay.
        self._bar = Bar(
            file=terminal, leave=False, dynamic_ncols=True, mininterval=0, delay=1e-9, bar_format=_NOT_COUNTED
        )
        self._lock = threading.Lock()
        self._shows = self._is_timed = self._is_away = False
        self._ended = threading.Event()
        self._clock = threading.Thread(target=self._tick, name="attnres-progress", daemon=True)

    def __enter__(self) -> _Bar:
        self._clock.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._clock.join()
        # Closing it draws nothing; what is behind a line that has not ended would be cleared with the bar.
        if not self._is_away:
            self._bar.clear()
        self._bar.close()

    def changed(self, tasks: Sequence[Task]) -> None:
        with self._lock:
            self._shows = bool(tasks)
            self._is_timed = any(one.is_timed for one in tasks)
            if not tasks:
                if not self._is_away:
                    self._bar.clear()
                return
            innermost = tasks[-1]
            self._bar.bar_format = _NOT_COUNTED if innermost.total is None else _COUNTED
            self._bar.n, self._bar.total = innermost.done, innermost.total
            self._bar.start_t = innermost.began
            self._bar.set_description_str(described(tasks), refresh=not self._is_away)

    def write_above(self, text: str, file: IO[str]) -> None:
        """Write a text to a terminal; the bar is away until its line has ended.

        Args:
            text: a whole line, or a part of one.
            file: of the terminal.
        """
        with self._lock:
            if not self._is_away:
                self._bar.clear()
            file.write(text)
            file.flush()
            self._is_away = not text.endswith("\n") if text else self._is_away
            if self._shows and not self._is_away:
                self._bar.refresh()

    def _tick(self) -> None:
        while not self._ended.wait(_SECONDS_BETWEEN_TICKS):
            with self._lock:
                if self._shows and not self._is_timed and not self._is_away:
                    self._bar.refresh()


def described(tasks: Sequence[Task]) -> str:
    """What is being done, outermost first: counted tasks with the step that they are at.

    Args:
        tasks: at least one; the bar itself counts the steps of the innermost.
    """
    *outer, innermost = tasks
    names = [one.text if one.total is None else f"{one.text} {one.done + 1}/{one.total}" for one in outer]
    own = f"{innermost.text}: {innermost.stage}" if innermost.stage else innermost.text
    return " > ".join([*names, own])
