"""The parts of parallel.md that the records of its matrices make."""

from __future__ import annotations

import json
from itertools import combinations_with_replacement

from benchmark_records import BENCHMARKS

from parts import part

RECORD = BENCHMARKS / "parallel.json"
CELLS = BENCHMARKS / "borders.json"


@part
def cells() -> str:
    """A row for each checkpoint and a column for each cut, over models and blocks. Below, the words of what fails."""
    record = json.loads(CELLS.read_text())
    split = {tuple(name.split(", ")): cell for name, cell in record["cells"].items()}
    checkpoints, cuts = (list(dict.fromkeys(name[place] for name in split)) for place in (2, 3))
    notes: dict[str, int] = {}
    lines = ["| | " + " | ".join(cuts) + " |", "|---" * (len(cuts) + 1) + "|"]
    for checkpoint in checkpoints:
        row = []
        for cut in cuts:
            found = [cell for name, cell in split.items() if name[2:] == (checkpoint, cut)]
            wrong = sorted({_words(cell) for cell in found if not cell["holds"]})
            numbers = " ".join(str(notes.setdefault(words, len(notes) + 1)) for words in wrong)
            row.append(f"{sum(cell['holds'] for cell in found)} of {len(found)} {numbers}".strip())
        lines.append(f"| {checkpoint} | " + " | ".join(row) + " |")
    lines += ["", *(f"{number}. {words}" for words, number in notes.items())]
    worst = max(cell["difference"] for cell in split.values() if cell["holds"])
    models, blocks = (len({name[place] for name in split}) for place in (0, 1))
    lines += [
        "",
        f"Each number counts {models} models, each with {blocks} partitions into blocks. The largest difference",
    ]
    lines += [
        f"of a loss or a gradient where it holds is {worst:.1e} (torch {record['torch']}, {record['layers']} layers)."
    ]
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def _words(cell: dict[str, object]) -> str:
    if "error" not in cell:
        return f"it differs by {cell['difference']:.1g}"
    alone = f"; torch alone: `{cell['torch alone']}`" if "torch alone" in cell else ""
    return f"`{cell['error']}`{alone}"


@part
def pairs() -> str:
    """A row and a column for each way; the diagonal is the way alone. Below, the words of what does not hold."""
    record = json.loads(RECORD.read_text())
    cells, of_two = record["4 processes"], record["2 processes"]
    ways = [cell for cell in cells if "+" not in cell]
    notes: dict[str, int] = {}
    found: dict[frozenset[str], str] = {}
    for pair in combinations_with_replacement(ways, 2):
        cell = cells["+".join(dict.fromkeys(pair))]
        words = "yes"
        if not cell["holds"]:
            words = f"no {notes.setdefault(_words(cell), len(notes) + 1)}"
        found[frozenset(pair)] = words
    lines = ["| | " + " | ".join(ways) + " |", "|---" * (len(ways) + 1) + "|"]
    lines += [f"| {way} | " + " | ".join(found[frozenset((way, other))] for other in ways) + " |" for way in ways]
    lines += ["", *(f"{number}. {words}" for words, number in notes.items())]
    worst = max(cell["difference"] for cell in (*cells.values(), *of_two.values()) if cell["holds"])
    lines += [
        "",
        f"On 2 processes, {sum(cell['holds'] for cell in of_two.values())} of {len(of_two)} hold: each way alone,",
    ]
    lines += [
        "and each with checkpoints and with layers compiled one by one. The largest difference of a loss where it"
    ]
    lines += [f"holds is {worst:.1e}; the losses are about 3.5."]
    return "\n".join(lines) + "\n"
