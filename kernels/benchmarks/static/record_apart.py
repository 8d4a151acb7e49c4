"""The recording in a process of its own: it stands in the way of every launch, and packages are imported for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attnres_compile.cli.output import read_record
from attnres_compile.report.comparison import MeasureError

from ..gpu.surroundings import make_surroundings

ROOT = Path(__file__).resolve().parents[3]


def recorded_apart(wheels: str | None, command: Sequence[str] = (), earlier: str | None = None) -> dict[str, Any]:
    """The record of a fresh process that finds the packages of ``wheels``.

    Args:
        wheels: a folder of wheels of peers and what they need, or None.
        command: the words of the command line, for the record.
        earlier: a file with a record, whose compiled kernels are taken over.

    Raises:
        MeasureError: the process ended without a record.
    """
    with tempfile.TemporaryDirectory() as folder:
        around = make_surroundings(ROOT, Path(folder) / "site", wheels)
        path = Path(folder) / "record.json"
        environment = around.environment(1, os.cpu_count() or 1)
        environment.pop("TRITON_INTERPRET", None)
        words = [sys.executable, "-m", "kernels.benchmarks.static.record_apart", str(path), earlier or "", *command]
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
            raise MeasureError(f"the launches could not be recorded ({last}): report it with --traceback")
        record: dict[str, Any] = read_record(str(path))
    if around.notes:
        record["notes"] = list(around.notes)
    return record


if __name__ == "__main__":
    from .table import static_record

    target, known, *words = sys.argv[1:]
    found = static_record(words, earlier=read_record(known) if known else None)
    Path(target).write_text(json.dumps(found))
