"""Judge generated models: compare each with its form written by hand, or see it declined for the right reason.

    python -m tests.generated [--models 2000] [--seed 0] [--jobs 1] [--record FILE] [--only KEY ..] [--again]

A model whose outcome is in the record is not judged again, so that an interrupted run goes on where it ended; one that
was wrong is, after a mend, with ``--wrong``. Exits with 1 if a model is not what its description says.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tabulate import tabulate
from tqdm import tqdm

from tests.generated.run import Outcome, append, drawn, judge_all, key_of, read_record

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--record", type=Path, default=ROOT / "build" / "generated.jsonl", help="JSON lines")
    parser.add_argument("--summary", type=Path, help="a file for what docs/tests.md says of them")
    parser.add_argument("--only", nargs="+", metavar="KEY", help="models of these keys, whatever is in the record")
    parser.add_argument("--show", action="store_true", help="judge none, and say what is in the record")
    parser.add_argument("--wrong", action="store_true", help="judge those anew that were wrong")
    parser.add_argument("--again", action="store_true", help="judge all anew")
    options = parser.parse_args()
    chosen = drawn(options.models, options.seed)
    if options.only:
        chosen = [one for one in chosen if key_of(one) in options.only]
    known = {} if options.again or options.only else read_record(options.record)
    if options.wrong:
        known = {key: one for key, one in known.items() if not one.message}
    due = [one for one in chosen if key_of(one) not in known]
    for outcome in tqdm(judge_all(due, options.jobs) if not options.show else (), total=len(due), unit="model"):
        known[outcome.key] = outcome
        append(outcome, options.record)
        if outcome.message:
            tqdm.write(f"{outcome.key} {outcome.outcome}: {outcome.message}")
    outcomes = [known[key_of(one)] for one in chosen if key_of(one) in known]
    if options.summary is not None:
        options.summary.write_text(json.dumps(_summary(outcomes, options), indent=1) + "\n", encoding="utf-8")
    return _report(outcomes)


def _counted(outcomes: list[Outcome]) -> list[tuple[str, str, int]]:
    counts = Counter((one.description["near_miss"] or one.description["topology"], one.outcome) for one in outcomes)
    order = Counter({key: count for key, count in counts.items() if key[1] != "declined"})
    return [(*key, count) for key, count in (*order.most_common(), *sorted((counts - order).items()))]


def _summary(outcomes: list[Outcome], options: argparse.Namespace) -> dict[str, Any]:
    return {
        "kind": "generated models",
        "seed": options.seed,
        "asked": options.models,
        "torch": version("torch").partition("+")[0],
        "wrong": sum(bool(one.message) for one in outcomes),
        "models": _counted(outcomes),
    }


def _report(outcomes: list[Outcome]) -> int:
    print(tabulate(_counted(outcomes), ["model", "outcome", "models"]))
    wrong = sum(bool(one.message) for one in outcomes)
    print(f"{len(outcomes) - wrong} of {len(outcomes)} as described")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
