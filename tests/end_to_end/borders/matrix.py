"""Ways to train on several processes, alone and two at a time, against one; writes docs/benchmarks/parallel.json.

python -m tests.end_to_end.borders.matrix               # all pairs on 4 processes, and what 2 can be, over gloo
python -m tests.end_to_end.borders.matrix TP PP+FSDP2   # some of them, whose entries alone are written anew

Each cell prepares a small model of torchtitan's shape, wraps it, and makes five steps of SGD in fp32. Its losses, a
mean over its processes, are held against those of one process that runs the equations in eager. Where a cell fails, the
plain model is wrapped the same way and makes a step by torch alone; the words of both are in the record.
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
PROCESSES = (4, 2)


def cells(processes: int) -> list[str]:
    """Each way, and each pair of two; on two processes, one of a pair leaves the processes as they are."""
    pairs = itertools.combinations(WAYS, 2)
    return [*WAYS, *("+".join(pair) for pair in pairs if processes > 2 or pair[1] in ("checkpoint", "per layer"))]


def measured(cell: str, folder: Path, size: int) -> dict[str, object]:
    """What one cell gives: the largest difference of a loss, or the error of the first process that has one.

    With an error, also that of torch alone; "" if it has none.
    """
    found = _run(cell, folder / "ours", size, by_torch=False)
    if "error" in found and "PP" not in cell:
        found["torch alone"] = _run(cell, folder / "torchs", size, by_torch=True).get("error", "")
    return found


def _run(cell: str, folder: Path, size: int, by_torch: bool) -> dict[str, object]:
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(AssertionError):  # a process that hangs; another one knows why
        given = str(folder / f"store {cell}"), cell, str(folder / cell), by_torch
        run_ranks(matrix_ranks.train, size, *given, timeout=300)
    results = sorted(folder.glob(f"{cell}.*"), key=lambda path: path.stat().st_mtime_ns)
    found = [json.loads(path.read_text()) for path in results]
    wrong = [one for one in found if "error" in one]
    if wrong or len(found) < size:
        return {"holds": False, **(wrong[0] if wrong else {"error": "a process hangs"})}
    return {"holds": all(one["difference"] <= TOLERANCE for one in found), **found[0]}


def main() -> int:
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cells", nargs="*", default=cells(4), metavar="CELL")
    asked = parser.parse_args().cells
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {"kind": KIND}
    record |= {"torch": torch.__version__, "backend": "gloo", "tolerance": TOLERANCE}
    for size in PROCESSES:
        known = record.setdefault(f"{size} processes", {})
        with tempfile.TemporaryDirectory() as folder:
            for cell in (cell for cell in cells(size) if cell in asked):
                known[cell] = found = measured(cell, Path(folder), size)
                print(size, "processes:", cell, found, flush=True)
        record[f"{size} processes"] = {cell: known[cell] for cell in cells(size) if cell in known}
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
