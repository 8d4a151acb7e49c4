"""Put each fault into a copy of the code and run the tests of its area.

    python -m tests.mutations [--only WORDS ..] [--again] [--record FILE]

A fault whose verdict is in the record is not run again, so that an interrupted run goes on where it ended; ``--again``
runs it anew. The tests that caught something are run on the code as it is at the end, where they have to pass. Exits
with 1 if a fault survived.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tabulate import tabulate
from tqdm import tqdm

from tests.mutations.faults import ROOT, Fault, all_faults
from tests.mutations.run import WITHOUT, Verdict, append, judge, judge_without_fault, load_libraries, read_record

RECORD = ROOT / "docs" / "benchmarks" / "mutations.jsonl"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", metavar="WORDS", help="faults that have these words in their names or files"
    )
    parser.add_argument("--again", action="store_true", help="run those in the record as well")
    parser.add_argument("--record", type=Path, default=RECORD, help="JSON lines, one for each fault")
    options = parser.parse_args()
    chosen = [fault for fault in all_faults() if _is_meant(fault, options.only)]
    known = {} if options.again else read_record(options.record)
    for fault in chosen:
        fault.applied((ROOT / fault.file).read_text(encoding="utf-8"))  # all of them before the first takes minutes
    due = [fault for fault in chosen if fault.name not in known]
    if due:
        load_libraries()
    with tqdm(due, unit="fault") as bar:
        for fault in bar:
            bar.set_description(fault.name)
            _keep(judge(fault), known, options.record)
    verdicts = [known[fault.name] for fault in chosen]
    if due or WITHOUT not in known:
        load_libraries()
        print("running the tests that caught something on the code as it is", file=sys.stderr)
        _keep(judge_without_fault(verdicts), known, options.record)
    return _report(verdicts, known[WITHOUT])


def _is_meant(fault: Fault, words: list[str] | None) -> bool:
    return words is None or any(word in fault.name or word in fault.file for word in words)


def _keep(verdict: Verdict, known: dict[str, Verdict], record: Path) -> None:
    known[verdict.name] = verdict
    append(verdict, record)


def _report(verdicts: list[Verdict], without: Verdict) -> int:
    rows = [(one.name, one.file, one.outcome, one.by.rpartition("::")[2], one.seconds) for one in verdicts]
    print(tabulate(rows, headers=["fault", "file", "outcome", "by", "s"]))
    caught = sum(one.outcome == "caught" for one in verdicts)
    print(f"{caught} of {len(verdicts)} caught; the same tests without a fault: {without.outcome} {without.by}")
    return int(caught < len(verdicts) or without.outcome != "passed")


if __name__ == "__main__":
    sys.exit(main())
