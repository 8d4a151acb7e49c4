"""Steps of a whole model under this build over those under another one, in pairs.

    git worktree add --detach /tmp/before COMMIT
    python -m kernels.benchmarks.builds /tmp/before --workload decode --json decode.json

Two builds of a package cannot be imported by one process, so each has a worker, and the workers take turns step by
step. Where a process happens to lie in memory changes its speed by a percent or two, for as long as it lives: a pair of
workers of ONE build differs by that much. Workers are therefore started anew several times, the ratio of each start is
the median of its pairs, and the interval is over starts, not over pairs. With the same folder as the other build the
command shows what it can tell apart.

Besides, one step of each build is counted: operators of torch, calls by the Python interpreter. Counts have no noise,
and are what is left to compare where two builds differ by less than a machine can tell.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from attnres_compile.report.records import record_head

from .build_steps import WORKLOADS

KIND, SCHEMA_VERSION = "builds", 1
THIS_BUILD = Path(__file__).resolve().parents[2]
CLOCKS = ("processor", "wall")
BURN_IN = 3
KEPT_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 36), "MALLOC_TOP_PAD_": str(1 << 28)}
"""For glibc: a worker keeps the memory that it has had. Else each step of a large model is given hundreds of MB of new
pages, whose zeroing takes a fifth of its time, one more, one less."""


class Worker:
    """A process that makes steps of one build when it is asked to."""

    def __init__(self, build: Path, words: Sequence[str]) -> None:
        path = os.pathsep.join(str(build / folder) for folder in (".", "passes", "kernels"))
        self.build = build
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("build_steps.py")), *words],
            env=os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"} | KEPT_MEMORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait_until_warm(self) -> None:
        """Returns when it has compiled its model; ends the program if it imported another build or ended."""
        for line in self._output():
            word, _, rest = line.strip().partition(" ")
            if word == "package" and not Path(rest).is_relative_to(self.build):
                self.end()
                raise SystemExit(f"the worker of {self.build} imported {rest}: is that the root of a checkout?")
            if word == "ready":
                return
        raise SystemExit(f"the worker of {self.build} ended before it was ready; its error is above")

    def _output(self) -> Any:
        return self.process.stdout

    def steps(self, count: int) -> list[tuple[float, float]]:
        """Seconds of processor time and of the clock of so many steps."""
        return [(processor, wall) for processor, wall in self._answer(str(count))]

    def counts(self) -> dict[str, int]:
        """What one step does, counted."""
        return dict(self._answer("count"))

    def _answer(self, line: str) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        answer = self._output().readline()
        if not answer:
            raise SystemExit("a worker ended between two steps; its error is above")
        return json.loads(answer)

    def end(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()


Samples = list[tuple[float, float]]


def one_start(builds: Sequence[Path], words: Sequence[str], pairs: int) -> tuple[list[Samples], list[dict[str, int]]]:
    """The samples of one start, for each build one step a pair, and the counts. Who goes first changes with each pair.

    Args:
        builds: roots of their checkouts.
        words: of the worker's command line.
        pairs: of steps that are kept.
    """
    workers = [Worker(build, words) for build in builds]
    found: list[Samples] = [[] for _ in builds]
    try:
        for worker in workers:
            worker.wait_until_warm()
        for turn in range(BURN_IN + pairs):
            order = range(len(workers)) if turn % 2 else reversed(range(len(workers)))
            for index in order:
                sample = workers[index].steps(1)
                found[index] += sample if turn >= BURN_IN else []
        return found, [worker.counts() for worker in workers]
    finally:
        for worker in workers:
            worker.end()


def ratio_of_starts(starts: Sequence[dict[str, Any]], clock: str) -> tuple[float, float, float]:
    """This build over the other: the median over starts of the median over pairs, and its 95 % interval.

    Args:
        starts: ``{"this": samples, "other": samples}`` each.
        clock: one of CLOCKS.
    """
    which = CLOCKS.index(clock)
    ratios = [
        statistics.median(a[which] / b[which] for a, b in zip(start["this"], start["other"], strict=True))
        for start in starts
    ]
    generator = random.Random(0)
    drawn = sorted(statistics.median(generator.choices(ratios, k=len(ratios))) for _ in range(4000))
    return statistics.median(ratios), drawn[100], drawn[-101]


def main(words: Sequence[str]) -> None:
    """Measure, print what was found, and keep the samples.

    Args:
        words: of the command line.
    """
    parser = argparse.ArgumentParser(prog="python -m kernels.benchmarks.builds", description=__doc__)
    parser.add_argument("other", type=Path, metavar="FOLDER", help="the checkout of the other build")
    parser.add_argument("--workload", choices=WORKLOADS, default="decode")
    parser.add_argument("--model", default="gpt2", help="as `attnres inspect` takes it (default gpt2)")
    parser.add_argument("--tokens", type=int, default=128, help="that are attended to, or trained on (default 128)")
    parser.add_argument("--starts", type=int, default=8, help="of a pair of workers (default 8)")
    parser.add_argument("--pairs", type=int, default=60, help="of steps in each start (default 60)")
    parser.add_argument("--threads", type=int, default=1, help="of each worker (default 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the samples, start by start")
    given = parser.parse_args(words)
    builds = (THIS_BUILD, given.other.resolve())
    worker = [given.workload, given.model, str(given.tokens), str(given.threads)]
    starts: list[dict[str, Any]] = []
    record = record_head(KIND, SCHEMA_VERSION, ["builds", *words], "cpu")
    record |= {"workload": given.workload, "model": given.model, "tokens": given.tokens, "starts": starts}
    for start in tqdm(range(given.starts), desc=f"{given.workload} of {given.model}", disable=None):
        # The side of a build changes too: the worker that starts second may lie otherwise in memory.
        swapped = start % 2 == 1
        samples, counted = one_start(builds[::-1] if swapped else builds, worker, given.pairs)
        sides = ("other", "this") if swapped else ("this", "other")
        starts.append(dict(zip(sides, samples, strict=True)) | {"counts": dict(zip(sides, counted, strict=True))})
        if given.json is not None:
            given.json.write_text(json.dumps(record, indent=1) + "\n")
    for which, clock in enumerate(CLOCKS):
        middle, low, high = ratio_of_starts(starts, clock)
        of_each = [statistics.median(s[which] for start in starts for s in start[side]) for side in ("this", "other")]
        print(
            f"{given.workload} of {given.model}, {clock}: this build {1e3 * of_each[0]:.2f} ms, the other "
            f"{1e3 * of_each[1]:.2f} ms; ratio {middle:.4f} [{low:.4f}, {high:.4f}], 95 % over {given.starts} starts "
            f"of {given.pairs} pairs"
        )
    this, other = (starts[-1]["counts"][side] for side in ("this", "other"))
    print("counted in a step: " + ", ".join(f"{name} {this[name]} over {other[name]}" for name in this))


if __name__ == "__main__":
    main(sys.argv[1:])
