"""What the command line writes, to standard output or to a file that the user names, and the records it reads."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attnres_kernels.errors import AttnResError

KERNEL_KINDS = ("bench kernels", "bench offline", "bench static")
"""Kinds of the records that ``python -m kernels.benchmarks`` keeps, which is no part of what is installed."""


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
    with _explained(path):
        existed = Path(path).exists()
        with open(path, "a", encoding="utf-8"):
            pass
        if not existed:
            Path(path).unlink()


def write_text(text: str, path: str | None) -> None:
    """Write a text and a final newline.

    Args:
        text: with or without its last newline.
        path: of the file; None for standard output.

    Raises:
        OutputError: the file cannot be written.
    """
    text = text if text.endswith("\n") else text + "\n"
    if path is None:
        print(text, end="")
        return
    with _explained(path):
        Path(path).write_text(text, encoding="utf-8")


def keep_record(record: Any, path: str | None) -> None:
    """Put a whole record in place of the one before, so that a run which is killed while it writes keeps what it had.

    Args:
        record: plain data.
        path: of the JSON file; None to keep nothing.

    Raises:
        OutputError: the file cannot be written.
    """
    if path is None:
        return
    if not Path(path).is_file() and Path(path).exists():  # a pipe or a device, which nothing can be put in place of
        write_text(json_text(record), path)
        return
    temporary = f"{path}.part"
    write_text(json_text(record), temporary)
    with _explained(path):
        os.replace(temporary, path)


def read_record(path: str) -> Any:
    """The JSON in ``path``. Raises OutputError if it cannot be read."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(
            f"{path} is not a readable record ({error}): pass what --json FILE or w.save(FILE) wrote"
        ) from error


def record_kind(record: Any) -> str | None:
    """What a record or a recording says that it is."""
    return record.get("kind", record.get("content")) if isinstance(record, dict) else None


def refuse_kernel_record(record: Any, verb: str, path: str) -> None:
    """Say which command reads a record of kernels.

    Args:
        record: what was read from ``path``.
        verb: that was asked for.
        path: of the record.

    Raises:
        OutputError: it is a record of kernels.
    """
    if record_kind(record) in KERNEL_KINDS:
        raise OutputError(
            f"{path} is a record of kernels (its kind is {record_kind(record)!r}), which the repository reads and not "
            f"the installed package: run `python -m kernels.benchmarks {verb} {path}` at its root"
        )


def write_bytes(content: bytes, path: str) -> None:
    """Write the bytes of a picture.

    Args:
        content: of the file.
        path: of the file.

    Raises:
        OutputError: it cannot be written.
    """
    with _explained(path):
        Path(path).write_bytes(content)


@contextmanager
def _explained(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error.strerror or error}): pass a path in a directory you can write to"
        ) from error
