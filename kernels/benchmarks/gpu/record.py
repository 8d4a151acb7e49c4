"""The record of a run: every cell with its answer, written whole after each, and resumed by the next run.

A cell stands if it was answered by the same code, on the same device, with the same versions. One that failed or was
killed is tried once more in the next run, behind all that was not tried yet.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from attnres_compile.cli.output import keep_record, read_record
from attnres_compile.report.comparison import MeasureError

from .plan import CHECKS, WARM_UPS, Cell
from .work import FAILED, MEASURED, PASSED, WRONG

KIND, SCHEMA_VERSION = "gpu run", 1
KILLED, CUT = "killed", "cut"
"""Past its own limit; by the end of the budget."""
ANSWERED = (PASSED, MEASURED, WRONG)
FAULTS = (WRONG, FAILED, KILLED)

_SOURCES = ("attnres_compile", "passes/attnres_passes", "kernels/attnres_kernels", "kernels/benchmarks")


def source_digest(root: Path) -> str:
    """Of the code that is measured and that measures. root: of the repository."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in _SOURCES for path in (root / folder).rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


class RunRecord:
    """What is known of each cell, in a file."""

    def __init__(self, path: str | None, environment: dict[str, Any], source: str, command: list[str]) -> None:
        """
        Args:
            path: of the file; what stands in it is kept, if it is there. None to keep nothing.
            environment: of the workers.
            source: digest of the code.
            command: the words of the command line.

        Raises:
            MeasureError: the file is no record of a run.
            OutputError: it cannot be read.
        """
        self.path, self.note = path, ""
        self.data: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "kind": KIND,
            "command": " ".join(command),
            "environment": environment,
            "source": source,
            "runs": [],
            "cells": {},
        }
        if path is not None and Path(path).exists():
            self._resume(read_record(path))

    def _resume(self, before: Any) -> None:
        if not isinstance(before, dict) or (before.get("kind"), before.get("schema_version")) != (KIND, SCHEMA_VERSION):
            raise MeasureError(
                f"{self.path} is no record of `python -m kernels.benchmarks.gpu` with schema_version "
                f"{SCHEMA_VERSION}: name another file"
            )
        differing = [name for name, now in self._identity(self.data).items() if self._identity(before)[name] != now]
        if not differing:
            self.data = self.data | {"cells": before["cells"], "runs": before["runs"]}
            return
        assert self.path is not None
        date = str(before["environment"]["date"]).replace(":", "").partition("+")[0]
        aside = f"{self.path.removesuffix('.json')}-until-{date}.json"
        os.replace(self.path, aside)
        self.note = f"begun anew, {', '.join(differing)} changed; what was measured before is in {aside}"

    @staticmethod
    def _identity(data: dict[str, Any]) -> dict[str, Any]:
        """What has to be the same for cells to stand."""
        environment = data["environment"]
        told = {name: environment.get(name) for name in ("device", "versions", "triton_interpreter")}
        return told | {"source": data["source"]}

    @property
    def cells(self) -> dict[str, dict[str, Any]]:
        """What is known, by the name of the cell."""
        found: dict[str, dict[str, Any]] = self.data["cells"]
        return found

    def stands(self, cell: Cell) -> bool:
        """Whether a cell needs no measurement."""
        return self.cells.get(cell.name, {}).get("status") in ANSWERED

    def answered(self) -> set[str]:
        """Names of cells that need no measurement."""
        return {name for name, cell in self.cells.items() if cell["status"] in ANSWERED}

    def still_to_do(self, plan: Sequence[Cell]) -> list[Cell]:
        """What is left of a plan, in its order: what is not timed first, in both what failed before last."""
        left = [cell for cell in plan if not self.stands(cell)]
        return sorted(left, key=lambda cell: (cell.is_timed, self.cells.get(cell.name, {}).get("status") in FAULTS))

    def add(self, cell: Cell, answer: dict[str, Any], seconds: float) -> None:
        """Take over what became of a cell and write the record. What is known of it stays if it got no time now.

        Args:
            cell: of the plan.
            answer: of its worker, with a status.
            seconds: that it took.
        """
        says_more = self.stands(cell) or (self.cells.get(cell.name, {}).get("status") in FAULTS)
        if cell.group == WARM_UPS or (says_more and answer["status"] == CUT):
            return
        self.cells[cell.name] = {
            "group": cell.group,
            "estimate": cell.seconds,
            "seconds": round(seconds, 3),
            **answer,
        }
        self.keep()

    def keep(self) -> None:
        """Write the record. Raises OutputError."""
        keep_record(self.data, self.path)

    def known_ratios(self) -> Iterator[tuple[str, float]]:
        """Class and seconds over the estimate of what was answered."""
        for cell in self.cells.values():
            if cell["status"] in ANSWERED:
                yield cell["group"], cell["seconds"] / cell["estimate"]

    def records(self) -> list[dict[str, Any]]:
        """Those that cells hold: of kernels and of models."""
        return [cell["record"] for cell in self.cells.values() if "record" in cell]

    def faults(self) -> dict[str, dict[str, Any]]:
        """Cells that are wrong, failed or were killed; checks first."""
        found = {name: cell for name, cell in self.cells.items() if cell["status"] in FAULTS}
        return dict(sorted(found.items(), key=lambda item: item[1]["group"] != CHECKS))
