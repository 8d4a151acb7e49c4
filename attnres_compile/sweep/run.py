"""A whole sweep: each model in a process of its own, with a limit of time and of memory, kept as it is done."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from attnres_compile.progress import advance, stage, task
from attnres_compile.sweep.child import IS_TEMPLATE, run_child
from attnres_compile.sweep.record import ModelRecord, Outcome, read_records, write_records

Target = Callable[[str, str, int, "Connection[ModelRecord, Any]"], None]


@dataclass(frozen=True)
class Limits:
    """Of one process: seconds, and bytes of address space."""

    seconds: float
    memory: int


@dataclass(frozen=True)
class _Running:
    name: str
    process: BaseProcess
    answer: Connection[Any, Any]
    end: float


def sweep(
    library: str, names: Sequence[str], jobs: int, limits: Limits, target: Target = run_child
) -> Iterator[ModelRecord]:
    """The record of every model, as they are done.

    Args:
        library: of the models.
        names: of the models.
        jobs: processes at a time.
        limits: of each.
        target: what a process runs.
    """
    context = _context()
    waiting, running = list(reversed(names)), list[_Running]()
    with task(f"sweeping {library}", len(names)):
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    running.append(_started(context, library, waiting.pop(), limits, target))
                stage(", ".join(one.name for one in running))
                for one, record in _done(library, running, limits):
                    running.remove(one)
                    advance()
                    yield record
        finally:
            for one in running:
                one.process.kill()


def _context() -> Any:
    """Of processes that are forked from one that has loaded what they need."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([run_child.__module__])
    os.environ[IS_TEMPLATE] = "1"
    try:
        forkserver.ensure_running()
    finally:
        del os.environ[IS_TEMPLATE]
    return context


def _started(context: Any, library: str, name: str, limits: Limits, target: Target) -> _Running:
    answer, sent = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(library, name, limits.memory, sent), daemon=True)
    process.start()
    sent.close()
    return _Running(name, process, answer, time.monotonic() + limits.seconds)


def _done(library: str, running: Sequence[_Running], limits: Limits) -> Iterator[tuple[_Running, ModelRecord]]:
    """Those that have ended or whose time is over; waits for the first."""
    soonest = min(one.end for one in running)
    ready = wait([one.answer for one in running], timeout=max(0.0, soonest - time.monotonic()))
    for one in list(running):
        if one.answer in ready:
            yield one, _answer(library, one)
        elif time.monotonic() >= one.end:
            one.process.kill()
            one.process.join()
            yield one, ModelRecord(one.name, library, Outcome.LIMIT, reason=f"{limits.seconds:g} seconds")


def _answer(library: str, one: _Running) -> ModelRecord:
    try:
        record: ModelRecord = one.answer.recv()
    except EOFError:
        one.process.join()
        code = one.process.exitcode
        # That is how a system ends a process for want of memory.
        outcome = Outcome.LIMIT if code == -signal.SIGKILL else Outcome.FAULT
        return ModelRecord(one.name, library, outcome, reason=f"its process ended with {code}")
    one.process.join()
    return record


def left_to_do(path: Path, library: str, names: Sequence[str], again: Collection[Outcome] = ()) -> list[str]:
    """The models that a file has no record of; the file is made ready to be appended to.

    Args:
        path: of the records of an earlier run, if there was one.
        library: of the models.
        names: of all models.
        again: outcomes whose records are dropped.

    Raises:
        SweepFileError: the file holds something else.
    """
    if not path.exists():
        return list(names)
    kept = [
        record
        for record in read_records(path)
        if not (record.library == library and record.name in names and record.outcome in again)
    ]
    write_records(kept, path)
    done = {record.name for record in kept if record.library == library}
    return [name for name in names if name not in done]
