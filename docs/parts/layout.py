"""How parts are laid out: blocks of code, tables, and excerpts of a graph's text."""

from __future__ import annotations

from tabulate import tabulate


def fenced(text: str, language: str = "text") -> str:
    return f"```{language}\n{text.rstrip()}\n```\n"


def table(rows: list[list[object]], headers: list[str]) -> str:
    return fenced(tabulate(rows, headers=headers, disable_numparse=True))


def excerpt(text: str, first: str, last: str) -> str:
    """The lines from the first one with ``first`` in it up to the next one with ``last`` in it."""
    lines = text.splitlines()
    start = next(k for k, line in enumerate(lines) if first in line)
    stop = next(k for k, line in enumerate(lines) if k > start and last in line)
    return fenced("\n".join(["    ...", *lines[start:stop], "    ..."]))
