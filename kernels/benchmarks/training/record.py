"""The record: a line of JSON for each run, written when the run has ended, and taken up by the next command.

A run counts if its settings are those that the tables ask for today. One of the same name under other settings is
refused, for a table of both would be no table. Commit, versions and device of each run stand in its line.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attnres_compile.report.comparison import MeasureError

from .grid import Run

KIND, SCHEMA_VERSION = "training run", 1
ROOT = Path(__file__).resolve().parents[3]
RECORD = ROOT / "docs" / "benchmarks" / "training.jsonl"

Line = dict[str, Any]


def read_lines(path: Path) -> dict[str, Line]:
    """The runs of a file by their keys, none where there is no file. A last line without an end is left out.

    Raises:
        MeasureError: a line is no run of this schema, or two lines are of the same run.
    """
    if not path.exists():
        return {}
    found: dict[str, Line] = {}
    for number, text in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], start=1):
        try:
            line = json.loads(text)
            known = (line["kind"], line["schema_version"]) == (KIND, SCHEMA_VERSION)
            key = str(line["key"])
        except (ValueError, KeyError, TypeError) as error:
            raise MeasureError(
                f"line {number} of {path} is no run ({type(error).__name__}): name another file"
            ) from error
        if not known:
            raise MeasureError(f"line {number} of {path} has another kind or schema: name another file")
        if key in found:
            raise MeasureError(f"line {number} of {path} is {key} once more: take one of both out")
        found[key] = line
    return found


class Record:
    """What is known, in a file. text: digest of what is trained on today."""

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.text = path, text
        self.commit = commit()
        self.lines = read_lines(path)

    def of(self, run: Run) -> Line | None:
        """What is known of a run, None if that is nothing.

        Raises:
            MeasureError: the run was made under other settings.
        """
        line = self.lines.get(run.key)
        if line is None:
            return None
        differing = differences(line["settings"], run.settings(self.text))
        if differing:
            raise MeasureError(
                f"{self.path} has {run.key} under other settings: {differing}. Such runs do not belong in one table: "
                "name another file with --record, or take the old lines out"
            )
        return line

    def add(self, run: Run, result: Mapping[str, Any], environment: Mapping[str, Any], command: str) -> None:
        """Append a run.

        Args:
            run: that has ended.
            result: what came of it.
            environment: it was made in.
            command: it was made by.
        """
        line = {
            "schema_version": SCHEMA_VERSION,
            "kind": KIND,
            "key": run.key,
            "table": run.table,
            "size": run.size.name,
            "row": run.row,
            "rate": run.rate,
            "seed": run.seed,
            "settings": run.settings(self.text),
            **result,
            "commit": self.commit,
            "environment": dict(environment),
            "command": command,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _end_last_line(self.path)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, separators=(",", ":")) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.lines[run.key] = line


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The settings that differ, with both values; '' if none does.

    Args:
        before: of a line.
        now: of the run that is asked for.
    """
    names = sorted({*before, *now})
    return ", ".join(
        f"{name} {before.get(name)!r} there and {now.get(name)!r} here"
        for name in names
        if before.get(name) != now.get(name)
    )


def _end_last_line(path: Path) -> None:
    """Cut off what a killed run left of its line."""
    if path.exists():
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):
            path.write_bytes(content[: content.rfind(b"\n") + 1])


@functools.cache
def commit() -> str:
    """Of the code that this process has loaded, marked where it was changed since; asked for once, at the beginning."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs", ":!*.md")
        return git("rev-parse", "--short=12", "HEAD") + ("-changed" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
