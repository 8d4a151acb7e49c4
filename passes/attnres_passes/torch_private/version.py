"""The installed torch: its version, and its folder; and the version of Triton beside it."""

from __future__ import annotations

import importlib.metadata
import os
import warnings
from functools import lru_cache
from pathlib import Path

import torch

TORCH_FOLDER = f"{Path(torch.__file__).parent}{os.sep}"
"""What the paths of torch's own files begin with."""

_OLDEST = (2, 11)
_NEWEST = (2, 15)

_OLDEST_TRITON = (3, 6)
_NEWEST_TRITON = (3, 9)
"""Those that these two bring along."""


def torch_version() -> tuple[int, int]:
    """Major and minor version of the installed torch."""
    return _release(torch.__version__)


def triton_version() -> str | None:
    """Version of the installed Triton, without importing it; None if there is none."""
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return None


@lru_cache(maxsize=1)
def warn_if_untested() -> None:
    """Warn, once and in one line, under a torch or a Triton that the tests were not run with."""
    untested = []
    if not _OLDEST <= torch_version() <= _NEWEST:
        untested.append(f"torch {torch.__version__} is untested, {_range(_OLDEST, _NEWEST)} are")
    triton = triton_version()
    if triton is not None and not _OLDEST_TRITON <= _release(triton) <= _NEWEST_TRITON:
        untested.append(f"Triton {triton} is untested, {_range(_OLDEST_TRITON, _NEWEST_TRITON)} are")
    if untested:
        warnings.warn(
            f"attnres: {'; '.join(untested)}. Private parts of both are used: check your model with "
            "attnres_compile.verify, and a pipeline against a single process.",
            stacklevel=3,
        )


def _release(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def _range(oldest: tuple[int, int], newest: tuple[int, int]) -> str:
    return " to ".join(".".join(map(str, version)) for version in (oldest, newest))
