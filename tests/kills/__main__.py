"""Kill training processes at random moments, resume them, and compare them with the runs that were not killed.

    python -m tests.kills [--times 20] [--ways "plain loop" Trainer ..] [--inner eager] [--record FILE]

What the record says of other ways stays there.

Every way of training is killed so many times by SIGKILL: in steps, in saves, while starting. No process may fail to
resume, lose more steps than one interval of checkpoints or a checkpoint that was saved, or differ in any bit of a loss,
and at the end of a tensor, from the run that was not killed. Exits with 1 if one did.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tabulate import tabulate
from tqdm import tqdm

from tests.kills.trial import IN, Trial, tried
from tests.kills.ways import WAYS, Task

RECORD = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "kills.json"
PACKAGES = ("torch", "transformers", "accelerate", "pytorch-lightning")
OF_USERS = [name for name in WAYS if not name.startswith("toy")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20, help="kills of each way")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=OF_USERS, metavar="WAY")
    parser.add_argument("--steps", type=int, default=30, help="of a run, a multiple of --every")
    parser.add_argument("--every", type=int, default=3, help="steps from checkpoint to checkpoint")
    parser.add_argument("--inner", default="eager", choices=["eager", "aot_eager", "inductor"])
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--record", type=Path, help=f"for what docs/recipes.md says: {RECORD.name} of its benchmarks")
    options = parser.parse_args()
    trials = []
    for way in options.ways:
        with tqdm(total=options.times, desc=way, unit="kill") as bar:
            task = Task(way, "", options.steps, options.every, options.inner)
            trials.append(tried(task, options.times, options.seed, lambda one: bar.update(one.times - bar.n)))
        if options.record is not None:
            _keep(trials[-1], options)
    return _report(trials)


def _keep(trial: Trial, options: argparse.Namespace) -> None:
    path: Path = options.record
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"kind": "killed training", "ways": {}}
    setting = {name: getattr(options, name) for name in ("steps", "inner", "seed")}
    versions = {name: version(name).partition("+")[0] for name in PACKAGES}
    record["ways"][trial.way] = {**asdict(trial), **setting, "device": "cpu", "versions": versions}
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _report(trials: list[Trial]) -> int:
    places = list(dict.fromkeys(IN.values()))
    rows = [
        (one.way, *(one.kills[place] for place in places), one.most_lost, one.repeated, one.ends, len(one.faults))
        for one in trials
    ]
    print(tabulate(rows, ["way", *places, "most steps lost", "steps repeated", "runs to the end", "faults"]))
    for trial in trials:
        print("".join(f"{trial.way}: {fault}\n" for fault in trial.faults), end="")
    return int(any(trial.faults for trial in trials))


if __name__ == "__main__":
    sys.exit(main())
