"""Where the command line writes its results: standard output, or a file that the user names."""

from __future__ import annotations

from pathlib import Path

from attnres_kernels.errors import AttnResError


class OutputError(AttnResError, OSError):
    """A file that the user named cannot be written."""


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


def _cannot_write(path: str, error: OSError) -> str:
    return (
        f"{path} cannot be written ({error.strerror or error}): pass a path in a directory you can write to"
    )
