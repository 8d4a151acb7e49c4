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
        stack.enter_context(contextlib.redirect_stderr(_above(terminal)))
        if sys.stdout.isatty():
            stack.enter_context(contextlib.redirect_stdout(_above(sys.stdout)))
        stack.enter_context(heard_by(bar))
        stack.enter_context(task(text))
        # It is what takes the first seconds of every command.
        stage("importing torch")
        yield


def _above(terminal: IO[str]) -> Any:
    """A file whose lines go to the terminal with the bar taken away and drawn again below them."""
    from tqdm.contrib import DummyTqdmFile

    return DummyTqdmFile(terminal)


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
        self._ticks = False
        self._ended = threading.Event()
        self._clock = threading.Thread(target=self._tick, name="attnres-progress", daemon=True)

    def __enter__(self) -> _Bar:
        self._clock.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._clock.join()
        # A file that stands above the bar draws it once more when it goes, and closing a bar does not always clear it.
        self._bar.clear()
        self._bar.close()

    def changed(self, tasks: Sequence[Task]) -> None:
        with self._lock:
            self._ticks = bool(tasks) and not any(one.is_timed for one in tasks)
            if not tasks:
                self._bar.clear()
                return
            innermost = tasks[-1]
            self._bar.bar_format = _NOT_COUNTED if innermost.total is None else _COUNTED
            self._bar.n, self._bar.total = innermost.done, innermost.total
            self._bar.start_t = innermost.began
            self._bar.set_description_str(described(tasks))

    def _tick(self) -> None:
        while not self._ended.wait(_SECONDS_BETWEEN_TICKS):
            with self._lock:
                if self._ticks:
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
