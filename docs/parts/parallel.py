"""The part of parallel.md that the record of its matrix makes."""

from __future__ import annotations

import json
from itertools import combinations_with_replacement

from benchmark_records import BENCHMARKS

from parts import part

RECORD = BENCHMARKS / "parallel.json"


@part
def pairs() -> str:
    """A row and a column for each way; the diagonal is the way alone. Below, the words of what does not hold."""
    record = json.loads(RECORD.read_text())
    cells = record["cells"]
    ways = [cell for cell in cells if "+" not in cell]
    notes: dict[str, int] = {}
    found: dict[frozenset[str], str] = {}
    for pair in combinations_with_replacement(ways, 2):
        cell = cells["+".join(dict.fromkeys(pair))]
        words = "yes"
        if not cell["holds"]:
            error = cell.get("error", f"losses differ by {cell.get('difference', 0):.1g}")
            words = f"no {notes.setdefault(error, len(notes) + 1)}"
        found[frozenset(pair)] = words
    lines = ["| | " + " | ".join(ways) + " |", "|---" * (len(ways) + 1) + "|"]
    lines += [f"| {way} | " + " | ".join(found[frozenset((way, other))] for other in ways) + " |" for way in ways]
    lines += ["", *(f"{number}. `{error}`" for error, number in notes.items())]
    worst = max(cell["difference"] for cell in cells.values() if cell["holds"])
    lines += ["", f"The largest difference of a loss where it holds is {worst:.1e}; the losses are about 3.5."]
    return "\n".join(lines) + "\n"
