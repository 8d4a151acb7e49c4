"""What a long call is doing, told to whoever shows it. By default nobody does, and nothing is printed.

A task is a piece of work with a name, counted where its steps can be; its stage is what it does now. ``task``,
``advance``, ``each`` and ``stage`` stand where work is done, in any folder; ``cli/progress.py`` listens and draws bars.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

T = TypeVar("T")


@dataclass(eq=False)
class Task:
    """Work that has begun and not ended."""

    text: str
    total: int | None
    """Steps, where they can be counted."""
    is_timed: bool
    """Whether it is being measured, so that nothing may run beside it."""
    done: int = 0
    stage: str = ""
    began: float = field(default_factory=time.time)


class Listener(Protocol):
    """Shows what is being done."""

    def changed(self, tasks: Sequence[Task]) -> None:
        """A task began, ended, did a step or entered a stage.

        Args:
            tasks: those that are under way, outermost first; the sequence is not to be kept.
        """


@dataclass(frozen=True)
class _Heard:
    listener: Listener
    tasks: list[Task] = field(default_factory=list)

    def tell(self) -> None:
        self.listener.changed(self.tasks)

    def end(self, task: Task) -> None:
        """End a task and what began in it; an inner one may have been left by an exception, and ends here."""
        if task in self.tasks:
            del self.tasks[self.tasks.index(task) :]
            self.tell()


_heard: ContextVar[_Heard | None] = ContextVar("attnres_progress", default=None)


@contextlib.contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Tell ``listener`` of all that begins inside."""
    token = _heard.set(_Heard(listener))
    try:
        yield
    finally:
        _heard.reset(token)


@contextlib.contextmanager
def task(text: str, total: int | None = None, *, is_timed: bool = False) -> Iterator[None]:
    """Say that a piece of work is done inside.

    Args:
        text: what it is.
        total: how often ``advance`` will be called, where that is known.
        is_timed: it is being measured: the listener does nothing by itself until it ends.
    """
    heard = _heard.get()
    if heard is None:
        yield
        return
    begun = Task(text, total, is_timed)
    if heard.tasks:
        heard.tasks[-1].stage = ""
    heard.tasks.append(begun)
    heard.tell()
    try:
        yield
    finally:
        heard.end(begun)


def advance() -> None:
    """One step of the innermost task is done."""
    heard = _heard.get()
    if heard is not None and heard.tasks:
        heard.tasks[-1].done += 1
        heard.tell()


def stage(text: str) -> None:
    """Say what the innermost task does from now on, until it says something else, begins a task of its own or ends."""
    heard = _heard.get()
    if heard is not None and heard.tasks and heard.tasks[-1].stage != text:
        heard.tasks[-1].stage = text
        heard.tell()


def each(items: Collection[T], text: str, *, is_timed: bool = False) -> Iterator[T]:
    """The items one by one, as the steps of a task.

    Args:
        items: what is gone through.
        text: what the task is.
        is_timed: that of ``task``.
    """
    with task(text, len(items), is_timed=is_timed):
        for item in items:
            yield item
            advance()
