"""``python -m kernels.benchmarks.gpu``."""

from __future__ import annotations

import argparse
import functools
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from attnres_compile.cli.command import FAILED, PASSED, CommandParser, run_command
from attnres_compile.cli.output import check_writable
from attnres_compile.report.comparison import MeasureError

from .budget import Budget, WallClock
from .plan import CLASSES, MORE_PEERS, PEERS, Cell, make_plan
from .processes import Hand, Worker
from .record import RunRecord, source_digest
from .run import Run

NAME = "python -m kernels.benchmarks.gpu"
ROOT = Path(__file__).resolve().parents[3]
MOST_LANES = 12
DESCRIBE_SECONDS = 90.0
"""In which a worker has to say what the GPU is."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0 done, 1 an error, or a cell that is wrong, failed or hung."""
    return run_command(build_parser(), sys.argv[1:] if argv is None else argv, NAME)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = CommandParser(prog=NAME, description="All that is to be known of a GPU, by worth, within a budget.")
    parser.add_argument("--minutes", type=float, default=12, help="of the whole run, which it keeps (default 12)")
    parser.add_argument(
        "--record",
        metavar="FILE",
        default="gpu-run.json",
        help="kept after every cell, and resumed (default %(default)s)",
    )
    parser.add_argument(
        "--wheels", metavar="DIR", help="wheels of other people's kernels, for a machine without network"
    )
    parser.add_argument("--only", nargs="+", choices=CLASSES, help="cells of these classes only")
    parser.add_argument(
        "--lanes", type=int, help=f"workers while nothing is timed (default cores - 1, at most {MOST_LANES})"
    )
    parser.add_argument("--split", metavar="DIR", help="at the end write records of kernels and models there")
    parser.add_argument("--log", metavar="FILE", help="what workers print (default a file beside the record)")
    parser.add_argument("--plan", action="store_true", help="list the cells with their estimates, and measure nothing")
    parser.add_argument(
        "--rehearse", action="store_true", help="without a GPU: tiny, interpreted, by a made clock, with faults"
    )
    parser.add_argument("--traceback", action="store_true", help="show the whole traceback of an error")
    parser.add_argument("--quiet", action="store_true", help="no line for each cell, the summary alone")
    parser.set_defaults(run=_run, verb=NAME)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    if arguments.minutes <= 0:
        raise MeasureError(f"minutes is {arguments.minutes:g}: pass more than 0")
    groups = tuple(arguments.only or CLASSES)
    if arguments.plan:
        print("\n".join(f"{cell.group:<11}{cell.seconds:4.0f} s  {cell.name}" for cell in make_plan(groups)))
        return PASSED
    before = signal.signal(signal.SIGTERM, _interrupted)  # so that workers are ended with us
    try:
        with tempfile.TemporaryDirectory() as folder:
            return (_rehearse if arguments.rehearse else _measure)(arguments, groups, Path(folder))
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupted(_signal: int, _frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def _measure(arguments: argparse.Namespace, groups: Sequence[str], folder: Path) -> int:
    """On a GPU, by the clock on the wall, which runs from here on."""
    from .surroundings import make_surroundings

    budget = Budget(WallClock(), 60 * arguments.minutes)
    check_writable(arguments.record)
    log = Path(arguments.log or f"{arguments.record.removesuffix('.json')}.log")
    around = make_surroundings(ROOT, folder, arguments.wheels)
    cores = os.cpu_count() or 1
    lanes = arguments.lanes or max(1, min(MOST_LANES, cores - 1))

    def start(_cell: Cell | None, beside: int) -> Hand:
        return Worker(ROOT, around.environment(beside, cores), log)

    record = RunRecord(arguments.record, _described(budget, start), source_digest(ROOT), arguments.command)
    say = _Lines(arguments.quiet)
    run = Run(budget, record, start, say)
    for note in filter(None, [record.note, *around.notes]):
        run.log(note)
    peers = around.peers()
    run.log(f"other people's kernels: {', '.join(peers) or 'none is installed, so that their cells are left out'}")
    if not peers:
        groups = [group for group in groups if group not in (PEERS, MORE_PEERS)]
    return _finish(arguments, run, make_plan(groups, record.answered()), lanes)


def _described(budget: Budget, start: Any) -> dict[str, Any]:
    """What a worker says of the GPU. Raises MeasureError if there is none, or if it does not answer."""
    worker: Hand = start(None, 1)
    worker.begin({"do": "describe", "device": "cuda"})
    try:
        while (answer := worker.answer()) is None and budget.spent < DESCRIBE_SECONDS:
            budget.clock.sleep(0.05)
    finally:
        worker.kill()
    if answer is None or "environment" not in answer:
        reason = "nothing was answered in time" if answer is None else answer["reason"]
        raise MeasureError(f"there is no GPU to measure ({reason}): run it where torch sees one, or with --rehearse")
    environment: dict[str, Any] = answer["environment"]
    return environment


def _rehearse(arguments: argparse.Namespace, groups: Sequence[str], folder: Path) -> int:
    """Without a GPU; keeps nothing."""
    from . import rehearsal
    from .surroundings import make_surroundings

    around = make_surroundings(ROOT, folder, arguments.wheels)
    environment = {**around.environment(1, 1), "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    log = Path(arguments.log) if arguments.log else folder / "workers.log"
    stage = rehearsal.Stage(rehearsal.MadeClock(), lambda: Worker(ROOT, environment, log))
    described = {"device": rehearsal.DEVICE, "date": "-", "versions": dict.fromkeys(("torch", "triton"), "-")}
    record = RunRecord(None, described, "", arguments.command)
    budget = Budget(stage.clock, 60 * arguments.minutes)
    run = Run(budget, record, lambda _cell, _beside: rehearsal.RehearsedWorker(stage), _Lines(arguments.quiet))
    plan = make_plan(groups)
    records = functools.partial(rehearsal.pretended, record, plan)
    try:
        return _finish(arguments, run, rehearsal.rehearsed(plan), arguments.lanes or MOST_LANES, records)
    finally:
        stage.close()


def _finish(arguments: argparse.Namespace, run: Run, plan: list[Cell], lanes: int, records: Any = None) -> int:
    """Go through the plan and print the summary, also of a run that is interrupted."""
    from .summary import has_faults, split, summary

    try:
        run.go(plan, lanes)
    except KeyboardInterrupt:
        run.log("interrupted")
    spent = run.budget.spent, run.budget.seconds
    found = (records or run.record.records)()
    print(f"\n{summary(run.record, plan, spent, found)}", flush=True)
    if arguments.split and records is None:
        print("written: " + ", ".join(split(run.record, arguments.split)))
    return FAILED if has_faults(run.record) else PASSED


class _Lines:
    """Prints each line at once."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet

    def __call__(self, text: str) -> None:
        if not self.quiet:
            print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
