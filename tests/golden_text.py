"""Whole texts that are compared with files in tests/golden, and accepted by one command when they change on purpose."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"
ACCEPT = "ATTNRES_ACCEPT"


def check_golden(name: str, text: str) -> None:
    """Compare ``text`` with ``tests/golden/<name>.txt``; rewrite the file instead if ATTNRES_ACCEPT=1."""
    path = GOLDEN / f"{name}.txt"
    text = text.rstrip("\n") + "\n"
    if os.environ.get(ACCEPT) == "1":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return
    accepted = path.read_text(encoding="utf-8") if path.exists() else ""
    if text != accepted:
        lines = difflib.unified_diff(accepted.splitlines(), text.splitlines(), path.name, "now", lineterm="")
        raise AssertionError(
            "\n".join([f"{path.name} has changed; if on purpose, accept it by {ACCEPT}=1 python -m pytest", *lines])
        )
