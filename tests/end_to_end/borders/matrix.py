"""Ways to train on several processes, alone and two at a time, against one; writes docs/benchmarks/parallel.json.

python -m tests.end_to_end.borders.matrix               # all pairs on 4 processes of this machine, over gloo
python -m tests.end_to_end.borders.matrix TP PP+FSDP2   # some of them, whose entries alone are written anew

Each cell prepares a small model of torchtitan's shape, wraps it, and makes five steps of SGD in fp32. Its losses, a
mean over its processes, are held against those of one process that runs the equations in eager. What torch itself does
not compose is in the record with torch's own words.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
from pathlib import Path

import torch

from tests.end_to_end.borders import matrix_ranks
from tests.processes import run_ranks

RECORD = Path(__file__).resolve().parents[3] / "docs" / "benchmarks" / "parallel.json"
KIND = "ways to train on several processes"
WAYS = ("FSDP2", "HSDP", "DDP", "TP", "SP", "PP", "checkpoint", "per layer")
TOLERANCE = 1e-5
PROCESSES = 4


def cells() -> list[str]:
    """Each way, and each pair of two."""
    return [*WAYS, *map("+".join, itertools.combinations(WAYS, 2))]


def measured(cell: str, folder: Path, size: int = PROCESSES) -> dict[str, object]:
    """What one cell gives: the largest difference of a loss, or the error of the first process that has one."""
    with contextlib.suppress(AssertionError):  # a process that hangs; another one knows why
        run_ranks(matrix_ranks.train, size, str(folder / f"store {cell}"), cell, str(folder / cell), timeout=300)
    results = sorted(folder.glob(f"{cell}.*"), key=lambda path: path.stat().st_mtime_ns)
    found = [json.loads(path.read_text()) for path in results]
    wrong = [one for one in found if "error" in one]
    if wrong or len(found) < size:
        return {"holds": False, **(wrong[0] if wrong else {"error": "a process hangs"})}
    return {"holds": all(one["difference"] <= TOLERANCE for one in found), **found[0]}


def main() -> int:
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cells", nargs="*", default=cells(), metavar="CELL")
    asked = parser.parse_args().cells
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {"kind": KIND, "cells": {}}
    record |= {"torch": torch.__version__, "processes": PROCESSES, "backend": "gloo", "tolerance": TOLERANCE}
    with tempfile.TemporaryDirectory() as folder:
        for cell in asked:
            record["cells"][cell] = found = measured(cell, Path(folder))
            print(cell, found, flush=True)
    record["cells"] = {cell: record["cells"][cell] for cell in cells() if cell in record["cells"]}
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
