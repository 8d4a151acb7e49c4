"""The parts of errors.md: what its own blocks of code print, with all numbers, which are those of messages."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

from page_runs import outputs_of

from parts import part
from parts.layout import fenced

PAGE = Path(__file__).resolve().parents[1] / "errors.md"


@part
def printed() -> str:
    """What the code before this part has printed since the last such part; each call is for the next part."""
    return fenced(next(_printed()))


@functools.cache
def _printed() -> Iterator[str]:
    return iter(list(outputs_of(PAGE.read_text())))
