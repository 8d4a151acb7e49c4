"""The parts of tests.md: the records of the faults, of the generated models, and of the kills."""

import json
from collections import Counter
from pathlib import Path

from parts import part
from parts.layout import table

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@part
def faults() -> str:
    verdicts = [json.loads(line) for line in (BENCHMARKS / "mutations.jsonl").read_text().splitlines()]
    latest = {one["name"]: one for one in verdicts}
    without = latest.pop("", None)
    counts = Counter(one["outcome"] for one in latest.values())
    rows = [[one["name"], one["file"], one["outcome"], _test(one["by"])] for one in latest.values()]
    summary = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    ran = "have not been run together" if without is None else without["outcome"]
    as_it_is = f"On the code as it is, the tests that caught them {ran}."
    rows_as_text = table(rows, ["fault", "file", "outcome", "first test that failed"])
    return f"{len(rows)} faults: {summary}. {as_it_is}\n\n{rows_as_text}"


def _test(by: str) -> str:
    return by.rpartition("::")[2].partition("[")[0]


@part
def models() -> str:
    record = json.loads((BENCHMARKS / "generated.json").read_text())
    rows = [[what, outcome, count] for what, outcome, count in record["models"]]
    judged = sum(count for *_, count in record["models"])
    text = (
        f"Of {record['asked']} models of seed {record['seed']}, {judged} were judged, on the CPU under torch "
        f"{record['torch']}: {judged - record['wrong']} are what their descriptions say"
    )
    rest = f", {record['wrong']} are not." if record["wrong"] else "."
    return f"{text}{rest}\n\n{table(rows, ['model', 'outcome', 'models'])}"


@part
def kills() -> str:
    record = json.loads((BENCHMARKS / "kills.json").read_text())["ways"]
    places = list(next(iter(record.values()))["kills"])
    rows = [
        [way, *one["kills"].values(), one["every"], one["most_lost"], one["repeated"], one["ends"], len(one["faults"])]
        for way, one in record.items()
    ]
    heads = ["way", *places, "interval", "most steps lost", "steps compared", "runs to the end", "faults"]
    (one, *_) = record.values()
    said = f"{one['steps']} steps a run, dropout on, on the CPU under torch {one['versions']['torch']}."
    return f"{said}\n\n{table(rows, heads)}"
