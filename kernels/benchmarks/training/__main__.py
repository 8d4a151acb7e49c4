"""``python -m kernels.benchmarks.training``."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import attnres_compile
from attnres_compile.cli.command import PASSED, CommandParser, run_command
from attnres_compile.progress import stage, task
from attnres_compile.report.records import describe_environment
from attnres_compile.report.table import TRAINING_FLOPS

from .dynamics import recorded
from .grid import BLOCKS, ROWS, SEEDS, SIZES, Run, Size
from .model import Trained, new_model
from .order import pretraining, quality_runs, retrofit_runs
from .record import RECORD, ROOT, Record
from .retrofit import retrofit
from .text import Text, text, validation_batches
from .training import DivergedError, train

NAME = "python -m kernels.benchmarks.training"
CHECKPOINTS = ROOT / "build" / "training"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    return run_command(build_parser(), sys.argv[1:] if argv is None else argv, NAME)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = CommandParser(prog=NAME, description="Models trained with and without AttnRes on real text.")
    parser.add_argument(
        "what",
        choices=("quality", "retrofit", "plan"),
        help="quality: rows against the plain model; retrofit: trained plain models go on; plan: what is left of both",
    )
    parser.add_argument("--record", metavar="FILE", default=str(RECORD), help="resumed (default %(default)s)")
    parser.add_argument("--minutes", type=float, help="begin no run after this time; the next command goes on")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, help="default: those that are meant for the device")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help="of `quality`")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1, help="of torch (default 1)")
    parser.add_argument(
        "--inner", default="eager", choices=("inductor", "aot_eager", "eager"), help="behind both backends"
    )
    parser.add_argument(
        "--checkpoints", metavar="DIR", default=str(CHECKPOINTS), help="of plain models, for `retrofit`"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar, which only a terminal shows anyway")
    parser.add_argument("--traceback", action="store_true", help="show the whole traceback of an error")
    parser.set_defaults(run=run, verb=NAME)
    return parser


def run(given: argparse.Namespace) -> int:
    """Do what is missing, run by run. given: the command line."""
    torch.set_num_threads(given.threads)
    stage("reading the text")
    Command(given).run()
    return PASSED


class Command:
    """One command line at work."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.began = given, time.monotonic()
        self.text: Text = text()
        self.record = Record(Path(given.record), self.text.digest)
        names = given.sizes or [name for name, size in SIZES.items() if size.on == given.device]
        self.sizes: list[Size] = [SIZES[name] for name in names]
        self.trained: Trained | None = None
        self.flops: dict[tuple[str, str], float | None] = {}

    def runs(self, table: str) -> list[Run]:
        """All runs of a table that can be named by now."""
        if table == "retrofit":
            return list(retrofit_runs(self.sizes, self.record.of))
        return list(quality_runs(self.sizes, [ROWS[name] for name in self.given.rows], self.record.of))

    def missing(self, table: str) -> list[Run]:
        """Those that have not been made."""
        return [one for one in self.runs(table) if self.record.of(one) is None]

    def run(self) -> None:
        """Make runs until none is missing or the time is over."""
        if self.given.what == "plan":
            for table in ("quality", "retrofit"):
                left = self.missing(table)
                print(f"{table}: {len(self.runs(table)) - len(left)} made, {len(left)} that can be named are left")
                print("".join(f"  {one.key}\n" for one in left), end="")
            return
        with task(f"{self.given.what} runs"):
            while (left := self.missing(self.given.what)) and not self.is_over():
                self.make(left[0])
                print(f"{left[0].key}: {self.record.lines[left[0].key]['validation']}", flush=True)

    def is_over(self) -> bool:
        """Whether the time that was given has passed."""
        limit = self.given.minutes
        return limit is not None and time.monotonic() - self.began > 60 * limit

    def make(self, one: Run) -> None:
        """Make a run and keep it."""
        began = time.monotonic()
        try:
            result = self.retrofit(one) if one.table == "retrofit" else self.quality(one)
        except DivergedError as error:
            result = {"validation": None, "diverged": str(error)}
        environment = describe_environment(self.given.device) | {"inner": self.given.inner}
        result["whole_seconds"] = round(time.monotonic() - began, 2)
        words = f"{NAME} {self.given.what} --inner {self.given.inner} --threads {self.given.threads}"
        self.record.add(one, result, environment, words)

    def quality(self, one: Run) -> dict[str, Any]:
        """A run of the first table."""
        trained = self.compiled(one)
        trained.begin(one.seed)
        result = train(trained, one, self.text)
        result["flops"] = self.counted(one)
        if one.options is None:
            self.keep(one, trained)
        if ROWS[one.row].is_recorded and one.seed == SEEDS[1]:
            batches = validation_batches(self.text.validation, one.size.batch, one.size.length, 4)
            result["dynamics"] = recorded(trained, batches)
        return result

    def retrofit(self, one: Run) -> dict[str, Any]:
        """A run of the second table, from a plain model of the first, which is trained again if it was not kept."""
        before = pretraining(one, self.record.of)
        path = self.checkpoint(before)
        if not path.exists():
            trained = self.compiled(before)
            trained.begin(before.seed)
            train(trained, before, self.text)
            self.keep(before, trained)
        self.trained = None
        state: dict[str, Tensor] = torch.load(path, weights_only=True)
        return retrofit(one, state, self.text, self.given.inner, self.given.device)

    def compiled(self, one: Run) -> Trained:
        """The model of a run, that of the run before if it is the same."""
        options = None if one.options is None else dict(one.options)
        if self.trained is None or (self.trained.size, self.trained.options) != (one.size, options):
            self.trained = None
            self.trained = Trained(one.size, options, self.given.inner, self.given.device)
        return self.trained

    def checkpoint(self, one: Run) -> Path:
        """Where the weights at the end of a plain run are kept on this machine."""
        told = json.dumps([one.settings(self.text.digest), self.given.inner, self.given.device], sort_keys=True)
        return Path(self.given.checkpoints) / f"{hashlib.sha256(told.encode()).hexdigest()[:16]}.pt"

    def keep(self, one: Run, trained: Trained) -> None:
        """Keep the weights at the end of a plain run."""
        path = self.checkpoint(one)
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {name: value.cpu() for name, value in trained.plain_state().items()}
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def counted(self, one: Run) -> float | None:
        """FLOPs of a training step, forward and backward, counted on the graphs without data."""
        named = one.size.name, json.dumps(one.options)
        if named not in self.flops:
            stage("counting FLOPs")
            with torch.device("meta"):
                model = new_model(one.size, 0)
                ids = torch.zeros(one.size.batch, one.size.length, dtype=torch.long)
            options = dict(one.options or ROWS[BLOCKS].options or {})
            report = attnres_compile.overhead(model, kwargs={"input_ids": ids, "labels": ids}, **options)
            row = next(row for row in report.rows if row.metric == TRAINING_FLOPS)
            self.flops[named] = row.plain if one.options is None else row.attnres
        return self.flops[named]


if __name__ == "__main__":
    sys.exit(main())
