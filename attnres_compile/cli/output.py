"""Where the command line writes its results: standard output, or a file that the user names."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from attnres_kernels.errors import AttnResError


class OutputError(AttnResError, OSError):
    """A file that the user named cannot be written."""


def json_text(record: Any) -> str:
    """``record`` as JSON text; what JSON has no number for (nan, infinity) is null."""
    return json.dumps(_without_nan(record), indent=2, allow_nan=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_writable(path: str | None) -> None:
    """Fail before a long run rather than after it. Raises OutputError; an existing file keeps its content."""
    if path is None:
        return
    try:
        existed = Path(path).exists()
        with open(path, "a", encoding="utf-8"):
            pass
        if not existed:
            Path(path).unlink()
    except OSError as error:
        raise OutputError(_cannot_write(path, error)) from error


def write_text(text: str, path: str | None) -> None:
    """Write ``text`` and a final newline to ``path``, or to standard output. Raises OutputError."""
    text = text if text.endswith("\n") else text + "\n"
    if path is None:
        print(text, end="")
        return
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(_cannot_write(path, error)) from error


def write_bytes(content: bytes, path: str) -> None:
    """Write ``content`` to ``path``. Raises OutputError."""
    try:
        Path(path).write_bytes(content)
    except OSError as error:
        raise OutputError(_cannot_write(path, error)) from error


def _cannot_write(path: str, error: OSError) -> str:
    return f"{path} cannot be written ({error.strerror or error}): pass a path in a directory you can write to"
