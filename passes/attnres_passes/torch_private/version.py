"""The installed torch: its version, and its folder."""

from __future__ import annotations

import os
import warnings
from functools import lru_cache
from pathlib import Path

import torch

TORCH_FOLDER = f"{Path(torch.__file__).parent}{os.sep}"
"""What the paths of torch's own files begin with."""

_OLDEST = (2, 11)
_NEWEST = (2, 13)


def torch_version() -> tuple[int, int]:
    """Major and minor version of the installed torch."""
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


@lru_cache(maxsize=1)
def warn_if_untested() -> None:
    """Warn, once, under a torch that this file was not checked with."""
    if not _OLDEST <= torch_version() <= _NEWEST:
        oldest, newest = (".".join(map(str, version)) for version in (_OLDEST, _NEWEST))
        warnings.warn(
            f"attnres: torch {torch.__version__} is untested, {oldest} to {newest} are; check your model with "
            "attnres_compile.verify.",
            stacklevel=3,
        )
