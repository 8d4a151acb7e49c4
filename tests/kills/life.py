"""One life of a training process: it is started, watched, and killed at a moment, or left to come to its end."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from tests.kills.ways import Task, live

PRELOADED = (
    *("torch._dynamo", "transformers.trainer", "transformers.models.llama.modeling_llama", "pytorch_lightning"),
    *("attnres_compile.api.prepare", "attnres_compile.compile.backend", "attnres_compile.integrations.pretrained"),
    __name__,
)
"""What takes seconds to import, for all processes at once."""
SILENCE = 300.0
"""Seconds without a word after which a process counts as stuck."""


class TrainingFailedError(AssertionError):
    """The process ended by itself, and not at its end: it could not resume, or not train."""


@dataclass(frozen=True)
class Moment:
    """When to kill: ``delay`` seconds behind the ``count``-th report of this kind; at the start if it is ""."""

    kind: str
    count: int
    delay: float


@dataclass
class Life:
    """What a process told before it died."""

    resumed: int | None = None
    losses: dict[int, float] = field(default_factory=dict)
    saved: int = 0
    phase: str = ""
    """Its last report."""
    times: list[tuple[str, float]] = field(default_factory=list)
    """When each report came, in seconds after the start."""

    @property
    def last_step(self) -> int:
        return max(self.losses, default=self.resumed or 0)


def lead(task: Task, moment: Moment | None = None) -> Life:
    """Start a process and read what it says until it is dead.

    Raises:
        TrainingFailedError: with its traceback.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=live, args=(task, there), daemon=True)
    process.start()
    there.close()
    try:
        return _watched(here, process, moment)
    finally:
        process.kill()
        process.join()
        here.close()


def _watched(connection: Connection, process: BaseProcess, moment: Moment | None) -> Life:
    life, start, left = Life(), time.monotonic(), moment.count if moment is not None else 0
    if moment is not None and not moment.kind:
        _kill(process, moment)
    while True:
        if not connection.poll(SILENCE):
            raise TrainingFailedError(f"nothing came in {SILENCE:.0f} s after {life.phase or 'the start'}")
        try:
            kind, step, note = connection.recv()
        except EOFError:
            break
        _note(life, kind, step, note)
        life.times.append((kind, time.monotonic() - start))
        if moment is not None and kind == moment.kind:
            left -= 1
            if left == 0:
                _kill(process, moment)
    process.join()
    if life.phase != "done" and process.exitcode != -9:
        raise TrainingFailedError(f"exit code {process.exitcode} after {life.phase or 'the start'}")
    return life


def _kill(process: BaseProcess, moment: Moment) -> None:
    time.sleep(moment.delay)
    process.kill()


def _note(life: Life, kind: str, step: int, note: object) -> None:
    life.phase = kind
    if kind == "failed":
        raise TrainingFailedError(str(note))
    if kind == "resumed":
        life.resumed = step
    if kind == "saved":
        life.saved = step
    if isinstance(note, float):
        life.losses[step] = note
