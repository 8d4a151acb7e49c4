"""Files that are replaced whole: who reads one meets the old content or the new, whenever the writer is killed."""

from __future__ import annotations

import os
import re
import socket
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

_PROCESS = uuid.uuid4().hex[:8]
_TEMPORARY = re.compile(r"\.attnres\.\w+\.(?P<host>.+)\.(?P<pid>\d+)\.(?P<process>[0-9a-f]{8})\.[0-9a-f]{8}\.tmp")
_DAY = 24 * 60 * 60


def replace_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Put files in the place of others, one after the other in the order given.

    All are written before the first is renamed. What earlier calls that were killed left behind is removed.

    Args:
        folder: that the files are in.
        contents: by name, which begins with ``attnres.``.

    Raises:
        OSError: a file could not be written; it and those behind it are as they were.
    """
    _remove_abandoned(folder)
    temporaries: list[Path] = []
    try:
        for name, content in contents.items():
            temporaries.append(folder / _temporary_name(name))
            _write_through(temporaries[-1], content)
        for temporary, name in zip(temporaries, contents, strict=True):
            os.replace(temporary, folder / name)
            # Each before the next, so that a loss of power cannot keep a later rename alone.
            _write_folder_through(folder)
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


def _write_through(path: Path, content: bytes) -> None:
    """A new file, on the disk and not only in its cache when this returns."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _write_folder_through(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary_name(name: str) -> str:
    return f".{name}.{socket.gethostname()}.{os.getpid()}.{_PROCESS}.{uuid.uuid4().hex[:8]}.tmp"


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed saves left; another rank may be writing its own right now."""
    for path in folder.glob(".attnres.*.tmp"):
        found = _TEMPORARY.fullmatch(path.name)
        if found is not None and _is_abandoned(found, path):
            path.unlink(missing_ok=True)


def _is_abandoned(name: re.Match[str], path: Path) -> bool:
    if name["host"] != socket.gethostname() or os.name != "posix":
        try:
            return time.time() - path.stat().st_mtime > _DAY
        except FileNotFoundError:
            return False
    if int(name["pid"]) == os.getpid():
        # A container begins anew with the same numbers; another thread of this process has its name as well.
        return name["process"] != _PROCESS
    try:
        os.kill(int(name["pid"]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
