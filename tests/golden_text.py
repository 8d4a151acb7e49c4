"""Whole texts that are compared with files in tests/golden, and accepted by name when they change on purpose.

ATTNRES_ACCEPT names the goldens to accept, by their paths in tests/golden without ``.txt`` or by shell patterns:

    ATTNRES_ACCEPT='passes/schedule/*,report/gpt2-tiny' python -m pytest tests

A name that no test of the run has checked fails the run. The hooks of pytest below belong to tests/conftest.py.
"""

from __future__ import annotations

import difflib
import os
import shlex
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(__file__).parent / "golden"
ACCEPT = "ATTNRES_ACCEPT"

_checked: set[str] = set()
"""Goldens that were compared or accepted in this run."""


def check_golden(name: str, text: str) -> None:
    """Compare a text with a golden, or make it the golden if ATTNRES_ACCEPT names it.

    Args:
        name: of the golden, a path in tests/golden without ``.txt``.
        text: the whole text that there is now.

    Raises:
        AssertionError: the text is not that of the golden; the message has the difference, and how to accept it.
    """
    path = GOLDEN / f"{name}.txt"
    text = text.rstrip("\n") + "\n"
    _checked.add(name)
    if any(fnmatchcase(name, pattern) for pattern in _patterns()):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return
    golden = path.read_text(encoding="utf-8") if path.exists() else ""
    if text != golden:
        test = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
        command = f"{ACCEPT}={shlex.quote(name)} python -m pytest {shlex.quote(test)}"
        lines = difflib.unified_diff(golden.splitlines(), text.splitlines(), f"{name}.txt", "now", lineterm="")
        raise AssertionError("\n".join([f"{name}.txt has changed; if on purpose, accept it by", command, *lines]))


def _patterns() -> list[str]:
    """What ATTNRES_ACCEPT names."""
    given = os.environ.get(ACCEPT)
    patterns = [] if given is None else [pattern.strip() for pattern in given.split(",")]
    if "" in patterns or "1" in patterns:
        raise pytest.UsageError(
            f"{ACCEPT}={given!r} names no golden: give paths in tests/golden without .txt, or shell patterns, "
            f"separated by commas, as in {ACCEPT}='passes/schedule/*,report/gpt2-tiny'."
        )
    return patterns


def _unchecked() -> list[str]:
    """Names in ATTNRES_ACCEPT that are of no golden checked in this run."""
    return [pattern for pattern in _patterns() if not any(fnmatchcase(name, pattern) for name in _checked)]


def pytest_configure() -> None:
    _patterns()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run that accepted less than it was asked to; processes of pytest-xdist leave that to the main one."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["checked_goldens"] = sorted(_checked)
    elif _unchecked():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    _checked.update(getattr(node, "workeroutput", {}).get("checked_goldens", ()))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for pattern in _unchecked():
        terminalreporter.write_line(f"{ACCEPT} names {pattern}, and no golden of that name was checked", red=True)
