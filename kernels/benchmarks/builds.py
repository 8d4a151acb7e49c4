"""Steps of a whole model under this build over those under another one, in pairs.

    git worktree add --detach /tmp/before COMMIT
    python -m kernels.benchmarks.builds /tmp/before --workload decode --json decode.json

Two builds of a package cannot be imported by one process, so each has a worker, and the workers take turns step by
step. Where a process happens to lie in memory changes its speed by a percent or two, for as long as it lives: a pair of
workers of ONE build differs by that much. Workers are therefore started anew several times, the ratio of each start is
the median of its pairs, and the interval is over starts, not over pairs. With the same folder as the other build the
command shows what it can tell apart.
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


class Worker:
    """A process that makes steps of one build when it is asked to."""

    def __init__(self, build: Path, words: Sequence[str]) -> None:
        path = os.pathsep.join(str(build / folder) for folder in (".", "passes", "kernels"))
        self.build = build
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("build_steps.py")), *words],
            env=os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
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
        assert self.process.stdin is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        line = self._output().readline()
        if not line:
            raise SystemExit("a worker ended between two steps; its error is above")
        return [(processor, wall) for processor, wall in json.loads(line)]

    def end(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()


def paired_samples(builds: Sequence[Path], words: Sequence[str], pairs: int) -> list[list[tuple[float, float]]]:
    """The samples of one start: for each build, one step a pair. Who goes first changes from pair to pair.

    Args:
        builds: roots of their checkouts.
        words: of the worker's command line.
        pairs: of steps that are kept.
    """
    workers = [Worker(build, words) for build in builds]
    found: list[list[tuple[float, float]]] = [[] for _ in builds]
    try:
        for worker in workers:
            worker.wait_until_warm()
        for turn in range(BURN_IN + pairs):
            order = range(len(workers)) if turn % 2 else reversed(range(len(workers)))
            for index in order:
                sample = workers[index].steps(1)
                found[index] += sample if turn >= BURN_IN else []
    finally:
        for worker in workers:
            worker.end()
    return found


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
        samples = paired_samples(builds[::-1] if swapped else builds, worker, given.pairs)
        this, other = samples[::-1] if swapped else samples
        starts.append({"this": this, "other": other})
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


if __name__ == "__main__":
    main(sys.argv[1:])
